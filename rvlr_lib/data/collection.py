"""Every format to one frame of captions: names checked, captions told from what is none, a split for every picture."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rvlr_lib.data.cells import EMPTY, SPLIT_NAMES, WAYS_OUT, captions_in, split_in
from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import Refused, Stamp, printable, shown, stamp
from rvlr_lib.data.formats import FORMATS, parse, read_part
from rvlr_lib.data.pictures import check_name, equal_files
from rvlr_lib.data.relevance import clean_caption
from rvlr_lib.data.table import Part

if TYPE_CHECKING:
    import pandas as pd

SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # where a file has no splits of its own
PUBLISHED = Path(__file__).parent / "published"
PREPARED = ("flickr30k", "coco", "vizwiz")
COLUMNS = "picture caption clean split image_id category flags refused row rank".split()
FILES, TEXT, NUMBER, FLAG, NAMES = (
    "a file or a list of files",
    "a text",
    "a whole number from 0",
    "true or false",
    "texts by name",
)
INDEX = {
    **dict.fromkeys((*SPLITS, "all", "held_out"), FILES),
    **dict.fromkeys(("image_root", "image_column", "caption_column"), TEXT),
    **dict.fromkeys(("split_seed", "max_bad_pictures"), NUMBER),
    **dict.fromkeys(("allow_overlap", "keep_flagged"), FLAG),
    **dict.fromkeys(("folders", "sources"), NAMES),
}


@dataclass
class Collection:
    """What an annotation file, a folder or an index says.

    Attributes:
        path: the file, as it was given.
        root: folder of the pictures.
        format: its format, in words.
        own_splits: whether the file said the splits; else they come from :func:`hashed_split`.
        options: settings given or of the index.
        frame: a row for each caption found, with the columns ``picture``, ``caption`` (as written), ``clean``,
            ``split``, ``image_id``, ``category``, ``flags`` (quality flags, joined by commas), ``refused`` (a reason,
            or empty), ``row`` (number of the row read) and ``rank`` (of the picture).
        refused: reason -> a message for each thing that is no use; loading stops at the first.
        rows: rows read that hold no caption, by reason; ``rows_read``: all of them.
        named: pictures that the files name, used or not; ``flagged_out``: those whose captions are all flagged.
        parts: the files it was read from.
        stamps: of every file and folder that was read, but for the pictures; ``picture_stamps``: of these, in one.
    """

    path: Path
    root: Path
    format: str = ""
    own_splits: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    frame: pd.DataFrame = None  # type: ignore[assignment]
    refused: Refused = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    rows_read: int = 0
    named: dict[str, None] = field(default_factory=dict)
    flagged_out: list[str] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)
    picture_stamps: str = ""

    @property
    def keep_flagged(self) -> bool:
        """Whether captions with a quality flag are used."""
        return bool(self.options.get("keep_flagged"))

    @property
    def used(self) -> pd.DataFrame:
        """The captions that are used, in the order of their pictures."""
        frame = self.frame[(self.frame.refused == "") & ((self.frame["flags"] == "") | self.keep_flagged)]
        return frame.sort_values("rank", kind="stable")

    def split(self, name: str) -> pd.DataFrame:
        """The captions of one split, in the order of their pictures."""
        return self.used[self.used.split == name]

    def overlap(self) -> dict[str, list[str]]:
        """``train and val`` -> names of the pictures in both."""
        names = {split: set(self.split(split).picture) for split in SPLITS}
        pairs = (("train", "val"), ("train", "test"), ("val", "test"))
        return {f"{a} and {b}": sorted(names[a] & names[b]) for a, b in pairs if names[a] & names[b]}

    def describe(self) -> str:
        """One line: format, counts, where the splits come from, and what is not read."""
        counts = {name: self.split(name) for name in SPLITS}
        parts = [f"{name} {part.picture.nunique():,}/{len(part):,}" for name, part in counts.items()]
        origin = "own splits" if self.own_splits else "split 80/10/10 by a hash of each picture's name"
        line = f"{self.path.name}: {self.format}; {origin}; pictures/captions: {', '.join(parts)}"
        flagged = 0 if self.keep_flagged else int((self.frame["flags"] != "").sum())
        unused = list(dict.fromkeys(name for part in self.parts for name in part.unused))
        line += f"; {flagged:,} flagged captions left out" if flagged else ""
        return line + (f"; not read: {', '.join(unused)}" if unused else "")

    def refuse(self, reason: str, message: str) -> str:
        """Note one thing that is no use; gives the reason back."""
        self.refused.setdefault(reason, []).append(message)
        return reason


def hashed_split(image_id: str, seed: int = 0) -> str:
    """The split of a picture whose file says none: 80 % train, 10 % val, 10 % test, by SHA-256 of seed and id.

    It depends on nothing but these two, so adding or removing pictures moves no other. Files that are equal byte for
    byte take the split of the first of their names.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < SHARES["train"] else "val" if share < SHARES["train"] + SHARES["val"] else "test"


