"""Files written whole or not at all: text, JSON and tensors, with the umask's modes and UTF-8 everywhere."""

import fcntl
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` to write to; flushed and renamed to ``path`` when the block ends well.

    Raises:
        OSError: the folder cannot be written, or the disk is full; what was at ``path`` stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp's files are private
        flush(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: filled beside ``path`` and renamed; what was at ``path`` is replaced."""
    import shutil

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
        flush(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def own_folder(
    folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False, file: str = "made_by.json"
) -> Iterator[dict[str, Any]]:
    """Hold an output folder while it is written: no other process may, and nothing of other settings is replaced.

    Args:
        folder: made where it is missing.
        identity: what decides the content; kept in ``file`` of the folder, among keys of the caller's own.
        overwrite: take the folder over from other settings; removing what they left is the caller's work.
        file: the JSON file that says whose the folder is.

    Yields:
        What the file held before; empty for a new folder.

    Raises:
        ValueError: another process writes there, the folder holds other things, or belongs to other settings, which
            the message lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, record = os.open(folder, os.O_RDONLY), folder / file
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing into {folder}: wait for it, or choose another one") from None
        earlier = read_json(record) if record.is_file() else {}
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if others and not record.is_file():
            raise ValueError(f"{folder} holds other things ({', '.join(others[:3])}): choose an empty folder")
        wanted = plain(identity)
        changes = _changes({key: earlier.get(key) for key in wanted}, wanted) if earlier else []
        if changes and not overwrite:
            way_out = "choose another folder with --out, or replace it with --overwrite"
            raise ValueError("\n  ".join([f"{folder} belongs to other settings:", *changes[:10], way_out]))
        write_json(record, (earlier if not changes else {}) | wanted)
        yield earlier
    finally:
        os.close(handle)  # which also unlocks


def _changes(old: Any, new: Any, at: str = "") -> list[str]:
    """What differs between two nested values, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [line for key in keys for line in _changes(old.get(key), new.get(key), f"{at}{', ' if at else ''}{key}")]
    return [] if old == new else [f"{at} was {old}, is {new}"]


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; NaN and infinities become null, as JSON has none."""
    write_text(path, json.dumps(plain(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ValueError: the file is missing or damaged; names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run again") from error


def plain(value: Any) -> Any:
    """Nested values as JSON can hold them.

    >>> plain({"a": (1, float("nan")), "b": Path("x")})
    {'a': [1, None], 'b': 'x'}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write named tensors as safetensors, whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # a full disk has an error class of its own here
            raise OSError(f"{path} could not be written: {error}") from error


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read what :func:`save_tensors` wrote.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: the file is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: remove its folder and run again to make it anew")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder and run again") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
