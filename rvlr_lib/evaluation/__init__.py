"""Evaluation of features: retrieval, structure, re-ranking, training-free baselines, curves and audits."""
