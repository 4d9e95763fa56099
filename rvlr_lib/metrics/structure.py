"""How alike two spaces are, and how one space is shaped."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows

CHUNK = 1024  # rows compared at once; 30,000 points then take 120 MB a matrix


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
        rows = slice(begin, begin + CHUNK)
        a, b = (_neighbour_share(space.similarity(rows), begin, k) for space in spaces)
        shared.append(100 * torch.minimum(a, b.to(a.device)).sum(dim=1) / k)
    overlap = torch.cat(shared).cpu().numpy()
    return overlap if per_query else float(overlap.mean())


def _neighbour_share(similarity: Tensor, begin: int, k: int) -> Tensor:
    """float64 ``[q, N]`` summing to ``k``: 1 for each neighbour, a fraction for those tied at the last place."""
    similarity = similarity.clone()
    similarity.diagonal(begin).fill_(-torch.inf)
    last = similarity.topk(k, dim=1).values[:, -1:]
    nearer, tied = similarity > last, similarity == last
    left = k - nearer.sum(dim=1, keepdim=True)
    return nearer + tied * (left.double() / tied.sum(dim=1, keepdim=True))


@torch.no_grad()
def relational_similarity(
    features_a=None, features_b=None, *, similarity_a=None, similarity_b=None, max_points: int = 3000, seed: int = 0
) -> float:
    """Spearman correlation (−1 to 1) between the off-diagonal cosines of two spaces.

    Args:
        features_a: ``[N, D]``.
        features_b: ``[N, E]``, the same items.
        similarity_a: ``[N, N]`` in place of ``features_a``.
        similarity_b: likewise.
        max_points: above it a seeded random subset is compared, since pairs grow with the square.
        seed: of the subset.

    Raises:
        ValueError: not exactly one of features and similarity for each space, other shapes, NaN.
    """
    spaces = _two_spaces(features_a, features_b, similarity_a, similarity_b)
    rows = torch.arange(len(spaces[0]))
    if len(rows) > max_points:
        rows = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:max_points]
    # Rounding lets equal cosines tie although their last bits differ.
    pairs = (off_diagonal(space.among(rows)).flatten().round(decimals=10).cpu() for space in spaces)
    return float(torch.corrcoef(torch.stack([_ranks(values) for values in pairs]))[0, 1])


@dataclass(frozen=True, eq=False)
class _Space:
    """Unit rows, or a similarity that is known as a whole."""

    rows: Tensor
    known: bool

    def __len__(self) -> int:
        return len(self.rows)

    def similarity(self, rows: slice) -> Tensor:
        """``[q, N]``: of some items to all."""
        return self.rows[rows] if self.known else self.rows[rows] @ self.rows.T

    def among(self, rows: Tensor) -> Tensor:
        """float64 ``[q, q]``: of some items to each other."""
        x = self.rows[rows.to(self.rows.device)].double()
        return x[:, rows] if self.known else cosine_matrix(x)


def _two_spaces(features_a, features_b, similarity_a, similarity_b) -> list[_Space]:
    spaces = []
    for name, features, similarity in (("a", features_a, similarity_a), ("b", features_b, similarity_b)):
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
