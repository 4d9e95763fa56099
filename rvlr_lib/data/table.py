"""Meaning of columns and cells (pictures, captions, splits, flags), and tables read line by line."""

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
from rvlr_lib.data.files import Stamp, Walk, printable, read_text
from rvlr_lib.data.pictures import SUFFIXES
from rvlr_lib.data.relevance import clean_caption

COLUMNS = {  # what a column or key holds -> its usual names
    "image": "filepath file_path image file_name filename image_name image_path image_file imagepath path img img_path "
    "img_name img_file picture photo file",
    "caption": "title caption text comment description sentence raw alt_text alt",
    "image_id": "img_id image_id",
    "category": "category",
}
# A column whose name has one of the first words holds captions, unless the name also has one of the second.
CAPTION_WORDS = set("caption captions sentence sentences description".split())
OTHER_WORDS = set("id ids number num n no nr idx count index length len lang language score source rating".split())
OTHER_WORDS |= set("has is url date time timestamp hash type author model version status order".split())
BAD = "rejected|precanned|spam|flagged|bad|invalid|deleted|blocked|unusable|offensive|nsfw"
ALSO = "ignored?|skip(ped)?|excluded?|duplicated?|corrupt(ed)?|(low|bad|poor)_quality|toxic|hidden|b(lack|lock)listed"
ALSO += "|rejects?|discard(ed)?|removed?|banned|unsafe|drop(ped)?|delete|blurry|broken"
ALSO += "|(?P<good>(?<=[^s]_)valid|approved|accepted|keep|kept|included?|usable)"  # here yes keeps a caption
FLAG = re.compile(rf"(?P<sure>(image_|is_)*({BAD}))|((image|img|caption|text|is|to|be)_)*({BAD}|{ALSO})(_flag)?")
YES, NO = set("1 true t yes y on x ✓ ✔ nsfw unsure".split()), set("0 false f no n off unlikely".split())  # in flags
YES_NO = YES | NO
SPLIT_NAMES = {"train": "train", "training": "train", "restval": "train", "test": "test", "testing": "test"}
SPLIT_NAMES |= dict.fromkeys("val valid validation dev development".split(), "val")
KNOWN = SPLIT_NAMES.keys()
SPLIT_WORDS = "train(ing)? trn restval eval(uat(e|ion))? vld val(id(ation)?)? dev(elopment)? te?st(ing)? tuning"
SPLIT_WORD = re.compile("|".join([*SPLIT_WORDS.split(), r"h[eo]ld[\W_]?out"]), re.I)
WORDS = rf"{SPLIT_WORD.pattern}|[^\w/\\]|[\d_]|set|split|data|images?|imgs?|pictures?|photos?|my"
LIKE_SPLIT = re.compile(rf"(?=.*({SPLIT_WORD.pattern}))({WORDS})*", re.I)
ONE = rf"({SPLIT_WORD.pattern})(_?((sub)?set|flag|mask))?"  # a column of yes and no for one split
SPLIT_COLUMN = rf"((.*_|data)?(split|fold|partition)s?(_.*)?|(used?_)?(i[sn]|for)_?{ONE})|(?P<one>{ONE})"
SPLIT_COLUMN += "|(sub)?set|usage|phase"
MISSING_TEXT = r"[\W_]*(nan|none|null|n\W?a|nat|nil|undefined)[\W_]*|\\n|#n/a #?n/a|-?1\.#(ind|qnan)|err:\d+"
GAP = re.compile(MISSING_TEXT + r"|#(name\?|(ref|value|div/0|num|spill|calc|error)!)|[-–—]+|\[\]|\{\}|\(\)")
BIT = re.compile(r"[-+]?0*([01])([.,]0*)?(e[-+]?0+)?")
LISTED = re.compile(r"\A[bru]?['\"](?=.*,).*['\"]\s*,?\Z", re.I | re.S)  # a list without its brackets
GAPS = r"(None|null|nan|true|false)(\s*[,:].*|\s+(['\"]|(None|null|nan|true|false)\b).*)?"  # in a list, not in prose
BRACKETS = rf"[uf]?[\[({{]\s*((([\w.]+\()?[bru]?\\?['\"]|[\[({{\])}}]).*|{GAPS})[\])}}]"
SPOILT = r"[\[{]\s*[“”„‘’«].*[\]}]|[\[{]\s*[bru]?['\"][^\]}]*"  # quoted like prose; cut off
SPOILT += r"|['\"]\s*[\[{].*['\"].*[\]}]\s*['\"]"  # quoted twice
SPOILT += r"|('[^']*'|\"[^\"]*\")(\s*[;|]\s*('[^']*'|\"[^\"]*\"))+"  # other marks than commas
COUNT = re.compile(rf"[\d\W]+|{'|'.join(map(re.escape, (*YES_NO, *SPLIT_NAMES)))}")  # no caption, if all are such
UNQUOTED = re.compile(r"\s*[\[({]\s*[^'\"\[({].*[\])}]\s*", re.S)  # one caption may look like this, not all
PROSE = r"(?!\s*[\[({]\s*(?P<mark>['\"])[^'\"]*(?P=mark)\s+[^\W_])"  # a quoted word, then another: not a list
CALLED = r"[\w.]+\((\s*(\w+=)?[\[({'\"].*)?\)|[bu]'.*'|[bu]\".*\""
STRUCTURE = re.compile(rf"{PROSE}\s*({BRACKETS}|{SPOILT}|{CALLED})\s*", re.I | re.S)
SEVERAL = re.compile(r"\|\s*\w|\S\s*[\n\r]\s*\S")  # captions in one cell, perhaps
MARKUP = re.compile(r"&(#\d+|\w+);|</?\w+\s*/?>|\\[nrtu]|\ufffd")
CAPTION_FAULTS = {  # why a text is not a caption; formatted with the text and its picture
    "empty captions": "the caption {!r} of {!r} has no word: write one or leave it out",
    "placeholders of missing captions": "the caption {!r} of {!r} is a missing value: write one or leave it out",
    "captions that are not text": "a caption of {1!r} is {0}, expected text or a list of texts",
    "cells that hold a structure": "the caption {!r} of {!r} is a structure: write a text, or a list of texts as JSON",
}
EMPTY, MISSING, NO_TEXT, NO_LIST = CAPTION_FAULTS
PICTURE = rf"\.(?:{'|'.join(suffix[1:] for suffix in SUFFIXES)})"
TOKEN = re.compile(rf"[^\t]*{PICTURE}(#\d+)?\t.", re.I)  # a line of a file that has no header
NAMED = re.compile(rf"(.{PICTURE})(#\d+)?$", re.I)  # a.jpg, or a.jpg#0 with the number of a caption
csv.field_size_limit(2**31 - 1)  # the default, 131,072, would blame the quotes of a longer field
QUOTED = re.compile(r'\A"((?:[^"]|"")*)"\Z')


