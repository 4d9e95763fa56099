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

from rvlr_lib.data.clipart import clipart_stamps, load_clipart
from rvlr_lib.data.dataset import SPLITS, Batch, ImageTextDataset, PixelSource, augment, iterate_batches
from rvlr_lib.data.dial import ImbalanceSpec, impose, mismatch_index
from rvlr_lib.data.emoji import PACKAGES, load_emoji, package_version
from rvlr_lib.data.own import PREPARED, file_stamps, load_files
from rvlr_lib.data.relevance import clean_caption, embedding_relevance, rouge_l_relevance
from rvlr_lib.data.scenes import load_scenes
from rvlr_lib.data.truth import Facts, SceneViews, Truth, bayes_ceiling, shown_share, told_share

LOADERS: dict[str, Callable[..., ImageTextDataset]] = {
    "clipart": load_clipart,
    "emoji": load_emoji,
    "scenes": load_scenes,
}

__all__ = [
    "LOADERS",
    "PREPARED",
    "SPLITS",
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
    "dataset_stamp",
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
        name_or_path: ``scenes``, ``emoji`` or ``clipart``; ``flickr30k``, ``coco`` or ``vizwiz`` where their files lie in
            ``data/NAME`` or ``$RVLR_DATA/NAME``; or an annotation file, a folder or an index of your own
            (:func:`load_files`).
        split: ``train``, ``val`` or ``test``.
        image_root: Folder of the pictures; scenes and emoji carry their own and take none.
        imbalance: The dial, see :class:`ImbalanceSpec`; scenes then tell all, or what the dial says, not 0.6.
        options: Settings of that data set, see ``load_scenes``, ``load_emoji``, ``load_clipart`` and ``load_files``.

    Raises:
        ValueError: If the name, the split or an option is unknown, an option's value is not lawful, or the files are
            not as they must be.
    """
    name_or_path = str(name_or_path)
    loader: Callable[..., ImageTextDataset] = LOADERS.get(name_or_path, load_files)
    parameters = inspect.signature(loader).parameters
    first: dict[str, Any] = {}
    if loader is load_files:
        known_as = name_or_path in PREPARED or Path(name_or_path).suffix or "/" in name_or_path
        if not (known_as or Path(name_or_path).exists()):
            names = ", ".join((*LOADERS, *PREPARED))
            raise ValueError(f"data set {name_or_path!r} is unknown; choose one of: {names}, or give a file or folder")
        first["path"] = name_or_path
    if "image_root" in parameters:
        first["image_root"] = image_root or None
    elif image_root:
        raise ValueError(f"image_root={image_root!r}: {name_or_path} carries its own pictures; leave it out")
    known = [name for name in parameters if name not in ("split", "path", "image_root")]
    for name in options:
        if name not in known:
            raise ValueError(f"option {name!r} is unknown to {name_or_path}; it has: {', '.join(known)}")
    here = (imbalance or ImbalanceSpec()).on(split)
    if name_or_path == "scenes" and imbalance:  # words and tiles go where scenes are drawn: the truth stays known
        taken = {"text_detail": here.text_detail}
        if here.image_fault == "occlusion":
            taken["image_visibility"] = here.image_visibility
        for name in taken.keys() & options.keys():
            raise ValueError(f"{name} is given twice: by itself and in imbalance")
        options |= taken
        here = replace(here, text_detail=1.0, image_visibility=1.0 if len(taken) > 1 else here.image_visibility)
    return impose(loader(split=split, **first, **options), here)


def dataset_stamp(name_or_path: str, image_root: str | None = None, **options: Any) -> tuple[Any, ...]:
    """What changes whenever a file changes that a data set is read from; belongs into every cache in the process.

    Args:
        name_or_path: As for :func:`load_dataset`.
        image_root: Folder of the pictures.
        options: Of :func:`load_files` that decide what is read: columns, ``split_seed``, ``keep_flagged``.

    Raises:
        ValueError: As :func:`load_dataset`.
    """
    if name_or_path == "clipart":
        return clipart_stamps(image_root)
    if name_or_path in LOADERS:
        return tuple((name, package_version(name)) for name in (PACKAGES if name_or_path == "emoji" else ()))
    return file_stamps(name_or_path, image_root or None, **options)