def read_collection(path: str | Path, image_root: str | Path | None = None, **options: Any) -> Collection:
    """Read an annotation file, a folder or an index; the format is recognised by its shape.

    Args:
        path: the file or folder, or the name of a published data set (:data:`PREPARED`).
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        options: ``image_column`` and ``caption_column`` of a table whose columns are none of the usual ones, or
            several; ``split_seed`` of :func:`hashed_split`; ``keep_flagged``: use captions with a quality flag too.

    Raises:
        ValueError: no such file or folder, an unknown shape, a missing column or key, not UTF-8. What is wrong with
            single rows, captions and pictures is collected in ``refused``.
    """
    published = str(path) in PREPARED
    file = printable(PUBLISHED / f"{path}.yaml" if published else Path(path))
    base = data_home() / str(path) if published else file.parent
    if not (os.path.isfile(file) or os.path.isdir(file)):
        fault = "neither a file nor a folder" if os.path.exists(file) else "not there"
        raise ValueError(f"{file} is {fault}; give an annotation file, a folder or an index; {FORMATS}")
    before, index = stamp(file), _index(file)
    if published:
        _need_sources(base, index or {})
    inside = base / index.get("image_root", ".") if index else file if file.is_dir() else file.parent
    root = printable(Path(image_root or inside))
    if not os.path.isdir(root):
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    given = {name: value for name, value in options.items() if value is not None}
    found = Collection(Path(path), root, own_splits=bool(index) and "all" not in (index or {}))
    found.options = {**(index or {}), **given}
    found.stamps = [before] if index else []
    columns = {name: found.options.get(name) for name in ("image_column", "caption_column")}
    kinds, frames = dict[str, None](), list[Any]()
    for key in (*SPLITS, "all", "held_out"):
        names = (index or {"all": [""]}).get(key) or []
        parts = []
        for name in [names] if isinstance(names, str) else names:
            place = base / name if index else file
            if not os.path.exists(place):
                raise ValueError(f"{file}: {key} names {name!r}, and {shown(place)} is not there")
            parts.append(read_part(place, root, columns, assigned=key not in ("all", "held_out")))
            kinds[parts[-1].kind] = None
        if parts or not frames:
            frames.append(_frame(found, key, parts, found.options.get("folders", {}).get(key, "")))
    import pandas as pd

    found.frame = pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)
    found.format = f"index of {', '.join(kinds)}" if index else ", ".join(kinds)
    found.picture_stamps = stamp_of(root, found.named)
    return found


def _index(path: Path) -> Mapping[str, Any] | None:
    """An index whose keys are known and whose values are of their types; None where the file is none."""
    if path.suffix.lower() not in (".json", ".yaml", ".yml") or path.is_dir():
        return None
    index = parse(path)
    if not isinstance(index, dict) or not set(index) & {*SPLITS, "all", "held_out"}:
        return None
    for key, value in index.items():
        if key not in INDEX:
            raise ValueError(f"{path}: unknown key {key!r}; an index has: {', '.join(INDEX)}")
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else [value]
        fits = {
            FILES: not isinstance(value, dict) and all(isinstance(text, str) for text in texts),
            TEXT: isinstance(value, str),
            NUMBER: type(value) is int and value >= 0,
            FLAG: isinstance(value, bool),
            NAMES: isinstance(value, dict) and all(isinstance(text, str) for text in texts),
        }
        if not all(shown(text) == text for text in texts if isinstance(text, str)):
            raise ValueError(f"{path}: {key} is {value!a}, which holds bytes that are no text")
        if value is not None and not fits[INDEX[key]]:
            raise ValueError(f"{path}: {key} is {value!r}, expected {INDEX[key]}")
    return {key: value for key, value in index.items() if value is not None}


def _need_sources(base: Path, index: Mapping[str, Any]) -> None:
    missing = {name: source for name, source in index["sources"].items() if not (base / name).exists()}
    if missing:
        steps = "".join(f"\n  {name}: {source}" for name, source in missing.items())
        raise ValueError(
            f"{base} lacks {', '.join(missing)} (set RVLR_DATA to look elsewhere than {base.parent}):{steps}"
        )


def data_home() -> Path:
    """Folder of the published data sets: ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here."""
    if "RVLR_DATA" in os.environ:
        return Path(os.environ["RVLR_DATA"])
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data"


