import warnings

import numpy as np
import pytest
import torch

from rvlr_lib.figures import projection
from rvlr_lib.figures.projection import cached_projection, project_spaces


def clusters(seed, count=40, width=12, noise=0.3):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(4, width))
    of_images, of_texts = (centres[np.arange(count) % 4] + noise * rng.normal(size=(count, width)) for _ in range(2))
    return of_images, of_texts


@pytest.fixture(scope="module")
def spaces():
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(12, 12)))[0]
    first = clusters(0)
    return {
        "teachers": first,
        "again": first,
        "turned": tuple(x @ turn for x in first),
        "other": clusters(1, noise=0.6),
    }


@pytest.fixture(scope="module", params=["umap", "pca"])
def drawn(request, spaces):
    return project_spaces(spaces, method=request.param, seed=3)


def test_every_item_in_every_space(drawn, spaces):
    assert list(drawn.coords) == list(spaces)
    assert all(image.shape == text.shape == (40, 2) for image, text in drawn.coords.values())
    assert all(np.isfinite(xy).all() for pair in drawn.coords.values() for xy in pair)
    assert list(drawn.image_rows) == list(drawn.text_rows) == list(range(40))
    everything = np.concatenate([xy for pair in drawn.coords.values() for xy in pair])
    assert np.abs(everything.mean(axis=0)).max() < 1e-5
    assert np.sqrt((everything**2).mean()) == pytest.approx(1)


def test_equal_spaces_look_equal_and_others_are_comparable(drawn):
    def moved(a, b):
        return np.mean(
            [np.linalg.norm(p - q, axis=1).mean() for p, q in zip(drawn.coords[a], drawn.coords[b], strict=True)]
        )

    assert moved("teachers", "again") < 1e-6
    assert moved("teachers", "turned") < (1e-3 if drawn.name == "PCA" else 0.5)
    assert moved("teachers", "other") < 0.8  # two layouts that know nothing of each other: about 1.3


def test_trustworthiness(drawn):
    for space, trust in drawn.trustworthiness.items():
        assert set(trust) == {"image", "text", "joint"}
        assert all(0 <= value <= 1 for value in trust.values())
        assert trust["joint"] > (0.8 if space != "other" else 0.6)
    random = np.random.default_rng(0).normal(size=(80, 2))
    points = projection._stack("x", *clusters(0))
    assert projection._trust(points, random, 40, 15)["joint"] < 0.65
    half = np.concatenate([projection._components(points[:40]), random[40:]])
    assert projection._trust(points, half, 40, 15)["image"] > 0.9
    assert projection._trust(points, half, 40, 15)["text"] < 0.65
    angles = np.random.default_rng(0).uniform(0, 6, 20)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    assert projection._trust(circle, circle, 10, 15) == {"image": 1.0, "text": 1.0, "joint": 1.0}


def test_same_seed_same_picture(drawn, spaces):
    again = project_spaces(spaces, method=drawn.name.lower(), seed=3)
    for space, pair in drawn.coords.items():
        for one, other in zip(pair, again.coords[space], strict=True):
            assert np.array_equal(one, other)


def test_quiet(spaces, capfd, monkeypatch):
    import umap.umap_ as library

    def grumble(*args, original=library.find_ab_params, **kwargs):
        warnings.warn("as a library may", stacklevel=1)
        return original(*args, **kwargs)

    monkeypatch.setattr(library, "find_ab_params", grumble)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        project_spaces({"a": spaces["teachers"]}, max_points=20)
        project_spaces({"a": spaces["teachers"]}, max_points=20, method="pca")
    assert capfd.readouterr() == ("", "")


def test_rows_are_drawn_once_for_all():
    image, text = np.eye(50, 12) + 0.1, np.tile(np.eye(50, 12) + 0.1, (2, 1))
    owners = np.repeat(np.arange(50), 2)[::-1]
    found = project_spaces({"a": (image, text)}, method="pca", max_points=20, caption_image=owners)
    assert len(found.image_rows) == 10
    assert list(found.image_rows) == sorted(set(found.image_rows))
    assert [owners[c] for c in found.text_rows] == list(found.image_rows)
    assert all(c == np.flatnonzero(owners == owners[c])[0] for c in found.text_rows)
    other = project_spaces({"a": (image, text)}, method="pca", max_points=20, seed=1, caption_image=owners)
    assert list(other.image_rows) != list(found.image_rows)
    free = project_spaces({"a": (image, text)}, method="pca", max_points=20)
    assert len(free.text_rows) == 10


def test_modalities_of_other_widths_share_nothing():
    points = projection._stack("x", np.ones((3, 4)), np.ones((2, 6)))
    assert points.shape == (5, 10)
    assert np.allclose(points @ points.T, np.kron(np.eye(2), np.ones((3, 3)))[:5, :5])


def test_tensors_and_arrays_agree(spaces):
    pair = spaces["teachers"]
    tensors = project_spaces({"a": tuple(map(torch.as_tensor, pair))}, method="pca")
    assert np.array_equal(tensors.coords["a"][0], project_spaces({"a": pair}, method="pca").coords["a"][0])


def test_frame(drawn):
    labels = np.arange(40) % 4
    frame = drawn.to_frame(labels, labels)
    assert len(frame) == 4 * 80
    assert set(frame["method"]) == {drawn.name}
    last = frame.iloc[-1]
    assert (last["space"], last["modality"], last["row"], last["label"]) == ("other", "text", 39, 3)
    assert last["x"] == drawn.coords["other"][1][39, 0]
    assert last["trustworthiness"] == drawn.trustworthiness["other"]["text"]
    assert drawn.to_frame()["label"].isna().all()


@pytest.mark.parametrize(("change", "message"), [
    ({"method": "tsne"}, "valid are umap, pca"),
    ({"spaces": {}}, "same pictures"),
    ({"spaces": {"a": clusters(0), "b": clusters(0, count=39)}}, "39"),
    ({"spaces": {"a": clusters(0, count=4)}}, "5 or more"),
    ({"max_points": 8}, "5 or more"),
    ({"spaces": {"a": tuple(np.full((9, 3), np.nan) for _ in range(2))}}, "'a' are not finite"),
])  # fmt: skip
def test_bad_input(change, message, spaces):
    arguments = {"spaces": spaces, "method": "pca"} | change
    with pytest.raises(ValueError, match=message):
        project_spaces(arguments.pop("spaces"), **arguments)


def test_a_map_is_drawn_once(tmp_path, spaces, monkeypatch):
    options = {"method": "pca", "max_points": 30}
    first = cached_projection(tmp_path, spaces, **options)
    monkeypatch.setattr(projection, "project_spaces", lambda *_, **__: pytest.fail("drawn again"))
    second = cached_projection(tmp_path, spaces, **options)
    assert first.method == second.method
    assert first.trustworthiness == second.trustworthiness
    assert np.array_equal(first.image_rows, second.image_rows)
    assert all(np.array_equal(a, b) for s in spaces for a, b in zip(first.coords[s], second.coords[s], strict=True))
    with pytest.raises(pytest.fail.Exception):
        cached_projection(tmp_path, {**spaces, "other": clusters(7)}, **options)
