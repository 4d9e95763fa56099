"""The training objective: a named weighted sum of losses, and the learnable fusion weight."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term; the defaults are the official ones (``a`` to ``g`` in the official code)."""

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


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Add up the terms by name.

    Args:
        terms: scalars by the names of :class:`LossWeights`. A term that a variant does not build is absent.
        weights: their weights.

    Returns:
        Scalar.

    Raises:
        ValueError: no term at all, or a term without a weight.
        FloatingPointError: a term is NaN or infinite, whatever its weight; the message names it.

    >>> float(weighted_sum({"contrastive": torch.tensor(3.0), "matching": torch.tensor(1.0)}, LossWeights()))
    5.0
    """
    factors = asdict(weights)
    if not terms or terms.keys() - factors.keys():
        raise ValueError(f"terms must be some of {', '.join(factors)}; got {', '.join(terms) or 'none'}")
    values = torch.stack(list(terms.values()))
    if not values.isfinite().all():  # one device synchronisation for all terms
        bad = {name: float(term.detach()) for name, term in terms.items() if not term.isfinite()}
        raise FloatingPointError("not finite: " + ", ".join(f"{name} = {value}" for name, value in bad.items()))
    return values @ values.new_tensor([factors[name] for name in terms])


class FusionWeight(nn.Module):
    """The share of the text teacher in the structure target.

    Args:
        initial: its value at the start.
        form: ``"sigmoid"`` keeps it inside (0, 1); ``"free"`` is the official unconstrained scalar.
        learnable: ``False`` keeps ``initial`` for good, which may then be any number in either form.

    Raises:
        ValueError: unknown form, or a learnable sigmoid that starts outside (0, 1).

    >>> FusionWeight(0.5)().item()
    0.5
    """

    def __init__(self, initial: float = 0.5, form: str = "sigmoid", learnable: bool = True):
        super().__init__()
        if form not in ("sigmoid", "free"):
            raise ValueError(f"unknown form {form!r}; valid: sigmoid, free")
        self.squashed = form == "sigmoid" and learnable
        if self.squashed and not 0 < initial < 1:
            raise ValueError(f"a sigmoid fusion weight lies inside (0, 1), got {initial}")
        value = torch.tensor(float(initial))
        self.value = nn.Parameter(value.logit() if self.squashed else value, requires_grad=learnable)

    def forward(self) -> Tensor:
        """The weight as a 0-d tensor."""
        return self.value.sigmoid() if self.squashed else self.value
