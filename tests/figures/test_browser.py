import io
from datetime import UTC, datetime
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.figures import browser

IMAGES, OWNER = 12, np.array([i for i in range(12) for _ in range(1 + i % 3)])
RNG = np.random.default_rng(0)
METHODS = {
    name: (RNG.normal(size=(IMAGES, 6)), torch.tensor(RNG.normal(size=(len(OWNER), 6)))) for name in ("a", "rvlr")
}
METHODS["teachers"] = (RNG.normal(size=(IMAGES, 4)), RNG.normal(size=(len(OWNER), 7)))


@pytest.fixture(scope="module")
def dataset():
    pixels = np.random.default_rng(1).integers(0, 255, (IMAGES, 8, 8, 3), dtype=np.uint8)
    captions = [f"caption {k} of {i}" for k, i in enumerate(OWNER)]
    return ImageTextDataset("toy", "test", [f"id{i}" for i in range(IMAGES)], captions, OWNER, ArraySource(pixels))


@pytest.fixture(scope="module")
def relevance():
    rng = np.random.default_rng(2)
    across, images, texts = (rng.random(shape) for shape in ((len(OWNER), IMAGES), (IMAGES,) * 2, (len(OWNER),) * 2))
    np.fill_diagonal(images, 1.0)
    np.fill_diagonal(texts, 1.0)
    return SimpleNamespace(caption_to_image=across, image_to_image=images, text_to_text=texts)


def slow_ranking(method, direction, row):
    """Names of all candidates, best first, by loops."""
    images, texts = (np.asarray(x) for x in METHODS[method])
    kinds = {
        "i": (images, [f"id{i}" for i in range(IMAGES)]),
        "t": (texts, [f"caption {k} of {i}" for k, i in enumerate(OWNER)]),
    }
    (source, _), (target, names) = kinds[direction[0]], kinds[direction[2]]
    found = []
    for j, name in enumerate(names):
        if direction[0] == direction[2] and j == row:
            continue
        a, b = source[row], target[j]
        found.append((-float(a @ b) / np.linalg.norm(a) / np.linalg.norm(b), name, j))
    return [(name, j) for _, name, j in sorted(found)]


@pytest.mark.parametrize("direction", ["i2t", "t2i", "i2i", "t2t"])
@pytest.mark.parametrize("row", [0, 5])
def test_best_items_against_loops(dataset, relevance, direction, row):
    query = browser.make_query(dataset, METHODS, direction, row, k=4, relevance=relevance)
    assert set(query.results) == set(METHODS) - ({"teachers"} if direction in ("i2t", "t2i") else set())
    grades = {"i2t": relevance.caption_to_image.T, "t2i": relevance.caption_to_image, "i2i": relevance.image_to_image,
              "t2t": relevance.text_to_text}[direction][row]  # fmt: skip
    for method, hits in query.results.items():
        expected = slow_ranking(method, direction, row)
        assert [hit.name for hit in hits] == [name for name, _ in expected[:4]]
        assert [hit.relevance for hit in hits] == [grades[j] for _, j in expected[:4]]
        best = sorted((grades[j] for _, j in expected), reverse=True)[:4]
        right = {"i2t": row == OWNER, "t2i": np.arange(IMAGES) == OWNER[row]}.get(direction, np.isin(grades, best))
        assert [hit.hit for hit in hits] == [right[j] for _, j in expected[:4]]
        for hit, (name, j) in zip(hits, expected, strict=False):
            if direction[2] == "t":
                assert hit.item == name
            else:
                assert np.array_equal(np.asarray(hit.item), np.asarray(dataset.image(j)))


@pytest.mark.parametrize(("direction", "row"), [("i2it", 2), ("t2it", 7)])
def test_mixed_lists_against_loops(dataset, relevance, direction, row):
    source = direction[0]
    query = browser.make_query(dataset, METHODS, direction, row, k=9, relevance=relevance)
    assert set(query.results) == {"a", "rvlr"}
    parts = {target: browser.make_query(dataset, METHODS, f"{source}2{target}", row, k=9, relevance=relevance)
             for target in "it"}  # fmt: skip
    for method, hits in query.results.items():
        images, texts = (np.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in METHODS[method])
        vector = {"i": images, "t": texts}[source][row]
        scored = [(-float(x @ vector), f"id{j}") for j, x in enumerate(images) if (source, j) != ("i", row)]
        scored += [(-float(x @ vector), f"caption {j} of {OWNER[j]}") for j, x in enumerate(texts)
                   if (source, j) != ("t", row)]  # fmt: skip
        assert [hit.name for hit in hits] == [name for _, name in sorted(scored)[:9]]
        known = {hit.name: hit for part in parts.values() for hit in part.results[method]}
        assert [(hit.hit, hit.relevance) for hit in hits] == [
            (known[hit.name].hit, known[hit.name].relevance) for hit in hits
        ]


