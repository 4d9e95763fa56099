"""The retrieval evaluation on disjoint parts of a gallery, such as COCO 1K."""

from typing import Any

import numpy as np
import torch

from rvlr_lib.metrics.protocol import evaluate_retrieval


def evaluate_folds(
    image_features,
    text_features,
    caption_image,
    relevance,
    *,
    fold_size: int = 1000,
    scores_i2t=None,
    scores_t2i=None,
    image_relevance=None,
    text_relevance=None,
    **options: Any,
) -> dict[str, float]:
    """Mean of :func:`evaluate_retrieval` over disjoint folds of ``fold_size`` consecutive images and their captions.

    COCO 1K is this with 1,000: five folds of the 5,000 test images (the official code takes the first 1,000 alone,
    FIDELITY.md, row 19).

    Args:
        image_features: ``[I, D]``; the other matrices as there, for the whole gallery. Matching scores may have
            been shortlisted in the whole gallery; a fold then has fewer than ``top_k`` of them to a query.
        text_features: ``[C, D]``.
        caption_image: ``[C]``.
        relevance: ``[C, I]``.
        fold_size: images of a fold; must divide ``I``.
        scores_i2t: ``[I, C]``.
        scores_t2i: ``[C, I]``.
        image_relevance: ``[I, I]``.
        text_relevance: ``[C, C]``.
        options: ``protocol``, cut-offs and switches, passed on.

    Returns:
        Percent by key, the unweighted mean over the folds.

    Raises:
        ValueError: ``fold_size`` does not divide ``I``, ``per_query`` is asked for, or as :func:`evaluate_retrieval`.
    """
    images, texts = torch.as_tensor(image_features), torch.as_tensor(text_features)
    owner = torch.as_tensor(caption_image, device=images.device).long()
    if fold_size < 1 or len(images) % fold_size:
        raise ValueError(f"fold_size {fold_size} does not divide {len(images)} images")
    if options.get("per_query"):
        raise ValueError("per_query goes with evaluate_retrieval on the images of one fold")
    if owner.shape != (len(texts),):
        raise ValueError(f"caption_image {tuple(owner.shape)} and text_features {tuple(texts.shape)} do not fit")

    def part(matrix: Any, rows: torch.Tensor, columns: torch.Tensor) -> Any:
        return None if matrix is None else torch.as_tensor(matrix, device=images.device)[rows[:, None], columns]

    reports = []
    for fold in torch.arange(len(images), device=images.device).split(fold_size):
        captions = ((owner >= fold[0]) & (owner <= fold[-1])).nonzero()[:, 0]
        reports.append(
            evaluate_retrieval(
                images[fold],
                texts[captions],
                owner[captions] - fold[0],
                part(relevance, captions, fold),
                scores_i2t=part(scores_i2t, fold, captions),
                scores_t2i=part(scores_t2i, captions, fold),
                image_relevance=part(image_relevance, fold, fold),
                text_relevance=part(text_relevance, captions, captions),
                **options,
            )
        )
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
