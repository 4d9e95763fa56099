"""Every format of a collection against its expected content; splits, limits, bad pictures."""

import json
import random
import re
import shutil
from collections import Counter

import pytest
import yaml

from rvlr_lib.data import clean_caption, load_dataset
from rvlr_lib.data.own import hashed_split, read_collection
from tests.data.user_tools import NAMES, SPLITS, captions, coco, list_rows, report_on, rows, sizes, spoiling, write
from tests.tiny import draw_collection


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    return str(folder), draw_collection(folder, 60)


def hashed(pairs):
    return {split: [pair for pair in pairs if hashed_split(pair[0]) == split] for split in SPLITS}


def expect(path, parts, **options):
    for split, part in parts.items():
        dataset = load_dataset(str(path), split=split, **options)
        assert dataset.image_ids == [name for name, _ in part]
        assert dataset.captions == [clean_caption(caption) for _, captions in part for caption in captions]
        assert dataset.caption_image.tolist() == [row for row, (_, captions) in enumerate(part) for _ in captions]
    return dataset


@pytest.mark.parametrize("shape", [coco, list_rows])
def test_files_without_splits_are_split_by_hash(tmp_path, drawn, shape):
    root, pairs = drawn
    content = shape(pairs)
    if shape is coco:  # a picture's own captions, which are not those of its annotations
        content["images"][0] |= {"captions": ["a dog", "a cat"], "caption_2": "a cow"}
    path = write(tmp_path, "x.json", content)
    assert expect(path, hashed(pairs), image_root=root).pixels([0, 2], 16).shape == (2, 3, 16, 16)


def test_karpathy_json_and_an_index_keep_their_splits(tmp_path, drawn, capsys):
    root, pairs = drawn
    images, parts = [], {"train": pairs[:40], "val": pairs[40:50], "test": pairs[50:]}
    for split, part in parts.items():
        for (folder, file), texts in ((name.split("/"), texts) for name, texts in part):
            sentences = [{"raw": text, "tokens": text.split(), "filename": "other.png"} for text in texts]
            images.append({"filepath": folder, "filename": file, "split": split, "sentences": sentences})
        lists = [{"image": name, "caption": texts} for name, texts in part]
        write(tmp_path, f"{split}.json", lists if split == "val" else list_rows(part))
    images[0]["split"] = "restval"
    dataset = expect(write(tmp_path, "dataset_toy.json", {"images": images}), parts, image_root=root)
    assert (dataset.name, dataset.info["format"]) == ("dataset_toy", "Karpathy JSON")
    assert capsys.readouterr().out.count("Karpathy JSON; splits as given") == 1
    index = {split: f"{split}.json" for split in SPLITS} | {"image_root": root}
    expect(write(tmp_path, "i.json", index), parts)
    expect(write(tmp_path, "i.yaml", index), parts)
    assert "index of list JSON; splits as given; pictures/captions: train 40/" in capsys.readouterr().out


def test_a_folder_of_pictures_with_texts(tmp_path):
    pairs = sorted(draw_collection(tmp_path, 60))
    for name, texts in pairs:
        (tmp_path / name).with_suffix(".txt").write_text("\r\n".join(texts) + "\r\n\n", "utf-8-sig")
    expect(tmp_path, hashed(pairs))


def test_hash_split_is_stable_seeded_and_about_80_10_10(tmp_path, drawn):
    root, pairs = drawn
    counts = Counter(hashed_split(f"{i}.jpg") for i in range(5000))
    assert abs(counts["train"] - 4000) < 150
    assert abs(counts["val"] - 500) < 100
    assert [hashed_split("a.jpg", seed) for seed in range(40)].count("train") < 40
    files = (write(tmp_path, "x.json", list_rows(part)) for part in (pairs[:50], pairs[::-1]))
    few, more = (read_collection(file, root).used for file in files)
    assert set(zip(few.picture, few.split, strict=True)) <= set(zip(more.picture, more.split, strict=True))


