"""Structure-aware distillation: the student learns its teachers' relations (official ``kd``, ``kdi``, ``kdt``)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rvlr_lib.losses._checks import feature_rows, number
from rvlr_lib.losses.distances import DISTANCES, angle_relations, centred_relations, cosine_relations
from rvlr_lib.similarity import cosine_matrix, off_diagonal


class StructureTerms(NamedTuple):
    """The scalars ``D(F, E)``, ``D(I, E)`` and ``D(T, E)`` of the structure loss (official kd, kdi, kdt)."""

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
    """Distances ``D(F, E)``, ``D(I, E)``, ``D(T, E)`` of student, image and text teacher relations from a fused target.

    ``E = fusion_weight T + (1 − fusion_weight) I``. Relations are off-diagonal cosines / temperature, or RKD's
    mean-normalised distances or angles. A zero row has cosine 0 with every row; NaN gives NaN. ValueError for unequal
    numbers of rows, fewer than two (``rkd_angle``: three), temperature zero, or options that do not go together.

    Args:
        student_features, image_teacher_features, text_teacher_features: ``[B, ·]`` of any widths, normalised to unit
            rows here; gradient flows into all of them.
        fusion_weight: share of the *text* teacher, any real number or 0-d tensor, even outside 0 to 1; gradient flows.
        temperature: any nonzero number or 0-d tensor; gradient flows and only ever raises it. RKD ignores it.
        distance: one of ``losses.distances.DISTANCES``. ``cumulative_l1`` is the official "kl"; ``wasserstein`` is
            the official "wd", with teacher terms 0. ``rkd_angle`` takes ``B^3`` memory.
        cost_features: ``[B, D_cost]``, for ``wasserstein`` alone: the student's text features, detached or not.
        centred: first subtract from each of ``F``, ``I`` and ``T`` its mean over the pairs: the teachers' knowledge
            without their pull on the mean, which is :func:`mean_relation_loss`. Not for ``wasserstein`` and RKD.
        more_features: further student spaces ``[B, ·]`` with the same target; ``D(F, E)`` is the mean over all spaces.
    """
    if str(distance) not in DISTANCES:
        raise ValueError(f"unknown distance {distance!r}; valid: {', '.join(DISTANCES)}")
    relations_of, compare = DISTANCES[distance]
    if centred and (distance == "wasserstein" or relations_of is not cosine_relations):
        raise ValueError(f"centred works with mae, mse, cumulative_l1 and row_kl, not with {distance}")
    if distance == "wasserstein" and cost_features is None:
        raise ValueError("wasserstein needs cost_features")
    features = (student_features, *more_features), image_teacher_features, text_teacher_features
    spaces, teachers, e, dtype = _relations(centred_relations if centred else relations_of, *features, fusion_weight)
    temperature = number("temperature", temperature, e, nonzero="rkd" not in distance)
    if distance == "wasserstein":
        (_, cost), _ = feature_rows(same_width=False, student_features=student_features, cost_features=cost_features)
        cost = (1 - cosine_matrix(cost)).clamp_min(0).fill_diagonal_(0)
        compare = partial(compare, cost=cost.to(e))
    loss = torch.stack([compare(f, e, temperature) for f in spaces]).mean()
    if distance == "wasserstein":
        teacher_terms = [torch.zeros_like(loss) for _ in teachers]
    else:
        teacher_terms = [compare(relations, e, temperature) for relations in teachers]
    return StructureTerms(*(term.to(dtype) for term in (loss, *teacher_terms)))


def mean_relation_loss(
    student_features: Tensor,
    image_teacher_features: Tensor,
    text_teacher_features: Tensor,
    *,
    fusion_weight: float | Tensor,
    temperature: float | Tensor,
    more_features: Sequence[Tensor] = (),
) -> Tensor:
    """Mean over the pairs of ``|F_ij − mean of E|``, a control: the structure loss's pull without any knowledge.

    ``F``, ``E``, arguments and errors as in :func:`structure_distillation_loss`.
    """
    features = (student_features, *more_features), image_teacher_features, text_teacher_features
    spaces, _, e, dtype = _relations(cosine_relations, *features, fusion_weight)
    mean = off_diagonal(e).mean()
    loss = torch.stack([off_diagonal(f - mean).abs().mean() for f in spaces]).mean()
    return (loss / abs(number("temperature", temperature, e))).to(dtype)


def _relations(
    relations_of: Callable[[Tensor], Tensor], spaces: Sequence[Any], image: Any, text: Any, fusion_weight: Any
) -> tuple[list[Tensor], list[Tensor], Tensor, torch.dtype]:
    """Relations ``F`` of the student's spaces, ``I`` and ``T`` of the teachers, ``E``, and the dtype of the loss."""
    features = {"student_features": spaces[0], "image_teacher_features": image, "text_teacher_features": text}
    features |= {f"more_features[{index}]": space for index, space in enumerate(spaces[1:])}
    rows, dtype = feature_rows(same_width=False, minimum=3 if relations_of is angle_relations else 2, **features)
    f, i, t, *more = [relations_of(x) for x in rows]
    weight = number("fusion_weight", fusion_weight, i, nonzero=False)
    e = torch.lerp(i, t, weight.to(i) if isinstance(weight, Tensor) else weight)
    return [f, *more], [i, t], e, dtype
