"""The dial: remove a stated amount of information from one modality, and keep track of what was removed."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, PixelSource
from rvlr_lib.tables import refuse_unknown

FAULTS = ("occlusion", "blur", "noise", "darkness", "low_resolution")  # after VizWiz: Chiu, Zhao and Gurari 2020
GRID = 8  # tiles per side for occlusion; scenes have their own 3 x 3
_GREY = 104


@dataclass(frozen=True)
class ImbalanceSpec:
    """How much of each modality remains, and how many pairs are wrong; ValueError for shares outside 0..1.

    With ``occlusion``, visibility is the share of tiles left uncovered; otherwise 1 - s for a fault of strength s:
    ``blur``, a Gaussian of radius s/10 of the shorter side; ``noise``, Gaussian of standard deviation 128 s of 255;
    ``darkness``, all values times 1 - s; ``low_resolution``, sides times 1 - s (at least one pixel), then enlarged.
    """

    text_detail: float = 1.0  # chance that a factor (scenes) or word (other captions) is kept; one always is
    image_visibility: float = 1.0  # what remains of each picture
    image_fault: str = "occlusion"  # one of FAULTS
    mismatch_rate: float = 0.0  # share of training captions moved to another picture
    splits: tuple[str, ...] = SPLITS  # where the dial acts; pairs are mixed in train only, whatever this says
    seed: int = 0  # of words, faults and mixing; scenes drop factors and cover tiles by their data set's seed

    def __post_init__(self) -> None:
        for name in ("text_detail", "image_visibility", "mismatch_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} lies outside 0 to 1")
        refuse_unknown([self.image_fault], FAULTS, "unknown image_fault")
        refuse_unknown(self.splits, SPLITS, "the dial: unknown split")

    def for_split(self, split: str) -> "ImbalanceSpec":
        """The dial as it acts on one split."""
        kept = self if split in self.splits else replace(self, text_detail=1.0, image_visibility=1.0)
        return kept if split == "train" else replace(kept, mismatch_rate=0.0)


def apply_imbalance(dataset: ImageTextDataset, spec: ImbalanceSpec) -> ImageTextDataset:
    """The data set under the dial: words dropped, pictures degraded, pairs mixed.

    Graded relevance of real captions stays that of the complete captions, kept in ``dataset.full_captions``.
    ValueError for words or tiles of scenes, which only ``load_dataset`` can drop, and for too few captions to mix.
    """
    dial, split = spec.for_split(dataset.split), dataset.split
    occluded = dial.image_visibility < 1 and dial.image_fault == "occlusion"
    if dataset.scene is not None and (dial.text_detail < 1 or occluded):
        raise ValueError("scenes drop factors as they are drawn: load_dataset('scenes', split=..., imbalance=spec)")
    captions, full, info = dataset.captions, dataset.full_captions, dict(dataset.info)
    changes: dict[str, Any] = {}
    if dial.text_detail < 1:
        full, captions = full or captions, drop_words(captions, dial.text_detail, _salted(dial.seed, split, "words"))
        info |= {"text_detail": dial.text_detail}
    if dial.image_visibility < 1:
        source, seed = dataset.source, _salted(dial.seed, split, "pictures")
        visibility, fault = dial.image_visibility, dial.image_fault
        changes["source"] = PixelSource(  # the same fault each time a picture is read
            len(source),
            lambda row: degrade(source.image(row), visibility, fault, np.random.default_rng([seed, row])),
            lambda row: source.content(row) + f"{visibility} {fault} {seed} {row}".encode(),
        )
        info |= {"image_visibility": visibility, "image_fault": fault}
    if dial.mismatch_rate:
        index = mismatch_index(dataset.caption_image, dial.mismatch_rate, dial.seed)
        captions, full = [captions[c] for c in index], full and [full[c] for c in index]
        changes["scene"] = dataset.scene and dataset.scene.subset(np.arange(len(dataset)), index, dataset.caption_image)
        info |= {"mismatch_rate": dial.mismatch_rate, "mismatch_seed": dial.seed}
    return replace(dataset, captions=captions, full_captions=full, info=info, **changes)


def _salted(seed: int, split: str, purpose: str) -> int:
    """A seed for one purpose and split, so that no two share their draws."""
    return zlib.crc32(f"{seed} {split} {purpose}".encode())


def drop_words(captions: Sequence[str], detail: float, seed: int = 0) -> list[str]:
    """Keep each word with probability ``detail``, at least one per caption; what is kept at 0.3 is kept at 0.6."""
    shortened = []
    for number, caption in enumerate(captions):
        words = caption.split()
        draws = np.random.default_rng([seed, number]).random(len(words))
        kept = [word for word, draw in zip(words, draws, strict=True) if draw < detail]
        shortened.append(" ".join(kept) if kept or not words else words[int(draws.argmin())])
    return shortened


def degrade(image: Image.Image, visibility: float, fault: str, generator: np.random.Generator) -> Image.Image:
    """RGB picture of the same size with a fault; see :class:`ImbalanceSpec` for the strengths."""
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
        hidden = (generator.permutation(GRID**2) < covered).reshape(GRID, GRID)
        rows, columns = (np.arange(side) * GRID // side for side in pixels.shape[:2])
        pixels = np.where(hidden[rows][:, columns, None], _GREY, pixels)
    return Image.fromarray((pixels.clip(0, 255) + 0.5).astype(np.uint8))


def mismatch_index(caption_image: np.ndarray, rate: float, seed: int = 0) -> np.ndarray:
    """Row of the caption that replaces each caption, int64 [C]; ``index[c] == c`` where nothing moved.

    Exactly ``round(rate C)`` captions move, each to another picture, and every picture keeps its number of captions.
    Depends only on the arguments: the picture row of each caption [C], the share to move and a seed.
    ValueError if the rate is outside 0 to 1, or if so few captions move that one would have to keep its picture.

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
