"""Clip art: the drawings of Debian's package ``openclipart-png``, with what their makers wrote.

All drawings are in the public domain. Captions are the title and the sentences of the description that each PNG file
carries, and the file's name without its maker's; the folder is the category. Nothing is balanced.
"""

import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset, evenly
from rvlr_lib.data.files import Stamp, printable, stamp, walk
from rvlr_lib.data.own import hashed_split
from rvlr_lib.data.pictures import FileSource, equal_files, faults, open_picture
from rvlr_lib.data.relevance import clean_caption

ROOT = "/usr/share/openclipart/png"
SHARED = 20  # pictures that share a caption before it is counted as one that tells little
MOST_CAPTIONS, MOST_WORDS = 5, 40


def load_clipart(*, split: str, image_root: str | Path | None = None, limit: int | None = None) -> ImageTextDataset:
    """Clip art with one to five captions a drawing, split 80/10/10 by a hash of the file's name; ``limit`` as of emoji.

    A file that several names link to counts once; files that are equal byte for byte are in one split. What was left
    out and how many captions more than 20 drawings share is printed and stands in ``info``. ValueError: the package is
    not there (says how to install it), or ``limit`` is below 1.
    """
    stamps = clipart_stamps(image_root)
    root = Path(stamps[0][0])
    drawings, first, counts = _catalogue(stamps)
    names = evenly([name for name in drawings if hashed_split(first.get(name, name)) == split], limit)
    if not names:
        raise ValueError(f"{root}: none of {len(drawings)} drawings with a title is in {split}; is it openclipart-png?")
    return ImageTextDataset(
        name="clipart",
        split=split,
        image_ids=names,
        captions=[caption for name in names for caption in drawings[name]],
        caption_image=np.repeat(np.arange(len(names)), [len(drawings[name]) for name in names]),
        source=FileSource(root, names),
        categories=[os.path.dirname(name) or "none" for name in names],
        info={**counts, "images": len(names), "limit": limit},
    )


def clipart_stamps(image_root: str | Path | None = None) -> tuple[Stamp, ...]:
    """Stamps of the folders and files of the package; ValueError where it is not there."""
    root = printable(Path(image_root or ROOT))
    if not root.is_dir():
        raise ValueError(f"clipart: {root} is not there; apt install openclipart-png, or give its folder as image_root")
    found = walk(root, root)
    return tuple(stamp(place) for place in (*found.folders, *(f"{root}/{name}" for name in found.files)))


@lru_cache(maxsize=2)
def _catalogue(stamps: tuple[Stamp, ...]) -> tuple[dict[str, list[str]], dict[str, str], dict[str, Any]]:
    """Captions of every drawing that has any, the first of the names of equal files, and what was left out."""
    root = Path(stamps[0][0])
    names = [name for name in walk(root, root).files if name.lower().endswith(".png")]
    own = [name for name in names if not (root / name).is_symlink()]
    told = dict[str, list[str]]()

    def look(path: Path) -> None:
        with open_picture(path) as picture:
            name = path.relative_to(root).as_posix()
            texts = {str(key): text for key, text in picture.info.items() if isinstance(text, str)}
            told[name] = _captions(name, texts)

    bad = faults(look, root, own)
    drawings = {name: texts for name, texts in sorted(told.items()) if texts}
    owners = Counter(text for texts in drawings.values() for text in texts)
    info = {
        "files": len(names),
        "links to others": len(names) - len(own),
        "too large or damaged": len(bad),
        "without a caption": len(told) - len(drawings),
        f"captions shared by more than {SHARED} drawings": sum(count > SHARED for count in owners.values()),
    }
    print(f"clipart: {len(drawings):,} drawings; {', '.join(f'{count:,} {what}' for what, count in info.items())}")
    return drawings, {name: min(group) for group in equal_files(root, drawings) for name in group}, info


def _captions(name: str, about: dict[str, str]) -> list[str]:
    """Title, name of the file, and sentences of the description, each once."""
    stem = re.sub(r"[_\W]*\d*$", "", os.path.splitext(os.path.basename(name))[0])
    maker = "_".join(clean_caption(about.get("Author", "")).split())
    tails = [place for place, mark in enumerate(stem) if mark == "_" and maker.startswith(stem[place + 1 :].lower())]
    stem = stem[: tails[0]] if tails and tails[0] else stem
    description = re.sub(r"\S*(?:://|www\.)\S*", " ", about.get("Description", ""))
    sentences = re.split(r"(?<=[.!?;])\s+|\n+", description)
    texts = [clean_caption(text) for text in (about.get("Title", ""), stem, *sentences)]
    texts = [" ".join(text.split()[:MOST_WORDS]) for text in texts if re.search(r"[^\W\d_]{2}", text)]
    return list(dict.fromkeys(texts))[:MOST_CAPTIONS]
