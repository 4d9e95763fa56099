"""What users' spreadsheets, systems and languages bring: read whole, or refused with a reason."""

import json
import os
import random

import numpy as np
import pytest
import yaml
from PIL import Image

from rvlr_lib.data import dataset_stamp, load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.collection import read_collection

NAMES = [f"t{i:02d}.png" for i in range(40)]


NUMBERED = """image,caption,caption_2,caption_3; image,caption,caption,caption; image,caption,caption.1,caption.2;
    image,caption_1,caption_2,caption_3; image,caption1,caption2,caption3; image,Caption 1,Caption 2,Caption 3;
    filename,text,text_2,text-3; Image,CAPTION,Caption2,caption (3); filepath,title,title.1,title.2;
    img,sentence0,sentence1,sentence2; image,captions,caption_02,caption#3""".replace("\n   ", "").split("; ")
AMBIGUOUS = """image,caption,title filepath,title,caption image,text,caption image,caption,description
    image,caption,caption_en image,caption,long_caption image,caption_1,title_1 image,caption,humanCaption
    image,caption,comment""".split()
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


@pytest.fixture
def place(tmp_path):
    """A folder of 40 pictures."""
    for i, name in enumerate(NAMES):
        Image.new("RGB", (5 + i % 3, 4), (5 * i, 255 - 3 * i, i)).save(tmp_path / name)
    return tmp_path


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


# Texts


@pytest.mark.parametrize(
    "cell",
    [
        '"[""view one"", ""view two""]"',
        '''"['view one', 'view two']"''',
        '''"('view one', 'view two')"''',
        '''"['view one', u'view two']"''',
        '" [ ""view one"",""view two"" ] "',
        '''"[""view one"", 'view two']"''',
    ],
)
def test_a_list_in_a_cell_is_several_captions(place, cell):
    assert captions(write(place, "x.csv", rows(cell)))["t00.png"] == ["view one", "view two"]
    tab = cell.strip('"').replace('""', '"')
    assert captions(write(place, "x.tsv", rows(tab, mark="\t")))["t00.png"] == ["view one", "view two"]
    path = write(place, "x.json", json.dumps([{"image": name, "caption": tab} for name in NAMES]))
    assert captions(path)["t39.png"] == ["view one", "view two"]


@pytest.mark.parametrize(
    "cell",
    [
        "\"['view one' 'view two']\"",
        '"[""view one"", [""two""]]"',
        '"{""en"": ""one""}"',
        '"[""view one"", 2]"',
        '"[""cut off"", ""]"',
        "\"[{'raw': 'one'}]\"",
        "\"{'one', 'two'}\"",
        "\"array(['one', 'two'])\"",
        "\"['one'\n 'two']\"",
    ],
)
def test_other_structures_in_a_cell_spoil(place, cell):
    text = rows("a dog", names=NAMES[1:]) + f"t00.png,{cell}\n"
    assert spoiled(write(place, "x.csv", text))["cells that hold a structure"].count == 1


@pytest.mark.parametrize("cell", ["[a dog]", "(a dog)", "a [dog]", "{dog}"])
def test_brackets_alone_are_no_structure(place, cell):
    assert captions(write(place, "x.csv", rows(cell)))["t00.png"] in (["a dog"], ["dog"])


@pytest.mark.parametrize("text", ["nan", "NaN", "None", "null", "NULL", " <NA> ", "N/A", '"[""None""]"', '"[null]"'])
def test_placeholders_spoil(place, text):
    told = spoiled(write(place, "x.csv", rows("a dog", names=NAMES[1:]) + f"t00.png,{text}\n"))
    assert told["placeholders of missing captions"].count == 1


def test_missing_values_in_json_spoil(place):
    for value in (None, float("nan"), [None, "one"], "null"):
        items = [{"image": name, "caption": "a dog"} for name in NAMES[1:]] + [{"image": NAMES[0], "caption": value}]
        assert "placeholders of missing captions" in spoiled(write(place, "x.json", json.dumps(items)))
    assert captions(write(place, "x.csv", rows("none of them", "a null result", header="image,caption,caption2")))[
        "t00.png"
    ]


# Columns


