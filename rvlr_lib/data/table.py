"""What columns and cells say: names of columns, captions of a cell, splits, flags; and tables, line by line."""

import ast
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import Stamp, Walk, read_text
from rvlr_lib.data.pictures import SUFFIXES

COLUMNS = {  # what a column or key holds -> its usual names
    "image": "filepath file_path image file_name filename image_name image_path image_file imagepath path img img_path "
    "img_name img_file picture photo file",
    "caption": "title caption text comment description sentence raw alt_text alt",
    "split": "split subset partition set",
    "image_id": "image_id img_id",
    "category": "category",
}
CAPTION_WORDS = set("caption captions sentence sentences description".split())  # within the name of a column
OTHER_WORDS = set("id ids number num count index length len lang language score source".split())  # of no caption then
FLAG = re.compile(r"(is_)?(rejected|precanned|spam|flagged|bad|invalid|deleted|blocked|unusable|offensive|nsfw)", re.I)
SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys("val valid validation dev development".split(), "val")
MISSING_TEXTS = {"nan", "none", "null", "<na>", "n/a", "#n/a", "na", "nat", "undefined"}
BEGINNING = r"[uf]?[\[({]\s*([bru]?['\"]|[\[({\])}]|None|null|nan)|(array|list|tuple|set)\s*\("
STRUCTURE = re.compile(rf"\s*({BEGINNING}).*[\])}}]\s*", re.I | re.S)
WAYS_OUT = {  # why a text is no caption; to be filled with the text and its picture
    "empty captions": "the caption {!r} of {!r} has no word: write one or leave it out",
    "placeholders of missing captions": "the caption {!r} of {!r} is a missing value: write one or leave it out",
    "captions that are no text": "a caption is {} of {!r}, expected text or a list of texts",
    "cells that hold a structure": "the caption {!r} of {!r} is a structure: write a text, or a list of texts as JSON",
}
EMPTY, MISSING, NO_TEXT, NO_LIST = WAYS_OUT
PICTURE = rf"\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)})"
TOKEN = re.compile(rf"[^\t,]*{PICTURE}(#\d+)?\t.", re.I)  # a line of a file without a header
NUMBERED = re.compile(rf"({PICTURE})#\d+$", re.I)  # a.jpg#0, a caption's number
QUOTED = re.compile(r'\A"((?:[^"]|"")*)"\Z')
LISTED = object()  # in the place of captions, where a file lists a picture by itself: it needs captions too
Row = tuple[str, Any, Any, Any, Any, Any, str]  # place, picture, captions, split, image id, category, flags


@dataclass
class Collection:
    """What an annotation file, a folder or an index says, and an account of everything read."""

    path: Path  # as it was given
    root: Path  # folder of the pictures
    options: dict[str, Any]  # given or of the index
    own_splits: bool  # the file said the splits; else hashes do
    kinds: dict[str, None] = field(default_factory=dict)  # formats of its files, in words
    frame: Any = None  # a caption each: picture, caption, clean, split, image_id, category, flags, refused (why), row
    refused: dict[str, list[str]] = field(default_factory=dict)  # reason -> messages; loading stops at the first
    rows_read: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # rows without any caption, by reason
    lines_read: int = 0
    lines: Counter[str] = field(default_factory=Counter)  # the same lines by what they are
    columns: dict[str, None] = field(default_factory=dict)  # columns and keys that are read
    unread: dict[str, None] = field(default_factory=dict)
    named: dict[str, None] = field(default_factory=dict)  # pictures that the files name
    notes: list[str] = field(default_factory=list)
    walks: list[tuple[Path, Walk]] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)  # of everything read but the pictures
    picture_stamps: str = ""

    @property
    def keep_flagged(self) -> bool:
        """Whether captions with a quality flag are used."""
        return bool(self.options.get("keep_flagged"))

    @property
    def used(self) -> Any:
        """The captions that are used, in the order of their pictures."""
        return self.frame[(self.frame.refused == "") & ((self.frame["flags"] == "") | self.keep_flagged)]

    def describe(self) -> str:
        """One line: format, counts, where the splits come from, and what is not read."""
        counts = {split: self.used[self.used.split == split].picture for split in SPLITS}
        told = ", ".join(f"{split} {names.nunique():,}/{len(names):,}" for split, names in counts.items())
        origin = "own splits" if self.own_splits else "split 80/10/10 by a hash of each picture's name"
        line = f"{self.path.name}: {', '.join(self.kinds)}; {origin}; pictures/captions: {told}"
        flagged = 0 if self.keep_flagged else int((self.frame["flags"] != "").sum())
        line += f"; {flagged:,} flagged captions left out" if flagged else ""
        return line + (f"; not read: {', '.join(self.unread)}" if self.unread else "")

    def refuse(self, reason: str, message: str, rows: int = 0) -> None:
        """Note one thing that is no use, and the rows that held it."""
        self.refused.setdefault(reason, []).append(message)
        self.lost.update({reason: rows})
        self.rows_read += rows


