"""What a study reads: a split of its data set under the dial, and what decides it."""

import dataclasses
from functools import lru_cache
from typing import Any

from rvlr_lib.config import Settings, as_dict
from rvlr_lib.data import ImbalanceSpec, dataset_stamp, load_dataset
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.provenance import data_name, versions
from rvlr_lib.study.cache import source_hash

GENERATED = ("scenes", "emoji", "clipart")  # known by their code and packages, all others by their files
DIALLED = {"all": SPLITS, "train": ("train", "val"), "test": ("test",)}


def imbalance_spec(settings: Settings) -> ImbalanceSpec:
    """The dial of these settings."""
    data = settings.data
    return ImbalanceSpec(
        data.text_detail,
        data.image_visibility,
        data.image_fault,
        data.mismatch_rate,
        splits=DIALLED[data.dial_splits],
        seed=settings.world_seed,
    )


def read_split(settings: Settings, split: str) -> ImageTextDataset:
    """The ``train``, ``val`` or ``test`` split, read once while its files stay as they are."""
    data = settings.data
    stamp = () if data.name in GENERATED and not data.image_root else dataset_stamp(data.name, data.image_root)
    return _read(
        data.name, split, data.image_root, imbalance_spec(settings), tuple(_options(settings, split).items()), stamp
    )


def data_parts(settings: Settings, modality: str) -> dict[str, Any]:
    """What decides the data of ``image``, ``text`` or ``both``: one modality does not depend on the other's dial."""
    data = settings.data
    parts: dict[str, Any] = as_dict(data) | {"seed": settings.world_seed}
    for name in (
        "rows",
        *{"image": ("text_detail", "mismatch_rate"), "text": ("image_visibility", "image_fault"), "both": ()}[modality],
    ):
        parts.pop(name)
    words = bool(data.mismatch_rate) or data.text_detail < 1
    looks = data.image_visibility < 1
    dialled = {"image": looks, "text": words, "both": words or looks}[modality]
    if data.name in GENERATED:
        parts["source"] = source_hash(f"rvlr_lib.data.{data.name}")
        parts["versions"] = {name: version for name, version in versions().items() if "emoji" in name}
        if data.name != "scenes" and not dialled:
            parts.pop("seed")
    else:  # the same files elsewhere are the same data
        parts["name"], parts["image_root"] = data_name(data.name), None
        plain = dataclasses.replace(data, text_detail=1.0, image_visibility=1.0, mismatch_rate=0.0)
        whole = dataclasses.replace(settings, data=plain)
        parts["fingerprint"] = [read_split(whole, split).fingerprint() for split in SPLITS]
    if dialled:
        parts["dial"] = source_hash("rvlr_lib.data.dial")
    return parts


def _options(settings: Settings, split: str) -> dict[str, Any]:
    data = settings.data
    size = {"train": data.train_size, "val": data.val_size, "test": data.gallery_size}[split]
    if data.name != "scenes":
        own = (
            {}
            if data.name in GENERATED
            else {"max_bad_pictures": data.max_bad_pictures, "keep_flagged": data.keep_flagged}
        )
        return {key: value for key, value in {"limit": size, **own}.items() if value}
    sizes = {"galleries": data.galleries, "gallery_size": size} if split == "test" else {"size": size}
    return {"seed": settings.world_seed, **{name: value for name, value in sizes.items() if value}}


@lru_cache(maxsize=9)  # three dial points of three splits; nobody writes to them
def _read(
    name: str,
    split: str,
    image_root: str | None,
    dial: ImbalanceSpec,
    options: tuple[tuple[str, Any], ...],
    stamp: tuple[Any, ...],
) -> ImageTextDataset:
    return load_dataset(name, split=split, image_root=image_root, imbalance=dial, **dict(options))
