import numpy as np
import pytest
import torch

from rvlr_lib.metrics import evaluate_folds, evaluate_retrieval
from tests.metrics.slow_protocol import slow_evaluation

OFFICIAL, CORRECTED = "official", "corrected"
BOTH = pytest.mark.parametrize("protocol", [OFFICIAL, CORRECTED])


def world(seed=0, images=13, extra=20, width=4):
    """One or more captions per image, in any order."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, extra)]))
    z, w = rng.normal(size=(images, width)), rng.normal(size=(len(owner), width))
    relevance = rng.random((len(owner), images)) * (rng.random((len(owner), images)) < 0.7)
    return rng, z, w, owner, relevance


SWITCHES = [{"protocol": OFFICIAL}, {}, {"mixed_t2it": "transposed"}, {"mixed_scores": "matching"}]
SWITCHES += [{"mixed_t2it": "transposed", "mixed_scores": "matching"}]


def close(values):
    return pytest.approx(values, abs=1e-8, nan_ok=True)


@pytest.mark.parametrize("known", [False, True], ids=["derived", "known"])
@pytest.mark.parametrize("matching", [False, True], ids=["cosines", "matching"])
@pytest.mark.parametrize("switches", SWITCHES, ids=lambda switches: " ".join(switches.values()) or CORRECTED)
def test_equals_the_slow_twin(switches, matching, known):
    rng, *inputs = world()
    (images, captions), options = map(len, inputs[:2]), dict(switches)
    if matching:
        options["scores_i2t"] = rng.normal(size=(images, captions))
        options["scores_t2i"] = rng.normal(size=(captions, images))
    if known:
        options |= {"image_relevance": rng.random((images, images)), "text_relevance": rng.random((captions, captions))}
    per_query, means = slow_evaluation(*inputs, **options)
    assert evaluate_retrieval(*inputs, **options) == close(means)
    alone = evaluate_retrieval(*map(torch.tensor, inputs), **options, ks_ndcg=())  # no graded lists; tensors
    assert alone == close({key: value for key, value in means.items() if "NDCG" not in key})
    by_query = evaluate_retrieval(*inputs, **options, per_query=True)
    assert by_query.keys() == means.keys()
    for key, values in per_query.items():
        assert by_query[key] == close(np.array(values)), key


def test_an_image_without_captions_is_a_miss_and_no_query():
    _, z, w, owner, relevance = world()
    images = len(z)
    alone, wider = np.vstack([z, z[:1] + 9]), np.hstack([relevance, 0.5 * np.ones((len(w), 1))])
    single = evaluate_retrieval(alone, w, owner, wider, per_query=True)
    assert single["i2t/R@10"][-1] == 0
    assert all(np.isnan(single[key][-1]) and not np.isnan(single[key][0]) for key in single if "NDCG@10" in key)
    assert all(np.isfinite(value) for value in evaluate_retrieval(alone, w, owner, wider).values())
    mean = np.stack([relevance[owner == i].mean(axis=0) for i in range(images)])
    known = np.full((images + 1, images + 1), 0.5)  # as a candidate in i2i it has only one known direction
    known[:-1, :-1] = (mean + mean.T) / 2
    expected = evaluate_retrieval(alone, w, owner, wider, image_relevance=known, per_query=True)
    assert single["i2i/NDCG@10"] == close(expected["i2i/NDCG@10"])


def test_means_of_single_precision_relevance_that_are_equal_stay_equal():
    a, b, c, d = np.array([0.6031001, 0.62986267, 0.24022491, 0.9544044], np.float32)
    relevance = np.array([[1, a, b], [1, b, c], [1, c, d], [1, d, a], [0.25, 1, 0.2], [0.25, 0.2, 1]], np.float32)
    rng, owner = np.random.default_rng(0), [0, 0, 0, 0, 1, 2]  # both others are equally relevant to picture 0
    single = evaluate_retrieval(rng.normal(size=(3, 4)), rng.normal(size=(6, 4)), owner, relevance, per_query=True)
    assert np.isnan(single["i2i/NDCG@10/above_floor"]).tolist() == [True, False, False]


@BOTH
def test_chunks_order_and_scale_change_nothing(protocol):
    _, z, w, owner, relevance = world()
    expected = close(evaluate_retrieval(z, w, owner, relevance, protocol=protocol))
    for chunk_size in (1, 4, 1000):
        assert evaluate_retrieval(z, w, owner, relevance, protocol=protocol, chunk_size=chunk_size) == expected
    order = np.argsort(owner, kind="stable")  # keeps each image's first caption
    assert evaluate_retrieval(z, w[order], owner[order], relevance[order], protocol=protocol) == expected
    order = np.random.default_rng(5).permutation(len(z))
    moved = z[order], w, np.argsort(order)[owner], relevance[:, order]
    assert evaluate_retrieval(*moved, protocol=protocol) == expected
    for factor in (np.geomspace(1e-30, 1e30, len(z))[:, None], 1e-200, 1e200):
        assert evaluate_retrieval(factor * z, 0.2 * w, owner, relevance, protocol=protocol) == expected
    small = evaluate_retrieval(np.float32(z) * np.float32(1e-38), np.float32(w), owner, relevance, protocol=protocol)
    assert small["r_mean"] == pytest.approx(expected.expected["r_mean"])


@pytest.mark.parametrize(("dtype", "images", "width"), [("f8", 5, 16), ("f8", 119, 264), ("f4", 2, 256), ("f2", 2, 16)])
def test_equal_features_tie_however_products_are_rounded(dtype, images, width):
    rng, owner = np.random.default_rng(16), np.repeat(np.arange(images), 5)
    z, w = (np.tile(rng.normal(size=width), (count, 1)).astype(dtype) for count in (images, 5 * images))
    for chunk_size in (1, None):
        report = evaluate_retrieval(
            z, w, owner, rng.random((5 * images, images)), ks_recall=(1,), chunk_size=chunk_size
        )
        tied = [report["r_mean"], *(report[f"{name}/NDCG@10/above_floor"] for name in ("i2i", "t2t") if images > 2)]
        assert np.allclose(tied, 0, atol=1e-9)


@BOTH
def test_folds_are_the_mean_of_galleries_cut_out_by_hand(protocol):
    rng, z, w, owner, relevance = world(images=30, extra=50)
    sides = {"scores_i2t": "it", "scores_t2i": "ti", "image_relevance": "ii", "text_relevance": "tt"}
    size = {"i": len(z), "t": len(w)}
    known = {name: rng.random((size[a], size[b])) for name, (a, b) in sides.items()}
    reports = []
    for begin in (0, 10, 20):
        rows = {"i": list(range(begin, begin + 10)), "t": [c for c in range(len(w)) if begin <= owner[c] < begin + 10]}
        fold = {name: matrix[np.ix_(*(rows[side] for side in sides[name]))] for name, matrix in known.items()}
        fold_relevance = relevance[np.ix_(rows["t"], rows["i"])]
        inputs = z[rows["i"]], w[rows["t"]], owner[rows["t"]] - begin, fold_relevance
        reports.append(evaluate_retrieval(*inputs, protocol=protocol, **fold))
    means = evaluate_folds(z, w, owner, relevance, fold_size=10, protocol=protocol, **known)
    assert means == pytest.approx({key: np.mean([report[key] for report in reports]) for key in reports[0]})
    assert evaluate_folds(z, w, owner, relevance, fold_size=30) == evaluate_retrieval(z, w, owner, relevance)
