"""The optimiser: which parameter learns how fast, the schedule, the norm of the gradient."""

from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from torch.optim import AdamW
from torch.optim.lr_scheduler import LinearLR, SequentialLR

from rvlr_lib.config import TrainSettings

SCALARS = ("fusion_weight", "relation_temperature")  # parameters with their own learning-rate multiplier


def build_optimizer(
    objective: nn.Module, optim: TrainSettings, steps: int, *, fused: bool
) -> tuple[AdamW, SequentialLR]:
    """AdamW without decay on biases, norms, temperatures and the fusion weight; warm-up, then linear decay."""
    rate = optim.learning_rate
    groups: dict[tuple[float, float], list[Tensor]] = {(rate, optim.weight_decay): []}  # first: its rate is logged
    for name, parameter in objective.named_parameters():
        if not parameter.requires_grad:
            continue
        scalar = any(part in name for part in SCALARS)
        own = optim.scalar_lr_multiplier if scalar else optim.tower_lr_multiplier if is_tower_body(name) else 1.0
        decay = 0.0 if scalar or parameter.ndim <= 1 else optim.weight_decay
        groups.setdefault((rate * own, decay), []).append(parameter)
    optimizer = AdamW(
        [{"params": group, "lr": own, "weight_decay": decay} for (own, decay), group in groups.items()],
        lr=rate,
        betas=optim.betas,
        fused=fused or None,
    )
    warmup = max(1, round(optim.warmup * steps))
    rise = LinearLR(optimizer, 1 / warmup, 1.0, max(1, warmup - 1))
    falling = max(1, steps - warmup)
    fall = LinearLR(optimizer, 1.0, 1 / falling, max(1, falling - 1))
    return optimizer, SequentialLR(optimizer, [rise, fall], milestones=[warmup])


def clip_gradient(objective: nn.Module, limit: float) -> Tensor:
    """Shorten the gradient to ``limit``, unless that is 0; its norm before."""
    parameters = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    if limit > 0:
        return clip_grad_norm_(parameters, limit)
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def is_tower_body(name: str) -> bool:
    """Whether a parameter belongs to a tower's body, and not to its projection into the common space or a new head.

    >>> names = ("visual.conv1.weight", "visual.proj", "text.text_projection", "fusion.layers.weight")
    >>> [is_tower_body(f"student.{name}") for name in names]
    [True, False, False, False]
    """
    parts = name.split(".")
    tower = next((place for place, part in enumerate(parts) if part in ("visual", "text")), None)
    if tower is None or "fusion" in parts[:tower]:
        return False
    return parts[tower + 1] not in ("proj", "text_projection", "head")


def checkpoint_gradients(module: nn.Module) -> None:
    """Turn on gradient checkpointing in the towers of a student.

    Raises:
        ValueError: a tower has none to turn on.
    """
    for name, part in module.named_modules():
        if name.split(".")[-1] in ("visual", "text"):
            if not hasattr(part, "set_grad_checkpointing"):
                raise ValueError(f"gradient checkpointing: {type(part).__name__} ({name}) cannot do it; leave it out")
            part.set_grad_checkpointing(True)
