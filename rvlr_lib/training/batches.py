"""Batches for training, the same for every arm and any number of processes.

All draws depend on the seed, the epoch and the step alone, so a resumed training only needs its position. Second views
are drawn separately: an arm with second views sees the same batches as one without.
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
from rvlr_lib.training.processes import local_rows, prefetch

Epoch = tuple[Tensor, Tensor, Tensor]  # row numbers [steps, B] of pictures, captions and second captions
FEATURE_DROPOUT = 0.1  # makes a second view where there is no other view or caption


class Inputs(NamedTuple):
    """One batch on the device; second views are None unless asked for."""

    images: Any  # pixels [B, 3, S, S] in 0..1, augmented, or CachedRows
    texts: Any  # token ids [B, L], or CachedRows
    image_rows: Tensor  # [B] row numbers in the data set; equal ones are the same picture
    caption_rows: Tensor  # [B]
    second_images: Any = None
    second_texts: Any = None


def derived_seed(seed: int, *names: object) -> int:
    """Derive a seed for the purpose that ``names`` describe, so that no two purposes share a stream of draws."""
    return int.from_bytes(hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()[:4])


def captions_by_image(owner: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Group captions by picture, ``order[start : start + count]`` each: order, counts, starts, numbers in the group.

    >>> [values.tolist() for values in captions_by_image(torch.tensor([1, 0, 1]))]
    [[1, 0, 2], [1, 2], [0, 1], [0, 0, 1]]
    """
    order, counts = torch.argsort(owner, stable=True), torch.bincount(owner)
    starts, within = counts.cumsum(0) - counts, torch.empty_like(owner)
    within[order] = torch.arange(len(owner), device=owner.device) - starts[owner[order]]
    return order, counts, starts, within


class Batches:
    """Draw which pictures and captions form the batches of every epoch; subclasses read their contents in ``_read``.

    ``rows`` is ``images``: every picture once per epoch, with a drawn caption; or ``captions``: every caption once,
    with its picture, as in the official code. A set smaller than ``batch_size`` gives one batch; an incomplete last
    batch is dropped. ``epoch`` and ``position`` are those of the next batch.
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
        self.local = local_rows(self.batch_rows)
        self.epoch = self.position = 0

    def take(self, *, two_views: bool = False, tokens: bool = False) -> Iterator[Inputs]:
        """Yield the remaining batches of the current epoch, this process's rows only, then move to the next epoch.

        ``two_views`` adds second views, ``tokens`` the cached tokens for the matching loss.
        """
        for inputs in self._read(self._draw(), two_views, tokens):
            self.position += 1
            yield inputs
        self.epoch, self.position = self.epoch + 1, 0

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        """Yield the epoch's batches from :attr:`position` on."""
        raise NotImplementedError

    def _generator(self, purpose: str, step: int = 0, device: Any = None) -> torch.Generator:
        return torch.Generator(device or self.draw_on).manual_seed(derived_seed(self.seed, purpose, self.epoch, step))

    def _draw(self) -> Epoch:
        generator, draw_captions = self._generator("order"), self.rows == "images"
        shuffled = torch.randperm(self.total, generator=generator, device=self.draw_on)
        draws = torch.rand(2, self.total, generator=generator, device=self.draw_on, dtype=torch.float64)
        images = shuffled if draw_captions else self.owner[shuffled]
        counts, starts = self.counts[images], self.starts[images]
        first = (draws[0] * counts).long() if draw_captions else self.within[shuffled]
        second = (first + 1 + (draws[1] * (counts - 1)).long()) % counts  # the same one if a picture has no other
        epoch = images, self.by_image[starts + first], self.by_image[starts + second]
        used = self.steps_per_epoch * self.batch_rows
        return tuple(rows[:used].view(self.steps_per_epoch, self.batch_rows) for rows in epoch)


