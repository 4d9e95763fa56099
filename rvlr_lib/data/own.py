"""Your own pictures: from any format to a frame of captions, a split for every picture, and data sets of the splits."""

import hashlib
import os
import shlex
from collections import defaultdict
from functools import lru_cache
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, evenly_spaced
from rvlr_lib.data.files import HIDDEN, printable, require_utf8_name, stamp
from rvlr_lib.data.formats import FORMATS, parse, read_part
from rvlr_lib.data.pictures import FileSource, check_header, check_name, decode, equal_files, find_faults
from rvlr_lib.data.table import CAPTION_FAULTS, COUNT, LIKE_SPLIT, Collection, Row, Unusable, captions_in, split_in
from rvlr_lib.provenance import default_root
from rvlr_lib.tables import refuse_unknown

FEWEST = 5  # pictures per split, which the maps of notebook 04 need
PUBLISHED = Path(__file__).parent / "published"
PUBLISHED_SETS = ("flickr30k", "coco", "vizwiz")
NO_SPLIT = "pictures without a split"
COLUMNS = "picture clean category flags fate row split".split()
KEYS = (*SPLITS, "all", "held_out")
INDEX: dict[str, tuple[type, ...]] = {  # keys of an index and their types
    **dict.fromkeys(KEYS, (str, list)),
    **dict.fromkeys(("image_root", "image_column", "caption_column"), (str,)),
    **dict.fromkeys(("split_seed", "max_bad_pictures"), (int,)),
    **dict.fromkeys(("allow_overlap", "keep_flagged"), (bool,)),
    **dict.fromkeys(("folders", "sources"), (dict,)),
}
EXPECTED = {str: "text", list: "a list of texts", dict: "texts by name", int: "an integer >= 0", bool: "true or false"}