def test_equal_files_never_fall_into_two_splits(tmp_path):
    pairs = draw_collection(tmp_path / "p", 60)
    parts = hashed(pairs)
    first, second = sorted((parts["train"][0][0], parts["test"][0][0]))
    shutil.copy(tmp_path / "p" / first, tmp_path / "p" / second)
    used = read_collection(write(tmp_path, "a.json", coco(pairs)), tmp_path / "p").used
    splits = used.set_index("picture").split.to_dict()
    assert splits == {name: hashed_split(first if name == second else name) for name, _ in pairs}
    index = write(tmp_path, "i.yaml", {"train": "t.csv", "held_out": "a.json", "image_root": "p"})
    write(tmp_path, "t.csv", rows("a", names=["x.jpg"]))
    splits = read_collection(index).used.set_index("picture").split.to_dict()
    assert splits[second] == splits[first]


def test_held_out_files_overlap_and_folders(tmp_path, drawn, refuses):
    root, pairs = drawn
    for name, part in (("train", pairs[:30]), ("rest", pairs[30:]), ("more", pairs[28:])):
        write(tmp_path, f"{name}.json", coco(part))
    files = {"train": "train.json", "val": "rest.json", "test": "rest.json", "image_root": root}
    index = write(tmp_path, "same.yaml", files)
    assert spoiling(index)["val and test are identical, pictures"].count == 30
    refuses("val and test share 30 pictures.*held_out", sizes, index)
    assert sizes(write(tmp_path, "allowed.yaml", files | {"allow_overlap": True})) == [30, 30, 30]
    overlap = spoiling(write(tmp_path, "o.yaml", {"train": "train.json", "held_out": "more.json", "image_root": root}))
    assert sum(overlap[what].count for what in overlap if what.startswith("pictures in train and")) == 2
    index = write(tmp_path, "h.yaml", {"train": "train.json", "held_out": "rest.json", "image_root": root})
    names = [load_dataset(str(index), split=split).image_ids for split in SPLITS]
    assert sorted(names[1] + names[2]) == sorted(name for name, _ in pairs[30:])
    assert min(map(len, names)) >= 8
    for letter in "ab":
        write(tmp_path, f"{letter}.json", coco([(name[2:], texts) for name, texts in pairs if name[0] == letter]))
    folders = {"train": "a.json", "held_out": "b.json", "image_root": root, "folders": {"train": "a", "held_out": "b"}}
    expect(write(tmp_path, "f.yaml", folders), {"train": [row for row in pairs if row[0][0] == "a"]})


def test_options_columns_categories_and_limit(tmp_path, drawn, refuses):
    root, pairs = drawn
    content = [{"image": name, "caption": texts, "category": name[0]} for name, texts in pairs]
    dataset = load_dataset(str(write(tmp_path, "c.json", content)), split="train", image_root=root, limit=9)
    assert len(dataset) == 9
    assert dataset.categories == [name[0] for name in dataset.image_ids]
    bare = content[1]["image"]
    del content[1]["category"]
    dataset = load_dataset(str(write(tmp_path, "d.json", content)), split=hashed_split(bare), image_root=root)
    assert dataset.categories == [f"none: {name}" if name == bare else name[0] for name in dataset.image_ids]
    lines = [f"{name},{text}\n" for name, texts in pairs for text in texts]
    path = write(tmp_path, "x.csv", "".join(["Bild,Satz\n", *lines]))
    columns = {"image_column": "Bild", "caption_column": "Satz"}
    expect(path, hashed(pairs), image_root=root, **columns)
    expect(write(tmp_path, "x.yaml", {"all": "x.csv", "image_root": root, **columns}), hashed(pairs))
    wrong = {"keep_flagged": "no", "max_bad_pictures": -1, "caption_column": ["Satz"], "split_seed": "x", "limit": "3"}
    for option, value in wrong.items():
        message, options = f"{option}( is |=){re.escape(repr(value))}", columns | {option: value}
        refuses(message, load_dataset, str(path), split="train", image_root=root, **options)


