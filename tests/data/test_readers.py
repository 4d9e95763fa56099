import csv
import json
import os
from collections import Counter

import numpy as np
import pytest
import torch
import yaml

from rvlr_lib.data import clean_caption, load_dataset
from rvlr_lib.data.own import data_home, hashed_split, read_collection

COUNT = 60


@pytest.fixture(scope="module")
def root(tmp_path_factory, draw_collection):
    folder = tmp_path_factory.mktemp("pictures")
    draw_collection(folder, COUNT)
    return folder


@pytest.fixture(scope="module")
def told(tmp_path_factory, draw_collection):
    return draw_collection(tmp_path_factory.mktemp("again"), COUNT)


def cut(told):
    """The collection in three: what each split must hold."""
    return {"train": told[:40], "val": told[40:50], "test": told[50:]}


def save(path, content):
    path.write_text(yaml.safe_dump(content) if path.suffix == ".yaml" else json.dumps(content), "utf-8")
    return path


def karpathy(told):
    split = {name: key for key, part in cut(told).items() for name, _ in part}
    split[told[0][0]] = "restval"
    return {"dataset": "toy", "images": [
        {"filepath": name.split("/")[0], "filename": name.split("/")[1], "imgid": i, "split": split[name],
         "sentences": [{"raw": caption, "tokens": caption.split()} for caption in captions]}
        for i, (name, captions) in enumerate(told)]}  # fmt: skip


def coco(told):
    images = [{"id": 7 * i, "file_name": name, "width": 1} for i, (name, _) in enumerate(told)]
    pairs = [(7 * i, caption) for i, (_, captions) in enumerate(told) for caption in captions]
    return {"info": {}, "images": images, "annotations": [
        {"id": n, "image_id": i, "caption": caption} for n, (i, caption) in enumerate(pairs)]}  # fmt: skip


def train_rows(told):
    return [{"image": name, "caption": caption, "image_id": str(i)}
            for i, (name, captions) in enumerate(told) for caption in captions]  # fmt: skip


def table(path, told, *, delimiter=",", end="\n", start="", header=("filepath", "title")):
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(start)
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerow(header)
        writer.writerows([name, caption] for name, captions in told for caption in captions)
    return path


def expect(dataset, part):
    assert dataset.image_ids == [name for name, _ in part]
    assert dataset.captions == [clean_caption(caption) for _, captions in part for caption in captions]
    assert np.bincount(dataset.caption_image).tolist() == [len(captions) for _, captions in part]


def test_list_json_with_a_file_for_each_split(tmp_path, root, told, capsys):
    parts = cut(told)
    save(tmp_path / "train.json", train_rows(parts["train"]))
    for split in ("val", "test"):
        save(tmp_path / f"{split}.json", [{"image": name, "caption": captions} for name, captions in parts[split]])
    files = {split: f"{split}.json" for split in parts}
    for index in (save(tmp_path / "i.json", files), save(tmp_path / "i.yaml", files | {"image_root": str(root)})):
        for split, part in parts.items():
            expect(load_dataset(str(index), split=split, image_root=str(root)), part)
    assert "index of list JSON; own splits; pictures/captions: train 40/" in capsys.readouterr().out
    assert load_dataset(str(index), split="val").image(0).mode == "RGB"


def test_karpathy_json_keeps_its_splits_and_restval_is_training(tmp_path, root, told, capsys):
    path = save(tmp_path / "dataset_toy.json", karpathy(told))
    for split, part in cut(told).items():
        dataset = load_dataset(str(path), split=split, image_root=str(root))
        expect(dataset, part)
        assert dataset.name == "dataset_toy"
        assert dataset.info["format"] == "Karpathy JSON"
    assert capsys.readouterr().out.count("Karpathy JSON; own splits") == 1


def hashed(told, split):
    return [(name, captions) for name, captions in told if hashed_split(name) == split]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_files_without_splits_are_split_by_hash(tmp_path, root, told, split):
    writers = {
        "coco.json": lambda path: save(path, coco(told)),
        "list.json": lambda path: save(path, train_rows(told)),
        "a.csv": lambda path: table(path, told),
        "windows.csv": lambda path: table(path, told, end="\r\n", start="\ufeff"),
        "semicolons.csv": lambda path: table(path, told, delimiter=";"),
        "open_clip.csv": lambda path: table(path, told, delimiter="\t"),
        "a.tsv": lambda path: table(path, told, delimiter="\t", header=("image", "caption")),
    }
    for name, write in writers.items():
        dataset = load_dataset(str(write(tmp_path / name)), split=split, image_root=str(root))
        expect(dataset, hashed(told, split))
        assert dataset.pixels([0, 2], 16).shape == (2, 3, 16, 16)


