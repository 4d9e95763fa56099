"""Weights and features on disk: safetensors, written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to a temporary file beside ``path`` and rename it, so that ``path`` is never half a file.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: remove its folder and run again to make it anew")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder and run again") from error


def load_weights(module: torch.nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict, naming what does not fit.

    Raises:
        ValueError: keys or shapes of another architecture.
    """
    try:
        module.load_state_dict(dict(tensors))
    except RuntimeError as error:
        raise ValueError(f"{where} holds weights of another architecture: {error}") from error
