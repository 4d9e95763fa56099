"""Files read, and written whole or not at all: text, JSON, YAML and tensors, with the umask's modes and UTF-8."""

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import yaml

if TYPE_CHECKING:
    from torch import Tensor


@contextmanager
def whole_file(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary file or ``folder`` beside ``path`` to fill; flushed, and put at ``path`` when the block ends well."""
    path = path.resolve() if folder else path  # of a link the folder itself
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir() if folder else temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode  # some writers put a private file in its place
        yield temporary
        temporary.chmod(mode)
        flush(temporary)
        if folder and path.exists():
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if folder and old.exists():
                os.replace(old, path)
            raise
        if folder:
            flush(path.parent)
            shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True) if folder else temporary.unlink(missing_ok=True)


@contextmanager
def own_folder(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    overwrite: bool = False,
    owned: Callable[[dict[str, Any]], Iterable[str]],
    file: str = "made_by.json",
) -> Iterator[dict[str, Any]]:
    """Hold an output folder while it is written: no other process may, and nothing of other settings is replaced.

    ``identity`` decides the content and is kept in ``file``, among keys of the caller's own. ``overwrite`` removes what
    stands there by the names that ``owned`` tells of what ``file`` held, and nothing else. Yields what ``file`` held
    before; a new folder is free again if the block fails before it writes. A ValueError: another process is there,
    other things or settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder")
    new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle, record, others = os.open(folder, os.O_RDONLY), folder / file, [file]
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
        if overwrite:
            _remove(folder, [*owned(earlier)])
            earlier = {}
        write_json(record, earlier | wanted)
        yield earlier
    except BaseException:
        if others == [] and list(folder.iterdir()) == [record]:  # the mended command has other settings
            record.unlink()
            if new:
                folder.rmdir()
        raise
    finally:
        os.close(handle)  # which also unlocks


def _remove(folder: Path, names: list[str]) -> None:
    """Remove what stands directly in a folder by these names; of a link the link alone."""
    if outside := elsewhere(names):
        raise ValueError(f"{folder} is to hold {outside[0]!r}, which lies elsewhere: choose another folder")
    for place in (folder / name for name in names):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink(missing_ok=True)


def elsewhere(names: Iterable[str]) -> list[str]:
    """Those that are no name of a file or folder directly in another.

    >>> elsewhere(["birds", "..", "a/b", ""])
    ['..', 'a/b', '']
    """
    return [name for name in names if name in ("", ".", "..") or Path(name).name != name]


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


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of pairs; a ValueError names a key that stands twice, of which readers else keep the last."""
    if len(values := dict(pairs)) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} stands twice in one place: keep one of them")
    return values


class UniqueKeys(yaml.SafeLoader):
    """Reads YAML with the safe types alone; a ValueError names a key that stands twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:  # noqa: D102
        node = super().compose_mapping_node(anchor)
        unique([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings by name from a YAML file; a ValueError names a file that holds something else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected settings by name")
    return values


def read_json(path: Path) -> Any:
    """Read JSON; a ValueError names the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run again") from error


def plain(value: Any) -> Any:
    """Nested values as JSON can hold them.

    >>> plain({"a": (1, float("nan")), "b": Path("x")})
    {'a': [1, None], 'b': 'x'}
    """

    def convert(item: Any) -> Any:
        if isinstance(item, Mapping):
            return dict(item)
        return item.tolist() if hasattr(item, "tolist") else os.fspath(item)

    return json.loads(json.dumps(value, default=convert), parse_constant=lambda _: None)


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write named tensors as safetensors, whole or not at all; an OSError where the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # a full disk has an error class of its own here
            raise OSError(f"{path} could not be written: {error}") from error


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read what :func:`save_tensors` wrote; FileNotFoundError, or ValueError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: remove its folder and run again to make it anew")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder and run again") from error
