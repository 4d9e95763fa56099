"""Retrieval and structure metrics on plain tensors and arrays, percent as Python floats; statistics over seeds."""

from rvlr_lib.metrics.protocol import evaluate_folds, evaluate_retrieval
from rvlr_lib.metrics.ranking import average, ndcg_and_floor, ndcg_at_k, recall_at_k
from rvlr_lib.metrics.statistics import (
    MAX_CLAIMS,
    VERDICTS,
    Effect,
    Verdict,
    cluster_mean,
    holm,
    paired_differences,
    paired_effect,
    power,
    verdicts,
)
from rvlr_lib.metrics.structure import (
    alignment,
    continuity,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    relative_modality_gap,
    trustworthiness,
    uniformity,
)

__all__ = [
    "MAX_CLAIMS",
    "VERDICTS",
    "Effect",
    "Verdict",
    "alignment",
    "average",
    "cluster_mean",
    "continuity",
    "evaluate_folds",
    "evaluate_retrieval",
    "holm",
    "knn_overlap",
    "linear_cka",
    "modality_gap",
    "ndcg_and_floor",
    "ndcg_at_k",
    "paired_differences",
    "paired_effect",
    "power",
    "recall_at_k",
    "relational_similarity",
    "relative_modality_gap",
    "trustworthiness",
    "uniformity",
    "verdicts",
]
