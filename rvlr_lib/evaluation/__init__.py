"""Evaluation of features: retrieval and structure, re-ranking, training-free peers, curves and audits."""
