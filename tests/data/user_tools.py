"""Collections as users have them, and the checks that hold for every one of them."""

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
    """Write bytes, text, or a value as YAML or JSON."""
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, str | bytes):
        content = yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(*captions, names=NAMES, mark=",", header="image,caption"):
    return header.replace(",", mark) + "\n" + "".join(f"{name}{mark}{mark.join(captions)}\n" for name in names)


def list_rows(pairs):
    """Rows of a list JSON, one caption each."""
    items = [(i, name, caption) for i, (name, captions) in enumerate(pairs) for caption in captions]
    return [{"image": name, "caption": caption, "image_id": str(i)} for i, name, caption in items]


def coco(pairs=None, key=int, reference=int, **flags):
    """COCO captions JSON; ``flags``: numbers of a picture's captions that carry each flag."""
    pairs, annotations = pairs or [(name, [f"a dog {k}" for k in range(3)]) for name in NAMES], []
    for i, (_, captions) in enumerate(pairs):
        for k, text in enumerate(captions):
            marks = {flag: k in flagged for flag, flagged in flags.items()}
            annotations.append({"image_id": reference(i), "caption": text} | marks)
    images = [{"id": key(i), "file_name": name} for i, (name, _) in enumerate(pairs)]
    return {"images": images, "annotations": annotations}


def captions(path, **options):
    return read_collection(path, **options).used.groupby("picture", sort=False).clean.apply(list)


def sizes(path, **options):
    return [len(load_dataset(str(path), split=split, **options)) for split in SPLITS]


def report_on(path, **options):
    """The report on a collection; its accounts must add up."""
    report = check(path, **options)
    for name, (total, parts) in report.accounts.items():
        assert total == sum(parts.values()), (name, total, parts)
    return report


def spoiling(path):
    """Findings that spoil a collection, by name; if there are any, loading must fail and name the folder."""
    report = report_on(path)
    if report.spoiled:
        with pytest.raises(ValueError, match=".") as error:
            sizes(path)
        assert str(path.parent) in str(error.value)
    return {finding.what: finding for finding in report.findings if finding.spoils}


def fill_folders(place, folders, count=6):
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (6, 5), (len(folder), 20 * k, len(os.listdir(place)))).save(place / folder / f"{k}.png")
            write(place / folder, f"{k}.txt", f"a dog {k}\n\nof {folder}\n")
