"""Batches for training, the same for every arm and any number of processes: pictures and captions, or cached features.

Everything drawn for an epoch depends on the seed and the epoch's number alone, so a resumed training needs no more than
its place. Second views have draws of their own: an arm that wants them sees the same batches as one that does not.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from rvlr_lib.config import TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.models import CachedRows, Towers, TowerStudent, real_tokens, tokenize, trims_padding
from rvlr_lib.training.features import FeatureSet
from rvlr_lib.training.processes import own_rows

Rows = Literal["images", "captions"]
Item = TypeVar("Item")
Found = TypeVar("Found")
FEATURE_DROPOUT = 0.1  # of a second view that has no picture or caption of its own


class Inputs(NamedTuple):
    """One batch on the device; the second views are None where nobody asks for them."""

    images: Any  # pixels [B, 3, S, S] in 0..1, augmented, or CachedRows
    texts: Any  # token ids [B, L], or CachedRows
    image_rows: Tensor  # [B] row of the picture in the data set; equal rows are one picture
    caption_rows: Tensor  # [B]
    second_images: Any = None
    second_texts: Any = None


class Epoch(NamedTuple):
    """Rows of an epoch's batches, each long [steps, B]; the second caption is another one of the picture, if any."""

    images: Tensor
    captions: Tensor
    second_captions: Tensor


def derived_seed(seed: int, *names: object) -> int:
    """A seed for one purpose, so that no two purposes share a stream."""
    digest = hashlib.sha256(":".join(map(str, (seed, *names))).encode()).digest()
    return int.from_bytes(digest[:4])


class Batches:
    """Order and captions of the batches of every epoch; a subclass gives what they hold.

    Args:
        caption_image: picture of each caption, [C]; every picture has a caption.
        optim: settings of the optimisation, for its batch size. A set with fewer rows gives one batch of all of them.
        rows: ``images``: every picture once an epoch, with a caption drawn for it. ``captions``: every caption once,
            with its picture, as the official code has it.
        seed: of all draws.
        device: to draw and to train on.

    Attributes:
        steps_per_epoch: batches of an epoch; a last one that is not full is left out.
        batch_rows: rows of a batch, over all processes.
        epoch, position: of the batch that comes next.

    Raises:
        ValueError: unknown ``rows``, or a batch that does not divide over the processes.
    """

    def __init__(self, caption_image: Any, optim: TrainSettings, rows: Rows, seed: int, device: torch.device) -> None:
        if rows not in ("images", "captions"):
            raise ValueError(f"rows={rows!r} is unknown: choose images (a row per picture) or captions")
        self.optim, self.rows, self.seed, self.device = optim, rows, seed, device
        self.draw_on = device
        self.owner = torch.as_tensor(caption_image, dtype=torch.long)
        self.by_image = torch.argsort(self.owner, stable=True)
        self.counts = torch.bincount(self.owner)
        self.starts = self.counts.cumsum(0) - self.counts
        self.within = torch.empty_like(self.owner)  # number of a caption among those of its picture
        self.within[self.by_image] = torch.arange(len(self.owner)) - self.starts[self.owner[self.by_image]]
        count = len(self.counts) if rows == "images" else len(self.owner)
        self.batch_rows = min(count, optim.batch_size)
        self.steps_per_epoch = count // self.batch_rows
        self.part = own_rows(self.batch_rows)
        self.epoch = self.position = 0

    def take(self, *, two_views: bool = False, tokens: bool = False) -> Iterator[Inputs]:
        """What is left of the epoch under way; at its end the next one is.

        Args:
            two_views: whether second views are wanted.
            tokens: whether the matching loss wants cached tokens.
        """
        for inputs in self.read(self.draw(), two_views, tokens):
            self.position += 1
            yield inputs
        self.epoch, self.position = self.epoch + 1, 0

    def read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        """The epoch's batches from :attr:`position` on, rows of this process only."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, int]:
        """The place of the next batch."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place."""
        self.epoch, self.position = state["epoch"], state["position"]

    def generator(self, purpose: str, step: int = 0) -> torch.Generator:
        """Random numbers for one purpose at one step of the epoch under way."""
        return torch.Generator(self.draw_on).manual_seed(derived_seed(self.seed, purpose, self.epoch, step))

    def draw(self) -> Epoch:
        """Order and captions of the epoch under way."""
        generator, total = self.generator("order"), len(self.counts if self.rows == "images" else self.owner)
        shuffled = torch.randperm(total, generator=generator, device=self.draw_on)
        draws = torch.rand(2, total, generator=generator, device=self.draw_on, dtype=torch.float64)
        images = shuffled if self.rows == "images" else self.owner[shuffled]
        counts, starts = self.counts[images], self.starts[images]
        first = (draws[0] * counts).long() if self.rows == "images" else self.within[shuffled]
        second = (first + 1 + (draws[1] * (counts - 1)).long()) % counts  # itself where it stands alone
        chosen = (images, self.by_image[starts + first], self.by_image[starts + second])
        kept = self.steps_per_epoch * self.batch_rows
        return Epoch(*(rows[:kept].view(self.steps_per_epoch, self.batch_rows) for rows in chosen))


