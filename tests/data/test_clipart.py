"""Clip art, on generated stand-ins with the package's layout."""

import shutil

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rvlr_lib.config import load_settings
from rvlr_lib.data import SPLITS, dataset_stamp, load_dataset
from rvlr_lib.study.cache import data_parts


def draw(path, colour, **texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = PngInfo()
    for key, value in texts.items():
        metadata.add_text(key, value)
    Image.new("RGB", (9, 7), colour).save(path, pnginfo=metadata)


def test_captions_are_titles_file_names_and_descriptions(tmp_path, capsys):
    for number in range(60):
        metadata = {"Title": "A Dog" if number < 30 else f"Cat no. {number}", "Author": "Jo Maker"}
        draw(tmp_path / "animals" / f"beast{number}_jo_mak_01.png", (number, 0, 9), **metadata)
    metadata = {"Title": "Sun", "Author": "X", "Description": "The sun. It shines! See http://x.org now."}
    draw(tmp_path / "a.png", (9, 9, 9), **metadata)
    draw(tmp_path / "b" / "12.png", (1, 2, 3))
    shutil.copy(tmp_path / "a.png", tmp_path / "b" / "copy.png")
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "b" / "cut.png").write_bytes(b"\x89PNG")
    splits = {split: load_dataset("clipart", split=split, image_root=str(tmp_path)) for split in SPLITS}
    texts = {i: [d.captions[c] for c in d.captions_of(r)] for d in splits.values() for r, i in enumerate(d.image_ids)}
    assert len(texts) == 62
    assert texts["a.png"] == ["sun", "the sun", "it shines", "see now"]
    assert texts["animals/beast7_jo_mak_01.png"] == ["a dog", "beast7"]
    assert len({split for split, d in splits.items() for i in d.image_ids if i in ("a.png", "b/copy.png")}) == 1
    assert set(splits["train"].categories) <= {"animals", "b", "none"}
    assert splits["val"].info["captions shared by more than 20 drawings"] == 1
    output = capsys.readouterr().out
    assert "1 links to others, 1 too large or damaged, 1 without a caption, 1 captions shared by more than 20" in output
    settings = load_settings("clipart", overrides={"data.image_root": str(tmp_path)})
    stamps, key = dataset_stamp("clipart", str(tmp_path)), data_parts(settings, "image")
    draw(tmp_path / "a.png", (9, 9, 10), Title="Moon")
    assert dataset_stamp("clipart", str(tmp_path)) != stamps
    assert data_parts(settings, "image") != key  # an edited drawing is encoded again
    assert len(load_dataset("clipart", split="train", image_root=str(tmp_path), limit=5)) == 5


def test_a_missing_package_says_how_to_install_it(tmp_path, refuses):
    refuses("apt install openclipart-png", load_dataset, "clipart", split="val", image_root=str(tmp_path / "none"))
    refuses("none of 0 drawings", load_dataset, "clipart", split="val", image_root=str(tmp_path))
