"""Input validation shared by all losses."""

from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.similarity import as_tensor


def feature_rows(*, same_width: bool = True, minimum: int = 2, **features: Any) -> tuple[list[Tensor], torch.dtype]:
    """Convert to ``[B, D]`` in one dtype of 32 bits or more, else ValueError; also return the dtype of the loss."""
    tensors = {name: as_tensor(name, value) for name, value in features.items()}
    first = next(iter(tensors.values()))
    valid = all(x.ndim == 2 and x.shape[1] and len(first) == len(x) >= minimum for x in tensors.values())
    devices = {str(x.device) for x in tensors.values()}
    if not valid or len(devices) > 1 or (same_width and len({x.shape for x in tensors.values()}) > 1):
        width = " and one D" if same_width else ""
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in tensors.items()) + f" on {', '.join(devices)}"
        raise ValueError(f"expected matrices [B, D] of one B >= {minimum}{width} on one device, got {shapes}")
    dtype = reduce(torch.promote_types, (x.dtype for x in tensors.values()))
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    return [x.to(torch.promote_types(dtype, torch.float32)) for x in tensors.values()], dtype


def readable(value: Any) -> bool:
    """Whether a value can be checked without waiting for a device; on GPUs and in compiled code, values are not."""
    return not isinstance(value, Tensor) or (value.device.type == "cpu" and not torch.compiler.is_compiling())


def number(name: str, value: Any, like: Tensor, *, nonzero: bool = True) -> Any:
    """Convert to a float, or a 0-d tensor in the dtype of ``like``; ValueError for anything else, and for zero."""
    if isinstance(value, Tensor) and (value.ndim or value.is_complex()):
        raise ValueError(f"{name} must be a real number or a 0-d tensor, got {value.dtype} {tuple(value.shape)}")
    try:
        value = value if isinstance(value, Tensor) else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be a number or a 0-d tensor, got {value!r}") from None
    if nonzero and readable(value) and value == 0:
        raise ValueError(f"{name} must not be zero")
    return value.to(like.dtype) if isinstance(value, Tensor) else value


def same_image(image_ids: Any, rows: int, device: torch.device) -> Tensor:
    """Bool ``[B, B]``: which rows share an id (numbers or strings, else ValueError); None: each row only its own."""
    if image_ids is None:
        return torch.eye(rows, dtype=torch.bool, device=device)
    if np.shape(image_ids) != (rows,):
        raise ValueError(f"image_ids has shape {tuple(np.shape(image_ids))}, expected {(rows,)}")
    if not isinstance(image_ids, Tensor):
        try:
            missing = any(each != each for each in image_ids)
            image_ids = torch.from_numpy(np.unique(np.asarray(image_ids), return_inverse=True)[1])
        except TypeError:
            raise ValueError("image_ids must be numbers or strings, all of one kind") from None
    else:
        missing = readable(image_ids) and bool(image_ids.isnan().any())
    if missing:
        raise ValueError("image_ids hold NaN: give every row the number or name of its image")
    ids = image_ids.to(device)
    return ids[:, None] == ids
