"""Users' spreadsheets, languages, folders and damaged files: read completely, or refused with a reason."""

import json
import os

import pytest

from rvlr_lib.data import dataset_stamp, load_dataset
from rvlr_lib.data.check import check
from rvlr_lib.data.files import printable
from tests.data.user_tools import NAMES, SPLITS, captions, coco, fill_folders, report_on, rows, sizes, spoiling, write

ONE, TWO = "view one", "view two"
EMPTY, MISSING, STRUCTURE = "empty captions", "placeholders of missing captions", "cells that hold a structure"
CELLS = {  # captions read from a cell, or why it is refused -> cells of JSON files or spreadsheets
    (ONE, TWO): (
        *(str([ONE, TWO]), str((ONE, TWO)), f"['{ONE}', u'{TWO}']", f' ["{ONE}","{TWO}"]'),
        *(f"'{ONE}', '{TWO}'", f'"{ONE}", "{TWO}"', f"u'{ONE}',u'{TWO}',"),
    ),
    ("tis the season", "a dog"): ("""["'Tis the season", 'a dog']""", """['"Tis the" season', "a 'dog'"]"""),
    ("none of the dogs",): ("(None of the dogs)", "[None of] the dogs"),
    ("a man in red",): ('"[A man] in red"',),
    (ONE, TWO, ONE): (json.dumps([ONE, TWO, ONE]),),
    STRUCTURE: (
        """['one' 'two']|["one", ["two"]]|["one", 2]|{"en": "one"}|{'one', 'two'}|[{'raw': 'one'}]|['one'\n 'two']"""
        "|array(['one', 'two'])|[1, 2, 3]|(1.0, 2.0)|{1: 'a'}|[True]|b'a dog'|frozenset({'a dog'})|dict_values(['a'])"
        "|tensor([1,2])|np.array(['a'])|['a dog', 'a cat'|[“a dog”, “a cat”]|[np.str_('a dog')]|[None 'a dog']"
        r"""|[\"a dog\", \"a cat\"]|["a ""dog"", "b"]|Caption(text='a dog')|u'a dog'|"a dog";'a cat'; "a cow\""""
    ).split("|"),
    ("guernica by picasso",): ('("Guernica" by Picasso)', "['Guernica' by Picasso]"),
    ("a dog",): ("[a dog]", "(a dog)", "a [dog]", "{a dog}"),
    ("set of three",): ("Set (of three)", "(set) of (three)"),
    ("1 nancy none",): ("[1] Nancy (none)", "(1, nancy none)"),
    MISSING: (
        r"""nan|NaN|None|null| <NA> |N/A|'nan'|["None"]|[null]|\N|-nan|#NA|#N/A N/A|1.#IND|-1.#QNAN|<null>|<none>|nil"""
        """|NaN.|null,|"nan", "a"|#NAME?|#REF!|#VALUE!|#DIV/0!|#N/A|#NULL!|#NUM!|Err:502"""
    ).split("|"),
    EMPTY: ("", "!?", '["cut off", ""]'),
    ("none of them",): ("none of them",),
    ("nil by mouth",): ("nil by mouth",),
    ("a red cat",): ('a "red", "cat"', '"a", red, "cat"', '"a red, cat"', "'a' 'red', 'cat'"),
    ("n",): ("N", "n!"),
    ("value",): ("value!",),
}
FLAGS = {  # captions kept -> column, its value for the captions "one" and "two"
    "two": "caption_rejected 1 0|ignore true false|skip yes no|exclude on off|is_duplicate 1.0 0.00|corrupt x -"
    "|toxic t f|low_quality Y N|is_hidden -1 00|blacklisted TRUE|isRejected spam |approved no yes|keep 0 1.0"
    "|image_valid False True|NSFW NSFW UNLIKELY|drop yes no|accepted no yes",
    "one two": "is_rejected off {}|is_rejected [] 0.00|bad - 0e0|toxic 0.7 0.1|ignore a b|keep  1|approved \\N nan",
}
NUMBERED = """image,caption,caption_2,caption_3; image,caption,caption,caption; image,caption,caption.1,caption.2;
    image,caption_1,caption_2,caption_3; image,caption1,caption2,caption3; image,Caption 1,Caption 2,Caption 3;
    filename,text,text_2,text-3; Image,CAPTION,Caption2,caption (3); filepath,title,title.1,title.2;
    img,sentence0,sentence1,sentence2; image,captions,caption_02,caption#3""".replace("\n   ", "").split("; ")
