"""The annotation files that are understood, each recognised by its shape, to one list of pictures with captions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from rvlr_lib.data.pictures import SUFFIXES, check_name, equal_files
from rvlr_lib.data.relevance import clean_caption

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {name: name for name in SPLITS} | {"restval": "train", "dev": "val", "valid": "val", "validation": "val"}
SHARES = {"train": 0.8, "val": 0.1, "test": 0.1}  # where a file has no splits of its own
IMAGE_COLUMNS = ("filepath", "image", "file_name", "filename", "image_name", "path")
CAPTION_COLUMNS = ("title", "caption", "text", "comment")
INDEX_KEYS = (*SPLITS, "all", "held_out", "image_root", "folders", "image_column", "caption_column", "split_seed",
              "max_bad_pictures", "allow_overlap")  # fmt: skip
FORMATS = """formats understood:
  list JSON (ALBEF, X-VLM):  [{"image": "a.jpg", "caption": "one" or ["one", "two"], "image_id": 0}, ...]
  Karpathy JSON:             {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}
  COCO captions JSON:        {"images": [{"id": 1, "file_name": "a.jpg"}],
                              "annotations": [{"image_id": 1, "caption": "one"}]}
  CSV or TSV with a header:  filepath,title (as open_clip); a picture may have several
                              rows, or columns caption_1, caption_2; also split, category
  a folder:                  a.jpg beside a.txt, one caption a line; folders train, val, test are splits
  an index, JSON or YAML:    {train: a.json, val: b.json, test: c.json, image_root: pictures}"""


@dataclass(frozen=True)
class Entry:
    """One picture: its file below the root, which is also its id, its captions as written, its split and category."""

    name: str
    captions: tuple[str, ...]
    split: str
    category: str | None = None


@dataclass(frozen=True)
class Annotations:
    """What an annotation file says.

    Attributes:
        path: the file.
        format: its format, in words.
        root: folder of the pictures.
        entries: a picture each; one that two splits hold stands once in each.
        own_splits: whether the file said the splits; else they come from :func:`hashed_split`.
        faults: kind of fault -> one message each, for ``rvlr data check``; loading stops at the first.
        options: settings that an index carries, ``max_bad_pictures`` and ``allow_overlap``.
    """

    path: Path
    format: str
    root: Path
    entries: list[Entry]
    own_splits: bool
    faults: dict[str, list[str]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    def split(self, name: str) -> list[Entry]:
        """The pictures of one split, in the order of the file."""
        return [entry for entry in self.entries if entry.split == name]

    def overlap(self) -> dict[str, list[str]]:
        """``train and val`` -> names of the pictures in both."""
        names = {split: {entry.name for entry in self.split(split)} for split in SPLITS}
        pairs = (("train", "val"), ("train", "test"), ("val", "test"))
        return {f"{a} and {b}": sorted(names[a] & names[b]) for a, b in pairs if names[a] & names[b]}

    def describe(self) -> str:
        """One line: format, counts and where the splits come from."""
        counts = {name: self.split(name) for name in SPLITS}
        parts = [f"{name} {len(part):,}/{sum(len(e.captions) for e in part):,}" for name, part in counts.items()]
        origin = "own splits" if self.own_splits else "split 80/10/10 by a hash of each picture's name"
        return f"{self.path.name}: {self.format}; {origin}; pictures/captions: {', '.join(parts)}"


class Row(NamedTuple):
    """One line of a file: a picture's name, some captions, where it stands, and what else the line says."""

    name: Any
    captions: Any
    where: str
    image_id: Any = None
    split: str | None = None
    category: str | None = None


