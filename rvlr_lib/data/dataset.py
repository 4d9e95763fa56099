"""Pictures and their captions: one record for every data set, its batches and its gentle augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from rvlr_lib.data.facts import SceneViews

SPLITS = ("train", "val", "test")


class PixelSource:
    """Pictures by row. A subclass gives ``__len__`` and ``image``; ``in_memory``: resized copies are kept whole."""

    in_memory = True

    def __init__(self) -> None:
        self._resized: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        raise NotImplementedError

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB."""
        raise NotImplementedError

    def content(self, row: int) -> bytes:
        """What identifies the picture in a fingerprint: its pixels, or its file's bytes where that is cheaper."""
        return self.image(row).tobytes()

    def pixels(self, rows: Sequence[int] | np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
        """Resize (bicubic, anti-aliased, to a square) the pictures of ``rows`` -> uint8 [n, 3, size, size]."""
        index = torch.as_tensor(rows, dtype=torch.long)
        if not self.in_memory:
            return self._resize(index.tolist(), size)
        if size not in self._resized:
            self._resized[size] = self._resize(range(len(self)), size)
        return self._resized[size][index]

    def _resize(self, rows: Sequence[int], size: int) -> torch.Tensor:
        shape, bicubic = (size, size), Image.Resampling.BICUBIC
        arrays = [np.asarray(self.image(row).resize(shape, bicubic)) for row in rows]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()


class ArraySource(PixelSource):
    """Pictures that already lie in one uint8 array [I, height, width, 3]."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__()
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB."""
        return Image.fromarray(self.array[row])


class SubsetSource(PixelSource):
    """Some rows of another source; shares its cache of resized pictures."""

    def __init__(self, source: PixelSource, rows: np.ndarray) -> None:
        super().__init__()
        self.source, self.rows, self.in_memory = source, rows, source.in_memory

    def __len__(self) -> int:
        return len(self.rows)

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB."""
        return self.source.image(int(self.rows[row]))

    def content(self, row: int) -> bytes:
        """What identifies the picture in a fingerprint."""
        return self.source.content(int(self.rows[row]))

    def pixels(self, rows: Sequence[int] | np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
        """Resized pictures of ``rows`` -> uint8 [n, 3, size, size]."""
        return self.source.pixels(self.rows[np.asarray(rows, dtype=np.int64)], size)


@dataclass(frozen=True, eq=False)
class ImageTextDataset:
    """I pictures and their C captions; any number of captions per picture, at least one.

    Attributes:
        name: Data set, e.g. ``scenes``.
        split: ``train``, ``val`` or ``test``.
        image_ids: Unique id of each picture, [I].
        captions: Cleaned captions, [C].
        caption_image: Row of the picture each caption belongs to, int64 [C].
        source: Gives the pictures.
        galleries: Number of the gallery each picture stands in, [I]; None: one gallery.
        categories: Category of each picture, [I], where the data set has any.
        scene: Factors and what each view shows of them, for the scenes.
        info: Settings that made this data set, for provenance.
        whole_captions: The captions before words were dropped from them, [C]; None: they are whole.

    Raises:
        ValueError: If the parts do not fit together.
    """

    name: str
    split: str
    image_ids: list[str]
    captions: list[str]
    caption_image: np.ndarray
    source: PixelSource
    galleries: np.ndarray | None = None
    categories: list[str] | None = None
    scene: SceneViews | None = None
    info: dict[str, Any] = field(default_factory=dict)
    whole_captions: list[str] | None = None

    def __post_init__(self) -> None:
        images, where = len(self.image_ids), f"{self.name}/{self.split}"
        if len(set(self.image_ids)) != images:
            twice = next(i for k, i in enumerate(self.image_ids) if i in self.image_ids[:k])
            raise ValueError(f"{where}: duplicate image id {twice!r}; give every picture its own id")
        if len(self.source) != images:
            raise ValueError(f"{where}: {images} image ids for {len(self.source)} pictures; give one id per picture")
        if len(self.caption_image) != len(self.captions):
            raise ValueError(f"{where}: {len(self.captions)} captions, but caption_image has {len(self.caption_image)}")
        counts = np.bincount(self.caption_image, minlength=images)
        if len(counts) > images:
            raise ValueError(f"{where}: caption_image names row {len(counts) - 1}, but there are {images} pictures")
        if not counts.all():
            bare = self.image_ids[int(counts.argmin())]
            raise ValueError(f"{where}: picture {bare!r} has no caption; add one or leave the picture out")

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def _by_image(self) -> tuple[np.ndarray, np.ndarray]:
        """Caption rows sorted by picture, and where each picture's captions start ([I + 1])."""
        counts = np.bincount(self.caption_image, minlength=len(self))
        return np.argsort(self.caption_image, kind="stable"), np.concatenate([[0], counts.cumsum()])

    @cached_property
    def caption_ids(self) -> list[str]:
        """Id of each caption, [C]: ``<image id>#<number of the caption within its picture>``."""
        order, starts = self._by_image
        within = np.empty(len(order), dtype=np.int64)
        within[order] = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
        return [f"{self.image_ids[i]}#{k}" for i, k in zip(self.caption_image, within, strict=True)]

    def captions_of(self, image_row: int) -> np.ndarray:
        """Caption rows of one picture, ascending."""
        order, starts = self._by_image
        return order[starts[image_row] : starts[image_row + 1]]

    def image(self, image_row: int) -> Image.Image:
        """Picture of one row as RGB, in its own size."""
        return self.source.image(image_row)

    def pixels(self, rows: Sequence[int] | np.ndarray | torch.Tensor, size: int) -> torch.Tensor:
        """Resize (bicubic, anti-aliased) the pictures of ``rows`` -> uint8 [n, 3, size, size]."""
        return self.source.pixels(rows, size)

    def subset(self, image_rows: Sequence[int] | np.ndarray) -> ImageTextDataset:
        """The pictures of ``image_rows``, in that order, with their captions, factors, categories and galleries."""
        rows = np.asarray(image_rows, dtype=np.int64)
        if not len(rows):
            raise ValueError(f"{self.name}/{self.split}: a subset needs at least one picture; image_rows is empty")
        caption_rows = np.concatenate([self.captions_of(i) for i in rows])
        owner = np.repeat(np.arange(len(rows)), [len(self.captions_of(i)) for i in rows])
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in rows],
            captions=[self.captions[c] for c in caption_rows],
            caption_image=owner,
            source=SubsetSource(self.source, rows),
            galleries=None if self.galleries is None else self.galleries[rows],
            categories=None if self.categories is None else [self.categories[i] for i in rows],
            scene=None if self.scene is None else self.scene.subset(rows, caption_rows, owner),
            whole_captions=None if self.whole_captions is None else [self.whole_captions[c] for c in caption_rows],
        )

    def gallery_sets(self) -> list[ImageTextDataset]:
        """One data set per gallery; itself where there is just one."""
        if self.galleries is None:
            return [self]
        return [self.subset(np.flatnonzero(self.galleries == g)) for g in np.unique(self.galleries)]

    def fingerprint(self) -> str:
        """SHA-256 over ids, captions, pictures and truth: equal exactly where the data are."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256()

        def add(part: bytes) -> None:  # the length keeps neighbouring parts apart
            digest.update(len(part).to_bytes(8, "little") + part)

        for words in (self.image_ids, self.captions, self.categories or [], self.whole_captions or []):
            add("\0".join(words).encode())
        add(self.caption_image.astype("<i8").tobytes())
        add(b"" if self.galleries is None else self.galleries.astype("<i8").tobytes())
        add(b"" if self.scene is None else self.scene.content())
        for row in range(len(self)):
            add(self.source.content(row))
        return digest.hexdigest()


@dataclass(frozen=True)
class Batch:
    """Rows of one training batch, each long [B]; the second caption is another one of the same picture, if there is."""

    image_rows: torch.Tensor
    caption_rows: torch.Tensor
    second_caption_rows: torch.Tensor


def iterate_batches(
    dataset: ImageTextDataset,
    batch_size: int,
    generator: torch.Generator,
    *,
    rows: Literal["images", "captions"] = "images",
    drop_last: bool = True,
) -> Iterator[Batch]:
    """One epoch in random order.

    Args:
        dataset: What to draw from.
        batch_size: Rows in a batch. A set with fewer rows gives one batch of all of them.
        generator: CPU generator of every draw.
        rows: ``images``: every picture once, with a sampled caption. ``captions``: every caption once, with its picture
            (as the official code has it; pictures then repeat within a batch).
        drop_last: Leave out the last batch where it is not full.

    Raises:
        ValueError: If ``rows`` or ``batch_size`` is not lawful.
    """
    if rows not in ("images", "captions"):
        raise ValueError(f"rows={rows!r} is unknown; choose 'images' (one row per picture) or 'captions'")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is too small; give at least 1")
    order, starts = (torch.from_numpy(a) for a in dataset._by_image)
    shuffled = torch.randperm(len(dataset) if rows == "images" else len(order), generator=generator)
    owner = torch.from_numpy(dataset.caption_image)
    images = shuffled if rows == "images" else owner[shuffled]
    counts, total = starts.diff()[images], len(shuffled)
    first_draw, second_draw = torch.rand(2, total, generator=generator, dtype=torch.float64)
    if rows == "images":
        first = (first_draw * counts).long()
    else:
        position = torch.empty_like(order)
        position[order] = torch.arange(len(order))
        first = position[shuffled] - starts[images]
    step = 1 + (second_draw * (counts - 1)).long()  # 1 to counts - 1; wraps to the caption itself where it is alone
    second = (first + step) % counts
    caption, other = (order[starts[images] + k] for k in (first, second))
    end = total // batch_size * batch_size if drop_last and total >= batch_size else total
    for at in range(0, end, batch_size):
        part = slice(at, min(at + batch_size, end))
        yield Batch(images[part], caption[part], other[part])


def augment(
    pixels: torch.Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.7, 1.0),
    flip: bool = True,
    part: tuple[slice, int] | None = None,
) -> torch.Tensor:
    """Gentle random crop and horizontal flip, drawn per sample; colours stay as they are.

    Args:
        pixels: uint8 [B, 3, S, S], on any device.
        generator: Of every draw, on any device.
        scale: Smallest and largest share of the picture's area that a crop keeps, 0 < low <= high <= 1; its aspect
            ratio lies between 0.9 and 1.1.
        flip: Flip every second picture, on average.
        part: The pixels are these rows of a batch of that size, for all of which the draws are made.

    Returns:
        float32 [B, 3, S, S] in 0..1, on the device of ``pixels``.

    Raises:
        ValueError: If ``scale`` is not lawful or the pixels are not uint8 [B, 3, S, S].
    """
    from torchvision.ops import roi_align

    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale} must be two shares of the picture's area, 0 < low <= high <= 1")
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; give uint8 [B, 3, S, S], see dataset.pixels")
    batch, _, height, width = pixels.shape
    rows, whole = part or (slice(None), batch)
    draws = torch.rand(5, whole, generator=generator, device=generator.device)[:, rows].to(pixels.device)
    area = low + (high - low) * draws[0]
    aspect = (0.9 + 0.2 * draws[1]).clamp(area, 1 / area)  # so that no side leaves the picture
    wide, tall = (area * aspect).sqrt() * width, (area / aspect).sqrt() * height
    left, top = draws[2] * (width - wide), draws[3] * (height - tall)
    boxes = torch.stack([torch.arange(batch, device=pixels.device), left, top, left + wide, top + tall], dim=1)
    crops = roi_align(pixels.float() / 255, boxes, (height, width), sampling_ratio=1, aligned=True).clamp(0, 1)
    return torch.where((draws[4] < 0.5)[:, None, None, None], crops.flip(-1), crops) if flip else crops