def hashed_split(image_id: str, seed: int = 0) -> str:
    """Split by SHA-256 of seed and id: 80 % train, 10 % val, 10 % test, whatever other pictures there are.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def read_collection(path: str | Path, image_root: str | Path | None = None, **options: Any) -> Collection:
    """Read an annotation file, a folder, an index or a published data set; ``options`` as in :func:`load_files`.

    ValueError: no such file or folder, an unknown format, a missing column or key, undecodable text. Faults of single
    rows, captions and pictures are collected in ``refused``.
    """
    import pandas as pd

    file, base = require_utf8_name(Path(path)), Path(path).parent
    if str(path) in PUBLISHED_SETS:
        file, base = PUBLISHED / f"{path}.yaml", default_root("data") / path
    if not (os.path.isfile(file) or os.path.isdir(file)):
        fault = "neither a file nor a folder" if os.path.exists(file) else "missing"
        known = ", ".join(PUBLISHED_SETS)
        raise ValueError(f"{file} is {fault}; give an annotation file, a folder, an index, or {known}; {FORMATS}")
    before, index = stamp(file), _index(file)
    sources = index.get("sources", {}).items() if str(path) in PUBLISHED_SETS else ()
    if missing := "".join(f"\n  {name}: {source}" for name, source in sources if not (base / name).exists()):
        raise ValueError(f"{base} lacks files (set RVLR_DATA to look elsewhere than in {base.parent}):{missing}")
    root = require_utf8_name(Path(image_root or (file if file.is_dir() else base / index.get("image_root", "."))))
    if not os.path.isdir(root):
        raise ValueError(f"image_root {root} is not a folder; give the folder of the pictures")
    options = index | _checked(file, options)
    collection = Collection(Path(path), root, options, own_splits=bool(index) and "all" not in index)
    collection.stamps += [before] if index else []
    captions = list[tuple[Any, ...]]()
    for key in KEYS:
        names, rows = (index or {"all": file.name}).get(key, []), list[Row]()
        for name in [names] if isinstance(names, str) else names:
            if not os.path.exists(place := base / name):
                raise ValueError(f"{file}: {key} names {name!r}, but {printable(place)} is missing")
            rows += read_part(collection, place, assigned=key not in ("all", "held_out"))
        captions += _captions(collection, key, rows)
    collection.frame = pd.DataFrame(captions, columns=COLUMNS, dtype=object).astype({"row": int})
    collection.formats = {f"index of {', '.join(collection.formats)}": None} if index else collection.formats
    pictures = {split: set(collection.used.picture[collection.used.split == split]) for split in SPLITS}
    for one, two in [] if options.get("allow_overlap") else combinations(SPLITS, 2):
        both, shared = f"{one} and {two}", sorted(pictures[one] & pictures[two])
        way_out = "name one file as held_out, halved into val and test, or set allow_overlap: true in the index"
        reason = f"{both} are identical, pictures" if pictures[one] == pictures[two] else f"pictures in {both}"
        fault = f"{collection.path}: {both} share {len(shared)} pictures, such as"
        for name in shared:
            collection.refused[reason].append(f"{fault} {name!r}: {way_out}")
    collection.stamps += [stamp(f"{root}/{name}") for name in collection.pictures]
    return collection


def _index(path: Path) -> dict[str, Any]:
    """Content of an index, with keys and types of values checked; empty for any other file."""
    index = parse(path) if path.suffix.lower() in (".json", ".yaml", ".yml") and not path.is_dir() else None
    if not isinstance(index, dict) or not set(index) & set(KEYS):
        return {}
    refuse_unknown(index, INDEX, f"{path}: unknown key")
    index = _checked(path, index)
    refuse_unknown(index.get("folders", {}), KEYS, f"{path}: folders has the unknown key")
    return index


def _checked(path: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Keys of an index or options, without those that are None; ValueError for a value of the wrong type."""
    options = {key: value for key, value in options.items() if value is not None}
    integers = [key for key, x in options.items() if isinstance(x, int | np.integer) and not isinstance(x, bool)]
    options |= {key: int(options[key]) for key in integers}  # the command line and NumPy have types of their own
    for key, value in options.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        valid = type(value) in INDEX[key] and all(isinstance(text, str) and printable(text) == text for text in texts)
        if not valid or printable(str(value)) != str(value) or (type(value) is int and value < 0):
            expected = " or ".join(EXPECTED[kind] for kind in INDEX[key])
            raise ValueError(f"{path}: {key} is {ascii(value)[:200]}, expected {expected}")
    return options


