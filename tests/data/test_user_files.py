"""What users' folders, systems and damaged files bring: read whole, or refused with a reason."""

import json
import os
import random

import numpy as np
import pytest
import yaml
from user_tools import NAMES, adds_up, coco, fill, rows, spoiled, write

from rvlr_lib.data import dataset_stamp, load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.collection import read_collection

SPLITS = [
    names.split("+") for names in "train+val+test Train+VAL+Test TRAINING+Validation+testing train+dev+test".split()
]
SPLITS += [["train", "Valid", "test"], ["images/train", "images/val", "images/test"]]
NOISE = """.ipynb_checkpoints/ .ipynb_checkpoints/a.png __MACOSX/train/._0.png .DS_Store train/._x.jpg Thumbs.db
    @eaDir/x/a.jpg notes/readme.md .git/x.png""".split()
MIXED = [
    names.split("+")
    for names in """train+val+more train+val+test2 train2014+val2014 train_images+test_images train+.
    a/train+a/test+b Train+extra""".split()
]


@pytest.mark.parametrize("folders", SPLITS)
@pytest.mark.parametrize("noise", NOISE)
def test_split_folders_are_seen_whatever_else_lies_there(tmp_path, folders, noise):
    fill(tmp_path, folders)
    target = tmp_path / noise
    target.parent.mkdir(parents=True, exist_ok=True)
    target.mkdir() if noise.endswith("/") else target.write_bytes(b"x")
    sizes = [len(load_dataset(str(tmp_path), split=split)) for split in ("train", "val", "test")]
    assert sizes == [6, 6, 6]
    report = adds_up(check(tmp_path))
    assert not report.spoiled
    assert report.accounts["files"][0] == sum(len(files) for _, _, files in os.walk(tmp_path))


@pytest.mark.parametrize("folders", MIXED)
def test_some_folders_like_splits_are_refused_by_name(tmp_path, folders):
    fill(tmp_path, folders)
    for look in (check, lambda path: load_dataset(str(path), split="train")):
        with pytest.raises(ValueError, match="look like splits") as error:
            look(tmp_path)
        assert folders[0].split("/")[-1] in str(error.value)


def test_links_inside_are_followed_and_outside_refused_by_name(tmp_path):
    root = tmp_path / "root"
    fill(root, ("train", "val", "test", "pool/a"))
    fill(tmp_path, ("outside",))
    (root / "train" / "more").symlink_to(root / "pool")
    (root / "val" / "one.png").symlink_to(root / "pool" / "a" / "0.png")
    write(root / "val", "one.txt", "a link")
    assert "train/more/a/3.png" in load_dataset(str(root), split="train").image_ids
    assert len(load_dataset(str(root), split="val")) == 7
    files = adds_up(check(root)).accounts["files"][1]
    assert (files["used"], files["used through a link"]) == (18, 7)
    (root / "train" / "far").symlink_to(tmp_path / "outside")
    assert "train/far is a link that leads out" in spoiled(root)["links out of the folder"].examples[0]
    (root / "train" / "far").unlink()
    (root / "train" / "round").symlink_to(root / "train")
    (root / "test" / "none.png").symlink_to(root / "nothing.png")
    told = spoiled(root)
    assert set(told) >= {"links in a circle", "links to nothing"}


def test_names_that_are_not_utf8_are_named(tmp_path):
    fill(tmp_path, ("train", "val", "test"))
    os.rename(tmp_path / "train" / "0.png", os.fsencode(tmp_path / "train") + b"/caf\xe9.png")
    told = spoiled(tmp_path)["names that are not UTF-8"]
    assert "caf\\xe9.png" in told.examples[0]
    assert "rename" in told.examples[0]
    str(told).encode()
    bad = os.fsencode(tmp_path) + b"/\xe9.csv"
    with open(bad, "w") as file:
        file.write(rows("a dog"))
    for path in (os.fsdecode(bad), os.fsdecode(os.fsencode(tmp_path) + b"/\xe9.csv")):
        with pytest.raises(ValueError, match="rename") as error:
            load_dataset(path, split="train")
        str(error.value).encode()
    path = write(tmp_path, "x.json", json.dumps([{"image": "caf\udce9.png", "caption": "a dog"}]))
    assert "rename" in check(path).findings[0].examples[0]


def test_pictures_that_are_not_read_spoil(tmp_path):
    fill(tmp_path, ("train", "val", "test"))
    (tmp_path / "train" / "a.HEIC").touch()
    assert "a.HEIC is not read" in spoiled(tmp_path)["pictures of a format that is not read"].examples[0]


# Stamps


