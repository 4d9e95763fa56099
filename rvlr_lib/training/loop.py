"""One readable loop that trains teachers and students alike."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from tqdm import tqdm

from rvlr_lib.config import TrainSettings
from rvlr_lib.losses.weights import LossWeights, weighted_sum
from rvlr_lib.training.batches import BatchSource, Inputs
from rvlr_lib.training.checkpoint import Checkpoint, find_checkpoint, load_weights, write_checkpoint
from rvlr_lib.training.gather import add_up, own_rows, processes
from rvlr_lib.training.processes import (
    Execution,
    checkpoint_gradients,
    compile_blocks,
    every_random_state,
    is_main,
    same_everywhere,
    set_random_states,
    spread,
)

SCALARS = ("fusion_weight", "relation_temperature")  # parameters with their own learning-rate multiplier


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


@dataclass
class Fitted:
    """What a training leaves: the weights of the best epoch, and how it went."""

    state: dict[str, Tensor]
    best_epoch: int
    best_score: float
    seconds: float
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)


def fit(
    objective: nn.Module,
    weights: LossWeights,
    source: BatchSource,
    settings: TrainSettings,
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
        objective: module whose ``forward(inputs)`` gives named loss terms and whose ``scalars()`` gives what to log;
            ``two_views`` says whether it needs second views, ``generators(device)`` what else is random in it.
        weights: of the terms.
        source: of the batches; each process takes its share of every batch.
        settings: of the optimisation.
        seed: of everything random in the forward pass.
        device: to compute on.
        validate: scores after each epoch; the epoch with the highest ``score`` is kept.
        log_path: JSONL, a line each ``log_every`` steps and one for each epoch.
        label: of the progress bar.
        execution: how to carry it out, and where checkpoints go; without it there are none.

    Raises:
        FloatingPointError: a loss term, the gradient or a temperature is not finite; names it and the step.
        ValueError: a batch does not divide over the processes, or the checkpoint to resume from is damaged.
    """
    execution = execution or Execution()
    torch.manual_seed(seed)
    objective.to(device).train()
    training = Training(objective, weights, source, settings, device, label, execution)
    lines = training.resume()
    interval = 0.5 if sys.stderr.isatty() else 15.0  # notebooks and logs keep every refresh
    with (
        _Log(log_path, lines) as log,
        tqdm(total=training.steps, initial=training.step, desc=label, unit="step", mininterval=interval,
             disable=not is_main()) as bar,
    ):  # fmt: skip
        while training.epoch < settings.epochs:
            for inputs in training.batches():
                log.write(training.train_step(inputs))
                bar.update()
                if training.position < source.steps_per_epoch:
                    training.save_if_due(log)
            objective.eval()
            scores = validate()
            objective.train()
            log.write(training.close_epoch(scores))
            training.save_if_due(log)
    training.fitted.seconds = training.seconds()
    return training.fitted


