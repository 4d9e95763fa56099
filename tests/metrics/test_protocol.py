import numpy as np
import pytest
import torch

from rvlr_lib.metrics import evaluate_folds, evaluate_retrieval
from tests.metrics.slow_protocol import slow_evaluation

OFFICIAL, CORRECTED = "official", "corrected"
BOTH = pytest.mark.parametrize("protocol", [OFFICIAL, CORRECTED])


def world(seed=0, images=13, extra=20, width=4):
    """One to several captions an image, in any order."""
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
    single = evaluate_retrieval(*inputs, **options, per_query=True)
    assert single.keys() == means.keys()
    for key, values in per_query.items():
        assert single[key] == close(np.array(values)), key


def test_an_image_without_captions_is_a_miss_and_no_query():
    _, z, w, owner, relevance = world()
    images = len(z)
    alone, wider = np.vstack([z, z[:1] + 9]), np.hstack([relevance, 0.5 * np.ones((len(w), 1))])
    single = evaluate_retrieval(alone, w, owner, wider, per_query=True)
    assert single["i2t/R@10"][-1] == 0
    assert all(np.isnan(single[key][-1]) and not np.isnan(single[key][0]) for key in single if "NDCG@10" in key)
    assert all(np.isfinite(value) for value in evaluate_retrieval(alone, w, owner, wider).values())
    mean = np.stack([relevance[owner == i].mean(axis=0) for i in range(images)])
    known = np.full((images + 1, images + 1), 0.5)  # as a candidate of i2i it keeps the one direction that is known
    known[:-1, :-1] = (mean + mean.T) / 2
    told = evaluate_retrieval(alone, w, owner, wider, image_relevance=known, per_query=True)
    assert single["i2i/NDCG@10"] == close(told["i2i/NDCG@10"])


@BOTH
def test_chunks_order_and_scale_change_nothing(protocol):
    _, z, w, owner, relevance = world()
    whole = close(evaluate_retrieval(z, w, owner, relevance, protocol=protocol))
    for chunk_size in (1, 4, 1000):
        assert evaluate_retrieval(z, w, owner, relevance, protocol=protocol, chunk_size=chunk_size) == whole
    order = np.argsort(owner, kind="stable")  # keeps each image's first caption
    assert evaluate_retrieval(z, w[order], owner[order], relevance[order], protocol=protocol) == whole
    order = np.random.default_rng(5).permutation(len(z))
    moved = z[order], w, np.argsort(order)[owner], relevance[:, order]
    assert evaluate_retrieval(*moved, protocol=protocol) == whole
    for factor in (np.geomspace(1e-30, 1e30, len(z))[:, None], 1e-200, 1e200):
        assert evaluate_retrieval(factor * z, 0.2 * w, owner, relevance, protocol=protocol) == whole
    small = evaluate_retrieval(np.float32(z) * np.float32(1e-38), np.float32(w), owner, relevance, protocol=protocol)
    assert small["r_mean"] == pytest.approx(whole.expected["r_mean"])


