"""What columns and cells say: names of columns, captions of a cell, splits, flags; and tables, line by line."""

import ast
import csv
import io
import json
import os
import re
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import Stamp, Walk, read_text
from rvlr_lib.data.pictures import SUFFIXES
from rvlr_lib.data.relevance import clean_caption

COLUMNS = {  # what a column or key holds -> its usual names
    "image": "filepath file_path image file_name filename image_name image_path image_file imagepath path img img_path "
    "img_name img_file picture photo file",
    "caption": "title caption text comment description sentence raw alt_text alt",
    "image_id": "img_id image_id",
    "category": "category",
}
# Within the name of a column the first say that it holds captions, unless one of the others stands beside them.
CAPTION_WORDS = set("caption captions sentence sentences description".split())
OTHER_WORDS = set("id ids number num n no nr idx count index length len lang language score source rating".split())
OTHER_WORDS |= set("has is url date time timestamp hash type author model version status order".split())
BAD = "rejected|precanned|spam|flagged|bad|invalid|deleted|blocked|unusable|offensive|nsfw"
ALSO = "ignored?|skip(ped)?|excluded?|duplicated?|corrupt(ed)?|(low|bad|poor)_quality|toxic|hidden|b(lack|lock)listed"
ALSO += "|rejects?|discard(ed)?|removed?|banned|unsafe|drop(ped)?|delete|blurry|broken"
ALSO += "|(?P<good>(?<=[^s]_)valid|approved|accepted|keep|kept|included?|usable)"
FLAG = re.compile(rf"(?P<sure>(image_|is_)*({BAD}))|((image|img|caption|text|is|to|be)_)*({BAD}|{ALSO})(_flag)?")
YES, NO = set("1 true t yes y on x ✓ ✔ nsfw unsure".split()), set("0 false f no n off unlikely".split())  # of flags
SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys("val valid validation dev development".split(), "val")
KNOWN = SPLIT_NAMES.keys()
SPLIT_WORD = re.compile("train(ing)?|trn|restval|eval(uation)?|vld|val(id(ation)?)?|dev(elopment)?|te?st(ing)?", re.I)
WORDS = rf"{SPLIT_WORD.pattern}|[^\w/\\]|[\d_]|set|split|data|images?|imgs?|pictures?|photos?|my"
LIKE_SPLIT = re.compile(rf"(?=.*({SPLIT_WORD.pattern}))({WORDS})*", re.I)
ONE = rf"({SPLIT_WORD.pattern}|h[eo]ld_?out)(_?(sub)?set)?"  # of a column that says yes or no
SPLIT_COLUMN = (
    rf"((.*_)?(split|fold|partition)s?(_.*)?|(used?_)?(i[sn]|for)_?{ONE})|(?P<one>{ONE})|(sub)?set|usage|phase"
)
MISSING_TEXT = r"[\W_]*(nan|none|null|n\W?a|nat|nil|undefined)[\W_]*|\\n|#n/a #?n/a|-?1\.#(ind|qnan)|err:\d+"
GAP = re.compile(MISSING_TEXT + r"|#(name\?|(ref|value|div/0|num|spill|calc|error)!)|[-–—]+|\[\]|\{\}|\(\)")
BIT = re.compile(r"[-+]?0*([01])([.,]0*)?(e[-+]?0+)?")
LISTED = re.compile(r"\A[bru]?['\"](?=.*,).*['\"]\s*,?\Z", re.I | re.S)  # texts without the brackets of a list
GAPS = r"(None|null|nan|true|false)(\s*[,:].*|\s+(['\"]|(None|null|nan|true|false)\b).*)?"  # in a list, not in prose
BRACKETS = rf"[uf]?[\[({{]\s*((([\w.]+\()?[bru]?\\?['\"]|[\[({{\])}}]).*|{GAPS})[\])}}]"
SPOILT = r"[\[{]\s*[“”„‘’«].*[\]}]|[\[{]\s*[bru]?['\"][^\]}]*"  # quoted as prose; cut
SPOILT += r"|['\"]\s*[\[{].*['\"].*[\]}]\s*['\"]"  # quoted twice
COUNT = re.compile(rf"[-+]?\d[\d.,]*%?|{'|'.join(map(re.escape, YES | NO))}")
UNQUOTED = re.compile(r"\s*[\[{]\s*[^'\"\[{].*,.*[\]}]\s*", re.S)  # one caption may look so, not all
PROSE = r"(?!\s*[\[({]\s*(?P<mark>['\"])[^'\"]*(?P=mark)\s+[^\W_])"  # a word in quotes, then another one, is no list
STRUCTURE = re.compile(rf"{PROSE}\s*({BRACKETS}|{SPOILT}|[\w.]+\((\s*[\[({{'\"].*)?\)|b'.*'|b\".*\")\s*", re.I | re.S)
WAYS_OUT = {  # why a text is no caption; to be filled with the text and its picture
    "empty captions": "the caption {!r} of {!r} has no word: write one or leave it out",
    "placeholders of missing captions": "the caption {!r} of {!r} is a missing value: write one or leave it out",
    "captions that are no text": "a caption is {} of {!r}, expected text or a list of texts",
    "cells that hold a structure": "the caption {!r} of {!r} is a structure: write a text, or a list of texts as JSON",
}
EMPTY, MISSING, NO_TEXT, NO_LIST = WAYS_OUT
PICTURE = rf"\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)})"
TOKEN = re.compile(rf"[^\t]*{PICTURE}(#\d+)?\t.", re.I)  # a line of a file without a header
NAMED = re.compile(rf"(.{PICTURE})(#\d+)?$", re.I)  # a.jpg, or a.jpg#0 with a caption's number
csv.field_size_limit(2**31 - 1)  # else 131,072 characters of a field, and the fault would seem to be the quotes
QUOTED = re.compile(r'\A"((?:[^"]|"")*)"\Z')