def captions_in(value: Any) -> list[tuple[str, str]]:
    """The captions of a cell or key, each with a reason why it is none, or an empty one.

    >>> captions_in("['a dog', 'a cat']"), captions_in("nan")
    ([('a dog', ''), ('a cat', '')], [('nan', 'placeholders of missing captions')])
    """
    if isinstance(value, str) and STRUCTURE.fullmatch(value):
        items = _literal(value)
        if not isinstance(items, list | tuple) or not all(isinstance(item, str | None) for item in items):
            return [(value, NO_LIST)]
        return [(str(item), MISSING if _folded(str(item)) in MISSING_TEXTS else "") for item in items]
    if isinstance(value, list) and not any(isinstance(item, list) for item in value):
        return [pair for item in value for pair in captions_in(item)]
    missing = _folded(str(value)) in MISSING_TEXTS
    return [(str(value), MISSING if missing else "" if isinstance(value, str) else NO_TEXT)]


def _literal(text: str) -> Any:
    """A list written into a cell, as JSON or Python has it; numpy's has no commas, and Python would join its texts."""
    for read in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            return read(text.strip())
        if re.search(r"(['\"])\s+[bru]?['\"](?!\s*[,\])])", text):
            return None
    return None


def split_in(value: Any) -> str | None:
    """The split that a cell or key says, None where it says none; ValueError where the name is unknown."""
    name = _folded(value)
    if name not in {"", *SPLIT_NAMES, *MISSING_TEXTS}:
        raise ValueError(f"split {value!r} is unknown; valid: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES.get(name)


def flags_of(values: Mapping[str, Any]) -> str:
    """Names of the quality flags that are set; a value that says neither yes nor no counts as set."""
    no = {"", "0", "0.0", "false", "f", "no", "n", *MISSING_TEXTS}
    return ",".join(key for key, value in values.items() if _folded(value) not in no)


def fill(found: Collection, file: Path, table: Any, options: Mapping[str, Any]) -> list[Row]:
    """Rows of a frame, by place, whose columns are recognised by name, or named by ``options``."""
    names, columns = list(table.columns), [table.iloc[:, k].tolist() for k in range(table.shape[1])]
    picture = find(file, "image", table, options)[0]
    captions = find(file, "caption", table, options, picture)
    told = columns[captions[0]]
    if len(captions) > 1:  # a picture with fewer captions leaves cells empty
        rows = zip(*(columns[k] for k in captions), strict=True)
        lists = ([cell if isinstance(cell, list) else [cell] for cell in row if _folded(cell)] for row in rows)
        told = [list(chain.from_iterable(row)) for row in lists]
    used, about = {picture, *captions}, []
    for what in ("split", "image_id", "category"):
        own = [k for name in COLUMNS[what].split() for k, given in enumerate(names) if given.casefold() == name]
        if what == "split":  # a column "set" may be of something else
            own = [k for k in own if names[k].casefold() == what or SPLIT_NAMES.keys() & set(map(_folded, columns[k]))]
        own = [k for k in own if k not in used][:1]
        about.append([cell if _folded(cell) else None for cell in columns[own[0]]] if own else [None] * len(table))
        used |= set(own)
    flags = {name: columns[k] for k, name in enumerate(names) if FLAG.fullmatch(name) and k not in used}
    marks = [flags_of(dict(zip(flags, row, strict=True))) for row in zip(*flags.values(), strict=True)]
    pictures = [NUMBERED.sub(r"\1", name.strip()) if isinstance(name, str) else name for name in columns[picture]]
    for k, name in enumerate(names):
        (found.columns if k in used or name in flags else found.unread)[name or "(no name)"] = None
    return list(zip(table.index, pictures, told, *about, marks or [""] * len(table), strict=True))


def find(file: Path, what: str, table: Any, options: Mapping[str, Any], skip: int = -1) -> list[int]:
    """Columns of the picture, or of captions: of one name but for numbers, empty ones left out; ValueError: or none."""
    names, chosen, option = list(table.columns), options.get(f"{what}_column"), f"{what}_column"
    known = [_folded(chosen)] if chosen else COLUMNS[what].split()
    caption, whose = what == "caption" and not chosen, "picture" if what == "image" else what
    found = [k for k, name in enumerate(names) if k != skip and (name.casefold() in known or (caption and _like(name)))]
    found = [k for k in found if any(map(_folded, table.iloc[:, k]))] or found
    families = list(dict.fromkeys(_base(names[k]) if what == "caption" else str(k) for k in found))
    if len(families) > 1:
        fault = f"hold captions: number them ({families[0]}_1, ...), or" if caption else "name the picture:"
        told = ", ".join(names[k] for k in found)
        raise ValueError(f"{file}: the columns {told} may all {fault} say which with {option}")
    if not found or (caption and families[0] not in known):
        bare = what == "image" and names and re.search(rf"{PICTURE}(#\d+)?$", names[0], re.I)
        hint = f"; {names[0]!r} looks like a picture, so a header is missing" if bare else ""
        fault = f"none of them is the {whose}'s, which is one of {', '.join(known)}; or name it with {option}{hint}"
        raise ValueError(f"{file} has columns {', '.join(names) or 'none'}; {fault}")
    return found


def _base(name: str) -> str:
    """``caption`` of caption_2, caption.1, Captions, caption (3)."""
    return re.sub(r"s?[\s_.\-#(]*\d*\)?$", "", name.casefold()) or name.casefold()


def _like(name: str) -> bool:
    """Whether a name says captions: caption_2, long_caption, humanCaption, but not caption_id."""
    words = set(re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()))
    return _base(name) in COLUMNS["caption"].split() or bool(CAPTION_WORDS & words and not OTHER_WORDS & words)


