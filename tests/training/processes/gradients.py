"""One process of a group, or a single one: two steps of several objectives in float64. Usage: gradients.py FILE.

Rank 0 writes the gradients of the second step, and the last log record of each case, to FILE.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rvlr_lib.config import LossWeights, TrainSettings, load_settings, variant_weights
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.models import Student, Teacher, build_towers
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.loop import BatchSource, Training
from rvlr_lib.training.objectives import StudentObjective, TeacherObjective
from rvlr_lib.training.processes import Execution, is_main, leave, process_group

CPU = torch.device("cpu")
CASES = {
    "rvlr, common": ("rvlr", {"method.structure_target": "common", "method.structure_teacher": "fused"}),
    "rvlr, fusion": ("rvlr", {"method.structure_target": "fusion", "method.distance": "mae"}),
    "rvlr, own, wasserstein": ("rvlr", {"method.structure_target": "common", "method.structure_teacher": "own",
                                        "method.distance": "wasserstein", "method.cost_gradient": True}),
    "intra": ("intra", {}),
    "alignment": ("matching", {"method.weights.alignment": 0.5}),
}  # fmt: skip


def toy_pairs():
    """14 pictures with one to three captions of different lengths; rows are captions, so pictures repeat."""
    generator = np.random.default_rng(0)
    pictures = generator.integers(0, 256, (14, 48, 48, 3), dtype=np.uint8)
    owner = np.repeat(np.arange(14), [1, 2, 3, 2, 1, 3, 2, 2, 1, 3, 2, 1, 3, 2])
    captions = ["word " * (1 + row % 7) + f"of {image}" for row, image in enumerate(owner)]
    return ImageTextDataset("toy", "train", [str(i) for i in range(14)], captions, owner, ArraySource(pictures))


def objectives(pairs, towers):
    generator = torch.Generator().manual_seed(0)
    features = tuple(unit_rows(torch.randn(n, 24, generator=generator)) for n in (14, len(pairs.captions)))
    for name, (variant, overrides) in CASES.items():
        settings = load_settings("official", overrides={"model.fusion_layers": 1, **overrides})
        weights = variant_weights(settings, variant)
        student = Student(towers, fusion_layers=1)
        yield name, StudentObjective(student, weights, settings.method, features, towers.embed_dim, seed=0), weights
    for modality in ("image", "text"):
        yield (
            f"{modality} teacher",
            TeacherObjective(Teacher(towers, modality)),
            LossWeights(image_intra=1, text_intra=1),
        )


def main(file: str) -> None:
    pairs, towers, found, records = toy_pairs(), build_towers("tiny"), {}, {}
    settings = TrainSettings(epochs=1, batch_size=12, clip_norm=0, log_every=1, precision="float32")
    with process_group(CPU, 60):
        for name, objective, weights in objectives(pairs, towers):
            torch.manual_seed(0)
            source = BatchSource(pairs, towers.tokenizer, 48, settings, "captions", seed=0)
            execution = Execution(gradient_checkpointing=name == "rvlr, common")
            training = Training(objective.double().train(), weights, source, settings, CPU, name, execution)
            for inputs in training.batches():
                second = inputs.second_pixels
                inputs = inputs._replace(
                    pixels=inputs.pixels.double(), second_pixels=second if second is None else second.double()
                )
                records[name] = training.train_step(inputs)
            assert training.step == 2
            found |= {f"{name}/{key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
        if is_main():
            save_file(found, file)
            Path(file).with_suffix(".json").write_text(json.dumps(records))
        leave()


if __name__ == "__main__":
    main(sys.argv[1])
