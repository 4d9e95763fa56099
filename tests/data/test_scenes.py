from itertools import permutations

import numpy as np
import pytest

from rvlr_lib.data import load_dataset, scenes


def load(split="val", size=40, **options):
    if split == "test":
        return load_dataset("scenes", split=split, **options)
    return load_dataset("scenes", split=split, size=size, **options)


# Generation


def test_scenes_are_deterministic_and_streams_independent():
    same, again, seeded, other = load(), load(), load(seed=1), load("train")
    assert same.fingerprint() == again.fingerprint()
    prints = {d.fingerprint() for d in (same, seeded, other)}
    assert len(prints) == 3
    for changed in (seeded, other):
        assert (same.scene.scene.background == changed.scene.scene.background).mean() < 0.4


def test_fewer_scenes_are_the_first_of_more():
    assert load(size=12).fingerprint() == load(size=40).subset(range(12)).fingerprint()


def test_pictures_do_not_depend_on_detail():
    rich, poor = load(text_detail=1.0), load(text_detail=0.2)
    assert np.array_equal(rich.source.array, poor.source.array)
    assert np.array_equal(rich.scene.scene.objects, poor.scene.scene.objects)
    assert rich.captions != poor.captions


def test_sizes_of_the_splits():
    assert len(load_dataset("scenes", split="train")) == 4000
    assert len(load_dataset("scenes", split="val")) == 500
    test = load("test", galleries=3, gallery_size=20)
    assert [len(g) for g in test.gallery_sets()] == [20, 20, 20]
    assert load("test", galleries=1, gallery_size=20).fingerprint() == test.gallery_sets()[0].fingerprint()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_detail": 1.2}, "text_detail=1.2"),
        ({"text_detail": float("nan")}, "text_detail=nan"),
        ({"size": 0}, "size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "test", "galleries": 0}, "galleries=0"),
    ],
)
def test_unlawful_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)
    with pytest.raises(ValueError, match="size=3 is for train and val"):
        load_dataset("scenes", split="test", size=3)


# Pictures


def test_a_picture_shows_the_colours_of_its_objects_and_no_others():
    dataset = load(size=300)
    fills = np.array(scenes._COLOURS)
    assert min(np.linalg.norm(a - b) for k, a in enumerate(fills) for b in fills[:k]) > 60
    for i in range(300):
        pixels = dataset.source.array[i].reshape(-1, 1, 3).astype(int)
        seen = (np.abs(pixels - fills).max(2) <= 3).sum(0)
        shown = {c for c in dataset.scene.scene.objects[i, :, 1].tolist() if c >= 0}
        assert {c for c in range(8) if seen[c] >= 4} == shown


def test_shapes_are_mirror_images_of_themselves_and_distinct():
    sprites = scenes._sprites()
    np.testing.assert_allclose(sprites, sprites[..., ::-1, :], atol=1e-3)
    alpha = sprites[:, 0, :, :, :, 3]
    for size in range(2):
        for a in range(8):
            for b in range(a):
                apart = np.abs(sprites[a, 0, size] - sprites[b, 0, size]).sum((0, 1))
                assert apart[3] > 0.12 * alpha[:, size].sum((1, 2)).mean()


# Captions


def read_caption(caption):
    """The facts of a caption from its words alone, by a dictionary of its own making."""
    words = {w: ("shape", k) for k, ws in enumerate(scenes.SHAPE_WORDS) for w in ws}
    words |= {w: ("colour", k) for k, ws in enumerate(scenes.COLOUR_WORDS) for w in ws}
    words |= {w: ("size", k) for k, ws in enumerate(scenes.SIZE_WORDS) for w in ws}
    words |= {w: ("background", k) for k, ws in enumerate(scenes.BACKGROUND_WORDS) for w in ws}
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


@pytest.mark.parametrize("detail", [0.0, 0.3, 0.6, 1.0])
def test_captions_say_exactly_the_told_facts(detail):
    dataset = load(size=200, text_detail=detail)
    told = dataset.scene.text
    for caption, objects, background in zip(dataset.captions, told.objects, told.background, strict=True):
        assert read_caption(caption) == ([o for o in objects.tolist() if max(o) >= 0], background)


@pytest.mark.parametrize("detail", [0.0, 0.3, 0.6, 1.0])
def test_told_facts_are_true_and_each_object_is_told_once(detail):
    dataset = load(size=100, text_detail=detail)
    views = dataset.scene
    for c, i in enumerate(dataset.caption_image):
        mentions = [m for m in views.text.objects[c].tolist() if max(m) >= 0]
        objects = [o for o in views.scene.objects[i].tolist() if o[0] >= 0]
        assert 1 <= len(mentions) <= len(objects)
        assert any(all(fits(m, o) for m, o in zip(mentions, p, strict=False)) for p in permutations(objects))
        assert views.text.background[c] in (-1, views.scene.background[i])
        if detail == 1:
            assert sorted(mentions) == sorted(objects)
            assert views.text.background[c] >= 0
        if detail == 0:
            assert mentions == [[mentions[0][0], -1, -1]]
            assert views.forced[c]


def fits(mention, scene_object):
    return all(told in (-1, true) for told, true in zip(mention, scene_object, strict=True))


def test_details_are_nested():
    poor, rich = load(size=200, text_detail=0.3).scene, load(size=200, text_detail=0.6).scene
    assert ((poor.text.background < 0) | (poor.text.background == rich.text.background)).all()
    assert (rich.forced <= poor.forced).all()
    for few, more in zip(poor.text.objects[~poor.forced], rich.text.objects[~poor.forced], strict=True):
        rest = iter(more.tolist())
        assert all(any(fits(m, o) for o in rest) for m in few.tolist() if max(m) >= 0)  # in the same order