class Unusable(ValueError):
    """A row that is no use: reason and message."""


class Row(NamedTuple):
    """A row of a file, a folder or a list, its cells as they are."""

    where: str  # file and line, for messages
    picture: Any
    captions: Any  # a text, or a list of them
    split: Any = None
    image_id: Any = None
    category: Any = None
    flags: str = ""  # names of quality flags that are set


@dataclass
class Collection:
    """What an annotation file, a folder or an index says, and an account of everything read."""

    path: Path  # as it was given
    root: Path  # folder of the pictures
    options: dict[str, Any]  # given or of the index
    own_splits: bool  # the file said the splits; else hashes do
    kinds: dict[str, None] = field(default_factory=dict)  # formats of its files, in words
    frame: Any = None  # a caption each: picture, clean (text), split, category, flags, fate (used, or why not), row
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> messages
    rows_read: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # rows without any caption, by reason
    lines: Counter[str] = field(default_factory=Counter)  # lines read, by what they are
    columns: dict[str, None] = field(default_factory=dict)  # columns and keys that are read
    unread: dict[str, None] = field(default_factory=dict)
    named: dict[str, None] = field(default_factory=dict)  # pictures that the files name
    notes: list[str] = field(default_factory=list)
    walks: list[tuple[str, Walk]] = field(default_factory=list)
    stamps: list[Stamp] = field(default_factory=list)  # of every file and folder read, and of the pictures

    @property
    def used(self) -> Any:
        """The captions that are used, in the order of their pictures."""
        return self.frame[self.frame.fate == "used"]

    @property
    def left_out(self) -> Any:
        """The captions that are left out for a quality flag."""
        return self.frame[self.frame.fate.str.startswith("left out")]

    def describe(self) -> str:
        """One line: format, counts, where the splits come from, and what is not read."""
        counts = {split: self.used[self.used.split == split].picture for split in SPLITS}
        told = ", ".join(f"{split} {names.nunique():,}/{len(names):,}" for split, names in counts.items())
        origin = "own splits" if self.own_splits else "split 80/10/10 by a hash of each picture's name"
        line = f"{self.path.name}: {', '.join(self.kinds)}; {origin}; pictures/captions: {told}"
        line += f"; {len(self.left_out):,} flagged captions left out" if len(self.left_out) else ""
        return line + (f"; not read: {', '.join(self.unread)}" if self.unread else "")

    def lose(self, reason: str, message: str) -> None:
        """Refuse a row of which nothing can be read."""
        self.refused[reason].append(message)
        self.lost[reason] += 1
        self.rows_read += 1