def test_a_query_of_ones_own(dataset):
    vectors = {"words": METHODS["a"][0][3], "picture": np.asarray(METHODS["a"][1][5])}
    encoders = {"a": lambda item: vectors["words" if isinstance(item, str) else "picture"]}
    query = browser.typed_query(dataset, METHODS, encoders, "red star", targets="i", k=3)
    assert list(query.results) == ["a"]
    assert query.results["a"][0].name == "id3"
    assert all(hit.name.startswith("id") for hit in query.results["a"])  # pictures alone were asked for
    assert {hit.hit for hit in query.results["a"]} == {None}
    mixed = browser.typed_query(dataset, METHODS, encoders, dataset.image(0), k=40)
    assert mixed.results["a"][0].name == "caption 5 of 2"
    assert len(mixed.results["a"]) == IMAGES + len(OWNER)
    with pytest.raises(ValueError, match="is empty"):
        browser.typed_query(dataset, METHODS, encoders, "  ")
    with pytest.raises(ValueError, match="valid are it, i, t"):
        browser.typed_query(dataset, METHODS, encoders, "x", targets="x")
    with pytest.raises(ValueError, match="none of a, rvlr, teachers has an encoder"):
        browser.typed_query(dataset, METHODS, {}, "x")


def test_the_widget_takes_words_and_pictures(dataset):
    asked = []

    def encoder(item):
        asked.append(item)
        if item == "?":
            raise ValueError("'?' holds no word")
        return METHODS["a"][0][1]

    box = browser.query_browser(dataset, METHODS, encoders={"a": encoder}, interactive=True)
    _, own, said, picture = box.children
    words, upload, wanted = own.children
    before = picture.value
    words.value = "a red star"
    assert asked == ["a red star"]
    assert picture.value != before
    words.value = "?"
    assert "holds no word" in said.value
    buffer = io.BytesIO()
    dataset.image(0).save(buffer, "PNG")
    upload.value = ({"name": "a.png", "type": "image/png", "size": 1, "content": buffer.getvalue(),
                     "last_modified": datetime.now(UTC)},)  # fmt: skip
    assert asked[-1].size == dataset.image(0).size
    assert said.value == ""
    wanted.value = "i"
    assert len(asked) == 4
    upload.value = ({"name": "a.txt", "type": "", "size": 1, "content": b"x", "last_modified": datetime.now(UTC)},)
    assert "a.txt is no picture" in said.value


def test_play_draws_what_is_chosen(dataset, monkeypatch):
    drawn = []

    def draw(kind, row):
        drawn.append((kind, row))
        return browser.query_browser(dataset, METHODS, direction=kind, rows=(row,), interactive=False)

    choices = {"kind": ["t2i", "i2t"], "row": [1, 2]}
    assert isinstance(browser.play(draw, interactive=False, **choices), Figure)
    menus, picture = browser.play(draw, interactive=True, **choices).children
    first = picture.value
    menus.children[0].value = "i2t"
    assert drawn == [("t2i", 1), ("t2i", 1), ("i2t", 1)]
    assert picture.value != first
    with pytest.raises(ValueError, match="nothing to choose for row"):
        browser.play(draw, kind=["t2i"], row=[])


def test_dial_examples_of_scenes_and_of_real_captions(dataset):
    from rvlr_lib.data import ImbalanceSpec, load_dataset

    scenes = load_dataset("scenes", split="test", galleries=1, gallery_size=4)
    dial = ImbalanceSpec(text_detail=0.2, image_visibility=0.25)
    whole, poor = (browser.dial_examples(scenes, "scenes", at, 4) for at in (ImbalanceSpec(), dial))
    assert sum(len(caption) for _, caption in poor) < sum(len(caption) for _, caption in whole)
    assert any(np.asarray(a[0]).tobytes() != np.asarray(b[0]).tobytes() for a, b in zip(whole, poor, strict=True))
    emoji = load_dataset("emoji", split="test", limit=6)
    shown = browser.dial_examples(emoji, "emoji", ImbalanceSpec(text_detail=0.5), 3)
    assert [set(caption.split()) <= set(emoji.captions[emoji.captions_of(i)[0]].split())
            for i, (_, caption) in enumerate(shown)] == [True] * 3  # fmt: skip


