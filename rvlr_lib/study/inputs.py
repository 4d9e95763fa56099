"""What a study reads: a split of its data set under the dial, and what decides it."""

import dataclasses
from functools import lru_cache
from typing import Any

from rvlr_lib.config import DataSettings, as_dict
from rvlr_lib.data import ImbalanceSpec, load_dataset
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.provenance import data_name, versions
from rvlr_lib.study.cache import source_hash

DIAL = ("text_detail", "image_visibility", "image_fault", "mismatch_rate", "dial_splits")
SPLITS = {"all": ("train", "val", "test"), "train": ("train", "val"), "test": ("test",)}


def imbalance_spec(data: DataSettings) -> ImbalanceSpec:
    """The dial of these settings."""
    return ImbalanceSpec(data.text_detail, data.image_visibility, data.image_fault, data.mismatch_rate,
                         splits=SPLITS[data.dial_splits], seed=data.seed)  # fmt: skip


def read_split(data: DataSettings, split: str) -> ImageTextDataset:
    """The ``train``, ``val`` or ``test`` split; studies that differ in a switch share it."""
    return _read(data.name, split, data.image_root, imbalance_spec(data), tuple(_options(data, split).items()))


def data_parts(data: DataSettings, modality: str) -> dict[str, Any]:
    """What decides the data of ``image``, ``text`` or ``both``: one modality does not depend on the other's dial."""
    parts = as_dict(data)
    parts.pop("rows")
    other = {"image": ("text_detail", "mismatch_rate"), "text": ("image_visibility", "image_fault"), "both": ()}
    for name in other[modality]:
        parts.pop(name)
    if data.name in ("scenes", "emoji"):
        parts["source"] = source_hash(f"rvlr_lib.data.{data.name}")
        parts["versions"] = {name: version for name, version in versions().items() if "emoji" in name}
    else:  # the same files elsewhere are the same data
        parts["name"], parts["image_root"] = data_name(data.name), None
        whole = dataclasses.replace(data, text_detail=1.0, image_visibility=1.0, mismatch_rate=0.0)
        parts["fingerprint"] = [read_split(whole, split).fingerprint() for split in SPLITS["all"]]
    # scenes drop factors and cover tiles where they are drawn; all else goes through the dial's own code
    words = bool(data.mismatch_rate) or (data.text_detail < 1 and data.name != "scenes")
    looks = data.image_visibility < 1 and (data.name != "scenes" or data.image_fault != "occlusion")
    if {"image": looks, "text": words, "both": words or looks}[modality]:
        parts["dial"] = source_hash("rvlr_lib.data.dial")
    return parts


def _options(data: DataSettings, split: str) -> dict[str, Any]:
    size = {"train": data.train_size, "val": data.val_size, "test": data.gallery_size}[split]
    if data.name != "scenes":
        allowed = {} if data.name == "emoji" else {"max_bad_pictures": data.max_bad_pictures}
        return {key: value for key, value in {"limit": size, **allowed}.items() if value}
    sizes = {"galleries": data.galleries, "gallery_size": size} if split == "test" else {"size": size}
    return {"seed": data.seed, **{name: value for name, value in sizes.items() if value}}


@lru_cache(maxsize=9)  # three dial points of three splits; nobody writes to them
def _read(
    name: str, split: str, image_root: str | None, dial: ImbalanceSpec, options: tuple[tuple[str, Any], ...]
) -> ImageTextDataset:
    return load_dataset(name, split=split, image_root=image_root, imbalance=dial, **dict(options))
