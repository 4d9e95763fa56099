"""Clip art: the drawings of Debian's package ``openclipart-png``, with their authors' titles and descriptions.

All drawings are in the public domain. Captions are the title and the sentences of the description in each PNG file,
and the file name without the author's name; the folder is the category. Nothing is balanced.
"""

import os
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset, evenly_spaced
from rvlr_lib.data.files import Stamp, require_utf8_name, stamp, walk
from rvlr_lib.data.own import hashed_split
from rvlr_lib.data.pictures import FileSource, equal_files, find_faults, open_picture
from rvlr_lib.data.relevance import clean_caption

ROOT = "/usr/share/openclipart/png"
SHARED = 20  # drawings that may share a caption before it counts as uninformative
MOST_CAPTIONS, MOST_WORDS = 5, 40


def load_clipart(*, split: str, image_root: str | Path | None = None, limit: int | None = None) -> ImageTextDataset:
    """Clip art with one to five captions per drawing, split 80/10/10 by a hash of the file name.

    Symbolic links are left out; byte-identical files are in one split. What was left out, and how many captions more
    than 20 drawings share, is printed and stored in ``info``. ``limit``: at most so many drawings, evenly spaced.
    ValueError if the package is missing (says how to install it) or ``limit`` is below 1.
    """
    stamps = clipart_stamps(image_root)
    root = Path(stamps[0][0])
    drawings, representative, counts = _catalogue(stamps)
    names = evenly_spaced([name for name in drawings if hashed_split(representative.get(name, name)) == split], limit)
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
    """Stamps of the package's folders and files; ValueError if it is not installed."""
    root = require_utf8_name(Path(image_root or ROOT))
    if not root.is_dir():
        raise ValueError(f"clipart: no folder {root}; apt install openclipart-png, or give its folder as image_root")
    contents = walk(root, root)
    return tuple(stamp(path) for path in (*contents.folders, *(f"{root}/{name}" for name in contents.files)))


@lru_cache(maxsize=2)
def _catalogue(stamps: tuple[Stamp, ...]) -> tuple[dict[str, list[str]], dict[str, str], dict[str, Any]]:
    """Captions by drawing, the first name of each group of equal files by name, and counts of what was left out."""
    root = Path(stamps[0][0])
    names = [name for name in walk(root, root).files if name.lower().endswith(".png")]
    originals = [name for name in names if not (root / name).is_symlink()]
    captions = dict[str, list[str]]()

    def read_captions(path: Path) -> None:
        with open_picture(path) as picture:
            name = path.relative_to(root).as_posix()
            texts = {str(key): text for key, text in picture.info.items() if isinstance(text, str)}
            captions[name] = _captions(name, texts)

    faulty = find_faults(read_captions, root, originals)
    drawings = {name: texts for name, texts in sorted(captions.items()) if texts}
    uses = Counter(text for texts in drawings.values() for text in texts)
    info = {
        "files": len(names),
        "links to others": len(names) - len(originals),
        "too large or damaged": len(faulty),
        "without a caption": len(captions) - len(drawings),
        f"captions shared by more than {SHARED} drawings": sum(count > SHARED for count in uses.values()),
    }
    print(f"clipart: {len(drawings):,} drawings; {', '.join(f'{count:,} {what}' for what, count in info.items())}")
    return drawings, {name: min(group) for group in equal_files(root, drawings) for name in group}, info


def _captions(name: str, metadata: dict[str, str]) -> list[str]:
    """Title, file name and sentences of the description, without repeats."""
    stem = re.sub(r"[_\W]*\d*$", "", os.path.splitext(os.path.basename(name))[0])
    author = "_".join(clean_caption(metadata.get("Author", "")).split())
    ends = [i for i, mark in enumerate(stem) if mark == "_" and author.startswith(stem[i + 1 :].lower())]
    stem = stem[: ends[0]] if ends and ends[0] else stem  # without the author's name, often cut off
    description = re.sub(r"\S*(?:://|www\.)\S*", " ", metadata.get("Description", ""))
    sentences = re.split(r"(?<=[.!?;])\s+|\n+", description)
    texts = [clean_caption(text) for text in (metadata.get("Title", ""), stem, *sentences)]
    texts = [" ".join(text.split()[:MOST_WORDS]) for text in texts if re.search(r"[^\W\d_]{2}", text)]
    return list(dict.fromkeys(texts))[:MOST_CAPTIONS]
