import numpy as np
import pytest
from PIL import Image

from rvlr_lib.data import ImbalanceSpec, load_dataset, shown_share
from rvlr_lib.figures import browser, panels, style
from tests.figures.conftest import drawn, texts

PICTURE = Image.new("RGB", (40, 30), "red")


def test_examples_are_rows_of_pictures_with_captions():
    groups = {f"text {d}": [(PICTURE, f"a caption number {i} of a red picture") for i in range(5)] for d in (1, 2)}
    figure = drawn(panels.plot_examples, groups)
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (right - left) / (bottom - top) == pytest.approx(40 / 30)
    with style.one_column():
        narrow = panels.plot_examples(groups)
    assert [(len(one.axes[0].images), "number 4" in texts(one)) for one in (figure, narrow)] == [(10, True), (6, False)]


def test_panel_shows_the_true_item_the_rank_and_marks(scenes, space, truth, refuses):
    spaces = {"matching_longer": space, "rvlr": space}
    queries = [browser.make_query(scenes, spaces, way, 0, relevance=truth) for way in ("t2i", "i2t", "t2it")]
    figure = drawn(panels.plot_retrieval_panel, queries)
    sizes, words = [image.get_extent() for image in figure.axes[0].images], texts(figure)
    assert len({round(right - left, 6) for left, right, _, _ in sizes}) == 1
    assert words.count("true match") == 3
    assert words.count("rank 1") >= 4
    assert words.count("✓") > 3
    assert "✗" in words
    table = panels.retrieval_table(queries)
    assert table.columns.tolist() == ["query", "method", "rank", "item", "hit", "relevance", "true_rank"]
    assert len(table) == 3 * 2 * 5
    refuses("show fewer rows", panels.plot_retrieval_panel, queries[:1] * 20)  # taller than a page


def test_captions_of_any_length_stay_in_their_cell():
    words = "a large turquoise heart and a tiny azure cross over a sandy ground with a little violet circle " * 2
    for text in (words, "caption " * 60 + "Donaudampfschifffahrtsgesellschaft" * 3):
        methods = dict.fromkeys(("matching", "matching_longer", "rvlr"), [panels.Hit(text, hit=False)] * 5)
        query = panels.Query(PICTURE, methods, truth=text, title="a failure")
        assert drawn(panels.plot_retrieval_panel, [query] * 3).get_figheight() <= style.MAX_HEIGHT


def test_one_item_along_the_dial(scenes):
    columns, row = [], None
    dials = (ImbalanceSpec(image_visibility=0.3), ImbalanceSpec(), ImbalanceSpec(text_detail=0.2))
    for title, dial in zip(("poor pictures", "nothing taken", "poor captions"), dials, strict=True):
        test = load_dataset("scenes", split="test", imbalance=dial, galleries=1, gallery_size=40)
        exact, wrong = test.scene.scene.counts().astype(float), np.random.default_rng(0).normal(size=(40, 9))
        row = next(i for i in range(40) if shown_share(test.subset([i])) < 1) if row is None else row
        spaces, truth = {"teacher": exact, "rvlr": wrong}, test.scene.truth("latent").image_to_image
        columns.append(browser.dial_query(title, test, spaces, truth, row, undegraded=scenes))
        assert [hit.hit for hit in columns[-1].results["teacher"]] == [True] * 5
    assert columns[0].shares["picture"] < columns[1].shares["picture"] == 1 == columns[0].shares["caption"]
    assert columns[2].shares["caption"] < 1
    figure = drawn(panels.plot_dial_item, columns)
    assert len(figure.axes[0].images) == 3 * (1 + 3 * 5)
    assert (texts(figure).count("5/5"), "caption 100.0 %" in texts(figure)) == (3, True)
    assert len([frame for frame in figure.axes[0].patches if not frame.get_fill()]) >= 15


def test_neighbours_shared_with_the_first_space_are_marked(scenes, space):
    other = np.random.default_rng(0).normal(size=space[0].shape)
    query = browser.neighbour_query(scenes, {"start": space[0], "rvlr": other, "same": 2 * space[0]}, 4)
    assert [hit.hit for hit in query.results["start"]] == [None] * 5
    assert [hit.hit for hit in query.results["same"]] == [True] * 5
    first = {hit.name for hit in query.results["start"]}
    assert [hit.hit for hit in query.results["rvlr"]] == [hit.name in first for hit in query.results["rvlr"]]
    assert "item" in texts(panels.plot_retrieval_panel([query]))
