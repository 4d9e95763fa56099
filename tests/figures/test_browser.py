from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from rvlr_lib.figures import browser
from tests.figures.conftest import texts


@pytest.mark.parametrize("direction", browser.DIRECTIONS)
def test_results_are_the_nearest_items_without_the_query(scenes, space, truth, direction):
    source, targets, row = direction[0], direction[2:], 7
    query = browser.make_query(scenes, {"rvlr": space}, direction, row, relevance=truth, k=6)
    unit = {kind: x / np.linalg.norm(x, axis=1, keepdims=True) for kind, x in zip("it", space, strict=True)}
    scores = {kind: unit[kind] @ unit[source][row] for kind in targets}
    names = {"i": scenes.image_ids, "t": scenes.captions}
    score_of = {name: score for kind in targets for name, score in zip(names[kind], scores[kind], strict=True)}
    others = [np.delete(scores[kind], row) if kind == source else scores[kind] for kind in targets]
    best = np.sort(np.concatenate(others))[::-1][:6]
    assert [score_of[hit.name] for hit in query.results["rvlr"]] == pytest.approx(best, abs=1e-5)
    assert (query.truth is None) == (source == targets)
    own = [scenes.captions[k] for k in scenes.captions_of(row)] if source == "i" else []
    assert all(hit.hit for hit in query.results["rvlr"] if hit.name in own)


@pytest.mark.parametrize("direction", ["i2i", "t2t"])
def test_within_a_modality_relevance_is_derived_and_the_most_relevant_are_right(scenes, space, truth, direction):
    derived = replace(truth, image_to_image=None, text_to_text=None)
    grades, owner = truth.caption_to_image, scenes.caption_image
    means = np.array([grades[scenes.captions_of(row)].mean(axis=0) for row in range(len(scenes))])
    expected = ((means + means.T) / 2)[2] if direction == "i2i" else grades[:, owner[2]]
    names = scenes.image_ids if direction == "i2i" else scenes.captions
    least = sorted(np.delete(expected, 2))[-5]
    for hit in browser.make_query(scenes, {"rvlr": space}, direction, 2, relevance=derived).results["rvlr"]:
        candidates = [value for name, value in zip(names, expected, strict=True) if name == hit.name]
        assert min(abs(value - hit.relevance) for value in candidates) < 1e-5
        assert hit.hit == (hit.relevance >= least - 1e-9)
    unrelated = replace(truth, image_to_image=np.eye(40), text_to_text=np.eye(200))
    query = browser.make_query(scenes, {"rvlr": space}, direction, 2, relevance=unrelated)
    assert not any(hit.hit for hit in query.results["rvlr"])


@pytest.fixture
def encoders(scenes, space):
    def encode(item):
        return space[1][scenes.captions.index(item)] if item in scenes.captions else -space[1].mean(axis=0)

    return {"rvlr": encode}


def test_examples_are_a_hit_a_near_miss_and_a_failure(scenes, space, truth):
    features = (space[0] + 0.6 * np.random.default_rng(1).normal(size=space[0].shape), space[1])
    rows = browser.example_rows(scenes, features)
    queries = [browser.make_query(scenes, {"rvlr": features}, "t2i", row, relevance=truth) for row in rows.values()]
    hit, near, failure = (query.ranks["rvlr"] for query in queries)
    assert list(rows) == ["a hit", "a near miss", "a failure"]
    assert hit == 1 < near <= 5 < failure
    assert [item.hit for item in queries[0].results["rvlr"]] == [True] + [False] * 4
    assert list(browser.example_rows(scenes, space)) == list(browser.example_rows(scenes, space, "i2t")) == ["a hit"]


def test_typed_words_and_unfamiliar_words(scenes, space, encoders):
    familiar = browser.typed_query(scenes, {"rvlr": space}, encoders, scenes.captions[0])
    assert familiar.title == ""
    assert familiar.results["rvlr"][0].name == scenes.image_ids[0]
    assert {hit.hit for hit in familiar.results["rvlr"]} == {None}
    unfamiliar = browser.typed_query(scenes, {"rvlr": space}, encoders, "A zeppelin!", targets="it")
    assert "in no caption: zeppelin; unreliable results" in unfamiliar.title


def test_widget_reaches_every_query_and_clears_words(scenes, space, truth, encoders):
    widget = browser.query_browser(scenes, {"rvlr": space}, encoders, relevance=truth)
    which, query, words, picture, find = widget.children[:5]
    assert (query.max, find.value) == (199, "i")
    query.value = 199
    words.value = scenes.captions[0]
    which.value = "i2t"
    assert (query.max, query.value, words.value) == (39, 39, "")
    which.value = "t2t"
    query.value = 150
    assert query.max == 199
    words.value = "zeppelin"
    widget.update()
    assert "zeppelin" in texts(widget.result)
    words.value = " "
    widget.update()
    assert "zeppelin" not in texts(widget.result)
    picture.value = ({"name": "x.txt", "type": "", "size": 1, "content": b"no", "last_modified": datetime.now(UTC)},)
    words.value = ""
    widget.update()
    assert "x.txt is not a readable picture" in widget.result.value


def test_widgets_are_for_readers_at_a_server(monkeypatch):
    monkeypatch.setenv("JPY_SESSION_NAME", "x")
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    assert not browser.has_reader()
    monkeypatch.delenv("RVLR_HEADLESS")
    assert browser.has_reader()
