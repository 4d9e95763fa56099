"""Cosine and relation matrices, linear maps: the one place where features meet each other."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Real numbers as a tensor, from tensors, arrays and nested lists; ValueError with ``name`` for anything else."""
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors on a device
            raise ValueError(f"{name} is no array of numbers: {error}") from None
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold numbers, got {type(value).__name__} of {array.dtype}")
        plain = f"{array.dtype.kind}{min(array.dtype.itemsize, 8)}"  # of this machine's byte order, no long double
        value = torch.from_numpy(np.asarray(array, plain, order="C"))
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch hardly computes with these
        value = value.to(torch.int64)
    narrow = value.is_floating_point() and value.dtype.itemsize < 2  # of 8 bits and fewer
    if value.is_complex() or value.is_quantized or narrow or value.layout != torch.strided:
        wanted = "real numbers, none left out, of 16 bits or more"
        raise ValueError(f"{name} must hold {wanted}, got {value.dtype}, {value.layout}")
    return value if device is None else value.to(device)


def finite_rows(name: str, value: Any) -> Tensor:
    """Finite floating-point rows ``[N, D]``; ValueError with the name for anything else."""
    rows = as_tensor(name, value)
    rows = rows if rows.is_floating_point() else rows.float()
    if rows.ndim != 2 or not rows.numel() or rows.is_meta:
        raise ValueError(f"{name} must be rows [N, D] with at least one, got {tuple(rows.shape)} of {rows.type()}")
    if not rows.isfinite().all():
        faulty = (~rows.isfinite()).any(dim=1).nonzero().flatten()
        raise ValueError(f"{name} {tuple(rows.shape)}: {len(faulty)} rows are not finite, row {faulty[0]} first")
    return rows


def row_numbers(name: str, value: Any, count: int, rows: int, device: torch.device | None = None) -> Tensor:
    """``[count]`` row numbers 0 to ``rows − 1`` as int64; ValueError for another shape, fractions or other numbers."""
    value = as_tensor(name, value, device)
    if value.shape != (count,) or value.dtype == torch.bool:
        raise ValueError(f"{name} has shape {tuple(value.shape)} of {value.dtype}, expected row numbers {(count,)}")
    exact = value.double()  # uint8 cannot be compared with 256 or more
    wrong = (exact < 0) | (exact >= rows) | (exact % 1 != 0)
    if wrong.any():
        raise ValueError(f"{name} must be whole row numbers 0 to {rows - 1}, got {value[wrong][:5].tolist()}")
    return value.long()


def full_precision(values: Tensor) -> Tensor:
    """At least float32: half precision rounds, and ties, too much for losses and rankings."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(features: Tensor) -> Tensor:
    """Rows ``[..., D]`` scaled to length 1, also those of 1e-30 or 1e30; a zero row stays zero, its gradient finite.

    Rows of usual size are those of ``torch.nn.functional.normalize`` to the bit: another one would order near-ties of
    the official numbers differently.
    """
    # divided by a power of two, which rounds nothing, no square leaves the range, and a length is 1 or more, or 0
    largest = features.detach().abs().amax(dim=-1, keepdim=True)  # vector_norm is some 20 times as slow on a CPU
    power = largest / (2 * torch.frexp(full_precision(largest)).mantissa)
    scaled = features / power.masked_fill(largest == 0, 1).to(features)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(0.5)


def cosine_matrix(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Cosine of every row of ``a [N, D]`` with every row of ``b [M, D]`` (default: of ``a``), ``[N, M]``."""
    a = unit_rows(a)
    return a @ (a if b is None else unit_rows(b)).T


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries ``j != i`` of each row of a square ``[B, B]``, in order, as ``[B, B - 1]``."""
    rows = len(matrix)  # without the first entry, every (B + 1)-th one left is a diagonal entry
    return matrix.reshape(-1)[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def principal_directions(features: Tensor, width: int) -> Tensor:
    """Leading right singular vectors ``[W, D]`` of ``[N, W]``, scaled to unit rows, mean kept: least change of cosines.

    ``width`` is ``D``, at most ``W``.
    """
    if width > features.shape[1]:
        raise ValueError(f"features of width {features.shape[1]} have no {width} directions: reduce embed_dim")
    rows = unit_rows(features.double())
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :width]
    greatest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return (vectors * greatest.sign()).float()  # the greatest entry of each is positive


def ridge_map(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression with intercept, ``[N, W]`` to ``[N, D]``: weight ``[D, W]`` and bias ``[D]`` of ``nn.Linear``.

    The penalty on the squared weights is in units of the mean diagonal entry of the inputs' centred Gram matrix.
    """
    if len(inputs) != len(targets) or penalty <= 0:
        shapes = list(inputs.shape), list(targets.shape)
        raise ValueError(f"inputs and targets {shapes} need equally many rows, and {penalty=} must be positive")
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    gram = (x - x_mean).T @ (x - x_mean)
    scale = gram.diagonal().mean()  # 0 where all inputs are equal: then the weight is 0
    gram.diagonal().add_(penalty * torch.where(scale > 0, scale, 1))
    weight = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean)).T
    return weight.float(), (y_mean - weight @ x_mean).float()
