"""Reproduction companion for RVLR: rebalanced vision-language retrieval considering structure-aware distillation.

The core (``rvlr_lib.losses``, ``rvlr_lib.metrics``) is pure functions on tensors and imports nothing but torch and NumPy.
"""

__version__ = "0.1.0"
