"""Picture files: paths that stay inside their root, decoding that is right or says why not, and reading on demand."""

import os
import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from rvlr_lib.data.dataset import PixelSource, in_threads
from rvlr_lib.data.files import Stamp, stamp
from rvlr_lib.disk import sha256

SUFFIXES = tuple(".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pnm".split())
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # no format that starts another program
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; about 270 MB decoded


def safe_path(root: Path, name: str) -> Path:
    """The file ``name`` below ``root``, backslashes read as slashes; ValueError where its name or a link leads out."""
    check_name(name)
    path = root / name.replace("\\", "/")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"picture {name!r} is a link that leads out of {root}: put the picture itself there")
    return path


def check_name(name: str) -> None:
    """Refuse a picture's name whose spelling alone leads out of the root, as :func:`safe_path`; touches no file."""
    spelt, way = name.replace("\\", "/"), "give its path below image_root"
    parts = spelt.split("/")
    long = max(len(part.encode("utf-8", "replace")) for part in parts) > 255
    wrong = {
        f"is an address: pictures are read from disk, {way}": "://" in spelt,
        "has an absolute path: write it relative to image_root": re.match("/|[A-Za-z]:", spelt),
        f"has a name that no file can have (NUL, or over 255 bytes): {way}": "\0" in spelt or long,
        "climbs out with '..': write it relative to image_root": ".." in parts,
        f"has an empty name: {way}": PurePosixPath(spelt.strip()) == PurePosixPath(),
    }
    if fault := next((fault for fault, holds in wrong.items() if holds), ""):
        raise ValueError(f"picture {name!r} {fault}")


def check_header(path: Path) -> tuple[int, int]:
    """Width and height from the file's header; ValueError names the file and its fault: missing, empty, too large."""
    with open_picture(path) as picture:
        return picture.size


def decode(path: Path) -> Image.Image:
    """The whole picture as RGB, upright; a ValueError names the file and its fault, floats among them.

    EXIF rotation is applied, transparency laid on white, CMYK, palettes and grey converted, 16 bits scaled to 8; of an
    animation the first frame is taken.
    """
    with open_picture(path) as opened:
        try:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
        except Exception as error:  # decoders of damaged files raise whatever they please
            raise ValueError(f"picture {path} is damaged or truncated ({error}): replace it or leave it out") from None
        if picture.mode == "F" or (picture.mode == "I" and opened.format == "TIFF"):
            raise ValueError(f"picture {path} holds floating-point or 32-bit values of unknown white: save it as PNG")
        if picture.mode.startswith("I"):
            wide = np.asarray(picture).astype(np.float64) * (255 / 65535)
            return Image.fromarray(wide.round().clip(0, 255).astype(np.uint8)).convert("RGB")
        if picture.has_transparency_data:
            drawn = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn)
        return picture.convert("RGB")


def open_picture(path: Path) -> Image.Image:
    """A picture whose header is read; ValueError names the file and its fault: missing, empty, too large."""
    if not path.is_file():
        near = _names(path.parent, stamp(path.parent)).get(unicodedata.normalize("NFC", path.name).casefold())
        there = f", but {near!a} is there{' as a folder' * os.path.isdir(path)}" if near else ""
        raise ValueError(f"picture {str(path)!r} is missing{there}: see image_root, or leave its captions out")
    if not path.stat().st_size:
        raise ValueError(f"picture {path} is empty (0 bytes): replace it or leave it out")
    try:
        picture = Image.open(path, formats=FORMATS)
    except Image.DecompressionBombError:
        raise ValueError(f"picture {path} has more than {2 * MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception as error:
        reason = "its header is none of a known kind" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"picture {path} cannot be read ({reason}); known: {', '.join(FORMATS)}") from None
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} x {picture.height}"
        picture.close()
        raise ValueError(f"picture {path} has {size} pixels, more than {MAX_PIXELS:,}: make it smaller")
    return picture


@lru_cache(maxsize=8)  # many pictures may be missing from a folder
def _names(folder: Path, _stamp: Stamp) -> dict[str, str]:
    return {unicodedata.normalize("NFC", path.name).casefold(): path.name for path in folder.glob("*")}


def faults(look: Callable[[Path], object], root: Path, names: Sequence[str]) -> dict[str, str]:
    """Files below ``root`` -> what ``look`` (:func:`check_header` or :func:`decode`) finds wrong with them."""

    def one(name: str) -> str | None:
        try:
            look(safe_path(root, name))
        except (ValueError, OSError) as error:
            return str(error)
        return None

    said = tqdm(in_threads(one, names), "pictures", len(names), delay=5, disable=None, unit="file")  # on a terminal
    with warnings.catch_warnings():  # here, not in the threads: the filters are the whole process's
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # refused, so no need to warn
        return {name: why for name, why in zip(names, said, strict=True) if why}


def equal_files(root: Path, names: Iterable[str]) -> list[list[str]]:
    """Groups of names below ``root`` whose files are equal byte for byte, in order; files not there are passed over.

    Only files of equal size that begin alike are read whole.
    """

    def beginning(path: Path) -> bytes:
        with path.open("rb") as file:
            return file.read(4096)

    groups = [[name for name in names if os.path.isfile(f"{root}/{name}")]]
    for look, run in ((os.path.getsize, map), (beginning, in_threads), (sha256, in_threads)):
        asked = [(place, name) for place, group in enumerate(groups) for name in group]
        values = run(look, [root / name for _, name in asked])
        found: dict[tuple[int, object], list[str]] = defaultdict(list)
        for (place, name), value in zip(asked, values, strict=True):
            found[place, value].append(name)
        groups = [group for group in found.values() if len(group) > 1]
    return groups


class FileSource(PixelSource):
    """Pictures in files ``names`` below ``root``, which none may leave, by row."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        def path(row: int) -> Path:
            return safe_path(Path(root), names[row])

        super().__init__(len(names), lambda row: decode(path(row)), lambda row: path(row).read_bytes())
