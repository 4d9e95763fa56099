"""Reproduction companion for RVLR: rebalanced vision-language retrieval considering structure-aware distillation.

The core (``rvlr_lib.losses``, ``rvlr_lib.metrics``) is pure functions on tensors; it needs torch and NumPy alone.
"""

__version__ = "0.1.0"
