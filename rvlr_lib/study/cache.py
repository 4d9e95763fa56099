"""The cache of finished stages and of splits: one place where stages are made, one rule for their keys.

The key of a stage is a hash of its settings, its data, the keys of the stages it needs, and the source of its maker's
module and of all library modules imported from there, without comments and docstrings. An edited loss therefore
retrains; an edited chart does not. Modules in :data:`UNHASHED` stay out of keys: settings enter by value, and every
version writes files the same way.
"""

import ast
import fcntl
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rvlr_lib.config import DataSettings, Settings
from rvlr_lib.data import LOADERS, ImbalanceSpec, dataset_stamp, load_dataset
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.disk import atomic_path, digest, sha256, write_json
from rvlr_lib.provenance import PACKAGE, data_name, versions
from rvlr_lib.training.processes import all_gather_objects, is_main

WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
UNHASHED = {"rvlr_lib.config", "rvlr_lib.provenance", "rvlr_lib.disk"}
DIAL_SPLITS = {"all": SPLITS, "train": ("train", "val"), "test": ("test",)}
# settings of the dial that a modality does not depend on
OTHER_DIALS = {"image": ("text_detail", "mismatch_rate"), "text": ("image_visibility", "image_fault"), "both": ()}


@dataclass(frozen=True, eq=False)
class Stage:
    """One step of a study and everything that decides its outcome."""

    name: str  # kind of step, such as ``stage2``; its folder is ``name/key``
    parts: Mapping[str, Any]  # settings and data that decide its outcome
    maker: Callable[..., None]  # fills the folder, called as maker(folder, **arguments())
    arguments: Callable[[], Mapping[str, Any]]  # called only if the stage is made
    needs: tuple["Stage", ...] = ()  # stages that must be made first

    @cached_property
    def key(self) -> str:
        """Sixteen hexadecimal digits that identify the stage."""
        return digest([self.parts, [stage.key for stage in self.needs], source_hash(self.maker.__module__)])[:16]


@dataclass(frozen=True)
class Cache:
    """Finished stages under ``root/cache``."""

    root: Path  # of all runs; several machines must share it
    missing: str = ""  # if set, nothing is computed: a missing stage is an error that ends with this text

    def path(self, stage: Stage) -> Path:
        """The folder of a stage; it is complete once it holds ``parts.json``."""
        return self.root / "cache" / stage.name / stage.key

    def has(self, stage: Stage) -> bool:
        """Whether a stage is finished."""
        return (self.path(stage) / "parts.json").is_file()

    def folder(self, stage: Stage) -> Path:
        """The folder of a finished stage; a missing stage is made, after the stages it needs.

        A stage is made in a temporary folder that is renamed once complete. If another process is already making it,
        this one waits. Under torchrun all processes call this and compute; the main process decides whether the stage
        exists, and its files are the ones kept.
        """
        if len(set(all_gather_objects(stage.key))) > 1:
            fault = f"stage {stage.name} differs between processes (its key here is {stage.key})"
            raise ValueError(f"{fault}: they need the same settings, data and version of the library")
        path = self.path(stage)
        if all_gather_objects(self.has(stage))[0]:  # the main process decides
            return path
        if self.missing:
            raise ValueError(f"{path} is missing: {self.missing}")
        for needed in stage.needs:
            self.folder(needed)
        lock_file = self.root / "cache" / "locks" / f"{stage.name}-{stage.key}"
        lock_file.parent.mkdir(parents=True, exist_ok=True)
        with lock_file.open("w") as lock:
            if is_main():
                fcntl.flock(lock, fcntl.LOCK_EX)
                for leftover in path.parent.glob(f".{path.name}-*"):  # of killed processes: only we hold the lock
                    shutil.rmtree(leftover, ignore_errors=True)
            if all_gather_objects(not self.has(stage))[0]:  # waits for the main process to hold the lock and decide
                with atomic_path(path, folder=True) if is_main() else TemporaryDirectory() as folder:
                    stage.maker(Path(folder), **stage.arguments())
                    write_json(Path(folder) / "parts.json", stage.parts)
            all_gather_objects(None)  # waits until the main process has finished it
        return path


