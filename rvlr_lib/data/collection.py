"""Every format to one frame of captions: names checked, captions told from what is none, a split for every picture."""

import hashlib
import os
from collections.abc import Iterable, Mapping
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
INDEX: dict[str, tuple[tuple[type, ...], str]] = {  # keys of an index -> types and what is expected
    **dict.fromkeys(KEYS, ((str, list), "a file or a list of files")),
    **dict.fromkeys(("image_root", "image_column", "caption_column"), ((str,), "a text")),
    **dict.fromkeys(("split_seed", "max_bad_pictures"), ((int,), "a whole number from 0")),
    **dict.fromkeys(("allow_overlap", "keep_flagged"), ((bool,), "true or false")),
    **dict.fromkeys(("folders", "sources"), ((dict,), "texts by name")),
}


def hashed_split(image_id: str, seed: int = 0) -> str:
    """The split of a picture whose file says none: 80 % train, 10 % val, 10 % test, by SHA-256 of seed and id.

    It depends on nothing but these two, so adding or removing pictures moves no other.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < 0.8 else "val" if share < 0.9 else "test"


def data_home() -> Path:
    """Folder of the published data sets: ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here."""
    checkout = Path(__file__).parents[2]
    default = (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data"
    return Path(os.environ.get("RVLR_DATA", default))


def missing_sources(path: str | Path) -> dict[str, str]:
    """Files that a published data set lacks -> what they are and where they come from."""
    if str(path) not in PREPARED:
        return {}
    sources = parse(PUBLISHED / f"{path}.yaml")["sources"]
    return {name: source for name, source in sources.items() if not (data_home() / path / name).exists()}


def read_collection(path: str | Path, image_root: str | Path | None = None, **options: Any) -> Collection:
    """Read an annotation file, a folder or an index; the format is recognised by its shape.

    Args:
        path: the file or folder, or the name of a published data set (:data:`PREPARED`).
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        options: ``image_column`` and ``caption_column`` of a table whose columns are none of the usual ones, or
            several; ``split_seed`` of :func:`hashed_split`; ``keep_flagged``: use captions with a quality flag too.

    Raises:
        ValueError: no such file or folder, an unknown shape, a missing column or key, no text. What is wrong with
            single rows, captions and pictures is collected in ``refused``.
    """
    import pandas as pd

    published = str(path) in PREPARED
    file = printable(PUBLISHED / f"{path}.yaml" if published else Path(path))
    base = data_home() / path if published else file.parent
    if not (os.path.isfile(file) or os.path.isdir(file)):
        fault = "neither a file nor a folder" if os.path.exists(file) else "not there"
        raise ValueError(f"{file} is {fault}; give an annotation file, a folder or an index; {FORMATS}")
    if missing := missing_sources(path):
        steps = "".join(f"\n  {name}: {source}" for name, source in missing.items())
        raise ValueError(
            f"{base} lacks {', '.join(missing)} (set RVLR_DATA to look elsewhere than {base.parent}):{steps}"
        )
    before, index = stamp(file), _index(file)
    root = printable(Path(image_root or (file if file.is_dir() else base / index.get("image_root", "."))))
    if not os.path.isdir(root):
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    given = {name: value for name, value in options.items() if value is not None}
    found = Collection(Path(path), root, {**index, **given}, own_splits=bool(index) and "all" not in index)
    found.stamps += [before] if index else []
    frames = []
    for key in KEYS:
        names = index.get(key, []) if index else [file.name] * (key == "all")
        parts = []
        for name in [names] if isinstance(names, str) else names:
            place = base / name if index else file
            if not os.path.exists(place):
                raise ValueError(f"{file}: {key} names {name!r}, and {shown(place)} is not there")
            parts.append((place, read_part(found, place, assigned=key not in ("all", "held_out"))))
        frames.append(_frame(found, key, parts))
    found.frame = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    found.kinds = {f"index of {', '.join(found.kinds)}": None} if index else found.kinds
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
        fits = type(value) in INDEX[key][0] and all(isinstance(text, str) for text in texts)
        if not fits or (type(value) is int and value < 0) or any(shown(text) != text for text in (*texts, str(value))):
            raise ValueError(f"{path}: {key} is {value!a}, expected {INDEX[key][1]}")
    return index


def stamp_of(root: Path, names: Iterable[str]) -> str:
    """One stamp of many files below a folder."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(repr(stamp(f"{root}/{name}")).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _frame(found: Collection, key: str, parts: list[tuple[Path, list[Row]]]) -> Any:
    """Captions of one key of the index, each with a split or a reason why it is no use."""
    import pandas as pd

    folder = found.options.get("folders", {}).get(key, "")
    names, ids, splits, order = dict[Any, str | None](), dict[str, str](), dict[str, str | None](), dict[str, int]()
    told: list[tuple[Any, ...]] = []

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

    wrong = set()
    for file, rows in parts:
        for place, name, value, split, image_id, category, flags in rows:
            spelt, where = name if isinstance(name, str) else (repr(name),), f"{file}, {place}"
            if spelt not in names:
                names[spelt] = _name(found, name, folder, where)
            picture = names[spelt]
            if picture is not None:
                order.setdefault(picture, len(order))
            if value is LISTED:
                continue
            found.rows_read += 1
            own, reason, message = fault(picture, split, image_id) if picture else (None, "refused paths", "")
            if message:
                wrong.add(picture)
                found.refuse(reason, f"{where}: {message}")
            pairs = captions_in(value)
            found.lost.update([reason or "without a caption"] if not pairs else [])
            for text, why in pairs:
                clean = "" if why else clean_caption(text)
                why = reason or why or ("" if clean else EMPTY)
                if why and not reason:
                    found.refuse(why, f"{where}: {WAYS_OUT[why].format(text[:80], picture)}")
                told.append((picture, text, clean, own, image_id, category, flags, why, found.rows_read))
    told.sort(key=lambda row: order.get(row[0], -1))
    frame = pd.DataFrame(told, columns=COLUMNS, dtype=object).astype({"row": int})
    right = frame[frame.refused == ""]
    good = set(right.picture[(right["flags"] == "") | found.keep_flagged])
    own, spoken = any(splits.get(name) for name in good), wrong | set(right.picture)
    for name in order:
        if name not in spoken:
            found.refuse("pictures without a caption", f"{found.path}: picture {name!r} has no caption")
        elif own and name in good and not splits.get(name):
            message = f"{found.path}: {name!r} has no split, others have; give one to every picture or to none"
            found.refuse("pictures without a split", message)
    found.named.update(dict.fromkeys(order))
    found.own_splits |= own
    frame["split"] = frame.picture.map(_places(found, key, order, splits if own else {}))
    return frame


def _name(found: Collection, name: Any, folder: str, where: str) -> str | None:
    """A picture's name below the root, spelt in one way; None, with a reason, where it may not be used."""
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
        return None
    return PurePosixPath(spelt).as_posix() if "//" in spelt or "./" in spelt or spelt.endswith("/") else spelt


def _places(found: Collection, key: str, names: Iterable[str], splits: Mapping[str, str | None]) -> Mapping:
    """A split for every picture: of the index, of the rows, or by a hash; equal files are never in two."""
    if key in SPLITS:
        return dict.fromkeys(names, key)
    if splits:
        return splits
    seed = int(found.options.get("split_seed", 0))
    first = {name: min(group) for group in equal_files(found.root, names) for name in group}
    if key == "all":
        return {name: hashed_split(first.get(name, name), seed) for name in names}
    halves = {name: hashlib.sha256(f"half:{seed}:{first.get(name, name)}".encode()).digest()[0] & 1 for name in names}
    return {name: "val" if half else "test" for name, half in halves.items()}
