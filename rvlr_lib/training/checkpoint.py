"""Checkpoints: a training's state in a safetensors file with its SHA-256, in a folder renamed once complete."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.disk import atomic_path, load_tensors, save_tensors, sha256, write_text

KEPT = 2  # newest checkpoints
STATE, DIGEST, NESTED = "state.safetensors", "sha256", "json"


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-<step>`` completely or not at all; remove all others but the one before.

    ``state`` nests dictionaries and lists of tensors and JSON values. If a tensor is not finite (FloatingPointError) or
    the disk is full (OSError), nothing changes.
    """
    tensors: dict[str, Tensor] = {}

    def store(value: Tensor) -> dict[str, str]:
        if value.is_floating_point() and not value.isfinite().all():
            raise FloatingPointError(f"a tensor of shape {list(value.shape)} is not finite: no checkpoint is written")
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}

    nested = json.dumps(state, default=store, allow_nan=False).encode()
    path = folder / f"step-{step:06d}"
    with atomic_path(path, folder=True) as temporary:
        save_tensors(temporary / STATE, tensors | {NESTED: torch.frombuffer(bytearray(nested), dtype=torch.uint8)})
        write_text(temporary / DIGEST, sha256(temporary / STATE) + "\n")
    checkpoints = checkpoints_in(folder)
    end = checkpoints.index(path) + 1  # later ones are from before the training fell back
    for outdated in [*checkpoints[: max(0, end - KEPT)], *checkpoints[end:], *folder.glob(".step-*")]:
        shutil.rmtree(outdated, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read the state that :func:`write_checkpoint` stored; ValueError names a file that is missing or was changed."""
    file = path / STATE
    try:
        expected, actual = (path / DIGEST).read_text(encoding="utf-8").strip(), sha256(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if actual != expected:
        raise ValueError(f"{file} is damaged: its SHA-256 is not that of {path / DIGEST}")
    tensors = load_tensors(file)

    def restore(item: dict[str, Any]) -> Any:
        if item.keys() == {"tensor"}:
            return tensors[item["tensor"]]
        return {int(key) if key.isdigit() else key: value for key, value in item.items()}  # JSON keys are text

    return json.loads(tensors.pop(NESTED).numpy().tobytes(), object_hook=restore)


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder by step, the newest last."""
    steps = {path: path.name.removeprefix("step-") for path in folder.glob("step-*")}
    return sorted((path for path in steps if steps[path].isdigit()), key=lambda path: int(steps[path]))


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
