"""Losses as short pure functions; every name here can be lifted into another project."""

from rvlr_lib.losses.contrastive import (
    image_text_contrastive_loss,
    intra_modal_contrastive_loss,
    pair_alignment_loss,
)
from rvlr_lib.losses.distances import DISTANCES
from rvlr_lib.losses.matching import image_text_matching_loss, sample_hard_negatives
from rvlr_lib.losses.representation import representation_distillation_loss
from rvlr_lib.losses.structure import StructureTerms, structure_distillation_loss
from rvlr_lib.losses.weights import FusionWeight, LossWeights, weighted_sum
from rvlr_lib.training.gather import gather_rows

__all__ = [
    "DISTANCES",
    "FusionWeight",
    "LossWeights",
    "StructureTerms",
    "gather_rows",
    "image_text_contrastive_loss",
    "image_text_matching_loss",
    "intra_modal_contrastive_loss",
    "pair_alignment_loss",
    "representation_distillation_loss",
    "sample_hard_negatives",
    "structure_distillation_loss",
    "weighted_sum",
]
