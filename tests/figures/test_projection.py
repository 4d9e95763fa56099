import os
from functools import partial

import numpy as np
import pytest
from matplotlib.offsetbox import AnnotationBbox

from rvlr_lib.figures import projection
from tests.figures.conftest import drawn, legend, texts


@pytest.fixture(scope="module")
def spaces():
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(4, 16))[np.arange(40) % 4]
    image = centres + rng.normal(size=(40, 16))
    return {"start": (image, image + 0.1 * rng.normal(size=(40, 16)) + 3), "rvlr": (image[:, :12], image[:, :10])}


@pytest.fixture(scope="module")
def maps(spaces):
    return [projection.project_spaces(spaces, method=method, caption_image=range(40)) for method in ("umap", "pca")]


def test_maps_are_comparable_faithful_and_repeatable(spaces, maps):
    assert [drawing.name for drawing in maps] == ["UMAP", "PCA"]
    for drawing in maps:
        for pair in drawing.coords.values():
            assert [xy.shape for xy in pair] == [(40, 2), (40, 2)]
            assert np.concatenate(pair).mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
        assert all(0.6 < value <= 1 for trust in drawing.trustworthiness.values() for value in trust.values())
    again = projection.project_spaces(spaces, caption_image=range(40))
    np.testing.assert_array_equal(again.coords["rvlr"][0], maps[0].coords["rvlr"][0])
    assert again.to_frame().groupby(["space", "modality"]).size().tolist() == [40] * 4


def test_the_first_caption_of_each_picture_is_drawn(spaces):
    many = {name: (image, np.repeat(text, 3, axis=0)) for name, (image, text) in spaces.items()}
    drawing = projection.project_spaces(many, method="pca", max_points=20, caption_image=np.repeat(np.arange(40), 3))
    assert len(drawing.image_rows) == 10
    assert drawing.text_rows.tolist() == (3 * drawing.image_rows).tolist()
    plain = projection.project_spaces(spaces, method="pca", max_points=20, caption_image=range(40))
    np.testing.assert_allclose(drawing.coords["start"], plain.coords["start"], atol=1e-6)


def test_too_few_pictures_and_pictures_without_captions_are_refused(spaces, refuses):
    for few, owners in (({"a": [x[:4] for x in spaces["start"]]}, range(4)), (spaces, [*range(39), 0])):
        refuses("5 or more pictures, each with a caption", projection.project_spaces, few, caption_image=owners)


def test_a_map_is_computed_once(spaces, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMBA_CACHE_DIR", "mine")
    cached = partial(projection.cached_projection, tmp_path, spaces, method="pca", caption_image=np.arange(40))
    first = cached()
    assert os.environ["NUMBA_CACHE_DIR"] == "mine"
    monkeypatch.delenv("NUMBA_CACHE_DIR")
    cached(seed=2)
    assert os.environ["NUMBA_CACHE_DIR"] == str(tmp_path / "cache" / "numba")
    monkeypatch.setattr(projection, "project_spaces", None)
    again = cached()
    np.testing.assert_allclose(again.coords["start"][1], first.coords["start"][1], atol=1e-6)
    assert again.trustworthiness == first.trustworthiness
    with pytest.raises(TypeError):  # other options, not cached
        cached(seed=1)
    swapped = {"rvlr": spaces["start"], "start": spaces["rvlr"]}
    with pytest.raises(TypeError):  # other features under the same names
        projection.cached_projection(tmp_path, swapped, method="pca", caption_image=np.arange(40))
    monkeypatch.setattr(projection, "sha256", lambda _: "of an edited file")
    with pytest.raises(TypeError):
        cached()


def test_panels_share_limits_colour_shows_the_modality_and_other_never_stands_for_one_label(maps):
    for drawing in maps:
        figure = drawn(projection.plot_embedding, drawing)
        extent = max(np.abs(xy).max() for pair in drawing.coords.values() for xy in pair)
        assert [axes.get_xlim()[1] for axes in figure.axes] == pytest.approx([1.08 * extent] * 2)
    assert legend(figure) == ["picture", "caption"]
    assert len(figure.axes[0].collections[0].get_segments()) == 40  # pairs
    for kinds, other in ((7, False), (9, True)):
        figure = projection.plot_embedding(maps[1], labels=[f"kind {i % kinds}" for i in range(40)])
        assert ("other" in legend(figure)) == other


@pytest.mark.parametrize("count", [0, 5, 12])
def test_thumbnails_have_the_requested_number_and_hide_no_point(maps, count):
    figure = projection.plot_embedding(maps[1], thumbnail=lambda row: np.zeros((8, 8, 3)), thumbnails=count)
    figure.canvas.draw()
    for axes, pair in zip(figure.axes, maps[1].coords.values(), strict=True):
        boxes = [box for box in axes.get_children() if isinstance(box, AnnotationBbox)]
        assert len(boxes) == count
        points = axes.transData.transform(np.concatenate(pair))
        centres = [axes.transData.transform(box.xyann) for box in boxes]
        half = projection.THUMBNAIL * figure.dpi / 2
        assert not any((np.abs(points - centre) < half).all(axis=1).any() for centre in centres)
        assert all(axes.bbox.padded(-half).contains(*centre) for centre in centres)


def test_similarity_blocks_are_the_cosines(spaces):
    image, text = spaces["start"]
    order = np.argsort(image[:, 0])
    both = {"start": (image, text.repeat(2, axis=0)), "rvlr": (text, image.repeat(2, axis=0))}
    figure = drawn(projection.plot_similarity_blocks, both, order=order, caption_image=np.arange(40).repeat(2))
    unit = [x[order] / np.linalg.norm(x[order], axis=1, keepdims=True) for x in (image, text)]
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[:40, 40:], unit[0] @ unit[1].T, atol=1e-5)
    assert "picture and its caption" in texts(figure)
