"""Collections as users bring them, and what is asked of every look at one."""

import os

import pytest
from PIL import Image

from rvlr_lib.data import load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.collection import read_collection

NAMES = [f"t{i:02d}.png" for i in range(40)]


def write(place, name, text):
    (place / name).write_text(text, "utf-8")
    return place / name


def rows(*captions, names=NAMES, mark=",", header="image,caption"):
    return header.replace(",", mark) + "\n" + "".join(f"{name}{mark}{mark.join(captions)}\n" for name in names)


def captions(path, **options):
    return read_collection(path, **options).used.groupby("picture", sort=False).clean.apply(list)


def spoiled(path, **options):
    """Reasons against a collection; loading it must fail with the first of them."""
    report = check(path, **options)
    adds_up(report)
    if report.spoiled:
        with pytest.raises(ValueError, match=".") as error:
            [load_dataset(str(path), split=split, **options) for split in ("train", "val", "test")]
        assert str(path.parent) in str(error.value)
    return {finding.what: finding for finding in report.findings if finding.spoils}


def adds_up(report):
    for name, (whole, parts) in report.accounts.items():
        assert whole == sum(parts.values()), (name, whole, parts)
    return report


def coco(key=int, other=int, **flags):
    return {
        "images": [{"id": key(i), "file_name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": other(i), "caption": f"a dog {k}", **{f: k in on for f, on in flags.items()}}
            for i in range(40)
            for k in range(3)
        ],
    }


def fill(place, folders, count=6):
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (6, 5), (len(folder), 20 * k, len(os.listdir(place)))).save(place / folder / f"{k}.png")
            write(place / folder, f"{k}.txt", f"a dog {k}\n\nof {folder}\n")