AMBIGUOUS = """image,caption,title filepath,title,caption image,text,caption image,caption,description
    image,caption,caption_en image,caption,long_caption image,caption_1,title_1 image,caption,humanCaption
    image,caption,comment""".split()
FOLDERS = "train+val+test Train+VAL+Test TRAINING+Validation+testing train+dev+test train+Valid+test".split()
FOLDERS += ["images/train+images/val+images/test", "a/train+a/val+a/test+b/train"]
NOISE = """.ipynb_checkpoints/ .ipynb_checkpoints/a.png __MACOSX/train/._0.png .DS_Store train/._x.jpg Thumbs.db
    @eaDir/x/a.jpg notes/readme.md .git/x.png #recycle/a.png $RECYCLE.BIN/a.png""".split()
NOISE.append("System Volume Information/a.png")
MIXED = "train+val+more train+val+test2 train2014+val2014 train_images+test_images train+. a/train+a/test+b Train+extra"
MIXED += " trn+vld+tst 01_train+02_val+03_test mytrain+myval birds_train+birds_test trainA+testA fold1_train+fold2_val"


@pytest.mark.parametrize(("expected", "cell"), [(texts, cell) for texts, cells in CELLS.items() for cell in cells])
def test_what_a_cell_holds(place, cell, expected):
    quoted = '"' + cell.replace('"', '""') + '"'
    sound = rows("a dog", names=NAMES[1:])
    items = [{"image": name, "caption": "a dog"} for name in NAMES[1:]]
    files = {"x.csv": sound + f"t00.png,{quoted}\n", "x.json": [*items, {"image": NAMES[0], "caption": cell}]}
    files["x.tsv"] = sound.replace(",", "\t") + f"t00.png\t{cell}\n"
    for name in files if "\n" not in cell else ("x.csv", "x.json"):
        path = write(place, name, files[name])
        if isinstance(expected, tuple):
            assert captions(path)["t00.png"] == list(expected)
        else:
            assert spoiling(path)[expected].count == 1


@pytest.mark.parametrize("header", NUMBERED)
def test_numbered_columns_are_all_captions(place, header):
    path = write(place, "x.csv", rows("one", "two", "three", header=header) + "t00.png,four,,five\n")
    texts = captions(path)
    assert (texts["t00.png"], texts["t01.png"]) == (["one", "two", "three", "four", "five"], ["one", "two", "three"])
    assert not spoiling(path)
    if len(keys := dict.fromkeys(header.split(","))) == 4:
        items = [dict(zip(keys, (name, ["one", "two"], "three", None), strict=True)) for name in NAMES]
        assert captions(write(place, "x.json", items))["t00.png"] == ["one", "two", "three"]


@pytest.mark.parametrize("header", AMBIGUOUS)
def test_columns_that_may_all_be_captions_are_refused_by_name(place, header, refuses):
    path, names = write(place, "x.csv", rows("one dog", "two cats", header=header)), header.split(",")
    item = {names[0]: NAMES[0], names[1]: "one dog", names[2]: "two cats"}
    for p in (path, write(place, "x.json", [item]), write(place, "x.jsonl", json.dumps(item))):
        refuses(rf"{names[1]}, {names[2]} may all hold captions.*caption_column", load_dataset, str(p), split="train")
    assert captions(path, caption_column=names[2])["t00.png"] == ["two cats"]
    path = write(place, "x.csv", rows("one dog", "12", "5", header="image,caption,width,caption_id"))
    assert "not read: width, caption_id" in str(report_on(path))


ORDINARY = {  # header -> rest of a row, as shops, libraries and spreadsheets write it
    "image,caption,body": 'a dog,"<p>\n<img src=""cdn/0.jpg"">\n</p>"',
    "image;caption;body": 'a dog;"Ort: Köln;\nDatum: 2020; Autor: A"',
    "image,caption,split,is_test,fold": "a dog,val,0,3",
    **dict.fromkeys(("image,caption,status", "image,caption,author"), "a dog,valid"),
    **dict.fromkeys(("File Name,Caption", "image-path,text", "imageName,caption", "image;caption;;"), "a dog"),
    "image,caption,n_captions,has_caption,caption_url": "a dog,2,1,x",
}


