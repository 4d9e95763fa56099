"""What every loss refuses, in one place."""

import torch
from torch import Tensor


def check_rows(*, same_width: bool = False, minimum: int = 2, **features: Tensor) -> None:
    """Refuse features that are no ``[B, D]`` matrices of one ``B >= minimum`` (and one ``D``), naming the shapes."""
    shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in features.items())
    if any(value.ndim != 2 for value in features.values()):
        raise ValueError(f"expected matrices [B, D], got {shapes}")
    if len({len(value) for value in features.values()}) > 1:
        raise ValueError(f"the numbers of rows differ: {shapes}")
    if same_width and len({value.shape[1] for value in features.values()}) > 1:
        raise ValueError(f"the widths differ: {shapes}")
    if len(next(iter(features.values()))) < minimum:
        raise ValueError(f"at least {minimum} rows are needed, got {shapes}")


def check_temperature(temperature: float | Tensor) -> None:
    """Refuse a temperature of zero (a division by it) or one that is no single number."""
    if isinstance(temperature, Tensor) and temperature.ndim:
        raise ValueError(f"temperature must be a number or a 0-d tensor, got shape {tuple(temperature.shape)}")
    if temperature == 0:
        raise ValueError("temperature must not be zero")


def same_image(image_ids, rows: int, device: torch.device) -> Tensor:
    """Bool ``[B, B]``: do two rows show one image? Without ids every row is its own image."""
    if image_ids is None:
        return torch.eye(rows, dtype=torch.bool, device=device)
    ids = torch.as_tensor(image_ids, device=device)
    if ids.shape != (rows,):
        raise ValueError(f"image_ids has shape {tuple(ids.shape)}, expected {(rows,)}")
    return ids[:, None] == ids
