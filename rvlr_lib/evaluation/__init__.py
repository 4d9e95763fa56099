"""Evaluation of features. Others use its modules by name:

- ``evaluate``: metrics under every relevance, floors, ceilings, structure, bending
- ``rerank``: the best candidates ranked again by the matching head
- ``baselines``: training-free peers, and their rows with parameters chosen on validation
- ``curves``: mixed corpora, perturbed queries, weights between two models, items that moved
- ``audit``: what can be said of any features; ``own`` reads them
- ``chunks``: how much to compute at once on a device
"""

__all__ = ["audit", "baselines", "chunks", "curves", "evaluate", "own", "rerank"]
