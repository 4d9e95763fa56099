"""Data sets of pictures and captions, their ground truth, graded relevance and the dial.

>>> dataset = load_dataset("scenes", split="val", size=2, text_detail=1.0)
>>> len(dataset), len(dataset.captions), dataset.image(0).size
(2, 10, (48, 48))
"""
# ruff: noqa: F401 - re-exported for the other packages

import inspect
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rvlr_lib.data.clipart import clipart_stamps, load_clipart
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset, augment
from rvlr_lib.data.dial import ImbalanceSpec, apply_imbalance, mismatch_index
from rvlr_lib.data.emoji import load_emoji
from rvlr_lib.data.own import PUBLISHED_SETS, load_files, read_once
from rvlr_lib.data.relevance import clean_caption, embedding_relevance, rouge_l_relevance
from rvlr_lib.data.scenes import load_scenes
from rvlr_lib.data.truth import bayes_ceiling, mentioned_share, shown_share
from rvlr_lib.tables import refuse_unknown

LOADERS: dict[str, Any] = {"clipart": load_clipart, "emoji": load_emoji, "scenes": load_scenes}
NAMES = (*LOADERS, *PUBLISHED_SETS)  # named data sets, each with a preset


def load_dataset(
    name_or_path: str,
    *,
    split: str,
    image_root: str | None = None,
    imbalance: ImbalanceSpec | None = None,
    **options: Any,
) -> ImageTextDataset:
    """Load one split of a named data set or of your own pictures.

    Args:
        name_or_path: ``scenes``, ``emoji`` or ``clipart``; ``flickr30k``, ``coco`` or ``vizwiz`` if their files are in
            ``data/NAME`` or ``$RVLR_DATA/NAME``; or an annotation file, a folder or an index of your own.
        split: ``train``, ``val`` or ``test``.
        image_root: folder of the pictures; refused for scenes and emoji, which bring their own.
        imbalance: the dial; its ``text_detail`` then replaces the default of scenes, 0.6.
        options: those of ``load_scenes``, ``load_emoji``, ``load_clipart`` or ``load_files``; ValueError names
            unknown options, wrong values, names and splits, and faulty files.
    """
    name = str(name_or_path)
    loader = LOADERS.get(name) or partial(load_files, name)
    parameters = list(inspect.signature(loader).parameters)
    valid = [parameter for parameter in parameters if parameter not in ("split", "image_root")]
    refuse_unknown([split], SPLITS, "unknown split")
    if not (name in NAMES or Path(name).suffix or "/" in name or os.path.exists(name)):
        raise ValueError(f"data set {name!r} is unknown; valid: {', '.join(NAMES)}, or a file or folder")
    if image_root and "image_root" not in parameters:
        raise ValueError(f"image_root={image_root!r}: {name} has its own pictures; leave it out")
    refuse_unknown(options, valid, f"{name}: unknown option")
    dial = (imbalance or ImbalanceSpec()).for_split(split)
    if name == "scenes" and imbalance:  # dropped as the scenes are drawn, so that the truth stays known
        drawn, visibility = {"text_detail": dial.text_detail}, dial.image_visibility
        if dial.image_fault == "occlusion":
            drawn["image_visibility"], visibility = visibility, 1.0
        for option in drawn.keys() & options.keys():
            raise ValueError(f"{option} is given twice: as an option and in imbalance")
        options |= drawn
        dial = replace(dial, text_detail=1.0, image_visibility=visibility)
    if image_root:
        options["image_root"] = image_root
    return apply_imbalance(loader(split=split, **options), dial)


def dataset_stamp(name_or_path: str, image_root: str | None = None) -> tuple[Any, ...]:
    """Stamp that changes with any file that a data set is read from; part of every in-process cache key."""
    if name_or_path == "clipart":
        return clipart_stamps(image_root)
    # scenes and emoji come from code and packages, which do not change within a process
    return () if name_or_path in LOADERS else tuple(read_once(name_or_path, image_root or None).stamps)
