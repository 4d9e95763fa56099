"""Data sets of your own pictures: an annotation file, a folder or an index to an :class:`ImageTextDataset`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.data.annotations import SPLITS, Annotations, Entry, read_annotations
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.pictures import FileSource, check_header, decode, faults
from rvlr_lib.data.relevance import clean_caption

FEWEST = 4  # pictures in a split; the notebooks show the first four queries
PREPARED = ("flickr30k", "coco", "vizwiz")


def load_files(
    path: str | Path,
    *,
    split: str,
    image_root: str | Path | None = None,
    limit: int | None = None,
    max_bad_pictures: int | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_seed: int | None = None,
) -> ImageTextDataset:
    """Load one split of your own pictures; what was recognised is printed once.

    Ids are the pictures' paths below ``image_root``. Captions are cleaned (:func:`rvlr_lib.data.clean_caption`) and
    keep their order; a repeated one stays. Pictures are read when asked for; see
    :class:`rvlr_lib.data.pictures.FileSource` for what is kept in memory.

    Args:
        path: annotation file, folder, or index; see :data:`rvlr_lib.data.annotations.FORMATS`.
        split: ``train``, ``val`` or ``test``; of files without splits 80/10/10 by a hash of each picture's id
            (:func:`rvlr_lib.data.annotations.hashed_split`).
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        limit: only so many pictures of the split, evenly spaced.
        max_bad_pictures: how many pictures of the split that are missing, damaged or too large may be left out; the
            number left out is printed and stands in ``info``. More of them is an error, and with 0, the default, any
            is: then missing files and headers are looked at now, and damaged files named when they are read. With 1
            or more every picture is decoded once here.
        image_column, caption_column: of a CSV or TSV with other than the usual columns.
        split_seed: of the hash.

    Raises:
        ValueError: whatever :func:`rvlr_lib.data.annotations.read_annotations` refuses, an unknown split, a split with
            fewer than 4 pictures, a picture in two splits, an empty caption, too many bad pictures.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; own pictures have {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is too small; give at least 1, or None for all")
    found = _read(str(path), None if image_root is None else str(image_root), image_column, caption_column,
                  split_seed or 0, _stamp(Path(path)))  # fmt: skip
    _refuse(found)
    allowed = found.options.get("max_bad_pictures", 0) if max_bad_pictures is None else max_bad_pictures
    entries = found.split(split)
    if limit is not None and limit < len(entries):
        entries = [entries[i] for i in np.linspace(0, len(entries) - 1, limit).astype(int)]
    entries, left_out = _without_bad(found, split, entries, int(allowed))
    if len(entries) < min(FEWEST, limit or FEWEST):
        raise ValueError(f"{found.path}: {split} has {len(entries)} pictures, at least {FEWEST} are needed; give more "
                         f"pictures, or an index with a file for each split ({found.describe()})")  # fmt: skip
    categories = [entry.category for entry in entries]
    return ImageTextDataset(
        name=Path(path).stem,
        split=split,
        image_ids=[entry.name for entry in entries],
        captions=[clean_caption(caption) for entry in entries for caption in entry.captions],
        caption_image=np.repeat(np.arange(len(entries)), [len(entry.captions) for entry in entries]),
        source=FileSource(found.root, [entry.name for entry in entries]),
        categories=[str(category) for category in categories] if all(categories) else None,
        info={"format": found.format, "own_splits": found.own_splits, "split_seed": split_seed or 0,
              "images": len(entries), "limit": limit, "bad_pictures_left_out": left_out},
    )  # fmt: skip


def prepared_index(name: str) -> Path:
    """Where ``rvlr data prepare`` writes the index of a published data set.

    Below ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here.

    Raises:
        ValueError: there is none yet; says which command makes it.
    """
    index = data_home() / name / "index.yaml"
    if not index.is_file():
        raise ValueError(f"{name} is not prepared: {index} is missing; `rvlr data prepare {name}` says what to "
                         "download and writes it")  # fmt: skip
    return index


def data_home() -> Path:
    """Folder of the published data sets: ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here."""
    if "RVLR_DATA" in os.environ:
        return Path(os.environ["RVLR_DATA"])
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data"


def _refuse(found: Annotations) -> None:
    """Stop at the first fault of the file, or where two splits share pictures."""
    for kind, messages in found.faults.items():
        more = f" ({len(messages)} {kind} in all: `rvlr data check {found.path}` lists them)" if messages[1:] else ""
        raise ValueError(messages[0] + more)
    for pair, names in found.overlap().items():
        if not found.options.get("allow_overlap"):
            raise ValueError(f"{found.path}: {pair} share {len(names)} pictures, {names[0]!r} first, so a result would "
                             "be of pictures seen before; name one file as held_out, which is halved into val and "
                             "test, or say allow_overlap: true in the index")  # fmt: skip


def _without_bad(
    found: Annotations, split: str, entries: Sequence[Entry], allowed: int
) -> tuple[list[Entry], list[str]]:
    """The pictures that can be read, and the names of those left out."""
    bad = faults(decode if allowed else check_header, found.root, [entry.name for entry in entries])
    if len(bad) > allowed:
        cap = f"max_bad_pictures={allowed} allows {allowed}" if allowed else "none is allowed (max_bad_pictures=0)"
        raise ValueError(f"{found.path}: {len(bad)} pictures of {split} cannot be used, {cap}; the first: "
                         f"{next(iter(bad.values()))}")  # fmt: skip
    if bad:
        print(f"{found.path.name}: {len(bad)} of {len(entries)} pictures of {split} left out "
              f"(max_bad_pictures={allowed}), the first: {next(iter(bad.values()))}")  # fmt: skip
    return [entry for entry in entries if entry.name not in bad], sorted(bad)


@lru_cache(maxsize=4)
def _read(
    path: str, image_root: str | None, image_column: str | None, caption_column: str | None, seed: int, stamp: Any
) -> Annotations:
    """Read and describe a file once; ``stamp`` tells an edited file from the one that was read."""
    del stamp
    found = read_annotations(Path(path), None if image_root is None else Path(image_root), image_column=image_column,
                             caption_column=caption_column, split_seed=seed)  # fmt: skip
    print(found.describe())
    return found


def _stamp(path: Path) -> Any:
    """Times of a file and the annotation files beside it, which an index may name, or of all files of a folder."""
    if not path.exists():
        return None
    beside = (file for file in path.parent.glob("*") if file.suffix in (".json", ".yaml", ".yml", ".csv", ".tsv"))
    files = path.rglob("*") if path.is_dir() else beside
    return hash(tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files if file.is_file())))
