"""Retrieval and structure metrics of tensors, arrays or lists; statistics over seeds."""

# ruff: noqa: F401
from rvlr_lib.metrics.protocol import evaluate_folds, evaluate_retrieval
from rvlr_lib.metrics.ranking import above_floor, finite_rows, ndcg_and_floor, ndcg_at_k, recall_at_k
from rvlr_lib.metrics.statistics import VERDICTS, Effect, Verdict, paired_effect, power, verdicts
from rvlr_lib.metrics.structure import (
    alignment,
    knn_overlap,
    linear_cka,
    modality_gap,
    neighbour_share,
    relational_similarity,
    relative_modality_gap,
    uniformity,
)
