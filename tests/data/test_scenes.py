from itertools import permutations

import numpy as np
import pytest

from rvlr_lib.data import load_dataset, scenes


def load(split="val", **options):
    return load_dataset("scenes", split=split, **({} if split == "test" else {"size": 40}) | options)


def test_fewer_scenes_are_the_first_of_more_and_splits_have_their_sizes():
    assert [len(load(split, size=None)) for split in ("train", "val")] == [4000, 500]
    assert load(size=12).fingerprint == load().subset(range(12)).fingerprint
    test = load("test", galleries=3, gallery_size=20)
    assert [len(g) for g in test.gallery_sets] == [20, 20, 20]
    assert load("test", galleries=1, gallery_size=20).fingerprint == test.gallery_sets[0].fingerprint


def test_a_picture_shows_exactly_the_colours_of_its_objects():
    dataset = load(size=300)
    fills = np.array(scenes._COLOURS)
    assert min(np.linalg.norm(a - b) for k, a in enumerate(fills) for b in fills[:k]) > 60
    for pixels, objects in zip(dataset.source.array, dataset.scene.scene.objects, strict=True):
        seen = (np.abs(pixels.reshape(-1, 1, 3).astype(int) - fills).max(2) <= 3).sum(0)
        assert set(np.flatnonzero(seen >= 4)) == {c for c in objects[:, 1].tolist() if c >= 0}


def read_caption(caption):
    """The facts of a caption, parsed from its words alone."""
    tables = {"shape": scenes.SHAPE_WORDS, "colour": scenes.COLOUR_WORDS, "size": scenes.SIZE_WORDS}
    tables["background"] = scenes.BACKGROUND_WORDS
    words = {w: (kind, k) for kind, table in tables.items() for k, ws in enumerate(table) for w in ws}
    objects, background, current = [], -1, {}
    for word in caption.split():
        kind, value = words.get(word, ("", -1))
        if kind == "background":
            background = value
        elif kind in ("size", "colour"):
            current[kind] = value
        elif kind == "shape" or word in scenes.THING_WORDS:
            objects.append([value, current.get("colour", -1), current.get("size", -1)])
            current = {}
    return objects, background


def fits(mention, scene_object):
    return all(said in (-1, true) for said, true in zip(mention, scene_object, strict=True))


@pytest.mark.parametrize("detail", [0.0, 0.3, 0.6, 1.0])
def test_captions_mention_true_facts_and_each_object_once(detail):
    dataset = load(size=150, text_detail=detail)
    views = dataset.scene
    for c, i in enumerate(dataset.caption_image):
        mentions = [m for m in views.text.objects[c].tolist() if max(m) >= 0]
        objects = [o for o in views.scene.objects[i].tolist() if o[0] >= 0]
        assert read_caption(dataset.captions[c]) == (mentions, views.text.background[c])
        assert 1 <= len(mentions) <= len(objects)
        assert any(all(fits(m, o) for m, o in zip(mentions, p, strict=False)) for p in permutations(objects))
        assert views.text.background[c] in (-1, views.scene.background[i])
        if detail == 1:
            assert sorted(mentions) == sorted(objects)
            assert views.text.background[c] >= 0
        if detail == 0:
            assert mentions == [[mentions[0][0], -1, -1]]
            assert views.forced[c]


def test_details_are_nested_and_leave_the_pictures_alone():
    short, long = load(size=200, text_detail=0.3), load(size=200, text_detail=0.6)
    assert np.array_equal(short.source.array, long.source.array)
    poor, rich = short.scene, long.scene
    assert ((poor.text.background < 0) | (poor.text.background == rich.text.background)).all()
    assert (rich.forced <= poor.forced).all()
    for few, many in zip(poor.text.objects[~poor.forced], rich.text.objects[~poor.forced], strict=True):
        rest = iter(many.tolist())
        assert all(any(fits(m, o) for o in rest) for m in few.tolist() if max(m) >= 0)  # in the same order
