"""Every format to one frame of captions: names checked, captions told from what is none, a split for every picture."""

import hashlib
import os
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import printable, shown, stamp
from rvlr_lib.data.formats import FORMATS, parse, read_part
from rvlr_lib.data.pictures import check_name, equal_files
from rvlr_lib.data.relevance import clean_caption
from rvlr_lib.data.table import EMPTY, LISTED, WAYS_OUT, Collection, Row, captions_in, split_in

PUBLISHED = Path(__file__).parent / "published"
PREPARED = ("flickr30k", "coco", "vizwiz")
COLUMNS = "picture caption clean split image_id category flags refused row".split()
KEYS = (*SPLITS, "all", "held_out")
INDEX: dict[str, tuple[type, ...]] = {  # keys of an index and their types
    **dict.fromkeys(KEYS, (str, list)),
    **dict.fromkeys(("image_root", "image_column", "caption_column"), (str,)),
    **dict.fromkeys(("split_seed", "max_bad_pictures"), (int,)),
    **dict.fromkeys(("allow_overlap", "keep_flagged"), (bool,)),
    **dict.fromkeys(("folders", "sources"), (dict,)),
}


def hashed_split(image_id: str, seed: int = 0) -> str:
    """80 % train, 10 % val, 10 % test, by SHA-256 of seed and id alone: more or fewer pictures move no other.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def data_home() -> Path:
    """Folder of the published data sets: ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here."""
    checkout = Path(__file__).parents[2]
    return Path(os.environ.get("RVLR_DATA") or (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data")


def missing_sources(path: str | Path) -> dict[str, str]:
    """Files that a published data set lacks -> what they are and where they come from."""
    sources = parse(PUBLISHED / f"{path}.yaml")["sources"] if str(path) in PREPARED else {}
    return {name: source for name, source in sources.items() if not (data_home() / path / name).exists()}


def stamp_of(root: Path, names: Iterable[str]) -> str:
    """One stamp of many files below a folder."""
    stamps = (repr(stamp(f"{root}/{name}")).encode("utf-8", "backslashreplace") for name in names)
    return hashlib.sha256(b"".join(stamps)).hexdigest()


def read_collection(path: str | Path, image_root: str | Path | None = None, **options: Any) -> Collection:
    """An annotation file, a folder, an index or a published data set; options as of :func:`rvlr_lib.data.load_files`.

    Raises:
        ValueError: no such file or folder, an unknown shape, a missing column or key, no text. What is wrong with
            single rows, captions and pictures is collected in ``refused``.
    """
    import pandas as pd

    file, base = printable(Path(path)), Path(path).parent
    if str(path) in PREPARED:
        file, base = PUBLISHED / f"{path}.yaml", data_home() / path
    if not (os.path.isfile(file) or os.path.isdir(file)):
        fault = "neither a file nor a folder" if os.path.exists(file) else "not there"
        raise ValueError(f"{file} is {fault}; give an annotation file, a folder or an index; {FORMATS}")
    if missing := missing_sources(path):
        steps = "\n  ".join(f"{name}: {source}" for name, source in missing.items())
        raise ValueError(f"{base} lacks files (set RVLR_DATA to look elsewhere than {base.parent}):\n  {steps}")
    before, index = stamp(file), _index(file)
    root = printable(Path(image_root or (file if file.is_dir() else base / index.get("image_root", "."))))
    if not os.path.isdir(root):
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    given = {name: value for name, value in options.items() if value is not None}
    found = Collection(Path(path), root, {**index, **given}, own_splits=bool(index) and "all" not in index)
    found.stamps += [before] if index else []
    frames = []
    for key in KEYS:
        names, parts = index.get(key, []) if index else [file.name] * (key == "all"), []
        for name in [names] if isinstance(names, str) else names:
            place = base / name if index else file
            if not os.path.exists(place):
                raise ValueError(f"{file}: {key} names {name!r}, and {shown(place)} is not there")
            parts.append((place, read_part(found, place, assigned=key not in ("all", "held_out"))))
        frames.append(_frame(found, key, parts))
    found.frame = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    found.kinds = {f"index of {', '.join(found.kinds)}": None} if index else found.kinds
    names = {split: set(found.used.picture[found.used.split == split]) for split in SPLITS}
    for one, two in combinations(SPLITS, 2):
        shared, what = sorted(names[one] & names[two]), f"{one} and {two}"
        way = "name one file as held_out, which is halved into val and test, or say allow_overlap: true in the index"
        kind = f"{what} are identical, pictures" if names[one] == names[two] else f"pictures in {what}"
        for name in [] if found.options.get("allow_overlap") else shared:
            found.refuse(kind, f"{found.path}: {what} share {len(shared)} pictures, such as {name!r}: {way}")
    found.picture_stamps = stamp_of(root, found.named)
    return found


def _index(path: Path) -> dict[str, Any]:
    """An index whose keys are known and whose values are of their types; empty where the file is none."""
    index = parse(path) if path.suffix.lower() in (".json", ".yaml", ".yml") and not path.is_dir() else None
    if not isinstance(index, dict) or not set(index) & set(KEYS):
        return {}
    index = {key: value for key, value in index.items() if value is not None}
    for key, value in index.items():
        if key not in INDEX:
            raise ValueError(f"{path}: unknown key {key!r}; an index has: {', '.join(INDEX)}")
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        sound = type(value) in INDEX[key] and all(isinstance(text, str) and shown(text) == text for text in texts)
        if not sound or shown(str(value)) != str(value) or (type(value) is int and value < 0):
            kinds = " or ".join(kind.__name__ for kind in INDEX[key])
            raise ValueError(f"{path}: {key} is {value!a}, expected {kinds} of texts, or a number from 0")
    return index


def _frame(found: Collection, key: str, parts: list[tuple[Path, list[Row]]]) -> Any:
    """Captions of one key of the index, each with a split or a reason why it is no use."""
    import pandas as pd

    folder, told, wrong = found.options.get("folders", {}).get(key, ""), list[tuple[Any, ...]](), set[str]()
    names, ids, splits, order = dict[Any, str](), dict[str, str](), dict[str, str | None](), dict[str, int]()

    def fault(picture: str, split: Any, image_id: Any) -> tuple[str | None, str, str]:
        """The split that a row says, and reason and message against the row, or empty texts."""
        try:
            own = split_in(split)
        except ValueError as error:
            return None, "unknown splits", str(error)
        if image_id is not None and (other := ids.setdefault(str(image_id), picture)) != picture:
            message = f"image_id {image_id!r} names {other!r} and {picture!r}; give every picture its own id"
            return own, "image ids of two pictures", message
        if (first := splits.setdefault(picture, own)) != own:
            return own, "pictures in two splits", f"{picture!r} is in split {first!r} and {own!r}; choose one"
        if own and key not in ("all", own):
            message = f"the row says {own}, the index {key}: name the file under all, and the rows decide"
            return own, "rows of another split", message
        return own, "", ""

    for file, place, name, value, *about in ((file, *row) for file, rows in parts for row in rows):
        where, spelt = f"{file}, {place}", name if isinstance(name, str) else (repr(name),)
        if spelt not in names:
            names[spelt] = _name(found, name, folder, where)
        if picture := names[spelt]:
            order.setdefault(picture, len(order))
        if value is LISTED:
            continue
        found.rows_read += 1
        own, reason, message = fault(picture, *about[:2]) if picture else (None, "refused paths", "")
        if message:
            wrong.add(picture)
            found.refuse(reason, f"{where}: {message}")
        pairs = captions_in(value)
        found.lost.update([] if pairs else [reason or "without a caption"])
        for text, why in pairs:
            clean = "" if why else clean_caption(text)
            why = reason or why or ("" if clean else EMPTY)
            if why and not reason:
                found.refuse(why, f"{where}: {WAYS_OUT[why].format(text[:80], picture)}")
            told.append((picture, text, clean, own, *about[1:], why, found.rows_read))
    told.sort(key=lambda row: order.get(row[0], -1))
    frame = pd.DataFrame(told, columns=COLUMNS, dtype=object).astype({"row": int})
    right = frame[frame.refused == ""]
    good = set(right.picture[(right["flags"] == "") | found.keep_flagged])
    told_splits = any(splits.get(name) for name in good)
    spoken = wrong | set(right.picture)
    for name in (name for name in order if name not in spoken):
        found.refuse("pictures without a caption", f"{found.path}: picture {name!r} has no caption")
    for name in (name for name in order if told_splits and name in good and not splits.get(name)):
        message = f"{found.path}: {name!r} has no split, others have; give one to every picture or to none"
        found.refuse("pictures without a split", message)
    found.named |= dict.fromkeys(order)
    found.own_splits |= told_splits
    seed = int(found.options.get("split_seed", 0))
    if key in SPLITS:
        splits = dict.fromkeys(order, key)
    elif not told_splits:  # by a hash; equal files are never in two splits
        first = {name: min(group) for group in equal_files(found.root, order) for name in group}
        choose = hashed_split if key == "all" else _half
        splits = {name: choose(first.get(name, name), seed) for name in order}
    frame["split"] = frame.picture.map(splits)
    return frame


def _half(image_id: str, seed: int) -> str:
    return "val" if hashlib.sha256(f"half:{seed}:{image_id}".encode()).digest()[0] & 1 else "test"


def _name(found: Collection, name: Any, folder: str, where: str) -> str:
    """A picture's name below the root, spelt in one way; empty, with a reason, where it may not be used."""
    try:
        if not isinstance(name, str):
            raise ValueError(f"the picture's path is {name!r}, expected text")
        spelt = (f"{folder}/{name}" if folder else name).replace("\\", "/")
        check_name(spelt)
        if shown(spelt) != spelt:
            raise ValueError(f"the name {shown(spelt)} is not UTF-8: rename the picture")
        if spelt.rsplit("/", 1)[-1].startswith("._") or "__MACOSX" in spelt.split("/"):
            raise ValueError(f"picture {name!r} is a hidden file of a system, no picture: leave its row out")
    except ValueError as error:
        found.refuse("refused paths", f"{where}: {shown(str(error))}")
        return ""
    return PurePosixPath(spelt).as_posix() if "//" in spelt or "./" in spelt or spelt.endswith("/") else spelt
