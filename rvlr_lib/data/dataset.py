"""Pictures and their captions: one record type for every data set, and gentle augmentation."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image

from rvlr_lib.data.facts import SceneViews
from rvlr_lib.similarity import row_numbers

SPLITS = ("train", "val", "test")
THREADS = min(16, max(4, os.cpu_count() or 4))  # decoding photographs is what a GPU waits for
MEMORY_BUDGET = 2**30

Rows = Sequence[int] | np.ndarray | torch.Tensor
Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``map`` in threads, in order; Pillow releases the interpreter lock while it decodes and resizes."""
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(work, items)


def evenly_spaced(items: list[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` of the items, evenly spaced; all for None. ValueError if ``limit`` is below 1."""
    if limit is not None and not (isinstance(limit, int | np.integer) and limit >= 1):
        raise ValueError(f"limit={limit!r} is not a number of pictures; give at least 1, or None for all")
    if limit is None or limit >= len(items):
        return items
    return [items[i] for i in np.linspace(0, len(items) - 1, limit).astype(int)]


class PixelSource:
    """Pictures by row, made on demand; resized copies are kept if all of them fit into ``MEMORY_BUDGET``.

    ``image``: row -> RGB picture; ``content``: row -> bytes that identify it in a fingerprint, by default its pixels.
    """

    def __init__(
        self, count: int, image: Callable[[int], Image.Image], content: Callable[[int], bytes] | None = None
    ) -> None:
        self.count, self.image = count, image
        self.content = content or (lambda row: self.image(row).tobytes())
        self._resized: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return self.count

    def pixels(self, rows: Rows, size: int) -> torch.Tensor:
        """Pictures of ``rows`` resized to squares (bicubic, anti-aliased), uint8 [n, 3, size, size]."""
        index = row_numbers("rows", rows, len(rows), self.count)
        if 3 * size * size * self.count > MEMORY_BUDGET:
            return self._resize(index.tolist(), size)
        if size not in self._resized:
            self._resized[size] = self._resize(range(self.count), size)
        return self._resized[size][index]

    def _resize(self, rows: Sequence[int], size: int) -> torch.Tensor:
        def resized(row: int) -> np.ndarray:
            return np.asarray(self.image(row).resize((size, size), Image.Resampling.BICUBIC))

        result = np.fromiter(in_threads(resized, rows), np.dtype((np.uint8, (size, size, 3))), len(rows))
        return torch.from_numpy(result).permute(0, 3, 1, 2).contiguous()


class ArraySource(PixelSource):
    """Pictures of one uint8 array [I, height, width, 3]."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(len(array), lambda row: Image.fromarray(array[row]))
        self.array = array


@dataclass(frozen=True, eq=False)
class ImageTextDataset:
    """I pictures and their C captions, at least one per picture; ValueError for inconsistent fields."""

    name: str
    split: str
    image_ids: list[str]  # [I], unique
    captions: list[str]  # [C], cleaned
    caption_image: np.ndarray  # int64 [C], row of the picture each caption belongs to
    source: PixelSource
    galleries: np.ndarray | None = None  # [I], gallery number of each picture; None: one gallery
    categories: list[str] | None = None  # [I]
    scene: SceneViews | None = None  # scenes only: factors, and what each view shows of them
    info: dict[str, Any] = field(default_factory=dict)  # settings behind this data set, for provenance
    full_captions: list[str] | None = None  # [C], before words were dropped; None: none were

    def __post_init__(self) -> None:
        images, label = len(self.image_ids), f"{self.name}/{self.split}"
        if len(set(self.image_ids)) != images:
            duplicate = Counter(self.image_ids).most_common(1)[0][0]
            raise ValueError(f"{label}: duplicate image id {duplicate!r}; give every picture an id of its own")
        if len(self.source) != images:
            raise ValueError(f"{label}: {images} image ids for {len(self.source)} pictures; give one id per picture")
        row_numbers(f"{label}: caption_image", self.caption_image, len(self.captions), images)
        if not (counts := np.bincount(self.caption_image, minlength=images)).all():
            image_id = self.image_ids[int(counts.argmin())]
            raise ValueError(f"{label}: picture {image_id!r} has no caption; add one or leave the picture out")

    def __len__(self) -> int:
        return len(self.image_ids)

    @cached_property
    def _by_image(self) -> list[np.ndarray]:
        counts = np.bincount(self.caption_image)
        return np.split(np.argsort(self.caption_image, kind="stable"), counts.cumsum()[:-1])

    @property
    def caption_ids(self) -> list[str]:
        """Id of each caption, [C]: ``<image id>#<index among the picture's captions>``."""
        ids = {c: f"{self.image_ids[i]}#{k}" for i in range(len(self)) for k, c in enumerate(self.captions_of(i))}
        return [ids[c] for c in range(len(self.captions))]

    def captions_of(self, image_row: int) -> np.ndarray:
        """Caption rows of one picture, ascending."""
        return self._by_image[image_row]

    def image(self, image_row: int) -> Image.Image:
        """Picture of one row as RGB, in its original size."""
        return self.source.image(image_row)

    def pixels(self, rows: Rows, size: int) -> torch.Tensor:
        """Same as :meth:`PixelSource.pixels`: resized pictures, uint8 [n, 3, size, size]."""
        return self.source.pixels(rows, size)

    def subset(self, image_rows: Sequence[int] | np.ndarray) -> "ImageTextDataset":
        """The pictures of ``image_rows``, in that order, with their captions and all other fields."""
        rows = np.asarray(image_rows, dtype=np.int64)
        if not len(rows):
            raise ValueError(f"{self.name}/{self.split}: a subset needs at least one picture; image_rows is empty")
        by_image, source = [self.captions_of(i) for i in rows], self.source
        caption_rows, owner = np.concatenate(by_image), np.repeat(np.arange(len(rows)), [*map(len, by_image)])
        return replace(
            self,
            image_ids=[self.image_ids[i] for i in rows],
            captions=[self.captions[c] for c in caption_rows],
            caption_image=owner,
            source=PixelSource(len(rows), lambda i: source.image(rows[i]), lambda i: source.content(rows[i])),
            galleries=None if self.galleries is None else self.galleries[rows],
            categories=self.categories and [self.categories[i] for i in rows],
            scene=self.scene and self.scene.subset(rows, caption_rows, owner),
            full_captions=self.full_captions and [self.full_captions[c] for c in caption_rows],
        )

    @cached_property
    def gallery_sets(self) -> "list[ImageTextDataset]":
        """One data set per gallery; itself if there is one gallery."""
        if self.galleries is None:
            return [self]
        return [self.subset(np.flatnonzero(self.galleries == g)) for g in np.unique(self.galleries)]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of ids, captions, pictures and truth: equal exactly if the data are equal."""
        texts = (self.image_ids, self.captions, self.categories or [], self.full_captions or [])
        parts = ["\0".join(strings).encode() for strings in texts]
        parts += [self.caption_image.astype("<i8").tobytes()]
        parts += [b"" if self.galleries is None else self.galleries.astype("<i8").tobytes()]
        parts += [b"" if self.scene is None else self.scene.content()]
        digest = hashlib.sha256()
        for part in chain(parts, map(self.source.content, range(len(self)))):
            digest.update(len(part).to_bytes(8, "little") + part)  # the length keeps neighbouring parts apart
        return digest.hexdigest()


def augment(
    pixels: torch.Tensor,
    generator: torch.Generator,
    *,
    scale: tuple[float, float] = (0.7, 1.0),
    flip: bool = True,
    part: tuple[slice, int] | None = None,
) -> torch.Tensor:
    """Gentle random crop (aspect ratio 0.9 to 1.1) and horizontal flip, drawn per sample; colours are unchanged.

    Args:
        pixels: uint8 [B, 3, S, S], else ValueError. The result is float32 [B, 3, S, S] in 0..1 on the same device.
        generator: source of all draws, on any device.
        scale: smallest and largest share of the picture's area that a crop keeps, 0 < low <= high <= 1.
        flip: flip every second picture, on average.
        part: (rows, batch size) if ``pixels`` are these rows of a larger batch; draws are made for the complete batch.
    """
    from torchvision.ops import roi_align

    low, high = scale
    if not 0 < low <= high <= 1:
        raise ValueError(f"scale={scale} must be two shares of the picture's area, 0 < low <= high <= 1")
    if pixels.dtype != torch.uint8 or pixels.ndim != 4:
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; give uint8 [B, 3, S, S], see dataset.pixels")
    batch, _, height, width = pixels.shape
    rows, total = part or (slice(None), batch)
    draws = torch.rand(5, total, generator=generator, device=generator.device)[:, rows].to(pixels.device)
    area = low + (high - low) * draws[0]
    aspect = (0.9 + 0.2 * draws[1]).clamp(area, 1 / area)  # so that neither side exceeds the picture
    wide, tall = (area * aspect).sqrt() * width, (area / aspect).sqrt() * height
    left, top = draws[2] * (width - wide), draws[3] * (height - tall)
    boxes = torch.stack([torch.arange(batch, device=pixels.device), left, top, left + wide, top + tall], dim=1)
    crops = roi_align(pixels.float() / 255, boxes, (height, width), sampling_ratio=1, aligned=True).clamp(0, 1)
    return torch.where((draws[4] < 0.5)[:, None, None, None], crops.flip(-1), crops) if flip else crops
