"""Image-text matching with hard negatives (official ``itm``)."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from rvlr_lib.losses._checks import number, readable, same_image
from rvlr_lib.similarity import as_tensor, full_precision


@torch.no_grad()
def sample_hard_negatives(
    similarity: Tensor, temperature: float | Tensor, image_ids: Tensor | None = None, generator: Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one negative image for each text, then one negative text for each image: int64 ``[B]`` and ``[B]``.

    A candidate's weight is ``softmax(similarity / temperature) + 1e-5``, and 0 if it shows the same image (``image_ids
    [B]``, numbers or strings; None: each index its own). ``similarity [B images, B texts]`` holds cosines; no gradient
    flows. ``generator`` makes the draws of one ``multinomial`` call per row. ValueError unless square with at least two
    rows; on the CPU (a GPU is not waited for) also if not finite, or if a row has no negative.
    """
    similarity = as_tensor("similarity", similarity)
    if similarity.ndim != 2 or len(similarity) != similarity.shape[1] or len(similarity) < 2:
        raise ValueError(f"similarity must be [B, B] with B >= 2, got {tuple(similarity.shape)}")
    same = same_image(image_ids, len(similarity), similarity.device)
    if readable(same) and same.all(dim=1).any():
        raise ValueError("a row has no negative: all its candidates show the same image")
    logits = full_precision(similarity)
    logits = logits / number("temperature", temperature, logits)
    if readable(logits) and not logits.isfinite().all():
        raise ValueError("similarity / temperature must be finite to draw negatives from")
    weights = (F.softmax(rows, dim=1).add_(1e-5).masked_fill_(same, 0) for rows in (logits.T, logits))
    # argmax of p / Exp(1) draws from p exactly as torch.multinomial does, which would wait for the device
    images, texts = ((p / torch.empty_like(p).exponential_(generator=generator)).argmax(dim=1) for p in weights)
    return images, texts


def image_text_matching_loss(positive_logits: Tensor, negative_logits: Tensor) -> Tensor:
    """Two-way cross-entropy of the matching head (official ``itm``), mean over the ``3B`` rows.

    ``positive_logits [B, 2]``: matched pairs (class 1); ``negative_logits [2B, 2]``: hard negatives (class 0).
    ValueError for other shapes or ``B < 2``.
    """
    positive, negative = as_tensor("positive_logits", positive_logits), as_tensor("negative_logits", negative_logits)
    if positive.ndim != 2 or len(positive) < 2 or positive.shape[1] != 2 or negative.shape != (2 * len(positive), 2):
        shapes = f"positive_logits {tuple(positive.shape)} and negative_logits {tuple(negative.shape)}"
        raise ValueError(f"expected logits [B, 2] and [2B, 2] with B >= 2, got {shapes}")
    logits = torch.cat([positive, negative])
    labels = torch.arange(len(logits), device=logits.device) < len(positive)
    loss = F.cross_entropy(full_precision(logits), labels.long())
    return loss.to(logits.dtype) if logits.is_floating_point() else loss
