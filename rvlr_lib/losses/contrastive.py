"""Contrast between two views of the same items (official ``itc``)."""

from torch import Tensor

from rvlr_lib.losses.representation import representation_distillation_loss


def image_text_contrastive_loss(
    image_features: Tensor, text_features: Tensor, temperature: float | Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE between images and captions, the official ``itc``.

    ``(CE(z w^T) + CE(w z^T)) / 2`` with the cross-entropy of
    :func:`~rvlr_lib.losses.representation_distillation_loss`.

    Args:
        image_features: ``[B, D]`` unit rows ``z``.
        text_features: ``[B, D]`` unit rows ``w``.
        temperature: any real number but zero, never clamped.
        image_ids: ``[B]``; rows with equal ids share the target mass. ``None``: each row is its own image.

    Returns:
        Scalar in nats.

    Raises:
        ValueError: shapes differ, fewer than two rows, temperature zero.

    >>> import torch
    >>> rows = torch.eye(4)
    >>> round(float(image_text_contrastive_loss(rows, rows, 0.1)), 6)
    0.000136
    """
    return representation_distillation_loss(image_features, text_features, temperature, image_ids, bidirectional=True)


def pair_alignment_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Mean squared distance of the pairs, ``mean |z - w|^2``: pulls each pair together and pushes nothing apart.

    On top of the contrastive loss its weight says how strictly pairs must coincide (Wang and Isola 2020, alignment).

    Args:
        image_features: ``[B, D]`` unit rows ``z``.
        text_features: ``[B, D]`` unit rows ``w``.

    Returns:
        Scalar, 0 to 4.

    Raises:
        ValueError: shapes differ or fewer than two rows.

    >>> import torch
    >>> float(pair_alignment_loss(torch.eye(2), -torch.eye(2)))
    4.0
    """
    if image_features.shape != text_features.shape or image_features.ndim != 2 or len(image_features) < 2:
        shapes = f"{tuple(image_features.shape)} and {tuple(text_features.shape)}"
        raise ValueError(f"expected image and text features [B, D] of two or more pairs, got {shapes}")
    return (image_features - text_features).square().sum(dim=1).mean()


def intra_modal_contrastive_loss(
    first_view: Tensor, second_view: Tensor, temperature: float | Tensor, image_ids: Tensor | None = None
) -> Tensor:
    """The same contrast within one modality: two crops of an image, or two captions of it.

    Args, result and errors as :func:`image_text_contrastive_loss`; this is how the teachers are trained.
    """
    return image_text_contrastive_loss(first_view, second_view, temperature, image_ids)
