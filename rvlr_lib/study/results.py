"""Makers of result records from features: retrieval under every relevance, structure, re-ranking, provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.data import bayes_ceiling
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import write_json
from rvlr_lib.evaluation.evaluate import Features, evaluate, headline_metrics, mean_of, noise_floor
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.models.fusion import FusionEncoder

STRUCTURE = ("i2i/NDCG@10/above_floor", "t2t_no_siblings/NDCG@10/above_floor")


def make_reference(folder: Path, *, dataset: ImageTextDataset, info: dict[str, Any], width: int, seed: int) -> None:
    """Write the record of a row without a model: random features of a ``width``, or for 0 the ceiling of scenes."""
    galleries = [] if width or dataset.scene is None else dataset.gallery_sets
    reports = noise_floor(dataset, width, seed) if width else {"latent": mean_of(map(bayes_ceiling, galleries))}
    record = {"metrics": next(iter(reports.values())), "metrics_by_relevance": reports, "structure": {}}
    _write(folder, dataset, info, record)


def make_result(
    folder: Path,
    *,
    features: Features,
    dataset: ImageTextDataset,
    info: dict[str, Any],
    device: torch.device,
    training: dict[str, Any] | None = None,
    rerank: tuple[FusionEncoder, tuple[Tensor, Tensor, Tensor], int] | None = None,
    **options: Any,
) -> None:
    """Write ``folder/result.json``, the record of ``features`` on the test split.

    ``info`` is its provenance, ``training`` the record of the training; ``options`` are those of ``evaluate``.
    ``rerank``: a fusion encoder; image tokens, text tokens and their mask; and how many candidates it re-ranks.
    """
    matching = None
    if rerank is not None and len(dataset.gallery_sets) == 1:
        fusion, tokens, top_k = rerank
        matching = matching_scores(fusion, *tokens, features, top_k, device=device)
    record = evaluate(features, dataset, matching=matching, official=training is not None, device=device, **options)
    _write(folder, dataset, info, record | ({"training": training} if training else {}))


def validation_scores(features: Features, dataset: ImageTextDataset, device: torch.device) -> dict[str, float]:
    """``r_mean`` and ``structure``, the mean above-floor NDCG@10 within the modalities (headline relevance)."""
    report = headline_metrics(features, dataset, ks_ndcg=(10,), device=device)
    return {"r_mean": report["r_mean"], "structure": sum(report[key] for key in STRUCTURE) / len(STRUCTURE)}


def _write(folder: Path, dataset: ImageTextDataset, info: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    data = {"data": dataset.fingerprint, "data_info": dataset.info, "rouge": "coco" if not dataset.scene else None}
    write_json(folder / "result.json", {**record, "provenance": {**info, **data}})