def captions_in(cell: Any) -> list[tuple[str, str]]:
    """The captions of a cell or key: each cleaned with an empty reason, or as it stands with why it is none.

    >>> captions_in("['a dog', 'a cat']"), captions_in("nan")
    ([('a dog', ''), ('a cat', '')], [('nan', 'placeholders of missing captions')])
    """
    text = cell.strip() if isinstance(cell, str) else ""
    text = f"[{text}]" if LISTED.match(text) else text
    items = _literal(text) if text[:1] in tuple("[({") else None
    if isinstance(cell, str) and (STRUCTURE.fullmatch(cell) or isinstance(items, list | tuple | dict | set)):
        if not isinstance(items, list | tuple) or not all(isinstance(item, str | None) for item in items):
            return [(cell, NO_LIST)]
        return captions_in([str(item) for item in items])
    if isinstance(cell, list) and not any(isinstance(item, list) for item in cell):
        return [pair for item in cell for pair in captions_in(item)]
    missing = cell is None or (_folded(cell) and not _said(cell))
    fault = MISSING if missing else "" if isinstance(cell, str) else NO_TEXT
    clean = "" if fault else clean_caption(cell)
    return [(clean or str(cell), "" if clean else fault or EMPTY)]


def _literal(text: str) -> Any:
    """A list written into a cell, as JSON or Python has it; numpy's has no commas, and Python would join its texts."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
        words = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = [word.type for word in words if word.type != tokenize.NL]
        return None if (tokenize.STRING, tokenize.STRING) in pairwise(kinds) else ast.literal_eval(text)
    return None


def _folded(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().casefold()


def _said(cell: Any) -> str:
    """A cell's text, nothing of a missing value; 0 and 1 in one spelling."""
    text = _folded(cell)
    if len(text) > 20:  # as captions are: none of these, and there are many
        return text
    bit = BIT.fullmatch(text)
    return bit[1] if bit else "" if GAP.fullmatch(text) else text


def split_in(cell: Any) -> str | None:
    """The split that a cell or key says, None where it says none; :class:`Unusable` where the name is unknown."""
    name = _said(cell)
    if name not in {*KNOWN, ""}:
        way = f"valid: {', '.join(SPLIT_NAMES)}; or rename the column"
        raise Unusable("unknown splits", f"split {cell!r} is unknown; {way}")
    return SPLIT_NAMES.get(name)


def fill(
    found: Collection, file: Path, names: Sequence[str], cells: Mapping[str, Sequence[Any]], options: Mapping[str, Any]
) -> list[Row]:
    """Rows, by place, of columns that are recognised by name or named by ``options``."""
    columns: list[Sequence[Any]] = list(zip(*cells.values(), strict=True)) or [()] * len(names)
    said = [{*map(_said, column)} - {""} for column in columns]
    chosen = {_joined(options.get(f"{what}_column")) for what in ("image", "caption")}
    fits = {k: FLAG.fullmatch(_spelt(name)) for k, name in enumerate(names) if _joined(name) not in chosen}
    flags = {k: bool(fit["good"]) for k, fit in fits.items() if fit and (fit["sure"] or said[k] <= YES | NO)}
    picture = _find(file, "image", names, columns, options)[0]
    captions = _find(file, "caption", names, columns, options, {picture, *flags})
    taken = {picture, *captions}
    for k in () if options.get("keep_flagged") else flags:  # reasons stand beside empty cells, numbers are counts
        if any(not x.isdecimal() for x in said[k] - YES - NO) and (said[k] & (YES | NO) or all(map(_said, columns[k]))):
            told = f"the column {names[k]} says {', '.join(sorted(said[k])[:4])}"
            way = "write yes or no, rename the column, or give keep_flagged"
            raise ValueError(f"{file}: {told}: is a caption to be left out? {way}")
    filled = [text for k in captions for text in columns[k] if _folded(text)]
    if len(filled) > 1 and all(isinstance(text, str) and UNQUOTED.fullmatch(text) for text in filled):
        raise ValueError(f"{file}: every caption is in brackets, as {filled[0]!r}: write lists as JSON, with quotes")
    if glued := sum(isinstance(text, str) and bool(re.search(r"\|\s*\w|\w\s*\n\s*\w", text)) for text in filled):
        fault = "captions hold | or a line break: several in one cell are read as one; write caption_1, caption_2"
        found.notes.append(f"{file}: {glued:,} {fault}, or a list as JSON")
    plain = options.get("caption_column") or {_family(names[k]) for k in captions} & {"caption", "sentence"}
    if not plain and (texts := {*map(_said, filled)} - {""}) and all(map(COUNT.fullmatch, texts)):
        raise ValueError(f"{file}: every caption of {names[captions[0]]} is a number, yes or no: give caption_column")
    first = {_folded(name): k for k, name in reversed([*enumerate(names)]) if k not in taken}
    others = {what: first[name] for what in ("category", "image_id") for name in COLUMNS[what].split() if name in first}
    taken |= {*others.values(), *flags}
    splits = _split_columns(names, said, [k for k in range(len(names)) if k not in taken and said[k]])
    if len(splits) > 1:
        raise ValueError(f"{file}: the columns {', '.join(names[k] for k in splits)} may all hold the split: keep one")
    others |= dict(zip(["split"], splits, strict=False))
    for k, name in enumerate(names):
        (found.columns if k in {*taken, *splits} else found.unread)[name or "(no name)"] = None

    def row(place: str, values: Sequence[Any]) -> Row:
        name, told = values[picture], values[captions[0]]
        name = NAMED.sub(r"\1", name.strip()) if isinstance(name, str) else name
        if len(captions) > 1:  # a picture with fewer captions leaves cells empty
            filled = [values[k] for k in captions if _folded(values[k])]
            told = [text for cell in filled for text in (cell if isinstance(cell, list) else [cell])]
        marks = {k: mark for k in flags if (mark := _said(values[k]))}  # an empty one sets nothing
        marked = ",".join("not " * flags[k] + names[k] for k, mark in marks.items() if (mark in NO) is flags[k])
        about = {what: values[k] for what, k in others.items() if _said(values[k])}
        where = "".join(f", {names[k]}" for k in splits if _said(values[k]) not in {*KNOWN, ""})
        return Row(f"{file}, {place}{where}", name, told, flags=marked, **about)

    return [row(place, values) for place, values in cells.items()]


