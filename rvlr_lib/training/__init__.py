"""Training: batches, objectives, one loop, several processes, checkpoints."""
# ruff: noqa: F401 - these names are for the other rooms

from rvlr_lib.training.batches import FeatureBatches, Inputs, PixelBatches, derived_seed
from rvlr_lib.training.checkpoint import checkpoints_in, last_checkpoint, read_checkpoint, write_checkpoint
from rvlr_lib.training.features import (
    Features,
    FeatureSet,
    encode,
    encode_captions,
    encode_images,
    encode_tokens,
    read_features,
)
from rvlr_lib.training.loop import Execution, Fitted, choose_device, cross_modal_recall, fit
from rvlr_lib.training.objectives import Objective, gradient_shares, shuffle_teachers, warm_heads
from rvlr_lib.training.processes import broadcast_json, is_main, process_group, same_everywhere