class Unusable(ValueError):
    """A row that cannot be used: reason and message."""


class Row(NamedTuple):
    """A row of a file, a folder or a list, with its cells unchanged."""

    where: str  # file and line, for messages
    picture: Any
    captions: Any  # a text, or a list of them
    split: Any = None
    image_id: Any = None
    category: Any = None
    flags: str = ""  # names of quality flags that are set


@dataclass
class Collection:
    """Contents of an annotation file, a folder or an index, with an account of everything read."""

    path: Path  # as given
    root: Path  # folder of the pictures
    options: dict[str, Any]  # from the call or the index
    own_splits: bool  # the files give the splits; else hashes do
    formats: dict[str, None] = field(default_factory=dict)  # formats of its files, in words
    frame: Any = None  # per caption: picture, clean (text), category, flags, fate (used, or why not), row, split
    refused: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # reason -> messages
    rows_read: int = 0
    lost: Counter[str] = field(default_factory=Counter)  # reason -> number of rows that give no caption at all
    lines: Counter[str] = field(default_factory=Counter)  # kind of line -> number of lines
    columns: dict[str, None] = field(default_factory=dict)  # columns and keys that are read
    unread: dict[str, None] = field(default_factory=dict)  # columns and keys that are not
    pictures: dict[str, None] = field(default_factory=dict)  # pictures that the files name
    notes: list[str] = field(default_factory=list)
    walks: list[tuple[str, Walk]] = field(default_factory=list)  # path below the root, contents
    stamps: list[Stamp] = field(default_factory=list)  # of every file and folder read, and of the pictures

    @property
    def used(self) -> Any:
        """Rows of ``frame`` that are used, in the order of their pictures."""
        return self.frame[self.frame.fate == "used"]

    @property
    def left_out(self) -> Any:
        """Rows of ``frame`` that are left out because of a quality flag."""
        return self.frame[self.frame.fate.str.startswith("left out")]

    def describe(self) -> str:
        """One line: format, origin of the splits, counts, and columns that are not read."""
        pictures = {split: self.used[self.used.split == split].picture for split in SPLITS}
        sizes = ", ".join(f"{split} {names.nunique():,}/{len(names):,}" for split, names in pictures.items())
        origin = "splits as given" if self.own_splits else "split 80/10/10 by a hash of each picture's name"
        line = f"{self.path.name}: {', '.join(self.formats)}; {origin}; pictures/captions: {sizes}"
        line += f"; {len(self.left_out):,} flagged captions left out" if len(self.left_out) else ""
        return line + (f"; not read: {', '.join(self.unread)}" if self.unread else "")

    def refuse_row(self, reason: str, message: str) -> None:
        """Count a row from which nothing can be read, and keep the message."""
        self.refused[reason].append(message)
        self.lost[reason] += 1
        self.rows_read += 1


