"""Losses as short pure functions, each of which can be copied into another project."""

# ruff: noqa: F401
from rvlr_lib.losses.contrastive import (
    cross_modal_cyclic_loss,
    image_text_contrastive_loss,
    in_modal_cyclic_loss,
    intra_modal_contrastive_loss,
    pair_alignment_loss,
    representation_distillation_loss,
)
from rvlr_lib.losses.distances import DISTANCES
from rvlr_lib.losses.matching import image_text_matching_loss, sample_hard_negatives
from rvlr_lib.losses.structure import StructureTerms, mean_relation_loss, structure_distillation_loss
from rvlr_lib.losses.weights import FusionWeight, LossWeights, anchor_loss
