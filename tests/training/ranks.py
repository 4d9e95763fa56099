"""One process of a group, or a single one. Usage: ranks.py gradients FILE | train FOLDER [SIGNAL] | kills FOLDER.

``gradients``: two steps of several objectives in float64; rank 0 writes the gradients of the second step, and its log
records, to FILE, beside those of the official gather. ``train``: eight steps with a checkpoint every other one; with a
signal, the second process gets it before step 3. ``kills``: trains with a checkpoint each step, is killed at 20 random
moments and goes on each time; prints the step of the last checkpoint after each kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.losses import LossWeights, image_text_contrastive_loss
from rvlr_lib.models import TowerStudent
from rvlr_lib.training import (
    Execution,
    FeatureBatches,
    Objective,
    PixelBatches,
    checkpoints_in,
    fit,
    is_main,
    last_checkpoint,
    process_group,
)
from rvlr_lib.training.loop import Training
from rvlr_lib.training.processes import gather_rows, processes
from tests.tiny import tiny_towers
from tests.training.conftest import CPU, OWNER, make_cached, make_objective, make_pairs

OFFICIAL = {name: value for name, value in vars(LossWeights()).items() if value}
REST = dict.fromkeys(LossWeights.__dataclass_fields__.keys() - OFFICIAL.keys(), 0.5)
CASES = {
    "common": ({}, OFFICIAL),
    "fusion": ({"structure_target": "fusion", "learn_relation_temperature": True}, OFFICIAL),
    "own, wasserstein": ({"structure_teacher": "own", "distance": "wasserstein", "cost_gradient": True}, OFFICIAL),
    "rest": ({}, REST),
}


class LocalSlice(torch.autograd.Function):
    """The official gather, whose gradient is the own slice without the other processes' share."""

    @staticmethod
    def forward(ctx, rows):
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.split(ctx.count)[dist.get_rank()]


def encoder_gradient(gather):
    """Mean over the processes of the contrastive loss's gradient."""
    rank, count = processes()
    rows = torch.randn(2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.eye(6, 4, dtype=torch.float64, requires_grad=True)
    features = [gather(torch.nn.functional.normalize(x.chunk(count)[rank] @ weight)) for x in rows]
    image_text_contrastive_loss(*features, 0.2).backward()
    return gather_rows(weight.grad[None]).mean(dim=0)


def double(part):
    if isinstance(part, tuple):
        return type(part)(*map(double, part))
    return part.double() if isinstance(part, torch.Tensor) and part.is_floating_point() else part


def gradients(file):
    found, records, towers, pairs = {}, {}, tiny_towers(), make_pairs()
    optim = TrainSettings(epochs=1, batch_size=24, clip_norm=0, log_every=1)
    for name in [f"{kind}, {case}" for kind in ("towers", "heads") for case in CASES]:
        (switches, weights), batches = CASES[name.split(", ", 1)[1]], None
        objective, chosen = make_objective(switches, **({"contrastive": 0.5} | weights))
        batches = FeatureBatches(make_cached(), OWNER, optim, "captions", 0, CPU)
        if name.startswith("towers"):
            student, teachers = TowerStudent(towers, fusion_layers=1), tuple(objective.kept("teacher"))
            given = {"teachers": teachers, "embed_dim": student.embed_dim, "seed": 0}
            objective = Objective(student, chosen, MethodSettings(**switches), **given)
            batches = PixelBatches(pairs, towers, optim, "captions", 0, CPU)
        for parameter in objective.student.parameters():  # away from where the anchor pulls to
            parameter.data += 0.01
        execution = Execution(gradient_checkpointing=name == "towers, common")
        training = Training(objective.double().train(), chosen, batches, optim, CPU, name, execution)
        torch.manual_seed(0)
        for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
            records[name] = training.train_step(double(inputs))
        assert training.step == 2
        found |= {f"{name}/{key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
    found["gather"] = encoder_gradient(gather_rows)
    official = encoder_gradient(LocalSlice.apply if processes()[1] > 1 else gather_rows)
    if is_main():
        save_file(found | {"official": official}, file)
        Path(file).with_suffix(".json").write_text(json.dumps(records))


def train(folder, stop=""):
    folder, step = Path(folder), Training.train_step
    optim = TrainSettings(epochs=2, batch_size=12, log_every=1)
    objective, weights = make_objective(matching=1, image_intra=1, text_intra=1)

    def train_step(self, inputs):
        if stop and os.environ["RANK"] == "1" and self.step == 3:
            os.kill(os.getpid(), signal.Signals[stop])
        return step(self, inputs)

    Training.train_step = train_step
    how = {"validate": lambda: {"score": 0.0}, "log_path": folder / "log", "label": "toy", "seed": 0, "device": CPU}
    batches = FeatureBatches(make_cached(), OWNER, optim, "captions", 0, CPU)
    execution = Execution(checkpoints=folder / "checkpoints", save_every=2)
    fitted = fit(objective, weights, batches, optim, execution=execution, **how)
    if is_main():
        save_file(fitted.state, folder / "state.safetensors")


class Noise(torch.nn.Module):
    """Weights to write, and a loss that depends on the random state."""

    two_views = tokens = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1000, 100))

    def forward(self, inputs, precision):
        return {"contrastive": (self.weight - torch.randn(1000, 100)).square().mean()}

    def scalars(self):
        return {}

    def generators(self, device):
        return {}


def kills(folder):
    folder, draws, steps = Path(folder), random.Random(0), [0]
    optim, execution = TrainSettings(epochs=500, batch_size=4), Execution(checkpoints=folder / "c", save_every=1)
    how = {"validate": lambda: {"score": 0.0}, "log_path": folder / "log", "label": "noise", "seed": 0, "device": CPU}
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            batches = FeatureBatches(make_cached(), OWNER, optim, "images", 0, CPU)
            fit(Noise(), LossWeights(), batches, optim, execution=execution, **how)
            os._exit(0)
        while max([int(path.name[5:]) for path in checkpoints_in(folder / "c")], default=0) == steps[-1]:
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        steps.append(last_checkpoint(folder / "c")[1]["step"])
    print(json.dumps(steps))


if __name__ == "__main__":
    torch.set_num_threads(1)
    with process_group(CPU, 10):
        globals()[sys.argv[1]](*sys.argv[2:])