LONE = {"image": "a", "caption": "a"}
ONE = {"images": [{"id": 1, "file_name": "a"}]}
ANNOTATION = {"image_id": 1, "caption": "a", "split": "val"}
BAD_CONTENT = [
    ("x.json", {"pictures": []}, "dict with keys 'pictures', which is not a known format.*COCO captions"),
    ("x.json", [], "an empty list.*supported formats"),
    ("x.json", [LONE, {"caption": "a"}], "row 1: the picture's path is None"),
    ("x.json", [["a.jpg", "a"]], "row 0 is .*expected keys and values.*list JSON"),
    ("x.json", [LONE | {"caption": [5]}], "row 0: a caption of 'a' is 5"),
    ("x.json", [LONE | {"image": "caf\udce9.png"}], "is not UTF-8: rename"),
    ("x.json", [LONE | {"image": k, "image_id": 1} for k in "ab"], "image_id 1 names 'a' and 'b'"),
    ("x.json", [LONE | {"split": split} for split in ("train", "val")], "splits 'train' and 'val': use one"),
    ("x.json", [LONE | {"split": "val"}, LONE | {"image": "b"}], "'b' has no split"),
    ("x.json", {"images": [{"id": 1, "file_name": k} for k in "ab"], "annotations": []}, "duplicate id 1, for 'a' and"),
    ("x.json", ONE | {"annotations": [{"image_id": 2, "caption": "a"}]}, r"annotations\[0\]: image_id 2 is not the id"),
    ("x.json", {"images": [ONE["images"][0] | {"split": "test"}], "annotations": [ANNOTATION]}, "in splits 'test' and"),
    ("x.json", ONE | {"annotations": []}, "'a' has no caption"),
    ("x.json", {"images": [{"id": None, "file_name": "a"}], "annotations": []}, "lacks the key 'id' or its value"),
    ("x.txt", "a.jpg#0,a dog\n", "a header is missing, or the tab of a.jpg#0<TAB>caption"),
    ("x.json", {"images": [{"sentences": []}]}, r"images\[0\] lacks the key 'filename'"),
    ("x.json", [LONE | {"image": f"{i}.jpg"} for i in range(3)], "needs 5 or more"),
    ("x.json", "[" * 100_000, "is not valid JSON"),
    ("x.jsonl", '{"image": "a", "caption": "a"}\n{\n', "line 2 is not valid JSON"),
    ("x.yaml", {"train": "a.json", "tset": "b.json"}, "unknown key 'tset'.*held_out"),
    ("x.yaml", {"train": "absent.json"}, "train names 'absent.json'"),
    ("x.yaml", {"train": [], "image_root": "absent"}, "absent is not a folder"),
    ("x.yaml", {"train": [], "split_seed": -1}, "split_seed is -1, expected"),
    ("x.yaml", {"train": [LONE] * 999}, "train is .{200}, expected text or a list of texts$"),
    ("x.yaml", "train: [a", "is not valid YAML"),
    ("x.csv", "Bild,title\na.jpg,a\n", "columns Bild, title; none of them is a usual image column.*image_column"),
    ("x.csv", "filepath,words\na.jpg,a\n", "none of them is a usual caption column \\(title, caption"),
    ("x.csv", "image,path,caption\n", "image, path may all name the picture.*image_column"),
    ("x.csv", "", "has no header"),
    ("x.csv", "a.jpg,one\nb.jpg,two\n", "'a.jpg' looks like a picture: a header is missing"),
    ("x.csv", 'filepath,title\na.jpg,"one\n', "line 2: unexpected end of data; check the quotes"),
    ("x.csv", b"filepath,title\na.jpg,caf\xe9\n", r"not UTF-8 \(byte 24 is 0xe9\) on line 2"),
    ("x.csv", b"filepath,title\na.jpg,\0\n", "NUL bytes on line 2"),
    ("x.csv", "image,caption\na.jpg,一只狗\n".encode("utf-16-le"), "not UTF-8 but UTF-16 without .*save it as UTF-8"),
    *(("x.csv", f"image,caption,{k}\na,b,x\n", f"line 2, {k}: split 'x' is") for k in ("is_train", "partition")),
    ("x.jsonl", '{"image": "a", "caption": "b", "train": true}', "line 1, train: split True is .*rename the column"),
    *(
        ("x.csv", f"image,caption,{k}\na,b,1\nc,d,0.0\n", f"line 2, {k}: split '1' is unknown")
        for k in "for_training inVal valid isHoldout tst used_for_dev test_flag train_mask datasplit".split()
    ),
    ("x.csv", "image,caption,train,val,test\na,b,1,0,\nc,d,,,1\n", "columns train, val, test may all hold the split"),
    *(("x.csv", f"image,caption,set\na,b,{name}\n", f"set: split '{name}' is") for name in ("train2014", "eval")),
    *(("x.json", [LONE | {"caption": text}], "is a missing value") for text in (None, float("nan"), [None, "one"])),
    ("x.csv", "image,caption,subset,split\na,b,val,val\n", "columns subset, split may all hold the split"),
    ("x.csv", "\u200bimage,caption\na,b\n", r"columns \\u200bimage"),
    ("x.csv", 'image,caption\na, "b, c"\n', "remove the blank before"),
    ("x.json", '[{"image": "a", "caption": "b", "caption": "c"}]', "the key 'caption' appears twice"),
    ("x.jsonl", '{"image": "a", "caption": "b", "image": "c"}', "line 1 .*the key 'image' appears twice"),
    ("x.yaml", "all: x.csv\nall: y.csv\n", "the key 'all' appears twice"),
    ("x.yaml", {"train": [], "folders": {"trian": "x"}}, "folders has the unknown key 'trian'"),
    ("x.json", [LONE | {"image": ".x/a"}], "is hidden"),
    ("x.json", [LONE | {"category": kind} for kind in "bc"], "'a' is 'b' and 'c': use one category"),
    *(
        ("x.csv", f"image,caption,{name}\na,b,{x}\nc,d,{y}\n", f"column {name} .*does not clearly leave captions out")
        for name, x, y in (("nsfw", 0, 0.0003), ("spam", "ham", "spam"), ("is_rejected", "ok", "bad"))
    ),
    ("x.csv", 'image,caption\na,"""[""""b"""", """"c""""]"""\n', "is a structure"),
    ("x.csv", "image,caption,use\na,b,train\nc,d,test\ne,f,demo\n", "line 4, use: split 'demo' is unknown"),
    ("x.csv", 'image,caption\na,"[b, c]"\nd,"{e, f}"\n', "every caption is in brackets, like .*write lists as JSON"),
    ("x.csv", 'image,caption\na,(b)\nc,"(d, e)"\n', "every caption is in brackets"),
    ("x.csv", "image,caption,notes\na,b,\nc,d, e,\n", "line 3: 4 fields, the header has 3"),
    ("x.csv", "image,caption,,\na,b,c,\n", "column 3 has no name but holds 'c'"),
    ("x.txt", "a.jpg\ttrain\nb.jpg\t3\n", "is a number, yes, no or a split, such as '3'.*.image, caption"),
    ("x.csv", "image,caption,why\na,b,train\nc,d,hold-out\n", "why: split 'hold-out' is unknown"),
    ("x.csv", "image,caption,why\n" + "".join(f"a{k},b,train-{k}\n" for k in range(20)), "why: split 'train-0' is"),
    ("x.json", [LONE | {"image": "a/" * 600 + "b"}], "a name that no file can have"),
    ("x.parquet", "PAR1", "is a .parquet file, which is not a known format"),
]


