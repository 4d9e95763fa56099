"""Recall@K and NDCG@K of score matrices, one query a row."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def recall_at_k(scores, positives, ks: Sequence[int] = (1, 5, 10), *, per_query: bool = False) -> dict[int, Any]:
    """Percent of queries with *any* positive among their first ``k`` candidates (hit rate, as retrieval papers report).

    Ties count against the method: a positive ranks behind every negative with the same score, so a constant score
    earns nothing. A query without positives is a miss, and ``k`` may exceed the number of candidates.

    Args:
        scores: ``[Q, G]``, tensor or array.
        positives: bool ``[Q, G]``, or ``[Q]`` the index of the one positive of each query.
        ks: cut-offs.
        per_query: 0 or 100 for each query, float64 array ``[Q]``, instead of the mean.

    Returns:
        ``{k: percent}``.

    Raises:
        ValueError: shapes differ, no query or candidate, a NaN score, an index or a cut-off out of range.

    >>> recall_at_k([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1]], [0, 1], ks=(1, 2))
    {1: 50.0, 2: 100.0}
    """
    scores = check_scores(scores)
    positives = torch.as_tensor(positives, device=scores.device)
    if positives.dtype != torch.bool:
        if positives.shape != (len(scores),):
            raise ValueError(f"scores {tuple(scores.shape)} and positives {tuple(positives.shape)} do not fit")
        if not ((positives >= 0) & (positives < scores.shape[1])).all():
            raise ValueError(f"positives must be candidate indices 0 to {scores.shape[1] - 1}")
        best = scores.gather(1, positives[:, None].long())
        ahead = (scores >= best).sum(dim=1) - 1
    else:
        if positives.shape != scores.shape:
            raise ValueError(f"scores {tuple(scores.shape)} and positives {tuple(positives.shape)} do not fit")
        best = scores.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
        ahead = (
            ((scores >= best) & ~positives).sum(dim=1).masked_fill(~positives.any(dim=1), torch.iinfo(torch.int64).max)
        )
    hits = {k: 100.0 * (ahead < k).double().cpu().numpy() for k in check_ks(ks)}
    return hits if per_query else average(hits)


def ndcg_at_k(
    scores, relevance, ks: Sequence[int] = (10, 20, 50), exclude=None, *, per_query: bool = False
) -> dict[int, Any]:
    """Normalised discounted cumulative gain in percent: linear gain, discount ``1 / log2(rank + 1)``.

    Candidates with equal scores share the mean of their discounts, the expectation over their orders, so a constant
    score lands exactly on the floor of :func:`ndcg_floor`. A query whose ideal is 0 counts 0.

    Args:
        scores: ``[Q, G]``, tensor or array.
        relevance: ``[Q, G]``, not negative.
        ks: cut-offs; one beyond the number of candidates takes them all.
        exclude: bool ``[Q, G]``; True leaves ranking and ideal.
        per_query: float64 array ``[Q]`` instead of the mean.

    Returns:
        ``{k: percent}``.

    Raises:
        ValueError: shapes differ, no query or candidate, a NaN score, a NaN or negative relevance, a cut-off below 1.

    >>> round(ndcg_at_k([[3.0, 2.0, 1.0]], [[0.0, 1.0, 0.0]], ks=(2,))[2], 6)  # 100 / log2(3)
    63.092975
    """
    values = {k: value for k, (value, _) in ndcg_and_floor(scores, relevance, ks, exclude).items()}
    return values if per_query else average(values)


@torch.no_grad()
def ndcg_and_floor(
    scores, relevance, ks: Sequence[int] = (10, 20, 50), exclude=None, *, official: bool = False
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """NDCG of each query and its floor, the exact expectation of a random ranking; arguments as :func:`ndcg_at_k`.

    ``official`` breaks ties by ``numpy.argsort(scores)[::-1]`` as the official code does: an arbitrary order, but
    float32 cosines do tie, and only this order gives the official numbers. It knows no floor, which is then NaN.

    Returns:
        ``{k: (ndcg [Q], floor [Q])}`` in percent; the floor is mean relevance of the candidates × sum of discounts /
        ideal, NaN where the ideal is 0.
    """
    scores = check_scores(scores)
    relevance = torch.as_tensor(relevance, device=scores.device)
    exclude = None if exclude is None else torch.as_tensor(exclude, device=scores.device)
    for name, matrix in (("relevance", relevance), ("exclude", exclude)):
        if matrix is not None and matrix.shape != scores.shape:
            raise ValueError(f"scores {tuple(scores.shape)} and {name} {tuple(matrix.shape)} do not fit")
    if not relevance.amin() >= 0:  # NaN is not
        raise ValueError("relevance must be 0 or more, without NaN")
    candidates = torch.full((len(scores),), scores.shape[1], device=scores.device)
    if exclude is not None:
        candidates = candidates - exclude.sum(dim=1)
        relevance = relevance.masked_fill(exclude, 0)
        # A real score of -inf still stands before what left the ranking.
        scores = scores.clamp_min(torch.finfo(scores.dtype).min).masked_fill(exclude, -torch.inf)

    deepest = min(max(check_ks(ks)), scores.shape[1])
    discounts = 1 / torch.arange(2, deepest + 2, dtype=torch.float64, device=scores.device).log2()
    summed = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])
    top, order = scores.topk(min(deepest + 1, scores.shape[1]), dim=1)
    gains = relevance.gather(1, order[:, :deepest]).double()
    ideal_gains = relevance.topk(deepest, dim=1).values.double()
    mean = torch.full((), torch.nan) if official else relevance.sum(dim=1, dtype=torch.float64) / candidates
    tied = (top[:, 1:] == top[:, :-1]).any(dim=1).nonzero()[:, 0]
    if official:
        theirs = np.argsort(scores[tied].cpu().numpy(), axis=1)[:, ::-1][:, :deepest].copy()
        gains[tied] = relevance[tied].gather(1, torch.from_numpy(theirs).to(scores.device)).double()

    result = {}
    for k in ks:
        depth = min(k, deepest)
        dcg = gains[:, :depth] @ discounts[:depth]
        if len(tied) and not official:
            dcg[tied] = _expected_dcg(scores[tied], relevance[tied], summed[: depth + 1])
        ideal = ideal_gains[:, :depth] @ discounts[:depth]
        floor = mean * summed[candidates.clamp_max(depth)] / ideal
        value = torch.where(ideal > 0, dcg / ideal, 0)
        result[k] = (100.0 * value.cpu().numpy(), 100.0 * floor.cpu().numpy())
    return result


def _expected_dcg(scores: Tensor, relevance: Tensor, summed: Tensor) -> Tensor:
    """DCG of rows with ties: each candidate gets the mean discount of the ranks that its group of equals takes up."""
    ascending, order = scores.sort(dim=1)
    ahead = scores.shape[1] - torch.searchsorted(ascending, ascending, right=True)
    until = scores.shape[1] - torch.searchsorted(ascending, ascending)
    depth = len(summed) - 1
    discount = (summed[until.clamp_max(depth)] - summed[ahead.clamp_max(depth)]) / (until - ahead)
    return (relevance.gather(1, order) * discount).sum(dim=1)


def average(values: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """Mean of each array over its defined (not NaN) queries; NaN where none is."""
    defined = {key: value[~np.isnan(value)] for key, value in values.items()}
    return {key: float(value.mean()) if len(value) else float("nan") for key, value in defined.items()}


def check_scores(scores) -> Tensor:
    """``scores`` as a floating ``[Q, G]`` tensor; ValueError when empty, of another shape or with NaN."""
    scores = torch.as_tensor(scores)
    if scores.ndim != 2 or not scores.numel():
        raise ValueError(f"scores must be [Q, G] with at least one query and candidate, got {tuple(scores.shape)}")
    if scores.amax().isnan():  # the largest is NaN as soon as one is
        raise ValueError("scores hold NaN, which has no rank")
    return scores if scores.is_floating_point() else scores.double()


def check_ks(ks: Sequence[int]) -> Sequence[int]:
    """Cut-offs as given; ValueError when there is none or one below 1."""
    if not ks or min(ks) < 1:
        raise ValueError(f"cut-offs must be 1 or more, got {ks}")
    return ks
