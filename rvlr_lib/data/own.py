"""Your own pictures: every format to one frame of captions, a split for every picture, and a split to a data set."""

import hashlib
import os
import shlex
from collections import defaultdict
from functools import lru_cache
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, evenly
from rvlr_lib.data.files import HIDDEN, printable, shown, stamp
from rvlr_lib.data.formats import FORMATS, parse, read_part
from rvlr_lib.data.pictures import FileSource, check_header, check_name, decode, equal_files, faults
from rvlr_lib.data.table import LIKE_SPLIT, WAYS_OUT, Collection, Row, Unusable, captions_in, split_in
from rvlr_lib.provenance import home

FEWEST = 4  # pictures in a split; the notebooks show the first four queries
PUBLISHED = Path(__file__).parent / "published"
PREPARED = ("flickr30k", "coco", "vizwiz")
WITHOUT = "pictures without a split"
COLUMNS = "picture clean category flags fate row split".split()
KEYS = (*SPLITS, "all", "held_out")
INDEX: dict[str, tuple[type, ...]] = {  # keys of an index and their types
    **dict.fromkeys(KEYS, (str, list)),
    **dict.fromkeys(("image_root", "image_column", "caption_column"), (str,)),
    **dict.fromkeys(("split_seed", "max_bad_pictures"), (int,)),
    **dict.fromkeys(("allow_overlap", "keep_flagged"), (bool,)),
    **dict.fromkeys(("folders", "sources"), (dict,)),
}
EXPECTED = {str: "text", list: "a list of texts", dict: "texts by name", int: "a number from 0", bool: "true or false"}


def hashed_split(image_id: str, seed: int = 0) -> str:
    """80 % train, 10 % val, 10 % test, by SHA-256 of seed and id alone: more or fewer pictures move no other.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def read_collection(path: str | Path, image_root: str | Path | None = None, **options: Any) -> Collection:
    """An annotation file, a folder, an index or a published data set; options as of :func:`rvlr_lib.data.load_files`.

    ValueError: no such file or folder, an unknown shape, a missing column or key, no text. What is wrong with single
    rows, captions and pictures is collected in ``refused``.
    """
    import pandas as pd

    file, base = printable(Path(path)), Path(path).parent
    if str(path) in PREPARED:
        file, base = PUBLISHED / f"{path}.yaml", home("data") / path
    if not (os.path.isfile(file) or os.path.isdir(file)):
        fault = "neither a file nor a folder" if os.path.exists(file) else "not there"
        raise ValueError(f"{file} is {fault}; give an annotation file, a folder or an index; {FORMATS}")
    before, index = stamp(file), _index(file)
    sources = index.get("sources", {}).items() if str(path) in PREPARED else ()
    if missing := [f"{name}: {source}" for name, source in sources if not (base / name).exists()]:
        steps = "\n  ".join(missing)
        raise ValueError(f"{base} lacks files (set RVLR_DATA to look elsewhere than {base.parent}):\n  {steps}")
    root = printable(Path(image_root or (file if file.is_dir() else base / index.get("image_root", "."))))
    if not os.path.isdir(root):
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    found = Collection(Path(path), root, index | _checked(file, options), own_splits=bool(index) and "all" not in index)
    found.stamps += [before] if index else []
    captions = list[tuple[Any, ...]]()
    for key in KEYS:
        names, rows = (index or {"all": file.name}).get(key, []), list[Row]()
        for name in [names] if isinstance(names, str) else names:
            if not os.path.exists(place := base / name):
                raise ValueError(f"{file}: {key} names {name!r}, and {shown(place)} is not there")
            rows += read_part(found, place, assigned=key not in ("all", "held_out"))
        captions += _captions(found, key, rows)
    found.frame = pd.DataFrame(captions, columns=COLUMNS, dtype=object).astype({"row": int})
    found.kinds = {f"index of {', '.join(found.kinds)}": None} if index else found.kinds
    names = {split: set(found.used.picture[found.used.split == split]) for split in SPLITS}
    for one, two in combinations(SPLITS, 2):
        shared, what = sorted(names[one] & names[two]), f"{one} and {two}"
        way = "name one file as held_out, which is halved into val and test, or say allow_overlap: true in the index"
        kind = f"{what} are identical, pictures" if names[one] == names[two] else f"pictures in {what}"
        for name in [] if found.options.get("allow_overlap") else shared:
            found.refused[kind].append(f"{found.path}: {what} share {len(shared)} pictures, such as {name!r}: {way}")
    found.stamps += [stamp(f"{root}/{name}") for name in found.named]
    return found


def _index(path: Path) -> dict[str, Any]:
    """An index whose keys are known and whose values are of their types; empty where the file is none."""
    index = parse(path) if path.suffix.lower() in (".json", ".yaml", ".yml") and not path.is_dir() else None
    if not isinstance(index, dict) or not set(index) & set(KEYS):
        return {}
    if unknown := [key for key in index if key not in INDEX]:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; an index has: {', '.join(INDEX)}")
    index = _checked(path, index)
    if unknown := [key for key in index.get("folders", {}) if key not in KEYS]:
        raise ValueError(f"{path}: folders has the unknown key {unknown[0]!r}; it may have: {', '.join(KEYS)}")
    return index


def _checked(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Keys of an index or options, without those of None; ValueError for a value that is not of its type."""
    given = {key: int(x) if isinstance(x, np.integer) else x for key, x in options.items() if x is not None}
    for key, value in given.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        sound = type(value) in INDEX[key] and all(isinstance(text, str) and shown(text) == text for text in texts)
        if not sound or shown(str(value)) != str(value) or (type(value) is int and value < 0):
            kinds = " or ".join(EXPECTED[kind] for kind in INDEX[key])
            raise ValueError(f"{path}: {key} is {ascii(value)[:200]}, expected {kinds}")
    return given


