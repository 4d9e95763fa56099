"""Data sets of pictures and captions, their batches, truths and relevance.

>>> dataset = load_dataset("scenes", split="val", size=2, text_detail=1.0)
>>> len(dataset), len(dataset.captions), dataset.image(0).size
(2, 10, (48, 48))
"""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rvlr_lib.data.dataset import Batch, ImageTextDataset, PixelSource, augment, contact_sheet, iterate_batches
from rvlr_lib.data.dial import ImbalanceSpec, impose, mismatch_index
from rvlr_lib.data.emoji import load_emoji
from rvlr_lib.data.readers import PREPARED, load_files, prepared_index
from rvlr_lib.data.relevance import clean_caption, embedding_relevance, rouge_l_relevance
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
    "embedding_relevance",
    "impose",
    "iterate_batches",
    "load_dataset",
    "load_files",
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
    """Load one split of a data set by name, or of your own pictures.

    Args:
        name_or_path: ``scenes`` or ``emoji``; ``flickr30k``, ``coco`` or ``vizwiz`` once ``rvlr data prepare`` has
            written their index; or an annotation file, a folder or an index of your own (:func:`load_files`).
        split: ``train``, ``val`` or ``test``.
        image_root: Folder of the pictures; the embedded sets carry their own and take none.
        imbalance: The dial, see :class:`ImbalanceSpec`; scenes then tell all, or what the dial says, not 0.6.
        options: Settings of that data set, see ``load_scenes``, ``load_emoji`` and ``load_files``.

    Raises:
        ValueError: If the name, the split or an option is unknown, an option's value is not lawful, or the files are
            not as they must be.
    """
    loader: Callable[..., ImageTextDataset] = LOADERS.get(name_or_path, load_files)
    own = name_or_path not in LOADERS
    if name_or_path in PREPARED:
        first: dict[str, Any] = {"path": prepared_index(name_or_path), "image_root": image_root or None}
    elif own:
        if not (Path(name_or_path).exists() or Path(name_or_path).suffix or "/" in name_or_path):
            names = ", ".join((*LOADERS, *PREPARED))
            raise ValueError(f"data set {name_or_path!r} is unknown; choose one of: {names}, or give a file or folder")
        first = {"path": name_or_path, "image_root": image_root or None}
    elif image_root:
        raise ValueError(f"image_root={image_root!r}: {name_or_path} carries its own pictures; leave it out")
    else:
        first = {}
    known = [name for name in inspect.signature(loader).parameters if name not in ("split", "path", "image_root")]
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r} is unknown to {name_or_path}; it has: {', '.join(known)}")
    spec = imbalance or ImbalanceSpec()
    here = spec.on(split)
    if name_or_path == "scenes" and imbalance:  # words and tiles go where scenes are drawn: the truth stays known
        taken = {"text_detail": here.text_detail, "image_visibility": here.image_visibility}
        if here.image_fault != "occlusion":
            taken.pop("image_visibility")
        for name in taken.keys() & options.keys():
            raise ValueError(f"{name} is given twice: by itself and in imbalance")
        options |= taken
        left = here.image_visibility if "image_visibility" not in taken else 1.0
        here = replace(here, text_detail=1.0, image_visibility=left)
    dataset = impose(loader(split=split, **first, **options), here)
    return replace(dataset, name=name_or_path) if name_or_path in PREPARED else dataset


def dataset_stamp(name, image_root=None):
    return ()