def captions_in(cell: Any) -> list[tuple[str, str]]:
    """Captions of a cell: each text with its fault, cleaned and "" or unchanged and a key of :data:`CAPTION_FAULTS`.

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
    missing = cell is None or (_folded(cell) and not _value(cell))
    fault = MISSING if missing else "" if isinstance(cell, str) else NO_TEXT
    clean = "" if fault else clean_caption(cell)
    return [(clean or str(cell), "" if clean else fault or EMPTY)]


def _literal(text: str) -> Any:
    """A JSON or Python list in a cell; None for others, such as numpy's, whose texts Python would join."""
    with suppress(ValueError, RecursionError):
        return json.loads(text)
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError, TypeError, tokenize.TokenError):
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = [token.type for token in tokens if token.type != tokenize.NL]
        return None if (tokenize.STRING, tokenize.STRING) in pairwise(kinds) else ast.literal_eval(text)
    return None


def _folded(cell: Any) -> str:
    return "" if cell is None else str(cell).strip().casefold()


def _value(cell: Any) -> str:
    """Case-folded text of a cell, empty for a missing value; 0 and 1 in one spelling."""
    text = _folded(cell)
    if len(text) > 20:  # a caption, most likely: neither pattern fits, and there are many
        return text
    bit = BIT.fullmatch(text)
    return bit[1] if bit else "" if GAP.fullmatch(text) else text


def split_in(cell: Any) -> str | None:
    """Split named by a cell, None for an empty one; :class:`Unusable` for an unknown name."""
    name = _value(cell)
    if name not in {*KNOWN, ""}:
        message = f"split {cell!r} is unknown; valid: {', '.join(SPLIT_NAMES)}, or rename the column"
        raise Unusable("unknown splits", message)
    return SPLIT_NAMES.get(name)