def _captions(found: Collection, key: str, rows: list[Row]) -> list[tuple[Any, ...]]:
    """Captions of one key of the index as rows of the frame, each with a split or a reason why it is no use."""
    captions, order, fates = list[tuple[Any, ...]](), dict[str, int](), defaultdict[str, set[str]](set)
    splits, kinds, owners = dict[str, Any](), dict[str, Any](), dict[str, str]()  # of a picture; picture of an image_id
    folder = found.options.get("folders", {}).get(key, "")

    for row in rows:
        found.rows_read += 1
        picture, reason = "", ""
        try:
            if not isinstance(row.picture, str):
                raise Unusable("refused paths", f"the picture's path is {row.picture!r}, expected text")
            picture = _name(row.picture, folder)
            order.setdefault(picture, len(order))
            split = split_in(row.split)
            owner = f"{row.where.partition(',')[0]} {row.image_id}"  # ids may begin anew in every file
            if row.image_id is not None and (other := owners.setdefault(owner, picture)) != picture:
                message = f"image_id {row.image_id!r} names {other!r} and {picture!r}; give every picture its own id"
                raise Unusable("image ids of two pictures", message)
            if (first := splits.setdefault(picture, split)) != split:
                raise Unusable("pictures in two splits", f"{picture!r} is in split {first!r} and {split!r}; choose one")
            if (kind := row.category) is not None and str(first := kinds.setdefault(picture, kind)) != str(kind):
                raise Unusable("pictures of two categories", f"{picture!r} is of {first!r} and {kind!r}; choose one")
            if split and key not in ("all", split):
                message = f"the row says {split}, the index {key}: name the file under all, and the rows decide"
                raise Unusable("rows of another split", message)
        except Unusable as error:
            reason, message = error.args
            found.refused[reason].append(f"{row.where}: {message}")
        texts = captions_in(row.captions)
        if not texts:
            found.lost[reason or "without a caption"] += 1
        for text, fault in texts:
            if fault and not reason:
                found.refused[fault].append(f"{row.where}: {WAYS_OUT[fault].format(text[:80], picture)}")
            flagged = f"left out as {row.flags}" if row.flags and not found.options.get("keep_flagged") else ""
            fate = reason or fault or flagged or "used"
            captions.append((picture, "" if fault else text, row.category, row.flags, fate, found.rows_read))
            fates[picture].add(fate)
    own_splits = any("used" in fates[picture] and splits.get(picture) for picture in order)
    for picture in order:
        if fates[picture] <= WAYS_OUT.keys():
            found.refused["pictures without a caption"].append(f"{found.path}: picture {picture!r} has no caption")
        elif own_splits and "used" in fates[picture] and not splits.get(picture):
            fates[picture].add(WITHOUT)
            message = f"{found.path}: {picture!r} has no split, others have; give one to every picture or to none"
            found.refused[WITHOUT].append(message)
    if key in SPLITS:
        splits = dict.fromkeys(order, key)
    elif not own_splits:  # by a hash; equal files are never in two splits
        if like := {part for name in order for part in name.split("/")[:-1] if LIKE_SPLIT.fullmatch(part)}:
            told = f"the folders {', '.join(sorted(like))} look like splits, yet no column says them"
            found.notes.append(f"{found.path}: {told}: a hash does")
        first = {name: min(group) for group in equal_files(found.root, order) for name in group}
        choose, seed = hashed_split if key == "all" else _half, found.options.get("split_seed", 0)
        splits = {name: choose(first.get(name, name), seed) for name in order}
    found.named |= dict.fromkeys(order)
    found.own_splits |= own_splits
    captions.sort(key=lambda caption: order.get(caption[0], -1))
    fate_of = lambda picture, fate: WITHOUT if fate == "used" and WITHOUT in fates[picture] else fate  # noqa: E731
    return [(*about, fate_of(about[0], fate), row, splits.get(about[0])) for *about, fate, row in captions]