def test_a_folder_with_texts_and_one_with_split_folders(tmp_path, told, draw_collection):
    for name, captions in draw_collection(tmp_path / "flat", 60):
        (tmp_path / "flat" / name).with_suffix(".txt").write_text("\r\n".join(captions) + "\r\n\n", "utf-8-sig")
    in_order = sorted(told)
    expect(load_dataset(str(tmp_path / "flat"), split="train"), hashed(in_order, "train"))
    for place, (name, captions) in enumerate(in_order[:20]):
        target = tmp_path / "own" / ("train", "val", "train", "test")[place % 4] / name.replace("/", "_")
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "flat" / name).rename(target)
        target.with_suffix(".txt").write_text("\n".join(captions), "utf-8")
    assert [len(load_dataset(str(tmp_path / "own"), split=s)) for s in ("train", "val", "test")] == [10, 5, 5]


def test_hash_split_is_stable_seeded_and_about_80_10_10(tmp_path, root, told):
    counts = Counter(hashed_split(f"{i}.jpg") for i in range(5000))
    assert abs(counts["train"] - 4000) < 150
    assert abs(counts["val"] - 500) < 100
    assert [hashed_split("a.jpg", seed) for seed in range(40)].count("train") < 40
    few, all_ = table(tmp_path / "few.csv", told[:50]), table(tmp_path / "all.csv", told[::-1])
    for split in ("train", "val", "test"):
        less, more = (read_collection(path, root).split(split) for path in (few, all_))
        assert set(less.picture) <= set(more.picture)


def test_equal_files_never_fall_into_two_splits(tmp_path, told, draw_collection):
    draw_collection(tmp_path / "p", COUNT)
    sides = {split: [name for name, _ in told if hashed_split(name) == split] for split in ("train", "val", "test")}
    first, second = sorted((sides["train"][0], sides["test"][0]))
    (tmp_path / "p" / second).write_bytes((tmp_path / "p" / first).read_bytes())
    found = read_collection(table(tmp_path / "a.csv", told), tmp_path / "p")
    splits = found.used.set_index("picture").split.to_dict()
    assert splits[second] == splits[first] == hashed_split(first)
    assert all(splits[name] == hashed_split(name) for name in splits if name != second)
    save(tmp_path / "i.yaml", {"train": "t.csv", "held_out": "a.csv", "image_root": "p"})
    table(tmp_path / "t.csv", [("x.jpg", ["a"])])
    splits = read_collection(tmp_path / "i.yaml").used.set_index("picture").split.to_dict()
    assert splits[second] == splits[first]


def test_separate_files_held_out_in_halves(tmp_path, root, told, capsys):
    for name, part in (("train", told[:30]), ("rest", told[30:])):
        save(tmp_path / f"{name}.json", coco(part))
    same = save(tmp_path / "same.yaml", {"train": "train.json", "val": "rest.json", "test": "rest.json"})
    with pytest.raises(ValueError, match="val and test share 30 pictures.*held_out"):
        load_dataset(str(same), split="val", image_root=str(root))
    allowed = save(tmp_path / "allowed.yaml", yaml.safe_load(same.read_text()) | {"allow_overlap": True})
    assert len(load_dataset(str(allowed), split="val", image_root=str(root))) == 30
    halves = save(tmp_path / "halves.yaml", {"train": "train.json", "held_out": "rest.json", "image_root": str(root)})
    names = [load_dataset(str(halves), split=split).image_ids for split in ("train", "val", "test")]
    assert sorted(names[1] + names[2]) == sorted(name for name, _ in told[30:])
    assert min(map(len, names)) >= 8
    assert len(names[0]) == 30


def test_folders_of_an_index_are_put_before_the_names(tmp_path, root, told):
    parts = {letter: [(name[2:], captions) for name, captions in told if name[0] == letter] for letter in "ab"}
    for letter, part in parts.items():
        save(tmp_path / f"{letter}.json", coco(part))
    index = save(tmp_path / "i.yaml", {"train": "a.json", "held_out": "b.json", "image_root": str(root),
                                       "folders": {"train": "a", "held_out": "b"}})  # fmt: skip
    expect(load_dataset(str(index), split="train"), [row for row in told if row[0][0] == "a"])


