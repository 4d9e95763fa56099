"""Data sets of one's own pictures: a collection, read once as long as its files stay, to a data set."""

import os
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.data.collection import read_collection, stamp_of
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.data.files import shown, stamp
from rvlr_lib.data.pictures import FileSource, check_header, decode, faults
from rvlr_lib.data.table import Collection

FEWEST = 4  # pictures in a split; the notebooks show the first four queries
_READ: dict[tuple[Any, ...], Collection] = {}


def _collection(path: str | Path, image_root: str | Path | None, options: dict[str, Any]) -> Collection:
    """Read and describe a collection once; again when a file that it was read from has changed."""
    given = sorted((name, value) for name, value in options.items() if value is not None)
    key = (str(path), str(image_root), os.getcwd(), os.environ.get("RVLR_DATA"), *given)
    found = _READ.pop(key, None)
    fresh = found and all(stamp(old[0]) == old for old in found.stamps)
    if not found or not fresh or stamp_of(found.root, found.named) != found.picture_stamps:
        found = read_collection(path, image_root, **options)
        print(found.describe())
    _READ[key] = found
    for old in list(_READ)[:-4]:
        del _READ[old]
    return found


def file_stamps(path: str | Path, image_root: str | Path | None = None, **options: Any) -> tuple[Any, ...]:
    """Stamps of every file that a collection is read from, its pictures as one; errors as :func:`read_collection`."""
    found = _collection(path, image_root, options)
    return (*found.stamps, found.picture_stamps)


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
    keep_flagged: bool | None = None,
) -> ImageTextDataset:
    """Load one split of your own pictures; what was recognised is printed once, pictures are read when asked for.

    Args:
        path: annotation file, folder, or index; see :data:`rvlr_lib.data.formats.FORMATS`.
        split: ``train``, ``val`` or ``test``; of files without splits 80/10/10 by a hash of each picture's id.
        image_root: folder of the pictures, below which their paths are ids; default that of an index or of the file.
        limit: only so many pictures of the split, evenly spaced.
        max_bad_pictures: how many missing, damaged or too large pictures of the split are left out, counted; above 0
            every picture is decoded once here. With 0, the default, damage behind a header shows when it is read.
        image_column, caption_column: of a table with other than the usual columns, or several.
        split_seed: of the hash.
        keep_flagged: use captions that carry a quality flag (``is_rejected``, ``is_precanned``) too.

    Raises:
        ValueError: whatever :func:`read_collection` refuses, an unknown split, one with fewer than 4 pictures, a
            picture in two splits, an empty caption, too many bad pictures.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; own pictures have {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is too small; give at least 1, or None for all")
    columns = {"image_column": image_column, "caption_column": caption_column}
    found = _collection(path, image_root, {**columns, "split_seed": split_seed, "keep_flagged": keep_flagged})
    for kind, messages in found.refused.items():
        more = f" ({len(messages)} {kind} in all: `rvlr data check {found.path}` lists them)" if messages[1:] else ""
        raise ValueError(messages[0] + more)
    allowed = int(found.options.get("max_bad_pictures", 0) if max_bad_pictures is None else max_bad_pictures)
    part = found.used[found.used.split == split]
    names = list(part.picture.unique())
    if limit is not None and limit < len(names):
        names = [names[i] for i in np.linspace(0, len(names) - 1, limit).astype(int)]
    bad = faults(decode if allowed else check_header, found.root, names)
    first = f"the first: {next(iter(bad.values()), '')}"
    if len(bad) > allowed:
        cap = f"max_bad_pictures={allowed} allows {allowed}" if allowed else "none is allowed (max_bad_pictures=0)"
        raise ValueError(f"{found.path}: {len(bad)} pictures of {split} cannot be used, {cap}; {first}")
    if bad:
        told = f"{len(bad)} of {len(names)} pictures of {split} left out (max_bad_pictures={allowed})"
        print(f"{found.path.name}: {told}, {first}")
    names = [name for name in names if name not in bad]
    if len(names) < min(FEWEST, limit or FEWEST):
        way = f"give more pictures, or an index with a file for each split ({found.describe()})"
        raise ValueError(f"{found.path}: {split} has {len(names)} pictures, at least {FEWEST} are needed; {way}")
    rows = {name: row for row, name in enumerate(names)}
    part = part[part.picture.isin(rows)]
    kinds = part.drop_duplicates("picture").category.tolist()
    info = {"format": ", ".join(found.kinds), "own_splits": found.own_splits, "images": len(names), "limit": limit}
    info |= {"split_seed": found.options.get("split_seed", 0), "bad_pictures_left_out": sorted(bad)}
    info["flagged_captions_left_out"] = 0 if found.keep_flagged else int((found.frame["flags"] != "").sum())
    return ImageTextDataset(
        name=found.path.stem,
        split=split,
        image_ids=names,
        captions=part.clean.tolist(),
        caption_image=part.picture.map(rows).to_numpy(dtype=np.int64),
        source=FileSource(found.root, names),
        categories=[shown(str(kind)) for kind in kinds] if all(kinds) else None,
        info=info,
    )
