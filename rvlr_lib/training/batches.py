"""Batches for training: augmented, on the device, and the same for every variant and any number of processes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from rvlr_lib.config import TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset, augment, iterate_batches
from rvlr_lib.models.towers import tokenize

Rows = Literal["images", "captions"]
Item = TypeVar("Item")
Found = TypeVar("Found")
FEATURE_DROPOUT = 0.1  # of the second view of cached features


class Inputs(NamedTuple):
    """One batch on the device; the second views are None where nobody asks for them."""

    pixels: Tensor  # [B, 3, S, S] in 0..1, augmented
    token_ids: Tensor  # [B, L]
    image_rows: Tensor  # [B] row of the image in the data set; equal rows are one image
    caption_rows: Tensor  # [B]
    second_pixels: Tensor | None = None
    second_token_ids: Tensor | None = None


class BatchSource:
    """Batches of a data set, augmented and on the device; the same seed gives the same batches to every variant.

    The order, the first views and the second views draw from generators of their own, so that a variant that needs
    second views sees the same batches as its twin that does not.
    """

    def __init__(
        self, dataset: ImageTextDataset, tokenizer: Any, image_size: int, settings: TrainSettings, rows: Rows, seed: int
    ) -> None:
        self.dataset, self.image_size, self.settings, self.rows, self.seed = dataset, image_size, settings, rows, seed
        self.token_ids = tokenize(tokenizer, dataset.captions)
        count = len(dataset) if rows == "images" else len(dataset.captions)
        self.steps_per_epoch = max(1, count // settings.batch_size)
        self.batch_rows = min(count, settings.batch_size)
        self.generators: dict[str, torch.Generator] = {}  # of the views of the epoch under way

    def epoch(
        self,
        number: int,
        device: torch.device,
        *,
        two_views: bool,
        rows: slice = slice(None),
        position: int = 0,
        states: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Inputs]:
        """Batches of one epoch.

        Args:
            number: of the epoch.
            device: to put them on.
            two_views: whether second views are wanted.
            rows: of each batch that are wanted; everything is drawn for the whole batch all the same.
            position: batches to leave out at the beginning.
            states: of :attr:`generators` after those batches.
        """
        order, first, second = (torch.Generator().manual_seed(self.seed * 1_000_003 + number * 3 + i) for i in range(3))
        self.generators = {"first": first, "second": second}
        for name, state in (states or {}).items():
            self.generators[name].set_state(state)
        batches = iterate_batches(self.dataset, self.settings.batch_size, order, rows=self.rows)
        for batch, read in ahead(islice(batches, position, None), lambda batch: self._read(batch.image_rows[rows])):
            part = (rows, len(batch.image_rows))
            images, captions = batch.image_rows[rows], batch.caption_rows[rows]
            pixels = read.to(device)
            yield Inputs(
                view_of(pixels, first, settings=self.settings, part=part),
                self.token_ids[captions].to(device),
                images.to(device),
                captions.to(device),
                view_of(pixels, second, settings=self.settings, part=part, second=True) if two_views else None,
                self.token_ids[batch.second_caption_rows[rows]].to(device) if two_views else None,
            )

    def _read(self, image_rows: Tensor) -> Tensor:
        return self.dataset.pixels(image_rows, self.image_size)


def ahead(items: Iterable[Item], work: Callable[[Item], Found]) -> Iterator[tuple[Item, Found]]:
    """Each item and what the work makes of it; the next one is worked on in a thread while the caller uses this one.

    >>> list(ahead([1, 2, 3], lambda number: number * number))
    [(1, 1), (2, 4), (3, 9)]
    """
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[tuple[Item, Future[Found]]] = deque()
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) > 1:
                first, found = waiting.popleft()
                yield first, found.result()
        for last, found in waiting:
            yield last, found.result()


def view_of(
    pixels: Tensor,
    generator: torch.Generator,
    *,
    settings: TrainSettings,
    part: tuple[slice, int] | None = None,
    second: bool = False,
) -> Tensor:
    """An augmented view of pictures; of cached features the first view is themselves, the second drops a tenth.

    ``part``: the pixels are these rows of a batch of that size.
    """
    if pixels.dtype == torch.uint8:
        return augment(pixels, generator, scale=settings.crop_scale, flip=settings.flip, part=part)
    if not second:
        return pixels
    rows, whole = part or (slice(None), len(pixels))
    kept = (torch.rand(whole, *pixels.shape[1:], generator=generator) >= FEATURE_DROPOUT)[rows]
    return pixels * kept.to(pixels.device) / (1 - FEATURE_DROPOUT)
