"""Data sets of pictures and captions, their truths, relevance and the dial.

>>> dataset = load_dataset("scenes", split="val", size=2, text_detail=1.0)
>>> len(dataset), len(dataset.captions), dataset.image(0).size
(2, 10, (48, 48))
"""
# ruff: noqa: F401 - these names are for the other rooms

import inspect
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rvlr_lib.data.clipart import clipart_stamps, load_clipart
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, augment
from rvlr_lib.data.dial import ImbalanceSpec, impose, mismatch_index
from rvlr_lib.data.emoji import load_emoji
from rvlr_lib.data.own import PREPARED, described, load_files
from rvlr_lib.data.relevance import clean_caption, embedding_relevance, rouge_l_relevance
from rvlr_lib.data.scenes import load_scenes
from rvlr_lib.data.truth import bayes_ceiling, shown_share, told_share

LOADERS: dict[str, Any] = {"clipart": load_clipart, "emoji": load_emoji, "scenes": load_scenes}
NAMES = (*LOADERS, *PREPARED)  # data sets known by name, each with a preset


def load_dataset(
    name_or_path: str,
    *,
    split: str,
    image_root: str | None = None,
    imbalance: ImbalanceSpec | None = None,
    **options: Any,
) -> ImageTextDataset:
    """Load one split of a data set by name, or of your own pictures.

    Args:
        name_or_path: ``scenes``, ``emoji`` or ``clipart``; ``flickr30k``, ``coco`` or ``vizwiz`` where their files lie
            in ``data/NAME`` or ``$RVLR_DATA/NAME``; or an annotation file, a folder or an index of your own.
        split: ``train``, ``val`` or ``test``.
        image_root: folder of the pictures; scenes and emoji carry their own and take none.
        imbalance: the dial; scenes then tell all, or what the dial says, not 0.6.
        options: of ``load_scenes``, ``load_emoji``, ``load_clipart`` or ``load_files``; a ValueError names one that is
            unknown, as it does a wrong value, name or split, and files that are not as they must be.
    """
    name = str(name_or_path)
    loader = LOADERS.get(name) or partial(load_files, name)
    taken = list(inspect.signature(loader).parameters)
    known = [option for option in taken if option not in ("split", "image_root")]
    if split not in SPLITS:
        raise ValueError(f"split {split!r} is unknown; {name} has {', '.join(SPLITS)}")
    if not (name in NAMES or Path(name).suffix or "/" in name or os.path.exists(name)):
        raise ValueError(f"data set {name!r} is unknown; choose one of: {', '.join(NAMES)}, or give a file or folder")
    if image_root and "image_root" not in taken:
        raise ValueError(f"image_root={image_root!r}: {name} carries its own pictures; leave it out")
    if unknown := [option for option in options if option not in known]:
        raise ValueError(f"option {unknown[0]!r} is unknown to {name}; it has: {', '.join(known)}")
    here = (imbalance or ImbalanceSpec()).on(split)
    if name == "scenes" and imbalance:  # words and tiles go where scenes are drawn: the truth stays known
        drawn, left = {"text_detail": here.text_detail}, here.image_visibility
        if here.image_fault == "occlusion":
            drawn["image_visibility"], left = left, 1.0
        for option in drawn.keys() & options.keys():
            raise ValueError(f"{option} is given twice: by itself and in imbalance")
        options |= drawn
        here = replace(here, text_detail=1.0, image_visibility=left)
    if image_root:
        options["image_root"] = image_root
    return impose(loader(split=split, **options), here)


def dataset_stamp(name_or_path: str, image_root: str | None = None) -> tuple[Any, ...]:
    """What changes whenever a file changes that a data set is read from; belongs into every cache in the process."""
    if name_or_path == "clipart":
        return clipart_stamps(image_root)
    # the others of LOADERS are made by code and packages, which do not change within a process
    return () if name_or_path in LOADERS else tuple(described(name_or_path, image_root or None).stamps)
