"""One process of a group, or a single one. Usage: ranks.py gradients FILE, or ranks.py train FOLDER [SIGNAL].

``gradients``: two steps of several objectives in float64; rank 0 writes the gradients of the second step, and the last
log record of each case, to FILE. ``train``: eight steps with a checkpoint every other one; with a signal, the second
process gets it before step 3.
"""

import json
import os
import signal
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import HeadStudent, TowerStudent, build_towers
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training import FeatureBatches, Objective, PixelBatches, fit, is_main, leave, process_group
from rvlr_lib.training.loop import Execution, Training

CPU = torch.device("cpu")
OWNER = np.repeat(np.arange(14), [1, 2, 3, 2, 1, 3, 2, 2, 1, 3, 2, 1, 3, 2])
OFFICIAL = LossWeights()
INTRA = LossWeights(
    image_representation=0,
    text_representation=0,
    structure=0,
    image_teacher_structure=0,
    text_teacher_structure=0,
    image_intra=1,
    text_intra=1,
    alignment=0.5,
    anchor=0.1,
    cross_modal_cyclic=0.1,
    in_modal_cyclic=0.1,
)
CASES = {
    "common": (OFFICIAL, {}),
    "fusion": (OFFICIAL, {"structure_target": "fusion", "learn_relation_temperature": True}),
    "own, wasserstein": (OFFICIAL, {"structure_teacher": "own", "distance": "wasserstein", "cost_gradient": True}),
    "intra": (INTRA, {}),
    "controls": (LossWeights(mean_relation=1, rkd_angle=1), {}),
}


@cache
def towers():
    open_clip.add_model_config(Path(__file__).parents[2] / "models" / "tiny_48.json")
    return build_towers("tiny_48")


def pixels(optim):
    """14 pictures with one to three captions of different lengths; rows are captions, so pictures repeat."""
    pictures = np.random.default_rng(0).integers(0, 256, (14, 48, 48, 3), dtype=np.uint8)
    captions = ["word " * (1 + row % 7) + f"of {image}" for row, image in enumerate(OWNER)]
    pairs = ImageTextDataset("toy", "train", [str(i) for i in range(14)], captions, OWNER, ArraySource(pictures))
    return PixelBatches(pairs, towers(), optim, "captions", 0, CPU)


def features(optim):
    """Cached features of the same; each process trims the tokens of its captions alike."""
    draw = torch.Generator().manual_seed(0)
    texts = torch.randn(len(OWNER), 20, generator=draw)
    cached = SimpleNamespace(
        images=torch.randn(3, 14, 24, generator=draw),
        texts=texts,
        image_tokens=torch.randn(14, 4, 24, generator=draw),
        text_tokens=texts[:, None].repeat(1, 5, 1),
        text_mask=torch.arange(5) < torch.randint(1, 6, (len(OWNER), 1), generator=draw),
    )
    return FeatureBatches(cached, OWNER, optim, "captions", 0, CPU)


def heads():
    draw = torch.Generator().manual_seed(1)
    directions = [torch.linalg.qr(torch.randn(width, 8, generator=draw))[0] for width in (24, 20)]
    return HeadStudent(*directions, token_widths=(24, 20), fusion_layers=1)


def double(part):
    if isinstance(part, tuple):
        return type(part)(*map(double, part))
    return part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part


def gradients(file):
    found, records = {}, {}
    optim = TrainSettings(epochs=1, batch_size=12, clip_norm=0, log_every=1, precision="float32")
    draw = torch.Generator().manual_seed(0)
    teachers = tuple(unit_rows(torch.randn(count, 24, generator=draw)) for count in (14, len(OWNER)))
    for kind, make in (("towers", lambda: TowerStudent(towers(), fusion_layers=1)), ("heads", heads)):
        for case, (weights, switches) in CASES.items():
            torch.manual_seed(0)
            student, name = make(), f"{kind}, {case}"
            objective = Objective(
                student, weights, MethodSettings(**switches), teachers=teachers, embed_dim=student.embed_dim, seed=0
            )
            if weights.anchor:  # away from where it pulls to
                for parameter in student.parameters():
                    parameter.data += 0.01
            batches = pixels(optim) if kind == "towers" else features(optim)
            execution = Execution(gradient_checkpointing=name == "towers, common")
            training = Training(objective.double().train(), weights, batches, optim, CPU, name, execution)
            torch.manual_seed(0)
            for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
                records[name] = training.train_step(double(inputs))
            assert training.step == 2
            found |= {f"{name}/{key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
    if is_main():
        save_file(found, file)
        Path(file).with_suffix(".json").write_text(json.dumps(records))


def train(folder, stop=None):
    optim = TrainSettings(epochs=4, batch_size=12, log_every=1)
    student = heads()
    weights = LossWeights(
        structure=0,
        image_teacher_structure=0,
        text_teacher_structure=0,
        image_representation=0,
        text_representation=0,
        image_intra=1,
        text_intra=1,
    )
    objective = Objective(student, weights, MethodSettings(), embed_dim=8, seed=0)
    step = Training.train_step

    def train_step(self, inputs):
        if stop and os.environ["RANK"] == "1" and self.step == 3:
            os.kill(os.getpid(), signal.Signals[stop])
        return step(self, inputs)

    Training.train_step = train_step
    fitted = fit(
        objective,
        weights,
        features(optim),
        optim,
        seed=0,
        device=CPU,
        label="toy",
        validate=lambda: {"score": float(objective.student.log_temperature.detach())},
        log_path=Path(folder) / "log.jsonl",
        execution=Execution(checkpoints=Path(folder) / "checkpoints", save_every=2),
    )
    if is_main():
        save_file(fitted.state, Path(folder) / "state.safetensors")


if __name__ == "__main__":
    with process_group(CPU, 10):
        {"gradients": gradients, "train": train}[sys.argv[1]](*sys.argv[2:])
        leave()