def _find(
    file: Path, what: str, names: Sequence[str], columns: Sequence[Any], options: Mapping[str, Any], skip: Any = ()
) -> list[int]:
    """Column of the picture, or columns of captions whose names differ by a number, empty ones left out."""
    option, chosen = f"{what}_column", options.get(f"{what}_column")
    known, guess = [_joined(chosen)] if chosen else COLUMNS[what].split(), what == "caption" and not chosen
    own = guess and options.get("caption_key")  # of a format: it and its numbered ones alone
    fits = {k: _family(name) if guess else _joined(name) for k, name in enumerate(names) if k not in skip}
    fits = {k: told for k, told in fits.items() if names[k] == chosen} or fits  # the very name is worth most
    fits = {k: told for k, told in fits.items() if (told == own if own else told in known or (guess and told))}
    fits = {k: family for k, family in fits.items() if any(map(_folded, columns[k]))} or fits
    families, told = list(dict.fromkeys(fits.values())), ", ".join(names[k] for k in fits)
    if len(families) > 1 or (what == "image" and len(fits) > 1):
        fault = f"hold captions: number them ({families[0]}_1, ...), or" if guess else "name the picture:"
        raise ValueError(f"{file}: the columns {told} may all {fault} say which with {option}")
    if not fits or families[0] not in known:
        whose = "picture" if what == "image" else what
        usual = f"none of them is the {whose}'s, which is one of {', '.join(known)}; or name it with {option}"
        fault = f"{option} names {chosen!r}, which is none of them or holds something else" if chosen else usual
        if what == "image" and names and NAMED.search(names[0]):
            fault += f"; {names[0]!r} looks like a picture: a header is missing, or the tab of a.jpg#0<TAB>caption"
        raise ValueError(f"{file} has columns {repr(', '.join(names))[1:-1] or 'none'}; {fault}")
    return list(fits)


def _split_columns(names: Sequence[str], said: Sequence[set[str]], free: Sequence[int]) -> list[int]:
    """Columns that may hold the split: by their names, else by their cells; ``valid`` throughout may be anything."""
    like = {k: fit for k in free if (fit := re.fullmatch(SPLIT_COLUMN, _spelt(names[k])))}
    named = [k for k, fit in like.items() if fit[1] or said[k] & KNOWN or (fit["one"] and said[k] <= YES | NO)]
    clean = any(said[k] <= KNOWN for k in named)  # that column says it; others may be scores or folds
    few = [k for k in free if len(said[k]) < 10]
    two = {k for k in few if len({SPLIT_NAMES[split] for split in said[k] & KNOWN}) > 1}
    seem = {k for k in few if not said[k] <= KNOWN and all(map(LIKE_SPLIT.fullmatch, said[k]))}
    return [k for k in named if said[k] & KNOWN or not clean] or sorted(two | seem)


def _joined(name: Any) -> str:
    """``file_name`` of File Name, file-name, fileName."""
    return _folded(re.sub(r"(?<=\w)([\s-]+|(?<=[a-z])(?=[A-Z]))(?=\w)", "_", str(name)))


def _spelt(name: str) -> str:
    """``is_rejected`` of isRejected, is-rejected, Is Rejected 2."""
    return "_".join(re.findall(r"[^\W\d_]+", _joined(name)))


