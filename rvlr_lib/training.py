"""One readable loop that trains teachers and students alike."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR, SequentialLR
from tqdm import tqdm

from rvlr_lib.config import TrainSettings
from rvlr_lib.data.pairs import ImageTextDataset, augment, iterate_batches
from rvlr_lib.losses.objective import LossWeights, weighted_sum
from rvlr_lib.models.encoders import tokenize

Rows = Literal["images", "captions"]
FEATURE_DROPOUT = 0.1  # of the second view of cached features
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


class Inputs(NamedTuple):
    """One batch on the device; the second views are None where nobody asks for them."""

    pixels: Tensor  # [B, 3, S, S] in 0..1, augmented
    token_ids: Tensor  # [B, L]
    image_rows: Tensor  # [B] row of the image in the data set; equal rows are one image
    caption_rows: Tensor  # [B]
    second_pixels: Tensor | None = None
    second_token_ids: Tensor | None = None


class BatchSource:
    """Batches of a data set, augmented and on the device; the same seed gives the same batches to every variant.

    The order, the first views and the second views draw from generators of their own, so that a variant that needs
    second views sees the same batches as its twin that does not.
    """

    def __init__(
        self, dataset: ImageTextDataset, tokenizer: Any, image_size: int, settings: TrainSettings, rows: Rows, seed: int
    ) -> None:
        self.dataset, self.image_size, self.settings, self.rows, self.seed = dataset, image_size, settings, rows, seed
        self.token_ids = tokenize(tokenizer, dataset.captions)
        count = len(dataset) if rows == "images" else len(dataset.captions)
        self.steps_per_epoch = max(1, count // settings.batch_size)

    def epoch(self, number: int, device: torch.device, *, two_views: bool) -> Iterator[Inputs]:
        """Batches of one epoch."""
        order, first, second = (torch.Generator().manual_seed(self.seed * 1_000_003 + number * 3 + i) for i in range(3))
        view = partial(view_of, settings=self.settings)
        for batch in iterate_batches(self.dataset, self.settings.batch_size, order, rows=self.rows):
            pixels = self.dataset.pixels(batch.image_rows, self.image_size).to(device)
            yield Inputs(
                view(pixels, first),
                self.token_ids[batch.caption_rows].to(device),
                batch.image_rows.to(device),
                batch.caption_rows.to(device),
                view(pixels, second, second=True) if two_views else None,
                self.token_ids[batch.second_caption_rows].to(device) if two_views else None,
            )


def view_of(pixels: Tensor, generator: torch.Generator, *, settings: TrainSettings, second: bool = False) -> Tensor:
    """An augmented view of pictures; of cached features the first view is themselves, the second drops a tenth."""
    if pixels.dtype == torch.uint8:
        return augment(pixels, generator, scale=settings.crop_scale, flip=settings.flip)
    if not second:
        return pixels
    kept = torch.rand(pixels.shape, generator=generator) >= FEATURE_DROPOUT
    return pixels * kept.to(pixels.device) / (1 - FEATURE_DROPOUT)


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
) -> Fitted:
    """Train an objective.

    Args:
        objective: module whose ``forward(inputs)`` gives named loss terms and whose ``scalars()`` gives what to log;
            ``two_views`` says whether it needs second views.
        weights: of the terms.
        source: of the batches.
        settings: of the optimisation.
        seed: of everything random in the forward pass.
        device: to compute on.
        validate: scores after each epoch; the epoch with the highest ``score`` is kept.
        log_path: JSONL, a line each ``log_every`` steps and one for each epoch.
        label: of the progress bar.

    Raises:
        FloatingPointError: a loss term or the gradient is not finite; names it and the step.
    """
    torch.manual_seed(seed)
    objective.to(device).train()
    steps = settings.epochs * source.steps_per_epoch
    optimizer, schedule = _optimizer(objective, settings, steps)
    use_bfloat16 = settings.precision == "bfloat16" or (settings.precision == "auto" and device.type == "cuda")
    precision = torch.autocast(device.type, torch.bfloat16) if use_bfloat16 else nullcontext()
    fitted = Fitted({}, -1, -float("inf"), 0.0, steps)
    started, step = time.monotonic(), 0
    interval = 0.5 if sys.stderr.isatty() else 15.0  # notebooks and logs keep every refresh
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("w") as log, tqdm(total=steps, desc=label, unit="step", mininterval=interval) as bar:
        for epoch in range(settings.epochs):
            for inputs in source.epoch(epoch, device, two_views=bool(objective.two_views)):
                try:
                    terms = objective(inputs, precision)
                    total = weighted_sum(terms, weights)
                except FloatingPointError as error:
                    raise FloatingPointError(f"{label}, step {step}: {error}") from None
                optimizer.zero_grad(set_to_none=True)
                total.backward()
                norm = _clip(objective, settings.clip_norm)
                if not torch.isfinite(norm):
                    raise FloatingPointError(f"{label}, step {step}: the gradient norm is {norm.item()}")
                if step % settings.log_every == 0 or step == steps - 1:
                    values = {f"loss/{name}": float(term.detach()) for name, term in terms.items()}
                    rate = float(schedule.get_last_lr()[0])
                    _write(log, step=step, epoch=epoch, total=float(total.detach()), gradient_norm=float(norm),
                           learning_rate=rate, **values, **objective.scalars())  # fmt: skip
                optimizer.step()
                schedule.step()
                step += 1
                bar.update()
            objective.eval()
            scores = validate()
            objective.train()
            fitted.history.append({"epoch": epoch, "step": step, **scores})
            _write(log, step=step, epoch=epoch, **{f"validation/{name}": value for name, value in scores.items()})
            if scores["score"] > fitted.best_score:
                fitted.best_epoch, fitted.best_score = epoch, scores["score"]
                fitted.state = {name: tensor.detach().cpu().clone() for name, tensor in objective.state_dict().items()}
    fitted.seconds = time.monotonic() - started
    return fitted


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


def _write(log: Any, **record: float) -> None:
    log.write(json.dumps(record) + "\n")
    log.flush()