def test_categories_and_limit(tmp_path, root, told):
    rows = [{"image": name, "caption": captions, "category": name[0]} for name, captions in told]
    dataset = load_dataset(str(save(tmp_path / "c.json", rows)), split="train", image_root=str(root), limit=9)
    assert len(dataset) == 9
    assert dataset.categories == [name[0] for name in dataset.image_ids]
    del rows[1]["category"]
    rows_path = save(tmp_path / "d.json", rows)
    assert load_dataset(str(rows_path), split="train", image_root=str(root)).categories is None


def test_an_edited_file_is_read_again(tmp_path, root, told):
    path = save(tmp_path / "x.json", train_rows(told))
    before = load_dataset(str(path), split="train", image_root=str(root))
    rows = train_rows(told)
    rows[1]["caption"] = "something else"
    save(path, rows)
    os.utime(path, (1, 1))
    after = load_dataset(str(path), split="train", image_root=str(root))
    assert before.fingerprint() != after.fingerprint()
    assert torch.equal(before.pixels([0], 8), after.pixels([0], 8))


BAD_CONTENT = {
    "unknown shape": ("x.json", {"pictures": []}, "dict with keys 'pictures', which is no known format.*COCO captions"),
    "empty list": ("x.json", [], "empty list.*formats understood"),
    "text": ("x.json", "hello", "is str, which"),
    "no image": ("x.json", [{"caption": "a"}], r"row 0 lacks the key 'image': it has 'caption'.*list JSON"),
    "no row": ("x.json", [["a.jpg", "a"]], "row 0 lacks the key 'image'"),
    "image number": ("x.json", [{"image": 5, "caption": "a"}], "row 0: the picture's path is 5"),
    "caption number": ("x.json", [{"image": "a", "caption": [5]}], "row 0: a caption is 5"),
    "empty caption": ("x.json", [{"image": "a", "caption": "  "}], "row 0: the caption '  ' of 'a' has no word"),
    "no caption": ("x.json", [{"image": "a", "caption": []}], "picture 'a' has no caption"),
    "climbing": ("x.json", [{"image": "../a", "caption": "a"}], "row 0: picture '../a' climbs out"),
    "absolute": ("x.json", [{"image": "/a", "caption": "a"}], "row 0: picture '/a' has an absolute path"),
    "one id": ("x.json", [{"image": k, "caption": "a", "image_id": 1} for k in "ab"], "image_id 1 names 'a' and 'b'"),
    "split name": ("x.json", [{"image": "a", "caption": "a", "split": "dev2"}], "split 'dev2' is unknown"),
    "two splits": ("x.json", [{"image": "a", "caption": "a", "split": s} for s in ("train", "val")], "choose one"),
    "half splits": ("x.json", [{"image": "a", "caption": "a", "split": "val"}, {"image": "b", "caption": "a"}],
                    "'b' has no split"),
    "coco ids": ("x.json", {"images": [{"id": 1, "file_name": k} for k in "ab"], "annotations": []},
                 r"images\[1\]: duplicate id 1, for 'a' and 'b'"),
    "coco stranger": ("x.json", {"images": [{"id": 1, "file_name": "a"}], "annotations": [
        {"image_id": 2, "caption": "a"}]}, r"annotations\[0\]: image_id 2 is no id"),
    "coco bare": ("x.json", {"images": [{"id": 1, "file_name": "a"}], "annotations": []}, "'a' has no caption"),
    "karpathy key": ("x.json", {"images": [{"sentences": []}]}, r"images\[0\] lacks the key 'filename'"),
    "index key": ("x.yaml", {"train": "a.json", "tset": "b.json"}, "unknown key 'tset'.*held_out"),
    "index file": ("x.yaml", {"train": "absent.json"}, "train names 'absent.json'"),
    "root": ("x.yaml", {"train": [], "image_root": "absent"}, "absent is no folder"),
    "few": ("x.json", [{"image": f"{i}.jpg", "caption": "a"} for i in range(3)], "at least 4 are needed"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CONTENT)
def test_bad_content_is_named(tmp_path, name):
    file, content, message = BAD_CONTENT[name]
    for number in range(3):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        load_dataset(str(save(tmp_path / file, content)), split="test")
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"Bild,title\na.jpg,a\n", "columns Bild, title; none of them is the picture's.*image_column"),
        ("x.csv", b"filepath,words\na.jpg,a\n", "none of them is the caption's, which is one of title, caption"),
        ("x.csv", b"", "columns none"),
        ("x.csv", b"filepath,title\na.jpg,one, two\n", "line 2: 3 fields, the header has 2.*quotes"),
        ("x.csv", b"filepath,title\na.jpg\n", "line 2: 1 field, the header has 2: title missing; complete the line"),
        ("x.csv", b'filepath,title\na.jpg,"one\n', "line 2: unexpected end of data; check the quotes"),
        ("x.csv", b"filepath,title\na.jpg,\n", "line 2: the caption '' of 'a.jpg' has no word"),
        ("x.csv", b"filepath,title\na.jpg,caf\xe9\n", r"not UTF-8 \(byte 24 is 0xe9\)"),
        ("x.json", b"[{", "is no valid JSON"),
        ("x.json", b"[" * 100_000, "is no valid JSON"),
        ("x.yaml", b"train: [a", "is no valid YAML"),
        ("x.parquet", b"PAR1", "is a .parquet file, which is no known format"),
    ],
)
def test_bad_bytes_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_dataset(str(tmp_path / name), split="train")