@pytest.mark.parametrize("header", ORDINARY)
def test_ordinary_tables_are_read(place, header):
    rows_of = [f"{name}{';' if ';' in header else ','}{ORDINARY[header]}" for name in NAMES]
    path = write(place, "x.csv", "\n".join([header, *rows_of]))
    assert dict(captions(path)) == {name: ["a dog"] for name in NAMES}
    assert ("splits as given" in str(report_on(path))) == ("split" in header)


def test_numbers_are_not_guessed_as_captions_ids_restart_per_file_and_tables_in_a_folder_are_named(place, refuses):
    path = write(place, "x.csv", rows("a dog", "12", header="image,post_text,comments"))
    refuses("every caption is a number, yes.*caption_column .image, comments", load_dataset, str(path), split="val")
    assert captions(path, caption_column="post_text")["t00.png"] == ["a dog"]
    alike = write(place, "alike.csv", rows("a cat", "a dog", header="image,post text,post_text"))
    assert captions(alike, caption_column="post_text")["t00.png"] == ["a dog"]  # an exact match comes first
    for number, names in enumerate((NAMES[:20], NAMES[20:])):
        write(place, f"p{number}.json", [{"image": x, "caption": "a", "image_id": k} for k, x in enumerate(names)])
    assert len(captions(write(place, "i.json", {"all": ["p0.json", "p1.json"]}))) == 40
    refuses("no picture has a .txt file; give .* itself", load_dataset, str(place), split="val")
    os.rename(place / NAMES[0], place / "Paris, France.png")
    token = write(place, "x.txt", "\n".join(f"{name}#0\ta dog" for name in ("Paris, France.png", *NAMES[1:])))
    assert captions(token)["Paris, France.png"] == ["a dog"]


@pytest.mark.parametrize("mark", [",", ";", "|"])
@pytest.mark.parametrize("names", [NAMES, [f"{i:04d}" for i in range(40)], ["x" * i + "y" for i in range(40)]])
def test_quotes_that_swallow_lines_spoil(place, mark, names):
    for old, new in zip(NAMES, names, strict=True):
        os.rename(place / old, place / new)
    lines = [f"{name}{mark}a dog" for name in names]
    lines[2], lines[30] = f'{names[2]}{mark}"so it begins', f'{names[30]}{mark}and ends"'
    path = write(place, "x.csv", f"image{mark}caption\n" + "\n".join(lines) + "\n")
    report = report_on(path)
    assert report.spoiled
    assert report.accounts["rows"] == (12, {"used": 11, "quotes that swallow lines": 1})
    assert report.accounts["lines"] == (41, {"rows": 12, "header": 1, "further lines of quoted fields": 28})


@pytest.mark.parametrize("mark", [",", "\t", ";"])
def test_rows_with_too_few_or_too_many_fields_are_counted_and_explained(place, mark):
    path = write(place, "x.csv", rows("a dog", mark=mark) + f"t01.png\n\np02.png{mark}a{mark}b\n")
    faults = spoiling(path)
    few, many = (faults[f"rows with too {kind} fields"].examples[0] for kind in ("few", "many"))
    assert "line 42: 1 field, the header has 2: caption missing" in few
    assert "quote" not in few
    assert ("a tab" if mark == "\t" else "quotes") in many
    accounts = check(path).accounts
    assert accounts["rows"][0] == 42
    assert accounts["lines"] == (44, {"rows": 42, "header": 1, "blank": 1, "further lines of quoted fields": 0})


