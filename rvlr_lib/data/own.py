"""Collections of one's own: every format in one frame of captions, its splits, and the data set that is made of it."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.data.files import Refused, Stamp, is_hidden, printable, stamp
from rvlr_lib.data.formats import FORMATS, parse, read_part
from rvlr_lib.data.pictures import FileSource, check_header, check_name, decode, equal_files, faults
from rvlr_lib.data.relevance import clean_caption
from rvlr_lib.data.table import SPLIT_NAMES, Part

if TYPE_CHECKING:
    import pandas as pd

FEWEST = 4  # pictures in a split; the notebooks show the first four queries
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # where a file has no splits of its own
PUBLISHED = Path(__file__).parent / "published"
PREPARED = ("flickr30k", "coco", "vizwiz")
INDEX: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys((*SPLITS, "all", "held_out"), (str, list)), "image_root": str, "folders": dict, "image_column": str,
    "caption_column": str, "split_seed": int, "max_bad_pictures": int, "allow_overlap": bool, "keep_flagged": bool,
    "sources": dict}  # fmt: skip
NOT_TOLD = {"nan", "none", "null", "<na>", "n/a", "#n/a", "na", "nat", "undefined"}
STRUCTURE = re.compile(
    r"""\s*(?:[uf]?[\[({]\s*(?:[bru]?['"\[{(]|None|null|nan|[\])}])|(?:array|list|tuple|set)\s*\()"""
)


@dataclass(frozen=True)
class Collection:
    """What an annotation file, a folder or an index says.

    Attributes:
        path: the file, as it was given.
        format: its format, in words.
        root: folder of the pictures.
        frame: a row for each caption found, with the columns ``picture``, ``caption`` (as written), ``clean``, ``split``,
            ``image_id``, ``category``, ``flags`` (names of quality flags, joined by commas), ``refused`` (a reason, or
            empty), ``row`` (number of the row it stands in) and ``rank`` (of its picture).
        refused: reason -> a message for each thing that is no use; loading stops at the first.
        rows: rows read that hold no caption at all, by reason; those of the frame come on top.
        own_splits: whether the file said the splits; else they come from :func:`hashed_split`.
        options: settings that an index carries, ``max_bad_pictures`` and ``allow_overlap``.
        flagged_out: pictures left out because all of their captions are flagged.
        named: pictures that the files name, used or not.
        rows_read: rows of all files.
        parts: the files it was read from.
        stamps: stamps of every file and folder that was read, but for the pictures.
    """

    path: Path
    format: str
    root: Path
    frame: pd.DataFrame
    refused: Refused
    rows: dict[str, int]
    own_splits: bool
    options: dict[str, Any]
    flagged_out: list[str]
    named: list[str]
    rows_read: int
    parts: list[Part]
    stamps: tuple[Stamp, ...]
    keep_flagged: bool = False
    picture_stamps: str = field(default="", compare=False)

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
        unused = list(dict.fromkeys(name for part in self.parts for name in part.unused))
        flagged = 0 if self.keep_flagged else int((self.frame["flags"] != "").sum())
        return (line + f"; {flagged:,} flagged captions left out" * (flagged > 0)
                + f"; not read: {', '.join(unused)}" * bool(unused))  # fmt: skip


def hashed_split(image_id: str, seed: int = 0) -> str:
    """The split of a picture whose file says none: 80 % train, 10 % val, 10 % test, by SHA-256 of seed and id.

    It depends on nothing but these two, so adding or removing pictures moves no other. Files that are equal byte for
    byte take the split of the first of their names.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < SHARES["train"] else "val" if share < SHARES["train"] + SHARES["val"] else "test"


def read_collection(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_seed: int | None = None,
    keep_flagged: bool | None = None,
) -> Collection:
    """Read an annotation file, a folder or an index; the format is recognised by its shape.

    Args:
        path: the file or folder, or the name of a published data set (:data:`PREPARED`).
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        image_column, caption_column: of a table whose columns are none of the usual ones, or several of them.
        split_seed: of :func:`hashed_split`, where the file has no splits.
        keep_flagged: use captions that carry a quality flag (``is_rejected``, ``is_precanned``) too.

    Raises:
        ValueError: no such file or folder, an unknown shape, a missing column or key, not UTF-8. What is wrong with
            single rows, captions and pictures is collected in ``refused``.
    """
    name, base = str(path), None
    if name in PREPARED:
        base = data_home() / name
        path = PUBLISHED / f"{name}.yaml"
    path = printable(Path(path))
    columns = {"image_column": image_column, "caption_column": caption_column}
    if "\0" in str(path) or not (path.is_file() or path.is_dir()):
        fault = "neither a file nor a folder" if "\0" not in str(path) and path.exists() else "not there"
        raise ValueError(f"{path} is {fault}; give an annotation file, a folder or an index; {FORMATS}")
    content = parse(path) if path.suffix.lower() in (".json", ".yaml", ".yml") and path.is_file() else None
    index: Mapping[str, Any] = {"all": path.name}
    own_index = isinstance(content, dict) and bool(set(content) & {*SPLITS, "all", "held_out"})
    if own_index and isinstance(content, dict):
        index = _checked(path, content)
        root = _existing(Path(image_root or (base or path.parent) / index.get("image_root", ".")), index, base)
    else:
        root = _existing(Path(image_root or (path if path.is_dir() else path.parent)))
    given = {"split_seed": split_seed, "keep_flagged": keep_flagged, **columns}
    options = {**index, **{key: value for key, value in given.items() if value is not None}}
    columns = {key: options.get(key) for key in columns}
    builder = _Builder(path, root, bool(options.get("keep_flagged")), int(options.get("split_seed", 0)))
    stamps, kinds = [stamp(path)] if own_index else [], dict[str, None]()
    for key in (*SPLITS, "all", "held_out"):
        names = index.get(key) or []
        parts = []
        for file in [names] if isinstance(names, str) else names:
            place = (base or path.parent) / file if own_index else path
            if not place.exists():
                source = index.get("sources", {}).get(file)
                raise ValueError(
                    f"{path}: {key} names {file!r}, and {place} is not there" + f"; it is {source}" * bool(source)
                )
            parts.append(read_part(place, root, columns, assigned=key not in ("all", "held_out")))
            kinds[parts[-1].kind] = None
        builder.add(key, parts, (index.get("folders") or {}).get(key, ""))
        stamps += [one for part in parts for one in part.stamped]
    kind = ", ".join(kinds)
    return builder.collection(Path(name) if base else path, f"index of {kind}" if own_index else kind,
                              "all" not in index, options, tuple(stamps))  # fmt: skip


def _checked(path: Path, index: Mapping[str, Any]) -> Mapping[str, Any]:
    """An index whose keys are known and whose values are of their types."""
    if unknown := [key for key in index if key not in INDEX]:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; an index has: {', '.join(INDEX)}")
    index = {key: value for key, value in index.items() if value is not None}
    for key, value in index.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else []
        if not isinstance(value, INDEX[key]) or not all(isinstance(text, str) for text in texts) or (
            INDEX[key] is int and (isinstance(value, bool) or value < 0)):  # fmt: skip
            names = {str: "a text", int: "a whole number from 0", bool: "true or false", dict: "texts by name"}
            kind = INDEX[key]
            wanted = "a file or a list of files" if isinstance(kind, tuple) else names[kind]
            raise ValueError(f"{path}: {key} is {value!r}, expected {wanted}")
    return index


def _existing(root: Path, index: Mapping[str, Any] | None = None, base: Path | None = None) -> Path:
    printable(root)
    if missing := [name for name in (index or {}).get("sources", {}) if base and not (base / name).exists()]:
        lines = [f"  {name}: {(index or {})['sources'][name]}" for name in missing]
        raise ValueError(f"{base} lacks {', '.join(missing)} (set RVLR_DATA to look elsewhere):\n" + "\n".join(lines))
    if not root.is_dir():
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    return root


def data_home() -> Path:
    """Folder of the published data sets: ``$RVLR_DATA``, else ``data/`` of the checkout, else ``data/`` here."""
    if "RVLR_DATA" in os.environ:
        return Path(os.environ["RVLR_DATA"])
    checkout = Path(__file__).parents[2]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data"


def captions_in(value: Any) -> list[tuple[str, str]]:
    """The captions of a cell or key, each with a reason why it is none, or an empty one.

    >>> captions_in("a dog"), captions_in("['a dog', 'a cat']"), captions_in("nan")
    ([('a dog', '')], [('a dog', ''), ('a cat', '')], [('nan', 'placeholders of missing captions')])
    """
    if isinstance(value, str):
        if value[:1] in "[({ \tualst" and STRUCTURE.match(value) and value.rstrip()[-1:] in "])}":
            return _structured(value)
        if value.strip().casefold() in NOT_TOLD:
            return [(value, "placeholders of missing captions")]
        return [(value, "")]
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple) for item in value):
        return [pair for item in value for pair in captions_in(item)]
    missing = value is None or (isinstance(value, float) and value != value)
    return [(str(value), "placeholders of missing captions" if missing else "captions that are no text")]


def _structured(text: str) -> list[tuple[str, str]]:
    """The captions of a list that was written into a cell, as JSON or Python has it."""
    refused = [(text, "cells that hold a structure")]
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        try:
            if re.search(r"""(['"])\s+(['"])(?!\s*[,\])])""", text):  # as numpy prints: Python would join neighbours
                return refused
            items = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return refused
    if isinstance(items, str):
        return [(items, "")]
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) or item is None for item in items):
        return refused
    return [(str(item), "placeholders of missing captions" if item is None or item.strip().casefold() in NOT_TOLD else "")
            for item in items]  # fmt: skip


WAYS_OUT = {
    "empty captions": "the caption {!r} of {!r} has no word: write one or leave it out",
    "placeholders of missing captions": "the caption {!r} of {!r} stands for a missing value: write one or leave it out",
    "captions that are no text": "a caption is {} of {!r}, expected text or a list of texts",
    "cells that hold a structure": "the caption {!r} of {!r} is a structure that cannot be read: write one caption, or a "
    'list of texts as JSON has it, ["one", "two"]',
}


class _Builder:
    """Parts of a collection to its frame."""

    COLUMNS = ("picture", "caption", "clean", "split", "image_id", "category", "flags", "refused", "row", "rank", "key")

    def __init__(self, path: Path, root: Path, keep_flagged: bool, seed: int) -> None:
        self.path, self.root, self.keep_flagged, self.seed = path, root, keep_flagged, seed
        self.refused: Refused = {}
        self.rows: dict[str, int] = {}
        self.parts: list[Part] = []
        self.flagged_out: list[str] = []
        self.frames: list[pd.DataFrame] = []
        self.named: dict[str, None] = {}
        self.count, self.own_splits = 0, False

    def refuse(self, reason: str, message: str) -> None:
        self.refused.setdefault(reason, []).append(message)

    def add(self, key: str, parts: Sequence[Part], folder: str) -> None:
        """Rows of one key of the index."""
        import pandas as pd

        ranks: dict[str, int] = {}
        splits: dict[str, str | None] = {}
        names: dict[Any, str | None] = {}
        ids: dict[str, str] = {}
        told: list[tuple[Any, ...]] = []

        def known(name: Any, where: str, split: Any) -> str | None:
            """Name of a picture that may be used, ranked; None, with a reason, where it may not."""
            if not isinstance(name, str):
                self.refuse("refused paths", f"{where}: the picture's path is {name!r}, expected text")
                return None
            if name not in names:
                names[name] = self._name(name, folder, where)
            if (found := names[name]) is None:
                return None
            ranks.setdefault(found, len(ranks))
            return found

        for part in parts:
            self.parts.append(part)
            for reason, message in part.refused:
                self.refuse(reason, message)
                self.rows[reason] = self.rows.get(reason, 0) + 1
            for reason, messages in (part.walk.refused if part.walk else {}).items():
                self.refused.setdefault(reason, []).extend(messages)
            self.count += len(part.refused)
            said: dict[Any, str | None] = {None: None}
            for name, place, split in part.bare:
                if (found := known(name, f"{part.file}, {place}", split)) is not None:
                    splits.setdefault(found, self._split(split, said, f"{part.file}, {place}"))
            for place, name, value, split, image_id, category, flags in zip(
                part.where,
                part.picture,
                part.caption,
                part.split,
                part.image_id,
                part.category,
                part.flags,
                strict=True,
            ):
                self.count += 1
                where, row = f"{part.file}, {place}", self.count
                found = known(name, where, split)
                own = self._split(split, said, where) if split is not None else None
                reason = "" if found is not None else "refused paths"
                if found is not None and image_id is not None and ids.setdefault(str(image_id), found) != found:
                    reason = "image ids of two pictures"
                    self.refuse(reason, f"{where}: image_id {image_id!r} names {ids[str(image_id)]!r} and {found!r}; give "
                                "every picture its own id")  # fmt: skip
                elif own == "":
                    reason = "unknown splits"
                elif found is not None and splits.setdefault(found, own) != own:
                    reason = "pictures in two splits"
                    self.refuse(reason, f"{where}: {found!r} is in split {splits[found]!r} and {own!r}; choose one")
                elif own and key not in ("all", own):
                    reason = "rows of another split"
                    self.refuse(reason, f"{where}: the row says {own}, the index {key}: name the file under all, and the "
                                "rows decide")  # fmt: skip
                pairs = captions_in(value)
                if not pairs:
                    self.rows[reason or "without a caption"] = self.rows.get(reason or "without a caption", 0) + 1
                for text, why in pairs:
                    clean = "" if why else clean_caption(text)
                    why = why or ("" if clean else "empty captions")
                    if why and not reason:
                        self.refuse(why, f"{where}: {WAYS_OUT[why].format(text[:80], found)}")
                    told.append((found, text, clean, own or None, image_id, category, flags, reason or why, row,
                                 ranks.get(found or "", -1), key))  # fmt: skip
        self.named |= dict.fromkeys(ranks)
        frame = pd.DataFrame(told, columns=list(self.COLUMNS), dtype=object).astype({"row": int, "rank": int})
        self.frames.append(self._placed(frame, key, ranks, splits))

    def _name(self, name: str, folder: str, where: str) -> str | None:
        whole = f"{folder}/{name}" if folder else name
        try:
            check_name(whole)
            spelt = whole.replace("\\", "/")
            spelt = PurePosixPath(spelt).as_posix() if "//" in spelt or "./" in spelt or spelt[-1:] == "/" else spelt
            if spelt.rsplit("/", 1)[-1].startswith("._") or (is_hidden(spelt.split("/", 1)[0]) and spelt[0] == "_"):
                raise ValueError(f"picture {name!r} is a hidden file of a system, no picture: leave its row out")
            spelt.encode()
        except UnicodeEncodeError:
            self.refuse("refused paths", f"{where}: the name {name!a} is not UTF-8: rename the picture")
        except ValueError as error:
            self.refuse("refused paths", f"{where}: {error}")
        else:
            return spelt
        return None

    def _split(self, value: Any, said: dict[Any, str | None], where: str) -> str | None:
        """The split that a row says; None: none, empty: an unknown one."""
        value = str(value).strip().casefold() if value is not None else None
        if value not in said:
            said[value] = None if value in ("", *NOT_TOLD) else SPLIT_NAMES.get(value or "", "")
            if said[value] == "":
                self.refuse("unknown splits", f"{where}: split {value!r} is unknown; valid: {', '.join(SPLIT_NAMES)}")
        return said[value]

    def _placed(self, frame: pd.DataFrame, key: str, ranks: dict[str, int],
                splits: dict[str, str | None]) -> pd.DataFrame:  # fmt: skip
        """The frame with a split for every picture."""
        right = frame[frame.refused == ""]
        good = set(right.picture) if self.keep_flagged else set(right.picture[right["flags"] == ""])
        flagged = set(right.picture) - good
        self.flagged_out += [name for name in ranks if name in flagged]
        wrong = set(
            frame.picture[frame.refused.isin(("image ids of two pictures", "unknown splits", "pictures in two splits"))]
        )
        for name in ranks:
            if name not in good and name not in flagged and name not in wrong:
                self.refuse("pictures without a caption", f"{self.path}: picture {name!r} has no caption")
        own = any(value for name, value in splits.items() if name in good)
        self.own_splits |= own
        if own and (without := [name for name in ranks if name in good and not splits.get(name)]):
            self.refused.setdefault("pictures without a split", []).extend(
                f"{self.path}: {name!r} has no split, others have; give one to every picture or to none"
                for name in without
            )
        places: dict[str, str] = {}
        if key in SPLITS:
            places = dict.fromkeys(ranks, key)
        elif key == "held_out" or not own:
            groups = equal_files(self.root, list(ranks))
            alike = {name: min(group) for group in groups for name in group}  # equal files: never in two splits
            for name in ranks:
                first = alike.get(name, name)
                places[name] = (
                    hashed_split(first, self.seed) if key == "all" else "val" if self._half(first) else "test"
                )
        else:
            places = {name: split or "" for name, split in splits.items()}
        frame["split"] = frame.picture.map(places)
        return frame

    def _half(self, name: str) -> bool:
        return bool(hashlib.sha256(f"half:{self.seed}:{name}".encode()).digest()[0] & 1)

    def collection(
        self, path: Path, kind: str, own: bool, options: dict[str, Any], stamps: tuple[Stamp, ...]
    ) -> Collection:
        import pandas as pd

        whole = [frame for frame in self.frames if len(frame)] or self.frames[:1]
        frame = pd.concat(whole, ignore_index=True)
        kept = {key: options[key] for key in ("max_bad_pictures", "allow_overlap", "split_seed") if key in options}
        return Collection(path, kind, self.root, frame, self.refused, self.rows, own or self.own_splits, kept,
                          self.flagged_out, list(self.named), self.count, self.parts, stamps, self.keep_flagged,
                          _pictures_stamp(self.root, frame.picture.dropna().unique()))  # fmt: skip


def _pictures_stamp(root: Path, names: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for name in names:
        digest.update(repr(stamp(f"{root}/{name}")).encode("utf-8", "backslashreplace"))
    return digest.hexdigest()


_READ: dict[tuple[Any, ...], Collection] = {}


def _collection(path: str | Path, image_root: str | Path | None, **options: Any) -> Collection:
    """Read and describe a collection once; again when a file that it was read from has changed."""
    key = (str(path), None if image_root is None else str(image_root), os.getcwd(), os.environ.get("RVLR_DATA"),
           *options.items())  # fmt: skip
    found = _READ.get(key)
    if found and all(stamp(one[0]) == one for one in found.stamps) and (
        found.picture_stamps == _pictures_stamp(found.root, found.frame.picture.dropna().unique())):  # fmt: skip
        return found
    _READ.pop(key, None)
    found = read_collection(path, image_root, **options)
    print(found.describe())
    while len(_READ) > 3:
        _READ.pop(next(iter(_READ)))
    _READ[key] = found
    return found


def file_stamps(path: str | Path, image_root: str | Path | None = None, **options: Any) -> tuple[Any, ...]:
    """Stamps of every file that a collection is read from, its pictures as one: part of every cache in the process.

    Raises:
        ValueError: as :func:`read_collection`.
    """
    found = _collection(path, image_root, **options)
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
    """Load one split of your own pictures; what was recognised is printed once.

    Ids are the pictures' paths below ``image_root``. Captions are cleaned (:func:`rvlr_lib.data.clean_caption`) and
    keep their order; a repeated one stays. Pictures are read when asked for.

    Args:
        path: annotation file, folder, or index; see :data:`rvlr_lib.data.formats.FORMATS`.
        split: ``train``, ``val`` or ``test``; of files without splits 80/10/10 by a hash of each picture's id.
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        limit: only so many pictures of the split, evenly spaced.
        max_bad_pictures: how many pictures of the split that are missing, damaged or too large may be left out; the
            number left out is printed and stands in ``info``. With 0, the default, missing files and bad headers are
            errors now, damaged files when they are read. With 1 or more every picture is decoded once here.
        image_column, caption_column: of a table with other than the usual columns.
        split_seed: of the hash.
        keep_flagged: use captions that carry a quality flag (``is_rejected``, ``is_precanned``) too.

    Raises:
        ValueError: whatever :func:`read_collection` refuses, an unknown split, a split with fewer than 4 pictures, a
            picture in two splits, an empty caption, too many bad pictures.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; own pictures have {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is too small; give at least 1, or None for all")
    found = _collection(path, image_root, image_column=image_column, caption_column=caption_column,
                        split_seed=split_seed, keep_flagged=keep_flagged)  # fmt: skip
    _refuse(found)
    allowed = int(found.options.get("max_bad_pictures", 0) if max_bad_pictures is None else max_bad_pictures)
    part = found.split(split)
    names = list(part.picture.unique())
    if limit is not None and limit < len(names):
        names = [names[i] for i in np.linspace(0, len(names) - 1, limit).astype(int)]
    bad = faults(decode if allowed else check_header, found.root, names)
    if len(bad) > allowed:
        cap = f"max_bad_pictures={allowed} allows {allowed}" if allowed else "none is allowed (max_bad_pictures=0)"
        raise ValueError(f"{found.path}: {len(bad)} pictures of {split} cannot be used, {cap}; the first: "
                         f"{next(iter(bad.values()))}")  # fmt: skip
    if bad:
        print(f"{found.path.name}: {len(bad)} of {len(names)} pictures of {split} left out "
              f"(max_bad_pictures={allowed}), the first: {next(iter(bad.values()))}")  # fmt: skip
    names = [name for name in names if name not in bad]
    if len(names) < min(FEWEST, limit or FEWEST):
        raise ValueError(f"{found.path}: {split} has {len(names)} pictures, at least {FEWEST} are needed; give more "
                         f"pictures, or an index with a file for each split ({found.describe()})")  # fmt: skip
    rows = {name: row for row, name in enumerate(names)}
    part = part[part.picture.isin(rows)]
    categories = part.drop_duplicates("picture").category.tolist()
    return ImageTextDataset(
        name=found.path.stem,
        split=split,
        image_ids=names,
        captions=part.clean.tolist(),
        caption_image=part.picture.map(rows).to_numpy(dtype=np.int64),
        source=FileSource(found.root, names),
        categories=[str(category) for category in categories] if all(categories) else None,
        info={"format": found.format, "own_splits": found.own_splits, "split_seed": found.options.get("split_seed", 0),
              "images": len(names), "limit": limit, "bad_pictures_left_out": sorted(bad),
              "flagged_captions_left_out": 0 if found.keep_flagged else int((found.frame["flags"] != "").sum())},
    )  # fmt: skip


def _refuse(found: Collection) -> None:
    """Stop at the first fault of the file, or where two splits share pictures."""
    for kind, messages in found.refused.items():
        more = f" ({len(messages)} {kind} in all: `rvlr data check {found.path}` lists them)" if messages[1:] else ""
        raise ValueError(messages[0] + more)
    for pair, names in found.overlap().items():
        if not found.options.get("allow_overlap"):
            raise ValueError(f"{found.path}: {pair} share {len(names)} pictures, {names[0]!r} first, so a result would "
                             "be of pictures seen before; name one file as held_out, which is halved into val and "
                             "test, or say allow_overlap: true in the index")  # fmt: skip