def _folded(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().casefold()


def read_table(found: Collection, file: Path) -> list[Row] | None:
    """Rows of a table whose header names a picture and a caption; None where a text file holds nothing of the kind.

    The separator (comma, tab, semicolon, bar) is the one under which the header names a picture. Quotes mean something
    except beside tabs. A file without a header is read where its lines are ``a.jpg#0<TAB>caption``.
    """
    import pandas as pd

    text, chosen = read_text(file), found.options.get("image_column")
    top = next((line for line in io.StringIO(text, newline="") if line.strip()), "").rstrip("\r\n")
    headed = bool(chosen) or not TOKEN.match(top)
    headers = {mark: next(csv.reader([top[:99_999]], delimiter=mark), []) for mark in ",\t;|"}
    headers = {mark: [name.strip().strip('"') for name in names] for mark, names in headers.items()}
    headers = headers if headed else {"\t": ["image", "caption"]}
    known = {_folded(chosen)} if chosen else set(COLUMNS["image"].split())
    fits = [mark for mark, names in headers.items() if known & set(map(_folded, names))]
    if not fits and file.suffix.lower() == ".txt":
        return None
    names = headers[mark := (fits or [","])[0]]
    found.kinds[(file.suffix[1:].upper() or "table") if headed else "token file"] = None
    picture = find(file, "image", pd.DataFrame(columns=names), found.options)[0]
    places, cells, lines = list[str](), list[list[str]](), _lines(found, file, text, mark, headed)
    long = any(last > first for first, last, _ in lines)
    known = {row[picture] for _, _, row in lines if len(row) == len(names)} if long else set()
    known |= {shape for name in known if "\n" not in name and re.search(r"[0/_.]", shape := _shape(name))}
    for first, last, row in lines:
        if len(row) != len(names):
            missing = f"{', '.join(names[len(row) :])} missing; complete the line, which is cut short or broken in two"
            tab, other = "a caption holds a tab: replace it by a space", f"a caption that holds {mark!r} needs quotes"
            few, fields = len(row) < len(names), f"{len(row)} field{'s' * (len(row) > 1)}, the header has {len(names)}"
            way = f"{fields}: {missing if few else tab if mark == chr(9) else other}"
            found.refuse(f"rows with too {'few' if few else 'many'} fields", f"{file}, line {first}: {way}", 1)
        elif last > first and (line := _swallowed(row, mark, picture, known)):
            held = f"{file}, lines {first} to {last}: a quoted field holds {line.strip()[:60]!r}"
            way = "which looks like a row of its own: close or double the quotation marks"
            found.refuse("quotes that swallow lines", f"{held}, {way}", 1)
        else:
            cells.append(row)
            places.append(f"line {first}")
    return fill(found, file, pd.DataFrame(cells, places, names, dtype=object), found.options)


def _lines(found: Collection, file: Path, text: str, mark: str, headed: bool) -> list[tuple[int, int, list[str]]]:
    """First and last line and cells of every row below the header; every line is counted."""
    quoted = mark != "\t"  # no quoting beside tabs: a caption may begin with a quotation mark
    how: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, **how)
    rows, last, further, blank = list[tuple[int, int, list[str]]](), 0, 0, 0
    try:
        for row in reader:
            first, last = last + 1, reader.line_num
            further += last - first
            if any(map(str.strip, row)):
                row = row if quoted else [QUOTED.sub(lambda cell: cell[1].replace('""', '"'), cell) for cell in row]
                rows.append((first, last, row))
            else:
                blank += 1
    except csv.Error as error:
        hint = "a quotation mark in a caption is doubled, and closed at its end"
        raise ValueError(f"{file}, line {last + 1}: {error}; check the quotes: {hint}") from None
    found.lines_read += last
    found.lines.update({"rows": len(rows) - headed, "header": int(headed), "blank": blank})
    found.lines.update({"further lines of quoted fields": further})
    return rows[headed:]


def _swallowed(row: list[str], mark: str, picture: int, known: set[str]) -> str:
    """A line within a field that seems to be a row of its own: it names a picture, or holds a rare separator."""
    for place, cell in enumerate(row):
        for line in cell.splitlines()[1:]:
            held = [cell.strip() for cell in line.split(mark)]
            name = held[picture] if len(held) > max(picture, 1) else ""
            like = name and " " not in name and {name, _shape(name)} & known
            if place == picture or like or (mark != "," and len(held) > 1) or re.search(rf"\S{PICTURE}\b", line, re.I):
                return line
    return ""


def _shape(name: str) -> str:
    """``a0.a`` of ``img12.png``."""
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name))
