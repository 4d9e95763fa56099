"""Representation-level distillation: a student's rows find their own teacher rows (official ``iic``, ``ttc``)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib.losses._checks import check_rows, check_temperature, same_image


def representation_distillation_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    temperature: float | Tensor,
    image_ids: Tensor | None = None,
    bidirectional: bool = False,
) -> Tensor:
    """Contrast student rows with teacher columns.

    ``CE(S) = -(1/B) sum_ij P_ij log softmax_j(S_ij / temperature)`` with ``S`` the dot products and ``P`` the target
    mass, shared equally among the rows of one image. The official ``iic`` and ``ttc`` losses are one-way.

    Args:
        student_features: ``[B, D]`` unit rows.
        teacher_features: ``[B, D]`` unit rows, already projected. Not detached: gradient reaches a trainable
            projection; frozen features get none because they require none.
        temperature: any real number but zero; a negative one is taken as it stands and turns attraction round.
        image_ids: ``[B]``; rows with equal ids share the target mass. ``None``: each row is its own image.
        bidirectional: the mean of both directions, ``(CE(S) + CE(S^T)) / 2``.

    Returns:
        Scalar in nats. Rows of one single image give the cross-entropy to the uniform target; zero rows have
        similarity 0 to everything; a NaN feature gives NaN, which :func:`~rvlr_lib.losses.weighted_sum` refuses.

    Raises:
        ValueError: shapes differ, fewer than two rows, temperature zero.
    """
    check_rows(same_width=True, student_features=student_features, teacher_features=teacher_features)
    check_temperature(temperature)
    logits = student_features @ teacher_features.T / temperature
    if image_ids is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        same = same_image(image_ids, len(logits), logits.device).to(logits.dtype)
        target = same / same.sum(dim=1, keepdim=True)
    loss = F.cross_entropy(logits, target)
    return (loss + F.cross_entropy(logits.T, target)) / 2 if bidirectional else loss
