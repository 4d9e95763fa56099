"""Seven distances between relation matrices ``[B, B]``; their diagonal is 0, so sums run over ``B (B − 1)`` pairs.

Where a distance scales with its inputs, the scalar is divided by the temperature, which spares a pass over each matrix.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows


def cosine_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B]``: cosines."""
    return cosine_matrix(features).fill_diagonal_(0)


def centred_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B]``: cosines minus their mean over the pairs."""
    relations = cosine_relations(features)
    return (relations - relations.sum() / _pairs(relations)).fill_diagonal_(0)


def distance_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B]``: distances between unit rows, divided by their mean (RKD-D); 0 if all rows are equal.

    Values of ``|x|^2 + |y|^2 − 2 x y`` within rounding error count as 0, since the square root would magnify them.
    """
    rows = unit_rows(features)
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T
    norms = gram.diagonal()[:, None] + gram.diagonal()  # |x|^2 + |y|^2
    squares, eps = norms - 2 * gram, torch.finfo(rows.dtype).eps
    equal = squares.detach() <= (16 * eps * norms.detach()).clamp_min((8 * eps) ** 2)
    distances = squares.masked_fill(equal.fill_diagonal_(True), 1).sqrt().masked_fill(equal, 0)
    mean = distances.sum() / _pairs(distances)
    return distances / mean.masked_fill(mean <= 0, 1)


def angle_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B, B]``: entry ``jik`` is the cosine of the angle ``i j k`` (RKD-A), 0 if two rows coincide."""
    rows = unit_rows(features)
    directions = unit_rows(rows[None] - rows[:, None])
    angles = directions @ directions.mT
    return angles.masked_fill(torch.eye(len(rows), dtype=torch.bool, device=rows.device), 0)


def mae(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean absolute difference over the pairs."""
    return (relations - target).abs().sum() / (_pairs(relations) * abs(temperature))


def mse(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean squared difference over the pairs."""
    return (relations - target).square().sum() / (_pairs(relations) * temperature**2)


def cumulative_l1(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean absolute difference of running sums over all pairs, row by row (official "kl"): depends on batch order."""
    return off_diagonal(relations - target).flatten().cumsum(0).abs().mean() / abs(temperature)


def row_kl(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean over rows of ``KL(P || Q)`` in nats; ``P``, ``Q``: softmax of target, relations over the other items."""
    log_q, log_p = ((off_diagonal(x) / temperature).log_softmax(dim=1) for x in (relations, target))
    return (log_p.exp() * (log_p - log_q)).sum(dim=1).mean()


def huber(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean Huber loss (threshold 1) over the pairs, or over triples of different items; ignores the temperature."""
    entries = _pairs(relations) * (len(relations) - 2 if relations.ndim == 3 else 1)
    return F.huber_loss(relations, target, reduction="sum") / entries


def wasserstein(relations: Tensor, target: Tensor, temperature: Any, cost: Tensor) -> Tensor:
    """Mean row-wise Wasserstein-1 of ``relations * cost`` and ``target * cost``, weights ``cost`` (official "wd")."""
    # the area between two distribution functions: running sums of weights, + for one and − for the other
    values, order = torch.cat([relations * cost, target * cost], dim=1).sort(dim=1)
    height = torch.cat([cost, -cost], dim=1).gather(1, order).cumsum(dim=1)[:, :-1].abs()
    area, total = (height * values.diff(dim=1)).sum(dim=1), cost.sum(dim=1)
    return (area / total.masked_fill(total <= 0, 1)).mean() / abs(temperature)


def _pairs(relations: Tensor) -> int:
    return len(relations) * (len(relations) - 1)


# name -> (features -> relations; relations, target and temperature -> scalar)
DISTANCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "mae": (cosine_relations, mae),
    "mse": (cosine_relations, mse),
    "cumulative_l1": (cosine_relations, cumulative_l1),
    "wasserstein": (cosine_relations, wasserstein),
    "row_kl": (cosine_relations, row_kl),
    "rkd_distance": (distance_relations, huber),
    "rkd_angle": (angle_relations, huber),
}
