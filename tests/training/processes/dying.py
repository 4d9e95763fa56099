"""``rvlr`` whose second process is killed, or falls silent, before step 3. Usage: dying.py SIGNAL ARGUMENTS..."""

import os
import signal
import sys

from rvlr_lib import cli
from rvlr_lib.training import loop as training

step = training.Training.train_step


def train_step(self, inputs):
    if os.environ["RANK"] == "1" and self.step == 3:
        os.kill(os.getpid(), signal.Signals[sys.argv[1]])
    return step(self, inputs)


if __name__ == "__main__":
    training.Training.train_step = train_step
    sys.exit(cli.main(sys.argv[2:]))
