"""The dial: take information away from one modality, by a stated amount, and keep the truth of what was taken."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, PixelSource

FAULTS = ("occlusion", "blur", "noise", "darkness", "low_resolution")  # after VizWiz: Chiu, Zhao and Gurari 2020
GRID = 8  # tiles a side that occlusion covers; the scenes have their own 3 x 3
_GREY = 104


@dataclass(frozen=True)
class ImbalanceSpec:
    """How much of each modality is left, and how many pairs are wrong; shares 0..1, anything else is a ValueError.

    Visibility is, with ``occlusion``, the share of tiles that is left. Otherwise it is 1 - s of a fault's strength s:
    ``blur`` a Gaussian of radius s/10 of the shorter side; ``noise`` a Gaussian of standard deviation 128 s of 255;
    ``darkness`` every value times 1 - s; ``low_resolution`` both sides times 1 - s (one pixel or more), enlarged again.
    """

    text_detail: float = 1.0  # chance of each factor (scenes) or word (other captions) to be told; one is always told
    image_visibility: float = 1.0  # what is left of each picture
    image_fault: str = "occlusion"  # one of FAULTS
    mismatch_rate: float = 0.0  # share of the training captions that stand with the picture of another
    splits: tuple[str, ...] = SPLITS  # where the dial acts; pairs are mixed in train alone, whatever it says
    seed: int = 0  # of what is dropped, covered and mixed; on scenes the data set's own seed decides what is dropped

    def __post_init__(self) -> None:
        for name in ("text_detail", "image_visibility", "mismatch_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} lies outside 0 to 1")
        if self.image_fault not in FAULTS:
            raise ValueError(f"image_fault={self.image_fault!r} is unknown; choose one of: {', '.join(FAULTS)}")
        if unknown := [split for split in self.splits if split not in SPLITS]:
            raise ValueError(f"the dial knows the splits train, val and test, not {unknown[0]!r}")

    def on(self, split: str) -> "ImbalanceSpec":
        """What is left of the dial on one split."""
        kept = self if split in self.splits else replace(self, text_detail=1.0, image_visibility=1.0)
        return kept if split == "train" else replace(kept, mismatch_rate=0.0)


def impose(dataset: ImageTextDataset, spec: ImbalanceSpec) -> ImageTextDataset:
    """The data set under the dial: words dropped, pictures degraded, pairs mixed.

    Graded relevance of real captions stays that of the whole captions, which are kept in ``dataset.whole_captions``.
    ValueError: words or tiles of scenes, which ``load_dataset`` takes; too few captions to mix.
    """
    here, split = spec.on(dataset.split), dataset.split
    occluded = here.image_visibility < 1 and here.image_fault == "occlusion"
    if dataset.scene is not None and (here.text_detail < 1 or occluded):
        raise ValueError("scenes drop factors where they are drawn: load_dataset('scenes', split=..., imbalance=spec)")
    captions, whole, info = dataset.captions, dataset.whole_captions, dict(dataset.info)
    changes: dict[str, Any] = {}
    if here.text_detail < 1:
        whole, captions = whole or captions, drop_words(captions, here.text_detail, _salted(here.seed, split, "words"))
        info |= {"text_detail": here.text_detail}
    if here.image_visibility < 1:
        source, seed = dataset.source, _salted(here.seed, split, "pictures")
        visibility, fault = here.image_visibility, here.image_fault
        changes["source"] = PixelSource(  # the same fault whenever a picture is asked for
            len(source),
            lambda row: degrade(source.image(row), visibility, fault, np.random.default_rng([seed, row])),
            lambda row: source.content(row) + f"{visibility} {fault} {seed} {row}".encode(),
        )
        info |= {"image_visibility": visibility, "image_fault": fault}
    if here.mismatch_rate:
        moved = mismatch_index(dataset.caption_image, here.mismatch_rate, here.seed)
        captions, whole = [captions[c] for c in moved], whole and [whole[c] for c in moved]
        changes["scene"] = dataset.scene and dataset.scene.subset(np.arange(len(dataset)), moved, dataset.caption_image)
        info |= {"mismatch_rate": here.mismatch_rate, "mismatch_seed": here.seed}
    return replace(dataset, captions=captions, whole_captions=whole, info=info, **changes)


def _salted(seed: int, split: str, purpose: str) -> int:
    """A seed of one purpose and split, so that no two draw the same."""
    return zlib.crc32(f"{seed} {split} {purpose}".encode())


def drop_words(captions: Sequence[str], detail: float, seed: int = 0) -> list[str]:
    """Keep each word with the chance ``detail``; one always stays, and what is kept at 0.3 is kept at 0.6."""
    kept = []
    for number, caption in enumerate(captions):
        words = caption.split()
        draws = np.random.default_rng([seed, number]).random(len(words))
        left = [word for word, draw in zip(words, draws, strict=True) if draw < detail]
        kept.append(" ".join(left) if left or not words else words[int(draws.argmin())])
    return kept


def degrade(image: Image.Image, visibility: float, fault: str, generator: np.random.Generator) -> Image.Image:
    """One RGB picture with a fault, in the same size; see :class:`ImbalanceSpec` for the strengths."""
    strength, size = 1 - visibility, image.size
    if fault == "blur":
        return image.filter(ImageFilter.GaussianBlur(strength * min(size) / 10))
    if fault == "low_resolution":
        small = max(1, round(size[0] * visibility)), max(1, round(size[1] * visibility))
        return image.resize(small, Image.Resampling.BOX).resize(size, Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.float32)
    if fault == "darkness":
        pixels = pixels * visibility
    elif fault == "noise":
        pixels = pixels + 128 * strength * generator.standard_normal(pixels.shape, dtype=np.float32)
    else:
        covered = int(np.floor(GRID**2 * strength + generator.random()))
        gone = (generator.permutation(GRID**2) < covered).reshape(GRID, GRID)
        rows, columns = (np.arange(side) * GRID // side for side in pixels.shape[:2])
        pixels = np.where(gone[rows][:, columns, None], _GREY, pixels)
    return Image.fromarray((pixels.clip(0, 255) + 0.5).astype(np.uint8))


def mismatch_index(caption_image: np.ndarray, rate: float, seed: int = 0) -> np.ndarray:
    """Which caption stands in the place of each after mixing: int64 [C], ``index[c] == c`` where nothing moved.

    Exactly ``round(rate C)`` captions move, each to a picture that is not its own, and every picture keeps its number
    of captions. Depends on nothing but its arguments: the picture row of each caption [C], the share to move, a seed.
    ValueError: the rate lies outside 0 to 1, or so few captions move that one would have to keep its picture.

    >>> index = mismatch_index(np.arange(10), 0.2, seed=1)
    >>> int((index != np.arange(10)).sum()), sorted(index.tolist()) == list(range(10))
    (2, True)
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"mismatch_rate={rate} lies outside 0 to 1")
    count, generator = len(caption_image := np.asarray(caption_image)), np.random.default_rng(seed)
    moving, index = round(rate * count), np.arange(count)
    if not rate:
        return index
    chosen = generator.permutation(count)[:moving]
    order = generator.permutation(int(caption_image.max()) + 1)  # pictures in random order, so that partners are random
    chosen = chosen[np.argsort(order[caption_image[chosen]], kind="stable")]
    largest = int(np.bincount(caption_image[chosen], minlength=1).max())
    if not moving or 2 * largest > moving:
        fault = f"mismatch_rate={rate} moves {moving} of {count} captions, of which {largest} belong to one picture"
        raise ValueError(f"{fault}: raise the rate or take more pictures")
    index[chosen] = np.roll(chosen, largest)
    return index
