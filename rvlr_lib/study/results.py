"""From features to the record of a result: retrieval under every relevance, structure, re-ranking, provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.config import MethodSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import write_json
from rvlr_lib.evaluation.evaluate import Features, ceiling, evaluate, noise_floor, retrieval_metrics
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.models.fusion import FusionEncoder

STRUCTURE = ("i2i/NDCG@10/above_floor", "t2t_no_siblings/NDCG@10/above_floor")


def make_reference(folder: Path, *, dataset: ImageTextDataset, info: dict[str, Any], width: int, seed: int) -> None:
    """The record of a row without a model: the Bayes ceiling, or random features where they have a width."""
    reports = noise_floor(dataset, width, seed) if width else {"latent": ceiling(dataset)}
    found = {"metrics": next(iter(reports.values())), "metrics_by_relevance": reports, "structure": {}}
    _write(folder, dataset, info, found)


def make_result(
    folder: Path,
    *,
    features: Features,
    dataset: ImageTextDataset,
    references: Mapping[str, Features],
    method: MethodSettings,
    info: dict[str, Any],
    device: torch.device,
    common_space: bool = True,
    training: dict[str, Any] | None = None,
    fusion: FusionEncoder | None = None,
    tokens: tuple[Tensor, Tensor, Tensor] | None = None,
    top_k: int = 0,
) -> None:
    """The record of the space of ``features`` of a test split, ``folder/result.json``.

    ``references`` are spaces that its structure is compared with, ``info`` its provenance, ``training`` how that went.
    Without a ``common_space`` (teachers) pictures and captions are not compared. ``fusion`` ranks the best ``top_k``
    candidates again, from image tokens, text tokens and their mask.
    """
    matching = None
    if fusion is not None and tokens is not None and len(dataset.gallery_sets()) == 1:
        matching = matching_scores(fusion, *tokens, features, top_k, device=device)
    found = evaluate(
        features,
        dataset,
        references=references,
        matching=matching,
        official=training is not None,
        common_space=common_space,
        mixed_t2it=method.mixed_t2it,
        mixed_scores=method.mixed_scores,
        device=device,
    )
    _write(folder, dataset, info, found | ({"training": training} if training else {}))


def validation_scores(features: Features, dataset: ImageTextDataset) -> dict[str, float]:
    """``r_mean`` and ``structure``: the mean above-floor NDCG@10 within the modalities (headline relevance)."""
    report = next(iter(retrieval_metrics(features, dataset).values()))
    return {"r_mean": report["r_mean"], "structure": sum(report[key] for key in STRUCTURE) / len(STRUCTURE)}


def _write(folder: Path, dataset: ImageTextDataset, info: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    data = {
        "data": dataset.fingerprint(),
        "data_info": dataset.info,
        "rouge": "coco" if dataset.scene is None else None,
    }
    write_json(folder / "result.json", {**found, "provenance": {**info, **data}})
