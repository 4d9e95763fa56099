"""What users' spreadsheets and languages bring: read whole, or refused with a reason."""

import json

import pytest
import yaml
from user_tools import NAMES, adds_up, captions, coco, rows, spoiled, write

from rvlr_lib.data import load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.collection import read_collection

NUMBERED = """image,caption,caption_2,caption_3; image,caption,caption,caption; image,caption,caption.1,caption.2;
    image,caption_1,caption_2,caption_3; image,caption1,caption2,caption3; image,Caption 1,Caption 2,Caption 3;
    filename,text,text_2,text-3; Image,CAPTION,Caption2,caption (3); filepath,title,title.1,title.2;
    img,sentence0,sentence1,sentence2; image,captions,caption_02,caption#3""".replace("\n   ", "").split("; ")
AMBIGUOUS = """image,caption,title filepath,title,caption image,text,caption image,caption,description
    image,caption,caption_en image,caption,long_caption image,caption_1,title_1 image,caption,humanCaption
    image,caption,comment""".split()


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
