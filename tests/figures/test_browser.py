from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from rvlr_lib.figures import browser


def cosines(a, b):
    return (a / np.linalg.norm(a, axis=1, keepdims=True)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T


@pytest.mark.parametrize("direction", browser.DIRECTIONS)
def test_queries_are_the_nearest_items_without_themselves(scenes, space, direction):
    truth, k, row = scenes.scene.truth("latent"), 6, 7
    query = browser.make_query(scenes, {"rvlr": space}, direction, row, relevance=truth, k=k)
    kinds = dict(zip("it", space, strict=True))
    scores = [
        (-cosines(kinds[direction[0]][[row]], kinds[kind])[0, i].round(6), kind, i)
        for kind in direction[2:]
        for i in range(len(kinds[kind]))
        if (kind, i) != (direction[0], row)
    ]
    scores.sort(key=lambda entry: (entry[0], "it".index(entry[1]), entry[2]))
    names = [scenes.image_ids[i] if kind == "i" else scenes.captions[i] for _, kind, i in scores]
    assert {hit.name for hit in query.results["rvlr"]} <= set(names[: 3 * k])
    assert len(query.results["rvlr"]) == k
    assert (query.truth is None) == (direction[0] == direction[2:])


def test_what_belongs_together_is_right_and_has_a_rank(scenes, space):
    caption = int(scenes.captions_of(3)[1])
    query = browser.make_query(scenes, {"rvlr": space}, "t2i", caption)
    assert [hit.name for hit in query.results["rvlr"] if hit.hit] == [scenes.image_ids[3]]
    assert query.ranks == {"rvlr": 1}
    worst = browser.make_query(scenes, {"rvlr": (-space[0], space[1])}, "t2i", caption)
    assert worst.ranks["rvlr"] > 20
    siblings = browser.make_query(scenes, {"rvlr": space}, "t2t", caption)
    own = {scenes.captions[c] for c in scenes.captions_of(3)}
    assert all(hit.hit == (hit.name in own) for hit in siblings.results["rvlr"])
    assert browser.make_query(scenes, {"rvlr": space}, "i2i", 0).results["rvlr"][0].hit is None


def test_derived_relevance_is_the_mean_over_captions(scenes, space):
    truth = scenes.scene.truth("latent")
    derived = replace(truth, image_to_image=None, text_to_text=None)
    hits = browser.make_query(scenes, {"rvlr": space}, "i2i", 2, relevance=derived).results["rvlr"]
    for hit in hits:
        row, r = scenes.image_ids.index(hit.name), truth.caption_to_image
        both = r[scenes.captions_of(2), row].mean() + r[scenes.captions_of(row), 2].mean()
        assert hit.relevance == pytest.approx(both / 2, abs=1e-5)


def test_bad_queries_say_what_is_valid(scenes, space):
    for arguments, message in ((("x2y", 0), "unknown direction"), (("i2t", 99), "rows are 0 to 39")):
        with pytest.raises(ValueError, match=message):
            browser.make_query(scenes, {"rvlr": space}, *arguments)
    with pytest.raises(ValueError, match=r"features of \[3, 200\]"):
        browser.make_query(scenes, {"rvlr": (space[0][:3], space[1])}, "i2t", 0)
    with pytest.raises(ValueError, match="common space"):
        browser.make_query(scenes, {"teachers": space}, "i2t", 0)
    with pytest.raises(ValueError, match="not for 'i2i'"):
        browser.example_rows(scenes, space, "i2i")


def test_examples_are_a_hit_a_near_miss_and_a_failure(scenes, space):
    noise = np.random.default_rng(1).normal(size=space[0].shape)
    features = (space[0] + 0.6 * noise, space[1])
    rows = browser.example_rows(scenes, features)
    rank = {
        name: browser.make_query(scenes, {"rvlr": features}, "t2i", row).ranks["rvlr"] for name, row in rows.items()
    }
    assert rank["a hit"] == 1
    assert 2 <= rank["a near miss"] <= 5 < rank["a failure"]
    assert list(browser.example_rows(scenes, space)) == ["a hit"]


@pytest.fixture
def encoders(scenes, space):
    def encode(item):
        if isinstance(item, str) and item in scenes.captions:
            return space[1][scenes.captions.index(item)]
        return -space[1].mean(axis=0)

    return {"rvlr": encode}


def test_typed_words_and_words_unlike_anything(scenes, space, encoders):
    known = browser.typed_query(scenes, {"rvlr": space, "teachers": space}, encoders, scenes.captions[0])
    assert list(known.results) == ["rvlr"]
    assert known.results["rvlr"][0].name == scenes.image_ids[0]
    assert {hit.hit for hit in known.results["rvlr"]} == {None}
    assert known.title == ""
    strange = browser.typed_query(scenes, {"rvlr": space}, encoders, "a zeppelin", targets="it")
    assert "in no caption here: zeppelin" in strange.title
    assert "unlike any caption" in strange.title
    for options, message in (({"item": " "}, "empty"), ({"item": "x", "targets": "q"}, "valid are i, t, it")):
        with pytest.raises(ValueError, match=message):
            browser.typed_query(scenes, {"rvlr": space}, encoders, **options)
    with pytest.raises(ValueError, match="no encoder|none of"):
        browser.typed_query(scenes, {"x": space}, encoders, "x")


def test_widget_reaches_every_query_and_clears_words(scenes, space, encoders):
    widget = browser.query_browser(scenes, {"rvlr": space}, encoders=encoders, interactive=True)
    which, query, words, picture, find = widget.children[:5]
    assert (query.max, find.value) == (199, "i")
    query.value = 199
    words.value = scenes.captions[0]
    widget.update()
    assert widget.result.axes[0].images
    which.value = "i2t"
    assert (query.max, query.value, words.value) == (39, 39, "")
    which.value = "t2t"
    query.value = 150
    assert query.max == 199
    words.value = "zeppelin"
    widget.update()
    assert "zeppelin" in "".join(text.get_text() for text in widget.result.axes[0].texts)
    picture.value = ({"name": "x.txt", "type": "", "size": 1, "content": b"no", "last_modified": datetime.now(UTC)},)
    words.value = ""
    widget.update()
    assert "x.txt is no picture" in widget.result.value


def test_without_a_reader_there_is_a_figure(scenes, space, monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    assert browser.has_reader()
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    assert not browser.has_reader()
    assert browser.query_browser(scenes, {"rvlr": space}, rows=(0, 1)).axes[0].images
    assert browser.play(lambda a, b: (a, b), a=[1, 2], b="xy") == (1, "x")
    with pytest.raises(ValueError, match="nothing to choose for b"):
        browser.play(print, a=[1], b=[])
    widget = browser.play(lambda count: count, interactive=True, count=[3, 0])
    widget.children[0].value = 0
    assert widget.result == 0
