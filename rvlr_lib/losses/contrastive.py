"""Contrast between two sets of features of the same items, and the cyclic terms that go with it."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib.losses._checks import feature_rows, nonzero_temperature, same_image
from rvlr_lib.similarity import cosine_matrix


def representation_distillation_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    temperature: float | Tensor,
    image_ids: Tensor | None = None,
    bidirectional: bool = False,
) -> Tensor:
    """Contrast student rows with teacher columns (the one-way official ``iic`` and ``ttc``).

    ``CE(S) = -(1/B) sum_ij P_ij log softmax_j(S_ij / temperature)`` with ``S`` the dot products and ``P`` the target
    mass, shared equally among the rows of one image.

    Args:
        student_features: ``[B, D]`` unit rows.
        teacher_features: ``[B, D]`` unit rows, already projected. Not detached: gradient reaches a trainable
            projection; frozen features get none because they require none.
        temperature: any real number but zero, never clamped; a negative one turns attraction round.
        image_ids: ``[B]``, numbers or strings; rows with equal ids share the target mass. ``None``: each row is its
            own image.
        bidirectional: the mean of both directions, ``(CE(S) + CE(S^T)) / 2``.

    Returns:
        Scalar in nats. Zero rows have similarity 0 to everything; a NaN feature gives NaN.

    Raises:
        ValueError: shapes differ, fewer than two rows, temperature zero.
    """
    (student, teacher), dtype = feature_rows(
        same_width=True, student_features=student_features, teacher_features=teacher_features
    )
    logits = student @ teacher.T / nonzero_temperature(temperature)
    if image_ids is None:
        target = torch.arange(len(logits), device=logits.device)
    else:
        same = same_image(image_ids, len(logits), logits.device).to(logits.dtype)
        target = same / same.sum(dim=1, keepdim=True)
    loss = F.cross_entropy(logits, target)
    return ((loss + F.cross_entropy(logits.T, target)) / 2 if bidirectional else loss).to(dtype)


def image_text_contrastive_loss(
    image_features: Tensor, text_features: Tensor, temperature: float | Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE between images and captions, the official ``itc``: ``(CE(z w^T) + CE(w z^T)) / 2``.

    ``image_features [B, D]`` and ``text_features [B, D]`` are unit rows ``z`` and ``w``; the rest is as in
    :func:`representation_distillation_loss`.

    >>> rows = torch.eye(4)
    >>> round(float(image_text_contrastive_loss(rows, rows, 0.1)), 6)
    0.000136
    """
    images, texts = image_features, text_features
    return representation_distillation_loss(images, texts, temperature, image_ids, bidirectional=True)


def intra_modal_contrastive_loss(
    first_view: Tensor, second_view: Tensor, temperature: float | Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """:func:`image_text_contrastive_loss` within one modality: two crops of an image, or two captions of it."""
    return representation_distillation_loss(first_view, second_view, temperature, image_ids, bidirectional=True)


def pair_alignment_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Mean squared distance of the pairs, ``mean |z - w|^2``, 0 to 4: pulls each pair together, pushes nothing apart.

    Beside the contrastive loss its weight says how strictly pairs must coincide (Wang and Isola 2020, alignment).
    ``image_features [B, D]`` and ``text_features [B, D]`` are unit rows; ValueError where shapes differ or ``B < 2``.

    >>> float(pair_alignment_loss(torch.eye(2), -torch.eye(2)))
    4.0
    """
    (images, texts), dtype = feature_rows(same_width=True, image_features=image_features, text_features=text_features)
    return (images - texts).square().sum(dim=1).mean().to(dtype)


def cross_modal_cyclic_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Image i should be as similar to text j as image j to text i: ``(1/B) sum_ij (S_ij - S_ji)^2``.

    ``S`` are the cosines of ``image_features [B, D]`` and ``text_features [B, D]`` (CyCLIP, Goel et al. 2022,
    cross-modal consistency, weight 0.25 there). ValueError where shapes differ or ``B < 2``.

    >>> rows = torch.eye(2)
    >>> float(cross_modal_cyclic_loss(rows, rows)), float(cross_modal_cyclic_loss(rows, rows[[0, 0]]))
    (0.0, 1.0)
    """
    (images, texts), dtype = feature_rows(same_width=True, image_features=image_features, text_features=text_features)
    similarity = cosine_matrix(images, texts)
    return ((similarity - similarity.T).square().sum() / len(similarity)).to(dtype)


def in_modal_cyclic_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Images i and j should be as similar as their texts: ``(1/B) sum_ij (z_i z_j - w_i w_j)^2`` of unit rows.

    CyCLIP's in-modal consistency. The two widths may differ; else as :func:`cross_modal_cyclic_loss`.

    >>> rows = torch.eye(2)
    >>> float(in_modal_cyclic_loss(rows, -rows)), float(in_modal_cyclic_loss(rows, rows[[0, 0]]))
    (0.0, 1.0)
    """
    (images, texts), dtype = feature_rows(image_features=image_features, text_features=text_features)
    return ((cosine_matrix(images) - cosine_matrix(texts)).square().sum() / len(images)).to(dtype)
