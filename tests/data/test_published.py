"""Published data sets and clip art, on drawn stand-ins of the same layout."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rvlr_lib import cli
from rvlr_lib.data import dataset_stamp, load_dataset


@pytest.mark.parametrize("name", ["flickr30k", "coco", "vizwiz"])
def test_published_sets_say_what_is_missing_and_are_read(name, tmp_path, draw_collection, monkeypatch, capsys):
    monkeypatch.setenv("RVLR_DATA", str(tmp_path))
    assert cli.main(["data", "check", name, "--model", "none"]) == 1
    assert "NOT READY" in (said := capsys.readouterr().out)
    assert "http" in said
    folder, told = tmp_path / name, draw_collection(tmp_path / "drawn", 40)
    images = [{"filename": path.split("/")[1], "sentences": [{"raw": c} for c in captions]} for path, captions in told]
    places = {"flickr30k": ["flickr30k-images"] * 2, "coco": ["train2014", "val2014"], "vizwiz": ["train", "val"]}[name]
    assert all(f"{place}: " in said for place in places)
    for number, (image, (path, _)) in enumerate(zip(images, told, strict=True)):
        image["split"] = ("train", "val", "test", "restval")[number % 4]
        if name == "coco":
            image["filepath"] = places[number % 2]
        target = folder / places[number % 2] / image["filename"]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "drawn" / path, target)
    if name == "vizwiz":
        (folder / "annotations").mkdir()
        for split, part in (("train", images[::2]), ("val", images[1::2])):
            pairs = [(i, sentence["raw"]) for i, image in enumerate(part) for sentence in image["sentences"]]
            content = {
                "images": [{"id": i, "file_name": image["filename"]} for i, image in enumerate(part)],
                "annotations": [{"image_id": i, "caption": caption, "is_rejected": False} for i, caption in pairs],
            }
            (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    else:
        (folder / f"dataset_{name}.json").write_text(json.dumps({"images": images}))
    assert cli.main(["data", "check", name, "--model", "none"]) == 0
    parts = [load_dataset(name, split=split) for split in ("train", "val", "test")]
    assert sum(map(len, parts)) == 40
    assert {part.name for part in parts} == {name}
    stamp = dataset_stamp(name)
    target.write_bytes(target.read_bytes() + b" ")
    assert dataset_stamp(name) != stamp


def draw(path, colour, **texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    told = PngInfo()
    for key, value in texts.items():
        told.add_text(key, value)
    Image.new("RGB", (9, 7), colour).save(path, pnginfo=told)


def test_clipart_tells_what_its_makers_wrote(tmp_path, capsys):
    for number in range(60):
        about = {"Title": "A Dog" if number < 30 else f"Cat no. {number}", "Author": "Jo Maker"}
        draw(tmp_path / "animals" / f"beast{number}_jo_mak_01.png", (number, 0, 9), **about)
    draw(
        tmp_path / "a.png", (9, 9, 9), Title="Sun", Author="X", Description="The sun. It shines! See http://x.org now."
    )
    draw(tmp_path / "b" / "12.png", (1, 2, 3))
    shutil.copy(tmp_path / "a.png", tmp_path / "b" / "copy.png")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "b" / "cut.png").write_bytes(b"\x89PNG")
    parts = {
        split: load_dataset("clipart", split=split, image_root=str(tmp_path)) for split in ("train", "val", "test")
    }
    told = {i: [d.captions[c] for c in d.captions_of(r)] for d in parts.values() for r, i in enumerate(d.image_ids)}
    assert len(told) == 62
    assert told["a.png"] == ["sun", "the sun", "it shines", "see now"]
    assert told["animals/beast7_jo_mak_01.png"] == ["a dog", "beast7"]
    assert len({split for split, d in parts.items() for i in d.image_ids if i in ("a.png", "b/copy.png")}) == 1
    assert set(parts["train"].categories) <= {"animals", "b", "none"}
    assert parts["val"].info["captions shared by more than 20 drawings"] == 1
    said = capsys.readouterr().out
    assert "1 links to others, 1 too large or damaged, 1 without a caption, 1 captions shared by more than 20" in said
    before = dataset_stamp("clipart", str(tmp_path))
    draw(tmp_path / "a.png", (9, 9, 10), Title="Moon")
    assert dataset_stamp("clipart", str(tmp_path)) != before
    assert len(load_dataset("clipart", split="train", image_root=str(tmp_path), limit=5)) == 5


def test_clipart_that_is_not_there_says_how_to_install_it(tmp_path):
    for look in (
        lambda root: load_dataset("clipart", split="val", image_root=root),
        lambda root: dataset_stamp("clipart", root),
    ):
        with pytest.raises(ValueError, match="apt install openclipart-png"):
            look(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no drawing"):
        load_dataset("clipart", split="val", image_root=str(tmp_path / "empty"))


def test_a_seed_draws_the_words_and_covers_of_the_dial_anew():
    from rvlr_lib.data import ImbalanceSpec

    sets = [
        load_dataset("emoji", split="val", limit=40, imbalance=ImbalanceSpec(0.5, 0.5, seed=seed)) for seed in (0, 0, 1)
    ]
    pictures = [np.stack([np.asarray(d.image(row)) for row in range(40)]) for d in sets]
    assert sets[0].captions == sets[1].captions != sets[2].captions
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] != pictures[2]).any()
