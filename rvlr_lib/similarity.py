"""Cosine and relation matrices: the one place where features meet each other."""

import torch
from torch import Tensor


def unit_rows(features: Tensor) -> Tensor:
    """Scale every row to length 1.

    Args:
        features: ``[..., D]``.

    Returns:
        ``[..., D]``. A zero row stays zero, so its cosine with every row is 0 and its gradient finite.

    >>> unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    tensor([[0.6000, 0.8000],
            [0.0000, 0.0000]])
    """
    length = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
    return features / torch.where(length > 0, length, 1)


def cosine_matrix(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Cosine of every row of ``a [N, D]`` with every row of ``b [M, D]`` (default: of ``a``), ``[N, M]``.

    >>> cosine_matrix(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([[1., 0.]])
    """
    a = unit_rows(a)
    return a @ (a if b is None else unit_rows(b)).T


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries ``j != i`` of each row of a square ``[B, B]``, in order, as ``[B, B - 1]``.

    >>> off_diagonal(torch.arange(9).view(3, 3))
    tensor([[1, 2],
            [3, 5],
            [6, 7]])
    """
    rows = len(matrix)
    # Without the first entry, every (B + 1)-th one left is a diagonal entry.
    return matrix.reshape(-1)[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)