def test_other_columns_can_be_named(tmp_path, root, told):
    path = table(tmp_path / "x.csv", told, header=("Bild", "Satz"))
    columns = {"image_column": "Bild", "caption_column": "Satz"}
    expect(load_dataset(str(path), split="train", image_root=str(root), **columns), hashed(told, "train"))
    index = save(tmp_path / "x.yaml", {"all": "x.csv", "image_root": str(root), **columns})
    expect(load_dataset(str(index), split="train"), hashed(told, "train"))
    with pytest.raises(ValueError, match="option 'columns' is unknown to .*; it has: limit, max_bad_pictures"):
        load_dataset(str(path), split="train", columns=3)


def test_numbered_caption_columns(tmp_path, root, told):
    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", *(f"caption_{k}" for k in range(5))])
        writer.writerows([name, *captions, *[""] * (5 - len(captions))] for name, captions in told)
    expect(load_dataset(str(path), split="train", image_root=str(root)), hashed(told, "train"))


def test_bad_pictures_are_errors_or_skipped_under_a_cap(tmp_path, draw_collection, capsys):
    made = draw_collection(tmp_path, 40)
    names = [name for name, _ in hashed(made, "train")]
    (tmp_path / names[0]).unlink()
    (tmp_path / names[3]).write_bytes(b"")
    damaged = tmp_path / names[5]
    damaged.write_bytes(damaged.read_bytes()[:-300])  # the header is whole
    path = str(save(tmp_path / "x.json", train_rows(made)))
    with pytest.raises(ValueError, match=r"2 pictures of train cannot be used, none is allowed.*is missing"):
        load_dataset(path, split="train")
    with pytest.raises(ValueError, match=r"3 pictures of train cannot be used, max_bad_pictures=2 allows 2"):
        load_dataset(path, split="train", max_bad_pictures=2)
    capsys.readouterr()
    dataset = load_dataset(path, split="train", max_bad_pictures=3)
    assert f"3 of {len(names)} pictures of train left out" in capsys.readouterr().out
    expect(dataset, [row for row in hashed(made, "train") if row[0] not in (names[0], names[3], names[5])])
    assert dataset.info["bad_pictures_left_out"] == sorted([names[0], names[3], names[5]])
    index = save(tmp_path / "i.yaml", {"all": "x.json", "max_bad_pictures": 3})
    assert load_dataset(str(index), split="train").image_ids == dataset.image_ids
    (tmp_path / names[0]).write_bytes((tmp_path / names[1]).read_bytes())
    (tmp_path / names[3]).write_bytes((tmp_path / names[1]).read_bytes())
    lazy = load_dataset(path, split="train")  # headers are whole: the fault shows when the picture is read
    with pytest.raises(ValueError, match="is damaged or truncated"):
        lazy.pixels([5], 8)


def test_names_are_data_sets_files_or_errors(tmp_path, monkeypatch):
    monkeypatch.setenv("RVLR_DATA", str(tmp_path))
    assert data_home() == tmp_path
    with pytest.raises(ValueError, match="(?s)flickr30k lacks dataset_flickr30k.json.*http"):
        load_dataset("flickr30k", split="train")
    with pytest.raises(ValueError, match="absent.json is not there"):
        load_dataset(str(tmp_path / "absent.json"), split="train")
    with pytest.raises(ValueError, match="split 'dev' is unknown"):
        load_dataset(str(tmp_path / "absent.json"), split="dev")
