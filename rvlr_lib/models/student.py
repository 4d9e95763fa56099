"""Students, which embed both modalities in a common space: trained towers, or heads on features of frozen towers."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.towers import Towers, batch_dropout, encode_image_tokens, encode_text_tokens
from rvlr_lib.similarity import full_precision, unit_rows

HIDDEN, HEAD_DROPOUT, FUSION_WIDTH = 512, 0.2, 128


class Encoded(NamedTuple):
    """Features ``[B, D]``, tokens ``[B, N, W]`` if requested and, for captions, the bool mask of real tokens."""

    features: Tensor
    tokens: Tensor | None = None
    mask: Tensor | None = None


class CachedRows(Encoded):
    """Cached outputs of a frozen tower; the features are not normalised."""


class Student(nn.Module):
    """Base of all students: a common space of width ``embed_dim``, a learned temperature, ``fusion`` or None."""

    def __init__(self, embed_dim: int, temperature: float) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))  # its exponential stays positive
        self.fusion: FusionEncoder | None = None

    def add_fusion(self, text_width: int, image_width: int, layers: int, width: int, seed: int) -> None:
        """Add a fusion encoder, randomly initialised from ``seed``."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.fusion = FusionEncoder(text_width, image_width, layers, width)

    @property
    def temperature(self) -> Tensor:
        """Contrastive temperature, a 0-d tensor."""
        return self.log_temperature.exp()


class TowerStudent(Student):
    """Two open_clip towers trained end to end; batch normalisation keeps its pretrained statistics.

    The towers are copied, so several students can start from the same ones. ``fusion_layers=0`` leaves out the fusion
    encoder and matching head; ``temperature`` is the initial value; ``seed`` initialises the fusion encoder.
    """

    def __init__(self, towers: Towers, *, fusion_layers: int = 0, temperature: float = 0.07, seed: int = 0) -> None:
        super().__init__(towers.embed_dim, temperature)
        self.visual, self.text = copy.deepcopy(towers.visual), copy.deepcopy(towers.text)
        self.tokenizer, self.image_size = towers.tokenizer, towers.image_size
        self.register_buffer("mean", torch.tensor(towers.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(towers.std).view(1, -1, 1, 1), persistent=False)
        if fusion_layers:
            with torch.no_grad():
                image = self.eval().encode_image(torch.zeros(1, 3, self.image_size, self.image_size), tokens=True)
                text = self.encode_text(towers.tokenizer(["a"]), tokens=True)
            self.add_fusion(text.tokens.shape[-1], image.tokens.shape[-1], fusion_layers, 0, seed)
        self.train()

    def train(self, mode: bool = True) -> "TowerStudent":
        """Set the mode, but keep batch normalisation in evaluation: its statistics would cover one process's rows."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def encode_image(self, x: Tensor, *, tokens: bool = False) -> Encoded:
        """Unit features and patch tokens of pictures ``[B, 3, S, S]`` in 0..1."""
        pixels = ((x - self.mean) / self.std).contiguous(memory_format=torch.channels_last)  # convolutions are faster
        features, image_tokens = encode_image_tokens(self.visual, pixels, tokens=tokens)
        return Encoded(unit_rows(full_precision(features)), image_tokens)

    def encode_text(self, x: Tensor, *, tokens: bool = False, dropout: float = 0.0) -> Encoded:
        """Unit features, token features and their mask, of token ids ``[B, L]``."""
        features, text_tokens, mask = encode_text_tokens(self.text, x, tokens=tokens, dropout=dropout)
        return Encoded(unit_rows(full_precision(features)), text_tokens, mask)


class Head(nn.Module):
    """Projection of unit rows ``[B, W]`` plus a residual MLP whose last layer starts at zero, ``[B, D]``.

    LayerNorm and dropout act only in the MLP branch, so the initial output is exactly the projection.
    """

    def __init__(self, directions: Tensor) -> None:
        super().__init__()
        width, embed_dim = directions.shape
        self.proj = nn.Linear(width, embed_dim, bias=False)
        self.norm, self.first, self.last = nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.Linear(HIDDEN, embed_dim)
        with torch.no_grad():
            self.proj.weight.copy_(directions.T)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Map unit rows ``[B, W]`` to ``[B, D]``."""
        branch = self.norm(rows)
        if self.training:
            branch = batch_dropout(branch, HEAD_DROPOUT)
        return self.proj(rows) + self.last(nn.functional.gelu(self.first(branch)))


class HeadStudent(Student):
    """Heads on cached features, initialised as the projection onto given directions.

    Args:
        image_directions, text_directions: ``[W, D]`` from ``similarity.principal_directions``; widths ``W`` may differ.
        token_widths: widths of the cached image and text tokens, required for a fusion encoder, which is 128 wide.
        fusion_layers, temperature, seed: as in :class:`TowerStudent`; ``seed`` also initialises the MLPs.
    """

    def __init__(
        self,
        image_directions: Tensor,
        text_directions: Tensor,
        *,
        token_widths: tuple[int, int] | None = None,
        fusion_layers: int = 0,
        temperature: float = 0.07,
        seed: int = 0,
    ) -> None:
        super().__init__(image_directions.shape[1], temperature)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.image_head, self.text_head = Head(image_directions), Head(text_directions)
        if fusion_layers:
            self.add_fusion(token_widths[1], token_widths[0], fusion_layers, FUSION_WIDTH, seed)

    def encode_image(self, x: CachedRows, *, tokens: bool = False) -> Encoded:
        """Unit features of pictures from their cached features, and the cached tokens if requested."""
        return self._encode(self.image_head, x, tokens, 0.0)

    def encode_text(self, x: CachedRows, *, tokens: bool = False, dropout: float = 0.0) -> Encoded:
        """Likewise for captions; ``dropout``, the chance of zeroing an entry of the features, gives a second view."""
        return self._encode(self.text_head, x, tokens, dropout)

    def _encode(self, head: Head, x: CachedRows, tokens: bool, dropout: float) -> Encoded:
        rows = unit_rows(x.features)
        features = head(batch_dropout(rows, dropout) if dropout else rows)
        return Encoded(unit_rows(full_precision(features)), x.tokens.to(rows.dtype) if tokens else None, x.mask)