def to_rows(
    collection: Collection, file: Path, names: Sequence[str], cells: Mapping[str, Sequence[Any]], **options: Any
) -> list[Row]:
    """One row per place (key) of ``cells``, from columns recognised by name or chosen by an option."""
    columns: list[Sequence[Any]] = list(zip(*cells.values(), strict=True)) or [()] * len(names)
    distinct = [{*map(_value, column)} - {""} for column in columns]
    chosen = {_joined(options.get(f"{what}_column")) for what in ("image", "caption")}
    fits = {k: FLAG.fullmatch(_spelt(name)) for k, name in enumerate(names) if _joined(name) not in chosen}
    flags = {k: bool(fit["good"]) for k, fit in fits.items() if fit and (fit["sure"] or distinct[k] <= YES_NO)}
    picture = _find(file, "image", names, columns, options)[0]
    captions = _find(file, "caption", names, columns, options, {picture, *flags})
    for k in () if options.get("keep_flagged") else flags:
        words = any(not value.isdecimal() for value in distinct[k] - YES_NO)  # numbers are counts
        if words and (distinct[k] & YES_NO or all(map(_value, columns[k]))):  # words next to empty cells are reasons
            fault = f"the column {names[k]} ({', '.join(sorted(distinct[k])[:4])}) does not clearly leave captions out"
            raise ValueError(f"{file}: {fault} or keep them: write yes or no, rename it, or give keep_flagged")
    texts = [text for k in captions for text in columns[k] if _folded(text)]
    if len(texts) > 1 and all(isinstance(text, str) and UNQUOTED.fullmatch(text) for text in texts):
        raise ValueError(f"{file}: every caption is in brackets, like {texts[0]!r}: write lists as JSON, with quotes")
    several = "| or a line break: several in one cell are read as one; write caption_1, caption_2, or a list as JSON"
    markup = "HTML, escapes or lost letters, such as &amp; or \\n: their names are read as words; replace them"
    for pattern, what in ((SEVERAL, several), (MARKUP, markup)):
        if count := sum(isinstance(text, str) and bool(pattern.search(text)) for text in texts):
            collection.notes.append(f"{file}: {count:,} captions contain {what}")
    first = {_folded(name): k for k, name in reversed([*enumerate(names)]) if k not in {picture, *captions}}
    fields = {what: first[name] for what in ("category", "image_id") for name in COLUMNS[what].split() if name in first}
    used = {picture, *captions, *fields.values(), *flags}
    for k in range(max(captions) + 1, len(names)):
        if not names[k] and (nameless := sorted(value for value in distinct[k] if not COUNT.fullmatch(value))):
            fault = f"column {k + 1} has no name but holds {nameless[0][:60]!r}"
            raise ValueError(f"{file}: {fault}: name it, or put quotes around captions that contain the separator")
    splits = _split_columns(names, distinct, [k for k in range(len(names)) if k not in used and distinct[k]])
    if len(splits) > 1:
        raise ValueError(f"{file}: the columns {', '.join(names[k] for k in splits)} may all hold the split: keep one")
    fields |= dict(zip(["split"], splits, strict=False))
    for k, name in enumerate(names):
        (collection.columns if k in {*used, *splits} else collection.unread)[printable(name) or "(no name)"] = None

    def row(place: str, values: Sequence[Any]) -> Row:
        name, text = values[picture], values[captions[0]]
        name = NAMED.sub(r"\1", name.strip()) if isinstance(name, str) else name
        if len(captions) > 1:  # cells are empty where a picture has fewer captions
            filled = [values[k] for k in captions if _folded(values[k])]
            text = [text for cell in filled for text in (cell if isinstance(cell, list) else [cell])]
        marks = {k: mark for k in flags if (mark := _value(values[k]))}  # an empty cell sets no flag
        flagged = ",".join("not " * flags[k] + names[k] for k, mark in marks.items() if (mark in NO) is flags[k])
        optional = {what: values[k] for what, k in fields.items() if _value(values[k])}
        column = "".join(f", {names[k]}" for k in splits if _value(values[k]) not in {*KNOWN, ""})
        return Row(f"{file}, {place}{column}", name, text, flags=flagged, **optional)

    return [row(place, values) for place, values in cells.items()]


