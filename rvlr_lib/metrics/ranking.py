"""Recall@K and NDCG@K of score matrices, one query per row; inputs are tensors, arrays or lists."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.similarity import as_tensor, finite_rows, row_numbers, unit_rows


@torch.no_grad()
def recall_at_k(scores, positives, ks=(1, 5, 10), *, per_query: bool = False) -> dict[int, Any]:
    """``{k: percent of queries with a positive among their first k candidates}`` (hit rate, the R@K of papers).

    ``scores [Q, G]``; ``positives [Q, G]`` as bool or 0 and 1, or ``[Q]``, the index of each query's only positive.
    Ties count against the method: a positive ranks behind every negative with the same score. A query without positives
    is a miss; ``k`` may exceed ``G``. ``per_query``: float64 ``[Q]`` of 0 or 100 instead of the mean. ValueError for
    mismatched shapes, no candidates, NaN scores and indices out of range.

    >>> recall_at_k([[0.9, 0.1, 0.5], [0.2, 0.2, 0.1]], [0, 1], ks=(1, 2))
    {1: 50.0, 2: 100.0}
    """
    scores, ks = check_scores("scores", scores), whole_numbers("cut-offs ks", ks)
    positives = as_tensor("positives", positives, scores.device)
    if positives.ndim == 1 and len(positives) == len(scores) and positives.dtype != torch.bool:
        index = row_numbers("positives", positives, len(scores), scores.shape[1])
        ahead = (scores >= scores.gather(1, index[:, None])).sum(dim=1) - 1
    else:
        positives = _mask("positives", positives, scores)
        best = scores.masked_fill(~positives, -torch.inf).amax(dim=1, keepdim=True)
        ahead = ((scores >= best) & ~positives).sum(dim=1)
        ahead = ahead.masked_fill(~positives.any(dim=1), torch.iinfo(torch.int64).max)
    hits = {k: 100.0 * (ahead < k).double().cpu().numpy() for k in ks}
    return hits if per_query else average(hits)


def ndcg_at_k(scores, relevance, ks=(10, 20, 50), exclude=None, *, per_query: bool = False) -> dict[int, Any]:
    """``{k: NDCG in percent}`` with linear gain and discount ``1 / log2(rank + 1)``; 0 for a query whose ideal is 0.

    ``scores [Q, G]``; ``relevance [Q, G]``, finite, non-negative; ``exclude [Q, G]`` as bool or 0 and 1 removes
    candidates from ranking and ideal. Tied candidates share the mean of their discounts, the expectation over orders,
    so a constant score gives the floor of :func:`ndcg_and_floor`. ``k`` may exceed ``G``; ``per_query``: float64
    ``[Q]``. ValueError for mismatched shapes, no candidates, NaN scores, negative or non-finite relevance.
    """
    values = {k: value for k, (value, _) in ndcg_and_floor(scores, relevance, ks, exclude).items()}
    return values if per_query else average(values)


@torch.no_grad()
def ndcg_and_floor(
    scores, relevance, ks=(10, 20, 50), exclude=None, *, official: bool = False
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """``{k: (ndcg [Q], floor [Q])}`` in percent; arguments as for :func:`ndcg_at_k`.

    The floor is the exact expectation of a random ranking, mean relevance of the candidates × sum of discounts / ideal;
    NaN where the ideal is 0. ``official`` breaks ties by ``numpy.argsort(scores)[::-1]`` like the official code: an
    arbitrary order, but float32 cosines do tie, and no other gives the official numbers. The floor is then NaN.
    """
    scores, ks = check_scores("scores", scores), whole_numbers("cut-offs ks", ks)
    relevance = check_relevance("relevance", relevance, scores.shape, scores.device)
    candidates = torch.full((len(scores),), scores.shape[1], device=scores.device)
    if exclude is not None:
        exclude = _mask("exclude", as_tensor("exclude", exclude, scores.device), scores)
        candidates = candidates - exclude.sum(dim=1)
        relevance = relevance.masked_fill(exclude, 0)
        # A genuine score of -inf still ranks ahead of excluded candidates.
        scores = scores.clamp_min(torch.finfo(scores.dtype).min).masked_fill(exclude, -torch.inf)

    deepest = min(max(ks), scores.shape[1])
    discounts = 1 / torch.arange(2, deepest + 2, dtype=torch.float64, device=scores.device).log2()
    discount_sums = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])
    top, order = scores.topk(min(deepest + 1, scores.shape[1]), dim=1)
    gains = relevance.gather(1, order[:, :deepest]).double()
    ideal_gains = relevance.topk(deepest, dim=1).values.double()
    mean_gain = torch.full((), torch.nan) if official else relevance.sum(dim=1, dtype=torch.float64) / candidates
    tied = (top[:, 1:] == top[:, :-1]).any(dim=1).nonzero()[:, 0]
    if official:
        official_order = np.argsort(scores[tied].cpu().numpy(), axis=1)[:, ::-1][:, :deepest].copy()
        gains[tied] = relevance[tied].gather(1, torch.from_numpy(official_order).to(scores.device)).double()
    else:  # each candidate gets the mean discount of the ranks ahead + 1 to last, which its group of ties occupies
        ascending, order = scores[tied].sort(dim=1)
        ahead = scores.shape[1] - torch.searchsorted(ascending, ascending, right=True)
        last = scores.shape[1] - torch.searchsorted(ascending, ascending)
        tied_gains = relevance[tied].gather(1, order)
    results = {}
    for k in ks:
        depth = min(k, deepest)
        dcg = gains[:, :depth] @ discounts[:depth]
        if not official:
            shared = (discount_sums[last.clamp_max(depth)] - discount_sums[ahead.clamp_max(depth)]) / (last - ahead)
            dcg[tied] = (tied_gains * shared).sum(dim=1)
        ideal = ideal_gains[:, :depth] @ discounts[:depth]
        floor = mean_gain * discount_sums[candidates.clamp_max(depth)] / ideal
        ndcg = torch.where(ideal > 0, dcg / ideal, 0)
        results[k] = (100.0 * ndcg.cpu().numpy(), 100.0 * floor.cpu().numpy())
    return results


def above_floor(value: np.ndarray, floor: np.ndarray) -> np.ndarray:
    """``100 (value − floor) / (100 − floor)``, NaN where the floor is undefined or 100 (to 1e-9)."""
    return 100 * (value - floor) / np.where(floor < 100 - 1e-9, 100 - floor, np.nan)


def average(values: Mapping[Any, np.ndarray]) -> dict[Any, float]:
    """Mean of each array over its defined (not NaN) entries; NaN if there are none."""
    defined = {key: value[~np.isnan(value)] for key, value in values.items()}
    return {key: float(value.mean()) if len(value) else float("nan") for key, value in defined.items()}


def check_scores(name: str, value, shape=None, device: torch.device | None = None) -> Tensor:
    """``value`` as a floating-point ``[Q, G]`` tensor; ValueError if empty, of another shape or with NaN."""
    scores = as_tensor(name, value, device)
    if scores.ndim != 2 or not scores.numel() or (shape and scores.shape != shape):
        expected = shape or "[Q, G] with at least one query and candidate"
        raise ValueError(f"{name} has shape {tuple(scores.shape)}, expected {expected}")
    scores = scores if scores.is_floating_point() else scores.double()
    if scores.amax().isnan():  # the maximum is NaN if any score is
        raise ValueError(f"{name} hold NaN, which cannot be ranked")
    return scores


def check_relevance(name: str, value, shape, device: torch.device) -> Tensor:
    """Graded relevance as float32 or float64; ValueError for another shape, negative or non-finite values."""
    value = as_tensor(name, value, device)
    if value.shape != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {tuple(shape)}")
    value = value.to(torch.float64 if value.dtype in (torch.float64, torch.int64, torch.int32) else torch.float32)
    if value.numel() and not (value.amin() >= 0 and value.amax() < torch.inf):  # NaN fails both
        raise ValueError(f"{name} must be 0 or more and finite, got {float(value.amin())} to {float(value.amax())}")
    return value


def paired_rows(image_features, text_features, caption_image, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows ``[I, D]`` and ``[C, D]`` in ``dtype`` or wider, and the image row of each caption ``[C]``."""
    z, w = finite_rows("image_features", image_features), finite_rows("text_features", text_features)
    if z.shape[1] != w.shape[1]:
        shapes = f"image_features {tuple(z.shape)} and text_features {tuple(w.shape)}"
        raise ValueError(f"{shapes} do not match: expected [I, D] and [C, D]")
    dtype = torch.promote_types(torch.promote_types(z.dtype, w.dtype), dtype)  # half precision would tie a lot
    z, w = unit_rows(z.to(dtype)), unit_rows(w.to(z.device, dtype))
    return z, w, row_numbers("caption_image", caption_image, len(w), len(z), z.device)


def whole_numbers(name: str, value) -> tuple[int, ...]:
    """One or several counts as ints; ValueError for an empty list, fractions and numbers below 1."""
    numbers = as_tensor(name, value).reshape(-1)
    if not len(numbers) or numbers.dtype == torch.bool or not ((numbers >= 1) & (numbers % 1 == 0)).all():
        raise ValueError(f"{name} must be whole numbers, 1 or more, got {value!r}")
    return tuple(map(int, numbers))


def _mask(name: str, value: Tensor, scores: Tensor) -> Tensor:
    """``value``, bool or 0 and 1, as a bool matrix of the shape of ``scores``."""
    if value.shape != scores.shape:
        raise ValueError(f"scores {tuple(scores.shape)} and {name} {tuple(value.shape)} differ in shape")
    if value.dtype != torch.bool and not ((value == 0) | (value == 1)).all():
        raise ValueError(f"{name} must be bool, or 0 and 1 only")
    return value.bool()
