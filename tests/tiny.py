"""A tiny model with random weights, 48 px and 96 wide, for tests of what no weights are needed for."""

from pathlib import Path

import open_clip

from rvlr_lib.models import Towers, build_towers

CONFIG = Path(__file__).parent / "models" / "tiny_48.json"


def tiny_towers(seed: int = 0, **options) -> Towers:
    """Towers of ``tiny_48``; options as of ``build_towers``."""
    open_clip.add_model_config(CONFIG)
    return build_towers("tiny_48", seed=seed, **options)