def test_keep_flagged_also_keeps_flags_other_than_yes_and_no(tmp_path):
    path = write(tmp_path, "x.csv", "image,caption,nsfw\na,b,0.2\nc,d,0.3\n")
    assert read_collection(path, keep_flagged=True).used.clean.tolist() == ["b", "d"]


@pytest.mark.parametrize(("name", "content", "message"), BAD_CONTENT)
def test_bad_content_is_named(tmp_path, name, content, message):
    for number in range(3):
        (tmp_path / f"{number}.jpg").touch()
    with pytest.raises(ValueError, match=f"(?s){message}") as error:
        load_dataset(str(write(tmp_path, name, content)), split="test")
    assert str(tmp_path) in str(error.value)


def test_bad_pictures_are_errors_or_skipped_under_a_cap(tmp_path, capsys, refuses):
    pairs = draw_collection(tmp_path, 40)
    part = hashed(pairs)["train"]
    gone, empty, damaged = (tmp_path / part[k][0] for k in (0, 3, 5))
    gone.unlink()
    empty.write_bytes(b"")
    damaged.write_bytes(damaged.read_bytes()[:-300])  # the header is intact
    path = str(write(tmp_path, "x.json", list_rows(pairs)))
    refuses(r"2 pictures of train cannot be used, none is allowed.*is missing", load_dataset, path, split="train")
    refuses("3 pictures .*, max_bad_pictures=2 allows 2", load_dataset, path, split="train", max_bad_pictures=2)
    remaining = {"train": [row for k, row in enumerate(part) if k not in (0, 3, 5)]}
    dataset = expect(path, remaining, max_bad_pictures=3)
    assert f"3 of {len(part)} pictures of train left out" in capsys.readouterr().out
    assert dataset.info["bad_pictures_left_out"] == sorted(part[k][0] for k in (0, 3, 5))
    expect(write(tmp_path, "i.yaml", {"all": "x.json", "max_bad_pictures": 3}), remaining)
    for path_ in (gone, empty):
        shutil.copy(tmp_path / part[1][0], path_)
    lazy = load_dataset(path, split="train")  # headers are intact: the fault shows when the picture is read
    refuses("is damaged or truncated", lazy.pixels, [5], 8)


