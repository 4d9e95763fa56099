"""The student: two towers into one common space, and optionally a fusion encoder."""

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.towers import Towers, encode_image_tokens, encode_text_tokens
from rvlr_lib.similarity import unit_rows


class Encoded(NamedTuple):
    """Unit features ``[B, D]``, tokens ``[B, N, W]`` (None where not asked for) and the mask of real tokens."""

    features: Tensor
    tokens: Tensor | None
    mask: Tensor | None = None


class Student(nn.Module):
    """Vision-language student over open_clip towers.

    Args:
        towers: from :func:`build_towers`; copied, so that several students can start from the same towers.
        fusion_layers: layers of the fusion encoder; 0 leaves it and the matching head out.
        temperature: initial contrastive temperature; learned through its logarithm, so it stays positive.
        seed: of the fusion encoder's random initialisation.
    """

    def __init__(self, towers: Towers, *, fusion_layers: int = 0, temperature: float = 0.07, seed: int = 0) -> None:
        super().__init__()
        self.visual = copy.deepcopy(towers.visual)
        self.text = copy.deepcopy(towers.text)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.register_buffer("mean", torch.tensor(towers.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(towers.std).view(1, -1, 1, 1), persistent=False)
        self.fusion: FusionEncoder | None = None
        if fusion_layers:
            self.fusion = self._build_fusion(towers, fusion_layers, seed)

    @property
    def temperature(self) -> Tensor:
        """Contrastive temperature, 0-d."""
        return self.log_temperature.exp()

    def encode_image(self, pixels: Tensor, *, tokens: bool = False) -> Encoded:
        """Pictures ``[B, 3, S, S]`` in 0..1 -> unit features and patch tokens."""
        features, image_tokens = encode_image_tokens(self.visual, (pixels - self.mean) / self.std, tokens=tokens)
        return Encoded(unit_rows(full_precision(features)), image_tokens)

    def encode_text(self, token_ids: Tensor, *, tokens: bool = False, dropout: float = 0.0) -> Encoded:
        """Token ids ``[B, L]`` -> unit features, token features and their mask."""
        features, text_tokens, mask = encode_text_tokens(self.text, token_ids, tokens=tokens, dropout=dropout)
        return Encoded(unit_rows(full_precision(features)), text_tokens, mask)

    def match(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Matching logits ``[B, 2]`` and fused first token ``[B, W]`` of pairs.

        Raises:
            ValueError: the student has no fusion encoder.
        """
        if self.fusion is None:
            raise ValueError("this student has no fusion encoder: build it with fusion_layers >= 1")
        return self.fusion(image_tokens, text_tokens, text_mask)

    @staticmethod
    def _build_fusion(towers: Towers, layers: int, seed: int) -> FusionEncoder:
        with torch.no_grad():
            pixels = torch.zeros(1, 3, towers.image_size, towers.image_size)
            was_training = towers.visual.training, towers.text.training
            towers.visual.eval(), towers.text.eval()
            _, image_tokens = encode_image_tokens(towers.visual, pixels, tokens=True)
            _, text_tokens, _ = encode_text_tokens(towers.text, towers.tokenizer(["a"]), tokens=True)
            towers.visual.train(was_training[0]), towers.text.train(was_training[1])
        assert image_tokens is not None
        assert text_tokens is not None
        width = text_tokens.shape[-1]
        heads = max(1, width // 64) if width % 64 == 0 else max(1, width // 32)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return FusionEncoder(width, image_tokens.shape[-1], layers, heads)


def full_precision(features: Tensor) -> Tensor:
    """Half-precision features in float32: losses and cosines are computed in full precision."""
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features
