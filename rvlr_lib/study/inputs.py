"""What a study reads: a split of its data set under the dial, and what decides it."""

from dataclasses import replace
from functools import lru_cache
from typing import Any

from rvlr_lib.config import DataSettings, Settings, as_dict
from rvlr_lib.data import LOADERS, ImbalanceSpec, dataset_stamp, load_dataset
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.provenance import data_name, versions
from rvlr_lib.study.cache import source_hash

DIALLED = {"all": SPLITS, "train": ("train", "val"), "test": ("test",)}
OF_THE_OTHER = {  # what decides one modality alone
    "image": ("text_detail", "mismatch_rate"),
    "text": ("image_visibility", "image_fault"),
    "both": (),
}


def read_split(settings: Settings, split: str) -> ImageTextDataset:
    """The ``train``, ``val`` or ``test`` split, read once while its files stay as they are."""
    data = replace(settings.data, seed=settings.world_seed)
    stamp = () if data.name in LOADERS and not data.image_root else dataset_stamp(data.name, data.image_root)
    return _read(data, split, stamp)


def data_parts(settings: Settings, modality: str) -> dict[str, Any]:
    """What decides the data of ``image``, ``text`` or ``both``: one modality does not depend on the other's dial."""
    others = {name: getattr(DataSettings(), name) for name in ("rows", *OF_THE_OTHER[modality])}
    data = replace(settings.data, seed=settings.world_seed, **others)
    dialled = data.text_detail < 1 or data.image_visibility < 1 or data.mismatch_rate > 0
    parts: dict[str, Any] = as_dict(data)
    if data.name in LOADERS:  # known by their code and packages, all others by their files
        parts["source"] = source_hash(f"rvlr_lib.data.{data.name}")
        parts["versions"] = {name: version for name, version in versions().items() if "emoji" in name}
        if data.name != "scenes" and not dialled:
            parts.pop("seed")
    else:  # the same files elsewhere are the same data
        parts |= {"name": data_name(data.name), "image_root": None}
        whole = replace(settings.data, text_detail=1.0, image_visibility=1.0, mismatch_rate=0.0)
        parts["fingerprint"] = [read_split(replace(settings, data=whole), split).fingerprint() for split in SPLITS]
    if dialled:
        parts["dial"] = source_hash("rvlr_lib.data.dial")
    return parts


@lru_cache(maxsize=9)  # three dial points of three splits; nobody writes to them
def _read(data: DataSettings, split: str, stamp: tuple[Any, ...]) -> ImageTextDataset:
    size = {"train": data.train_size, "val": data.val_size, "test": data.gallery_size}[split]
    options: dict[str, Any] = {"limit": size}
    if data.name == "scenes":
        sizes = {"galleries": data.galleries, "gallery_size": size} if split == "test" else {"size": size}
        options = {"seed": data.seed, **sizes}
    elif data.name not in LOADERS:
        options |= {"max_bad_pictures": data.max_bad_pictures, "keep_flagged": data.keep_flagged}
    given = {name: value for name, value in options.items() if value or name == "seed"}
    faults = {name: getattr(data, name) for name in ("text_detail", "image_visibility", "image_fault", "mismatch_rate")}
    dial = ImbalanceSpec(**faults, splits=DIALLED[data.dial_splits], seed=data.seed)
    return load_dataset(data.name, split=split, image_root=data.image_root, imbalance=dial, **given)
