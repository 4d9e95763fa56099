"""Retrieval and structure metrics on plain tensors and arrays, percent as Python floats; statistics over seeds."""

from rvlr_lib.metrics.folds import evaluate_folds
from rvlr_lib.metrics.protocol import evaluate_retrieval
from rvlr_lib.metrics.ranking import ndcg_and_floor, ndcg_at_k, recall_at_k
from rvlr_lib.metrics.statistics import (
    Interval,
    Verdict,
    bootstrap_false_holds,
    cluster_mean,
    false_holds,
    holm,
    paired_differences,
    t_interval,
    verdicts,
)
from rvlr_lib.metrics.structure import (
    alignment,
    continuity,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    trustworthiness,
    uniformity,
)

__all__ = [
    "Interval",
    "Verdict",
    "alignment",
    "bootstrap_false_holds",
    "cluster_mean",
    "continuity",
    "evaluate_folds",
    "evaluate_retrieval",
    "false_holds",
    "holm",
    "knn_overlap",
    "linear_cka",
    "modality_gap",
    "ndcg_and_floor",
    "ndcg_at_k",
    "paired_differences",
    "recall_at_k",
    "relational_similarity",
    "t_interval",
    "trustworthiness",
    "uniformity",
    "verdicts",
]
