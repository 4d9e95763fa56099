"""A tiny model (48 px, width 96, random weights), and a small collection of drawn pictures."""

from pathlib import Path

import open_clip

from rvlr_lib.data import load_dataset
from rvlr_lib.models import Towers, build_towers

CONFIG = Path(__file__).parent / "models" / "tiny_48.json"


def tiny_towers(seed: int = 0, **options) -> Towers:
    """Towers of ``tiny_48``; options as in ``build_towers``."""
    open_clip.add_model_config(CONFIG)
    return build_towers("tiny_48", seed=seed, **options)


def draw_collection(folder, count):
    """Draw pictures of several sizes as JPEG and PNG files; returns a list of (file name, captions)."""
    scenes = load_dataset("scenes", split="train", size=count, text_detail=1.0)
    collection = []
    for row in range(count):
        name = f"{'ab'[row % 2]}/{row:04d}.{'png' if row % 3 == 0 else 'jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scenes.image(row).resize((60 + row % 7, 50)).save(folder / name, quality=95)
        collection.append((name, [scenes.captions[c] for c in scenes.captions_of(row)[: 1 + row % 5]]))
    return collection
