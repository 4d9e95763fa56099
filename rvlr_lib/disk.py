"""Read files and write them atomically: text, JSON, YAML and tensors, in UTF-8 and with the umask's modes."""

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
def atomic_path(path: Path, *, folder: bool = False) -> Iterator[Path]:
    """A temporary file or ``folder`` next to ``path`` to fill; flushed and moved to ``path`` if the block succeeds."""
    path = path.resolve() if folder else path  # for a link, the folder that it points to
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid4().hex[:8]}")
    old = temporary.with_name(f"{temporary.name}-old")
    try:
        temporary.mkdir() if folder else temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode  # some writers replace it by a private file
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
def claimed_folder(
    folder: Path,
    identity: Mapping[str, Any],
    *,
    overwrite: bool = False,
    owned: Callable[[dict[str, Any]], Iterable[str]],
    file: str = "made_by.json",
) -> Iterator[dict[str, Any]]:
    """Lock an output folder while it is written, and refuse to replace what other settings produced.

    ``identity`` determines the content and is stored in ``file``, next to keys of the caller. ``overwrite``
    replaces ``file`` and removes only the entries that ``owned`` names, given its content, but keeps both if the block
    fails before it writes; a new folder is then removed. Yields the earlier content of ``file`` that is kept.
    ValueError: another process holds the folder, or it contains other files or the output of other settings.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: choose a folder")
    new, aside, replaced = not folder.exists(), folder / ".replaced", dict[Path, Path]()
    folder.mkdir(parents=True, exist_ok=True)
    handle, record, entries = os.open(folder, os.O_RDONLY), folder / file, [file]
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is writing into {folder}: wait for it, or choose another one") from None
        earlier = read_json(record) if record.is_file() else {}
        entries = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
        if entries and not record.is_file():
            raise ValueError(f"{folder} contains other files ({', '.join(entries[:3])}): choose an empty folder")
        current = to_json_types(identity)
        changes = _changes({key: earlier.get(key) for key in current}, current) if earlier else []
        if changes and not overwrite:
            way_out = "choose another folder with --out, or replace it with --overwrite"
            raise ValueError("\n  ".join([f"{folder} belongs to other settings:", *changes[:10], way_out]))
        kept = {} if overwrite else earlier
        if overwrite and entries:
            if outside := unsafe_names(names := [*owned(earlier)]):
                raise ValueError(f"{folder} claims {outside[0]!r}, which lies elsewhere: choose another folder")
            shutil.rmtree(aside, ignore_errors=True)  # of a killed process
            aside.mkdir()
            for path in (folder / name for name in names if os.path.lexists(folder / name)):
                replaced[path] = path.rename(aside / path.name)
        write_json(record, kept | current)
        yield kept
    except BaseException:
        present = {path.name for path in folder.glob("[!.]*")}
        if replaced and present == {*entries} - {path.name for path in replaced}:  # nothing new has been written
            for path, old in replaced.items():
                old.rename(path)
            write_json(record, earlier)
        if entries == [] and list(folder.iterdir()) == [record]:  # the corrected command will have other settings
            record.unlink()
            if new:
                folder.rmdir()
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        os.close(handle)  # which also unlocks


def unsafe_names(names: Iterable[str]) -> list[str]:
    """The names that cannot be an entry directly in a folder.

    >>> unsafe_names(["birds", "..", "a/b", ""])
    ['..', 'a/b', '']
    """
    return [name for name in names if name in ("", ".", "..") or Path(name).name != name]


def _changes(old: Any, new: Any, at: str = "") -> list[str]:
    """The differences between two nested values, one line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = f"{at}, " if at else ""
        return [line for key in {**old, **new} for line in _changes(old.get(key), new.get(key), f"{prefix}{key}")]
    return [] if old == new else [f"{at} was {old}, is {new}"]


def flush(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities, which JSON lacks, become null."""
    write_text(path, json.dumps(to_json_types(value), indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of pairs; ValueError names a repeated key, of which parsers would silently keep the last."""
    if len(values := dict(pairs)) < len(pairs):
        repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {repeated!r} appears twice in one place: keep one of them")
    return values


class UniqueKeys(yaml.SafeLoader):
    """A safe YAML loader that raises a ValueError for a repeated key."""

    def compose_mapping_node(self, anchor: Any) -> Any:  # noqa: D102
        node = super().compose_mapping_node(anchor)
        unique_keys([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return node


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; ValueError names a file that holds anything else."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), UniqueKeys) or {}
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds {type(values).__name__}, expected settings by name")
    return values


def read_json(path: Path) -> Any:
    """Read JSON; ValueError names the file where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it, or its stage's or run's folder") from error


def to_json_types(value: Any) -> Any:
    """Nested values converted to types that JSON can hold.

    >>> to_json_types({"a": (1, float("nan")), "b": Path("x")})
    {'a': [1, None], 'b': 'x'}
    """

    def convert(item: Any) -> Any:
        if isinstance(item, Mapping):
            return dict(item)
        return item.tolist() if hasattr(item, "tolist") else os.fspath(item)

    return json.loads(json.dumps(value, default=convert), parse_constant=lambda _: None)


def digest(value: Any) -> str:
    """Hexadecimal SHA-256 of nested values as JSON, the same for any order of keys."""
    return hashlib.sha256(json.dumps(to_json_types(value), sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"]) -> None:
    """Write named tensors as safetensors, atomically; OSError if the disk is full."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, temporary)
        except SafetensorError as error:  # which a full disk raises here
            raise OSError(f"{path} could not be written: {error}") from error


def load_tensors(path: Path) -> dict[str, "Tensor"]:
    """Read what :func:`save_tensors` wrote; FileNotFoundError, or ValueError where it is damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: remove its folder and run again")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): remove its folder and run again") from error