@pytest.mark.parametrize("header", NUMBERED)
def test_numbered_columns_are_all_captions(place, header):
    path = write(place, "x.csv", rows("one", "two", "three", header=header) + "t00.png,four,,five\n")
    found = captions(path)
    assert (found["t00.png"], found["t01.png"]) == (["one", "two", "three", "four", "five"], ["one", "two", "three"])
    assert not spoiled(path)


@pytest.mark.parametrize("header", AMBIGUOUS)
def test_columns_that_may_all_be_captions_are_refused_by_name(place, header):
    path, names = write(place, "x.csv", rows("one dog", "two cats", header=header)), header.split(",")
    with pytest.raises(ValueError, match="may all hold captions.*caption_column") as error:
        load_dataset(str(path), split="train")
    assert names[1] in str(error.value)
    assert names[2] in str(error.value)
    assert captions(path, caption_column=names[2])["t00.png"] == ["two cats"]
    key = {"image": NAMES[0], names[1]: "one dog", names[2]: "two cats"}
    with pytest.raises(ValueError, match="may all hold captions"):
        read_collection(write(place, "x.json", json.dumps([key])))


def test_two_columns_of_pictures_are_refused_and_other_columns_are_named(place):
    path = write(place, "x.csv", "image,path,caption\n")
    with pytest.raises(ValueError, match="image, path may all name the picture.*image_column"):
        load_dataset(str(path), split="train")
    path = write(place, "x.csv", rows("one dog", "12", "5", header="image,caption,width,caption_id"))
    assert "not read: width, caption_id" in str(check(path))


# Lines


def test_quotes_mean_nothing_beside_tabs(place):
    lines = [f"{name}\ta dog" for name in NAMES]
    lines[2], lines[30] = 't02.png\t"so it begins', 't30.png\tand ends"'
    for name in ("x.tsv", "x.csv", "x.txt"):
        path = write(place, name, "image\tcaption\n" + "\n".join(lines))
        assert len(captions(path)) == 40
        assert captions(path)["t02.png"] == ["so it begins"]
        report = adds_up(check(path))
        assert report.accounts["rows"] == (40, {"used": 40})
        assert report.accounts["lines"][0] == 41


@pytest.mark.parametrize("mark", [",", ";", "|"])
@pytest.mark.parametrize("names", [NAMES, [f"{i:04d}" for i in range(40)]])
def test_quotes_that_swallow_lines_spoil(place, mark, names):
    lines = [f"{name}{mark}a dog" for name in names]
    lines[2], lines[30] = f'{names[2]}{mark}"so it begins', f'{names[30]}{mark}and ends"'
    path = write(place, "x.csv", f"image{mark}caption\n" + "\n".join(lines) + "\n")
    assert spoiled(path)["quotes that swallow lines"].count == 1
    report = check(path)
    assert report.accounts["rows"] == (12, {"used": 11, "quotes that swallow lines": 1})
    assert report.accounts["lines"] == (41, {"rows": 12, "header": 1, "blank": 0, "further lines of quoted fields": 28})


def test_captions_over_several_lines_with_commas_are_right(place):
    path = write(place, "x.csv", rows('"A dog, brown,\nruns, ""fast"", 3 times\nand sleeps"'))
    assert captions(path)["t07.png"] == ["a dog brown runs fast 3 times and sleeps"]
    assert not spoiled(path)


@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_rows_with_too_few_or_too_many_fields_are_counted_and_explained(place, mark):
    path = write(place, "x.csv", rows("a dog", mark=mark) + f"t01.png\n\np02.png{mark}a{mark}b\n")
    told = spoiled(path)
    few, many = told["rows with too few fields"], told["rows with too many fields"]
    assert "line 42: 1 field, the header has 2: caption missing" in few.examples[0]
    assert "quote" not in few.examples[0]
    assert ("a tab" if mark == "\t" else "quotes") in many.examples[0]
    report = check(path)
    assert report.accounts["rows"][0] == 42
    assert report.accounts["lines"] == (44, {"rows": 42, "header": 1, "blank": 1, "further lines of quoted fields": 0})


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"{name}#{k}\ta dog {k}\n" for name in NAMES for k in range(2)),
        rows("a dog 0") + rows("a dog 1").partition("\n")[2],
        "image|caption\n" + "".join(f"{name}| a dog {k}\n" for name in NAMES for k in range(2)),
        "image,caption\n" + "".join(f"{name}#{k},a dog {k}\n" for name in NAMES for k in range(2)),
    ],
)
def test_captions_txt_is_read_by_its_content(place, text):
    path = write(place, "captions.txt", text)
    assert captions(path)["t05.png"] == ["a dog 0", "a dog 1"]
    assert not spoiled(path)


