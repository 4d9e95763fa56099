import json
import shutil

import pytest
import yaml
from PIL import Image

from rvlr_lib import cli
from rvlr_lib.data.check import check


@pytest.fixture
def collection(tmp_path, draw_collection):
    """Folder, rows and a function that writes them and checks them."""
    told = draw_collection(tmp_path / "pictures", 60)
    rows = [{"image": name, "caption": [f"{text} {name}" for text in captions]} for name, captions in told]

    def checked(**options):
        (tmp_path / "x.json").write_text(json.dumps(rows))
        return check(tmp_path / "x.json", tmp_path / "pictures", **options)

    return tmp_path / "pictures", rows, checked


def found(report):
    return {finding.what.split(",")[0].split(" (")[0]: finding for finding in report.findings}


def test_a_sound_collection_is_ready(collection):
    report = collection[2]()
    assert not report.spoiled
    assert "list JSON" in str(report)
    assert "captions per picture: pictures  1: 12, 2: 12, 3: 12, 4: 12, 5: 12" in str(report)
    assert str(report).endswith("ready")
    assert found(report)["pictures with one caption"].count == 12


def test_missing_and_unreadable_pictures_spoil_unless_allowed(collection):
    folder, rows, checked = collection
    (folder / rows[0]["image"]).unlink()
    (folder / rows[3]["image"]).write_bytes(b"")
    cut = folder / rows[6]["image"]
    cut.write_bytes(cut.read_bytes()[:-200])
    headers, pixels = checked(), checked(full=True)
    assert (found(headers)["missing pictures"].count, found(headers)["unreadable pictures"].count) == (1, 1)
    assert found(pixels)["unreadable pictures"].count == 2
    assert headers.spoiled
    assert "NOT READY: 2 of these" in str(headers)
    assert not checked(full=True, max_bad_pictures=3).spoiled


def test_pictures_of_one_colour_are_noted_when_decoded(collection):
    folder, rows, checked = collection
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(folder / rows[0]["image"])  # png: white on transparent
    finding = found(checked(full=True))["pictures of a single colour"]
    assert (finding.count, finding.spoils, finding.examples) == (1, False, (rows[0]["image"],))
    assert "pictures of a single colour" not in found(checked())


def test_equal_files_across_splits_spoil_and_within_are_noted(collection):
    folder, rows, checked = collection
    splits = ["train"] * 40 + ["val"] * 10 + ["test"] * 10
    for row, split in zip(rows, splits, strict=True):
        row["split"] = split
    shutil.copy(folder / rows[1]["image"], folder / rows[2]["image"])
    report = checked()
    assert found(report)["equal picture files within a split"].count == 1
    assert not report.spoiled
    shutil.copy(folder / rows[1]["image"], folder / rows[55]["image"])
    report = checked()
    assert report.spoiled
    finding = found(report)["equal picture files in two splits"]
    assert finding.count == 1
    assert finding.examples == (" = ".join(rows[i]["image"] for i in (1, 2, 55)),)


def test_repeated_and_shared_captions_are_noted(collection):
    _, rows, checked = collection
    rows[4]["caption"] = ["A dog!", "a dog"]
    for row in rows:
        row["split"] = "train"
    for row in rows[:8]:
        row["split"] = "val"
    for row in rows[8:16]:
        row["split"] = "test"
    rows[5]["caption"] = ["a DOG"]
    rows[20]["caption"] = ["a dog"]  # in another split: no query sees both
    report = checked()
    assert found(report)["pictures that repeat a caption"].examples == (rows[4]["image"],)
    assert found(report)["captions that several pictures of a split share"].examples == ("val: 'a dog' of 2 pictures",)
    assert not report.spoiled


def test_faults_of_the_file_are_counted_not_only_the_first(collection):
    _, rows, checked = collection
    rows[0]["caption"] = ["", "fine"]
    rows[1]["caption"] = ["!", "?"]
    rows[2]["image"] = "../x.jpg"
    rows[3]["image"] = "/x.jpg"
    report = checked()
    assert {key: found(report)[key].count for key in ("empty captions", "refused paths")} == {
        "empty captions": 3, "refused paths": 2}  # fmt: skip
    assert found(report)["pictures without a caption"].count == 1
    assert report.spoiled


def test_identical_and_overlapping_splits_spoil(collection, tmp_path):
    _, rows, _ = collection
    for name, part in (("train", rows[:40]), ("rest", rows[40:]), ("more", rows[35:])):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))

    def index(**content):
        (tmp_path / "i.yaml").write_text(yaml.safe_dump({"image_root": "pictures", **content}))
        return check(tmp_path / "i.yaml")

    same = index(train="train.json", val="rest.json", test="rest.json")
    assert found(same)["val and test are identical"].count == 20
    assert same.spoiled
    assert not index(train="train.json", val="rest.json", test="rest.json", allow_overlap=True).spoiled
    overlap = index(train="train.json", held_out="more.json")
    assert sum(f.count for f in overlap.findings if f.what.startswith("pictures in train and")) == 5
    assert not index(train="train.json", held_out="rest.json").spoiled
    assert found(index(train="train.json", val="train.json", held_out="rest.json"))[
        "pictures in train and val"].spoils  # fmt: skip


def test_few_pictures_in_a_split_spoil(collection):
    _, rows, checked = collection
    del rows[9:]
    assert found(checked())["split val has fewer than 4 pictures"].spoils


def test_long_captions_are_counted(collection):
    _, rows, checked = collection
    rows[0]["caption"] = ["word " * 40]
    report = checked(token_lengths=lambda captions: [len(caption.split()) for caption in captions], context=32)
    finding = next(f for f in report.findings if f.what.startswith("captions longer"))
    assert finding.count == 1
    assert "32 tokens (longest 40)" in finding.what


def test_the_command_prints_counts_and_exits_with_1(collection, capsys):
    folder, rows, checked = collection
    checked()
    path = str(folder.parent / "x.json")
    assert cli.main(["data", "check", path, "--image-root", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "x.json: list JSON" in out
    assert "--decode also finds" in out
    Image.new("RGB", (3, 3)).save(folder / "a" / "x.png")
    (folder / rows[0]["image"]).unlink()
    assert cli.main(["data", "check", path, "--image-root", str(folder), "--decode", "--model", "none"]) == 1
    assert "SPOILS  missing pictures: 1" in capsys.readouterr().out
    assert cli.main(["data", "check", path + "x"]) == 2
    assert "formats understood" in capsys.readouterr().err
