"""One loop that trains an objective on batches, resumes from checkpoints and hardly ever waits for the device.

Between two log lines the host only queues work: losses, norms and checks for finite values stay on the device.
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
from rvlr_lib.training.processes import all_gather_objects, all_reduce_sum, data_parallel, is_main, processes

# matches parameters of a tower's body, not those of its projection into the common space
TOWER_BODY = re.compile(r"student\.(visual|text)\.(?!(proj|text_projection|head)\b)")
side_stream = cache(torch.cuda.Stream)  # one per device, since CUDA libraries keep memory for each stream
Gradients = tuple[Tensor, Tensor, dict[str, Tensor]]  # total loss, norm of its gradients, its terms


@dataclass(frozen=True)
class Execution:
    """How to train; not part of any cache key."""

    compile: bool = False  # the objective with its towers; pays off in long training runs
    gradient_checkpointing: bool = False  # recompute activations inside the towers' blocks instead of keeping them
    checkpoints: Path | None = None  # their folder; None: no checkpoints
    save_every: int = 500  # steps between two checkpoints
    resume: str = "last"  # "no" removes existing checkpoints


@dataclass
class TrainingResult:
    """Result of a training: the weights of the best epoch, and its history."""

    steps: int
    state: dict[str, Tensor] = field(default_factory=dict)
    best_epoch: int = -1
    best_score: float = -sys.float_info.max  # JSON has no infinity
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to compute on, for ``auto`` CUDA if available; ValueError for an unavailable one."""
    name = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) < torch.cuda.device_count():
            return device  # an allocation would take GPU memory in every process
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:120]
        raise ValueError(f"device {name!r} is not available: {reason}; valid: auto, cpu, cuda, cuda:N") from None


def fit(
    objective: Objective,
    batches: Batches,
    *,
    validate: Callable[[], dict[str, float]],
    log_path: Path,
    label: str,
    execution: Execution | None = None,
) -> TrainingResult:
    """Train an objective on batches, in one process or, if all call it, in several.

    ``batches`` hold the optimisation settings, the device and the seed of all draws. ``validate`` returns scores after
    each epoch; the weights of the highest ``score`` are kept. ``log_path`` gets a JSON line every ``log_every`` steps
    and one per epoch. FloatingPointError names the step and the loss term, gradient or temperature that was not finite,
    before any checkpoint is written.
    """
    training = Training(objective.to(batches.device).train(), batches, label, execution or Execution())
    training.resume()
    log_path.parent.mkdir(parents=True, exist_ok=True)
    log = (log_path if is_main() else Path(os.devnull)).open("w", buffering=1, encoding="utf-8")  # line by line
    log.write(training.log)

    def write_log(record: dict[str, float]) -> None:
        line = json.dumps(record) + "\n"
        training.log += line
        log.write(line)

    hidden = not is_main() or "RVLR_HEADLESS" in os.environ
    seconds = 0.5 if sys.stderr.isatty() else 15.0  # notebooks and log files keep every refresh
    options = {"desc": label, "unit": "step", "mininterval": seconds, "disable": hidden}
    with log, tqdm(total=training.steps, initial=training.step, **options) as bar:
        while training.epoch < batches.optim.epochs:
            for inputs in batches.take(two_views=objective.two_views, tokens=objective.tokens):
                if record := training.train_step(inputs):
                    write_log(record)
                bar.update()
                training.save_if_due()
            objective.eval()
            write_log(training.close_epoch(validate()))
            objective.train()
    training.fitted.seconds = time.monotonic() - training.started
    training.fitted.state = {name: value.cpu() for name, value in training.fitted.state.items()}
    return training.fitted