def _find(
    file: Path, what: str, names: Sequence[str], columns: Sequence[Any], options: Mapping[str, Any], skip: Any = ()
) -> list[int]:
    """Column of the picture, or columns of captions whose names differ by a number, without empty ones."""
    option, chosen = f"{what}_column", options.get(f"{what}_column")
    usual, guess = [_joined(chosen)] if chosen else COLUMNS[what].split(), what == "caption" and not chosen
    key = guess and options.get("caption_key")  # a format's own key: only this one and its numbered variants
    fits = {k: caption_stem(name) if guess else _joined(name) for k, name in enumerate(names) if k not in skip}
    fits = {k: stem for k, stem in fits.items() if names[k] == chosen} or fits  # an exact match comes first
    fits = {k: stem for k, stem in fits.items() if (stem == key if key else stem in usual or (guess and stem))}
    fits = {k: stem for k, stem in fits.items() if any(map(_folded, columns[k]))} or fits
    stems, fitting = list(dict.fromkeys(fits.values())), ", ".join(names[k] for k in fits)
    if len(stems) > 1 or (what == "image" and len(fits) > 1):
        fault = f"hold captions: number them ({stems[0]}_1, ...), or" if guess else "name the picture:"
        raise ValueError(f"{file}: the columns {fitting} may all {fault} choose one with {option}")
    if not fits or stems[0] not in usual:
        fault = f"none of them is a usual {what} column ({', '.join(usual)}): rename one, or choose it with {option}"
        if chosen:
            fault = f"{option} names {chosen!r}, which is none of them or holds something else"
        if what == "image" and names and NAMED.search(names[0]):
            fault += f"; {names[0]!r} looks like a picture: a header is missing, or the tab of a.jpg#0<TAB>caption"
        columns_read = f"has columns {repr(', '.join(names))[1:-1]}" if any(names) else "has no header"
        raise ValueError(f"{file} {columns_read}; {fault}")
    return list(fits)


def _split_columns(names: Sequence[str], distinct: Sequence[set[str]], free: Sequence[int]) -> list[int]:
    """Columns that may hold the split, by name, else by values of two splits: ``valid`` alone may mean anything."""
    fits = {k: fit for k in free if (fit := re.fullmatch(SPLIT_COLUMN, _spelt(names[k])))}
    named = [k for k, fit in fits.items() if fit[1] or distinct[k] & KNOWN or (fit["one"] and distinct[k] <= YES_NO)]
    clear = any(distinct[k] <= KNOWN for k in named)  # then the others may be scores or folds
    few = [k for k in free if len(distinct[k]) < 10]
    two = {k for k in few if len({SPLIT_NAMES[split] for split in distinct[k] & KNOWN}) > 1}
    similar = {k for k in free if not distinct[k] <= KNOWN and all(map(LIKE_SPLIT.fullmatch, distinct[k]))}
    return [k for k in named if distinct[k] & KNOWN or not clear] or sorted(two | similar)


def _joined(name: Any) -> str:
    """``file_name`` for File Name, file-name and fileName."""
    return _folded(re.sub(r"(?<=\w)([\s-]+|(?<=[a-z])(?=[A-Z]))(?=\w)", "_", str(name)))


def _spelt(name: str) -> str:
    """``is_rejected`` for isRejected, is-rejected and Is Rejected 2."""
    return "_".join(re.findall(r"[^\W\d_]+", _joined(name)))


def caption_stem(name: str) -> str:
    """``caption`` for caption_2, caption.1 and Captions; ``long_caption`` for longCaption; "" for caption_id."""
    stem, words = _spelt(name).removesuffix("s"), {*_spelt(name).split("_")}
    of_captions = CAPTION_WORDS & words and not OTHER_WORDS & words
    return stem if of_captions or stem in COLUMNS["caption"].split() else ""


