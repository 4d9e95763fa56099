"""Evaluation: metrics of features, re-ranking, audits of features from elsewhere, training-free peers and curves."""
