"""Run folders, the cache of finished stages, and where every number came from."""

import ast
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

from rvlr_lib.disk import plain, write_json
from rvlr_lib.provenance import PACKAGE

_WAY_OUT: ContextVar[str] = ContextVar("way out of a stage that is not there", default="")


def cache_folder(root: Path, stage: str, key: str) -> Path:
    """Where a finished stage lies; it is whole where it holds ``parts.json``."""
    return root / "cache" / stage / key


def cached(root: Path, stage: str, parts: Mapping[str, Any], module: str, compute: Callable[[Path], None]) -> Path:
    """The folder of a finished stage, computed once.

    The key is the stage's settings and the source of the library modules it imports, so an edited loss retrains and an
    edited plot does not. A stage is computed in a temporary folder and renamed when whole: an interrupted stage leaves
    nothing that a later run takes for finished.

    Over several processes all of them call it and compute; the main one decides whether the stage is there already,
    and what it wrote is kept.

    Args:
        root: of all runs; the cache is ``root/cache``. Several nodes must share it.
        stage: name of the stage, first part of the folder.
        parts: all settings that decide its outcome.
        module: library module whose source, with all it imports, belongs to the key.
        compute: fills the folder it is given.

    Raises:
        ValueError: the processes were given different settings or data.
    """
    from rvlr_lib.training.processes import broadcast_json, is_main, max_over_processes  # torch, when it is needed

    key = stage_key(parts, module)
    if max_over_processes(int(broadcast_json(key) != key)):
        raise ValueError(f"stage {stage} is not the same in all processes (its key here is {key}): they need the same "
                         "settings, data and version of the library")  # fmt: skip
    folder = cache_folder(root, stage, key)
    if _WAY_OUT.get() and not (folder / "parts.json").is_file():
        raise ValueError(f"{folder} is not there: {_WAY_OUT.get()}")
    if is_main():
        return _cached(folder, stage, parts, compute, broadcast_json)
    if broadcast_json(None):  # it is missing
        with tempfile.TemporaryDirectory() as scratch:
            compute(Path(scratch))
        broadcast_json(None)  # until the main process has it whole
    return folder


def _cached(
    folder: Path, stage: str, parts: Mapping[str, Any], compute: Callable[[Path], None], tell: Callable[[Any], Any]
) -> Path:
    """The main process's part of :func:`cached`; ``tell`` sends the others what they wait for."""
    if not (folder / "parts.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        locks = folder.parents[1] / "locks"
        locks.mkdir(exist_ok=True)
        with (locks / f"{stage}-{folder.name}").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # another job may be computing it: wait and take its result
            if not (folder / "parts.json").is_file():
                tell(True)
                _compute(folder, parts, compute)
                tell(False)
                return folder
    tell(False)
    return folder


def _compute(folder: Path, parts: Mapping[str, Any], compute: Callable[[Path], None]) -> None:
    from rvlr_lib.training.checkpoint import write_manifest

    for killed in folder.parent.glob(f".{folder.name}-*"):  # nobody else is at it: we hold its lock
        shutil.rmtree(killed, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
    try:
        compute(temporary)
        write_json(temporary / "parts.json", parts)
        write_manifest(temporary)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def only_cached(way_out: str) -> Iterator[None]:
    """Within this block :func:`cached` computes nothing: a stage that is not there is a ``ValueError``.

    Args:
        way_out: ends its message, such as the command that makes the stage.
    """
    token = _WAY_OUT.set(way_out)
    try:
        yield
    finally:
        _WAY_OUT.reset(token)


def stage_key(parts: Mapping[str, Any], module: str) -> str:
    """Sixteen hexadecimal digits that change with the settings or the code of a stage."""
    text = json.dumps(plain(parts), sort_keys=True) + source_hash(module)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def source_hash(module: str) -> str:
    """SHA-256 of a library module and all library modules it imports, without comments and docstrings."""
    seen: dict[str, str] = {}
    queue = [module]
    while queue:
        name = queue.pop()
        if name in seen:
            continue
        path = PACKAGE.parent / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if not path.is_file():
            continue
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rvlr_lib"):
                queue += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names if alias.name.startswith("rvlr_lib")]
            body = getattr(node, "body", None)
            if isinstance(body, list) and body and _is_docstring(body[0]):
                body[0] = ast.Pass()
        seen[name] = ast.dump(tree)
    return hashlib.sha256(json.dumps(seen, sort_keys=True).encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