def test_flagged_captions_are_left_out_counted_or_kept(place):
    content = coco(is_rejected=(1,), is_precanned=(2,))
    for row in content["annotations"][:3]:
        row["is_rejected"] = True
    path = write(place, "x.json", content)
    report = report_on(path)
    fates = {"left out as is_rejected": 41, "left out as is_precanned": 39, "left out as is_rejected,is_precanned": 1}
    assert report.accounts["captions"] == (120, {"used": 39, **fates})
    assert report.accounts["pictures"][1]["with flagged captions only"] == 1
    assert not report.spoiled
    assert captions(path)["t01.png"] == ["a dog 0"]
    assert len(captions(path, keep_flagged=True)["t00.png"]) == 3
    index = write(place, "i.yaml", {"all": "x.json", "keep_flagged": True})
    assert len(load_dataset(str(index), split="train").captions) == 3 * len(load_dataset(str(index), split="train"))
    text = rows("one", "0", header="image,caption,is_rejected") + "".join(f"{name},two,True\n" for name in NAMES)
    assert captions(write(place, "x.csv", text))["t05.png"] == ["one"]


@pytest.mark.parametrize(("kept", "flag"), [(kept, flag) for kept, flags in FLAGS.items() for flag in flags.split("|")])
def test_flags_of_many_names_are_read_if_they_say_yes_or_no(place, kept, flag):
    name, one, two = f"{flag}  ".split(" ")[:3]
    path = write(place, "x.csv", rows("one", one, header=f"image,caption,{name}") + rows("two", two).partition("\n")[2])
    assert captions(path)["t05.png"] == kept.split()
    assert captions(path, keep_flagged=True)["t05.png"] == ["one", "two"]
    assert (f"not read: {name}" in str(report_on(path))) is (flag in ("toxic 0.7 0.1", "ignore a b"))


def test_ids_of_two_types_are_matched_and_noted_or_refused(place):
    for key, reference in ((str, int), (int, str)):
        path = write(place, "x.json", coco(None, key, reference))
        assert len(captions(path)) == 40
        assert "text and number" in str(report_on(path))
    path = write(place, "x.json", coco(None, lambda i: f"{i:05d}", int))
    assert "write both as numbers or both as the same text" in spoiling(path)["captions of no picture"].examples[0]


@pytest.mark.parametrize("header", "fold data_split phase usage set type Split none,split,set set,split,type".split())
def test_splits_are_read_from_the_column_that_holds_them_whatever_its_name(place, header):
    cells = [f"{name},a dog,{',' * header.count(',')}{split}" for name, split in zip(NAMES, SPLITS * 14, strict=False)]
    assert sizes(write(place, "x.csv", f"image,caption,{header}\n" + "\n".join(cells))) == [14, 13, 13]
    others = rows("a dog", "one", "two", "freight", "0.73", "1", header="image,caption,type,phase,train,val,set")
    assert "not read: type, phase, train, val, set" in str(report_on(write(place, "x.csv", others)))
    scores = rows("a dog", "train", "1", "0", header="image,caption,split,val,eval")
    assert "not read: val, eval" in str(report_on(write(place, "x.csv", scores)))


@pytest.mark.parametrize("folders", FOLDERS)
def test_split_folders_are_recognised_among_other_files(tmp_path, folders):
    fill_folders(tmp_path, folders.split("+"))
    for noise in NOISE:
        target = tmp_path / noise
        target.parent.mkdir(parents=True, exist_ok=True)
        target.mkdir(exist_ok=True) if noise.endswith("/") else target.write_bytes(b"x")
        assert sizes(tmp_path) == [6 if len(folders.split("+")) < 4 else 12, 6, 6]
    report = report_on(tmp_path)
    assert not report.spoiled
    assert report.accounts["files"][0] == sum(len(files) for _, _, files in os.walk(tmp_path))


@pytest.mark.parametrize("folders", MIXED.split())
def test_folders_partly_named_like_splits_are_refused_by_name(tmp_path, folders, refuses):
    fill_folders(tmp_path, folders.split("+"))
    for look in (check, lambda path: load_dataset(str(path), split="train")):
        refuses(f"{folders.split('+')[0].split('/')[-1]}.* look like splits", look, tmp_path)