def stamp_of(root: Path, names: Iterable[str]) -> str:
    """One stamp of many files below a folder."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(repr(stamp(f"{root}/{name}")).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


def _frame(found: Collection, key: str, parts: list[Part], folder: str) -> pd.DataFrame:
    """Captions of one key of the index, each with a split or a reason why it is no use."""
    import pandas as pd

    ranks: dict[str, int] = {}
    splits: dict[str, str | None] = {}
    names: dict[Any, str | None] = {}
    ids: dict[str, str] = {}
    told: list[tuple[Any, ...]] = []

    def known(name: Any, where: str) -> str | None:
        """Name of a picture that may be used, ranked; None, with a reason, where it may not."""
        if not isinstance(name, str):
            found.refuse("refused paths", f"{where}: the picture's path is {name!r}, expected text")
            return None
        if name not in names:
            names[name] = _name(found, name, folder, where)
        if (spelt := names[name]) is not None:
            ranks.setdefault(spelt, len(ranks))
        return spelt

    def fault(name: str | None, split: Any, image_id: Any, where: str) -> tuple[str, str | None]:
        """Why a row is no use, or an empty text, and the split that it says."""
        try:
            own = split_in(split) if split is not None else None
        except ValueError as error:
            return found.refuse("unknown splits", f"{where}: {error}"), None
        if name is None:
            return "refused paths", own
        if image_id is not None and (other := ids.setdefault(str(image_id), name)) != name:
            message = f"{where}: image_id {image_id!r} names {other!r} and {name!r}; give every picture its own id"
            return found.refuse("image ids of two pictures", message), own
        if (other_split := splits.setdefault(name, own)) != own:
            message = f"{where}: {name!r} is in split {other_split!r} and {own!r}; choose one"
            return found.refuse("pictures in two splits", message), own
        if own and key not in ("all", own):
            message = f"{where}: the row says {own}, the index {key}: name the file under all, and the rows decide"
            return found.refuse("rows of another split", message), own
        return "", own

    for part in parts:
        found.parts.append(part)
        found.stamps += part.stamped
        for reason, messages in (part.walk.refused if part.walk else {}).items():
            found.refused.setdefault(reason, []).extend(messages)
        for reason, message in part.refused:
            found.refuse(reason, message)
            found.rows[reason] = found.rows.get(reason, 0) + 1
        found.rows_read += len(part.refused)
        for name, place, split in part.bare:
            if (picture := known(name, f"{part.file}, {place}")) and str(split).strip().casefold() in SPLIT_NAMES:
                splits.setdefault(picture, split_in(split))
        for place, name, value, split, image_id, category, flags in part.rows:
            found.rows_read += 1
            where = f"{part.file}, {place}"
            picture = known(name, where)
            reason, own = fault(picture, split, image_id, where)
            pairs = captions_in(value)
            if not pairs:
                lost = reason or "without a caption"
                found.rows[lost] = found.rows.get(lost, 0) + 1
            for text, why in pairs:
                clean = "" if why else clean_caption(text)
                why = reason or why or ("" if clean else EMPTY)
                if why and not reason:
                    found.refuse(why, f"{where}: {WAYS_OUT[why].format(text[:80], picture)}")
                rank = ranks.get(picture or "", -1)
                told.append((picture, text, clean, own, image_id, category, flags, why, found.rows_read, rank))
    found.named |= dict.fromkeys(ranks)
    frame = pd.DataFrame(told, columns=COLUMNS, dtype=object).astype({"row": int, "rank": int})
    frame["split"] = frame.picture.map(_places(found, frame, key, ranks, splits))
    return frame


def _name(found: Collection, name: str, folder: str, where: str) -> str | None:
    """A picture's name below the root, spelt in one way; None, with a reason, where it may not be used."""
    spelt = (f"{folder}/{name}" if folder else name).replace("\\", "/")
    try:
        check_name(spelt)
        if shown(spelt) != spelt:
            raise ValueError(f"the name {shown(spelt)} is not UTF-8: rename the picture")
        if spelt.rsplit("/", 1)[-1].startswith("._") or "__MACOSX" in spelt.split("/"):
            raise ValueError(f"picture {name!r} is a hidden file of a system, no picture: leave its row out")
    except ValueError as error:
        found.refuse("refused paths", f"{where}: {shown(str(error))}")
        return None
    return PurePosixPath(spelt).as_posix() if "//" in spelt or "./" in spelt or spelt.endswith("/") else spelt


def _places(
    found: Collection, frame: pd.DataFrame, key: str, ranks: Mapping[str, int], splits: Mapping[str, str | None]
) -> Mapping[str, str | None]:
    """A split for every picture, and reasons against those without a caption or a split."""
    right = frame[frame.refused == ""]
    good = set(right.picture[(right["flags"] == "") | found.keep_flagged])
    flagged = set(right.picture) - good
    found.flagged_out += [name for name in ranks if name in flagged]
    of_rows = ("image ids of two pictures", "unknown splits", "pictures in two splits", "rows of another split")
    wrong = set(frame.picture[frame.refused.isin(of_rows)])
    own = any(splits.get(name) for name in good)
    for name in ranks:
        if name not in good and name not in flagged and name not in wrong:
            found.refuse("pictures without a caption", f"{found.path}: picture {name!r} has no caption")
        elif own and name in good and not splits.get(name):
            message = f"{found.path}: {name!r} has no split, others have; give one to every picture or to none"
            found.refuse("pictures without a split", message)
    if key in SPLITS:
        return dict.fromkeys(ranks, key)
    found.own_splits |= own
    if own and key == "all":
        return splits
    seed = int(found.options.get("split_seed", 0))
    first = {name: min(group) for group in equal_files(found.root, ranks) for name in group}  # never in two splits
    if key == "all":
        return {name: hashed_split(first.get(name, name), seed) for name in ranks}
    halves = {name: hashlib.sha256(f"half:{seed}:{first.get(name, name)}".encode()).digest()[0] & 1 for name in ranks}
    return {name: "val" if half else "test" for name, half in halves.items()}
