"""One readable loop that trains an objective on batches, resumes from checkpoints and never waits for the device.

Between two lines of the log the host only queues work: losses, norms and whether they are finite stay on the device.
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from rvlr_lib.config import TrainSettings
from rvlr_lib.losses import LossWeights
from rvlr_lib.metrics import recall_at_k
from rvlr_lib.training.batches import Batches, Inputs
from rvlr_lib.training.checkpoint import last_checkpoint, write_checkpoint
from rvlr_lib.training.optimizer import build_optimizer, checkpoint_gradients, clip_gradient
from rvlr_lib.training.processes import (
    add_up,
    every_random_state,
    is_main,
    processes,
    same_everywhere,
    set_random_states,
    spread,
)


@dataclass(frozen=True)
class Execution:
    """How to train; no part of any cache key.

    Attributes:
        compile: compile the objective with its towers; worth it for long trainings.
        gradient_checkpointing: keep no activations inside the towers' blocks and compute them twice.
        checkpoints: folder of the checkpoints, None for none.
        save_every: steps between two checkpoints.
        resume: ``last``, or ``no``, which removes those that are there.
    """

    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoints: Path | None = None
    save_every: int = 500
    resume: str = "last"

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise ValueError(f"save_every={self.save_every}: checkpoints are at least one step apart")
        if self.resume not in ("last", "no"):
            raise ValueError(f"resume={self.resume!r}: use last (go on from the newest whole checkpoint) or no")


@dataclass
class Fitted:
    """What a training leaves: the weights of the best epoch, and how it went."""

    state: dict[str, Tensor]
    best_epoch: int
    best_score: float
    seconds: float
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)


def choose_device(name: str = "auto") -> torch.device:
    """The device to compute on: ``auto`` takes CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is asked for, but torch {torch.__version__} sees no CUDA device: use cpu")
    return torch.device(name)


def fit(
    objective: Any,
    weights: LossWeights,
    batches: Batches,
    optim: TrainSettings,
    *,
    seed: int,
    device: torch.device,
    validate: Callable[[], dict[str, float]],
    log_path: Path,
    label: str,
    execution: Execution | None = None,
) -> Fitted:
    """Train an objective, in one process or, called by all of them, in several.

    Args:
        objective: module whose ``forward(inputs, precision)`` gives named loss terms and whose ``scalars()`` gives what
            to log; ``two_views`` and ``tokens`` say what it needs of a batch, ``generators(device)`` what else is
            random in it.
        weights: of the terms.
        batches: to train on; each process takes its share of every batch.
        optim: settings of the optimisation.
        seed: of everything random in the forward pass.
        device: to compute on.
        validate: scores after each epoch; the epoch with the highest ``score`` is kept.
        log_path: JSONL, a line each ``log_every`` steps and one for each epoch.
        label: of the progress bar.
        execution: how to carry it out, and where checkpoints go; without it there are none.

    Raises:
        FloatingPointError: a loss term, the gradient or a temperature was not finite; names it and the step, at the
            next line of the log, and before any checkpoint is written.
        ValueError: every checkpoint to resume from is damaged or of another training, or the memory does not suffice.
    """
    execution = execution or Execution()
    torch.manual_seed(seed)
    objective.to(device).train()
    training = Training(objective, weights, batches, optim, device, label, execution)
    lines = training.resume()
    interval = 0.5 if sys.stderr.isatty() else 15.0  # notebooks and logs keep every refresh
    log, shown = _Log(log_path, lines), {"desc": label, "unit": "step", "mininterval": interval}
    with log.file, tqdm(total=training.steps, initial=training.step, disable=not is_main(), **shown) as bar:
        while training.epoch < optim.epochs:
            for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
                log.write(training.train_step(inputs))
                bar.update()
                if batches.position < batches.steps_per_epoch:
                    training.save_if_due(log.text)
            objective.eval()
            scores = validate()
            objective.train()
            log.write(training.close_epoch(scores))
            training.save_if_due(log.text)
    fitted = training.fitted
    fitted.seconds, fitted.state = training.seconds(), {name: value.cpu() for name, value in fitted.state.items()}
    return fitted