class FeatureBatches(Batches):
    """Batches of cached features; features, draws and batches stay on the device.

    A picture's two views are two of its augmented views; with a single one, that and the plain view; with none, the
    plain view and the same with a tenth of its features dropped. An only caption's second view drops a tenth, too.
    """

    def __init__(
        self, features: FeatureSet, caption_image: Any, optim: TrainSettings, rows: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(caption_image, optim, rows, seed, device, device)
        self.images, self.texts = self._to_device(features.images, features.texts)
        self.tokens: Sequence[Any] = (features.image_tokens, features.text_tokens, features.text_mask)

    def _to_device(self, *cached: Tensor) -> list[Tensor]:
        try:
            return [tensor.to(self.device) for tensor in cached]
        except torch.OutOfMemoryError:
            size = f"{sum(tensor.nbytes for tensor in cached) / 1e9:.1f} GB of cached features"
            remedy = "set fewer model.views, or model.fusion_layers=0, which needs no tokens"
            raise ValueError(f"{self.device} has no memory for {size}: {remedy}") from None

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        views, steps = len(self.images), len(epoch[0])
        generators = self._generator("first views"), self._generator("second views")
        draws = [torch.rand(epoch[0].shape, generator=g, device=self.device, dtype=torch.float64) for g in generators]
        first = (1 + (draws[0] * (views - 1)).long()).clamp(max=views - 1)
        second = torch.zeros_like(first)
        if views > 2:  # another augmented view
            second = 1 + (first + (draws[1] * (views - 2)).long()) % (views - 1)
        if tokens:
            image_tokens, text_tokens, mask = self.tokens = self._to_device(*self.tokens)
            lengths = [mask.shape[1]] * steps  # on a GPU, equal shapes are worth more than short ones
            if self.device.type == "cpu":
                lengths = mask.sum(dim=1)[epoch[1]].amax(dim=1).tolist()
        for step in range(self.position, steps):
            images, captions = (rows[step, self.local] for rows in epoch[:2])
            picture = CachedRows(self.images[first[step, self.local], images])
            caption = CachedRows(self.texts[captions])
            if tokens:
                unpadded = captions, slice(lengths[step])
                picture = picture._replace(tokens=image_tokens[images])
                caption = caption._replace(tokens=text_tokens[unpadded], mask=mask[unpadded])
            second_views = self._second_views(epoch, second, step) if two_views else ()
            yield Inputs(picture, caption, images, captions, *second_views)

    def _second_views(self, epoch: Epoch, views: Tensor, step: int) -> Iterator[CachedRows]:
        generator = self._generator("dropout", step)
        images, captions, second_captions = (rows[step] for rows in epoch)
        only_view = torch.full_like(captions, len(self.images) == 1, dtype=torch.bool)
        pictures, texts = self.images[views[step], images], self.texts[second_captions]
        for features, dropped in ((pictures, only_view), (texts, captions == second_captions)):
            kept = torch.rand(features.shape, generator=generator, device=self.device) >= FEATURE_DROPOUT
            scaled = features / (1 - FEATURE_DROPOUT * dropped)[:, None]
            yield CachedRows(scaled.masked_fill(dropped[:, None] & ~kept, 0)[self.local])


class PixelBatches(Batches):
    """Batches of augmented pictures and token ids, for whole towers; read one batch ahead."""

    def __init__(
        self, data: ImageTextDataset, towers: Towers, optim: TrainSettings, rows: str, seed: int, device: torch.device
    ) -> None:
        super().__init__(data.caption_image, optim, rows, seed, device, "cpu")  # draws where pictures are read
        self.dataset, self.image_size = data, towers.image_size
        self.token_ids = towers.tokenizer(data.captions)
        self.lengths = needed_tokens(towers.text, self.token_ids)

    def _read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        steps, purposes = range(self.position, self.steps_per_epoch), ("first views", "second views")[: 1 + two_views]
        options = {"scale": self.optim.crop_scale, "flip": self.optim.flip, "part": (self.local, self.batch_rows)}
        decoded = prefetch(steps, lambda step: self._decode(epoch, step, two_views))
        for step, tensors in zip(steps, decoded, strict=True):
            pixels, images, captions, *ids = (tensor.to(self.device, non_blocking=True) for tensor in tensors)
            generators = [self._generator(purpose, step, self.device) for purpose in purposes]
            first, *second = (augment(pixels, generator, **options) for generator in generators)
            yield Inputs(first, ids[0], images, captions, *second, *ids[1:])

    def _decode(self, epoch: Epoch, step: int, two_views: bool) -> list[Tensor]:
        """Pixels, row numbers of pictures and captions, and token ids of each view, in pinned memory for a GPU."""
        images, first, second = (rows[step, self.local] for rows in epoch)
        longest = [self.lengths[rows[step]].max() for rows in epoch[1:]]  # over all processes, so that shapes agree
        ids = [self.token_ids[rows, :length] for rows, length in zip((first, second), longest, strict=True)]
        tensors = [self.dataset.pixels(images, self.image_size), images, first, *ids[: 1 + two_views]]
        return [tensor.pin_memory() for tensor in tensors] if self.device.type == "cuda" else tensors
