"""Structure-aware distillation: the student keeps its teachers' relations (official ``kd``, ``kdi``, ``kdt``)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rvlr_lib.losses._checks import feature_rows, number
from rvlr_lib.losses.distances import DISTANCES, angle_relations, centred_relations, cosine_relations
from rvlr_lib.similarity import cosine_matrix, off_diagonal


class StructureTerms(NamedTuple):
    """The scalars ``D(F, E)``, ``D(I, E)`` and ``D(T, E)`` of the structure loss; the official kd, kdi, kdt."""

    student: Tensor
    image_teacher: Tensor
    text_teacher: Tensor


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
    more_features: Sequence[Tensor] = (),
) -> StructureTerms:
    """Compare the student's relations ``F`` with the teachers' ``I`` and ``T``, fused into one target.

    ``E = fusion_weight T + (1 − fusion_weight) I``. Relations are off-diagonal cosines / temperature, or RKD's
    mean-normalised distances or angles. A zero row has cosine 0 with every row, NaN gives NaN. ValueError where numbers
    of rows differ, below two rows (three for ``rkd_angle``), for temperature zero, and where an option does not fit.

    Args:
        student_features, image_teacher_features, text_teacher_features: ``[B, ·]`` of any widths, unit-normalised
            inside, not detached.
        fusion_weight: share of the *text* teacher, any real number or 0-d tensor, also outside 0 to 1; gradient flows.
        temperature: any real number but zero, or 0-d tensor; gradient flows and only ever raises it. RKD ignores any.
        distance: one of ``losses.distances.DISTANCES``. ``cumulative_l1`` is the official "kl", ``wasserstein``
            the official "wd", whose teacher terms are 0. ``rkd_angle`` takes ``B^3`` memory.
        cost_features: ``[B, D_cost]``, needed by ``wasserstein`` alone: the student's text features, detached or not.
        centred: subtract from ``F``, ``I`` and ``T`` their own mean over the pairs first: the teachers' knowledge
            without their pull on the mean, which is :func:`mean_relation_loss`. Not for ``wasserstein`` and RKD.
        more_features: further spaces ``[B, ·]`` of the student, held to the same target: its term is the mean over all.
    """
    if str(distance) not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; valid: {', '.join(DISTANCES)}")
    relations_of, compare = DISTANCES[distance]
    if centred and (distance == "wasserstein" or relations_of is not cosine_relations):
        raise ValueError(f"centred goes with mae, mse, cumulative_l1 and row_kl, not with {distance}")
    if distance == "wasserstein" and cost_features is None:
        raise ValueError("wasserstein needs cost_features")
    given = (student_features, *more_features), image_teacher_features, text_teacher_features, fusion_weight
    spaces, teachers, target, dtype = _relations(centred_relations if centred else relations_of, *given)
    temperature = number("temperature", temperature, target, nonzero="rkd" not in distance)
    if distance == "wasserstein":
        (_, cost), _ = feature_rows(same_width=False, student_features=student_features, cost_features=cost_features)
        cost = (1 - cosine_matrix(cost)).clamp_min(0).fill_diagonal_(0)
        compare = partial(compare, cost=cost.to(target))
    loss = torch.stack([compare(relations, target, temperature) for relations in spaces]).mean()
    others = [
        compare(x, target, temperature) if distance != "wasserstein" else torch.zeros_like(loss) for x in teachers
    ]
    return StructureTerms(*(term.to(dtype) for term in (loss, *others)))


def mean_relation_loss(
    student_features: Tensor,
    image_teacher_features: Tensor,
    text_teacher_features: Tensor,
    *,
    fusion_weight: float | Tensor,
    temperature: float | Tensor,
    more_features: Sequence[Tensor] = (),
) -> Tensor:
    """Mean over the pairs of ``|F_ij − mean of E|``: the pull of the structure loss without any knowledge, a control.

    ``F``, ``E``, arguments and errors as in :func:`structure_distillation_loss`.
    """
    given = (student_features, *more_features), image_teacher_features, text_teacher_features, fusion_weight
    spaces, _, target, dtype = _relations(cosine_relations, *given)
    pull = off_diagonal(target).mean()
    away = torch.stack([off_diagonal(relations - pull).abs().mean() for relations in spaces]).mean()
    return (away / abs(number("temperature", temperature, target))).to(dtype)


def _relations(
    relations_of: Callable[[Tensor], Tensor], spaces: Sequence[Any], image: Any, text: Any, fusion_weight: Any
) -> tuple[list[Tensor], list[Tensor], Tensor, torch.dtype]:
    """Relations of the student's spaces and of both teachers, the target of these, and the dtype of the loss."""
    features = {"student_features": spaces[0], "image_teacher_features": image, "text_teacher_features": text}
    features |= {f"more_features[{place}]": space for place, space in enumerate(spaces[1:])}
    rows, dtype = feature_rows(same_width=False, minimum=3 if relations_of is angle_relations else 2, **features)
    student, i, t, *more = [relations_of(x) for x in rows]
    weight = number("fusion_weight", fusion_weight, i, nonzero=False)
    target = torch.lerp(i, t, weight.to(i) if isinstance(weight, Tensor) else weight)
    return [student, *more], [i, t], target, dtype