class FeatureBatches(Batches):
    """Batches of cached features; features, draws and batches stay on the device.

    The first view of a picture is one of its augmented views, the second another one: the plain view where there is
    just one, and the same with a tenth of the features dropped where there is none. So is a caption's second view that
    stands alone.

    Args:
        features: see :class:`rvlr_lib.training.features.FeatureSet`; view 0 is the plain one.
        others: as of :class:`Batches`.
    """

    def __init__(
        self,
        features: FeatureSet,
        caption_image: Any,
        optim: TrainSettings,
        rows: Rows,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(caption_image, optim, rows, seed, device)
        sizes = (features.images.shape[1], len(features.texts))
        if sizes != (len(self.counts), len(self.owner)):
            raise ValueError(
                f"features of {sizes[0]} pictures and {sizes[1]} captions do not fit a data set of "
                f"{len(self.counts)} and {len(self.owner)}"
            )
        for name in ("owner", "by_image", "counts", "starts", "within"):
            setattr(self, name, getattr(self, name).to(device))
        self.images, self.texts = features.images.to(device).float(), features.texts.to(device).float()
        self.tokens: tuple[Any, ...] = (features.image_tokens, features.text_tokens, features.text_mask)

    def read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        """As the base class says."""
        views, part, shape = len(self.images), self.part, epoch.images.shape
        draws = torch.rand(shape, generator=self.generator("first views"), device=self.device, dtype=torch.float64)
        first = (1 + (draws * (views - 1)).long()).clamp(max=views - 1)
        draws = torch.rand(shape, generator=self.generator("second views"), device=self.device, dtype=torch.float64)
        second = 1 + (first + (draws * (views - 2)).long()) % (views - 1) if views > 2 else torch.zeros_like(first)
        if tokens:
            if any(part is None for part in self.tokens):
                raise ValueError(
                    "the cached features hold no tokens, which the matching loss needs: make them anew "
                    "with model.fusion_layers >= 1"
                )
            self.tokens = tuple(part.to(self.device) for part in self.tokens)
            lengths = self._lengths(epoch.captions)
        for step in range(self.position, shape[0]):
            images, captions = epoch.images[step, part], epoch.captions[step, part]
            picture, caption = self.images[first[step, part], images], self.texts[captions]
            cached = CachedRows(picture, None, None), CachedRows(caption, None, None)
            if tokens:
                image_tokens, text_tokens, mask = self.tokens
                cached = (
                    CachedRows(picture, image_tokens[images], None),
                    CachedRows(caption, text_tokens[captions, : lengths[step]], mask[captions, : lengths[step]]),
                )
            yield Inputs(*cached, images, captions, *(self._second(epoch, second, step) if two_views else ()))

    def _second(self, epoch: Epoch, views: Tensor, step: int) -> Iterator[CachedRows]:
        """Second views of pictures and captions."""
        generator = self.generator("dropout", step)
        images = self.images[views[step], epoch.images[step]]
        captions, others = epoch.captions[step], epoch.second_captions[step]
        alone = torch.full_like(captions, len(self.images) == 1, dtype=torch.bool)
        for rows, lone in ((images, alone), (self.texts[others], captions == others)):
            kept = torch.rand(rows.shape, generator=generator, device=self.device) >= FEATURE_DROPOUT
            rows = torch.where(lone[:, None] & ~kept, 0, rows / torch.where(lone, 1 - FEATURE_DROPOUT, 1.0)[:, None])
            yield CachedRows(rows[self.part], None, None)

    def _lengths(self, captions: Tensor) -> list[int]:
        """Tokens to keep of each batch: all of them on a GPU, where equal shapes are worth more than short ones."""
        mask = self.tokens[2]
        if self.device.type != "cpu":
            return [mask.shape[1]] * len(captions)
        return mask.sum(dim=1)[captions].amax(dim=1).tolist()


class PixelBatches(Batches):
    """Batches of augmented pictures and token ids, for whole towers; the next one is read while this one is used.

    Args:
        dataset: what to draw from.
        towers: which they are for, or a student of whole towers: its tokenizer, picture size and kind of padding.
        others: as of :class:`Batches`.
    """

    def __init__(
        self,
        dataset: ImageTextDataset,
        towers: Towers | TowerStudent,
        optim: TrainSettings,
        rows: Rows,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(dataset.caption_image, optim, rows, seed, device)
        self.draw_on = torch.device("cpu")  # where pictures are read from
        self.dataset, self.image_size = dataset, towers.image_size
        self.token_ids = tokenize(towers.tokenizer, dataset.captions)
        real = real_tokens(towers.text, self.token_ids).sum(dim=1)
        self.lengths = real if trims_padding(towers.text) else torch.full_like(real, self.token_ids.shape[1])

    def read(self, epoch: Epoch, two_views: bool, tokens: bool) -> Iterator[Inputs]:
        """As the base class says."""
        steps = range(self.position, self.steps_per_epoch)
        for step, host in ahead(steps, lambda step: self._read(epoch, step, two_views)):
            pixels, images, *captions = (part.to(self.device, non_blocking=True) for part in host)
            views = [self._view(pixels, purpose, step) for purpose in ("first views", "second views")[: 1 + two_views]]
            yield Inputs(views[0], captions[1], images, captions[0], *views[1:], *captions[2:])

    def _read(self, epoch: Epoch, step: int, two_views: bool) -> list[Tensor]:
        """Pixels, rows of pictures and captions, and token ids of both views, in memory that a GPU copies from."""
        images, first, second = (rows[step, self.part] for rows in epoch)
        texts = [self.token_ids[rows, : self.lengths[rows].max()] for rows in (first, second)[: 1 + two_views]]
        found = [self.dataset.pixels(images, self.image_size), images, first, *texts]
        return [part.pin_memory() for part in found] if self.device.type == "cuda" else found

    def _view(self, pixels: Tensor, purpose: str, step: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(derived_seed(self.seed, purpose, self.epoch, step))
        return augment(
            pixels, generator, scale=self.optim.crop_scale, flip=self.optim.flip, part=(self.part, self.batch_rows)
        )


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
