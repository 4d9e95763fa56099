"""Picture files: paths confined to a root, decoding that is correct or names the fault, and reading on demand."""

import os
import re
import unicodedata
import warnings
from collections import Counter, defaultdict
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
READABLE = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # none that starts another program
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs; about 270 MB decoded


def safe_path(root: Path, name: str) -> Path:
    """Path of ``name`` below ``root``, backslashes read as slashes; ValueError if its name or a link leads out."""
    check_name(name)
    path = root / name.replace("\\", "/")
    if not path.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"picture {name!r} is a link that leads out of {root}: copy the picture itself there")
    return path


def check_name(name: str) -> None:
    """Refuse a picture's name that is invalid by its spelling alone: :func:`safe_path` without touching a file."""
    slashed, way_out = name.replace("\\", "/"), "give its path below image_root"
    parts = slashed.split("/")
    too_long = max(len(part.encode("utf-8", "replace")) for part in parts) > 255 or len(slashed) > 1000
    checks = {
        f"is a URL, but pictures are read from disk: {way_out}": "://" in slashed,
        "has an absolute path: write it relative to image_root": re.match("/|[A-Za-z]:", slashed),
        f"has a name that no file can have (NUL, or too long): {way_out}": "\0" in slashed or too_long,
        "climbs out with '..': write it relative to image_root": ".." in parts,
        f"has an empty name: {way_out}": PurePosixPath(slashed.strip()) == PurePosixPath(),
    }
    if fault := next((fault for fault, present in checks.items() if present), ""):
        raise ValueError(f"picture {name!r} {fault}")


def check_header(path: Path) -> tuple[int, int]:
    """Width and height from the file's header; errors as in :func:`open_picture`."""
    with open_picture(path) as picture:
        return picture.size


def decode(path: Path) -> Image.Image:
    """The complete picture as upright RGB; ValueError names the file and its fault, including floating-point values.

    EXIF rotation is applied, transparency composited on white, CMYK, palettes and grey converted, 16 bits scaled to 8;
    an animation yields its first frame.
    """
    with open_picture(path) as opened:
        try:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
        except Exception as error:  # decoders raise all kinds of errors for damaged files
            raise ValueError(f"picture {path} is damaged or truncated ({error}): replace it or leave it out") from None
        if picture.mode == "F" or (picture.mode == "I" and opened.format == "TIFF"):
            raise ValueError(f"picture {path} has floating-point or 32-bit values: which one is white? Save it as PNG")
        if picture.mode.startswith("I"):
            values = np.asarray(picture).astype(np.float64) * (255 / 65535)
            return Image.fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")
        if picture.has_transparency_data:
            rgba = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
        return picture.convert("RGB")


def open_picture(path: Path) -> Image.Image:
    """Open a picture and read its header; ValueError: missing, empty, of an unknown format or too large."""
    if not path.is_file():
        similar = _listing(path.parent, stamp(path.parent)).get(unicodedata.normalize("NFC", path.name).casefold())
        there = f", but {similar!a} is there{' as a folder' * os.path.isdir(path)}" if similar else ""
        raise ValueError(f"picture {str(path)!r} is missing{there}: check image_root, or leave its captions out")
    if not path.stat().st_size:
        raise ValueError(f"picture {path} is empty (0 bytes): replace it or leave it out")
    try:
        picture = Image.open(path, formats=READABLE)
    except Image.DecompressionBombError:
        raise ValueError(f"picture {path} has more than {2 * MAX_PIXELS:,} pixels: make it smaller") from None
    except Exception as error:
        reason = "its header matches no known format" if isinstance(error, Image.UnidentifiedImageError) else error
        raise ValueError(f"picture {path} cannot be read ({reason}); known formats: {', '.join(READABLE)}") from None
    if picture.width * picture.height > MAX_PIXELS:
        size = f"{picture.width} x {picture.height}"
        picture.close()
        raise ValueError(f"picture {path} has {size} pixels, more than {MAX_PIXELS:,}: make it smaller")
    return picture


@lru_cache(maxsize=8)  # many pictures of one folder may be missing
def _listing(folder: Path, _stamp: Stamp) -> dict[str, str]:
    return {unicodedata.normalize("NFC", path.name).casefold(): path.name for path in folder.glob("*")}


def find_faults(look: Callable[[Path], object], root: Path, names: Sequence[str]) -> dict[str, str]:
    """File below ``root`` -> what ``look`` (:func:`check_header` or :func:`decode`) finds wrong with it."""

    def fault(name: str) -> str | None:
        try:
            look(safe_path(root, name))
        except (ValueError, OSError) as error:
            return str(error)
        return None

    messages = tqdm(in_threads(fault, names), "pictures", len(names), delay=5, disable=None, unit="file")
    with warnings.catch_warnings():  # here, not in the threads: filters are process-wide
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # such pictures are refused
        return {name: message for name, message in zip(names, messages, strict=True) if message}


def equal_files(root: Path, names: Iterable[str]) -> list[list[str]]:
    """Groups of names below ``root`` whose files are equal byte for byte, in order; missing files are skipped.

    Only files of equal size are read.
    """
    sizes = {name: os.path.getsize(f"{root}/{name}") for name in names if os.path.isfile(f"{root}/{name}")}
    counts = Counter(sizes.values())
    candidates = [name for name, size in sizes.items() if counts[size] > 1]
    groups: dict[str, list[str]] = defaultdict(list)
    for name, digest in zip(candidates, in_threads(lambda name: sha256(root / name), candidates), strict=True):
        groups[digest].append(name)
    return [group for group in groups.values() if len(group) > 1]


class FileSource(PixelSource):
    """Pictures by row, read from the files ``names`` below ``root``, none of which may lead out of it."""

    def __init__(self, root: Path, names: Sequence[str]) -> None:
        def path(row: int) -> Path:
            return safe_path(Path(root), names[row])

        super().__init__(len(names), lambda row: decode(path(row)), lambda row: path(row).read_bytes())
