"""Tables of pictures and captions: CSV, TSV, ``captions.txt`` and token files, to rows or reasons why not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.data.cells import FLAG, SPLIT_NAMES, flags_of
from rvlr_lib.data.files import Stamp, Walk, read_text
from rvlr_lib.data.pictures import SUFFIXES

IMAGE_COLUMNS = (
    "filepath file_path image file_name filename image_name image_path image_file imagepath path img img_path img_name "
    "img_file picture photo file"
).split()
CAPTION_COLUMNS = "title caption text comment description sentence raw alt_text alt".split()
SPLIT_COLUMNS = ("split", "subset", "partition", "set")
LIKE_CAPTIONS = {"caption", "captions", "sentence", "sentences", "description"}
NO_CAPTIONS = set("id ids number num count index length len lang language score source".split())
PICTURE = rf"\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)})"
COUNTED = re.compile(rf"({PICTURE})#\d+$", re.IGNORECASE)  # a.jpg#0, the number of the caption
TOKEN = re.compile(rf"[^\t,]*{PICTURE}(#\d+)?\t.", re.IGNORECASE)

Row = tuple[str, Any, Any, Any, Any, Any, str]


@dataclass
class Part:
    """Rows of one file or folder, and what could not be a row.

    Attributes:
        kind: format in words.
        file: where messages say the rows stand.
        rows: place within it, picture, caption or captions, split, image id, category and flags of each.
        bare: pictures that the file lists by themselves, with place and split; they need captions too.
        refused: reason and message of each row that is none.
        lines: of a text file, how many are no row, by what they are; ``line_count`` of them in all.
        used: columns and keys that are read; ``unused``: the others.
        walk: the folder, where the part is one.
        stamped: stamps of the files and folders, taken before they were read.
    """

    kind: str
    file: Path
    rows: list[Row] = field(default_factory=list)
    bare: list[tuple[Any, str, Any]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)
    line_count: int = 0
    used: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    walk: Walk | None = None
    stamped: list[Stamp] = field(default_factory=list)


def base_of(name: str) -> str:
    """The name of a numbered column without its number.

    >>> [base_of(name) for name in ("caption", "caption_2", "caption.1", "Captions", "caption (3)", "caption_id")]
    ['caption', 'caption', 'caption', 'caption', 'caption', 'caption_id']
    """
    return re.sub(r"s?[\s_.\-#(]*\d*\)?$", "", name.casefold()) or name.casefold()


def like_captions(name: str) -> bool:
    """Whether the name of a column or key says captions.

    >>> [name for name in ("caption_2", "long_caption", "humanCaption", "caption_id", "width") if like_captions(name)]
    ['caption_2', 'long_caption', 'humanCaption']
    """
    words = set(re.split(r"[\W_\d]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).casefold()))
    return base_of(name) in CAPTION_COLUMNS or bool(LIKE_CAPTIONS & words and not NO_CAPTIONS & words)


def read_table(path: Path, image_column: str | None = None, caption_column: str | None = None) -> Part | None:
    """Rows of a table whose header names a picture and a caption; None where a text file holds nothing of the kind.

    The separator (comma, tab, semicolon, bar) is the one under which the header names a picture. Quotes mean something
    except beside tabs. A file without a header is read where its lines are ``a.jpg#0<TAB>caption``.

    Raises:
        ValueError: not UTF-8, no or several columns of pictures or captions, or quotes that do not close.
    """
    text = read_text(path)
    top = next((line for line in io.StringIO(text) if line.strip()), "")
    if TOKEN.match(top) and not image_column:
        return _Table(path, "\t", ["image", "caption"], headed=False).read(text, 0, [1])
    wanted = [image_column.strip().casefold()] if image_column else IMAGE_COLUMNS
    headers = {mark: _cells(top, mark) for mark in ",\t;|"}
    mark = next((mark for mark, names in headers.items() if {name.casefold() for name in names} & set(wanted)), ",")
    names = headers[mark]
    pictures = [place for place, name in enumerate(names) if name.casefold() in wanted]
    if path.suffix.lower() == ".txt" and not pictures:
        return None
    table = _Table(path, mark, names)
    if not pictures:
        bare = names and re.search(rf"{PICTURE}(#\d+)?$", names[0], re.IGNORECASE)
        table.fail("picture", wanted, f"; {names[0]!r} looks like a picture, so a header is missing" if bare else "")
    if len(pictures) > 1:
        told = ", ".join(names[k] for k in pictures)
        raise ValueError(f"{path}: the columns {told} may all name the picture: say which with image_column")
    if caption_column:
        captions = [k for k, name in enumerate(names) if name.casefold() == caption_column.strip().casefold()]
    else:
        captions = [k for k, name in enumerate(names) if k not in pictures and like_captions(name)]
    if not captions:
        table.fail("caption", [caption_column] if caption_column else CAPTION_COLUMNS)
    return table.read(text, pictures[0], captions, chosen=bool(caption_column))


def _cells(line: str, mark: str) -> list[str]:
    try:
        return [name.strip().strip('"') for name in next(csv.reader([line.rstrip("\r\n")], delimiter=mark), [])]
    except csv.Error:
        return []


class _Table:
    """A table being read: its file, separator and header."""

    def __init__(self, path: Path, mark: str, names: list[str], *, headed: bool = True) -> None:
        self.path, self.mark, self.names, self.headed = path, mark, names, headed
        self.part = Part((path.suffix[1:].upper() or "table") if headed else "token file", path)
        self.cells: list[list[str]] = []
        self.at: list[int] = []  # line of each row

    def fail(self, what: str, known: Sequence[str], hint: str = "") -> None:
        raise ValueError(
            f"{self.path} has columns {', '.join(self.names) or 'none'}; none of them is the {what}'s, which is one of "
            f"{', '.join(known)}; or name it with {'image' if what == 'picture' else what}_column{hint}"
        )

    def read(self, text: str, picture: int, captions: list[int], *, chosen: bool = False) -> Part:
        """Rows of the text, given the columns of the picture and of the captions."""
        self._lines(text, picture)
        columns = list(zip(*self.cells, strict=True)) or [()] * len(self.names)
        if not chosen:
            captions = self._family(columns, captions)
        folded = [name.casefold() for name in self.names]
        used = {picture, *captions}
        others: dict[str, Sequence[str | None]] = {}
        for key, wanted in {
            "split": SPLIT_COLUMNS,
            "image_id": ("image_id", "img_id"),
            "category": ("category",),
        }.items():
            places = [folded.index(name) for name in wanted if name in folded]
            for place in [place for place in places if place not in used and key not in others]:
                values = [cell.strip() for cell in columns[place]]
                if (
                    key == "split"
                    and folded[place] != key
                    and not {value.casefold() for value in values} <= set(SPLIT_NAMES)
                ):
                    continue  # a column "set" of something else
                others[key] = [value or None for value in values]
                used.add(place)
        flags = [place for place, name in enumerate(self.names) if FLAG.fullmatch(name) and place not in used]
        blank = [None] * len(self.cells)
        names = [COUNTED.sub(r"\1", cell.strip()) if "#" in cell else cell.strip() for cell in columns[picture]]
        told: Sequence[Any] = columns[captions[0]]
        if len(captions) > 1:  # a picture with fewer captions leaves cells empty
            told = [[row[k] for k in captions if row[k].strip()] for row in self.cells]
        marks = [flags_of({self.names[k]: row[k] for k in flags}) for row in self.cells] if flags else [""] * len(names)
        extra = [others.get(key, blank) for key in ("split", "image_id", "category")]
        where = [f"line {line}" for line in self.at]
        self.part.rows = list(zip(where, names, told, *extra, marks, strict=True))  # type: ignore[arg-type]
        used |= set(flags)
        self.part.used = [self.names[k] for k in sorted(used)]
        self.part.unused = [name or "(no name)" for k, name in enumerate(self.names) if k not in used]
        return self.part

    def _lines(self, text: str, picture: int) -> None:
        """Lines to cells; what cannot be a row is refused."""
        plain = self.mark == "\t"  # no quoting beside tabs: a caption may begin with a quotation mark
        stream, how = io.StringIO(text, newline=""), {"quoting": csv.QUOTE_NONE} if plain else {"strict": True}
        reader = csv.reader(stream, delimiter=self.mark, **how)  # type: ignore[arg-type]
        start, blank, further, header, long = 1, 0, 0, not self.headed, dict[int, int]()
        try:
            for cells in reader:
                first, start = start, reader.line_num + 1
                further += reader.line_num - first
                if not any(map(str.strip, cells)):
                    blank += 1
                elif not header:
                    header = True
                elif len(cells) != len(self.names):
                    self._misfit(first, cells)
                else:
                    if reader.line_num > first:
                        long[len(self.cells)] = reader.line_num
                    self.cells.append([_unquoted(cell) for cell in cells] if plain else cells)
                    self.at.append(first)
        except csv.Error as error:
            hint = "a quotation mark in a caption is doubled, and closed at its end"
            raise ValueError(f"{self.path}, line {start}: {error}; check the quotes: {hint}") from None
        self.part.lines = {"header": int(self.headed), "blank": blank, "further lines of quoted fields": further}
        self.part.line_count = reader.line_num
        known = {row[picture] for row in self.cells} if long else set()
        for number, last in reversed(long.items()):
            if line := self._swallowed(self.cells[number], picture, known):
                message = (
                    f"{self.path}, lines {self.at[number]} to {last}: a quoted field holds {line.strip()[:60]!r}, "
                )
                message += "which looks like a row of its own: close or double the quotation marks"
                self.part.refused.append(("quotes that swallow lines", message))
                del self.cells[number], self.at[number]

    def _misfit(self, line: int, cells: list[str]) -> None:
        fields = f"{len(cells)} field{'s' * (len(cells) > 1)}, the header has {len(self.names)}"
        if len(cells) < len(self.names):
            reason, missing = "rows with too few fields", ", ".join(self.names[len(cells) :])
            hint = f": {missing} missing; complete the line, which is cut short or broken in two"
        else:
            reason = "rows with too many fields"
            tab = "; a caption holds a tab: replace it by a space"
            hint = tab if self.mark == "\t" else f"; a caption that holds {self.mark!r} needs quotes around it"
        self.part.refused.append((reason, f"{self.path}, line {line}: {fields}{hint}"))

    def _swallowed(self, cells: Sequence[str], picture: int, known: set[str]) -> str | None:
        """A line within a field that seems to be a row of its own."""
        shapes = {shape for name in known if "\n" not in name and re.search(r"[0/_.]", shape := _shape(name))}
        for place, cell in enumerate(cells):
            first, *later = cell.splitlines() or [""]
            if later and place == picture:
                return first
            for line in later:
                held = [held.strip() for held in line.split(self.mark)]
                name = held[picture] if picture < len(held) and len(held) > 1 else ""
                row = name and " " not in name and (name in known or _shape(name) in shapes)
                if row or re.search(rf"\S{PICTURE}\b", line, re.IGNORECASE) or (self.mark != "," and len(held) > 1):
                    return line
        return None

    def _family(self, columns: Sequence[Sequence[str]], captions: list[int]) -> list[int]:
        """The columns of captions, all of one name but for numbers; empty ones do not count."""
        full = [k for k in captions if any(cell.strip() for cell in columns[k])] or captions
        families = [base_of(self.names[k]) for k in full]
        if len(set(families)) > 1:
            told = ", ".join(self.names[k] for k in full)
            way = f"say which with caption_column, or number them ({families[0]}_1, ...)"
            raise ValueError(f"{self.path}: the columns {told} may all hold captions: {way}")
        if families[0] not in CAPTION_COLUMNS:
            self.fail("caption", CAPTION_COLUMNS)
        return full


def _unquoted(cell: str) -> str:
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in cell[1:-1].replace('""', ""):
        return cell
    return cell[1:-1].replace('""', '"')


def _shape(name: str) -> str:
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d_]+", "a", name))