def test_derived_relevance_is_that_of_the_corrected_protocol(dataset, relevance):
    bare = SimpleNamespace(caption_to_image=relevance.caption_to_image, image_to_image=None, text_to_text=None)
    mean = np.stack([relevance.caption_to_image[i == OWNER].mean(axis=0) for i in range(IMAGES)])
    for hit in browser.make_query(dataset, METHODS, "i2i", 4, k=20, relevance=bare).results["a"]:
        j = int(hit.name.removeprefix("id"))
        assert hit.relevance == pytest.approx((mean[4, j] + mean[j, 4]) / 2)
    for hit in browser.make_query(dataset, METHODS, "t2t", 4, k=20, relevance=bare).results["a"]:
        assert hit.relevance == relevance.caption_to_image[int(hit.name.split()[1]), OWNER[4]]


def test_what_is_right_without_relevance(dataset):
    texts = browser.make_query(dataset, METHODS, "t2t", 3, k=50).results["a"]
    assert len(texts) == len(OWNER) - 1
    assert {hit.name for hit in texts if hit.hit} == {"caption 4 of 2", "caption 5 of 2"}
    assert {hit.hit for hit in browser.make_query(dataset, METHODS, "i2i", 3).results["a"]} == {None}


def test_what_is_not_relevant_at_all_is_not_right(dataset):
    grades = np.zeros((IMAGES, IMAGES))
    grades[0, 7] = 0.5
    relevance = SimpleNamespace(caption_to_image=grades[OWNER], image_to_image=grades, text_to_text=None)
    hits = browser.make_query(dataset, METHODS, "i2i", 0, k=11, relevance=relevance).results["a"]
    assert [hit.name for hit in hits if hit.hit] == ["id7"]


def test_worst_rows_against_loops(dataset):
    def rank(direction, row):
        found = slow_ranking("a", direction, row)
        own = (lambda j: OWNER[j] == row) if direction == "i2t" else (lambda j: j == OWNER[row])
        return next(place for place, (_, j) in enumerate(found) if own(j))

    for direction, count in (("i2t", IMAGES), ("t2i", len(OWNER))):
        rows = browser.worst_rows(dataset, METHODS["a"], direction, 4)
        ranks = sorted((rank(direction, row) for row in range(count)), reverse=True)
        assert [rank(direction, row) for row in rows] == ranks[:4]


@pytest.mark.parametrize(("change", "message"), [
    ({"direction": "x2t"}, "valid are i2t, t2i, i2i, t2t"),
    ({"row": 12}, "rows are 0 to 11"),
    ({"row": -1}, "rows are 0 to 11"),
    ({"methods": {"teachers": METHODS["teachers"]}, "direction": "i2t"}, "no common space|has a common space"),
    ({"methods": {"a": (np.ones((3, 2)), np.ones((4, 2)))}}, r"a has features of \[3, 4\]"),
])  # fmt: skip
def test_bad_input(dataset, change, message):
    arguments = {"methods": METHODS, "direction": "i2i", "row": 0} | change
    with pytest.raises(ValueError, match=message):
        browser.make_query(dataset, **arguments)
    with pytest.raises(ValueError, match="not for 'i2i'"):
        browser.worst_rows(dataset, METHODS["a"], "i2i")


def test_a_figure_without_a_reader(dataset, monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    figure = browser.query_browser(dataset, METHODS, direction="t2i", rows=(0, 3))
    assert isinstance(figure, Figure)
    assert dataset.captions[3] in [text.get_text().replace("\n", " ") for text in figure.texts]
    monkeypatch.setenv("JPY_SESSION_NAME", "notebook")
    assert not isinstance(browser.query_browser(dataset, METHODS), Figure)
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    assert isinstance(browser.query_browser(dataset, METHODS), Figure)


def test_the_widget_follows_its_controls(dataset, figure_faults):
    box = browser.query_browser(dataset, METHODS, direction="t2i", rows=(20,), k=3, interactive=True)
    controls, picture = box.children
    direction, query = controls.children
    first = picture.value
    assert bytes(first).startswith(b"\x89PNG")
    assert (query.value, query.max) == (20, len(OWNER) - 1)
    query.value = 4
    second = picture.value
    assert second != first
    direction.value = "i2t"
    assert query.max == IMAGES - 1
    assert picture.value != second
    direction.value, query.value = "t2i", len(OWNER) - 1
    direction.value = "i2i"
    assert query.value == IMAGES - 1
