"""Tables of pictures and captions: CSV, TSV, ``captions.txt`` and token files, to rows or reasons why not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.data.files import Stamp, Walk, read_text
from rvlr_lib.data.pictures import SUFFIXES

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
CAPTION_COLUMNS = "title caption text comment sentence description raw alt_text alt".split()
IMAGE_COLUMNS = """filepath file_path image file_name filename image_name image_path image_file imagepath path img img_path
    img_name img_file picture photo file""".split()
CAPTION_COLUMNS = "title caption text comment description sentence raw alt_text alt".split()
SPLIT_COLUMNS = ("split", "subset", "partition", "set")
FLAG = re.compile(r"(is_)?(rejected|precanned|spam|flagged|bad|invalid|deleted|blocked|unusable|offensive|nsfw)")
NUMBERED = re.compile(r"(.*?)s?[\s_.\-#(]*\d*\)?")
PICTURE = rf"\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)})"
TOKEN = re.compile(rf"[^\t,]*{PICTURE}(#\d+)?\t.", re.IGNORECASE)


@dataclass
class Part:
    """Rows of one file or folder, a list for each column, and what could not be a row.

    Attributes:
        kind: format in words.
        file: where messages say the rows stand.
        where: place of each row within it; ``picture``, ``caption`` and ``flags`` and what else it says of the row.
        bare: pictures that the file lists by themselves, with their places; they need captions too.
        refused: reason and message of each row that is none.
        lines: of a text file, by what they are; rows and refused rows besides; ``line_count`` of them in all.
        used: columns and keys that are read; ``unused``: the others.
        walk: the folder, where the part is one.
        stamped: stamps of the files and folders, taken before they were read.
    """

    kind: str
    file: Path
    where: list[str] = field(default_factory=list)
    picture: list[Any] = field(default_factory=list)
    caption: list[Any] = field(default_factory=list)
    split: list[Any] = field(default_factory=list)
    image_id: list[Any] = field(default_factory=list)
    category: list[Any] = field(default_factory=list)
    flags: list[str] = field(default_factory=list)
    bare: list[tuple[str, str, Any]] = field(default_factory=list)  # name, place, split
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    line_count: int = 0
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    walk: Walk | None = None
    stamped: list[Stamp] = field(default_factory=list)

    def add(self, where: str, picture: Any, caption: Any, split: Any = None, image_id: Any = None,
            category: Any = None, flags: str = "") -> None:  # fmt: skip
        """One more row."""
        self.where.append(where)
        for name, value in zip(("picture", "caption", "split", "image_id", "category", "flags"),
                               (picture, caption, split, image_id, category, flags), strict=True):  # fmt: skip
            getattr(self, name).append(value)


def read_table(path: Path, image_column: str | None = None, caption_column: str | None = None) -> Part | None:
    """Rows of a table whose header names a picture and a caption; None where nothing of the kind is there.

    The separator (comma, tab, semicolon, bar) is the one under which the header names a picture. Quotes mean something
    except beside tabs. A file without a header is read where its lines are ``a.jpg#0<TAB>caption``.

    Raises:
        ValueError: not UTF-8, no or several columns of pictures or captions, or quotes that do not close.
    """
    text = read_text(path)
    top = next((line for line in io.StringIO(text) if line.strip()), "")
    if TOKEN.match(top) and not image_column:
        return _rows(path, text, "\t", ["image", "caption"], 0, [1], headed=False)
    wanted = [image_column.strip().casefold()] if image_column else IMAGE_COLUMNS
    headers = {mark: _cells(top, mark) for mark in ",\t;|"}
    mark = next((mark for mark, names in headers.items() if {name.casefold() for name in names} & set(wanted)), ",")
    names = headers[mark]
    folded = [name.casefold() for name in names]
    at = [place for place, name in enumerate(folded) if name in wanted]
    if path.suffix.lower() == ".txt" and not at:
        return None
    known = "known are " + ", ".join(wanted)
    if not at:
        hint = f"; {names[0]!r} looks like a picture, so a header seems to be missing" if _pictured(names) else ""
        raise ValueError(f"{path} has columns {', '.join(names) or 'none'}; none of them is the picture's, which is one "
                         f"of {', '.join(wanted)}; or name it with image_column{hint}")  # fmt: skip
    if len(at) > 1:
        raise ValueError(f"{path}: the columns {', '.join(names[k] for k in at)} may all name the picture ({known}): "
                         "say which with image_column")  # fmt: skip
    captions = [caption_column.strip().casefold()] if caption_column else None
    told = [k for k, name in enumerate(folded) if name in captions] if captions else _caption_columns(folded, at[0])
    if not told:
        raise ValueError(f"{path} has columns {', '.join(names)}; none of them is the caption's, which is one of "
                         f"{', '.join(captions or CAPTION_COLUMNS)}; or name it with caption_column")  # fmt: skip
    return _rows(path, text, mark, names, at[0], told, chosen=captions is not None)


def _cells(line: str, mark: str) -> list[str]:
    try:
        return [name.strip().strip('"') for name in next(csv.reader([line.rstrip("\r\n")], delimiter=mark), [])]
    except csv.Error:
        return []


def _pictured(cells: Sequence[str]) -> bool:
    return bool(cells) and re.search(rf"{PICTURE}(#\d+)?$", cells[0], re.IGNORECASE) is not None


def base_of(name: str) -> str:
    """The name of a numbered column without its number.

    >>> [base_of(name) for name in ("caption", "caption_2", "caption.1", "Captions", "caption (3)", "caption_id")]
    ['caption', 'caption', 'caption', 'caption', 'caption', 'caption_id']
    """
    found = NUMBERED.fullmatch(name.casefold())
    return found[1].strip() if found and found[1] else name.casefold()


def _caption_columns(names: Sequence[str], picture: int) -> list[int]:
    """Columns whose names say captions: a usual name, numbered or repeated, or one with a usual name in it."""
    return [
        place for place, name in enumerate(names)
        if place != picture and (base_of(name) in CAPTION_COLUMNS or looks_like_captions(name))
    ]  # fmt: skip


def looks_like_captions(name: str) -> bool:
    """Whether a column or key that is not read seems to hold captions: ``caption_en``, ``long_caption``."""
    words = re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold())
    counts = {"id", "ids", "number", "num", "count", "index", "length", "len", "lang", "language", "score", "source"}
    return bool({"caption", "captions", "sentence", "sentences", "description"} & set(words)) and not counts & set(
        words
    )


def _rows(path: Path, text: str, mark: str, names: list[str], at: int, told: list[int], *, headed: bool = True,
          chosen: bool = False) -> Part:  # fmt: skip
    suffix = path.suffix[1:].upper() or "table"
    part = Part(suffix if headed else "token file", path)
    plain = mark == "\t"  # no quoting beside tabs: a caption may begin with a quotation mark
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=not plain,
                        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL)  # fmt: skip
    rows, firsts, several, start, blank, more, header = [], [], [], 1, 0, 0, not headed
    try:
        for cells in reader:
            first, start = start, reader.line_num + 1
            more += reader.line_num - first
            if not any(map(str.strip, cells)):
                blank += 1
            elif not header:
                header = True
            elif len(cells) != len(names):
                part.refused.append(_misfit(path, first, cells, names, mark))
            else:
                if reader.line_num > first:
                    several.append((len(rows), reader.line_num))
                rows.append([_unquoted(cell) if cell.startswith('"') else cell for cell in cells] if plain else cells)
                firsts.append(first)
    except csv.Error as error:
        hint = "a quotation mark in a caption is doubled, and closed at its end"
        raise ValueError(f"{path}, line {start}: {error}; check the quotes: {hint}") from None
    part.lines = {"header": int(headed), "blank": blank, "further lines of quoted fields": more}
    part.line_count = reader.line_num
    known = {row[at] for row in rows if "\n" not in row[at]} if several else set()
    for number, last in reversed(several):
        if message := _swallowed(rows[number], at, mark, known):
            part.refused.append(("quotes that swallow lines", f"{path}, lines {firsts[number]} to {last}: {message}"))
            del rows[number], firsts[number]
    columns = list(zip(*rows, strict=True)) or [()] * len(names)
    told = told if chosen else _one_family(path, names, columns, told)
    folded = [name.casefold() for name in names]

    def column(*wanted: str) -> list[Any]:
        place = next((folded.index(name) for name in wanted if name in folded), None)
        if place is None or place in told or place == at:
            return [None] * len(rows)
        used.add(place)
        return [cell.strip() or None for cell in columns[place]]

    used = {at, *told}
    part.where = [f"line {line}" for line in firsts]
    cut = re.compile(rf"({PICTURE})#\d+$", re.IGNORECASE)  # a.jpg#0, the caption's number
    part.picture = [cut.sub(r"\1", cell.strip()) if "#" in cell else cell.strip() for cell in columns[at]]
    if len(told) == 1:
        part.caption = list(columns[told[0]])
    else:  # a picture with fewer captions leaves cells empty
        part.caption = [[cell for cell in cells if cell.strip()] for cells in
                        zip(*(columns[k] for k in told), strict=True)]  # fmt: skip
    splits = [name for name in SPLIT_COLUMNS if name == "split" or (name in folded and all(
        cell.strip().casefold() in SPLIT_NAMES for cell in columns[folded.index(name)]))]  # fmt: skip
    part.split, part.category = column(*splits), column("category")
    part.image_id = column("image_id", "img_id")
    flags = [place for place, name in enumerate(folded) if FLAG.fullmatch(name) and place not in used]
    used |= set(flags)
    part.flags = [flags_of({names[k]: row[k] for k in flags}) for row in rows] if flags else [""] * len(rows)
    part.used = [names[k] for k in sorted(used)]
    part.unused = [name or "(no name)" for k, name in enumerate(names) if k not in used]
    return part


def flags_of(values: dict[str, Any]) -> str:
    """Names of the flags that are set; a value that says neither yes nor no counts as set.

    >>> flags_of({"is_rejected": True, "is_precanned": "0", "other": "1"})
    'is_rejected'
    """
    no = {"", "0", "0.0", "false", "f", "no", "n", "none", "null", "nan"}
    return ",".join(name for name, value in values.items()
                    if FLAG.fullmatch(str(name).casefold()) and str(value).strip().casefold() not in no)  # fmt: skip


def _one_family(path: Path, names: list[str], columns: Sequence[Sequence[str]], told: list[int]) -> list[int]:
    """The columns of captions, all of one name but for numbers; empty ones do not count."""
    full = [k for k in told if any(cell.strip() for cell in columns[k])] or told
    families = {base_of(names[k]): names[k] for k in full}
    if len(families) > 1:
        raise ValueError(f"{path}: the columns {', '.join(names[k] for k in full)} may all hold captions: say which with "
                         f"caption_column, or number them ({next(iter(families))}_1, ...)")  # fmt: skip
    if families and next(iter(families)) not in CAPTION_COLUMNS:
        raise ValueError(f"{path} has columns {', '.join(names)}; none of them is the caption's, which is one of "
                         f"{', '.join(CAPTION_COLUMNS)}; or name it with caption_column")  # fmt: skip
    return full


def _misfit(path: Path, line: int, cells: list[str], names: list[str], mark: str) -> tuple[str, str]:
    fields = f"{path}, line {line}: {len(cells)} field{'s' * (len(cells) > 1)}, the header has {len(names)}"
    if len(cells) < len(names):
        missing = ", ".join(names[len(cells) :])
        return (
            "rows with too few fields",
            f"{fields}: {missing} missing; complete the line, which is cut short or broken in two",
        )
    name = {"\t": "a tab"}.get(mark, repr(mark))
    way = "replace it by a space" if mark == "\t" else "needs quotes around it"
    return "rows with too many fields", f"{fields}; a caption that holds {name}: {way}" if mark == "\t" else (
        f"{fields}; a caption that holds {name} {way}"
    )


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if len(cell) > 1 and cell[-1] == '"' and '"' not in inner else cell


def _swallowed(cells: Sequence[str], at: int, mark: str, names: set[str]) -> str | None:
    """What is wrong with a row over several lines, if it seems to hold rows of its own."""
    shapes = {shape for name in names if re.search(r"[0/_.]", shape := _shape(name))}
    for place, cell in enumerate(cells):
        _, *later = cell.splitlines() or [""]
        for line in later if place != at else later and [cell]:
            held = [held.strip() for held in line.split(mark)]
            first = held[at] if at < len(held) else ""
            row = len(held) > 1 and first and " " not in first and (first in names or _shape(first) in shapes)
            if place == at or row or re.search(rf"\S{PICTURE}\b", line, re.I) or (mark != "," and mark in line):
                return (f"a quoted field runs over {len(later) + 1} lines and holds {line.strip()[:60]!r}, which looks like "
                        "a row of its own: close or double the quotation marks")  # fmt: skip
    return None


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name))
