"""The dial: take information away from one modality, by a stated amount, and keep the truth of what was taken."""

from __future__ import annotations

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
    """How much of each modality is left, and how many pairs are wrong.

    Attributes:
        text_detail: Chance of each factor (scenes) or word (any other caption) to be told, 0..1. One object or word is
            always told.
        image_visibility: What is left of each picture, 0..1. With ``occlusion`` the share of its tiles. Otherwise the
            strength s = 1 - visibility is: ``blur`` a Gaussian of radius s/10 of the shorter side; ``noise`` a Gaussian
            of standard deviation 128 s of 255; ``darkness`` every value times 1 - s; ``low_resolution`` both sides
            times 1 - s (at least one pixel), enlarged again.
        image_fault: One of :data:`FAULTS`.
        mismatch_rate: Share of the captions that stand with the picture of another, 0..1.
        splits: Splits whose words and pictures the dial acts on.
        mismatch_splits: Splits whose pairs it mixes; evaluation on mixed pairs is seldom what one wants.
        seed: Of what is dropped, covered and mixed; on scenes the data set's own seed decides what is dropped.

    Raises:
        ValueError: A value out of its range, an unknown fault or split.
    """

    text_detail: float = 1.0
    image_visibility: float = 1.0
    image_fault: str = "occlusion"
    mismatch_rate: float = 0.0
    splits: tuple[str, ...] = SPLITS
    mismatch_splits: tuple[str, ...] = ("train",)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("text_detail", "image_visibility", "mismatch_rate"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} lies outside 0 to 1")
        if self.image_fault not in FAULTS:
            raise ValueError(f"image_fault={self.image_fault!r} is unknown; choose one of: {', '.join(FAULTS)}")
        for split in (*self.splits, *self.mismatch_splits):
            if split not in SPLITS:
                raise ValueError(f"the dial knows the splits train, val and test, not {split!r}")

    @property
    def neutral(self) -> bool:
        """Whether nothing is taken and nothing mixed."""
        return self.text_detail == self.image_visibility == 1 and not self.mismatch_rate

    def on(self, split: str) -> ImbalanceSpec:
        """What is left of the dial on one split."""
        kept = self if split in self.splits else replace(self, text_detail=1.0, image_visibility=1.0)
        return kept if split in self.mismatch_splits else replace(kept, mismatch_rate=0.0)


def impose(dataset: ImageTextDataset, spec: ImbalanceSpec) -> ImageTextDataset:
    """The data set under the dial: words dropped, pictures degraded, pairs mixed.

    Scenes drop factors and cover objects where they are drawn, so ``load_dataset("scenes", imbalance=...)`` is the way
    there, and here only what is left of the spec. Graded relevance of real captions is always that of the whole
    captions, which stay in ``dataset.whole_captions``.

    Args:
        dataset: Any split of any data set.
        spec: The dial.

    Raises:
        ValueError: Words or tiles of scenes, or too few captions to mix.
    """
    here, info = spec.on(dataset.split), dict[str, Any]()
    if dataset.scene is not None and (
        here.text_detail < 1 or (here.image_visibility < 1 and here.image_fault == "occlusion")
    ):
        raise ValueError("scenes drop factors where they are drawn: load_dataset('scenes', split=..., imbalance=spec)")
    if here.text_detail < 1:
        dropped = drop_words(dataset.captions, here.text_detail, _salted(here.seed, dataset.split, "words"))
        dataset = replace(dataset, captions=dropped, whole_captions=dataset.whole_captions or dataset.captions)
        info["text_detail"] = here.text_detail
    if here.image_visibility < 1:
        salt = _salted(here.seed, dataset.split, "pictures")
        source = DegradedSource(dataset.source, here.image_visibility, here.image_fault, salt)
        dataset = replace(dataset, source=source)
        info |= {"image_visibility": here.image_visibility, "image_fault": here.image_fault}
    if here.mismatch_rate:
        source_of = mismatch_index(dataset.caption_image, here.mismatch_rate, here.seed)
        whole = dataset.whole_captions
        dataset = replace(
            dataset,
            captions=[dataset.captions[c] for c in source_of],
            whole_captions=None if whole is None else [whole[c] for c in source_of],
            scene=None if dataset.scene is None else dataset.scene.with_texts(source_of),
        )
        info |= {"mismatch_rate": here.mismatch_rate, "mismatch_seed": here.seed}
    return replace(dataset, info={**dataset.info, **info}) if info else dataset


def _salted(seed: int, split: str, purpose: str) -> int:
    """A seed of one purpose and split, so that no two draw the same."""
    return zlib.crc32(f"{seed} {split} {purpose}".encode())


def drop_words(captions: Sequence[str], detail: float, seed: int = 0) -> list[str]:
    """Keep each word with the chance ``detail``, in order; of a caption that would lose all, one word stays.

    What is kept at 0.3 is kept at 0.6, and a caption's draws do not depend on the others'.

    >>> drop_words(["a red circle on sand"], 1.0)
    ['a red circle on sand']
    """
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


class DegradedSource(PixelSource):
    """Pictures of another source, each with its fault: the same one whenever it is asked for."""

    def __init__(self, source: PixelSource, visibility: float, fault: str, seed: int) -> None:
        super().__init__()
        self.source, self.visibility, self.fault, self.seed = source, visibility, fault, seed
        self.in_memory = source.in_memory

    def __len__(self) -> int:
        return len(self.source)

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB, degraded."""
        return degrade(self.source.image(row), self.visibility, self.fault, np.random.default_rng([self.seed, row]))

    def content(self, row: int) -> bytes:
        """What identifies the picture in a fingerprint."""
        return self.source.content(row) + f"{self.visibility} {self.fault} {self.seed} {row}".encode()


def mismatch_index(caption_image: np.ndarray, rate: float, seed: int = 0) -> np.ndarray:
    """Which caption stands in the place of each after mixing: int64 [C], ``index[c] == c`` where nothing moved.

    Exactly ``round(rate C)`` captions move, each to a picture that is not its own, and every picture keeps its number
    of captions. The index depends on nothing but its arguments: it can be published and is the same for every method.

    Args:
        caption_image: Row of the picture of each caption, [C].
        rate: Share of the captions to move, 0..1.
        seed: Of the draw.

    Raises:
        ValueError: The rate lies outside 0 to 1, or so few captions move that one would have to keep its picture.

    >>> import numpy as np
    >>> index = mismatch_index(np.arange(10), 0.2, seed=1)
    >>> int((index != np.arange(10)).sum()), sorted(index.tolist()) == list(range(10))
    (2, True)
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"mismatch_rate={rate} lies outside 0 to 1")
    count, generator = len(caption_image), np.random.default_rng(seed)
    moving = round(rate * count)
    index = np.arange(count)
    if rate and not moving:
        raise ValueError(f"mismatch_rate={rate} moves no caption of {count}: raise the rate or take more pictures")
    if not moving:
        return index
    chosen = generator.permutation(count)[:moving]
    order = generator.permutation(int(caption_image.max()) + 1)  # pictures in random order, so that partners are random
    chosen = chosen[np.argsort(order[caption_image[chosen]], kind="stable")]
    largest = int(np.bincount(caption_image[chosen]).max())
    if 2 * largest > moving:
        raise ValueError(
            f"mismatch_rate={rate} moves {moving} of {count} captions, of which {largest} belong to one picture: some "
            "would have to keep their picture; raise the rate or take more pictures"
        )
    index[chosen] = np.roll(chosen, largest)
    return index
