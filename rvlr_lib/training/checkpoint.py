"""Checkpoints: a training's state behind its SHA-256, in a file renamed once complete."""

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rvlr_lib.disk import atomic_path

KEPT = 2  # newest checkpoints


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Write ``folder/step-<step>.pt`` completely or not at all; remove all but the newest two.

    ``state`` nests dictionaries and lists of tensors and plain values. If a tensor is not finite (FloatingPointError)
    or the disk is full (OSError), nothing changes.
    """
    for value in tree_leaves(state):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"a tensor of shape {list(value.shape)} is not finite: no checkpoint is written")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    with atomic_path(folder / f"step-{step:08d}.pt") as temporary, temporary.open("wb") as file:
        file.write(hashlib.sha256(buffer.getbuffer()).digest())
        file.write(buffer.getbuffer())
    for outdated in [*checkpoints_in(folder)[:-KEPT], *folder.glob(".step-*")]:
        outdated.unlink()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state that :func:`write_checkpoint` stored; ValueError names a file that was changed."""
    with path.open("rb") as file:
        expected, content = file.read(32), file.read()
    if hashlib.sha256(content).digest() != expected:
        raise ValueError(f"{path} is damaged: its content does not have the SHA-256 that it begins with")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder by step, the newest last."""
    return sorted(folder.glob("step-*.pt"))


def last_checkpoint(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and state of the newest intact checkpoint, or None without checkpoints; damaged ones skipped are printed.

    ValueError if all are damaged.
    """
    faults: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            faults.append(str(error))
        else:
            if faults:
                print(f"{'; '.join(faults)}: resuming from {path.name}")
            return path.name, state
    if faults:
        faults.append(f"all checkpoints of {folder} are damaged: --resume no starts this training over")
        raise ValueError("; ".join(faults))
    return None
