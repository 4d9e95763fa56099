"""Image-text matching with hard negatives (official ``itm``)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib.losses._checks import nonzero_temperature, same_image
from rvlr_lib.similarity import as_tensor


@torch.no_grad()
def sample_hard_negatives(
    similarity: Tensor,
    temperature: float | Tensor,
    image_ids: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one negative image for each text, then one negative text for each image.

    The chance of a candidate is ``softmax(similarity / temperature) + 1e-5`` over all candidates, 0 for those of
    the same image.

    Args:
        similarity: ``[B images, B texts]`` cosines. No gradient flows through the draw.
        temperature: any real number but zero; a negative one prefers the easy negatives.
        image_ids: ``[B]``, numbers or strings; ``None``: only the own index is excluded.
        generator: random state; the same draws as one ``multinomial`` call per row on the CPU.

    Returns:
        ``(negative image of each text, negative text of each image)``, each int64 ``[B]``.

    Raises:
        ValueError: not square, fewer than two rows, not finite, temperature zero, or a row without a negative.

    >>> [drawn.tolist() for drawn in sample_hard_negatives(torch.eye(2), 0.1)]
    [[1, 0], [1, 0]]
    """
    similarity = as_tensor("similarity", similarity)
    if similarity.ndim != 2 or len(similarity) != similarity.shape[1] or len(similarity) < 2:
        raise ValueError(f"similarity must be [B, B] with B >= 2, got {tuple(similarity.shape)}")
    same = same_image(image_ids, len(similarity), similarity.device)
    if same.all(dim=1).any():
        raise ValueError("a row has no negative: all its candidates show the same image")
    dtype = torch.promote_types(similarity.dtype, torch.float32)
    logits = similarity.to(dtype) / nonzero_temperature(temperature)
    if not logits.isfinite().all():
        raise ValueError("similarity / temperature must be finite to draw negatives from")
    images, texts = (
        torch.multinomial(F.softmax(rows, dim=1).add_(1e-5).masked_fill_(same, 0), 1, generator=generator)[:, 0]
        for rows in (logits.T, logits)
    )
    return images, texts


def image_text_matching_loss(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Two-way cross-entropy of the matching head, the official ``itm``.

    Mean over the ``3B`` rows: ``positive_logits [B, 2]`` of pairs that belong together (class 1) and
    ``negative_logits [2B, 2]`` of hard negatives (class 0). ValueError for other shapes or ``B < 2``.
    """
    positive, negative = as_tensor("positive_logits", positive_logits), as_tensor("negative_logits", negative_logits)
    if positive.ndim != 2 or len(positive) < 2 or positive.shape[1] != 2 or negative.shape != (2 * len(positive), 2):
        raise ValueError(
            "expected positive_logits [B, 2] with B >= 2 and negative_logits [2B, 2], "
            f"got {tuple(positive.shape)} and {tuple(negative.shape)}"
        )
    logits = torch.cat([positive, negative])
    labels = torch.arange(len(logits), device=logits.device) < len(positive)
    return F.cross_entropy(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels.long())