TOKENS = [f"{name}#{k}" for name in NAMES for k in range(2)]
SENTENCES = [{"raw": "a dog 0"}, {"raw": "a cat", "isRejected": True}, {"raw": "a dog 1", "is-precanned": 0}]
READABLE = {
    "captions.txt": "".join(f"{line}\ta dog {line[-1]}\n" for line in TOKENS),
    "headed/captions.txt": "image,caption\n" + "".join(f"{line},a dog {line[-1]}\n" for line in TOKENS),
    "bars/captions.txt": "image|caption\n" + "".join(f"{line[:-2]}| a dog {line[-1]}\n" for line in TOKENS),
    "metadata.jsonl": "\n".join(json.dumps({"file_name": line[:-2], "text": f"a dog {line[-1]}"}) for line in TOKENS),
    "x.json": "\n".join(json.dumps({"image": line[:-2], "caption": f"a dog {line[-1]}"}) for line in TOKENS),
    "cr.csv": "image,caption\r" + "".join(f"{line[:-2]},a dog {line[-1]}\r" for line in TOKENS),
    "crlf.csv": "filepath,title\r\n" + "".join(f"{line[:-2]},a dog {line[-1]}\r\n" for line in TOKENS),
    "cr.jsonl": "\r".join(json.dumps({"image": line[:-2], "caption": f"a dog {line[-1]}"}) for line in TOKENS),
    "comma.csv": rows("a dog 0", "", "", header="image,caption,note") + f"t05.png,a dog 1,{'x' * 140_000},\n",
    "coco.json": json.dumps(coco([(n, ["a dog 0"]) for n in NAMES])).replace('0"}', '0", "caption_2": "a dog 1"}'),
    "k.json": json.dumps({"images": [{"filename": name, "sentences": SENTENCES} for name in NAMES]}),
    "x.csv": rows('"A dog 0"') + "".join(f'{name},"a ""dog,""\n\n1"\n' for name in NAMES),
    "first.csv": "caption,image\n" + "".join(f'"a\n""dog"" {line[-1]}",{line[:-2]}\n' for line in TOKENS),
    "marks.csv": "image;caption;note\n" + "".join(f'{line[:-2]};"a\n""dog"" {line[-1]}";0\n' for line in TOKENS),
    "link.csv": "image,caption,url.jpg\n" + "".join(f'{line[:-2]},"a\n""dog"" {line[-1]}",0\n' for line in TOKENS),
}
UNCLOSED = "image\tcaption\n" + "".join(f'"{line[:-2]}"\t"a dog {line[-1]}\n' for line in TOKENS)
READABLE |= dict.fromkeys(("x.tsv", "x.token", "tabs.csv", "x.txt"), UNCLOSED)  # with tabs, a lone quote is plain text


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", READABLE)
def test_tables_and_lines_are_read_by_their_content_in_every_marked_encoding(place, name, encoding):
    path = write(place, name, READABLE[name].encode(encoding))
    assert captions(path, image_root=place)["t05.png"] == ["a dog 0", "a dog 1"]
    assert not report_on(path, image_root=str(place)).spoiled


