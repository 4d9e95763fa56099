"""What ``rvlr data check`` finds in a drawn collection, and what it says of published data sets."""

import json
import shutil

import pytest
from PIL import Image
from user_tools import looked, write

from rvlr_lib import cli
from rvlr_lib.data import dataset_stamp, load_dataset


@pytest.fixture
def collection(tmp_path, draw_collection):
    """Folder, rows and a function that writes them and checks them."""
    told = draw_collection(tmp_path / "pictures", 60)
    rows = [{"image": name, "caption": [f"{text} {name}" for text in captions]} for name, captions in told]

    def checked(**options):
        return looked(write(tmp_path, "x.json", rows), image_root=tmp_path / "pictures", **options)

    return tmp_path / "pictures", rows, checked


def found(report):
    return {finding.what.split(",")[0].split(" (")[0]: finding for finding in report.findings}


def counts(report, *names):
    return [found(report)[name].count if name in found(report) else 0 for name in names]


def test_missing_and_unreadable_pictures_spoil_unless_allowed(collection):
    folder, rows, checked = collection
    report = checked()
    assert not report.spoiled
    assert str(report).endswith("ready")
    assert "list JSON" in str(report)
    assert "captions per picture: pictures  1: 12, 2: 12, 3: 12, 4: 12, 5: 12" in str(report)
    assert counts(report, "pictures with one caption") == [12]
    (folder / rows[0]["image"]).unlink()
    (folder / rows[3]["image"]).write_bytes(b"")
    cut = folder / rows[6]["image"]
    cut.write_bytes(cut.read_bytes()[:-200])
    Image.new("RGBA", (9, 9), (255, 255, 255, 0)).save(folder / rows[9]["image"])
    kinds = ("missing pictures", "unreadable pictures", "pictures of a single colour")
    assert (counts(checked(), *kinds), counts(checked(full=True), *kinds)) == ([1, 1, 0], [1, 2, 1])
    assert "NOT READY: 2 of these" in str(checked())
    assert not checked(full=True, max_bad_pictures=3).spoiled


def test_equal_files_and_shared_captions(collection):
    folder, rows, checked = collection
    for number, row in enumerate(rows):
        row["split"] = ("train", "val", "test")[(number >= 40) + (number >= 50)]
    rows[4]["caption"], rows[5]["caption"], rows[55]["caption"] = ["A dog!", "a dog"], ["a DOG"], ["a dog"]
    shutil.copy(folder / rows[1]["image"], folder / rows[2]["image"])
    report = checked()
    assert found(report)["pictures that repeat a caption"].examples == (rows[4]["image"],)
    shared = found(report)["captions that several pictures of a split share"]
    assert shared.examples == ("train: 'a dog' of 2 pictures",)
    assert counts(report, "equal picture files within a split") == [1]
    assert not report.spoiled
    shutil.copy(folder / rows[1]["image"], folder / rows[55]["image"])
    finding = found(checked())["equal picture files in two splits"]
    assert (finding.spoils, finding.examples) == (True, (" = ".join(rows[i]["image"] for i in (1, 2, 55)),))


def test_faults_of_the_file_are_counted_not_only_the_first(collection):
    _, rows, checked = collection
    rows[0]["caption"], rows[1]["caption"] = ["", "fine"], ["!", "?"]
    rows[2]["image"], rows[3]["image"] = "../x.jpg", "/x.jpg"
    rows[4]["caption"] = ["word " * 40]
    report = checked(token_lengths=lambda captions: [len(caption.split()) for caption in captions], context=32)
    assert counts(report, "empty captions", "refused paths", "pictures without a caption") == [3, 2, 1]
    long = "captions longer than the model's context of 32 tokens"
    assert counts(report, long) == [1]
    assert report.spoiled
    del rows[9:]
    assert found(checked())["split val has fewer than 4 pictures"].spoils


def test_the_command_prints_counts_and_exits_with_1(collection, capsys):
    folder, rows, checked = collection
    checked()
    path = str(folder.parent / "x.json")
    options = ["--image-root", str(folder), "--model", "none"]
    assert cli.main(["data", "check", path, *options]) == 0
    out = capsys.readouterr().out
    assert "x.json: list JSON" in out
    assert "--decode also finds" in out
    (folder / rows[0]["image"]).unlink()
    assert cli.main(["data", "check", path, *options, "--decode"]) == 1
    assert "SPOILS  missing pictures: 1" in capsys.readouterr().out
    assert cli.main(["data", "check", path + "x", *options]) == 2
    assert "formats understood" in capsys.readouterr().err


PUBLISHED = {
    "flickr30k": ["flickr30k-images", "flickr30k-images"],
    "coco": ["train2014", "val2014"],
    "vizwiz": ["train", "val"],
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_say_what_is_missing_and_are_read(name, tmp_path, draw_collection, monkeypatch, capsys):
    monkeypatch.setenv("RVLR_DATA", str(tmp_path))
    assert cli.main(["data", "check", name, "--model", "none"]) == 1
    said, places = capsys.readouterr().out, PUBLISHED[name]
    assert all(word in said for word in ("NOT READY", "http", "RVLR_DATA", *(f"{place}: " for place in places)))
    folder, told = tmp_path / name, draw_collection(tmp_path / "drawn", 40)
    images = [{"filename": path.split("/")[1], "sentences": [{"raw": c} for c in captions]} for path, captions in told]
    for number, (image, (path, _)) in enumerate(zip(images, told, strict=True)):
        image["split"] = ("train", "val", "test", "restval")[number % 4]
        image |= {"filepath": places[number % 2]} if name == "coco" else {}
        target = folder / places[number % 2] / image["filename"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "drawn" / path, target)
    write(folder, f"dataset_{name}.json", {"images": images})
    for split, part in (("train", images[::2]), ("val", images[1::2])) if name == "vizwiz" else ():
        pairs = [(i, sentence["raw"]) for i, image in enumerate(part) for sentence in image["sentences"]]
        ids = [{"id": i, "file_name": image["filename"]} for i, image in enumerate(part)]
        texts = [{"image_id": i, "caption": caption, "is_rejected": False} for i, caption in pairs]
        write(folder, f"annotations/{split}.json", json.dumps({"images": ids, "annotations": texts}))
    assert cli.main(["data", "check", name, "--model", "none"]) == 0
    parts = [load_dataset(name, split=split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40
    assert {part.name for part in parts} == {name}
    stamp = dataset_stamp(name)
    target.write_bytes(target.read_bytes() + b" ")
    assert dataset_stamp(name) != stamp
