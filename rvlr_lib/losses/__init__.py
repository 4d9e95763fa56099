"""Losses as short pure functions; every name here can be lifted into another project."""

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
from rvlr_lib.losses.weights import FusionWeight, LossWeights, anchor_loss, weighted_sum

__all__ = [
    "DISTANCES",
    "FusionWeight",
    "LossWeights",
    "StructureTerms",
    "anchor_loss",
    "cross_modal_cyclic_loss",
    "image_text_contrastive_loss",
    "image_text_matching_loss",
    "in_modal_cyclic_loss",
    "intra_modal_contrastive_loss",
    "mean_relation_loss",
    "pair_alignment_loss",
    "representation_distillation_loss",
    "sample_hard_negatives",
    "structure_distillation_loss",
    "weighted_sum",
]