def _captions(collection: Collection, key: str, rows: list[Row]) -> list[tuple[Any, ...]]:
    """Captions of one key of the index as rows of the frame, each with a split or the reason why it is not used."""
    captions, order, fates = list[tuple[Any, ...]](), dict[str, int](), defaultdict[str, set[str]](set)
    splits, categories, owners = dict[str, Any](), dict[str, Any](), dict[str, str]()  # by picture; picture by image_id
    options, path, refused = collection.options, collection.path, collection.refused
    folder = options.get("folders", {}).get(key, "")
    for row in rows:
        collection.rows_read += 1
        picture, reason = "", ""
        try:
            if not isinstance(row.picture, str):
                raise Unusable("refused paths", f"the picture's path is {row.picture!r}, expected text")
            picture = _name(row.picture, folder)
            order.setdefault(picture, len(order))
            split = split_in(row.split)
            file_id = f"{row.where.partition(',')[0]} {row.image_id}"  # ids may start over in every file
            if row.image_id is not None and (owner := owners.setdefault(file_id, picture)) != picture:
                message = f"image_id {row.image_id!r} names {owner!r} and {picture!r}; give every picture its own id"
                raise Unusable("image ids of two pictures", message)
            if (first := splits.setdefault(picture, split)) != split:
                message = f"{picture!r} is in splits {first or 'none'!r} and {split or 'none'!r}: use one"
                raise Unusable("pictures in two splits", message)
            if (kind := row.category) is not None and str(first := categories.setdefault(picture, kind)) != str(kind):
                raise Unusable("pictures of two categories", f"{picture!r} is {first!r} and {kind!r}: use one category")
            if split and key not in ("all", split):
                message = f"the row says {split}, the index {key}: name the file under all to let its rows decide"
                raise Unusable("rows of another split", message)
        except Unusable as error:
            reason, message = error.args
            refused[reason].append(f"{row.where}: {message}")
        texts = captions_in(row.captions)
        if not texts:
            collection.lost[reason or "without a caption"] += 1
        for text, fault in texts:
            if fault and not reason:
                refused[fault].append(f"{row.where}: {CAPTION_FAULTS[fault].format(text[:80], picture)}")
            flagged = row.flags and not options.get("keep_flagged")
            fate = reason or fault or (f"left out as {row.flags}" if flagged else "used")
            captions.append((picture, "" if fault else text, row.category, row.flags, fate, collection.rows_read))
            fates[picture].add(fate)
    clean = {text for _, text, *_, fate, _ in captions if fate == "used"}
    if clean and not options.get("caption_column") and all(map(COUNT.fullmatch, clean)):
        fault = f"every caption is a number, yes, no or a split, such as {min(clean)!r}"
        raise ValueError(f"{path}: {fault}: give texts, or choose caption_column ({', '.join(collection.columns)})")
    own_splits = any("used" in fates[picture] and splits.get(picture) for picture in order)
    for picture in order:
        if fates[picture] <= CAPTION_FAULTS.keys():
            refused["pictures without a caption"].append(f"{path}: {picture!r} has no caption: add one or leave it out")
        elif own_splits and "used" in fates[picture] and not splits.get(picture):
            fates[picture].add(NO_SPLIT)
            refused[NO_SPLIT].append(f"{path}: {picture!r} has no split, others have one: give one to all or to none")
    if key in SPLITS:
        splits = dict.fromkeys(order, key)
    elif not own_splits:  # by a hash; equal files are never in two splits
        if like := {part for name in order for part in name.split("/")[:-1] if LIKE_SPLIT.fullmatch(part)}:
            fault = f"the folders {', '.join(sorted(like))} look like splits, but no column gives the split"
            collection.notes.append(f"{path}: {fault}: a hash does")
        first_equal = {name: min(group) for group in equal_files(collection.root, order) for name in group}
        choose, seed = hashed_split if key == "all" else _half, options.get("split_seed", 0)
        splits = {name: choose(first_equal.get(name, name), seed) for name in order}
    collection.pictures |= dict.fromkeys(order)
    collection.own_splits |= own_splits
    captions.sort(key=lambda caption: order.get(caption[0], -1))
    fate_of = {(picture, "used"): NO_SPLIT for picture in order if NO_SPLIT in fates[picture]}
    return [(*cells, fate_of.get((cells[0], fate), fate), row, splits.get(cells[0])) for *cells, fate, row in captions]


def _half(image_id: str, seed: int) -> str:
    return "val" if hashlib.sha256(f"half:{seed}:{image_id}".encode()).digest()[0] & 1 else "test"


@lru_cache(maxsize=2**17)  # a picture has several rows
def _name(name: str, folder: str) -> str:
    """A picture's path below the root in its normal spelling; :class:`Unusable` if it is not allowed."""
    path = (f"{folder}/{name}" if folder else name).replace("\\", "/")
    try:
        check_name(path)
        if printable(path) != path:
            raise ValueError(f"the name {path} is not UTF-8: rename the picture")
        if any(map(HIDDEN.match, PurePosixPath(path).parts)):
            raise ValueError(f"picture {name!r} is hidden or a system file: leave its row out, or rename it")
    except ValueError as error:
        raise Unusable("refused paths", printable(str(error))) from None
    return PurePosixPath(path).as_posix()


_READ: dict[tuple[Any, ...], Collection] = {}


