"""Functions that each process of a group runs. Usage: ranks.py COUNT FUNCTION ARGUMENT..."""

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
from torch.multiprocessing import start_processes
from torch.utils._pytree import tree_map_only

from rvlr_lib.data import load_dataset
from rvlr_lib.losses import LossWeights, image_text_contrastive_loss
from rvlr_lib.models import TowerStudent
from rvlr_lib.training import features
from rvlr_lib.training.checkpoint import checkpoints_in, last_checkpoint
from rvlr_lib.training.features import encode
from rvlr_lib.training.loop import Execution, Training
from rvlr_lib.training.processes import _GatherRows, gather_rows, is_main, process_group, processes
from tests.tiny import tiny_towers
from tests.training import conftest
from tests.training.conftest import CPU, OFFICIAL, make_batches, make_objective
from tests.training.test_features import store

CASES = {
    "common": ({}, OFFICIAL),
    "fusion": ({"structure_target": "fusion", "learn_relation_temperature": True}, OFFICIAL),
    "own, wasserstein": ({"structure_teacher": "own", "distance": "wasserstein", "cost_gradient": True}, OFFICIAL),
    "rest": ({}, dict.fromkeys(LossWeights.__dataclass_fields__.keys() - OFFICIAL.keys(), 0.5)),
}


def encode_set(folder):
    """Encode a data set with all processes."""
    features.PICTURES, features.CAPTIONS = 4, 8  # 14 pictures in four batches, the last one half full
    towers, dataset = tiny_towers(1), load_dataset("scenes", split="train", size=14)
    store(Path(folder) / f"rank {processes()[0]}", towers, dataset)
    torch.save(encode(TowerStudent(towers), dataset), Path(folder) / f"{processes()[0]}.pt")


class LocalSlice(_GatherRows):
    """The official gather: each process only gets the gradient of its own loss."""

    @staticmethod
    def backward(ctx, gradient):
        return gradient.split(ctx.rows)[dist.get_rank()]


def encoder_gradient(gather):
    """Gradient of the contrastive loss, averaged over the processes."""
    rank, count = processes()
    rows = torch.randn(2, 12, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = torch.eye(6, 4, dtype=torch.float64, requires_grad=True)
    features = [gather(torch.nn.functional.normalize(x.chunk(count)[rank] @ weight)) for x in rows]
    image_text_contrastive_loss(*features, 0.2).backward()
    return gather_rows(weight.grad[None]).mean(dim=0)


def gradients(file):
    """Save gradients and log records of the second of two float64 steps, and the gradients of the official gather."""
    grads, records, tiny = {}, {}, tiny_towers()
    for name in [f"{kind}, {case}" for kind in ("towers", "heads") for case in CASES]:
        switches, weights = CASES[name.split(", ", 1)[1]]
        towers = tiny if name.startswith("towers") else None
        objective = make_objective(switches, towers=towers, **({"contrastive": 0.5} | weights))
        for parameter in objective.student.parameters():  # away from the anchor
            parameter.data += 0.01
        batches = make_batches(towers, "captions", epochs=1, batch_size=24, clip_norm=0)
        execution = Execution(gradient_checkpointing=name == "towers, common")
        training = Training(objective.double().train(), batches, name, execution)
        torch.manual_seed(0)
        for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
            double = tree_map_only(torch.Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
            records[name] = training.train_step(double)
        assert training.step == 2
        grads |= {f"{name}/{key}": p.grad for key, p in objective.named_parameters() if p.grad is not None}
    grads["gather"] = encoder_gradient(gather_rows)
    official = encoder_gradient(LocalSlice.apply if processes()[1] > 1 else gather_rows)
    if is_main():
        save_file(grads | {"official": official}, file)
        Path(file).with_suffix(".json").write_text(json.dumps(records))


def train(folder, stop=""):
    """Train eight steps with a checkpoint every two; the second process gets the signal ``stop`` before step 3."""
    folder, step = Path(folder), Training.train_step

    def train_step(self, inputs):
        if os.environ["RANK"] == "1" and self.step == 3:
            os.kill(os.getpid(), signal.Signals[stop])
        return step(self, inputs)

    if stop:
        Training.train_step = train_step
    execution = Execution(checkpoints=folder / "checkpoints", save_every=2)
    objective = make_objective(matching=1, image_intra=1, text_intra=1)
    fitted = conftest.train(objective, log=folder / "log", execution=execution, rows="captions", batch_size=12)
    if is_main():
        save_file(fitted.state, folder / "state.safetensors")


def kills(folder):
    """Train with a checkpoint every step, killed at 20 random moments; print the last checkpoint's step after each."""
    folder, generator, steps = Path(folder), random.Random(0), [0]
    for _ in range(20):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            execution = Execution(checkpoints=folder / "c", save_every=1)
            conftest.train(make_objective(image_intra=1), execution=execution, epochs=500, batch_size=4)
            os._exit(0)
        while max([int(path.name[5:]) for path in checkpoints_in(folder / "c")], default=0) == steps[-1]:
            time.sleep(0.005)
        time.sleep(generator.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        steps.append(last_checkpoint(folder / "c")[1]["step"])
    print(json.dumps(steps))


def start(rank, count, function, arguments):
    """Run a function in one process, as if torchrun had started it."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": count}
    with process_group(CPU, 10):
        globals()[function](*arguments)


if __name__ == "__main__":
    count, function, *arguments = sys.argv[1:]
    # forked, so that imports happen once; if one process fails, the others are killed
    context = start_processes(start, (count, function, arguments), int(count), join=False, start_method="fork")
    while not context.join(grace_period=1):
        pass