def _half(image_id: str, seed: int) -> str:
    return "val" if hashlib.sha256(f"half:{seed}:{image_id}".encode()).digest()[0] & 1 else "test"


@lru_cache(maxsize=2**17)  # a picture has several rows
def _name(name: str, folder: str) -> str:
    """A picture's name below the root, spelt in one way; :class:`Unusable` where it may not be used."""
    spelt = (f"{folder}/{name}" if folder else name).replace("\\", "/")
    try:
        check_name(spelt)
        if shown(spelt) != spelt:
            raise ValueError(f"the name {spelt} is not UTF-8: rename the picture")
        if any(map(HIDDEN.match, PurePosixPath(spelt).parts)):
            raise ValueError(f"picture {name!r} is hidden, as are files of a system: leave its row out, or rename it")
    except ValueError as error:
        raise Unusable("refused paths", shown(str(error))) from None
    return PurePosixPath(spelt).as_posix()


_READ: dict[tuple[Any, ...], Collection] = {}


def described(path: str | Path, image_root: str | Path | None, **options: Any) -> Collection:
    """Read and describe a collection once; again when a file that it was read from has changed."""
    given = str({name: value for name, value in sorted(options.items()) if value is not None})
    key = (str(path), str(image_root), os.getcwd(), os.environ.get("RVLR_DATA"), given)
    found = _READ.pop(key, None)
    if not found or any(stamp(old[0]) != old for old in found.stamps):
        found = read_collection(path, image_root, **options)
        print(found.describe())
    _READ[key] = found
    for old in list(_READ)[:-4]:
        del _READ[old]
    return found


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
        path, split, image_root: as of :func:`rvlr_lib.data.load_dataset`; see :data:`rvlr_lib.data.formats.FORMATS`.
        limit: only so many pictures of the split, evenly spaced.
        max_bad_pictures: how many missing, damaged or too large pictures of the split are left out, counted; above 0
            every picture is decoded once here. With 0, the default, damage behind a header shows when it is read.
        image_column, caption_column: of a table with other than the usual columns, or several.
        split_seed: of the hash.
        keep_flagged: use captions that carry a quality flag (``is_rejected``, ``is_precanned``) too. ValueError:
            whatever :func:`read_collection` refuses, a split of fewer than 4 pictures, too many bad pictures.
    """
    options = {"image_column": image_column, "caption_column": caption_column, "max_bad_pictures": max_bad_pictures}
    found = described(path, image_root, **options, split_seed=split_seed, keep_flagged=keep_flagged)
    for kind, messages in found.refused.items():
        command = f"rvlr data check {shlex.quote(str(found.path))}"
        more = f" ({len(messages)} {kind} in all: `{command}` lists them)" if len(messages) > 1 else ""
        raise ValueError(messages[0] + more)
    allowed = found.options.get("max_bad_pictures", 0)
    part = found.used[found.used.split == split]
    names = evenly(list(part.picture.unique()), limit)
    bad = faults(decode if allowed else check_header, found.root, names)
    first = f"the first: {next(iter(bad.values()), '')}"
    first += f"; so is every other one: is {found.root} the right image_root?" if len(bad) == len(names) > 1 else ""
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
    kinds = {name: kind for name, kind in zip(part.picture, part.category, strict=True) if kind is not None}
    info = {"format": ", ".join(found.kinds), "own_splits": found.own_splits, "images": len(names), "limit": limit}
    info |= {"split_seed": found.options.get("split_seed", 0), "bad_pictures_left_out": sorted(bad)}
    info["flagged_captions_left_out"] = len(found.left_out)
    return ImageTextDataset(
        name=found.path.stem,
        split=split,
        image_ids=names,
        captions=part.clean.tolist(),
        caption_image=np.array(part.picture.map(rows), dtype=np.int64),
        source=FileSource(found.root, names),
        categories=[shown(str(kinds.get(name, f"none: {name}"))) for name in names] if kinds else None,
        info=info,
    )
