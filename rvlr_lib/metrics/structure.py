"""How alike two spaces are, and how one space is shaped.

Features ``[N, D]`` of any scale (tensors, arrays, lists) are compared by cosine; ``similarity_b`` takes ``[N, N]`` of a
space known by its similarities alone, higher is nearer. Items tied at the ``k``-th place share the places that are
left. ``per_query``: float64 ``[N]`` instead of the mean. ValueError for other shapes, spaces of unlike items, entries
that are not finite, and numbers out of range.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics.ranking import row_numbers, whole_numbers
from rvlr_lib.similarity import as_tensor, off_diagonal, unit_rows

CHUNK = 256  # rows compared at once; 30,000 points then take 60 MB a float64 matrix
MAX_POINTS, MAX_PAIRS, PAIR_CHUNK = 2000, 2_000_000, 16384  # pairs beyond that many items are a sample


@torch.no_grad()
def knn_overlap(features_a, features_b=None, k: int = 10, *, similarity_b=None, per_query: bool = False) -> Any:
    """Percent of the ``k < N`` nearest neighbours (self excluded) that two spaces share; the smaller share counts.

    >>> x = torch.randn(50, 8)
    >>> knn_overlap(x, 3 * x)
    100.0
    """
    spaces = _two_spaces(features_a, features_b, similarity_b)
    count, (k,) = len(spaces[0].rows), whole_numbers("k", k)
    if not k < count:
        raise ValueError(f"k = {k} neighbours of {count} items")
    shared = []
    for begin in range(0, count, CHUNK):
        a, b = (_neighbour_share(space.to_others(begin), k) for space in spaces)
        shared.append(100 * torch.minimum(a, b.to(a.device)).sum(dim=1) / k)
    overlap = torch.cat(shared).cpu().numpy()
    return overlap if per_query else float(overlap.mean())


@torch.no_grad()
def trustworthiness(features_high, features_low, k: int = 10, *, per_query: bool = False) -> Any:
    """How far neighbours in the low space are neighbours in the high space too, in percent (Venna and Kaski 2001).

    ``100 (1 − 2 / (N k (2N − 3k − 1)) Σ_i Σ_j (r_ij − k))``, ``j`` over the ``k < N / 2`` nearest of ``i`` in the low
    space whose rank ``r_ij`` in the high space is beyond ``k``. 100: no false neighbours; chance is about 50 for small
    ``k/N``. What an item's share in the low space exceeds that in the high space counts as false, at the mean of those
    ranks of its tie that are beyond ``k``.
    """
    high, low = _two_spaces(features_high, features_low)
    count, (k,) = len(high.rows), whole_numbers("k", k)
    if not k < count / 2:
        raise ValueError(f"k = {k} neighbours of {count} items: k must be below half of them")
    excess = []  # for each item the sum over its false neighbours of rank − k
    for begin in range(0, count, CHUNK):
        share = _neighbour_share(low.to_others(begin), k).to(high.rows.device)
        share, items = share.topk(int((share > 0).sum(dim=1).max()), dim=1)
        similarity = high.to_others(begin)
        values, similarity = similarity.gather(1, items), similarity.sort(dim=1).values
        # The items of a tie have the ranks ahead + 1 to last.
        ahead = count - torch.searchsorted(similarity, values, right=True)
        last = count - torch.searchsorted(similarity, values)
        own_share = ((k - ahead).double() / (last - ahead)).clamp(0, 1)
        beyond = (ahead.clamp(min=k) + 1 + last).double() / 2 - k
        excess.append(((share - own_share).clamp(min=0) * beyond).sum(dim=1).cpu().numpy())
    percent = 100 * (1 - np.concatenate(excess) * 2 / (k * (2 * count - 3 * k - 1)))
    return percent if per_query else float(percent.mean())


def continuity(features_high, features_low, k: int = 10, *, per_query: bool = False) -> Any:
    """:func:`trustworthiness` with the spaces swapped: neighbours in the high space that were torn apart count."""
    return trustworthiness(features_low, features_high, k, per_query=per_query)


@torch.no_grad()
def relational_similarity(features_a, features_b=None, *, similarity_b=None) -> float:
    """Spearman correlation (−1 to 1) between the off-diagonal cosines of two spaces; ties share their mean rank.

    Beyond 2,000 items a seeded sample of two million pairs of distinct items is compared; its error is about 0.0007.
    """
    spaces = _two_spaces(features_a, features_b, similarity_b)
    if (count := len(spaces[0].rows)) < 2:
        raise ValueError(f"{count} items: nothing to correlate below 2")
    pairs = None
    if count > MAX_POINTS:
        generator = torch.Generator().manual_seed(0)
        first = torch.randint(count, (MAX_PAIRS,), generator=generator)
        pairs = torch.stack([first, (first + torch.randint(1, count, (MAX_PAIRS,), generator=generator)) % count])
    return float(torch.corrcoef(torch.stack([_ranks(space.of_pairs(pairs).cpu()) for space in spaces]))[0, 1])


@torch.no_grad()
def linear_cka(features_a, features_b) -> float:
    """Linear centred kernel alignment (0 to 1) of ``[N, D]`` and ``[N, E]`` (Kornblith et al. 2019), or NaN."""
    a, b = _finite("features_a", features_a).double(), _finite("features_b", features_b).double()
    if len(a) != len(b) or len(a) < 3:
        raise ValueError(f"expected the same 3 or more items, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = (x / x.abs().max().clamp_min(torch.finfo(x.dtype).tiny) for x in (a, b.to(a.device)))
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@torch.no_grad()
def modality_gap(image_features, text_features, caption_image) -> float:
    """Distance between the mean unit image and the mean unit caption over all pairs (Liang et al. 2022).

    ``image_features [I, D]``, ``text_features [C, D]``, ``caption_image [C]`` the row of each caption's image.
    """
    images, texts, rows = _pairs(image_features, text_features, caption_image)
    return float((images[rows].mean(dim=0) - texts.mean(dim=0)).norm())


@torch.no_grad()
def relative_modality_gap(image_features, text_features, caption_image) -> float:
    """How far apart pairs are beside items of one modality: 0 closed, ½ no relation between the modalities, at most 1.

    With ``d = (1 − cosine) / 2``: mean d of the pairs, over itself plus the mean of d among images and d among captions
    (distinct items, two or more of each); ½ where all features are equal. Arguments as :func:`modality_gap`.
    """
    images, texts, rows = _pairs(image_features, text_features, caption_image)
    if len(images) < 2 or len(texts) < 2:
        raise ValueError(f"two images and captions or more are needed, got {len(images)} and {len(texts)}")
    paired = ((1 - (images[rows] * texts).sum(dim=1).mean()) / 2).clamp_min(0)
    sums = [(x, x.sum(dim=0).square().sum() - x.square().sum()) for x in (images, texts)]
    among = [((1 - cosines / (len(x) * (len(x) - 1))) / 2).clamp_min(0) for x, cosines in sums]
    whole = paired + (among[0] + among[1]) / 2
    return float(paired / whole) if whole > 1e-12 else 0.5


@torch.no_grad()
def alignment(image_features, text_features, caption_image) -> float:
    """Mean squared distance of the unit rows of matched pairs (Wang and Isola 2020), as :func:`modality_gap`."""
    images, texts, rows = _pairs(image_features, text_features, caption_image)
    return float((images[rows] - texts).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(features, t: float = 2.0) -> float:
    """``log mean exp(−t d²)`` over all pairs of distinct unit rows ``[N, D]`` (Wang and Isola 2020); lower is wider."""
    x = unit_rows(_finite("features", features).double())
    if len(x) < 2:
        raise ValueError(f"expected [N, D] with N >= 2, got {tuple(x.shape)}")
    total = sum(torch.exp(2 * t * (x[rows] @ x.T - 1)).sum() for rows in torch.arange(len(x)).split(CHUNK))
    own = torch.exp(2 * t * (x.square().sum(dim=1) - 1)).sum()
    return float(torch.log((total - own) / (len(x) * (len(x) - 1))))


class _Space(NamedTuple):
    rows: Tensor  # unit rows [N, D], or the similarity [N, N] where that is what is known
    known: bool = False

    def to_others(self, begin: int) -> Tensor:
        """``[q, N]``: of the items from ``begin`` on, ``CHUNK`` at most, to all; −inf to themselves."""
        rows = self.rows[begin : begin + CHUNK]
        similarity = rows.clone() if self.known else rows @ self.rows.T
        similarity.diagonal(begin).fill_(-torch.inf)
        return similarity

    def of_pairs(self, pairs: Tensor | None) -> Tensor:
        """float64: of the items ``pairs[0]`` to the items ``pairs[1]``; of all to all others where None."""
        x = self.rows.double() if self.known else unit_rows(self.rows.double())
        if pairs is None:
            return off_diagonal(x if self.known else x @ x.T).flatten()
        pairs = pairs.to(x.device)
        if self.known:
            return x[pairs[0], pairs[1]]
        return torch.cat([(x[i] * x[j]).sum(dim=1) for i, j in pairs.split(PAIR_CHUNK, dim=1)])


def _two_spaces(features_a, features_b, similarity_b=None) -> tuple[_Space, _Space]:
    if (features_b is None) == (similarity_b is None):
        raise ValueError("give either features or a similarity of the second space")
    first = _Space(unit_rows(_finite("features", features_a)))
    if similarity_b is None:
        second = _Space(unit_rows(_finite("features", features_b)))
    else:
        second = _Space(_finite("similarity_b", similarity_b), known=True)
    if len(first.rows) != len(second.rows) or (second.known and second.rows.shape[0] != second.rows.shape[1]):
        shapes = tuple(first.rows.shape), tuple(second.rows.shape)
        raise ValueError(f"spaces of shape {shapes[0]} and {shapes[1]} do not hold the same items")
    return first, second


def _neighbour_share(similarity: Tensor, k: int) -> Tensor:
    """float64 ``[q, N]`` summing to ``k``: 1 for each neighbour, a fraction for those tied at the last place."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, tied = similarity > last, similarity == last
    left = k - nearer.sum(dim=1, keepdim=True)
    return nearer + tied * (left.double() / tied.sum(dim=1, keepdim=True))


def _finite(name: str, value) -> Tensor:
    """A finite matrix in float32 or float64, which half precision, full of ties, becomes."""
    matrix = as_tensor(name, value)
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32) if matrix.is_floating_point() else torch.double)
    if matrix.ndim != 2 or not matrix.isfinite().all():
        raise ValueError(f"{name} must be a finite matrix, got {tuple(matrix.shape)}")
    return matrix


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value, ties (equal to ten decimals of the largest) sharing the mean of their ranks."""
    largest = values.abs().max()
    rounded = (values / torch.where(largest > 0, largest, 1)).round(decimals=10)
    _, group, counts = rounded.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0).double() - (counts - 1) / 2)[group]


def _pairs(image_features, text_features, caption_image) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows of images and captions in float64, and the image of each caption."""
    images, texts = _finite("image_features", image_features), _finite("text_features", text_features)
    if images.shape[1] != texts.shape[1] or not len(images) * len(texts):
        raise ValueError(f"image_features {tuple(images.shape)} and text_features {tuple(texts.shape)} do not fit")
    rows = row_numbers("caption_image", caption_image, len(texts), len(images), images.device)
    return unit_rows(images.double()), unit_rows(texts.to(images.device).double()), rows
