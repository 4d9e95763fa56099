"""Files of a collection: text decoding, folder walks, hidden files, links, and stamps of everything read."""

import codecs
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

SYSTEM = r"__macosx|e?h?thumbs.db|desktop.ini|@eadir|[#@]recycle|#snapshot|\$recycle.bin|__pycache__|lost.found"
HIDDEN = re.compile(rf"[.]|~\$|({SYSTEM}|system volume information)\Z", re.I)
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}  # last: one UTF-32 mark begins like UTF-16's
Stamp = tuple[str, int, int, int]


def stamp(path: str | Path) -> Stamp:
    """Path, size and times of change in ns: differs once a file or folder is edited, replaced, created or removed."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return str(path), -1, 0, 0
    return str(path), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def printable(name: str | Path) -> str:
    """A printable spelling of any name; Python holds bytes that are not UTF-8 as lone surrogates."""
    return re.sub(r"[\ud800-\udfff]", lambda lone: ascii(lone[0])[1:-1].replace("\\udc", "\\x"), str(name))


def require_utf8_name(path: Path) -> Path:
    """The path itself; ValueError if its name is not UTF-8."""
    if printable(path) != str(path):
        raise ValueError(f"the name of {printable(path)} is not UTF-8: rename it")
    return path


def read_text(path: Path) -> str:
    """Text of a file in UTF-8 or the encoding of its byte-order mark; ValueError with the line that is not valid."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    encoding = next((name for mark, name in MARKS.items() if data.startswith(mark)), "utf-8")
    if encoding == "utf-8" and len(data) > 3 and (data[0] == 0) != (data[1] == 0):  # an ASCII letter in two bytes
        raise ValueError(f"{path} is not UTF-8 but UTF-16 without a byte-order mark: save it as UTF-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        where = f"(byte {error.start} is {data[error.start]:#04x}) on line {data[: error.start].count(10) + 1}"
        raise ValueError(f"{path} is not {encoding.removesuffix('-sig').upper()} {where}: save it as UTF-8") from None
    if "\0" in text:
        line = text.partition("\0")[0].count("\n") + 1
        raise ValueError(f"{path} has NUL bytes on line {line}, so it is not a text file: save it as UTF-8 text")
    return text


@dataclass
class Walk:
    """Contents of a folder and its subfolders; ``files``: path below the folder -> real path, with links resolved."""

    files: dict[str, str] = field(default_factory=dict)
    hidden: int = 0  # files of the operating system or an editor
    refused: list[tuple[str, str, int]] = field(default_factory=list)  # reason, message, number of files
    folders: list[str] = field(default_factory=list)


def walk(folder: Path, root: Path, *, deep: bool = True) -> Walk:
    """List a folder; links are followed as long as they stay inside ``root``. ValueError: it cannot be listed."""
    contents, real_root = Walk(), Path(root).resolve()

    def visit(place: str, prefix: str, above: tuple[str, ...]) -> None:
        contents.folders.append(place)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"folder {printable(place)} cannot be listed: {error.strerror}") from None
        for entry in entries:
            real, reason, fault = os.path.realpath(entry.path), "", ""
            if printable(entry.name) != entry.name:
                reason, fault = "names that are not UTF-8", "has a name that is not UTF-8: rename it"
            elif entry.is_symlink() and not Path(real).is_relative_to(real_root):
                reason, fault = "links out of the folder", "is a link out of the folder: copy its target here"
            elif not os.path.exists(real):
                reason, fault = "broken links", "is a link to nothing: repair or remove it"
            elif not (os.path.isfile(real) or os.path.isdir(real)):
                reason, fault = "neither files nor folders", "is neither a file nor a folder: remove it"
            elif "\\" in entry.name:
                reason, fault = "names with a backslash", "has a backslash in its name, read as a slash: rename it"
            elif real in above:
                reason, fault = "circular links", "is a link to a folder that contains it: remove it"
            if HIDDEN.match(entry.name):
                contents.hidden += _file_count(entry)
            elif reason:
                contents.refused.append((reason, f"{printable(entry.path)} {fault}", _file_count(entry)))
            elif entry.is_file():
                contents.files[prefix + entry.name] = real
            elif entry.is_dir() and deep:
                visit(entry.path, f"{prefix}{entry.name}/", (*above, real))

    visit(str(folder), "", (os.path.realpath(folder),))
    return contents


def _file_count(entry: os.DirEntry) -> int:
    """Number of files in an entry that is left out; a link counts as one."""
    return sum(len(files) for _, _, files in os.walk(entry.path)) if entry.is_dir(follow_symlinks=False) else 1
