"""Contrastive, alignment and cyclic losses of paired rows, as scalars; ValueError for unpaired rows or ``B < 2``."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib.losses._checks import feature_rows, number, same_image
from rvlr_lib.similarity import cosine_matrix


def representation_distillation_loss(
    student_features: Tensor,
    teacher_features: Tensor,
    temperature: float | Tensor,
    image_ids: Tensor | None = None,
    bidirectional: bool = False,
) -> Tensor:
    """Contrast each student row with all teacher rows, a scalar in nats (official ``iic`` and ``ttc``, both one-way).

    ``CE(S) = -(1/B) sum_ij P_ij log softmax_j(S_ij / temperature)``, ``S`` the dot products, ``P`` uniform over the
    columns of the row's image. ValueError for unequal shapes, fewer than two rows, temperature zero; NaN gives NaN.

    Args:
        student_features, teacher_features: ``[B, D]`` unit rows, the teacher's already projected; both get gradient.
        temperature: any nonzero number or 0-d tensor, never clamped; a negative one turns attraction into repulsion.
        image_ids: ``[B]`` numbers or strings, equal for rows of the same image. None: each row is its own image.
        bidirectional: average both directions, ``(CE(S) + CE(S^T)) / 2``.
    """
    (student, teacher), dtype = feature_rows(student_features=student_features, teacher_features=teacher_features)
    logits = student @ teacher.T / number("temperature", temperature, student)
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
    """Symmetric InfoNCE (official ``itc``): :func:`representation_distillation_loss` of ``[B, D]``, both directions.

    >>> round(float(image_text_contrastive_loss(torch.eye(4), torch.eye(4), 0.1)), 6)
    0.000136
    """
    (images, texts), dtype = feature_rows(image_features=image_features, text_features=text_features)
    return representation_distillation_loss(images, texts, temperature, image_ids, bidirectional=True).to(dtype)


intra_modal_contrastive_loss = image_text_contrastive_loss  # between two crops, or two captions, of the same images


def pair_alignment_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """``(1/B) sum_i |z_i - w_i|^2`` of paired unit rows ``[B, D]``, 0 to 4 (alignment, Wang and Isola 2020)."""
    (images, texts), dtype = feature_rows(image_features=image_features, text_features=text_features)
    return (images - texts).square().sum(dim=1).mean().to(dtype)


def cross_modal_cyclic_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """``(1/B) sum_ij (S_ij - S_ji)^2``, ``S`` the image-text cosines of ``[B, D]`` (CyCLIP, Goel et al. 2022)."""
    (images, texts), dtype = feature_rows(image_features=image_features, text_features=text_features)
    cosines = cosine_matrix(images, texts)
    return ((cosines - cosines.T).square().sum() / len(cosines)).to(dtype)


def in_modal_cyclic_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """``(1/B) sum_ij (z_i z_j - w_i w_j)^2``, rows ``[B, D]`` and ``[B, E]`` made unit: in-modal term of CyCLIP."""
    (images, texts), dtype = feature_rows(same_width=False, image_features=image_features, text_features=text_features)
    return ((cosine_matrix(images) - cosine_matrix(texts)).square().sum() / len(images)).to(dtype)