def read_once(path: str | Path, image_root: str | Path | None, **options: Any) -> Collection:
    """Read a collection and print its description, once until a file it was read from changes."""
    set_options = str({name: value for name, value in sorted(options.items()) if value is not None})
    key = (str(path), str(image_root), os.getcwd(), os.environ.get("RVLR_DATA"), set_options)
    collection = _READ.pop(key, None)
    if not collection or any(stamp(before[0]) != before for before in collection.stamps):
        collection = read_collection(path, image_root, **options)
        print(collection.describe())
    _READ[key] = collection
    for oldest in list(_READ)[:-4]:
        del _READ[oldest]
    return collection


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
    """Load one split of your own pictures; a description is printed once, pictures are read on demand.

    Args:
        path, split, image_root: as in :func:`rvlr_lib.data.load_dataset`; see :data:`rvlr_lib.data.formats.FORMATS`.
        limit: at most this many pictures of the split, evenly spaced.
        max_bad_pictures: how many missing, damaged or too large pictures of the split may be left out. Above 0, every
            picture is decoded once here; with 0, the default, damage behind a header shows when the picture is read.
        image_column, caption_column: of a table that lacks the usual columns or has several.
        split_seed: seed of the hash that splits.
        keep_flagged: also use captions with a quality flag (``is_rejected``, ``is_precanned``).

    ValueError: a collection with faults (:func:`read_collection`), fewer than 5 pictures, too many bad pictures.
    """
    options = {"image_column": image_column, "caption_column": caption_column, "max_bad_pictures": max_bad_pictures}
    collection = read_once(path, image_root, **options, split_seed=split_seed, keep_flagged=keep_flagged)
    for reason, messages in collection.refused.items():
        command = f"rvlr data check {shlex.quote(str(collection.path))}"
        more = f" ({len(messages)} {reason} in all: `{command}` lists them)" if len(messages) > 1 else ""
        raise ValueError(messages[0] + more)
    allowed = collection.options.get("max_bad_pictures", 0)
    part = collection.used[collection.used.split == split]
    names = evenly_spaced(list(part.picture.unique()), limit)
    bad = find_faults(decode if allowed else check_header, collection.root, names)
    first = f"the first: {next(iter(bad.values()), '')}"
    if len(bad) == len(names) > 1:
        first += f"; so is every other one: is {collection.root} the right image_root?"
    if len(bad) > allowed:
        cap = f"max_bad_pictures={allowed} allows {allowed}" if allowed else "none is allowed (max_bad_pictures=0)"
        raise ValueError(f"{collection.path}: {len(bad)} pictures of {split} cannot be used, {cap}; {first}")
    if bad:
        count = f"{len(bad)} of {len(names)} pictures of {split} left out (max_bad_pictures={allowed})"
        print(f"{collection.path.name}: {count}, {first}")
    names = [name for name in names if name not in bad]
    if len(names) < min(FEWEST, limit or FEWEST):
        way_out = f"give more pictures, or an index with a file for each split ({collection.describe()})"
        raise ValueError(f"{collection.path}: {split} has {len(names)} pictures, needs {FEWEST} or more; {way_out}")
    rows = {name: row for row, name in enumerate(names)}
    part = part[part.picture.isin(rows)]
    categories = {name: kind for name, kind in zip(part.picture, part.category, strict=True) if kind is not None}
    info = {"format": ", ".join(collection.formats), "own_splits": collection.own_splits, "images": len(names)}
    info |= {"limit": limit, "split_seed": collection.options.get("split_seed", 0)}
    info |= {"bad_pictures_left_out": sorted(bad), "flagged_captions_left_out": len(collection.left_out)}
    return ImageTextDataset(
        name=collection.path.stem,
        split=split,
        image_ids=names,
        captions=part.clean.tolist(),
        caption_image=np.array(part.picture.map(rows), dtype=np.int64),
        source=FileSource(collection.root, names),
        categories=[printable(str(categories.get(name, f"none: {name}"))) for name in names] if categories else None,
        info=info,
    )