class Training:
    """A training under way: where it stands, one step of it, and its checkpoints. Arguments as of :func:`fit`."""

    def __init__(
        self,
        objective: nn.Module,
        weights: LossWeights,
        source: BatchSource,
        settings: TrainSettings,
        device: torch.device,
        label: str,
        execution: Execution,
    ) -> None:
        self.objective, self.weights, self.source, self.settings = objective, weights, source, settings
        self.device, self.label, self.execution = device, label, execution
        self.rows = own_rows(source.batch_rows)
        if execution.gradient_checkpointing:
            checkpoint_gradients(objective)
        if execution.compile:
            compile_blocks(objective)
        self.model = spread(objective)
        self.steps = settings.epochs * source.steps_per_epoch
        self.optimizer, self.schedule = _optimizer(objective, settings, self.steps)
        use_bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
        self.precision: Any = torch.autocast(device.type, torch.bfloat16) if use_bfloat16 else nullcontext()
        self.fitted = Fitted({}, -1, -float("inf"), 0.0, self.steps)
        self.step = self.epoch = self.position = 0  # position: batches of the epoch that are done
        self.generator_states: dict[str, Tensor] = {}  # of the views, where an epoch is resumed
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Time spent training, before an interruption included."""
        return self.fitted.seconds + time.monotonic() - self.started

    def batches(self) -> Iterator[Inputs]:
        """What is left of the epoch under way."""
        states, self.generator_states = self.generator_states, {}
        return self.source.epoch(self.epoch, self.device, two_views=bool(self.objective.two_views), rows=self.rows,
                                 position=self.position, states=states)  # fmt: skip

    def train_step(self, inputs: Inputs) -> dict[str, float]:
        """One step of the optimiser; what to log of it, empty where it is not a step to log."""
        try:
            terms = self.model(inputs, self.precision)
            total = weighted_sum(terms, self.weights)
        except (FloatingPointError, ValueError) as error:
            if isinstance(error, ValueError) and not self._bad_scalars():
                raise
            raise FloatingPointError(f"{self.label}, step {self.step}: {error}{self._bad_scalars()}") from None
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = _clip(self.objective, self.settings.clip_norm)
        self._check_finite(norm)
        record: dict[str, float] = {}
        if self.step % self.settings.log_every == 0 or self.step == self.steps - 1:
            values = _mean_over_processes({"total": total, **{f"loss/{name}": term for name, term in terms.items()}})
            record = {"step": self.step, "epoch": self.epoch, "total": values.pop("total"),
                      "gradient_norm": float(norm), "learning_rate": float(self.schedule.get_last_lr()[0]),
                      **values, **self.objective.scalars()}  # fmt: skip
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.position += 1
        return record

    def close_epoch(self, scores: dict[str, float]) -> dict[str, float]:
        """Keep the weights if the scores are the best so far; what to log."""
        fitted = self.fitted
        fitted.history.append({"epoch": self.epoch, "step": self.step, **scores})
        record = {"step": self.step, "epoch": self.epoch, **{f"validation/{key}": v for key, v in scores.items()}}
        if scores["score"] > fitted.best_score:
            fitted.best_epoch, fitted.best_score = self.epoch, scores["score"]
            fitted.state = {name: tensor.detach().cpu().clone() for name, tensor in self.objective.state_dict().items()}
        self.epoch, self.position = self.epoch + 1, 0
        return record

    def save_if_due(self, log: "_Log") -> None:
        """Write a checkpoint every ``save_every`` steps; only the main process writes."""
        folder = self.execution.checkpoints
        if folder is None or self.step % self.execution.save_every or self.step == self.steps:
            return
        checkpoint = Checkpoint(self._tensors(), self._record(), log.text())
        if is_main():
            write_checkpoint(folder, checkpoint)

    def resume(self) -> str:
        """Go on from the checkpoint that is asked for; the log so far."""
        folder = self.execution.checkpoints
        found = find_checkpoint(folder, self.execution.resume) if folder is not None else None
        if not same_everywhere(found.record["step"] if found else 0):
            raise ValueError(f"processes find different checkpoints in {folder}: all nodes must share this folder")
        if found is None:
            return ""
        record, where = found.record, f"the checkpoint of step {found.record['step']} in {folder}"
        if record["steps"] != self.steps:
            raise ValueError(f"{where} is of a training of {record['steps']} steps, this one has {self.steps}: "
                             "--resume no starts anew")  # fmt: skip
        load_weights(self.objective, found.tensors["weights"], where)
        states = _nested(found.tensors["resume"])
        moments = {int(number): values for number, values in _nested(states.get("optimizer", {})).items()}
        self.optimizer.load_state_dict({"state": moments, "param_groups": record["param_groups"]})
        self.schedule.load_state_dict(record["schedule"])
        set_random_states(states["random"], self.device)
        for name, generator in self.objective.generators(self.device).items():
            generator.set_state(states["generators"][name])
        self.generator_states = states.get("views", {})
        self.step, self.epoch, self.position = record["step"], record["epoch"], record["position"]
        best = -float("inf") if record["best_score"] is None else record["best_score"]
        self.fitted = Fitted(found.tensors.get("best", {}), record["best_epoch"], best, record["seconds"], self.steps,
                             record["history"])  # fmt: skip
        if is_main():
            print(f"{self.label}: going on from step {self.step} of {self.steps}")
        return found.log

    def _tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors of a checkpoint, by file."""
        generators = self.objective.generators(self.device)
        resume = {f"random/{name}": states for name, states in every_random_state(self.device).items()}
        resume |= {f"generators/{name}": generator.get_state() for name, generator in generators.items()}
        if self.position:
            resume |= {f"views/{name}": generator.get_state() for name, generator in self.source.generators.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            resume |= {f"optimizer/{number}/{name}": moment for name, moment in moments.items()}
        files = {"weights": self.objective.state_dict(), "resume": resume}
        return files | ({"best": self.fitted.state} if self.fitted.state else {})

    def _record(self) -> dict[str, Any]:
        """What a checkpoint holds besides tensors."""
        fitted = self.fitted
        return {"step": self.step, "steps": self.steps, "epoch": self.epoch, "position": self.position,
                "best_epoch": fitted.best_epoch, "best_score": fitted.best_score if fitted.state else None,
                "history": fitted.history, "seconds": self.seconds(), "schedule": self.schedule.state_dict(),
                "param_groups": self.optimizer.state_dict()["param_groups"]}  # fmt: skip

    def _check_finite(self, norm: Tensor) -> None:
        """One look at the gradient's norm and at every single-number parameter, such as a temperature."""
        values = torch.stack([norm, *(value.detach().to(norm.dtype) for value in self._scalars().values())])
        if not values.isfinite().all():
            what = "a parameter left the numbers" if norm.isfinite() else f"the gradient norm is {norm.item()}"
            raise FloatingPointError(f"{self.label}, step {self.step}: {what}{self._bad_scalars()}")

    def _scalars(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.objective.named_parameters() if value.ndim == 0}

    def _bad_scalars(self) -> str:
        bad = {name: value.item() for name, value in self._scalars().items() if not value.isfinite()}
        return f" (not finite: {', '.join(f'{name} = {value}' for name, value in bad.items())})" if bad else ""


class _Log:
    """The log of a training: JSON lines, written by the main process as they come."""

    def __init__(self, path: Path, lines: str) -> None:
        self.path = path if is_main() else Path(os.devnull)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = [lines]

    def __enter__(self) -> "_Log":
        self.file = self.path.open("w")
        self.file.write(self.text())
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, record: dict[str, float]) -> None:
        """Add a line; nothing for an empty record."""
        if record:
            self.lines.append(json.dumps(record) + "\n")
            self.file.write(self.lines[-1])
            self.file.flush()

    def text(self) -> str:
        """All lines so far."""
        return "".join(self.lines)


