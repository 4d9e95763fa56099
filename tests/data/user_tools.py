"""Collections as users bring them, and what is asked of every look at one."""

import json
import os

import pytest
import yaml
from PIL import Image

from rvlr_lib.data import load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.own import read_collection

NAMES = [f"t{i:02d}.png" for i in range(40)]
SPLITS = ("train", "val", "test")


def write(place, name, content):
    """A file of bytes, of a text, or of what YAML, JSON and JSON lines can hold."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(*captions, names=NAMES, mark=",", header="image,caption"):
    return header.replace(",", mark) + "\n" + "".join(f"{name}{mark}{mark.join(captions)}\n" for name in names)


def list_rows(told):
    """Rows of a list JSON, one caption each."""
    pairs = [(i, name, caption) for i, (name, captions) in enumerate(told) for caption in captions]
    return [{"image": name, "caption": caption, "image_id": str(i)} for i, name, caption in pairs]


def coco(told=None, key=int, other=int, **flags):
    told = told or [(name, [f"a dog {k}" for k in range(3)]) for name in NAMES]
    pairs = [(i, k, text) for i, (_, captions) in enumerate(told) for k, text in enumerate(captions)]
    marks = [{flag: k in on for flag, on in flags.items()} for _, k, _ in pairs]
    texts = [{"image_id": other(i), "caption": text, **own} for (i, _, text), own in zip(pairs, marks, strict=True)]
    return {"images": [{"id": key(i), "file_name": name} for i, (name, _) in enumerate(told)], "annotations": texts}


def captions(path, **options):
    return read_collection(path, **options).used.groupby("picture", sort=False).clean.apply(list)


def sizes(path, **options):
    return [len(load_dataset(str(path), split=split, **options)) for split in SPLITS]


def looked(path, **options):
    """The report on a collection, whose accounts must add up."""
    report = check(path, **options)
    for name, (whole, parts) in report.accounts.items():
        assert whole == sum(parts.values()), (name, whole, parts)
    return report


def spoiled(path):
    """Reasons against a collection; loading it must fail with the first of them."""
    report = looked(path)
    if report.spoiled:
        with pytest.raises(ValueError, match=".") as error:
            sizes(path)
        assert str(path.parent) in str(error.value)
    return {finding.what: finding for finding in report.findings if finding.spoils}


def fill(place, folders, count=6):
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (6, 5), (len(folder), 20 * k, len(os.listdir(place)))).save(place / folder / f"{k}.png")
            write(place / folder, f"{k}.txt", f"a dog {k}\n\nof {folder}\n")