class Training:
    """A training under way: where it stands, one step of it, and its checkpoints. Arguments as of :func:`fit`."""

    def __init__(
        self,
        objective: Any,
        weights: LossWeights,
        batches: Batches,
        optim: TrainSettings,
        device: torch.device,
        label: str,
        execution: Execution,
    ) -> None:
        self.objective, self.weights, self.batches, self.optim = objective, asdict(weights), batches, optim
        self.device, self.label, self.execution = device, label, execution
        if execution.gradient_checkpointing:
            checkpoint_gradients(objective)
        self.model = spread(objective)
        self.compile = execution.compile
        self.steps = optim.epochs * batches.steps_per_epoch
        self.optimizer, self.schedule = build_optimizer(objective, optim, self.steps, fused=device.type == "cuda")
        bfloat16 = optim.precision == "bfloat16" or (optim.precision == "auto" and device.type == "cuda")
        self.precision: Any = torch.autocast(device.type, torch.bfloat16) if bfloat16 else nullcontext()
        self.fitted = Fitted({}, -1, -math.inf, 0.0, self.steps)
        self.step = self.epoch = 0
        self.watched: dict[str, Tensor] = {}  # name -> [first bad step or infinity, its value], on the device
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Time spent training, before an interruption included."""
        return self.fitted.seconds + time.monotonic() - self.started

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        """One step of the optimiser; what to log of it, empty where it is not a step to log."""
        if self.compile:
            self.compile = False
            self._compile(inputs)
        try:
            terms = self.model(inputs, self.precision)
            total = sum(self.weights[name] * term for name, term in terms.items())
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"{self.label}, step {self.step}: the memory of {self.device} does not hold a batch of "
                f"{self.optim.batch_size}: set a smaller batch_size or gradient_checkpointing "
                f"({str(error).splitlines()[0]})"
            ) from None
        except ValueError:  # a loss may refuse what is not finite in words of its own
            self._watch(self._scalars())
            self.check_finite()
            raise
        norm = clip_gradient(self.objective, self.optim.clip_norm)
        self._watch({**terms, "gradient norm": norm, **self._scalars()})
        record: dict[str, float] = {}
        if self.step % self.optim.log_every == 0 or self.step == self.steps - 1:
            self.check_finite()
            values = _mean_over_processes({"total": total, **{f"loss/{name}": term for name, term in terms.items()}})
            record = {
                "step": self.step,
                "epoch": self.epoch,
                "total": values.pop("total"),
                "gradient_norm": float(norm),
                "learning_rate": float(self.schedule.get_last_lr()[0]),
                **values,
                **self.objective.scalars(),
            }
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return record

    def close_epoch(self, scores: dict[str, float]) -> dict[str, float]:
        """Keep the weights if the scores are the best so far; what to log."""
        self.check_finite()
        fitted = self.fitted
        fitted.history.append({"epoch": self.epoch, "step": self.step, **scores})
        record = {"step": self.step, "epoch": self.epoch, **{f"validation/{key}": v for key, v in scores.items()}}
        if scores["score"] > fitted.best_score:
            fitted.best_epoch, fitted.best_score = self.epoch, scores["score"]
            fitted.state = {name: tensor.detach().clone() for name, tensor in self.objective.state_dict().items()}
        self.epoch += 1
        return record

    def check_finite(self) -> None:
        """Look at what was watched since the last look, the one wait for the device.

        Raises:
            FloatingPointError: something was not finite; names it, its value and its first such step.
        """
        if not self.watched:
            return
        found = torch.stack(list(self.watched.values())).tolist()
        first = min(step for step, _ in found)
        if first < math.inf:
            bad = {name: value for name, (step, value) in zip(self.watched, found, strict=True) if step == first}
            raise FloatingPointError(
                f"{self.label}, step {first:.0f}: not finite: "
                + ", ".join(f"{name} = {value}" for name, value in bad.items())
            )

    def _watch(self, values: dict[str, Tensor]) -> None:
        """Keep the first step at which a value was not finite, and the value."""
        names = list(values)
        now = torch.stack([values[name].detach().double() for name in names])
        now = torch.stack([torch.where(now.isfinite(), math.inf, float(self.step)), now], dim=1)
        if self.watched:
            then = torch.stack([self.watched.get(name, now[place]) for place, name in enumerate(names)])
            now = torch.where(then[:, :1].isfinite(), then, now)
        self.watched |= dict(zip(names, now, strict=True))

    def _scalars(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.objective.named_parameters() if value.ndim == 0}

    def _compile(self, inputs: Inputs) -> None:
        """Compile the objective and warm it up, leaving all random states as they were; without success, do without.

        Evaluation calls the student's own methods, which stay as they are: nothing is compiled anew for its shapes.
        """
        began, states = time.monotonic(), self.random_states()
        try:
            self.model.compile()
            sum(self.model(inputs, self.precision).values()).backward()
            told = f"compiled in {time.monotonic() - began:.0f} s"
        except Exception as error:
            self.model._compiled_call_impl = None
            torch._dynamo.reset()
            told = f"cannot be compiled ({type(error).__name__}: {str(error).splitlines()[0]}): trains uncompiled"
        self.optimizer.zero_grad(set_to_none=True)
        self.put_back(states)
        if is_main():
            print(f"{self.label}: {told}")

    def save_if_due(self, log: str) -> None:
        """Write a checkpoint every ``save_every`` steps; only the main process writes."""
        folder = self.execution.checkpoints
        if folder is None or self.step % self.execution.save_every or self.step == self.steps:
            return
        self.check_finite()
        state = self.state_dict() | {"log": log}
        if is_main():
            write_checkpoint(folder, self.step, state)

    def resume(self) -> str:
        """Go on from the last checkpoint, if one is asked for and there; the log so far."""
        folder, found = self.execution.checkpoints, None
        if folder is not None and self.execution.resume == "no":
            if is_main():
                import shutil

                shutil.rmtree(folder, ignore_errors=True)
        elif folder is not None:
            found = last_checkpoint(folder)
        if not same_everywhere(found[1]["step"] if found else 0):
            raise ValueError(f"processes find different checkpoints in {folder}: all nodes must share this folder")
        if found is None:
            return ""
        self.load_state_dict(found[1], f"{found[0]} in {folder}")
        if is_main():
            print(f"{self.label}: going on from step {self.step} of {self.steps}")
        return found[1]["log"]

    def random_states(self) -> dict[str, Any]:
        """Of torch in every process, and of the objective's own generators."""
        own = {name: generator.get_state() for name, generator in self.objective.generators(self.device).items()}
        return {"torch": every_random_state(self.device), "own": own}

    def put_back(self, states: dict[str, Any]) -> None:
        """Set what :meth:`random_states` gave."""
        set_random_states(states["torch"], self.device)
        for name, generator in self.objective.generators(self.device).items():
            generator.set_state(states["own"][name])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on as if it had never stopped."""
        fitted = asdict(self.fitted) | {"seconds": self.seconds(), "state": self.fitted.state}
        return {
            "step": self.step,
            "steps": self.steps,
            "epoch": self.epoch,
            "batches": self.batches.state_dict(),
            "weights": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "random": self.random_states(),
            "fitted": fitted | {"best_score": None if math.isinf(fitted["best_score"]) else fitted["best_score"]},
        }

    def load_state_dict(self, state: Mapping[str, Any], where: str = "the state") -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            ValueError: it is of another training: names ``where``.
        """
        if state["steps"] != self.steps:
            raise ValueError(
                f"{where} is of a training of {state['steps']} steps, this one has {self.steps}: "
                "--resume no starts anew"
            )
        try:
            self.objective.load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(f"{where} holds weights of another architecture: {error}") from error
        moments = {int(number): values for number, values in state["optimizer"]["state"].items()}
        self.optimizer.load_state_dict({**state["optimizer"], "state": moments})
        self.schedule.load_state_dict(state["schedule"])
        self.batches.load_state_dict(state["batches"])
        self.put_back(state["random"])
        self.step, self.epoch = state["step"], state["epoch"]
        self.fitted = Fitted(**state["fitted"])
        if self.fitted.best_score is None:
            self.fitted.best_score = -math.inf
        self.fitted.state = {name: value.to(self.device) for name, value in self.fitted.state.items()}


