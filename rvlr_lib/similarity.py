"""Unit rows, cosine matrices and linear maps, and the input checks that losses and metrics share."""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def as_tensor(name: str, value: Any, device: torch.device | None = None) -> Tensor:
    """Convert a tensor, array or nested list of numbers to a tensor; ValueError with ``name`` for anything else."""
    if not isinstance(value, Tensor):
        try:
            array = np.asarray(value)
        except (ValueError, TypeError, RuntimeError) as error:  # ragged lists, tensors on a GPU
            raise ValueError(f"{name} is not an array of numbers: {error}") from None
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{name} must hold numbers, got {type(value).__name__} of {array.dtype}")
        native = f"{array.dtype.kind}{min(array.dtype.itemsize, 8)}"  # in native byte order, no long double
        value = torch.from_numpy(np.require(array, native, ["C", "W"]))  # torch warns of read-only arrays
    if value.dtype in (torch.uint16, torch.uint32, torch.uint64):  # few operations of torch support these
        value = value.to(torch.float64 if value.dtype == torch.uint64 else torch.int64)
    narrow_float = value.is_floating_point() and value.dtype.itemsize < 2  # 8 bits or fewer
    if value.is_complex() or value.is_quantized or narrow_float or value.layout != torch.strided:
        raise ValueError(f"{name} must hold dense real numbers of 16 bits or more, got {value.dtype}, {value.layout}")
    return value if device is None else value.to(device)


def finite_rows(name: str, value: Any) -> Tensor:
    """Convert to finite floating-point rows ``[N, D]``; ValueError with ``name`` for anything else."""
    rows = as_tensor(name, value)
    rows = rows if rows.is_floating_point() else rows.float()
    if rows.ndim != 2 or not rows.numel() or rows.is_meta:
        raise ValueError(f"{name} must be rows [N, D] with at least one, got {tuple(rows.shape)} of {rows.type()}")
    if not rows.isfinite().all():
        faulty = (~rows.isfinite()).any(dim=1).nonzero().flatten()
        raise ValueError(f"{name} {tuple(rows.shape)}: {len(faulty)} rows are not finite, row {faulty[0]} first")
    return rows


def row_numbers(name: str, value: Any, count: int, rows: int, device: torch.device | None = None) -> Tensor:
    """Convert to ``[count]`` int64 row numbers 0 to ``rows − 1``; ValueError for any other shape, type or number."""
    value = as_tensor(name, value, device)
    if value.shape != (count,) or value.dtype == torch.bool:
        raise ValueError(f"{name} has shape {tuple(value.shape)} of {value.dtype}, expected row numbers {(count,)}")
    exact = value.double()  # a uint8 tensor cannot be compared with 256 or more
    wrong = (exact < 0) | (exact >= rows) | (exact % 1 != 0)
    if wrong.any():
        raise ValueError(f"{name} must be whole row numbers 0 to {rows - 1}, got {value[wrong][:5].tolist()}")
    return value.long()


def full_precision(values: Tensor) -> Tensor:
    """Promote to at least float32: half precision rounds, and ties, too much for losses and rankings."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit_rows(features: Tensor) -> Tensor:
    """Scale rows ``[..., D]`` to length 1, even from 1e-30 or 1e30; a zero row stays zero, with a finite gradient.

    Rows of ordinary length equal those of ``torch.nn.functional.normalize`` bit for bit: any difference would reorder
    near-ties of the official numbers.
    """
    # dividing by a power of two is exact; then no square overflows, and every length is at least 1, or 0
    largest = features.detach().abs().amax(dim=-1, keepdim=True)  # vector_norm is about 20 times as slow on a CPU
    power = largest / (2 * torch.frexp(full_precision(largest)).mantissa)
    scaled = features / power.masked_fill(largest == 0, 1).to(features)
    return scaled / torch.linalg.vector_norm(scaled, dim=-1, keepdim=True).clamp_min(0.5)


def cosine_matrix(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Cosines ``[N, M]`` of every row of ``a [N, D]`` with every row of ``b [M, D]`` (default: ``a``)."""
    a = unit_rows(a)
    return a @ (a if b is None else unit_rows(b)).T


def off_diagonal(matrix: Tensor) -> Tensor:
    """Entries ``j != i`` of each row of a square matrix ``[B, B]``, in order, as ``[B, B - 1]``."""
    rows = len(matrix)  # without the first entry, every (B + 1)-th remaining entry is on the diagonal
    return matrix.reshape(-1)[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def principal_directions(features: Tensor, width: int) -> Tensor:
    """Leading right singular vectors ``[W, width]`` of the unit rows of ``features [N, W]``, not centred.

    Projecting onto them changes the cosines least. ValueError for a ``width`` above ``W``.
    """
    if width > features.shape[1]:
        raise ValueError(f"features of width {features.shape[1]} have no {width} directions: reduce model.width")
    rows = unit_rows(features.double())
    vectors = torch.linalg.eigh(rows.T @ rows).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(dim=0, keepdim=True))
    return (vectors * largest.sign()).float()  # the largest entry of each vector is positive


def ridge_map(inputs: Tensor, targets: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Ridge regression with intercept, ``[N, W]`` to ``[N, D]``: weight ``[D, W]`` and bias ``[D]`` for ``nn.Linear``.

    The penalty on the squared weights is in units of the mean diagonal entry of the centred inputs' Gram matrix.
    """
    x, y = inputs.double(), targets.double()
    x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
    gram = (x - x_mean).T @ (x - x_mean)
    scale = gram.diagonal().mean()  # 0 if all inputs are equal: then the weight is 0
    gram.diagonal().add_(penalty * torch.where(scale > 0, scale, 1))
    weight = torch.linalg.solve(gram, (x - x_mean).T @ (y - y_mean)).T
    return weight.float(), (y_mean - weight @ x_mean).float()
