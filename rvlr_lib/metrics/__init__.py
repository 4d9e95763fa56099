"""Retrieval and structure metrics on plain tensors and arrays; percent as Python floats."""

from rvlr_lib.metrics.protocol import evaluate_retrieval
from rvlr_lib.metrics.ranking import ndcg_and_floor, ndcg_at_k, recall_at_k
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
    "alignment",
    "continuity",
    "evaluate_retrieval",
    "knn_overlap",
    "linear_cka",
    "modality_gap",
    "ndcg_and_floor",
    "ndcg_at_k",
    "recall_at_k",
    "relational_similarity",
    "trustworthiness",
    "uniformity",
]
