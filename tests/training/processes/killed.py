"""Trains with a checkpoint each step, is killed at 20 random moments and goes on each time. Usage: killed.py FOLDER.

Prints, as JSON, the step of the last checkpoint after each kill.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from rvlr_lib.config import TrainSettings
from rvlr_lib.losses import LossWeights
from rvlr_lib.training import Execution, checkpoints_in, fit, last_checkpoint

KILLS, STEPS = 20, 4000


class Noise(nn.Module):
    """Weights to write, and a loss that depends on the random state."""

    two_views = tokens = False

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1000, 100))

    def forward(self, inputs, precision):
        return {"contrastive": (self.weight - torch.randn(1000, 100)).square().mean()}

    def scalars(self):
        return {}

    def generators(self, device):
        return {}


class Nothing:
    """Batches without content."""

    steps_per_epoch, position = STEPS, 0

    def take(self, **_):
        while self.position < STEPS:
            self.position += 1
            yield None

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


def train(folder, log):
    settings, execution = TrainSettings(epochs=1, log_every=50), Execution(checkpoints=folder, save_every=1)
    return fit(
        Noise(),
        LossWeights(),
        Nothing(),
        settings,
        seed=0,
        device=torch.device("cpu"),
        label="noise",
        validate=lambda: {"score": 0.0},
        log_path=log,
        execution=execution,
    )


def newest(folder):
    """Step of the newest checkpoint, by name."""
    return max([int(path.name.removeprefix("step-")) for path in checkpoints_in(folder)], default=0)


def main(folder: Path) -> None:
    draws, steps = random.Random(0), []
    for _ in range(KILLS):
        child = os.fork()
        if child == 0:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            train(folder / "c", folder / "log.jsonl")
            os._exit(0)
        last = steps[-1] if steps else 0
        while newest(folder / "c") == last:  # until it has written one of its own
            time.sleep(0.005)
        time.sleep(draws.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        steps.append(last_checkpoint(folder / "c")[1]["step"])
    print(json.dumps(steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