def _family(name: str) -> str:
    """``caption`` of caption_2, caption.1, Captions; ``long_caption`` of longCaption; nothing of caption_id."""
    family, told = _spelt(name).removesuffix("s"), {*_spelt(name).split("_")}
    of_captions = CAPTION_WORDS & told and not OTHER_WORDS & told
    return family if of_captions or family in COLUMNS["caption"].split() else ""


def read_table(found: Collection, file: Path) -> list[Row]:
    """Rows of a table whose header names a picture and a caption.

    The separator (comma, tab, semicolon, bar) is the one under which the header names a picture. Quotes mean something
    except beside tabs. A file without a header is read where its lines are ``a.jpg#0<TAB>caption``.
    """
    lines, chosen = list(io.StringIO(read_text(file), newline="")), found.options.get("image_column")
    top = next((line for line in lines if line.strip()), "").rstrip("\r\n")[:99_999]
    headers, headed = {"\t": ["image", "caption"]}, bool(chosen) or not TOKEN.match(top)
    if headed:
        fields = {mark: next(csv.reader([top], delimiter=mark), []) for mark in ",\t;|"}
        headers = {mark: [name.strip().strip('"') for name in names] for mark, names in fields.items()}
    known = {_joined(chosen)} if chosen else set(COLUMNS["image"].split())
    mark = max(headers, key=lambda mark: not known.isdisjoint(map(_joined, headers[mark])))  # the first of several
    names = headers[mark]
    found.kinds[(file.suffix[1:].upper() or "table") if headed else "token file"] = None
    picture = next((k for k, name in enumerate(names) if _joined(name) in known), 0)
    cells = dict[str, list[str]]()
    for first, last, row in islice(_split_lines(found, file, lines, mark), headed, None):
        row = row if any(map(str.strip, row[len(names) :])) else row[: len(names)]  # a separator at the end is nothing
        row = row if any(names[len(row) :]) else row + [""] * (len(names) - len(row))
        inner = [line for cell in row for line in cell.splitlines()[1:]]  # of quoted fields
        if len(row) != len(names):
            few, way = len(row) < len(names), f"a caption that holds {mark!r} needs quotes"
            if few:
                way = f"{', '.join(names[len(row) :])} missing; complete the line, which is cut short or broken in two"
            elif mark == "\t":
                way = "a caption holds a tab: replace it by a space"
            elif any(re.match(r'\s+"', cell) for cell in row):
                way = "a quotation mark begins its field: take the blank before it away"
            counts = f"{len(row)} field{'s' * (len(row) > 1)}, the header has {len(names)}"
            found.lose(f"rows with too {'few' if few else 'many'} fields", f"{file}, line {first}: {counts}: {way}")
        elif line := next((line for line in inner if _is_row(found, line, mark, picture)), ""):
            held = f"{file}, lines {first} to {last}: a quoted field holds {line.strip()[:60]!r}"
            way = "which looks like a row of its own: close or double the quotation marks, or take its line breaks out"
            found.lose("quotes that swallow lines", f"{held}, {way}")
        else:
            cells[f"line {first}"] = row
    found.lines.update({"rows": -headed, "header": headed})
    return fill(found, file, names, cells, found.options)


def _split_lines(found: Collection, file: Path, lines: list[str], mark: str) -> Iterator[tuple[int, int, list[str]]]:
    """First and last line and cells of every row; every line is counted."""
    quoted, last = mark != "\t", 0  # no quoting beside tabs: a caption may begin with a quotation mark
    how: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, delimiter=mark, **how)
    try:
        for row in reader:
            first, last = last + 1, reader.line_num
            found.lines["further lines of quoted fields"] += last - first
            found.lines["rows" if (filled := any(map(str.strip, row))) else "blank"] += 1
            if filled:
                row = row if quoted else [QUOTED.sub(lambda cell: cell[1].replace('""', '"'), cell) for cell in row]
                yield first, last, row
    except csv.Error as error:
        hint = "a quotation mark in a caption is doubled, and closed at its end"
        raise ValueError(f"{file}, line {last + 1}: {error}; check the quotes: {hint}") from None


def _is_row(found: Collection, line: str, mark: str, picture: int) -> bool:
    """Whether a line of a quoted field seems to be a row: it names a picture, or a file, where a row names its own."""
    cells, folders = line.split(mark), ("", *found.options.get("folders", {}).values())
    name = NAMED.sub(r"\1", cells[picture].strip()) if len(cells) > max(picture, 1) else ""
    return bool(NAMED.search(name)) or any(os.path.isfile(found.root / place / name) for place in folders)
