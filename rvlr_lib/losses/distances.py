"""Seven distances between relations: matrices ``[B, B]`` with diagonal 0, so a sum goes over the ``B (B − 1)`` pairs.

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
    """``[B, D] -> [B, B]``: cosines less their mean over the pairs."""
    relations = cosine_relations(features)
    return (relations - relations.sum() / _pairs(relations)).fill_diagonal_(0)


def distance_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B]``: distances of the unit rows over their mean (RKD-D); 0 where all rows are equal.

    What rounding alone can leave of ``|x|^2 + |y|^2 − 2 x y`` counts as 0, as the square root would magnify it.
    """
    rows = unit_rows(features)
    rows = rows - rows.mean(dim=0)
    gram = rows @ rows.T
    lengths = gram.diagonal()[:, None] + gram.diagonal()
    squares, eps = lengths - 2 * gram, torch.finfo(rows.dtype).eps
    equal = squares.detach() <= (16 * eps * lengths.detach()).clamp_min((8 * eps) ** 2)
    distances = squares.masked_fill(equal.fill_diagonal_(True), 1).sqrt().masked_fill(equal, 0)
    mean = distances.sum() / _pairs(distances)
    return distances / mean.masked_fill(mean <= 0, 1)


def angle_relations(features: Tensor) -> Tensor:
    """``[B, D] -> [B, B, B]``: ``jik`` is the cosine at ``j`` between ``i`` and ``k`` (RKD-A), 0 where two coincide."""
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
    """Mean absolute difference of the running sums over all pairs, row by row (official "kl"): batch order matters."""
    return off_diagonal(relations - target).flatten().cumsum(0).abs().mean() / abs(temperature)


def row_kl(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """``KL(softmax of the target's row || softmax of ours)`` over the other items, mean over rows, in nats."""
    ours, theirs = ((off_diagonal(x) / temperature).log_softmax(dim=1) for x in (relations, target))
    return (theirs.exp() * (theirs - ours)).sum(dim=1).mean()


def huber(relations: Tensor, target: Tensor, temperature: Any) -> Tensor:
    """Mean Huber loss (threshold 1) over the pairs, or over the distinct triples; temperature is ignored."""
    entries = _pairs(relations) * (len(relations) - 2 if relations.ndim == 3 else 1)
    return F.huber_loss(relations, target, reduction="sum") / entries


def wasserstein(relations: Tensor, target: Tensor, temperature: Any, cost: Tensor) -> Tensor:
    """1-D Wasserstein-1 distance per row between the two times ``cost [B, B]``, weighted by it (official "wd")."""
    # The area between two distribution functions: the running sum of weights, + for one side and − for the other.
    values, order = torch.cat([relations * cost, target * cost], dim=1).sort(dim=1)
    height = torch.cat([cost, -cost], dim=1).gather(1, order).cumsum(dim=1)[:, :-1].abs()
    area, total = (height * values.diff(dim=1)).sum(dim=1), cost.sum(dim=1)
    return (area / total.masked_fill(total <= 0, 1)).mean() / abs(temperature)


def _pairs(relations: Tensor) -> int:
    return len(relations) * (len(relations) - 1)


# Name of a distance -> (features to relations; relations, target and temperature to scalar)
DISTANCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[..., Tensor]]] = {
    "mae": (cosine_relations, mae),
    "mse": (cosine_relations, mse),
    "cumulative_l1": (cosine_relations, cumulative_l1),
    "wasserstein": (cosine_relations, wasserstein),
    "row_kl": (cosine_relations, row_kl),
    "rkd_distance": (distance_relations, huber),
    "rkd_angle": (angle_relations, huber),
}
