"""Reproduction companion for RVLR: rebalanced vision-language retrieval considering structure-aware distillation.

The core (``rvlr_lib.losses``, ``rvlr_lib.metrics``) holds pure functions on tensors and needs only torch and NumPy.
"""

__version__ = "0.1.0"