def read_annotations(
    path: Path,
    image_root: Path | None = None,
    *,
    image_column: str | None = None,
    caption_column: str | None = None,
    split_seed: int = 0,
) -> Annotations:
    """Read an annotation file, a folder or an index; the format is recognised by its shape.

    Args:
        path: the file or folder.
        image_root: folder of the pictures; default what an index says, else the folder of the file.
        image_column: CSV and TSV: column of the picture's path, where it is none of the usual ones.
        caption_column: the same for the caption.
        split_seed: of :func:`hashed_split`, where the file has no splits.

    Raises:
        ValueError: no such file or folder, an unknown shape (lists :data:`FORMATS`), a missing column or key, not
            UTF-8, one id for two pictures. Empty captions, paths that leave the root and pictures without captions are
            collected in ``faults``.
    """
    path = Path(path)
    columns = {"image_column": image_column, "caption_column": caption_column}
    if not path.exists():
        raise ValueError(f"{path} is not there; give an annotation file, a folder or an index; {FORMATS}")
    content = _parse(path) if path.suffix.lower() in (".json", ".yaml", ".yml") else None
    if isinstance(content, dict) and set(content) & {*SPLITS, "all", "held_out"}:
        return _read_index(path, content, image_root, columns, split_seed)
    root = _existing(image_root or (path if path.is_dir() else path.parent))
    kind, rows = _rows(path, content, columns, root)
    entries, own, faults = _group(path, rows, split_seed, None, root)
    return Annotations(path, kind, root, entries, own, faults)


def hashed_split(image_id: str, seed: int = 0) -> str:
    """The split of a picture whose file says none: 80 % train, 10 % val, 10 % test, by SHA-256 of seed and id.

    It depends on nothing but these two, so adding or removing pictures moves no other. Files that are equal byte for
    byte take the split of the first of their names.

    >>> [hashed_split(f"{i}.jpg") for i in range(5)]
    ['train', 'train', 'train', 'train', 'val']
    """
    share = int.from_bytes(hashlib.sha256(f"{seed}:{image_id}".encode()).digest()[:8]) / 2**64
    return "train" if share < SHARES["train"] else "val" if share < SHARES["train"] + SHARES["val"] else "test"


def _read_index(
    path: Path, index: Mapping[str, Any], image_root: Path | None, columns: Mapping[str, str | None], seed: int
) -> Annotations:
    """An index: a file or a list of files per split; ``held_out`` is halved into val and test by hash."""
    unknown = sorted(set(index) - set(INDEX_KEYS))
    if unknown:
        raise ValueError(f"{path}: unknown key {unknown[0]!r}; an index has: {', '.join(INDEX_KEYS)}")
    root = _existing(image_root or path.parent / (index.get("image_root") or "."))
    columns = {name: given or index.get(name) for name, given in columns.items()}
    seed = int(index.get("split_seed", seed))
    entries: list[Entry] = []
    faults: dict[str, list[str]] = {}
    kinds: dict[str, None] = {}
    own = "all" not in index
    for key in (*SPLITS, "all", "held_out"):
        names = index.get(key) or []
        folder = (index.get("folders") or {}).get(key, "")
        rows: list[Row] = []
        for name in [names] if isinstance(names, str) else names:
            part = path.parent / name
            if not part.exists():
                raise ValueError(f"{path}: {key} names {name!r}, and {part} is not there")
            content = _parse(part) if part.suffix.lower() == ".json" else None
            kind, found = _rows(part, content, columns, root)
            kinds[kind] = None
            rows += [row._replace(name=f"{folder}/{row.name}" if folder else row.name) for row in found]
        more, told, bad = _group(path, rows, seed, None if key == "all" else key, root)
        entries, own = entries + more, own or told
        for kind, messages in bad.items():
            faults.setdefault(kind, []).extend(messages)
    options = {key: index[key] for key in ("max_bad_pictures", "allow_overlap") if key in index}
    return Annotations(path, f"index of {', '.join(kinds)}", root, entries, own, faults, options)