class Training:
    """A training in progress: its state, a single step, and checkpoints. Arguments as for :func:`fit`."""

    def __init__(self, objective: Objective, batches: Batches, label: str, execution: Execution) -> None:
        self.objective, self.batches, self.label, self.execution = objective, batches, label, execution
        self.optim, self.device = batches.optim, batches.device
        if execution.gradient_checkpointing:
            checkpoint_gradients(objective)
        self.model, self.prepared, self.replay = data_parallel(objective), False, None
        self.precision = mixed_precision(self.device, self.optim.precision)
        self.steps = self.optim.epochs * batches.steps_per_epoch
        self.optimizer, self.schedule = build_optimizer(objective, self.optim, self.steps)
        self.stateful: dict[str, Any] = {"weights": objective, "optimizer": self.optimizer, "schedule": self.schedule}
        self.fitted, self.step, self.epoch, self.log = TrainingResult(self.steps), 0, 0, ""
        self.watched: list[tuple[int, list[str], Tensor]] = []  # step, names, and values on the device
        self.started = time.monotonic()  # minus the time before an interruption

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        """Do one optimiser step; return its log record, empty if the step is not logged."""
        scalars = {name: value for name, value in self.objective.named_parameters() if value.ndim == 0}  # temperatures
        try:
            if not self.prepared:
                self.prepared = True
                self._prepare(inputs)
            torch.manual_seed(derived_seed(self.batches.seed, "forward", self.step))  # so a resume needs only its step
            total, norm, terms = (self.replay or self._gradients)(inputs)
        except torch.OutOfMemoryError as error:
            size, reason = self.optim.batch_size, str(error).splitlines()[0]
            fault = f"{self.label}, step {self.step}: {self.device} has no memory for a batch of {size}"
            raise ValueError(f"{fault}: set a smaller batch_size or gradient_checkpointing ({reason})") from None
        except ValueError:  # a loss may refuse values that are not finite before the check below names them
            self._watch(scalars)
            self.check_finite()
            raise
        self._watch({**terms, "gradient norm": norm, **scalars})
        record: dict[str, float] = {}
        if self.step % self.optim.log_every == 0 or self.step == self.steps - 1:
            self.check_finite()
            # means over processes, since each has the matching loss of its own rows only
            sums = all_reduce_sum(torch.stack([total, *terms.values()]).detach())
            mean_total, *mean_terms = (sums / processes()[1]).tolist()
            record = {"step": self.step, "epoch": self.epoch, "total": mean_total, "gradient_norm": float(norm)}
            record["learning_rate"] = float(self.schedule.get_last_lr()[0])
            record |= dict(zip((f"loss/{name}" for name in terms), mean_terms, strict=True)) | self.objective.scalars()
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        return record

    def close_epoch(self, scores: dict[str, float]) -> dict[str, float]:
        """Keep the weights if the score is the best so far; return the epoch's log record."""
        self.check_finite()
        fitted, position = self.fitted, {"step": self.step, "epoch": self.epoch}
        fitted.history.append({**position, **scores})
        if scores["score"] > fitted.best_score:
            fitted.best_epoch, fitted.best_score = self.epoch, scores["score"]
            fitted.state = {name: tensor.detach().clone() for name, tensor in self.objective.state_dict().items()}
        self.epoch += 1
        return {**position, **{f"validation/{key}": value for key, value in scores.items()}}

    def check_finite(self) -> None:
        """Read the watched values off the device; FloatingPointError names those that were not finite, and the step."""
        for step, names, values in self.watched:
            if bad := [f"{name} = {v}" for name, v in zip(names, values.tolist(), strict=True) if not math.isfinite(v)]:
                raise FloatingPointError(f"{self.label}, step {step}: not finite: {', '.join(bad)}")
        self.watched.clear()

    def _watch(self, values: dict[str, Tensor]) -> None:
        self.watched.append((self.step, list(values), torch.stack([x.detach().float() for x in values.values()])))

    def _gradients(self, inputs: Inputs) -> Gradients:
        """Compute and clip the gradients of a batch; return the total loss, the gradient norm and the terms."""
        terms = self.model(inputs, self.precision)
        total = sum(getattr(self.objective.weights, name) * term for name, term in terms.items())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        return total, nn.utils.clip_grad_norm_(self.objective.parameters(), self.optim.clip_norm or math.inf), terms

    def _prepare(self, inputs: Inputs) -> None:
        """Make steps faster: compile the objective if asked to, else record a CUDA graph if all shapes are fixed."""
        fixed_shapes = isinstance(inputs.images, CachedRows) and inputs.images.tokens is None
        if self.execution.compile:
            self._compile(inputs)
        elif fixed_shapes and self.device.type == "cuda" and processes()[1] == 1:
            self._record(inputs)

    def _record(self, inputs: Inputs) -> None:
        """Record a step as a CUDA graph: a single launch, where hundreds of launches took most of the time.

        The numbers are the same; each step overwrites those of the one before, gradients included.
        """
        static, graph = tree_map_only(Tensor, torch.clone, inputs), torch.cuda.CUDAGraph()
        stream = side_stream(self.device)
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(stream):
            self._gradients(static)  # warm-up: libraries must not be loaded while recording
        torch.cuda.synchronize(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, stream=stream):
            outputs = self._gradients(static)

        def replay(inputs: Inputs) -> Gradients:
            for target, source in zip(tree_leaves(static), tree_leaves(inputs), strict=True):
                if target is not None:
                    target.copy_(source)
            graph.replay()
            return outputs

        self.replay = replay

    def _compile(self, inputs: Inputs) -> None:
        """Compile the objective and warm it up on a batch; if that fails in any process, train uncompiled.

        Evaluation calls the student's own methods, which stay uncompiled because its shapes vary.
        """
        started, failure = time.monotonic(), ""
        try:
            self.model.compile()
            sum(self.model(inputs, self.precision).values()).backward()
        except Exception as error:
            failure = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        message, failure = f"compiled in {time.monotonic() - started:.0f} s", max(all_gather_objects(failure))
        if failure:  # in any process: all must do the same
            self.model._compiled_call_impl = None
            torch._dynamo.reset()
            message = f"cannot be compiled ({failure}): trains uncompiled"
        self.optimizer.zero_grad(set_to_none=True)
        if is_main():
            print(f"{self.label}: {message}")

    def save_if_due(self) -> None:
        """Write a checkpoint every ``save_every`` steps; only the main process writes."""
        folder = self.execution.checkpoints
        if folder is None or self.step % self.execution.save_every or self.step == self.steps:
            return
        self.check_finite()
        if is_main():
            write_checkpoint(folder, self.step, self.state_dict())

    def resume(self) -> None:
        """Resume from the last checkpoint if there is one; with ``resume="no"``, remove all checkpoints."""
        folder, newest = self.execution.checkpoints, None
        if folder is not None and self.execution.resume == "last":
            newest = last_checkpoint(folder)
        elif folder is not None and is_main():
            shutil.rmtree(folder, ignore_errors=True)
        if len(set(all_gather_objects(newest[1]["step"] if newest else 0))) > 1:
            raise ValueError(f"processes find different checkpoints in {folder}: all nodes must share this folder")
        if newest is not None:
            self.load_state_dict(newest[1], f"{newest[0]} in {folder}")
            if is_main():
                print(f"{self.label}: resuming from step {self.step} of {self.steps}")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to resume the training as if it had never stopped."""
        fitted = vars(self.fitted) | {"seconds": time.monotonic() - self.started}
        state = {"step": self.step, "epoch": self.epoch, "log": self.log, "fitted": fitted}
        return state | {name: item.state_dict() for name, item in self.stateful.items()}

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Restore a state from :meth:`state_dict`; ValueError names ``where`` if it belongs to another training."""
        self.fitted = TrainingResult(**state["fitted"])
        if self.fitted.steps != self.steps:
            lengths = f"a training of {self.fitted.steps} steps, this one has {self.steps}"
            raise ValueError(f"{where} is of {lengths}: --resume no starts over")
        try:
            for name, item in self.stateful.items():
                item.load_state_dict(state[name])
        except RuntimeError as error:
            raise ValueError(f"{where} holds weights of another architecture: {error}") from error
        self.step, self.epoch, self.log = state["step"], state["epoch"], state["log"]
        self.batches.epoch, self.batches.position = self.epoch, self.step - self.epoch * self.batches.steps_per_epoch
        self.started -= self.fitted.seconds
        self.fitted.state = {name: value.to(self.device) for name, value in self.fitted.state.items()}


