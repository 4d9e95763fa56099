"""Data sets of pictures and captions, their batches, truths and relevance.

>>> dataset = load_dataset("scenes", split="val", size=2, text_detail=1.0)
>>> len(dataset), len(dataset.captions), dataset.image(0).size
(2, 10, (48, 48))
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rvlr_lib.data.emoji import load_emoji
from rvlr_lib.data.imbalance import ImbalanceSpec, impose, mismatch_index
from rvlr_lib.data.pairs import Batch, ImageTextDataset, PixelSource, augment, contact_sheet, iterate_batches
from rvlr_lib.data.relevance import clean_caption, rouge_l_relevance
from rvlr_lib.data.scenes import load_scenes
from rvlr_lib.data.truth import Facts, SceneViews, Truth, bayes_ceiling, shown_share, told_share

LOADERS: dict[str, Callable[..., ImageTextDataset]] = {"emoji": load_emoji, "scenes": load_scenes}

__all__ = [
    "LOADERS",
    "Batch",
    "Facts",
    "ImageTextDataset",
    "ImbalanceSpec",
    "PixelSource",
    "SceneViews",
    "Truth",
    "augment",
    "bayes_ceiling",
    "clean_caption",
    "contact_sheet",
    "impose",
    "iterate_batches",
    "load_dataset",
    "mismatch_index",
    "rouge_l_relevance",
    "shown_share",
    "told_share",
]


def load_dataset(
    name_or_path: str,
    *,
    split: str,
    image_root: str | None = None,
    imbalance: ImbalanceSpec | None = None,
    **options: Any,
) -> ImageTextDataset:
    """Load one split of a data set by name.

    Args:
        name_or_path: ``scenes`` or ``emoji``.
        split: ``train``, ``val`` or ``test``.
        image_root: Folder of the pictures; the embedded sets carry their own and take none.
        imbalance: The dial, see :class:`ImbalanceSpec`; scenes then tell all, or what the dial says, not 0.6.
        options: Settings of that data set, see ``load_scenes`` and ``load_emoji``.

    Raises:
        ValueError: If the name, the split or an option is unknown, or an option's value is not lawful.
    """
    if name_or_path not in LOADERS:
        raise ValueError(f"data set {name_or_path!r} is unknown; choose one of: {', '.join(LOADERS)}")
    if image_root:
        raise ValueError(f"image_root={image_root!r}: {name_or_path} carries its own pictures; leave it out")
    loader = LOADERS[name_or_path]
    known = [name for name in inspect.signature(loader).parameters if name != "split"]
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r} is unknown to {name_or_path}; it has: {', '.join(known)}")
    if imbalance is None:
        return loader(split=split, **options)
    here = imbalance.on(split)
    if name_or_path == "scenes":  # words and tiles go where the scenes are drawn, so that the truth stays known
        taken = {"text_detail": here.text_detail, "image_visibility": here.image_visibility}
        if here.image_fault != "occlusion":
            taken.pop("image_visibility")
        for name in taken.keys() & options.keys():
            raise ValueError(f"{name} is given twice: by itself and in imbalance")
        options |= taken
        left = here.image_visibility if "image_visibility" not in taken else 1.0
        here = replace(here, text_detail=1.0, image_visibility=left)
    return impose(loader(split=split, **options), here)
