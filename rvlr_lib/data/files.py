"""Files of a collection: text decoded, folders walked, hidden files and links told apart, and stamps of what was read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

HIDDEN = {"__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "__pycache__", "lost+found"}

Stamp = tuple[str, int, int, int]
Refused = dict[str, list[str]]  # reason -> a message each


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is a system's or an editor's own and never part of a collection.

    >>> [name for name in ("a.jpg", "._a.jpg", ".ipynb_checkpoints", "__MACOSX", "Thumbs.db") if not is_hidden(name)]
    ['a.jpg']
    """
    return name.startswith((".", "~$")) or name.casefold() in HIDDEN


def stamp(path: str | Path) -> Stamp:
    """Path, size and times of change in ns: differs once a file or folder is edited, replaced, made or removed."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return str(path), -1, 0, 0
    return str(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns


def shown(name: str | Path) -> str:
    """A name that can be printed, whatever its bytes.

    >>> shown("caf\\udce9.jpg")
    'caf\\\\xe9.jpg'
    """
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def printable(path: Path) -> Path:
    """The path itself.

    Raises:
        ValueError: its name is not UTF-8.
    """
    if shown(path) != str(path):
        raise ValueError(f"the name of {shown(path)} is not UTF-8: rename it")
    return path


def read_text(path: Path) -> str:
    """Text of a UTF-8 file, with or without byte-order mark.

    Raises:
        ValueError: the file cannot be read, is of another encoding, or is no text; says which and where.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    marked = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    if marked or (data[:2000].count(0) > len(data[:2000]) / 4 and 0 in (*data[:1], *data[1:2])):
        mark = "with" if marked else "without"
        raise ValueError(f"{path} is not UTF-8 but UTF-16 ({mark} byte-order mark): save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start} is {data[error.start]:#04x}) on line {line}: save it as UTF-8"
        ) from None
    if "\0" in text:
        raise ValueError(
            f"{path} holds NUL bytes on line {text.count(chr(10), 0, text.index(chr(0))) + 1}: no text file"
        )
    return text


@dataclass
class Walk:
    """What lies in a folder and below: files by path below it, hidden ones counted, the rest refused by reason."""

    files: dict[str, bool] = field(default_factory=dict)  # name -> whether a link leads there
    hidden: int = 0
    refused: Refused = field(default_factory=dict)
    lost: int = 0  # files that the refused names stand for
    folders: list[str] = field(default_factory=list)

    def refuse(self, reason: str, message: str, count: int = 1) -> None:
        """Note what is left out and why."""
        self.refused.setdefault(reason, []).append(message)
        self.lost += count


def walk(folder: Path, root: Path, *, deep: bool = True) -> Walk:
    """Every file in a folder; links are followed as long as they stay inside ``root``.

    Raises:
        ValueError: a folder cannot be listed.
    """
    found, inside = Walk(), os.path.realpath(root)

    def visit(place: str, prefix: str, linked: bool, above: tuple[str, ...]) -> None:
        found.folders.append(place)
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ValueError(f"folder {shown(place)} cannot be listed: {error.strerror}") from None
        for entry in entries:
            name, whole = prefix + entry.name, shown(entry.path)
            if is_hidden(entry.name):
                found.hidden += _count(entry)
                continue
            if shown(entry.name) != entry.name:
                found.refuse("names that are not UTF-8", f"the name of {whole} is not UTF-8: rename it", _count(entry))
                continue
            link, real = linked or entry.is_symlink(), ""
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if not within(real, inside):
                    way_out = "put what it names there, or take the link away"
                    found.refuse("links out of the folder", f"{whole} is a link that leads out of {root}: {way_out}")
                    continue
                if not os.path.exists(real):
                    found.refuse("links to nothing", f"{whole} is a link to {shown(real)}, which is missing: mend it")
                    continue
            if entry.is_dir():
                real = real or os.path.realpath(entry.path)
                if real in above:
                    found.refuse("links in a circle", f"{whole} is a link to a folder above it: take it away")
                elif deep:
                    visit(entry.path, f"{name}/", link, (*above, real))
            elif entry.is_file():
                found.files[name] = link

    visit(str(folder), "", False, (os.path.realpath(folder),))
    return found


def within(path: str, folder: str) -> bool:
    """Whether a resolved path is a resolved folder or lies below it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _count(entry: os.DirEntry) -> int:
    """Files that an entry stands for."""
    if not entry.is_dir(follow_symlinks=False):
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))
