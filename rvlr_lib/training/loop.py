"""One loop that trains an objective on batches, resumes from checkpoints and never waits for the device.

Between two lines of the log the host only queues work: losses, norms and whether they are finite stay on the device.
"""

import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils._pytree import tree_leaves, tree_map_only
from tqdm import tqdm

from rvlr_lib.config import TrainSettings
from rvlr_lib.metrics import recall_at_k
from rvlr_lib.models import CachedRows
from rvlr_lib.training.batches import Batches, Inputs, derived_seed
from rvlr_lib.training.checkpoint import last_checkpoint, write_checkpoint
from rvlr_lib.training.features import mixed_precision
from rvlr_lib.training.objectives import Objective
from rvlr_lib.training.processes import all_reduce_sum, held_by_all, is_main, processes, spread

# a parameter of a tower's body, and not of its projection into the common space
TOWER_BODY = re.compile(r"student\.(visual|text)\.(?!(proj|text_projection|head)\b)")
side_stream = cache(torch.cuda.Stream)  # one a device, as its libraries keep memory for each
Gradients = tuple[Tensor, Tensor, dict[str, Tensor]]  # the whole loss, the norm of its gradients, its terms


@dataclass(frozen=True)
class Execution:
    """How to train; no part of any cache key."""

    compile: bool = False  # the objective with its towers; worth it for long trainings
    gradient_checkpointing: bool = False  # keep no activations inside the towers' blocks and compute them twice
    checkpoints: Path | None = None  # their folder, None for none
    save_every: int = 500  # steps between two checkpoints
    resume: str = "last"  # no removes the checkpoints that are there

    def __post_init__(self) -> None:
        if self.save_every < 1 or self.resume not in ("last", "no"):
            raise ValueError(f"save_every={self.save_every} must be 1 or more, resume={self.resume!r} last or no")