def build_optimizer(objective: nn.Module, optim: TrainSettings, steps: int) -> tuple[AdamW, LambdaLR]:
    """AdamW without weight decay on biases, norms, temperatures and the fusion weight; warm-up, then linear decay."""
    rate = optim.learning_rate
    groups: dict[tuple[float, float], list[Tensor]] = {(rate, optim.weight_decay): []}  # first: its rate is logged
    for name, parameter in objective.named_parameters():
        if parameter.requires_grad:
            factor = optim.tower_lr_multiplier if TOWER_BODY.match(name) else 1.0
            decay = 0.0 if parameter.ndim <= 1 else optim.weight_decay
            groups.setdefault((rate * factor, decay), []).append(parameter)
    options = [{"params": group, "lr": rate, "weight_decay": decay} for (rate, decay), group in groups.items()]
    optimizer = AdamW(options, lr=rate, betas=optim.betas, fused=True)
    warmup = max(1, round(optim.warmup * steps))
    decay_steps = max(1, steps - warmup)
    return optimizer, LambdaLR(optimizer, lambda step: min((step + 1) / warmup, (steps - step) / decay_steps))


def checkpoint_gradients(module: nn.Module) -> None:
    """Turn on gradient checkpointing in the towers of a student; ValueError for a tower that does not support it."""
    for name, tower in module.named_modules():
        if name.split(".")[-1] in ("visual", "text"):
            getattr(tower, "set_grad_checkpointing", bool)(True)  # some do nothing, or only log that they cannot
            flags = "grad_checkpointing", "gradient_checkpointing"
            if not any(vars(submodule).get(flag) for submodule in tower.modules() for flag in flags):
                tower_name = f"{type(tower).__name__} ({name})"
                raise ValueError(f"{tower_name} does not support gradient checkpointing: turn it off")


def cross_modal_recall(images: Tensor, texts: Tensor, caption_image: Tensor) -> dict[str, float]:
    """Recalls of cosine retrieval in both directions and their mean, ``r_mean``, in percent.

    ``images [I, D]`` and ``texts [C, D]`` are unit rows, ``caption_image [C]`` is the picture row of each caption.
    """
    positives = caption_image == torch.arange(len(images), device=caption_image.device).unsqueeze(1)
    scores = images @ texts.T
    directions = {"i2t": recall_at_k(scores, positives), "t2i": recall_at_k(scores.T, caption_image)}
    recalls = {f"{name}/R@{k}": value for name, recall in directions.items() for k, value in recall.items()}
    return recalls | {"r_mean": sum(recalls.values()) / len(recalls)}
