"""Evaluation: metrics of trained features, re-ranking, audits of features from elsewhere."""
