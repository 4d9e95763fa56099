"""Weights of the loss terms, the anchor to the starting weights, and the learnable fusion weight."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LossWeights:
    """Weight of each loss term; the defaults are the official ones (``a`` to ``g`` in the official code)."""

    contrastive: float = 1.0
    matching: float = 2.0
    image_representation: float = 1.0
    text_representation: float = 2.0
    structure: float = 2.0
    image_teacher_structure: float = 1.0
    text_teacher_structure: float = 1.0
    image_intra: float = 0.0
    text_intra: float = 0.0
    alignment: float = 0.0
    mean_relation: float = 0.0
    anchor: float = 0.0
    cross_modal_cyclic: float = 0.0
    in_modal_cyclic: float = 0.0


def anchor_loss(parameters: Iterable[Tensor], start: Iterable[Tensor]) -> Tensor:
    """Sum of squared differences between the trained weights and their starting values (L2-SP, Li et al. 2018).

    ``start`` holds copies in the same order and gets no gradient. ValueError for none, or unequal numbers or shapes.
    """
    pairs = list(zip(parameters, start, strict=True))
    unequal = [(tuple(x.shape), tuple(x0.shape)) for x, x0 in pairs if x.shape != x0.shape]
    if unequal or not pairs:
        raise ValueError(f"weights and their starting values must have the same shapes, got {unequal or 'none'}")
    return torch.stack([(x - x0.detach()).square().sum() for x, x0 in pairs]).sum()


class FusionWeight(nn.Module):
    """Share of the text teacher in the structure target; calling it returns a 0-d tensor.

    ``form``: ``"sigmoid"`` keeps it inside (0, 1), ``"free"`` is the official unconstrained scalar; else ValueError.
    """

    def __init__(self, initial: float = 0.5, form: str = "sigmoid", learnable: bool = True):
        super().__init__()
        if form not in ("sigmoid", "free"):
            raise ValueError(f"unknown form {form!r}; valid: sigmoid, free")
        self.squashed = form == "sigmoid" and learnable
        if self.squashed and not 0 < initial < 1:
            raise ValueError(f"a sigmoid fusion weight must lie inside (0, 1), got {initial}")
        value = torch.tensor(float(initial))
        self.value = nn.Parameter(value.logit() if self.squashed else value, requires_grad=learnable)

    def forward(self) -> Tensor:
        """The weight as a 0-d tensor."""
        return self.value.sigmoid() if self.squashed else self.value
