"""Batches for training, the same for every arm and any number of processes.

All draws depend on the seed, the epoch and the step alone, so a resumed training needs no more than its place. Second
views have draws of their own: an arm that wants them sees the same batches as one that does not.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rvlr_lib.config import TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.models import CachedRows, Towers, needed_tokens
from rvlr_lib.training.features import FeatureSet
from rvlr_lib.training.processes import own_rows, prefetch

Epoch = tuple[Tensor, Tensor, Tensor]  # rows [steps, B] of pictures, captions, and other captions of these, if any
FEATURE_DROPOUT = 0.1  # of a second view that has no picture or caption of its own


class Inputs(NamedTuple):
    """One batch on the device; the second views are None where nobody asks for them."""

    images: Any  # pixels [B, 3, S, S] in 0..1, augmented, or CachedRows
    texts: Any  # token ids [B, L], or CachedRows
    image_rows: Tensor  # [B] row of the picture in the data set; equal rows are one picture
    caption_rows: Tensor  # [B]
    second_images: Any = None
    second_texts: Any = None


def derived_seed(seed: int, *names: object) -> int:
    """A seed for one purpose, so that no two purposes share a stream."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()[:4])


def captions_by_image(owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Captions sorted by picture, count and first place there of each picture, number of each caption in its picture.

    >>> [part.tolist() for part in captions_by_image(torch.tensor([1, 0, 1]))]
    [[1, 0, 2], [1, 2], [0, 1], [0, 0, 1]]
    """
    order, counts = torch.argsort(owner, stable=True), torch.bincount(owner)
    starts, within = counts.cumsum(0) - counts, torch.empty_like(owner)
    within[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
    return order, counts, starts, within


class Batches:
    """Order and captions of the batches of every epoch; a subclass reads what they hold, in ``_read``.

    ``rows`` is ``images``: every picture once an epoch, with a caption drawn for it; or ``captions``: every caption
    once, with its picture, as the official code has it. A set smaller than ``batch_size`` gives one batch; a last batch
    that is not full is left out. ``epoch`` and ``position`` are those of the batch that comes next.
    """

    def __init__(
        self, caption_image: Any, optim: TrainSettings, rows: str, seed: int, device: torch.device, draw_on: Any
    ) -> None:
        self.optim, self.rows, self.seed, self.device, self.draw_on = optim, rows, seed, device, draw_on
        self.owner = torch.as_tensor(caption_image, dtype=torch.long, device=draw_on)
        self.by_image, self.counts, self.starts, self.within = captions_by_image(self.owner)
        self.total = len(self.counts if rows == "images" else self.owner)
        self.batch_rows = min(self.total, optim.batch_size)
        self.steps_per_epoch = self.total // self.batch_rows
        self.part = own_rows(self.batch_rows)
        self.epoch = self.position = 0

    def take(self, *, two_views: bool = False, tokens: bool = False) -> Iterator[Inputs]:
        """What is left of the epoch under way, rows of this process only; after it ``epoch`` is the next one.

        ``two_views`` asks for second views, ``tokens`` for the cached tokens of the matching loss.
        """
        for inputs in self._read(self._draw(), two_views, tokens):
            self.position += 1
            yield inputs
        self.epoch, self.position = self.epoch + 1, 0

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        """The epoch's batches from :attr:`position` on."""
        raise NotImplementedError

    def _generator(self, purpose: str, step: int = 0, device: Any = None) -> torch.Generator:
        return torch.Generator(device or self.draw_on).manual_seed(derived_seed(self.seed, purpose, self.epoch, step))

    def _draw(self) -> Epoch:
        generator, images_first = self._generator("order"), self.rows == "images"
        shuffled = torch.randperm(self.total, generator=generator, device=self.draw_on)
        draws = torch.rand(2, self.total, generator=generator, device=self.draw_on, dtype=torch.float64)
        images = shuffled if images_first else self.owner[shuffled]
        counts, starts = self.counts[images], self.starts[images]
        first = (draws[0] * counts).long() if images_first else self.within[shuffled]
        second = (first + 1 + (draws[1] * (counts - 1)).long()) % counts  # itself where it stands alone
        chosen = (images, self.by_image[starts + first], self.by_image[starts + second])
        kept = self.steps_per_epoch * self.batch_rows
        return tuple(rows[:kept].view(self.steps_per_epoch, self.batch_rows) for rows in chosen)


class FeatureBatches(Batches):
    """Batches of cached features; features, draws and batches stay on the device.

    The first view of a picture is one of its augmented views, the second another one: the plain view where there is
    just one, and the same with a tenth of the features dropped where there is none. So is a caption's second view that
    stands alone.
    """

    def __init__(
        self, features: FeatureSet, caption_image: Any, optim: TrainSettings, rows: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(caption_image, optim, rows, seed, device, device)
        self.images, self.texts = self._moved(features.images, features.texts)
        self.tokens: Sequence[Any] = (features.image_tokens, features.text_tokens, features.text_mask)

    def _moved(self, *cached: Tensor) -> list[Tensor]:
        try:
            return [part.to(self.device) for part in cached]
        except torch.OutOfMemoryError:
            size = f"{sum(part.nbytes for part in cached) / 1e9:.1f} GB of cached features"
            way_out = "set fewer model.views, or model.fusion_layers=0, which needs no tokens"
            raise ValueError(f"{self.device} has no memory for {size}: {way_out}") from None

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        views, shape = len(self.images), epoch[0].shape
        generators = self._generator("first views"), self._generator("second views")
        draws = [torch.rand(shape, generator=g, device=self.device, dtype=torch.float64) for g in generators]
        first = (1 + (draws[0] * (views - 1)).long()).clamp(max=views - 1)
        others = 1 + (first + (draws[1] * (views - 2)).long()) % max(views - 1, 1)  # any augmented one but the first
        second = others if views > 2 else torch.zeros_like(first)
        if tokens:
            self.tokens = self._moved(*self.tokens)
            lengths = [self.tokens[2].shape[1]] * shape[0]  # on a GPU equal shapes are worth more than short ones
            if self.device.type == "cpu":
                lengths = self.tokens[2].sum(dim=1)[epoch[1]].amax(dim=1).tolist()
        for step in range(self.position, shape[0]):
            images, captions = (rows[step, self.part] for rows in epoch[:2])
            picture = CachedRows(self.images[first[step, self.part], images])
            caption = CachedRows(self.texts[captions])
            if tokens:
                image_tokens, text_tokens, mask = self.tokens
                kept = (captions, slice(lengths[step]))
                picture = picture._replace(tokens=image_tokens[images])
                caption = caption._replace(tokens=text_tokens[kept], mask=mask[kept])
            seconds = self._second(epoch, second, step) if two_views else ()
            yield Inputs(picture, caption, images, captions, *seconds)

    def _second(self, epoch: Epoch, views: Tensor, step: int) -> Iterator[CachedRows]:
        generator = self._generator("dropout", step)
        images, captions, others = (rows[step] for rows in epoch)
        alone = torch.full_like(captions, len(self.images) == 1, dtype=torch.bool)
        for rows, lone in ((self.images[views[step], images], alone), (self.texts[others], captions == others)):
            kept = torch.rand(rows.shape, generator=generator, device=self.device) >= FEATURE_DROPOUT
            rows = (rows / (1 - FEATURE_DROPOUT * lone)[:, None]).masked_fill(lone[:, None] & ~kept, 0)
            yield CachedRows(rows[self.part])


class PixelBatches(Batches):
    """Batches of augmented pictures and token ids, for whole towers; read one batch ahead."""

    def __init__(
        self, data: ImageTextDataset, towers: Towers, optim: TrainSettings, rows: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(data.caption_image, optim, rows, seed, device, "cpu")  # where pictures are read
        self.dataset, self.image_size = data, towers.image_size
        self.token_ids = towers.tokenizer(data.captions)
        self.lengths = needed_tokens(towers.text, self.token_ids)

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        steps, purposes = range(self.position, self.steps_per_epoch), ("first views", "second views")[: 1 + two_views]
        options = {"scale": self.optim.crop_scale, "flip": self.optim.flip, "part": (self.part, self.batch_rows)}
        for step, host in zip(steps, prefetch(steps, lambda step: self._decode(epoch, step, two_views)), strict=True):
            pixels, images, captions, *ids = (part.to(self.device, non_blocking=True) for part in host)
            draws = [self._generator(purpose, step, self.device) for purpose in purposes]
            first, *second = (augment(pixels, generator, **options) for generator in draws)
            yield Inputs(first, ids[0], images, captions, *second, *ids[1:])

    def _decode(self, epoch: Epoch, step: int, two_views: bool) -> list[Tensor]:
        """Pixels, rows of pictures and captions, and token ids of both views, in memory that a GPU copies from."""
        images, first, second = (rows[step, self.part] for rows in epoch)
        longest = [self.lengths[rows[step]].max() for rows in epoch[1:]]  # of all processes' rows: sequences stack
        ids = [self.token_ids[rows, :length] for rows, length in zip((first, second), longest, strict=True)]
        parts = [self.dataset.pixels(images, self.image_size), images, first, *ids[: 1 + two_views]]
        return [part.pin_memory() for part in parts] if self.device.type == "cuda" else parts