def _group(
    path: Path, rows: Sequence[Row], seed: int, split: str | None, root: Path
) -> tuple[list[Entry], bool, dict[str, list[str]]]:
    """Rows to pictures: captions of one picture together, in order; whether the rows said the splits; and faults."""
    captions: dict[str, list[str]] = {}
    about: dict[str, tuple[str | None, str | None]] = {}
    named: dict[str, str] = {}
    faults: dict[str, list[str]] = {}
    for row in rows:
        if not isinstance(row.name, str):
            raise ValueError(f"{row.where}: the picture's path is {row.name!r}, expected text; {FORMATS}")
        try:
            check_name(row.name)
        except ValueError as error:
            faults.setdefault("refused paths", []).append(f"{row.where}: {error}")
            continue
        name = PurePosixPath(row.name.replace("\\", "/")).as_posix()
        if row.image_id is not None and named.setdefault(str(row.image_id), name) != name:
            raise ValueError(f"{row.where}: image_id {row.image_id!r} names {named[str(row.image_id)]!r} and {name!r}; "
                             "give every picture its own id")  # fmt: skip
        about.setdefault(name, (row.split, row.category))
        if about[name][0] != row.split:
            raise ValueError(f"{row.where}: {name!r} is in split {about[name][0]!r} and {row.split!r}; choose one")
        own = captions.setdefault(name, [])
        for caption in row.captions if isinstance(row.captions, list | tuple) else [row.captions]:
            if not isinstance(caption, str):
                raise ValueError(f"{row.where}: a caption is {caption!r}, expected text; {FORMATS}")
            if clean_caption(caption):
                own.append(caption)
            else:
                message = f"{row.where}: the caption {caption!r} of {name!r} has no word: write one or leave it out"
                faults.setdefault("empty captions", []).append(message)
    own_splits = any(value is not None for value, _ in about.values())
    bare = next((name for name, (value, _) in about.items() if own_splits and value is None), None)
    if bare is not None:
        raise ValueError(f"{path}: {bare!r} has no split, others have; give one to every picture or to none")
    hashed = split == "held_out" or not (split or own_splits)
    groups = equal_files(root, captions) if hashed else []
    first = {name: min(group) for group in groups for name in group}  # equal files under one name: never in two splits
    entries = []
    for name, texts in captions.items():
        alike = first.get(name, name)
        if not texts:
            faults.setdefault("pictures without a caption", []).append(f"{path}: picture {name!r} has no caption")
            continue
        own_split, category = about[name]
        if split == "held_out":
            place = "val" if _half(alike, seed) else "test"
        else:
            place = split or own_split or hashed_split(alike, seed)
        entries.append(Entry(name, tuple(texts), place, category))
    return entries, own_splits, faults


def _half(name: str, seed: int) -> bool:
    return bool(hashlib.sha256(f"half:{seed}:{name}".encode()).digest()[0] & 1)


def _rows(path: Path, content: Any, columns: Mapping[str, str | None], root: Path) -> tuple[str, list[Row]]:
    """Format and rows of one file or folder."""
    if path.is_dir():
        return "folder of pictures and texts", list(_folder_rows(path, root))
    if path.suffix.lower() in (".csv", ".tsv"):
        return path.suffix[1:].upper(), list(_table_rows(path, columns))
    if isinstance(content, list) and content:
        return "list JSON", list(_list_rows(path, content))
    if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
        if isinstance(content.get("annotations"), list):
            return "COCO captions JSON", list(_coco_rows(path, content))
        if all(isinstance(image, dict) and "sentences" in image for image in content["images"][:1]):
            return "Karpathy JSON", list(_karpathy_rows(path, content["images"]))
    if content is None:
        shape = f"a {path.suffix or 'nameless'} file"
    else:
        keys = f" with keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else ""
        shape = f"{'an empty ' if not content else ''}{type(content).__name__}{keys}"
    raise ValueError(f"{path} is {shape}, which is no known format; {FORMATS}")


def _list_rows(path: Path, items: Sequence[Any]) -> Iterator[Row]:
    for number, item in enumerate(items):
        where = f"{path}, row {number}"
        name, captions = _need(item, "image", where), _need(item, "caption", where)
        yield Row(name, captions, where, item.get("image_id"), _split(item.get("split"), where), item.get("category"))


def _karpathy_rows(path: Path, images: Sequence[Any]) -> Iterator[Row]:
    for number, image in enumerate(images):
        where = f"{path}, images[{number}]"
        name, folder = _need(image, "filename", where), image.get("filepath")
        captions = [_need(sentence, "raw", f"{where}, sentences") for sentence in _need(image, "sentences", where)]
        yield Row(f"{folder}/{name}" if folder else name, captions, where, split=_split(image.get("split"), where))


def _coco_rows(path: Path, content: Mapping[str, Any]) -> Iterator[Row]:
    names: dict[Any, str] = {}
    for number, image in enumerate(content["images"]):
        where = f"{path}, images[{number}]"
        key, name = _need(image, "id", where), _need(image, "file_name", where)
        if key in names:
            raise ValueError(f"{where}: id {key!r} stands twice, for {names[key]!r} and {name!r}; ids must differ")
        names[key] = name
        yield Row(name, [], where, key)
    for number, caption in enumerate(content["annotations"]):
        where = f"{path}, annotations[{number}]"
        key = _need(caption, "image_id", where)
        if key not in names:
            raise ValueError(f"{where}: image_id {key!r} is no id of the images; add the image or drop the caption")
        yield Row(names[key], _need(caption, "caption", where), where, key)


