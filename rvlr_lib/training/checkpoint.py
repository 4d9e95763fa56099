"""Checkpoints: the state of a training in one safetensors file with its SHA-256, in a folder renamed when whole."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.disk import load_tensors, save_tensors, sha256, whole_file, write_text

KEPT = 2  # newest checkpoints that stay
STATE, SUM, REST = "state.safetensors", "sha256", "json"


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` whole or not at all; this one and the one before stay.

    ``state`` nests dictionaries and lists of tensors and of what JSON can hold. Nothing is written where a tensor is
    not finite (FloatingPointError), and what was there stays where the disk is full (OSError).
    """
    tensors: dict[str, Tensor] = {}

    def keep(value: Tensor) -> dict[str, str]:
        if value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"a tensor of shape {list(value.shape)} is not finite: no checkpoint is written")
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}

    rest = json.dumps(state, default=keep, allow_nan=False).encode()
    path = folder / f"step-{step:06d}"
    with whole_file(path, folder=True) as temporary:
        save_tensors(temporary / STATE, tensors | {REST: torch.frombuffer(bytearray(rest), dtype=torch.uint8)})
        write_text(temporary / SUM, sha256(temporary / STATE) + "\n")
    known = checkpoints_in(folder)
    place = known.index(path) + 1  # later ones are of a training that fell back
    for other in [*known[: max(0, place - KEPT)], *known[place:], *folder.glob(".step-*")]:
        shutil.rmtree(other, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What :func:`write_checkpoint` was given; ValueError names a file that is missing or was changed."""
    file = path / STATE
    try:
        wanted, found = (path / SUM).read_text(encoding="utf-8").strip(), sha256(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if found != wanted:
        raise ValueError(f"{file} is damaged: its SHA-256 is not that of {path / SUM}")
    tensors = load_tensors(file)

    def joined(item: dict[str, Any]) -> Any:
        if item.keys() == {"tensor"}:
            return tensors[item["tensor"]]
        return {int(key) if key.isdigit() else key: value for key, value in item.items()}  # JSON's keys are text

    return json.loads(tensors.pop(REST).numpy().tobytes(), object_hook=joined)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest last."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def last_checkpoint(folder: Path) -> tuple[str, dict[str, Any]] | None:
    """Name and state of the newest checkpoint that is whole, saying what it passes over; None where there is none.

    ValueError where there are some, and all are damaged.
    """
    trouble: list[str] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            state = read_checkpoint(path)
        except ValueError as error:
            trouble.append(str(error))
        else:
            if trouble:
                print(f"{'; '.join(trouble)}: going on from {path.name}")
            return path.name, state
    if trouble:
        told = f"no checkpoint of {folder} is whole: --resume no starts this training anew"
        raise ValueError("; ".join([*trouble, told]))
    return None
