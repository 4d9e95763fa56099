"""Structure metrics: similarity of two spaces, modality gap, alignment and uniformity.

Features ``[N, D]`` of any scale (tensors, arrays, lists) are compared by cosine. Items tied at the ``k``-th place share
the remaining places equally. ``per_query``: float64 ``[N]`` instead of the mean. ValueError for mismatched shapes,
non-finite entries and numbers out of range.
"""

from typing import Any

import torch
from torch import Tensor

from rvlr_lib.metrics.ranking import paired_rows, whole_numbers
from rvlr_lib.similarity import finite_rows, full_precision, off_diagonal, unit_rows

CHUNK = 256  # rows compared at once: 60 MB per float64 matrix at 30,000 points
MAX_POINTS, MAX_PAIRS, PAIR_CHUNK = 2000, 2_000_000, 16384  # above MAX_POINTS items, a sample of pairs


@torch.no_grad()
def knn_overlap(features_a, features_b, k: int = 10, *, per_query: bool = False) -> Any:
    """Percent of the ``k < N`` nearest neighbours (self excluded) that two spaces share; with ties, the smaller share.

    >>> x = torch.randn(50, 8)
    >>> knn_overlap(x, 3 * x)
    100.0
    """
    spaces = _two_spaces(features_a, features_b)
    count, (k,) = len(spaces[0]), whole_numbers("k", k)
    if not k < count:
        raise ValueError(f"k = {k} neighbours of {count} items")
    shared = []
    for begin in range(0, count, CHUNK):
        a, b = (neighbour_share(_to_others(rows, begin), k) for rows in spaces)
        shared.append(100 * torch.minimum(a, b.to(a.device)).sum(dim=1) / k)
    overlap = torch.cat(shared).cpu().numpy()
    return overlap if per_query else float(overlap.mean())


@torch.no_grad()
def relational_similarity(features_a, features_b) -> float:
    """Spearman correlation (−1 to 1) of the off-diagonal cosines of two spaces; ties share their mean rank.

    Above 2,000 items, a seeded sample of two million pairs of distinct items is compared; its error is about 0.0007.
    """
    spaces = [unit_rows(rows.double()) for rows in _two_spaces(features_a, features_b)]
    if (count := len(spaces[0])) < 2:
        raise ValueError(f"{count} items: a correlation needs 2 or more")
    if count <= MAX_POINTS:
        relations = [off_diagonal(x @ x.T).flatten() for x in spaces]
    else:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(count, (MAX_PAIRS,), generator=generator)
        pairs = torch.stack([first, (first + torch.randint(1, count, (MAX_PAIRS,), generator=generator)) % count])
        chunks = pairs.split(PAIR_CHUNK, dim=1)
        relations = [torch.cat([(x[i] * x[j]).sum(dim=1) for i, j in chunks]) for x in spaces]
    return float(torch.corrcoef(torch.stack([_ranks(values.cpu()) for values in relations]))[0, 1])


@torch.no_grad()
def linear_cka(features_a, features_b) -> float:
    """Linear CKA (0 to 1) of ``[N, D]`` and ``[N, E]`` with N >= 3 (Kornblith et al. 2019); NaN if one is constant."""
    a, b = finite_rows("features_a", features_a).double(), finite_rows("features_b", features_b).double()
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"expected 3 or more items, the same in both, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny) for x in (a, b.to(a.device)))
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@torch.no_grad()
def modality_gap(image_features, text_features, caption_image) -> float:
    """Distance between the mean unit image vector and the mean unit caption vector over all pairs (Liang et al. 2022).

    ``image_features [I, D]``, ``text_features [C, D]``; ``caption_image [C]``: image row of each caption.
    """
    images, texts, rows = paired_rows(image_features, text_features, caption_image, torch.float64)
    return float((images[rows].mean(dim=0) - texts.mean(dim=0)).norm())


@torch.no_grad()
def relative_modality_gap(image_features, text_features, caption_image) -> float:
    """Distance of pairs relative to distances within a modality: 0 closed, ½ modalities unrelated, at most 1.

    With ``d = (1 − cosine) / 2``: mean d of pairs, divided by itself plus the average of the mean d among images and
    among captions (distinct items, at least two of each); ½ if all are equal. Arguments as for :func:`modality_gap`.
    """
    images, texts, rows = paired_rows(image_features, text_features, caption_image, torch.float64)
    if len(images) < 2 or len(texts) < 2:
        raise ValueError(f"at least two images and two captions are needed, got {len(images)} and {len(texts)}")
    paired = ((1 - (images[rows] * texts).sum(dim=1).mean()) / 2).clamp_min(0)
    cosine_sums = [(len(x), x.sum(dim=0).square().sum() - x.square().sum()) for x in (images, texts)]
    among = [((1 - cosine_sum / (n * (n - 1))) / 2).clamp_min(0) for n, cosine_sum in cosine_sums]
    total = paired + (among[0] + among[1]) / 2
    return float(paired / total) if total > 1e-12 else 0.5


@torch.no_grad()
def alignment(image_features, text_features, caption_image) -> float:
    """Mean squared distance of matched unit rows (Wang and Isola 2020); arguments as for :func:`modality_gap`."""
    images, texts, rows = paired_rows(image_features, text_features, caption_image, torch.float64)
    return float((images[rows] - texts).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(features, t: float = 2.0) -> float:
    """``log mean exp(−t d²)`` over pairs of distinct unit rows ``[N, D]`` (Wang and Isola 2020), low if uniform."""
    x = unit_rows(finite_rows("features", features).double())
    if len(x) < 2:
        raise ValueError(f"expected [N, D] with N >= 2, got {tuple(x.shape)}")
    total = sum(torch.exp(2 * t * (rows @ x.T - 1)).sum() for rows in x.split(CHUNK))
    self_pairs = torch.exp(2 * t * (x.square().sum(dim=1) - 1)).sum()
    return float(torch.log((total - self_pairs) / (len(x) * (len(x) - 1))))


def _to_others(rows: Tensor, begin: int) -> Tensor:
    """Cosines ``[q, N]`` of up to ``CHUNK`` unit rows, from ``begin`` on, with all rows; −inf with themselves."""
    similarity = rows[begin : begin + CHUNK] @ rows.T
    similarity.diagonal(begin).fill_(-torch.inf)
    return similarity


def _two_spaces(features_a, features_b) -> tuple[Tensor, Tensor]:
    """Unit rows of the same items in two spaces."""
    first, second = (unit_rows(full_precision(finite_rows("features", x))) for x in (features_a, features_b))
    if len(first) != len(second):
        raise ValueError(f"spaces of shape {tuple(first.shape)} and {tuple(second.shape)} differ in number of items")
    return first, second


def neighbour_share(similarity: Tensor, k: int) -> Tensor:
    """float64 ``[q, N]``, rows summing to ``k``: 1 for each neighbour, a fraction for items tied at the last place."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, tied = similarity > last, similarity == last
    remaining = k - nearer.sum(dim=1, keepdim=True)
    return nearer + tied * (remaining.double() / tied.sum(dim=1, keepdim=True))


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value; ties (equal to ten decimals relative to the largest) share their mean rank."""
    largest = values.abs().max()
    rounded = (values / torch.where(largest > 0, largest, 1)).round(decimals=10)
    _, group, counts = rounded.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[group]
