"""Frozen unimodal teachers: one tower each, trained without ever seeing the other modality.

How the official teachers were trained is not published. Ours are a choice and are labelled so: two augmented views of
a picture for the image teacher, two captions of one picture for the text teacher.
"""

import copy
import math

import torch
from torch import Tensor, nn

from rvlr_lib.models.towers import Towers, encode_image_tokens, encode_text_tokens
from rvlr_lib.similarity import unit_rows


class Teacher(nn.Module):
    """A tower of one modality.

    Args:
        towers: from :func:`build_towers`; the tower is copied.
        modality: ``image`` or ``text``.
        temperature: initial temperature of its contrast, learned through its logarithm.
    """

    def __init__(self, towers: Towers, modality: str, *, temperature: float = 0.1) -> None:
        super().__init__()
        if modality not in ("image", "text"):
            raise ValueError(f"modality is {modality!r}: use 'image' or 'text'")
        self.modality = modality
        self.tower = copy.deepcopy(towers.visual if modality == "image" else towers.text)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))
        self.register_buffer("mean", torch.tensor(towers.mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(towers.std).view(1, -1, 1, 1), persistent=False)

    @property
    def temperature(self) -> Tensor:
        """Temperature of the two-view contrast, 0-d."""
        return self.log_temperature.exp()

    def forward(self, inputs: Tensor, *, dropout: float = 0.0) -> Tensor:
        """Pictures ``[B, 3, S, S]`` in 0..1, or token ids ``[B, L]`` -> unit features ``[B, D]``."""
        if self.modality == "image":
            return unit_rows(encode_image_tokens(self.tower, (inputs - self.mean) / self.std, tokens=False)[0])
        return unit_rows(encode_text_tokens(self.tower, inputs, tokens=False, dropout=dropout)[0])


def orthogonal_maps(image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate two frozen teachers into one space: the ``frozen`` control, which cannot bend any neighbourhood.

    Orthogonal Procrustes: with the singular value decomposition A'B = U S V', the maps U and V align A and B as well as
    any rotation can, and leave every cosine within a modality as it was.

    Args:
        image_features: ``[N, D]`` unit rows, row n belongs with row n of the captions.
        text_features: ``[N, D]`` unit rows.

    Returns:
        Maps ``[D, D]`` for pictures and captions: ``image_features @ maps[0]``, ``text_features @ maps[1]``.

    Raises:
        ValueError: the shapes differ.
    """
    if image_features.shape != text_features.shape:
        raise ValueError(f"shapes differ: {tuple(image_features.shape)} and {tuple(text_features.shape)}")
    left, _, right = torch.linalg.svd(image_features.double().T @ text_features.double())
    return left.to(image_features.dtype), right.T.to(text_features.dtype)
