"""Input validation shared by all losses."""

from functools import reduce

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.similarity import as_tensor


def feature_rows(*, same_width: bool = False, minimum: int = 2, **features) -> tuple[list[Tensor], torch.dtype]:
    """Features as matrices ``[B, D]`` of one dtype and the dtype of the loss; half precision is computed in float32.

    Raises:
        ValueError: no matrices of one ``B >= minimum`` (and one ``D``) on one device; shapes are named.
    """
    values = {name: as_tensor(name, value) for name, value in features.items()}
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in values.items())
    if any(value.ndim != 2 or not value.shape[1] for value in values.values()):
        raise ValueError(f"expected matrices [B, D], got {shapes}")
    if len({len(value) for value in values.values()}) > 1:
        raise ValueError(f"the numbers of rows differ: {shapes}")
    if same_width and len({value.shape[1] for value in values.values()}) > 1:
        raise ValueError(f"the widths differ: {shapes}")
    if len(next(iter(values.values()))) < minimum:
        raise ValueError(f"at least {minimum} rows are needed, got {shapes}")
    if len({value.device for value in values.values()}) > 1:
        raise ValueError("features on different devices: " + ", ".join(f"{n} {v.device}" for n, v in values.items()))
    dtype = reduce(torch.promote_types, (value.dtype for value in values.values()))
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return [value.to(torch.promote_types(dtype, torch.float32)) for value in values.values()], dtype


def number(name: str, value) -> float | Tensor:
    """A real number as a float, a 0-d tensor as it is; ValueError for anything else."""
    if isinstance(value, Tensor):
        if value.ndim:
            raise ValueError(f"{name} must be a number or a 0-d tensor, got shape {tuple(value.shape)}")
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or a 0-d tensor, got {value!r}") from None


def nonzero_temperature(value) -> float | Tensor:
    """A temperature as :func:`number`; ValueError for zero, as losses divide by it."""
    temperature = number("temperature", value)
    if temperature == 0:
        raise ValueError("temperature must not be zero")
    return temperature


def same_image(image_ids, rows: int, device: torch.device) -> Tensor:
    """Bool ``[B, B]``: do two rows show one image? Without ids (numbers or strings) every row is its own image."""
    if image_ids is None:
        return torch.eye(rows, dtype=torch.bool, device=device)
    shape = tuple(image_ids.shape if isinstance(image_ids, Tensor) else np.shape(image_ids))
    if shape != (rows,):
        raise ValueError(f"image_ids has shape {shape}, expected {(rows,)}")
    if not isinstance(image_ids, Tensor):
        image_ids = torch.from_numpy(np.unique(np.asarray(image_ids), return_inverse=True)[1])
    ids = image_ids.to(device)
    return ids[:, None] == ids
