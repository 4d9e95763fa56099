"""The training objective: a named weighted sum of losses, the learnable fusion weight, the pull to the start."""

from collections.abc import Iterable, Mapping
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
    mean_relation: float = 0.0
    anchor: float = 0.0
    cross_modal_cyclic: float = 0.0
    in_modal_cyclic: float = 0.0
    rkd_angle: float = 0.0


def weighted_sum(terms: Mapping[str, Tensor], weights: LossWeights) -> Tensor:
    """Add up the terms by name.

    ``terms`` are scalars by the names of :class:`LossWeights`; one that an arm does not build is absent.

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


def anchor_loss(parameters: Iterable[Tensor], start: Iterable[Tensor]) -> Tensor:
    """Sum of the squared differences of the trained weights to where they started (L2-SP, Li et al. 2018).

    ``start`` holds copies of the trained ``parameters`` in the same order and gets no gradient. ValueError for no
    parameter, different numbers of tensors, or different shapes, which are named.

    >>> float(anchor_loss([torch.ones(2, 3)], [torch.zeros(2, 3)]))
    6.0
    """
    parameters, start = list(parameters), list(start)
    if not parameters or len(parameters) != len(start):
        raise ValueError(f"expected as many weights as starts, one at least: got {len(parameters)} and {len(start)}")
    for here, there in zip(parameters, start, strict=True):
        if here.shape != there.shape:
            raise ValueError(f"a weight and its start differ in shape: {tuple(here.shape)} and {tuple(there.shape)}")
    return torch.stack([(x - x0.detach()).square().sum() for x, x0 in zip(parameters, start, strict=True)]).sum()


class FusionWeight(nn.Module):
    """The share of the text teacher in the structure target; calling it gives a 0-d tensor.

    The form ``"sigmoid"`` keeps it inside (0, 1), and starts there or raises ValueError; ``"free"`` is the official
    unconstrained scalar. Not ``learnable``, it keeps ``initial`` for good, any number in either form.

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