def _mean_over_processes(values: dict[str, Tensor]) -> dict[str, float]:
    """The values of the whole batch: each process has the matching loss of its own rows only."""
    if processes()[1] == 1:
        return {name: float(value.detach()) for name, value in values.items()}
    means = add_up(torch.stack([value.detach() for value in values.values()])) / processes()[1]
    return dict(zip(values, means.tolist(), strict=True))


def _nested(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Names ``a/b`` as nested dictionaries."""
    found: dict[str, dict[str, Any]] = {}
    for name, value in tensors.items():
        outer, inner = name.split("/", 1)
        found.setdefault(outer, {})[inner] = value
    return found


def _optimizer(objective: nn.Module, settings: TrainSettings, steps: int) -> tuple[AdamW, SequentialLR]:
    """AdamW without decay on biases, norms, temperatures and the fusion weight; warm-up, then linear decay."""
    rate = settings.learning_rate
    groups: dict[tuple[float, float], list[Tensor]] = {(rate, settings.weight_decay): []}  # first: its rate is logged
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        scalar = any(part in name for part in SCALARS)
        own = settings.scalar_lr_multiplier if scalar else settings.tower_lr_multiplier if is_tower_body(name) else 1.0
        decay = 0.0 if scalar or parameter.ndim <= 1 else settings.weight_decay
        groups.setdefault((rate * own, decay), []).append(parameter)
    optimizer = AdamW(
        [{"params": group, "lr": own, "weight_decay": decay} for (own, decay), group in groups.items()],
        lr=rate,
        betas=settings.betas,
    )
    warmup = max(1, round(settings.warmup * steps))
    rise = LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1))
    falling = max(1, steps - warmup)
    fall = LinearLR(optimizer, 1.0, 1 / falling, max(1, falling - 1))
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def is_tower_body(name: str) -> bool:
    """Whether a parameter belongs to a tower's body, and not to its projection into the common space or a new head.

    >>> names = ("visual.conv1.weight", "visual.proj", "text.text_projection", "fusion.layers.weight")
    >>> [is_tower_body(f"student.{name}") for name in names]
    [True, False, False, False]
    """
    parts = name.split(".")
    tower = next((place for place, part in enumerate(parts) if part in ("visual", "text", "tower")), None)
    if tower is None or "fusion" in parts[:tower]:
        return False
    return parts[tower + 1] not in ("proj", "text_projection", "head")


def _clip(objective: nn.Module, limit: float) -> Tensor:
    parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    if limit > 0:
        return clip_grad_norm_(parameters, limit)
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
