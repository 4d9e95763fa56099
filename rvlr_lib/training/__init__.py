"""Training: batches, objectives, one loop, several processes, checkpoints."""

from rvlr_lib.training.batches import Batches, FeatureBatches, Inputs, PixelBatches, derived_seed
from rvlr_lib.training.checkpoint import checkpoints_in, last_checkpoint, read_checkpoint, write_checkpoint
from rvlr_lib.training.features import Features, FeatureSet, encode, encode_captions, encode_images, read_features
from rvlr_lib.training.loop import Execution, Fitted, choose_device, cross_modal_recall, fit
from rvlr_lib.training.objectives import Objective, gradient_shares, shuffle_teachers, warm_heads
from rvlr_lib.training.processes import (
    add_up,
    broadcast_json,
    is_main,
    leave,
    max_over_processes,
    own_rows,
    process_group,
    processes,
    same_everywhere,
)

__all__ = [
    "Batches",
    "Execution",
    "FeatureBatches",
    "FeatureSet",
    "Features",
    "Fitted",
    "Inputs",
    "Objective",
    "PixelBatches",
    "add_up",
    "broadcast_json",
    "checkpoints_in",
    "choose_device",
    "cross_modal_recall",
    "derived_seed",
    "encode",
    "encode_captions",
    "encode_images",
    "fit",
    "gradient_shares",
    "is_main",
    "last_checkpoint",
    "leave",
    "max_over_processes",
    "own_rows",
    "process_group",
    "processes",
    "read_checkpoint",
    "read_features",
    "same_everywhere",
    "shuffle_teachers",
    "warm_heads",
    "write_checkpoint",
]