def test_links_inside_are_followed_and_everything_else_is_refused_by_name(tmp_path):
    root = tmp_path / "root"
    fill_folders(root, ("train", "val", "test", "pool/a"))
    fill_folders(tmp_path, ("outside",))
    (root / "train" / "more").symlink_to(root / "pool")
    (root / "val" / "one.png").symlink_to(root / "pool" / "a" / "0.png")
    write(root / "val", "one.txt", "a link")
    assert "train/more/a/3.png" in load_dataset(str(root), split="train").image_ids
    assert sizes(root) == [12, 7, 6]
    files = report_on(root).accounts["files"][1]
    assert (files["used"], files["used through a link"]) == (18, 7)
    (root / "train" / "far").symlink_to(tmp_path / "outside")
    (root / "train" / "round").symlink_to(root / "train")
    (root / "test" / "none.png").symlink_to(root / "nothing.png")
    (root / "train" / "a.HEIC").touch()
    (root / "train" / "a\\b.png").touch()
    os.mkfifo(root / "test" / "9.png")
    write(root / "train", "alone.txt", "a text without a picture")
    write(root / "val", "0.TXT", "sorted first, so the other is the second")
    write(root / "val", "1.jpg", (root / "val" / "1.png").read_bytes())  # whose is 1.txt?
    os.rename(root / "train" / "0.png", os.fsencode(root / "train") + b"/caf\xe9.png")
    faults = """links out of the folder: train/far, circular links: train/round, broken links: test/none.png,
        names that are not UTF-8: train/caf\\xe9.png, pictures of an unsupported format: a.HEIC,
        texts without a picture: train/0.txt, names with a backslash: train/a\\b.png,
        neither files nor folders: test/9.png""".split(",")
    faults = dict(fault.strip().split(": ") for fault in faults)
    findings = spoiling(root)
    assert findings["texts without a picture"].count == 4
    assert all(name in findings[reason].examples[0] for reason, name in faults.items())


def test_names_that_are_not_utf8_and_paths_that_are_not_files_are_named(place, monkeypatch):
    with monkeypatch.context() as latin:
        latin.setattr(os, "fsencode", lambda name: str(name).encode("latin-1"))
        assert printable("café.png") == "café.png"
    bad = os.fsdecode(os.fsencode(place) + b"/\xe9.csv")
    with open(bad, "w") as file:
        file.write(rows("a dog"))
    os.mkfifo(place / "pipe.csv")
    (place / "empty").mkdir()
    names = {bad: "rename"} | {f"{place}/{name}": name[:4] for name in ("pipe.csv", "empty", "none.csv", "x" * 300)}
    for path, message in (names | {f"{place}/a\0.csv": "missing"}).items():
        with pytest.raises(ValueError, match=message) as error:
            load_dataset(path, split="train")
        str(error.value).encode()


def test_what_a_table_leaves_open_is_noted(tmp_path):
    fill_folders(tmp_path, ("Train", "vld", "pool"))
    os.rename(tmp_path / "pool" / "0.png", os.fsencode(tmp_path / "pool") + b"/caf\xe9.png")
    (tmp_path / "pool" / "1.png").unlink()
    (tmp_path / "pool" / "1.png").mkdir()
    names = [f"{folder}/{k}.png" for folder in ("Train", "vld", "pool") for k in range(6)]
    report = str(report_on(write(tmp_path, "x.csv", rows("a dog", names=names))))
    assert "the folders Train, vld look like splits, but no column gives the split: a hash does" in report
    assert "caf\\xe9.png has a name that is not UTF-8: rename it" in report
    assert "1.png' is missing, but '1.png' is there as a folder" in report


@pytest.mark.parametrize("edited", ["sub/part.csv", "i.yaml", "t03.png", "folder/train/1.txt", "folder/train/1.png"])
def test_every_file_that_is_read_is_stamped(place, edited):
    write(place, "sub/part.csv", rows("a dog"))
    index = write(place, "i.yaml", {"all": "sub/part.csv", "image_root": "."})
    fill_folders(place / "folder", SPLITS)
    path = str(place / "folder" if "folder" in edited else index)
    before, data = dataset_stamp(path), load_dataset(path, split="train")
    assert before == dataset_stamp(path)
    content = (place / edited).read_bytes()
    (place / edited).write_bytes(content.replace(b"dog", b"cat") if b"dog" in content else content + b" ")
    assert before != dataset_stamp(path)
    assert (data.captions != load_dataset(path, split="train").captions) == (b"dog" in content)
    fill_folders(place / "folder", ("train/new",))
    assert "train/new/0.png" in load_dataset(str(place / "folder"), split="train").image_ids