@dataclass
class Fitted:
    """What a training leaves: the weights of the best epoch, and how it went."""

    steps: int
    state: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -sys.float_info.max  # JSON knows no infinity
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def choose_device(name: str = "auto") -> torch.device:
    """The device to compute on: ``auto`` takes CUDA where there is one; ValueError for one that is not there."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(name)
        known = device.type == "cuda" and (device.index or 0) < torch.cuda.device_count()
        return device if known else torch.empty(0, device=device).device  # which takes memory of a GPU in every process
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"device {name!r} is not there: {reason}; valid: auto, cpu, cuda, cuda:N") from None


def fit(
    objective: Objective,
    batches: Batches,
    *,
    validate: Callable[[], dict[str, float]],
    log_path: Path,
    label: str,
    execution: Execution | None = None,
) -> Fitted:
    """Train an objective on batches, in one process or, called by all of them, in several.

    ``batches`` hold the settings of the optimisation, the device, and the seed of everything random. ``validate`` gives
    scores after each epoch, and the weights of the highest ``score`` are kept. ``log_path`` gets a line of JSON each
    ``log_every`` steps and one for each epoch. FloatingPointError names a loss term, gradient or temperature that was
    not finite and the step, before any checkpoint is written.
    """
    training = Training(objective.to(batches.device).train(), batches, label, execution or Execution())
    training.resume()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log = (log_path if is_main() else Path(os.devnull)).open("w", buffering=1, encoding="utf-8")  # line by line
    log.write(training.log)

    def note(record: dict[str, float]) -> None:
        line = json.dumps(record) + "\n"
        training.log += line
        log.write(line)

    hidden = not is_main() or "RVLR_HEADLESS" in os.environ  # notebooks and logs keep every refresh
    shown = {"desc": label, "unit": "step", "mininterval": 0.5 if sys.stderr.isatty() else 15.0, "disable": hidden}
    with log, tqdm(total=training.steps, initial=training.step, **shown) as bar:
        while training.epoch < batches.optim.epochs:
            for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
                if record := training.train_step(inputs):
                    note(record)
                bar.update()
                training.save_if_due()
            objective.eval()
            scores = validate()
            objective.train()
            note(training.close_epoch(scores))
    training.fitted.seconds = time.monotonic() - training.started
    training.fitted.state = {name: value.cpu() for name, value in training.fitted.state.items()}
    return training.fitted


class Training:
    """A training under way: where it stands, one step of it, and its checkpoints. Arguments as of :func:`fit`."""

    def __init__(self, objective: Objective, batches: Batches, label: str, execution: Execution) -> None:
        self.objective, self.batches, self.label, self.execution = objective, batches, label, execution
        self.optim, self.device = batches.optim, batches.device
        if execution.gradient_checkpointing:
            checkpoint_gradients(objective)
        self.model, self.prepared, self.replay = spread(objective), False, None
        self.precision = mixed_precision(self.device, self.optim.precision)
        self.steps = self.optim.epochs * batches.steps_per_epoch
        self.optimizer, self.schedule = build_optimizer(objective, self.optim, self.steps)
        self.parts: dict[str, Any] = {"weights": objective, "optimizer": self.optimizer, "schedule": self.schedule}
        self.fitted, self.step, self.epoch, self.log = Fitted(self.steps), 0, 0, ""
        self.watched: list[tuple[int, list[str], Tensor]] = []  # step, names and values, on the device
        self.started = time.monotonic()  # less what passed before an interruption

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        """One step of the optimiser; what to log of it, empty where it is not a step to log."""
        learnt = {name: value for name, value in self.objective.named_parameters() if value.ndim == 0}  # temperatures
        try:
            if not self.prepared:
                self.prepared = True
                self._prepare(inputs)
            torch.manual_seed(derived_seed(self.batches.seed, "forward", self.step))  # a resume needs its place alone
            total, norm, terms = (self.replay or self._gradients)(inputs)
        except torch.OutOfMemoryError as error:
            size, reason = self.optim.batch_size, str(error).splitlines()[0]
            fault = f"{self.label}, step {self.step}: {self.device} has no memory for a batch of {size}"
            raise ValueError(f"{fault}: set a smaller batch_size or gradient_checkpointing ({reason})") from None
        except ValueError:  # a loss may refuse what is not finite in words of its own
            self._watch(learnt)
            self.check_finite()
            raise
        self._watch({**terms, "gradient norm": norm, **learnt})
        record: dict[str, float] = {}
        if self.step % self.optim.log_every == 0 or self.step == self.steps - 1:
            self.check_finite()
            # each process has the matching loss of its own rows only
            whole, *means = (all_reduce_sum(torch.stack([total, *terms.values()]).detach()) / processes()[1]).tolist()
            record = {"step": self.step, "epoch": self.epoch, "total": whole, "gradient_norm": float(norm)}
            record["learning_rate"] = float(self.schedule.get_last_lr()[0])
            record |= dict(zip((f"loss/{name}" for name in terms), means, strict=True)) | self.objective.scalars()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return record

    def close_epoch(self, scores: dict[str, float]) -> dict[str, float]:
        """Keep the weights if the scores are the best so far; what to log."""
        self.check_finite()
        fitted, place = self.fitted, {"step": self.step, "epoch": self.epoch}
        fitted.history.append({**place, **scores})
        if scores["score"] > fitted.best_score:
            fitted.best_epoch, fitted.best_score = self.epoch, scores["score"]
            fitted.state = {name: tensor.detach().clone() for name, tensor in self.objective.state_dict().items()}
        self.epoch += 1
        return {**place, **{f"validation/{key}": value for key, value in scores.items()}}

    def check_finite(self) -> None:
        """Wait for the device and look at what was watched; FloatingPointError names what was not finite, and when."""
        for step, names, values in self.watched:
            if bad := [f"{name} = {v}" for name, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)]:
                raise FloatingPointError(f"{self.label}, step {step}: not finite: {', '.join(bad)}")
        self.watched.clear()

    def _watch(self, values: dict[str, Tensor]) -> None:
        now = torch.stack([value.detach().float() for value in values.values()])
        self.watched.append((self.step, list(values), now))

    def _gradients(self, inputs: Inputs) -> Gradients:
        """Set the gradients of a batch and clip them: the whole loss, the norm and the terms."""
        terms = self.model(inputs, self.precision)
        total = sum(getattr(self.objective.weights, name) * term for name, term in terms.items())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        return total, clip_grad_norm_(self.objective.parameters(), self.optim.clip_norm or math.inf), terms

    def _prepare(self, inputs: Inputs) -> None:
        """Make the steps faster: compiled if that is asked for, else recorded where their shapes are fixed."""
        fixed = isinstance(inputs.images, CachedRows) and inputs.images.tokens is None
        if self.execution.compile:
            self._compile(inputs)
        elif fixed and self.device.type == "cuda" and processes()[1] == 1:
            self._record(inputs)

    def _record(self, inputs: Inputs) -> None:
        """Record a batch's work as a CUDA graph: one launch a step, where the host's hundreds took most of the time.

        The numbers are the same; those of a step, gradients too, are overwritten by the next.
        """
        static, graph = tree_map_only(Tensor, torch.clone, inputs), torch.cuda.CUDAGraph()
        stream = side_stream(self.device)
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(stream):
            self._gradients(static)  # loads what must not be loaded while recording
        torch.cuda.synchronize(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, stream=stream):
            outputs = self._gradients(static)

        def replay(inputs: Inputs) -> Gradients:
            for mine, theirs in zip(tree_leaves(static), tree_leaves(inputs), strict=True):
                if mine is not None:
                    mine.copy_(theirs)
            graph.replay()
            return outputs

        self.replay = replay

    def _compile(self, inputs: Inputs) -> None:
        """Compile and warm up on a batch, leaving random states as they were; without success, train uncompiled.

        Evaluation calls the student's own methods, which stay uncompiled: its shapes are many.
        """
        began, fault = time.monotonic(), ""
        try:
            self.model.compile()
            sum(self.model(inputs, self.precision).values()).backward()
        except Exception as error:
            fault = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        message, fault = f"compiled in {time.monotonic() - began:.0f} s", max(held_by_all(fault))
        if fault:  # what one process cannot do none does: they must keep step
            self.model._compiled_call_impl = None
            torch._dynamo.reset()
            message = f"cannot be compiled ({fault}): trains uncompiled"
        self.optimizer.zero_grad(set_to_none=True)
        if is_main():
            print(f"{self.label}: {message}")

    def save_if_due(self) -> None:
        """Write a checkpoint every ``save_every`` steps; only the main process writes."""
        folder = self.execution.checkpoints
        if folder is None or self.step % self.execution.save_every or self.step == self.steps:
            return
        self.check_finite()
        state = self.state_dict()
        if is_main():
            write_checkpoint(folder, self.step, state)

    def resume(self) -> None:
        """Go on from the last checkpoint, if one is asked for and there."""
        folder, newest = self.execution.checkpoints, None
        if folder is not None and self.execution.resume == "last":
            newest = last_checkpoint(folder)
        elif folder is not None and is_main():
            shutil.rmtree(folder, ignore_errors=True)
        if len(set(held_by_all(newest[1]["step"] if newest else 0))) > 1:
            raise ValueError(f"processes find different checkpoints in {folder}: all nodes must share this folder")
        if newest is not None:
            self.load_state_dict(newest[1], f"{newest[0]} in {folder}")
            if is_main():
                print(f"{self.label}: going on from step {self.step} of {self.steps}")

    def state_dict(self) -> dict[str, Any]:
        """Everything that a training needs to go on as if it had never stopped."""
        fitted = vars(self.fitted) | {"seconds": time.monotonic() - self.started}
        state = {"step": self.step, "epoch": self.epoch, "log": self.log, "fitted": fitted}
        return state | {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Go on from what :meth:`state_dict` gave; ValueError names ``where`` if that is of another training."""
        self.fitted = Fitted(**state["fitted"])
        if self.fitted.steps != self.steps:
            what = f"of a training of {self.fitted.steps} steps, this one has {self.steps}: --resume no starts anew"
            raise ValueError(f"{where} is {what}")
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except RuntimeError as error:
            raise ValueError(f"{where} holds weights of another architecture: {error}") from error
        self.step, self.epoch, self.log = state["step"], state["epoch"], state["log"]
        self.batches.epoch, self.batches.position = self.epoch, self.step - self.epoch * self.batches.steps_per_epoch
        self.started -= self.fitted.seconds
        self.fitted.state = {name: value.to(self.device) for name, value in self.fitted.state.items()}