def test_every_file_that_is_read_is_stamped(place):
    (place / "sub").mkdir()
    part = write(place / "sub", "part.csv", rows("a dog"))
    index = write(place, "i.yaml", yaml.safe_dump({"all": "sub/part.csv", "image_root": "."}))
    fill(place / "folder", ("train", "val", "test"))
    for path, edited in (
        (part, part),
        (index, part),
        (index, index),
        (place / "folder", place / "folder/train/1.txt"),
        (index, place / "t03.png"),
        (place / "folder", place / "folder/train/1.png"),
    ):
        root = None if path == place / "folder" else str(place)
        before, data = dataset_stamp(str(path), root), load_dataset(str(path), split="train", image_root=root)
        assert before == dataset_stamp(str(path), root)
        content = edited.read_bytes()
        edited.write_bytes(content.replace(b"dog", b"cat") if b"dog" in content else content + b" ")
        assert before != dataset_stamp(str(path), root)
        after = load_dataset(str(path), split="train", image_root=root)
        assert (data.captions != after.captions) == (b"dog" in content)
        edited.write_bytes(content)
    before = dataset_stamp(str(place / "folder"))
    fill(place / "folder", ("train/new",))
    assert before != dataset_stamp(str(place / "folder"))
    assert "train/new/0.png" in load_dataset(str(place / "folder"), split="train").image_ids


# Anything


@pytest.mark.parametrize("seed", range(2))
def test_no_damaged_file_gives_a_traceback(place, seed):
    draw = random.Random(seed)
    sound = {
        "x.csv": rows("a dog"),
        "x.tsv": rows("a dog", mark="\t"),
        "x.json": json.dumps(coco()),
        "captions.txt": rows("a dog"),
        "l.json": json.dumps([{"image": n, "caption": ["a", "b"], "split": "val"} for n in NAMES]),
        "i.yaml": "all: x.csv\nimage_root: .\n",
        "k.json": json.dumps(
            {"images": [{"filename": n, "sentences": [{"raw": "a"}], "split": "train"} for n in NAMES]}
        ),
        "x.jsonl": "\n".join(json.dumps({"image": n, "caption": "a"}) for n in NAMES),
    }
    values = [
        None,
        5,
        -1,
        1e400,
        True,
        "",
        "a",
        [],
        {},
        [None],
        [[]],
        {"a": 1},
        ["a", 5],
        float("nan"),
        "\udce9",
        "\0",
        "2024-13-45",
        10**5000,
    ]
    for name, text in sound.items():
        path = place / name
        damaged = [
            b"",
            b"\0",
            b"\xff\xfe",
            text.encode()[: draw.randrange(len(text))],
            b"\x89PNG\r\n\x1a\n" + bytes(99),
            b"[" * 50_000,
        ]
        damaged += [
            text.encode().replace(b'"', b"", 1),
            text.encode("utf-16"),
            text.upper().encode(),
            text[::-1].encode(),
        ]
        for _ in range(4):
            noisy = bytearray(text.encode())
            for _ in range(draw.randrange(1, 9)):
                noisy[draw.randrange(len(noisy))] = draw.randrange(256)
            damaged.append(bytes(noisy))
        if name.endswith("json"):
            for _ in range(15):
                content = json.loads(text)
                spot = content if isinstance(content, list) else content[draw.choice(list(content))]
                spot = spot[draw.randrange(3)]
                key = draw.choice(list(spot))
                spot[key] = draw.choice(values[:-1])
                damaged.append(json.dumps(content).encode())
        if name == "i.yaml":
            keys = "train all held_out image_root folders split_seed max_bad_pictures allow_overlap sources".split()
            damaged += [yaml.safe_dump({"all": "x.csv", key: v}).encode() for key in keys for v in values[:-2]]
            damaged += [b"all: 2024-13-45", b"{[a]: b, all: x.csv}", b"all: x.csv\nall: [x.csv, x.tsv]", b"a: &a [*a]"]
        for data in damaged:
            path.write_bytes(data)
            for look in (check, lambda path: load_dataset(str(path), split="train")):
                try:
                    found = look(path)
                    said = f"{place} {found}"
                    adds_up(found) if look is check else None
                except ValueError as error:
                    said = str(error)
                said.encode()  # no half characters
                assert str(place) in said, data[:200]
        path.write_text(text, "utf-8")


def test_paths_that_are_no_files_are_named(place):
    os.mkfifo(place / "pipe.csv")
    (place / "empty").mkdir()
    for path in ("pipe.csv", "empty", "none.csv", "a\0.csv", "x" * 300 + ".csv"):
        with pytest.raises(ValueError, match="pipe|empty|none|a|x"):
            load_dataset(f"{place}/{path}", split="train")


def test_half_a_million_rows(tmp_path):
    names = [f"{i}.jpg" for i in range(50_000)]
    order = np.random.default_rng(0).permutation(500_000) % 50_000
    write(tmp_path, "x.csv", "image,caption\n" + "".join(f'{names[i]},"a dog, {k}"\n' for k, i in enumerate(order)))
    found = read_collection(tmp_path / "x.csv")
    assert (len(found.used), found.rows_read) == (500_000, 500_000)