@cache
def source_hash(module: str) -> str:
    """SHA-256 of a library module and of all it imports from the library, without comments and docstrings."""
    syntax: dict[str, str] = {}  # module -> its syntax tree as text
    queue = [module]
    while queue:
        name = queue.pop()
        path = PACKAGE.parent / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in syntax or name in UNHASHED or not path.is_file():
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rvlr_lib"):
                queue += [f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                queue += [alias.name for alias in node.names if alias.name.startswith("rvlr_lib")]
            elif isinstance(node, WITH_DOCSTRING) and ast.get_docstring(node) is not None:
                node.body[0] = ast.Pass()
        syntax[name] = ast.dump(tree)
    return digest(syntax)


file_hash = cache(lambda path, *_stamp: sha256(path))


def named_files(*specs: str | None) -> list[str]:
    """SHA-256 of the files that settings name as ``FILE``, ``local-dir:FOLDER`` or ``timm:NAME:FILE``."""
    digests = []
    for spec in map(str, filter(None, specs)):
        exists = os.path.exists if spec.startswith(("local-dir:", "sentence:")) else os.path.isfile
        words = spec.split(":")
        paths = (":".join(words[start:]) for start in range(len(words)))  # a path may hold colons itself
        place = Path(next(filter(exists, paths), os.devnull))
        files = sorted(path for path in (place, *place.rglob("*")) if path.is_file())
        digests += [file_hash(path, path.stat().st_mtime_ns, path.stat().st_size) for path in files]
    return digests


def read_split(settings: Settings, split: str) -> ImageTextDataset:
    """The ``train``, ``val`` or ``test`` split, kept in memory while its files are unchanged."""
    data = replace(settings.data, seed=settings.world_seed)
    stamp = () if data.name in LOADERS and not data.image_root else dataset_stamp(data.name, data.image_root)
    return _read(data, split, stamp)


def data_parts(settings: Settings, modality: str) -> dict[str, Any]:
    """What decides the data of ``image``, ``text`` or ``both``; one modality does not depend on the other's dial."""
    defaults = {name: getattr(DataSettings(), name) for name in ("rows", *OTHER_DIALS[modality])}
    data = replace(settings.data, seed=settings.world_seed, **defaults)
    dialled = data.text_detail < 1 or data.image_visibility < 1 or data.mismatch_rate > 0
    parts: dict[str, Any] = asdict(data)
    if data.name in LOADERS and not dataset_stamp(data.name, data.image_root):  # made by code, not read from files
        parts["source"] = source_hash(LOADERS[data.name].__module__)
        parts["versions"] = {name: version for name, version in versions().items() if "emoji" in name}
        if data.name != "scenes" and not dialled:
            parts.pop("seed")
    else:  # the same files in another place are the same data
        parts |= {"name": data_name(data.name), "image_root": None}
        intact = replace(settings.data, text_detail=1.0, image_visibility=1.0, mismatch_rate=0.0)
        parts["fingerprint"] = [read_split(replace(settings, data=intact), split).fingerprint for split in SPLITS]
    if dialled:
        parts["dial"] = source_hash("rvlr_lib.data.dial")
    return parts


@lru_cache(maxsize=9)  # three dial settings of three splits; nothing writes to them
def _read(data: DataSettings, split: str, stamp: tuple[Any, ...]) -> ImageTextDataset:
    size = {"train": data.train_size, "val": data.val_size, "test": data.gallery_size}.get(split)
    options: dict[str, Any] = {"limit": size}
    if data.name == "scenes":
        sizes = {"galleries": data.galleries, "gallery_size": size} if split == "test" else {"size": size}
        options = {"seed": data.seed, **sizes}
    elif data.name not in LOADERS:
        options |= {"max_bad_pictures": data.max_bad_pictures, "keep_flagged": data.keep_flagged}
    options = {name: value for name, value in options.items() if value or name == "seed"}
    faults = {name: getattr(data, name) for name in ("text_detail", "image_visibility", "image_fault", "mismatch_rate")}
    dial = ImbalanceSpec(**faults, splits=DIAL_SPLITS[data.dial_splits], seed=data.seed)
    return load_dataset(data.name, split=split, image_root=data.image_root, imbalance=dial, **options)
