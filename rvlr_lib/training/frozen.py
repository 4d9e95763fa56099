"""The cheap mode: features of frozen towers, computed once, and students that are a linear head on each of them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from rvlr_lib.data.dataset import ImageTextDataset, PixelSource
from rvlr_lib.models.towers import Towers
from rvlr_lib.training.stages import Features


class FeatureSource(PixelSource):
    """Pictures whose "pixels" are the cached features of a frozen tower, float32 [n, D, 1, 1] at any size asked for."""

    def __init__(self, source: PixelSource, features: Tensor) -> None:
        super().__init__()
        self.source, self.features = source, features

    def __len__(self) -> int:
        return len(self.source)

    def image(self, row: int) -> Image.Image:
        """Picture of one row as RGB."""
        return self.source.image(row)

    def content(self, row: int) -> bytes:
        """What identifies the picture in a fingerprint."""
        return self.source.content(row)

    def pixels(self, rows: Sequence[int] | np.ndarray | Tensor, size: int) -> Tensor:
        """Features of ``rows`` -> float32 [n, D, 1, 1]."""
        return self.features[torch.as_tensor(rows, dtype=torch.long)][:, :, None, None]


class CaptionIndex:
    """A tokenizer of captions whose features are known: caption -> its number, int64 [n, 1], from 1."""

    def __init__(self, captions: Sequence[str]) -> None:
        self.numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions), 1)}
        self.context_length = 1

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """Numbers of captions.

        Raises:
            ValueError: a caption whose features were never computed.
        """
        for caption in captions:
            if caption not in self.numbers:
                raise ValueError(f"there are no cached features of the caption {caption!r}: remove the cache of "
                                 "frozen features and run again")  # fmt: skip
        return torch.tensor([[self.numbers[caption]] for caption in captions])


class ImageHead(nn.Module):
    """A linear map of cached features, at first the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = _identity(width)

    def forward(self, features: Tensor) -> Tensor:
        """Features [B, D, 1, 1] -> [B, D]."""
        return self.proj(features.flatten(1))


class CaptionHead(nn.Module):
    """The same for captions, which come as their numbers; the table of features is no part of the weights."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.register_buffer("table", table, persistent=False)
        self.token_embedding = nn.Identity()  # where a text tower's dropout acts
        self.proj = _identity(table.shape[1])

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers [B, 1] -> [B, D]."""
        rows = torch.index_select(self.get_buffer("table"), 0, numbers[:, 0] - 1)
        return self.proj(self.token_embedding(rows))


def frozen_towers(towers: Towers, features: dict[str, Features], captions: dict[str, list[str]]) -> Towers:
    """Towers that are heads on cached features.

    Args:
        towers: whose features they are.
        features: of each split, unit rows of pictures and captions.
        captions: of each split.
    """
    every = [caption for part in captions.values() for caption in part]
    index = CaptionIndex(every)
    rows = torch.cat([pair[1] for pair in features.values()])
    table = torch.empty(len(index.numbers), rows.shape[1])
    table[index(every)[:, 0] - 1] = rows
    return replace(towers, visual=ImageHead(rows.shape[1]), text=CaptionHead(table), tokenizer=index, mean=(0.0,),
                   std=(1.0,), name=f"heads on frozen {towers.name}")  # fmt: skip


def with_features(dataset: ImageTextDataset, features: Tensor) -> ImageTextDataset:
    """The data set with cached features in place of pixels; its pictures can still be shown."""
    return replace(dataset, source=FeatureSource(dataset.source, features))


def _identity(width: int) -> Any:
    layer = nn.Linear(width, width, bias=False)
    nn.init.eye_(layer.weight)
    return layer
