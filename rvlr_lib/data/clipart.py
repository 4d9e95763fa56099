"""Clip art: the drawings of Debian's package ``openclipart-png`` with their makers' titles, descriptions and names.

All drawings are dedicated to the public domain. Captions are the title and the description that each PNG file carries and
the name of the file without its maker's; the folder is the category. Nothing is drawn evenly and nothing is balanced: some
titles name a whole series ("gramastar"), some descriptions run over sentences, a third of the titles is not English.
"""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.data.files import Stamp, printable, stamp, walk
from rvlr_lib.data.own import hashed_split
from rvlr_lib.data.pictures import MAX_PIXELS, FileSource, equal_files, in_threads
from rvlr_lib.data.relevance import clean_caption

ROOT = "/usr/share/openclipart/png"
SHARED = 20  # pictures that share a caption before it is counted as one that tells little
MOST_CAPTIONS, MOST_WORDS = 5, 40


class Drawing(NamedTuple):
    """One drawing: its file below the root, one to five captions, its folder, and the file whose split it takes."""

    name: str
    captions: list[str]
    category: str
    like: str


def load_clipart(
    *, split: str, image_root: str | Path | None = None, limit: int | None = None, split_seed: int = 0
) -> ImageTextDataset:
    """Clip art with one to five captions a drawing, split 80/10/10 by a hash of the file's name.

    A file that several names link to counts once; files that are equal byte for byte are in one split. What was left out
    and how many captions more than 20 drawings share is printed and stands in ``info``.

    Args:
        split: ``train``, ``val`` or ``test``.
        image_root: folder of the drawings; default where Debian puts them.
        limit: only so many drawings of the split, evenly spaced.
        split_seed: of the hash.

    Raises:
        ValueError: the package is not there (says how to install it), or an argument is not lawful.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; clipart has {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is too small; give at least 1, or None for all")
    stamps = clipart_stamps(image_root)
    root = Path(stamps[0][0])
    drawings, told = _catalogue(stamps)
    chosen = [one for one in drawings if hashed_split(one.like, split_seed) == split]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).astype(int)]
    if not chosen:
        raise ValueError(
            f"{root}: {split} has no drawing with a title of its {len(drawings)}; is this openclipart-png?"
        )
    return ImageTextDataset(
        name="clipart",
        split=split,
        image_ids=[one.name for one in chosen],
        captions=[caption for one in chosen for caption in one.captions],
        caption_image=np.repeat(np.arange(len(chosen)), [len(one.captions) for one in chosen]),
        source=FileSource(root, [one.name for one in chosen]),
        categories=[one.category for one in chosen],
        info={**told, "images": len(chosen), "limit": limit, "split_seed": split_seed},
    )


def clipart_stamps(image_root: str | Path | None = None) -> tuple[Stamp, ...]:
    """Stamps of the folders and files of the package.

    Raises:
        ValueError: it is not there.
    """
    root = printable(Path(image_root or ROOT))
    if not root.is_dir():
        raise ValueError(f"clipart: {root} is not there; apt install openclipart-png, or give its folder as image_root")
    found = walk(root, root)
    return tuple(map(stamp, (root, *found.folders[1:], *(root / name for name in found.files))))


@lru_cache(maxsize=2)
def _catalogue(stamps: tuple[Stamp, ...]) -> tuple[list[Drawing], dict[str, Any]]:
    """Every drawing with a caption, and what was left out."""
    root = Path(stamps[0][0])
    found = walk(root, root)
    names = [name for name in found.files if name.lower().endswith(".png")]
    own = [name for name, path in zip(names, (root / name for name in names), strict=True) if not path.is_symlink()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        told = dict(zip(own, in_threads(_about, [root / name for name in own]), strict=True))
    captions = {name: _captions(name, about) for name, about in told.items() if about is not None}
    captions = {name: texts for name, texts in captions.items() if texts}
    alike = {name: min(group) for group in equal_files(root, captions) for name in group}
    drawings = [Drawing(name, texts, os.path.dirname(name) or "none", alike.get(name, name))
                for name, texts in sorted(captions.items())]  # fmt: skip
    owners = Counter(text for one in drawings for text in one.captions)
    shared = {text: count for text, count in owners.items() if count > SHARED}
    info = {
        "files": len(names),
        "links_to_others": len(names) - len(own),
        "too_large_or_damaged": sum(about is None for about in told.values()),
        "without_a_caption": len(told) - len(captions) - sum(about is None for about in told.values()),
        f"captions_of_more_than_{SHARED}": len(shared),
    }
    print(f"clipart: {len(drawings):,} drawings of {len(names):,} files ({info['links_to_others']:,} are links to others, "
          f"{info['too_large_or_damaged']} too large or damaged, {info['without_a_caption']} without a caption); "
          f"{len(shared)} captions are shared by more than {SHARED} drawings, {max(owners.values(), default=0)} at most")  # fmt: skip
    return drawings, info


def _about(path: Path) -> dict[str, str] | None:
    """Texts in a PNG file; None where it cannot be used."""
    try:
        with Image.open(path, formats=("PNG",)) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                return None
            return {key: value for key, value in picture.info.items() if isinstance(value, str)}
    except Exception:  # decoders of damaged files raise whatever they please; the count is printed
        return None


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