def test_json_lines_are_read_and_bad_ones_counted(place):
    lines = [json.dumps({"image": name, "caption": "a dog"}) for name in NAMES]
    for name in ("x.jsonl", "x.json", "x.ndjson"):
        assert len(captions(write(place, name, "\n".join(lines)))) == 40
    path = write(place, "x.jsonl", "\n".join([*lines, "{", ""]))
    assert "line 41 is no valid JSON" in spoiled(path)["lines that are no JSON"].examples[0]
    lines = [json.dumps({"file_name": name, "text": "a dog"}) for name in NAMES]
    assert len(captions(write(place, "metadata.jsonl", "\n".join(lines)))) == 40


def test_encodings_are_named(place):
    for encoding, told in (("utf-16", "UTF-16"), ("utf-16-le", "UTF-16 .without"), ("utf-16-be", "UTF-16 .without")):
        for text in (rows("ein Hund"), rows("一只狗在跑步，一只猫在睡觉，天气很好")):
            (place / "x.csv").write_bytes(text.encode(encoding))
            with pytest.raises(ValueError, match=rf"x.csv is not UTF-8 but {told}.*save it as UTF-8") as error:
                load_dataset(str(place / "x.csv"), split="train")
            assert "\0" not in str(error.value)


# COCO, flags


def coco(key=int, other=int, **flags):
    return {
        "images": [{"id": key(i), "file_name": name} for i, name in enumerate(NAMES)],
        "annotations": [
            {"image_id": other(i), "caption": f"a dog {k}", **{f: k in on for f, on in flags.items()}}
            for i in range(40)
            for k in range(3)
        ],
    }


def test_flagged_captions_are_left_out_counted_or_kept(place):
    content = coco(is_rejected=(1,), is_precanned=(2,))
    for row in content["annotations"][:3]:
        row["is_rejected"] = True
    path = write(place, "x.json", json.dumps(content))
    report = adds_up(check(path))
    assert not report.spoiled
    assert report.accounts["captions"] == (
        120,
        {
            "used": 39,
            "left out as is_rejected": 41,
            "left out as is_precanned": 39,
            "left out as is_rejected,is_precanned": 1,
        },
    )
    assert report.accounts["pictures"][1]["with flagged captions only"] == 1
    assert captions(path)["t01.png"] == ["a dog 0"]
    assert len(captions(path, keep_flagged=True)["t00.png"]) == 3
    index = write(place, "i.yaml", yaml.safe_dump({"all": "x.json", "keep_flagged": True}))
    assert len(load_dataset(str(index), split="train").captions) == 3 * len(load_dataset(str(index), split="train"))
    text = rows("one", "0", header="image,caption,is_rejected") + "".join(f"{name},two,True\n" for name in NAMES)
    assert captions(write(place, "x.csv", text))["t05.png"] == ["one"]


def test_ids_of_two_types_are_matched_and_said_or_refused_by_type(place):
    for key, other in ((str, int), (int, str)):
        path = write(place, "x.json", json.dumps(coco(key, other)))
        assert len(captions(path)) == 40
        assert "text and number" in str(check(path))
    path = write(place, "x.json", json.dumps(coco(lambda i: f"{i:05d}", int)))
    assert "write both as numbers or both as the same text" in spoiled(path)["captions of no picture"].examples[0]


# Folders


def fill(place, folders, count=6):
    for folder in folders:
        (place / folder).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.new("RGB", (6, 5), (len(folder), 20 * k, len(os.listdir(place)))).save(place / folder / f"{k}.png")
            write(place / folder, f"{k}.txt", f"a dog {k}\n\nof {folder}\n")


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