class _Log:
    """The log of a training: JSON lines, written by the main process as they come."""

    def __init__(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.text, self.file = text, (path if is_main() else Path(os.devnull)).open("w", encoding="utf-8")
        self.file.write(text)

    def write(self, record: dict[str, float]) -> None:
        """Add a line; nothing for an empty record."""
        if record:
            line = json.dumps(record) + "\n"
            self.text += line
            self.file.write(line)
            self.file.flush()


def cross_modal_recall(images: Tensor, texts: Tensor, caption_image: Tensor) -> dict[str, float]:
    """Recall of cosine retrieval in both directions and their mean, in percent.

    Args:
        images: unit rows ``[I, D]``.
        texts: unit rows ``[C, D]``.
        caption_image: picture of each caption ``[C]``.
    """
    positives = caption_image.unsqueeze(0) == torch.arange(len(images), device=caption_image.device).unsqueeze(1)
    scores = images @ texts.T
    i2t, t2i = recall_at_k(scores, positives), recall_at_k(scores.T, caption_image)
    values = {f"{name}/R@{k}": recall[k] for name, recall in (("i2t", i2t), ("t2i", t2i)) for k in recall}
    return values | {"r_mean": sum(values.values()) / len(values)}


def _mean_over_processes(values: dict[str, Tensor]) -> dict[str, float]:
    """The values of the whole batch: each process has the matching loss of its own rows only."""
    means = add_up(torch.stack([value.detach() for value in values.values()])) / processes()[1]
    return dict(zip(values, means.tolist(), strict=True))