def test_columns_of_coco_and_karpathy_are_chosen_and_flags_of_pictures_hold(place):
    content, sentence = coco(), {"raw": "a dog", "caption_zh": "一只狗", "is_rejected": False}
    content["images"][0]["is_rejected"] = True
    content["annotations"] = [row | sentence for row in content["annotations"]]
    for data in (content, {"images": [{"filename": name, "sentences": [sentence]} for name in NAMES]}):
        texts = captions(path := write(place, "x.json", data), caption_column="caption_zh")
        assert "without spaces" in str(report_on(path, caption_column="caption_zh"))
        assert (texts["t01.png"][0], "t00.png" in texts) == ("一只狗", data is not content)


VALID = {name: READABLE[name] for name in ("x.csv", "captions.txt", "metadata.jsonl", "coco.json", "k.json")}
VALID |= {"i.yaml": "all: x.csv\nimage_root: .\n", "l.json": json.dumps(list_rows([(n, ["a", "b"]) for n in NAMES]))}
VALUES = [None, 5, -1, 1e400, True, "", "a", [], {}, [None], [[]], {"a": 1}, ["a", 5], float("nan"), "\udce9", "\0"]


def damaged(name, draw):
    """Contents of a damaged file: cut off, noisy, in another encoding, with a value of another type."""
    intact = VALID[name].encode()
    yield from (b"", b"\0", b"\xff\xfe", b"\xff\xfe\0", b"\x89PNG\r\n\x1a\n" + bytes(99), b"[" * 50_000, intact[::-1])
    yield from (intact[: draw.randrange(len(intact))], intact.replace(b'"', b"", 1), VALID[name].encode("utf-16"))
    for _ in range(9):
        noisy = bytearray(intact)
        for _ in range(draw.randrange(1, 9)):
            noisy[draw.randrange(len(noisy))] = draw.randrange(256)
        yield bytes(noisy)
    for value in VALUES * name.endswith("json"):
        content = json.loads(VALID[name])
        spot = (content if isinstance(content, list) else content[draw.choice(list(content))])[draw.randrange(3)]
        spot[draw.choice(list(spot))] = value
        yield json.dumps(content).encode()
    if name == "i.yaml":
        for key in "train all held_out image_root folders split_seed max_bad_pictures allow_overlap sources".split():
            yield from (yaml.safe_dump({"all": "x.csv", key: value}).encode() for value in VALUES[:-1])
        yield from (b"all: 2024-13-45", b"{[a]: b, all: x.csv}", b"all: x.csv\nall: [x.csv, x.tsv]", b"a: &a [*a]")


@pytest.mark.parametrize("name", VALID)
def test_no_damaged_file_gives_a_traceback(place, name):
    write(place, "x.csv", VALID["x.csv"])
    for data in damaged(name, random.Random(name)):
        (place / name).write_bytes(data)
        for look in (report_on, lambda path: load_dataset(str(path), split="train")):
            try:
                output = f"{place} {look(place / name)}"
            except ValueError as error:
                output = str(error)
            output.encode()  # no lone surrogates
            assert str(place) in output, data[:200]
