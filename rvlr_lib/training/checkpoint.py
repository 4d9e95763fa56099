"""Weights, features and checkpoints on disk: safetensors, written whole or not at all, hashed, checked when read."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

KEPT = 2  # newest checkpoints that stay
MANIFEST = "manifest.json"
NEEDED = {"weights.safetensors", "resume.safetensors", "resume.json", "log.jsonl"}


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write named tensors to a temporary file beside ``path`` and rename it, so that ``path`` is never half a file.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    try:
        _write_tensors(Path(temporary), tensors, path)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read what :func:`save_tensors` wrote; beside a manifest, after comparing it with its SHA-256.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: remove its folder and run again to make it anew")
    manifest = path.parent / MANIFEST
    try:
        if manifest.is_file() and _sha256(path) != json.loads(manifest.read_text()).get(path.name):
            raise ValueError(f"{path} is damaged (its SHA-256 is not that of {MANIFEST}): remove its folder and run "
                             "again")  # fmt: skip
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


@dataclass(frozen=True)
class Checkpoint:
    """A training at the end of a step.

    Attributes:
        tensors: file name without ending -> named tensors: ``weights``, ``resume`` (moments and random states), and
            ``best`` where an epoch was validated.
        record: everything else, as JSON holds it.
        log: the lines of the training's log so far.
    """

    tensors: dict[str, dict[str, Tensor]]
    record: dict[str, Any]
    log: str = ""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step-<step>`` whole or not at all, and remove all but the newest two.

    Everything goes to a temporary folder beside it, reaches the disk, gets a manifest of SHA-256 sums, and is renamed.

    Args:
        folder: of all checkpoints of one training.
        checkpoint: its record has ``step``.

    Returns:
        The new folder.

    Raises:
        FloatingPointError: a tensor is not finite; nothing is written.
        OSError: the folder cannot be written, or the disk is full; what was there stays.
    """
    for name, tensors in checkpoint.tensors.items():
        _check_finite(tensors, name)
    path = folder / f"step-{checkpoint.record['step']:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=f".{path.name}-"))
    try:
        for name, tensors in checkpoint.tensors.items():
            _write_tensors(temporary / f"{name}.safetensors", tensors, path)
        (temporary / "resume.json").write_text(json.dumps(checkpoint.record, indent=1, allow_nan=False) + "\n")
        (temporary / "log.jsonl").write_text(checkpoint.log)
        write_manifest(temporary)
        if path.exists():  # a second timeline from an older checkpoint
            shutil.rmtree(path)
        os.replace(temporary, path)
        _flush(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for other in [*checkpoints_in(folder)[:-KEPT], *folder.glob(".step-*")]:
        shutil.rmtree(other, ignore_errors=True)
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint after comparing every file with its SHA-256.

    Raises:
        ValueError: a file is missing, was changed, or holds a number that is not finite; names it.
    """
    _verify(path)
    files = sorted(path.glob("*.safetensors"))
    tensors = {file.stem: load_file(file) for file in files}
    for file in files:
        try:
            _check_finite(tensors[file.stem], str(file))
        except FloatingPointError as error:
            raise ValueError(str(error)) from error
    return Checkpoint(tensors, json.loads((path / "resume.json").read_text()), (path / "log.jsonl").read_text())


def checkpoints_in(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the newest last."""
    found = [path for path in folder.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def find_checkpoint(folder: Path, wanted: str) -> Checkpoint | None:
    """The checkpoint to go on from; those after it are removed, as another future begins.

    Args:
        folder: of all checkpoints of one training.
        wanted: ``last`` (None where there is none at all), a name such as ``step-000120``, or ``no``: None, and all are
            removed.

    Raises:
        ValueError: it is not there, or it is damaged: says which is whole.
    """
    there = checkpoints_in(folder)
    names = [path.name for path in there]
    if wanted == "no":
        shutil.rmtree(folder, ignore_errors=True)
        return None
    if wanted == "last" and not there:
        return None
    if wanted != "last" and wanted not in names:
        raise ValueError(f"{folder} holds no checkpoint {wanted!r}: there are {', '.join(names) or 'none'}")
    place = len(there) - 1 if wanted == "last" else names.index(wanted)
    try:
        found = read_checkpoint(there[place])
    except ValueError as error:
        whole = [path.name for path in there[:place] if _is_whole(path)]
        way = f"{whole[-1]} is whole: --resume {whole[-1]} goes on from it" if whole else "none before it is whole: " \
              "--resume no starts this training anew"  # fmt: skip
        raise ValueError(f"{error}. The checkpoint {there[place].name} is of no use; {way}") from error
    for path in there[place + 1 :]:
        shutil.rmtree(path, ignore_errors=True)  # another process may be at it
    return found


def _write_tensors(path: Path, tensors: Mapping[str, Tensor], told: Path) -> None:
    """Write and flush a file; safetensors has an error class of its own for a disk that is full."""
    try:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)
        _flush(path)
    except SafetensorError as error:
        raise OSError(f"{told} could not be written: {error}") from error


def write_manifest(folder: Path, names: Sequence[str] | None = None) -> None:
    """Write the SHA-256 sums of a folder's files, all of them or those of these names, once they are on the disk."""
    sums = {}
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        if names is None or path.name in names:
            _flush(path)
            sums[path.name] = _sha256(path)
    (folder / MANIFEST).write_text(json.dumps(sums, indent=1) + "\n")
    _flush(folder / MANIFEST)
    _flush(folder)


def _verify(folder: Path) -> None:
    """Compare all files with the manifest."""
    try:
        sums = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / MANIFEST} cannot be read ({error})") from error
    if not isinstance(sums, dict) or not sums.keys() >= NEEDED:
        raise ValueError(f"{folder / MANIFEST} is damaged: it does not name {', '.join(sorted(NEEDED))}")
    for name, wanted in sums.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing")
        if _sha256(folder / name) != wanted:
            raise ValueError(f"{folder / name} is damaged: its SHA-256 is not that of the manifest")


def _is_whole(folder: Path) -> bool:
    try:
        _verify(folder)
    except ValueError:
        return False
    return True


def _check_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise FloatingPointError(f"{where}: {name} is not finite")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
