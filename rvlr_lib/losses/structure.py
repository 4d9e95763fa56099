"""Structure-aware distillation: the student keeps its teachers' relations (official ``kd``, ``kdi``, ``kdt``)."""

from typing import NamedTuple

import torch
from torch import Tensor

from rvlr_lib.losses._checks import feature_rows, nonzero_temperature, number
from rvlr_lib.losses.distances import DISTANCES, centred_relations, cosine_cost, cosine_relations, magnitude
from rvlr_lib.similarity import off_diagonal

CENTRED = ("mae", "mse", "cumulative_l1", "row_kl")


class StructureTerms(NamedTuple):
    """The three scalars of the structure loss; the official names are ``kd``, ``kdi`` and ``kdt``."""

    student: Tensor
    """``D(F, E)``: the student against the target."""
    image_teacher: Tensor
    """``D(I, E)``: the image teacher against the target, what a learnable fusion weight is pulled by."""
    text_teacher: Tensor
    """``D(T, E)``: the text teacher against the target."""


def structure_distillation_loss(
    student_features: Tensor,
    image_teacher_features: Tensor,
    text_teacher_features: Tensor,
    *,
    fusion_weight: float | Tensor,
    temperature: float | Tensor,
    distance: str = "mae",
    cost_features: Tensor | None = None,
    centred: bool = False,
) -> StructureTerms:
    """Compare the student's relations ``F`` with the teachers' ``I`` and ``T``, fused into one target.

    ``E = fusion_weight T + (1 − fusion_weight) I``; the fusion weight is the share of the *text* teacher. Relations are
    the off-diagonal cosines / temperature, or for the two RKD distances their mean-normalised distances and angles.

    Args:
        student_features: ``[B, D]``, unit-normalised inside, as all features here.
        image_teacher_features: ``[B, D_image]``, not detached: frozen teachers get no gradient as they require none.
        text_teacher_features: ``[B, D_text]``.
        fusion_weight: any real number, also outside 0 to 1, or 0-d tensor; gradient flows.
        temperature: any real number but zero, or 0-d tensor; gradient flows and only ever raises it. RKD ignores it.
        distance: one of :data:`~rvlr_lib.losses.DISTANCES`. ``cumulative_l1`` is the official "kl", ``wasserstein``
            the official "wd", whose teacher terms are 0. ``rkd_angle`` takes ``B^3`` memory and three rows.
        cost_features: ``[B, D_cost]`` for ``wasserstein`` alone, the student's text features; detached, they keep the
            cost from shrinking the loss.
        centred: subtract from ``F``, ``I`` and ``T`` their own mean over the pairs first: the teachers' knowledge
            without their pull on the mean, which is :func:`mean_relation_loss`. Not for ``wasserstein`` and RKD.

    Returns:
        StructureTerms, three scalars. A zero row has cosine 0 with every row; a NaN feature gives NaN.

    Raises:
        ValueError: numbers of rows differ, fewer than two rows (three for ``rkd_angle``), temperature zero, unknown
            distance, ``wasserstein`` without ``cost_features``, ``centred`` with a distance that it is not for.

    >>> import torch
    >>> rows = torch.eye(3)
    >>> terms = structure_distillation_loss(rows, rows, torch.ones(3, 3), fusion_weight=0.5, temperature=0.1)
    >>> [round(float(term), 4) for term in terms]
    [5.0, 5.0, 5.0]
    """
    if distance not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; valid: {', '.join(DISTANCES)}")
    if centred and distance not in CENTRED:
        raise ValueError(f"centred goes with {', '.join(CENTRED)}, not with {distance}")
    temperature, fusion_weight = nonzero_temperature(temperature), number("fusion_weight", fusion_weight)
    features, dtype = feature_rows(
        minimum=3 if distance == "rkd_angle" else 2,
        student_features=student_features,
        image_teacher_features=image_teacher_features,
        text_teacher_features=text_teacher_features,
    )
    relations_of, compare = DISTANCES[distance]
    student, image, text = map(centred_relations if centred else relations_of, features)
    target = _fused(image, text, fusion_weight)
    if distance == "wasserstein":
        if cost_features is None:
            raise ValueError("wasserstein needs cost_features")
        (_, cost), _ = feature_rows(student_features=features[0], cost_features=cost_features)
        loss = compare(student, target, temperature, cosine_cost(cost).to(student)).to(dtype)
        return StructureTerms(loss, loss.new_zeros(()), loss.new_zeros(()))
    return StructureTerms(*(compare(relations, target, temperature).to(dtype) for relations in (student, image, text)))


def mean_relation_loss(
    student_features: Tensor,
    image_teacher_features: Tensor,
    text_teacher_features: Tensor,
    *,
    fusion_weight: float | Tensor,
    temperature: float | Tensor,
) -> Tensor:
    """Mean over the pairs of ``|F_ij − mean of E|``: the pull of the structure loss without any knowledge, a control.

    ``F``, ``E``, arguments and errors as in :func:`structure_distillation_loss`.

    >>> import torch
    >>> rows = torch.eye(3)
    >>> round(float(mean_relation_loss(rows, rows, torch.ones(3, 3), fusion_weight=0.2, temperature=0.1)), 4)
    2.0
    """
    temperature, fusion_weight = nonzero_temperature(temperature), number("fusion_weight", fusion_weight)
    features, dtype = feature_rows(
        student_features=student_features,
        image_teacher_features=image_teacher_features,
        text_teacher_features=text_teacher_features,
    )
    student, image, text = (off_diagonal(cosine_relations(x)) for x in features)
    return (student - _fused(image, text, fusion_weight).mean()).abs().mean().div(magnitude(temperature)).to(dtype)


def _fused(image: Tensor, text: Tensor, fusion_weight: float | Tensor) -> Tensor:
    return torch.lerp(image, text, fusion_weight.to(image) if isinstance(fusion_weight, Tensor) else fusion_weight)