@BOTH
def test_inputs_whose_meaning_is_plain_are_accepted(protocol):
    rng, z, w, owner, relevance = world()
    graded, scores = relevance > 0.5, rng.integers(0, 9, (len(z), len(w)))
    options = {"protocol": protocol, "ks_recall": (1, 5), "ks_ndcg": (10,)}
    whole = evaluate_retrieval(z, w, owner, graded, scores_i2t=scores, **options)
    for form in (lambda x: x.tolist(), lambda x: torch.tensor(x, requires_grad=x.dtype == float)):
        found = evaluate_retrieval(form(z), form(w), form(owner), form(graded), scores_i2t=form(scores), **options)
        assert found == pytest.approx(whole, abs=1e-3, nan_ok=True)
        assert all(isinstance(value, float) for value in found.values())
    alone = evaluate_retrieval(z, w, owner, graded, scores_i2t=scores, **options | {"ks_ndcg": ()})
    assert alone.items() == {item for item in whole.items() if "NDCG" not in item[0]}
    options |= {"ks_recall": torch.tensor([1, 5]), "ks_ndcg": np.array(10)}
    assert evaluate_retrieval(z, w, owner.astype(float), graded.astype(np.uint8), scores_i2t=scores, **options) == whole
    for a, b, error in ((np.float32, np.float64, 2), (np.float16, np.float32, 2), (np.float16, np.float16, 5)):
        found = evaluate_retrieval(z.astype(a), w.astype(b), owner, graded, scores_i2t=scores, **options)
        assert found["t2t/NDCG@10"] == pytest.approx(whole["t2t/NDCG@10"], abs=error)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_features": np.ones((13, 5))}, r"image_features \(13, 5\) and text_features \(33, 4\)"),
        ({"image_features": np.full((13, 4), np.nan)}, "finite"),
        ({"image_features": [["a"]]}, "image_features must hold numbers"),
        ({"caption_image": np.zeros(5, int)}, r"caption_image has shape \(5,\).*\(33,\)"),
        ({"caption_image": np.full(33, 13)}, r"0 to 12, got \[13"),
        ({"caption_image": np.full(33, 0.5)}, "caption_image must be whole row numbers"),
        ({"caption_image": np.ones(33, bool)}, "bool"),
        ({"relevance": np.ones((13, 33))}, r"relevance has shape \(13, 33\), expected \(33, 13\)"),
        ({"relevance": None}, "relevance must hold numbers"),
        ({"relevance": -np.ones((33, 13))}, "relevance must be 0 or more"),
        ({"relevance": np.full((33, 13), np.inf)}, "relevance must be 0 or more and finite"),
        ({"image_relevance": np.full((13, 13), np.inf)}, "image_relevance must be 0 or more and finite"),
        ({"text_relevance": np.full((33, 33), np.nan)}, "text_relevance must be 0 or more and finite"),
        ({"text_relevance": np.ones((13, 13))}, "text_relevance has shape"),
        ({"scores_i2t": np.ones((33, 13))}, "scores_i2t has shape"),
        ({"scores_t2i": np.full((33, 13), np.nan)}, "NaN"),
        ({"protocol": "faithful"}, "unknown protocol 'faithful'; valid: corrected, official"),
        ({"mixed_t2it": "official"}, "unknown mixed_t2it 'official'"),
        ({"mixed_scores": "itm"}, "unknown mixed_scores 'itm'"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"ks_ndcg": (0, 10)}, "cut-off"),
        ({"ks_recall": ()}, "cut-off"),
        ({"protocol": OFFICIAL, "caption_image": np.zeros(33, int)}, "a caption for every image"),
    ],
)
def test_refuses(change, message):
    _, z, w, owner, relevance = world()
    inputs = {"image_features": z, "text_features": w, "caption_image": owner, "relevance": relevance, **change}
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(**inputs)


@BOTH
def test_folds_are_the_mean_of_galleries_cut_out_by_hand(protocol):
    rng, z, w, owner, relevance = world(images=30, extra=50)
    sides = {"scores_i2t": "it", "scores_t2i": "ti", "image_relevance": "ii", "text_relevance": "tt"}
    size = {"i": len(z), "t": len(w)}
    known = {name: rng.random((size[a], size[b])) for name, (a, b) in sides.items()}
    reports = []
    for begin in (0, 10, 20):
        rows = {"i": list(range(begin, begin + 10)), "t": [c for c in range(len(w)) if begin <= owner[c] < begin + 10]}
        cut = {name: matrix[np.ix_(*(rows[side] for side in sides[name]))] for name, matrix in known.items()}
        cells = relevance[np.ix_(rows["t"], rows["i"])]
        part = z[rows["i"]], w[rows["t"]], owner[rows["t"]] - begin, cells
        reports.append(evaluate_retrieval(*part, protocol=protocol, **cut))
    found = evaluate_folds(z, w, owner, relevance, fold_size=10, protocol=protocol, **known)
    assert found == pytest.approx({key: np.mean([report[key] for report in reports]) for key in reports[0]})
    assert evaluate_folds(z, w, owner, relevance, fold_size=30) == evaluate_retrieval(z, w, owner, relevance)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold_size": 8}, "fold_size 8 does not divide 13 images"),
        ({"fold_size": 0}, "fold_size"),
        ({"per_query": True}, "per_query"),
        ({"scores_t2i": np.ones((13, 33))}, "scores_t2i has shape"),
        ({"caption_image": [0]}, "caption_image has shape"),
    ],
)
def test_folds_refuse(change, message):
    _, z, w, owner, relevance = world()
    inputs = {"caption_image": owner, "relevance": relevance, "fold_size": 13, **change}
    with pytest.raises(ValueError, match=message):
        evaluate_folds(z, w, **inputs)
