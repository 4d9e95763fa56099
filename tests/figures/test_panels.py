import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rvlr_lib.figures import charts as plots
from rvlr_lib.figures import panels
from rvlr_lib.figures.panels import Hit, Query
from rvlr_lib.figures.projection import project_spaces
from rvlr_lib.figures.style import caption_fonts

LONG = "a huge golden hexagon with a tiny emerald valentine and a large crimson square over a speckled background " * 2
WORDS = (
    "a red cross",
    "there is a small violet disc over a spotted ground",
    LONG,
    "supercalifragilisticexpialidocious",
    r"$\5 or $6",
)


def picture(i, size=(30, 30)):
    return Image.new("RGB", size, (40 * i % 256, 90, 200))


def query(
    pictures_found,
    item,
    methods=("teachers", "matching_longer", "a_method_with_a_name_that_is_much_too_long"),
    known=True,
):
    def hits(shift):
        items = [picture(i) if pictures_found else WORDS[(i + shift) % 5] for i in range(5)]
        return [Hit(item, f"item {i}", i == shift if known else None, i / 4 if known else None)
                for i, item in enumerate(items)]  # fmt: skip

    return Query(item, {name: hits(i) for i, name in enumerate(methods)}, "the query")


def texts(figure):
    return [text.get_text() for text in (*figure.texts, *(text for axes in figure.axes for text in axes.texts))]


@pytest.mark.parametrize("pictures_found", [True, False])
@pytest.mark.parametrize("item", [picture(1), LONG * 3], ids=["picture", "caption"])
def test_retrieval_panel_is_legible(pictures_found, item, figure_faults):
    figure = panels.plot_retrieval_panel([query(pictures_found, item), query(not pictures_found, item)])
    assert figure_faults(figure) == []
    assert figure.get_figwidth() == plots.PAGE


def test_right_and_wrong_differ_without_colour():
    figure = panels.plot_retrieval_panel([query(True, "a query")])
    frames = [axes.spines["left"] for axes in figure.axes[:5]]
    assert [frame.get_linewidth() > 2 for frame in frames] == [True, False, False, False, False]
    assert [frame.get_linestyle() in ("-", "solid") for frame in frames] == [True, False, False, False, False]
    assert to_rgb(frames[0].get_edgecolor()) != to_rgb(frames[1].get_edgecolor())
    assert [text for text in texts(figure) if text[0] in "✓✗"][:5] == ["✓ 0.00", "✗ 0.25", "✗ 0.50", "✗ 0.75", "✗ 1.00"]
    unmarked = panels.plot_retrieval_panel([query(True, "a", known=False)])
    assert not [text for text in texts(unmarked) if text.startswith(("✓", "✗"))]


def test_retrieval_table_holds_what_is_drawn():
    table = panels.retrieval_table([query(False, "a query")])
    assert list(table.columns) == ["query", "method", "rank", "item", "hit", "relevance"]
    assert len(table) == 15
    assert table.iloc[6].to_list() == ["the query", "matching_longer", 2, "item 1", True, 0.25]


def test_captions_of_any_script_find_their_font_and_bold_titles_ask_for_none(monkeypatch):
    monkeypatch.setattr("matplotlib.font_manager.get_font_names", lambda: ["Nirmala UI", "Comic Sans MS"])
    caption_fonts.cache_clear()
    for figure in (
        panels.plot_examples({"dial": [(picture(1), "a cat")]}),
        panels.plot_retrieval_panel([query(False, "a")]),
    ):
        written = [*figure.texts, *(text for axes in figure.axes for text in axes.texts)]
        for text in written:
            bold = text.get_weight() == "bold"
            assert text.get_fontfamily() == (["DejaVu Sans"] if bold else ["DejaVu Sans", "Nirmala UI"])
    caption_fonts.cache_clear()


def test_examples_are_legible_and_wrapped(figure_faults):
    groups = {f"detail {n}": [(picture(i, (20 + 9 * i, 30)), WORDS[i]) for i in range(5)] for n in ("1.0", "0.6")}
    figure = panels.plot_examples(groups)
    assert figure_faults(figure) == []
    assert len([axes for axes in figure.axes if axes.images]) == 10
    assert any("\n" in text and text.replace("\n", " ") == WORDS[1] for text in texts(figure))
    assert WORDS[4] in texts(figure)


