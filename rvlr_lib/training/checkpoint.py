"""Checkpoints: the state of a training in one safetensors file with one SHA-256, in a folder renamed when whole."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.disk import load_tensors, save_tensors, sha256, whole_folder, write_text

KEPT = 2  # newest checkpoints that stay
STATE, SUM, REST = "state.safetensors", "sha256", "json"


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` whole or not at all; the one before it stays, all others go.

    Args:
        folder: of all checkpoints of one training.
        step: of the training.
        state: nested dictionaries and lists of tensors and of what JSON can hold; integer keys come back as text.

    Raises:
        FloatingPointError: a tensor is not finite; nothing is written.
        OSError: the folder cannot be written, or the disk is full; what was there stays.
    """
    tensors: dict[str, Tensor] = {}
    rest = json.dumps(_split(state, "", tensors), allow_nan=False).encode()
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(f"{name} is not finite: no checkpoint is written")
    path = folder / f"step-{step:06d}"
    with whole_folder(path) as temporary:
        save_tensors(temporary / STATE, tensors | {REST: torch.frombuffer(bytearray(rest), dtype=torch.uint8)})
        write_text(temporary / SUM, sha256(temporary / STATE) + "\n")
    there = checkpoints_in(folder)
    newest = there.index(path) + 1  # those after it are of a training that was given up
    for other in [*there[newest:], *there[: max(0, newest - KEPT)], *folder.glob(".step-*")]:
        shutil.rmtree(other, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`write_checkpoint` was given.

    Raises:
        ValueError: a file is missing or was changed; names it.
    """
    file = path / STATE
    try:
        wanted, found = (path / SUM).read_text(encoding="utf-8").strip(), sha256(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if found != wanted:
        raise ValueError(f"{file} is damaged: its SHA-256 is not that of {path / SUM}")
    tensors = load_tensors(file)
    return _joined(json.loads(tensors.pop(REST).numpy().tobytes()), tensors)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest last."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def last_checkpoint(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and state of the newest checkpoint that is whole; None where there is none at all. Says what it passes over.

    Raises:
        ValueError: there are checkpoints, and all are damaged.
    """
    trouble = []
    for path in reversed(checkpoints_in(folder)):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            trouble.append(str(error))
            continue
        if trouble:
            print(f"{'; '.join(trouble)}: going on from {path.name}")
        return path.name, state
    if trouble:
        raise ValueError(
            f"{'; '.join(trouble)}; no checkpoint of {folder} is whole: --resume no starts this training anew"
        )
    return None


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """A nested value with each tensor replaced by ``{"tensor": its path}``; the tensors go to ``tensors``."""
    if isinstance(value, Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {str(key): _split(item, f"{name}/{key}".lstrip("/"), tensors) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_split(item, f"{name}/{place}", tensors) for place, item in enumerate(value)]
    return value


def _joined(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensors[value["tensor"]]
        return {key: _joined(item, tensors) for key, item in value.items()}
    return [_joined(item, tensors) for item in value] if isinstance(value, list) else value