def read_table(collection: Collection, file: Path) -> list[Row]:
    """Rows of a table whose header names a picture and a caption.

    The separator (comma, tab, semicolon or bar) is the one with which the header names a picture. Quotes count, except
    in tab-separated files. A file without a header is read if its lines are ``a.jpg#0<TAB>caption``.
    """
    lines, chosen = list(io.StringIO(read_text(file), newline="")), collection.options.get("image_column")
    top = next((line for line in lines if line.strip()), "").rstrip("\r\n")[:99_999]
    headers, headed = {"\t": ["image", "caption"]}, bool(chosen) or not TOKEN.match(top)
    if headed:
        fields = {mark: next(csv.reader([top], delimiter=mark), []) for mark in ",\t;|"}
        headers = {mark: [name.strip().strip('"') for name in names] for mark, names in fields.items()}
    usual = {_joined(chosen)} if chosen else set(COLUMNS["image"].split())
    mark, names = max(headers.items(), key=lambda item: not usual.isdisjoint(map(_joined, item[1])))  # first of several
    collection.formats[(file.suffix[1:].upper() or "table") if headed else "token file"] = None
    picture = next((k for k, name in enumerate(names) if _joined(name) in usual), 0)
    cells, rows = dict[str, list[str]](), [*islice(_split_lines(file, lines, mark, collection.lines), headed, None)]
    surplus = all(len(row) > len(names) for *_, row in rows)  # separators at the end of every row, not of one caption's
    for first, last, row in rows:
        row = row[: len(names)] if surplus and not any(map(str.strip, row[len(names) :])) else row
        row = row if any(names[len(row) :]) else row + [""] * (len(names) - len(row))
        further = [line for cell in row for line in cell.splitlines()[1:]]  # of quoted fields
        if len(row) != len(names):
            few, way_out = len(row) < len(names), f"a caption with {mark!r} needs quotes, or remove {mark!r} at the end"
            if few:
                way_out = f"{', '.join(names[len(row) :])} missing; complete the line, cut off or broken in two"
            elif mark == "\t":
                way_out = "a caption contains a tab: replace it with a space"
            elif any(re.match(r'\s+"', cell) for cell in row):
                way_out = "remove the blank before the opening quotation mark"
            count = f"{len(row)} field{'s' * (len(row) > 1)}, the header has {len(names)}"
            message = f"{file}, line {first}: {count}: {way_out}"
            collection.refuse_row(f"rows with too {'few' if few else 'many'} fields", message)
        elif line := next((line for line in further if _is_row(collection, line, mark, picture)), ""):
            fault = f"a quoted field contains {line.strip()[:60]!r}, which looks like a row of its own"
            way_out = "close or double the quotation marks, or remove the line breaks of the field"
            collection.refuse_row("quotes that swallow lines", f"{file}, lines {first} to {last}: {fault}: {way_out}")
        else:
            cells[f"line {first}"] = row
    collection.lines.update({"rows": -headed, "header": headed})
    return to_rows(collection, file, names, cells, **collection.options)


def _split_lines(file: Path, lines: list[str], mark: str, counts: Counter[str]) -> Iterator[tuple[int, int, list[str]]]:
    """First line, last line and cells of every row that is not blank; all lines are counted in ``counts``."""
    quoted, last = mark != "\t", 0  # no quoting with tabs: a caption may begin with a quotation mark
    dialect: dict[str, Any] = {"strict": True} if quoted else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(lines, delimiter=mark, **dialect)
    try:
        for row in reader:
            first, last = last + 1, reader.line_num
            counts["further lines of quoted fields"] += last - first
            counts["rows" if (filled := any(map(str.strip, row))) else "blank"] += 1
            if filled:
                row = row if quoted else [QUOTED.sub(lambda cell: cell[1].replace('""', '"'), cell) for cell in row]
                yield first, last, row
    except csv.Error as error:
        way_out = "check the quotes: double those inside a caption, and close the field"
        raise ValueError(f"{file}, line {last + 1}: {error}; {way_out}") from None


def _is_row(collection: Collection, line: str, mark: str, picture: int) -> bool:
    """Whether a line of a quoted field looks like a row: cell ``picture`` names a picture or an existing file."""
    cells, folders = line.split(mark), ("", *collection.options.get("folders", {}).values())
    name = NAMED.sub(r"\1", cells[picture].strip()) if len(cells) > max(picture, 1) else ""
    return bool(NAMED.search(name)) or any(os.path.isfile(collection.root / place / name) for place in folders)
