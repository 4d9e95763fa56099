import os
import subprocess
import sys

import numpy as np
import pytest

from rvlr_lib.figures import projection


@pytest.fixture(scope="module")
def spaces():
    rng = np.random.default_rng(0)
    centres = 4 * rng.normal(size=(4, 16))[np.arange(40) % 4]
    image = centres + rng.normal(size=(40, 16))
    return {"start": (image, image + 0.1 * rng.normal(size=(40, 16)) + 3), "rvlr": (image[:, :12], image[:, :10])}


@pytest.fixture(scope="module")
def maps(spaces):
    return [projection.project_spaces(spaces, method=method) for method in ("umap", "pca")]


def test_maps_are_comparable_faithful_and_repeatable(spaces, maps):
    umap, pca = maps
    assert (umap.name, pca.name) == ("UMAP", "PCA")
    for found in maps:
        for pair in found.coords.values():
            assert [xy.shape for xy in pair] == [(40, 2), (40, 2)]
            assert np.concatenate(pair).mean(axis=0) == pytest.approx([0, 0], abs=1e-4)
        assert all(0.6 < value <= 1 for trust in found.trustworthiness.values() for value in trust.values())
    again = projection.project_spaces(spaces)
    np.testing.assert_array_equal(again.coords["rvlr"][0], umap.coords["rvlr"][0])
    frame = umap.to_frame()
    assert len(frame) == 2 * 80
    assert set(frame["modality"]) == {"picture", "caption"}


def test_pairs_follow_the_captions(spaces):
    owner = np.repeat(np.arange(40), 3)
    many = {name: (image, np.repeat(text, 3, axis=0)) for name, (image, text) in spaces.items()}
    found = projection.project_spaces(many, method="pca", max_points=20, caption_image=owner)
    assert len(found.image_rows) == len(found.text_rows) == 10
    for image, text in found.pairs:
        assert owner[found.text_rows[text]] == found.image_rows[image]


def test_bad_spaces_are_refused(spaces):
    image, text = spaces["start"]
    for bad, options, message in (
        ({"a": (image, text)}, {"method": "tsne"}, "valid are umap, pca"),
        ({"a": (image, text), "b": (image[1:], text)}, {}, "the same pictures and captions"),
        ({"a": (image[:4], text[:4])}, {}, "5 or more"),
        ({"a": (image * np.nan, text)}, {"method": "pca"}, "not finite"),
        ({}, {}, "5 or more"),
    ):
        with pytest.raises(ValueError, match=message):
            projection.project_spaces(bad, **options)


def test_a_map_is_computed_once(spaces, tmp_path, monkeypatch):
    first = projection.cached_projection(tmp_path, spaces, method="pca", caption_image=np.arange(40))
    monkeypatch.setattr(projection, "project_spaces", None)
    again = projection.cached_projection(tmp_path, spaces, method="pca", caption_image=np.arange(40))
    np.testing.assert_allclose(again.coords["start"][1], first.coords["start"][1], atol=1e-6)
    assert again.trustworthiness == first.trustworthiness
    assert again.pairs.shape == (40, 2)
    with pytest.raises(TypeError):  # other options are another map
        projection.cached_projection(tmp_path, spaces, method="pca", seed=1)


def test_limits_are_those_of_each_projection_and_colour_is_the_modality(maps, width, texts, figure_faults):
    figure = projection.plot_embedding(*maps)
    assert figure_faults(figure) == []
    reach = {axes.get_title().split(", ")[1]: axes.get_xlim()[1] for axes in figure.axes}
    for found in maps:
        most = max(np.abs(xy).max() for pair in found.coords.values() for xy in pair)
        assert reach[found.name] == pytest.approx(1.08 * most)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["picture", "caption"]
    assert len(figure.axes[0].collections[0].get_segments()) == 40  # pairs


def test_other_is_never_one_label(maps):
    labels = [f"kind {i % 7}" for i in range(40)]
    figure = projection.plot_embedding(maps[1], labels=labels)
    assert "other" not in [text.get_text() for text in figure.legends[0].get_texts()]
    figure = projection.plot_embedding(maps[1], labels=[f"kind {i % 9}" for i in range(40)])
    assert "other" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("count", [0, 5, 12])
def test_as_many_thumbnails_as_asked_for_hide_no_point(maps, count):
    from matplotlib.offsetbox import AnnotationBbox

    figure = projection.plot_embedding(maps[1], thumbnail=lambda row: np.zeros((8, 8, 3)), thumbnails=count)
    figure.canvas.draw()
    for axes, pair in zip(figure.axes, maps[1].coords.values(), strict=True):
        boxes = [box for box in axes.get_children() if isinstance(box, AnnotationBbox)]
        assert len(boxes) == count
        points = axes.transData.transform(np.concatenate(pair))
        middles = [axes.transData.transform(box.xyann) for box in boxes]
        half = projection.THUMBNAIL * figure.dpi / 2
        assert not any((np.abs(points - middle) < half).all(axis=1).any() for middle in middles)
        assert all(axes.bbox.padded(-half).contains(*middle) for middle in middles)


def test_similarity_blocks_are_the_cosines(spaces, width, figure_faults, texts):
    image, text = spaces["start"]
    order = np.argsort(image[:, 0])
    figure = projection.plot_similarity_blocks({"start": (image, text), "rvlr": (text, image)}, order=order, most=20)
    assert figure_faults(figure) == []
    shown = figure.axes[0].images[0].get_array()
    rows = order[np.linspace(0, 39, 20).astype(int)]
    unit = [x[rows] / np.linalg.norm(x[rows], axis=1, keepdims=True) for x in (image, text)]
    np.testing.assert_allclose(shown[:20, 20:], unit[0] @ unit[1].T, atol=1e-5)
    assert "picture and its caption" in texts(figure)
    with pytest.raises(ValueError, match="'rvlr' is no common space: pictures have 12 columns, captions 10"):
        projection.plot_similarity_blocks({"rvlr": spaces["rvlr"]})


def test_numba_takes_the_cache_over(tmp_path):
    code = "import sys\nfrom rvlr_lib.figures.projection import ensure_numba_cache\nensure_numba_cache(sys.argv[1])\n"
    code += "import numba\nprint(numba.config.CACHE_DIR)"
    for given in ({}, {"NUMBA_CACHE_DIR": str(tmp_path / "own")}):
        environment = {key: value for key, value in os.environ.items() if key != "NUMBA_CACHE_DIR"} | given
        run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, env=environment)
        assert run.stdout.strip() == given.get("NUMBA_CACHE_DIR", str(tmp_path / "cache" / "numba")), run.stderr
