"""``rvlr data prepare``: what to download for the published data sets, a look at what is there, and our index of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.data.annotations import SPLITS, read_annotations


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        steps: what to download and where to put it, below the data set's own folder.
        licence: of pictures and captions, in a line.
        files: annotation files and folders that must be there.
        index: what our index says.
        counts: pictures of each split; None where we make the split.
    """

    steps: tuple[str, ...]
    licence: str
    files: tuple[str, ...]
    index: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] | None = None


KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/caption_datasets.zip"
PUBLISHED = {
    "flickr30k": Published(
        steps=(
            "pictures: ask for them with the form at https://shannon.cs.illinois.edu/DenotationGraph/ and unpack them "
            "to flickr30k-images/",
            f"captions and splits: {KARPATHY}; put its dataset_flickr30k.json here",
        ),
        licence="pictures: Flickr's terms and those of their owners, for non-commercial research and education only",
        files=("dataset_flickr30k.json", "flickr30k-images"),
        index={"all": "dataset_flickr30k.json", "image_root": "flickr30k-images"},
        counts={"train": 29_000, "val": 1_014, "test": 1_000},
    ),
    "coco": Published(
        steps=(
            "pictures: http://images.cocodataset.org/zips/train2014.zip (13 GB) and "
            "http://images.cocodataset.org/zips/val2014.zip (6 GB), unpacked to train2014/ and val2014/",
            f"captions and splits: {KARPATHY}; put its dataset_coco.json here",
        ),
        licence="captions CC BY 4.0; pictures: Flickr's terms and the licence that each owner chose",
        files=("dataset_coco.json", "train2014", "val2014"),
        index={"all": "dataset_coco.json", "image_root": "."},
        counts={"train": 113_287, "val": 5_000, "test": 5_000},
    ),
    "vizwiz": Published(
        steps=(
            "pictures: training and validation sets of https://vizwiz.org/tasks-and-datasets/image-captioning/, "
            "unpacked to train/ and val/",
            "captions: the annotations of the same page, unpacked to annotations/train.json and annotations/val.json",
        ),
        licence="CC BY 4.0",
        files=("annotations/train.json", "annotations/val.json", "train", "val"),
        index={"train": "annotations/train.json", "held_out": "annotations/val.json", "image_root": ".",
               "folders": {"train": "train", "held_out": "val"}},  # the test captions are not public: val in halves
    ),
}  # fmt: skip


def prepare(name: str, folder: Path) -> tuple[bool, list[str]]:
    """See what of a published data set lies in ``folder`` and, if all does, write ``folder``/index.yaml.

    Pictures are looked for by name; ``rvlr data check`` opens them.

    Returns:
        Whether the index was written, and what to say.

    Raises:
        ValueError: an unknown name, or an annotation file that is not what it should be.
    """
    import yaml

    if name not in PUBLISHED:
        raise ValueError(f"data set {name!r} is not one that is prepared; valid: {', '.join(PUBLISHED)}")
    wanted = PUBLISHED[name]
    missing = [file for file in wanted.files if not (folder / file).exists()]
    lines = [f"{name} in {folder} ({wanted.licence})"]
    if missing:
        lines += [f"missing: {', '.join(missing)}", *(f"  {number}. {s}" for number, s in enumerate(wanted.steps, 1))]
        return False, [*lines, f"then again: rvlr data prepare {name}"]
    index = folder / "index.yaml"
    text = yaml.safe_dump(wanted.index, sort_keys=False)
    temporary = folder / ".index.yaml"
    temporary.write_text(text, "utf-8")
    try:
        found = read_annotations(temporary)
    except ValueError:
        temporary.unlink()
        raise
    absent = [entry.name for entry in found.entries if not (found.root / entry.name).is_file()]
    counts = {split: len(found.split(split)) for split in SPLITS}
    lines.append("pictures: " + ", ".join(f"{split} {count:,}" for split, count in counts.items()))
    if absent:
        temporary.unlink()
        return False, [*lines, f"{len(absent):,} of them are not in {found.root}, {absent[0]} first: unpack them all"]
    if wanted.counts and counts != wanted.counts:
        expected = ", ".join(f"{split} {count:,}" for split, count in wanted.counts.items())
        lines.append(f"note: the published split has {expected}; say so beside your numbers")
    temporary.replace(index)
    return True, [*lines, f"wrote {index}", f"next: rvlr data check {index}, then -p dataset {name}"]
