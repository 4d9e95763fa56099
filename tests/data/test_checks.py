"""``rvlr data check`` on a generated collection and on published data sets."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from rvlr_lib import cli
from rvlr_lib.data import dataset_stamp, load_dataset
from tests.data.user_tools import coco, report_on, write
from tests.tiny import draw_collection


def test_every_fault_is_counted_and_named(tmp_path):
    rows = []
    for number, (name, captions) in enumerate(draw_collection(tmp_path, 60)):
        split = ("train", "val", "test")[(number >= 40) + (number >= 50)]
        rows.append({"image": name, "caption": [f"{text} {name}" for text in captions], "split": split})

    def checked(**options):
        report = report_on(write(tmp_path, "x.json", rows), **options)
        return report, {finding.what.split(" (")[0]: finding for finding in report.findings}

    report, findings = checked(full=True)
    assert str(report).endswith("ready")  # nothing spoils a result
    assert "captions per picture: pictures  1: 12, 2: 12, 3: 12, 4: 12, 5: 12" in str(report)
    few = "has few pictures, among which recall hardly distinguishes models"
    expected = {f"split val {few}": 10, f"split test {few}": 10}
    assert [(what, finding.count) for what, finding in findings.items()] == [*expected.items()]
    files = [tmp_path / row["image"] for row in rows]
    files[0].unlink()
    files[3].write_bytes(b"")
    files[6].write_bytes(files[6].read_bytes()[:-200])
    for source, target in ((1, 2), (7, 57)):
        shutil.copy(files[source], files[target])
    rows[4]["caption"], rows[5]["caption"], rows[55]["caption"] = ["A dog!"], ["a DOG"], ["a dog"]
    rows[11]["caption"], rows[12]["caption"] = ["", "fine"], ["!", "?"]
    rows[13]["image"], rows[14]["image"] = "../x.jpg", "/x.jpg"
    report, findings = checked(full=True)
    assert {what: finding.count for what, finding in findings.items() if finding.spoils} == {
        **{"empty captions": 3, "refused paths": 2, "pictures without a caption": 1, "missing pictures": 1},
        **{"unreadable pictures": 2, "groups of equal picture files in two splits": 1},
    }
    assert "NOT READY: 6 of these" in str(report)
    notes = {
        "groups of equal picture files within a split": f"{rows[1]['image']} = {rows[2]['image']}",
        "captions that several pictures of a split share": "train: 'a dog' of 2 pictures",
    }
    assert {what: findings[what].examples for what in notes} == {what: (example,) for what, example in notes.items()}
    files[45].write_bytes(b"")  # of val
    findings = checked(full=True, max_bad_pictures=np.int64(3))[1]
    assert not findings["missing pictures"].spoils
    assert findings["groups of equal picture files in two splits"].count == 1
    assert checked()[1]["unreadable pictures"].count == 2  # a header cannot show that a file is truncated
    rows[30]["caption"], rows[31]["caption"], rows[32]["caption"] = "a dog | a cat", "Two.\n- lines", "or|and &amp;"
    notes = "\n".join(checked()[1])
    assert all(note in notes for note in ("3 captions contain | or a line break", "1 captions contain HTML"))
    for row in rows[20:23]:
        row["split"] = None
    accounts = checked()[0].accounts
    assert accounts["rows"][1]["pictures without a split"] == 3
    assert accounts["captions"][1]["pictures without a split"] == sum(len(row["caption"]) for row in rows[20:23])
    rows[40:] = rows[40:45] + rows[50:55]
    assert not [what for what in checked()[1] if "fewer" in what]
    (tmp_path / rows[40]["image"]).unlink()  # 4 of val remain
    assert checked(max_bad_pictures=3)[1]["split val has fewer than 5 pictures"].spoils


PUBLISHED = {"flickr30k": ["flickr30k-images"] * 2, "coco": ["train2014", "val2014"], "vizwiz": ["train", "val"]}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_name_missing_files_and_are_read(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RVLR_DATA", str(tmp_path))
    assert cli.main(["data", "check", name]) == 2
    message, places = capsys.readouterr().err, PUBLISHED[name]
    assert all(word in message for word in ("http", "RVLR_DATA", *(f"{place}: " for place in places)))
    folder, drawn, images = tmp_path / name, tmp_path / "drawn", []
    pairs = [(Path(path).name, captions) for path, captions in draw_collection(drawn, 40)]
    for number, (file, captions) in enumerate(pairs):
        image = {"filename": file, "sentences": [{"raw": caption} for caption in captions]}
        image["split"] = ("train", "val", "test", "restval")[number % 4]
        images.append(image | ({"filepath": places[number % 2]} if name == "coco" else {}))
    write(folder, f"dataset_{name}.json", {"images": images})
    for letter, place in zip("ab", places, strict=True):
        shutil.copytree(drawn / letter, folder / place, dirs_exist_ok=True)
    for split, part in (("train", pairs[::2]), ("val", pairs[1::2])) if name == "vizwiz" else ():
        write(folder, f"annotations/{split}.json", coco(part, is_rejected=()))
    assert cli.main(["data", "check", name]) == 0
    parts = [load_dataset(name, split=split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40
    assert {part.name for part in parts} == {name}
    stamp = dataset_stamp(name)
    with (folder / place / file).open("ab") as picture:
        picture.write(b" ")
    assert dataset_stamp(name) != stamp
