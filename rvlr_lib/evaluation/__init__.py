"""Evaluation of features: retrieval, structure, re-ranking, training-free peers, curves and audits."""
