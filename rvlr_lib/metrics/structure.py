"""How alike two spaces are, and how one space is shaped.

Pairs are visited in blocks of rows, so 30,000 points of width 256 stay below 2 GB: features of more than a few thousand
items never become a whole ``[N, N]``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows

CHUNK = 256  # rows compared at once; 30,000 points then take 60 MB a float64 matrix
PAIR_CHUNK = 16384  # sampled pairs compared at once


@torch.no_grad()
def knn_overlap(
    features_a=None, features_b=None, k: int = 10, *, similarity_a=None, similarity_b=None, per_query: bool = False
) -> Any:
    """Share of the ``k`` nearest neighbours (self excluded) that two spaces have in common, in percent.

    Items tied at the k-th place share the places that are left, and each item counts with the smaller of its two
    shares; a known similarity with many ties thus needs no arbitrary order, and equal spaces overlap in full.

    Args:
        features_a: ``[N, D]``, compared by cosine.
        features_b: ``[N, E]``, the same items in the other space.
        k: number of neighbours, below ``N``.
        similarity_a: ``[N, N]``, higher is nearer, in place of ``features_a``.
        similarity_b: likewise.
        per_query: float64 array ``[N]`` instead of the mean.

    Raises:
        ValueError: not exactly one of features and similarity for each space, other shapes, NaN, ``k`` not in 1 to
            ``N − 1``.

    >>> import torch
    >>> x = torch.randn(50, 8)
    >>> knn_overlap(x, 3 * x)
    100.0
    """
    spaces = _two_spaces(features_a, features_b, similarity_a, similarity_b)
    count = len(spaces[0])
    if not 1 <= k < count:
        raise ValueError(f"k = {k} neighbours of {count} items")
    shared = []
    for begin in range(0, count, CHUNK):
        a, b = (_neighbour_share(space.to_others(begin), k) for space in spaces)
        shared.append(100 * torch.minimum(a, b.to(a.device)).sum(dim=1) / k)
    overlap = torch.cat(shared).cpu().numpy()
    return overlap if per_query else float(overlap.mean())


def _neighbour_share(similarity: Tensor, k: int) -> Tensor:
    """float64 ``[q, N]`` summing to ``k``: 1 for each neighbour, a fraction for those tied at the last place."""
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, tied = similarity > last, similarity == last
    left = k - nearer.sum(dim=1, keepdim=True)
    return nearer + tied * (left.double() / tied.sum(dim=1, keepdim=True))


@torch.no_grad()
def trustworthiness(
    features_high=None,
    features_low=None,
    k: int = 10,
    *,
    similarity_high=None,
    similarity_low=None,
    per_query: bool = False,
) -> Any:
    """How far neighbours in the low space are neighbours in the high space too, in percent (Venna and Kaski 2001).

    ``100 (1 − 2 / (N k (2N − 3k − 1)) Σ_i Σ_j (r_ij − k))``, ``j`` over the ``k`` nearest of ``i`` in the low space
    whose rank ``r_ij`` in the high space is beyond ``k`` (self excluded). 100: no false neighbours; ``k/N`` small:
    chance is about 50. Both spaces are compared by cosine; for a map in the plane give
    ``similarity_low=-distances``.

    Ties (equal to the last bit): items tied at the ``k``-th place share the places that are left, in each space, as in
    :func:`knn_overlap`. What an item's share in the low space exceeds that in the high space counts as false, at the
    mean of those ranks of its tie that are beyond ``k``. Equal spaces thus score 100, and a constant one chance.

    Args:
        features_high: ``[N, D]``, the space to be kept.
        features_low: ``[N, E]``, the same items in the other space.
        k: number of neighbours, below ``N / 2``.
        similarity_high: ``[N, N]``, higher is nearer, in place of ``features_high``.
        similarity_low: likewise.
        per_query: float64 array ``[N]`` instead of the mean.

    Raises:
        ValueError: not exactly one of features and similarity for each space, other shapes, NaN, ``k`` not positive or
            not below ``N / 2``.

    >>> import torch
    >>> x = torch.randn(50, 8)
    >>> trustworthiness(x, 3 * x)
    100.0
    """
    high, low = _two_spaces(features_high, features_low, similarity_high, similarity_low, ("high", "low"))
    return _without_false_neighbours(high, low, k, per_query)


@torch.no_grad()
def continuity(
    features_high=None,
    features_low=None,
    k: int = 10,
    *,
    similarity_high=None,
    similarity_low=None,
    per_query: bool = False,
) -> Any:
    """How far neighbours in the high space are neighbours in the low space too, in percent (Venna and Kaski 2001).

    :func:`trustworthiness` with the spaces swapped: neighbours that were torn apart count by their rank in the low
    space. Arguments, ties and errors as there.

    >>> import torch
    >>> x, y = torch.randn(50, 8), torch.randn(50, 8)
    >>> continuity(x, y) == trustworthiness(y, x)
    True
    """
    high, low = _two_spaces(features_high, features_low, similarity_high, similarity_low, ("high", "low"))
    return _without_false_neighbours(low, high, k, per_query)


def _without_false_neighbours(true: "_Space", other: "_Space", k: int, per_query: bool) -> Any:
    """Percent: 100 less the excess ranks in ``true`` of the neighbours in ``other``, over their maximum."""
    count = len(true)
    if not 1 <= k < count / 2:
        raise ValueError(f"k = {k} neighbours of {count} items: k must be below half of them")
    excess = []
    for begin in range(0, count, CHUNK):
        share = _neighbour_share(other.to_others(begin), k).to(true.rows.device)
        excess.append(_excess_ranks(true.to_others(begin), share, k))
    percent = 100 * (1 - torch.cat(excess).cpu().numpy() * 2 / (k * (2 * count - 3 * k - 1)))
    return percent if per_query else float(percent.mean())


def _excess_ranks(similarity: Tensor, share: Tensor, k: int) -> Tensor:
    """float64 ``[q]``: sum over false neighbours of (rank − k), of ``[q, N]`` similarities and shares elsewhere."""
    share, items = share.topk(int((share > 0).sum(dim=1).max()), dim=1)
    similarity, values = similarity.sort(dim=1).values, similarity.gather(1, items)
    # The items of a tie have the ranks ahead + 1 to last.
    ahead = similarity.shape[1] - torch.searchsorted(similarity, values, right=True)
    last = similarity.shape[1] - torch.searchsorted(similarity, values)
    own_share = ((k - ahead).double() / (last - ahead)).clamp(0, 1)
    beyond = (ahead.clamp(min=k) + 1 + last).double() / 2 - k
    return ((share - own_share).clamp(min=0) * beyond).sum(dim=1)


@torch.no_grad()
def relational_similarity(
    features_a=None,
    features_b=None,
    *,
    similarity_a=None,
    similarity_b=None,
    max_points: int = 2000,
    max_pairs: int = 2_000_000,
    seed: int = 0,
) -> float:
    """Spearman correlation (−1 to 1) between the off-diagonal cosines of two spaces; ties share their mean rank.

    Args:
        features_a: ``[N, D]``.
        features_b: ``[N, E]``, the same items.
        similarity_a: ``[N, N]`` in place of ``features_a``.
        similarity_b: likewise.
        max_points: up to it all pairs of distinct items are compared, above it a seeded sample of pairs.
        max_pairs: size of that sample, drawn uniformly with replacement; its error is about ``1 / sqrt(max_pairs)``.
        seed: of the sample.

    Raises:
        ValueError: not exactly one of features and similarity for each space, other shapes, NaN, fewer than 2 pairs.
    """
    spaces = _two_spaces(features_a, features_b, similarity_a, similarity_b)
    count = len(spaces[0])
    if count < 2 or max_pairs < 2:
        raise ValueError(f"{count} items and max_pairs = {max_pairs}: nothing to correlate below 2")
    if count <= max_points:
        relations = [off_diagonal(space.relations()).flatten() for space in spaces]
    else:
        generator = torch.Generator().manual_seed(seed)
        first = torch.randint(count, (max_pairs,), generator=generator)
        second = (first + torch.randint(1, count, (max_pairs,), generator=generator)) % count
        relations = [space.of_pairs(first, second) for space in spaces]
    # Rounding lets equal cosines tie although their last bits differ.
    return float(torch.corrcoef(torch.stack([_ranks(x.round(decimals=10).cpu()) for x in relations]))[0, 1])


@dataclass(frozen=True, eq=False)
class _Space:
    """Unit rows, or a similarity that is known as a whole."""

    rows: Tensor
    known: bool

    def __len__(self) -> int:
        return len(self.rows)

    def to_others(self, begin: int) -> Tensor:
        """``[q, N]``: of the items from ``begin`` on, ``CHUNK`` at most, to all; −inf to themselves."""
        rows = self.rows[begin : begin + CHUNK]
        similarity = rows.clone() if self.known else rows @ self.rows.T
        similarity.diagonal(begin).fill_(-torch.inf)
        return similarity

    def relations(self) -> Tensor:
        """float64 ``[N, N]``: of all items to each other."""
        return self.rows.double() if self.known else cosine_matrix(self.rows.double())

    def of_pairs(self, first: Tensor, second: Tensor) -> Tensor:
        """float64 ``[P]``: of the items ``first [P]`` to the items ``second [P]``."""
        pairs = torch.stack([first, second]).to(self.rows.device)
        if self.known:
            return self.rows[pairs[0], pairs[1]].double()
        x = unit_rows(self.rows.double())
        return torch.cat([(x[i] * x[j]).sum(dim=1) for i, j in pairs.split(PAIR_CHUNK, dim=1)])


def _two_spaces(features_a, features_b, similarity_a, similarity_b, names=("a", "b")) -> list[_Space]:
    spaces = []
    given = zip(names, (features_a, features_b), (similarity_a, similarity_b), strict=True)
    for name, features, similarity in given:
        if (features is None) == (similarity is None):
            raise ValueError(f"give either features_{name} or similarity_{name}")
        matrix, known = torch.as_tensor(features if similarity is None else similarity), features is None
        matrix = matrix if matrix.is_floating_point() else matrix.double()
        if matrix.ndim != 2 or not matrix.isfinite().all() or (known and len(matrix) != matrix.shape[1]):
            expected = "similarity [N, N]" if known else "features [N, D]"
            raise ValueError(f"space {name}: expected finite {expected}, got {tuple(matrix.shape)}")
        spaces.append(_Space(matrix if known else unit_rows(matrix), known))
    if len(spaces[0]) != len(spaces[1]):
        raise ValueError(f"the spaces hold {len(spaces[0])} and {len(spaces[1])} items")
    return spaces


def _ranks(values: Tensor) -> Tensor:
    """Rank of each value, ties sharing the mean of their ranks."""
    _, group, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    return (last - (counts - 1) / 2)[group]


@torch.no_grad()
def linear_cka(features_a, features_b) -> float:
    """Linear centred kernel alignment (0 to 1) of ``[N, D]`` and ``[N, E]`` features (Kornblith et al. 2019)."""
    a, b = (x.double() - x.double().mean(dim=0) for x in _same_items(features_a, features_b))
    return float((a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()))


@torch.no_grad()
def modality_gap(image_features, text_features, pairs) -> float:
    """Distance between the mean unit image and the mean unit caption over all pairs (Liang et al. 2022).

    Args:
        image_features: ``[I, D]``.
        text_features: ``[C, D]``.
        pairs: ``[C]`` row of the image of each caption, so that both means weigh every pair once.
    """
    images, texts = _pairs(image_features, text_features, pairs)
    return float((images.mean(dim=0) - texts.mean(dim=0)).norm())


@torch.no_grad()
def alignment(image_features, text_features, pairs) -> float:
    """Mean squared distance of the unit rows of matched pairs (Wang and Isola 2020), as :func:`modality_gap`."""
    images, texts = _pairs(image_features, text_features, pairs)
    return float((images - texts).square().sum(dim=1).mean())


@torch.no_grad()
def uniformity(features, t: float = 2.0) -> float:
    """``log mean exp(−t d²)`` over all pairs of distinct unit rows ``[N, D]`` (Wang and Isola 2020); lower is wider."""
    x = unit_rows(torch.as_tensor(features).double())
    if x.ndim != 2 or len(x) < 2:
        raise ValueError(f"expected [N, D] with N >= 2, got {tuple(x.shape)}")
    total = sum(torch.exp(2 * t * (x[rows] @ x.T - 1)).sum() for rows in torch.arange(len(x)).split(CHUNK))
    own = torch.exp(2 * t * (x.square().sum(dim=1) - 1)).sum()
    return float(torch.log((total - own) / (len(x) * (len(x) - 1))))


def _same_items(features_a, features_b) -> tuple[Tensor, Tensor]:
    a, b = torch.as_tensor(features_a), torch.as_tensor(features_b)
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or len(a) < 3:
        raise ValueError(f"expected the same 3 or more items, got {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b.to(a.device)


def _pairs(image_features, text_features, pairs) -> tuple[Tensor, Tensor]:
    """Unit rows of both sides of each pair, float64."""
    images, texts = (unit_rows(torch.as_tensor(x).double()) for x in (image_features, text_features))
    pairs = torch.as_tensor(pairs, device=images.device)
    if images.ndim != 2 or texts.ndim != 2 or pairs.shape != (len(texts),) or images.shape[1] != texts.shape[1]:
        raise ValueError(
            f"images {tuple(images.shape)}, texts {tuple(texts.shape)}, pairs {tuple(pairs.shape)} do not fit"
        )
    return images[pairs], texts.to(images.device)