def _table_rows(path: Path, columns: Mapping[str, str | None]) -> Iterator[Row]:
    """CSV or TSV; the separator is the one under which the header names a picture."""
    text = _text(path)
    header = text.splitlines()[:1]
    image = [columns["image_column"]] if columns["image_column"] else IMAGE_COLUMNS
    caption: Sequence[str | None] = [columns["caption_column"]] if columns["caption_column"] else CAPTION_COLUMNS
    headers = {mark: [name.strip() for name in next(csv.reader(header, delimiter=mark), [])] for mark in ",\t;|"}
    mark = next((mark for mark, names in headers.items() if set(names) & set(image)), ",")
    names = headers[mark]
    numbered = [name for name in names if re.fullmatch(rf"({'|'.join(CAPTION_COLUMNS)})[ _]?\d+", name)]
    caption = caption if set(caption) & set(names) else numbered or caption
    for wanted, known, option in ((image, "picture", "image_column"), (caption, "caption", "caption_column")):
        if not set(names) & set(wanted):
            raise ValueError(f"{path} has columns {', '.join(names) or 'none'}; none of them is the {known}'s, which "
                             f"is one of {', '.join(map(str, wanted))}; or name it with {option}")  # fmt: skip
    at = next(names.index(name) for name in image if name in names)
    told = [names.index(name) for name in caption if name in names]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True)
    try:
        for number, cells in enumerate(reader):
            if number == 0 or not cells:
                continue
            where = f"{path}, line {reader.line_num}"
            if len(cells) != len(names):
                raise ValueError(f"{where}: {len(cells)} fields, the header has {len(names)}; "
                                 f"a caption that holds {mark!r} needs quotes around it")  # fmt: skip
            row = dict(zip(names, cells, strict=True))
            texts = [cells[k] for k in told if cells[k].strip()] if caption is numbered else cells[told[0]]
            yield Row(cells[at].strip(), texts, where, row.get("image_id") or None,
                      _split(row.get("split") or None, where), row.get("category") or None)  # fmt: skip
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; check the quotes") from None


def _folder_rows(folder: Path, root: Path) -> Iterator[Row]:
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} lies outside image_root {root}; leave image_root out for a folder")
    pictures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not pictures:
        raise ValueError(f"{folder} holds no picture ({', '.join(SUFFIXES)}); {FORMATS}")
    inside = folder.resolve().relative_to(root.resolve())
    own = {path.name for path in folder.iterdir() if path.is_dir()}
    split_folders = bool(own) and own <= set(SPLIT_NAMES)
    for path in pictures:
        told, place = path.with_suffix(".txt"), path.relative_to(folder)
        captions = [line for line in _text(told).splitlines() if line.strip()] if told.is_file() else []
        split = _split(place.parts[0], str(folder)) if split_folders and len(place.parts) > 1 else None
        yield Row((inside / place).as_posix(), captions, str(path), split=split)


def _split(name: Any, where: str) -> str | None:
    if name is None:
        return None
    if str(name).lower() not in SPLIT_NAMES:
        raise ValueError(f"{where}: split {name!r} is unknown; valid: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[str(name).lower()]


def _need(item: Any, key: str, where: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        keys = f"has {', '.join(map(repr, item))}" if isinstance(item, dict) else f"is {str(item)[:60]!r}"
        raise ValueError(f"{where} lacks the key {key!r}: it {keys}; {FORMATS}")
    return item[key]


def _existing(root: Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"image_root {root} is no folder; give the folder of the pictures")
    return root


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start} is {error.object[error.start]:#04x}): "
                         "save it as UTF-8") from None  # fmt: skip


def _parse(path: Path) -> Any:
    """JSON or YAML, by the file's ending."""
    import yaml

    try:
        return json.loads(_text(path)) if path.suffix.lower() == ".json" else yaml.safe_load(_text(path))
    except (json.JSONDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no valid {path.suffix[1:].upper()}: {error}") from None