@pytest.mark.parametrize(("text", "lines"), [("", [""]), ("one", ["one"]), ("  two   words ", ["two words"])])
def test_wrap_short(text, lines):
    assert panels._wrap(text, 2.0, 3) == lines


def test_wrap_fits_and_says_what_is_left_out():
    from matplotlib.textpath import TextPath

    for text in WORDS[:4]:
        full = panels._wrap(text, 0.8, 99)
        assert "".join(full).replace(" ", "") == text.replace(" ", "")
        assert all(TextPath((0, 0), line, size=8).get_extents().width <= 0.8 * 72 for line in full)
    cut = panels._wrap(LONG, 0.8, 3)
    assert len(cut) == 3
    assert cut[-1].endswith(" …")
    assert cut[-1].removesuffix(" …").split() == [w for w in cut[-1].removesuffix(" …").split() if w in LONG.split()]


@pytest.fixture(scope="module")
def projections():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(30, 8))
    spaces = {
        name: (shared + s * rng.normal(size=(30, 8)), shared[:, ::-1])
        for name, s in (("teachers", 0.1), ("matching", 0.5), ("rvlr", 1))
    }
    return project_spaces(spaces, method="pca", max_points=40)


@pytest.mark.parametrize("labelled", [True, False])
def test_embedding_is_legible_and_draws_every_point(projections, labelled, figure_faults):
    names = [f"kind {i % 9}" for i in range(30)] if labelled else None
    figure = panels.plot_embedding(projections, image_labels=names, text_labels=names)
    assert figure_faults(figure) == []
    figure = panels.plot_embedding(projections, projections, image_labels=names, text_labels=names, thumbnail=picture)
    assert figure_faults(figure) == []
    assert len(figure.axes) == 6
    for axes, space in zip(figure.axes, 2 * list(projections.coords), strict=True):
        drawn = np.concatenate([c.get_offsets() for c in axes.collections])
        assert len(drawn) == 40
        assert {tuple(p) for p in drawn} == {tuple(p) for xy in projections.coords[space] for p in xy}
        assert all(c.get_rasterized() for c in axes.collections)
        assert f"{projections.trustworthiness[space]['joint']:.2f}" in axes.get_xlabel()
        assert 2 <= len(axes.artists) <= 6
    legend = [text.get_text().rstrip(" 0123456789") for text in figure.legends[0].get_texts()]
    assert legend == ["picture", "caption", *(["kind"] * 7 + ["other"] if labelled else [])]
    assert [axes.get_title() for axes in figure.axes] == ["teachers", "matching", "RVLR", "", "", ""]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_embedding_is_legible_with_long_labels(count, figure_faults):
    features = np.random.default_rng(0).normal(size=(30, 5))
    drawn = project_spaces({f"space {i}": (features, features) for i in range(count)}, method="pca")
    names = [f"a category with a long name {i % 9}" for i in range(30)]
    assert figure_faults(panels.plot_embedding(drawn, image_labels=names, text_labels=names)) == []


def test_embedding_uses_the_labels_of_the_drawn_rows(projections):
    names = np.array(["even", "odd"])[np.arange(100) % 2]
    figure = panels.plot_embedding(projections, image_labels=names)
    even = figure.axes[0].collections[0].get_offsets()
    rows = projections.image_rows
    assert np.array_equal(even, projections.coords["teachers"][0][rows % 2 == 0])
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["picture", "caption", "even", "odd", "other"]


def test_thumbnails_stand_apart():
    layout = np.array([[0, 0], [0.01, 0], [5, 0], [0, 5], [5, 5]], float)
    chosen = panels._far_apart([layout], 10, least=1.0)
    assert sorted(chosen) in ([0, 2, 3, 4], [1, 2, 3, 4])
    assert chosen[0] == 4
    assert panels._far_apart([layout, layout[::-1]], 2, least=0.1)[0] == 4
    assert panels._far_apart([layout], 0, least=1.0) == []