def build_optimizer(objective: nn.Module, optim: TrainSettings, steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW without decay on biases, norms, temperatures and the fusion weight; warm-up, then linear decay."""
    rate = optim.learning_rate
    groups: dict[tuple[float, float], list[Tensor]] = {(rate, optim.weight_decay): []}  # first: its rate is logged
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            factor = optim.tower_lr_multiplier if TOWER_BODY.match(name) else 1.0
            decay = 0.0 if parameter.ndim <= 1 else optim.weight_decay
            groups.setdefault((rate * factor, decay), []).append(parameter)
    listed = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    optimizer = AdamW(listed, lr=rate, betas=optim.betas, fused=True)
    warmup = max(1, round(optim.warmup * steps))
    falling = max(1, steps - warmup)
    return optimizer, LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / falling))


def checkpoint_gradients(module: nn.Module) -> None:
    """Turn on gradient checkpointing in the towers of a student; ValueError where a tower has none to turn on."""
    for name, part in module.named_modules():
        if name.split(".")[-1] in ("visual", "text"):
            getattr(part, "set_grad_checkpointing", bool)(True)  # some do nothing, or only log that they cannot
            flags = "grad_checkpointing", "gradient_checkpointing"
            if not any(vars(each).get(flag) for each in part.modules() for flag in flags):
                raise ValueError(f"gradient checkpointing: {type(part).__name__} ({name}) cannot do it; leave it out")


def cross_modal_recall(images: Tensor, texts: Tensor, caption_image: Tensor) -> dict[str, float]:
    """Recall of cosine retrieval in both directions and their mean, in percent.

    ``images [I, D]`` and ``texts [C, D]`` are unit rows, ``caption_image [C]`` names the picture of each caption.
    """
    positives = caption_image.unsqueeze(0) == torch.arange(len(images), device=caption_image.device).unsqueeze(1)
    scores = images @ texts.T
    i2t, t2i = recall_at_k(scores, positives), recall_at_k(scores.T, caption_image)
    values = {f"{name}/R@{k}": recall[k] for name, recall in (("i2t", i2t), ("t2i", t2i)) for k in recall}
    return values | {"r_mean": sum(values.values()) / len(values)}
