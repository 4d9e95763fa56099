import numpy as np
import pytest
import torch
from slow_protocol import SlowWorld, slow_evaluation, slow_ndcg

from rvlr_lib.metrics import evaluate_retrieval

OFFICIAL, CORRECTED = "official", "corrected"
BOTH = pytest.mark.parametrize("protocol", [OFFICIAL, CORRECTED])


def world(seed=0, images=13, extra=20, width=4):
    """One to several captions an image, in any order."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, extra)]))
    z, w = rng.normal(size=(images, width)), rng.normal(size=(len(owner), width))
    relevance = rng.random((len(owner), images)) * (rng.random((len(owner), images)) < 0.7)
    return rng, z, w, owner, relevance


def close(values):
    return pytest.approx(values, abs=1e-8, nan_ok=True)


@BOTH
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("matching", [False, True], ids=["cosine", "matching"])
def test_equals_the_slow_twin(protocol, seed, matching):
    rng, z, w, owner, relevance = world(seed)
    scores = {}
    if matching:
        scores = {"scores_i2t": rng.normal(size=(len(z), len(w))), "scores_t2i": rng.normal(size=(len(w), len(z)))}
    per_query, means = slow_evaluation(SlowWorld(z, w, owner, relevance, **scores), protocol)
    found = evaluate_retrieval(z, w, owner, relevance, protocol=protocol, **scores)
    assert found == close(means)
    single = evaluate_retrieval(z, w, owner, relevance, protocol=protocol, per_query=True, **scores)
    assert single.keys() == found.keys()
    for key, values in per_query.items():
        assert single[key] == close(np.array(values)), key


def test_known_relevance_of_images_and_texts_is_used():
    rng, z, w, owner, relevance = world()
    known = {"image_relevance": rng.random((len(z), len(z))), "text_relevance": rng.random((len(w), len(w)))}
    _, means = slow_evaluation(SlowWorld(z, w, owner, relevance), CORRECTED, **known)
    found = evaluate_retrieval(z, w, owner, relevance, **known)
    assert found == close(means)
    assert found["i2i/NDCG@10"] != pytest.approx(evaluate_retrieval(z, w, owner, relevance)["i2i/NDCG@10"])
    official = evaluate_retrieval(z, w, owner, relevance, protocol=OFFICIAL)
    assert evaluate_retrieval(z, w, owner, relevance, protocol=OFFICIAL, **known) == official


@pytest.mark.parametrize("mixed_scores", ["cosine", "matching"])
@pytest.mark.parametrize("mixed_t2it", ["direct", "transposed"])
def test_rows_11_and_12_can_be_turned_alone(mixed_t2it, mixed_scores):
    rng, z, w, owner, relevance = world()
    scores = {"scores_i2t": rng.normal(size=(len(z), len(w))), "scores_t2i": rng.normal(size=(len(w), len(z)))}
    switches = {"mixed_t2it": mixed_t2it, "mixed_scores": mixed_scores}
    _, means = slow_evaluation(SlowWorld(z, w, owner, relevance, **scores), CORRECTED, **switches)
    assert evaluate_retrieval(z, w, owner, relevance, **scores, **switches) == close(means)


@BOTH
@pytest.mark.parametrize("chunk_size", [1, 4, 1000])
def test_chunks_change_nothing(protocol, chunk_size):
    _, *inputs = world()
    whole = evaluate_retrieval(*inputs, protocol=protocol)
    assert evaluate_retrieval(*inputs, protocol=protocol, chunk_size=chunk_size) == close(whole)


@BOTH
def test_means_are_those_of_the_defined_queries(protocol):
    _, *inputs = world()
    single = evaluate_retrieval(*inputs, protocol=protocol, per_query=True)
    means = evaluate_retrieval(*inputs, protocol=protocol)
    assert {key: np.nanmean(values) for key, values in single.items()} == close(means)


@BOTH
def test_captions_may_stand_in_any_order_that_keeps_each_first_caption(protocol):
    _, z, w, owner, relevance = world()
    order = np.argsort(owner, kind="stable")
    moved = evaluate_retrieval(z, w[order], owner[order], relevance[order], protocol=protocol)
    assert moved == close(evaluate_retrieval(z, w, owner, relevance, protocol=protocol))


@BOTH
def test_order_of_images_and_length_of_features_do_not_count(protocol):
    _, z, w, owner, relevance = world()
    order = np.random.default_rng(5).permutation(len(z))
    moved = evaluate_retrieval(5 * z[order], 0.2 * w, np.argsort(order)[owner], relevance[:, order], protocol=protocol)
    assert moved == close(evaluate_retrieval(z, w, owner, relevance, protocol=protocol))


def test_official_t2it_is_the_transposed_computation_and_ours_is_not():
    """FIDELITY.md row 11: row i holds image i against every query caption, not caption q(i) against every image."""
    rng, z, w, owner, relevance = world()
    scores_t2i = rng.normal(size=(len(w), len(z)))
    slow = SlowWorld(z, w, owner, relevance, scores_t2i=scores_t2i)
    official = evaluate_retrieval(z, w, owner, relevance, scores_t2i=scores_t2i, protocol=OFFICIAL)

    first = np.array(slow.q)
    turned = scores_t2i.copy()  # so that image j's score under caption q(i) is what row i reads
    turned[first] = scores_t2i[first].T
    asked = relevance.copy()
    asked[first] = relevance[first].T
    lists = []
    for i in range(len(z)):
        captions = [(slow.w[first[i]] @ slow.w[c], relevance[c, i]) for c in range(len(w))]
        lists.append(captions + [(turned[first[i], j], asked[first[i], j]) for j in range(len(z))])
    values = [slow_ndcg(*zip(*candidates, strict=True), 10)[0] for candidates in lists]
    assert official["t2it/NDCG@10"] == pytest.approx(np.mean(values))

    ours = evaluate_retrieval(z, w, owner, relevance, scores_t2i=scores_t2i)
    untouched = evaluate_retrieval(z, w, owner, relevance)
    assert ours["t2it/NDCG@10"] == untouched["t2it/NDCG@10"]  # cosines, whatever the matching scores
    transposed = evaluate_retrieval(z, w, owner, asked)
    assert ours["t2it/NDCG@10"] != pytest.approx(transposed["t2it/NDCG@10"])


def test_above_floor_is_nothing_for_random_and_all_for_perfect_features():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(200), 3)
    truth = rng.normal(size=(200, 8))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    relevance = np.clip(truth[owner] @ truth.T, 0, None)
    random = evaluate_retrieval(rng.normal(size=(200, 8)), rng.normal(size=(600, 8)), owner, relevance)
    perfect = evaluate_retrieval(truth, truth[owner], owner, relevance)
    for name in ("i2i", "t2t", "t2t_no_siblings", "i2it", "t2it"):
        assert abs(random[f"{name}/NDCG@50/above_floor"]) < 3
        assert random[f"{name}/NDCG@50"] > 10
        assert perfect[f"{name}/NDCG@50/above_floor"] == pytest.approx(100)


def test_collapsed_features_earn_nothing():
    _, z, w, owner, relevance = world()
    found = evaluate_retrieval(np.ones_like(z), np.ones_like(w), owner, relevance, ks_recall=(1, 5))
    assert (found["t2i/R@1"], found["i2t/R@1"]) == (0, 0)
    assert [found[f"{x}/NDCG@10/above_floor"] for x in ("i2i", "t2t", "t2t_no_siblings", "i2it", "t2it")] == close(
        [0.0] * 5
    )


def test_an_image_without_captions_is_a_miss_and_no_query():
    _, z, w, owner, relevance = world()
    alone = np.vstack([z, z[:1] + 9])
    wider = np.hstack([relevance, 0.5 * np.ones((len(w), 1))])
    single = evaluate_retrieval(alone, w, owner, wider, per_query=True)
    assert single["i2t/R@10"][-1] == 0
    assert all(np.isnan(single[key][-1]) and not np.isnan(single[key][0]) for key in single if "NDCG@10" in key)
    assert all(np.isfinite(value) for value in evaluate_retrieval(alone, w, owner, wider).values())
    # As a candidate of i2i it keeps the one direction that is known.
    known = np.zeros((len(z) + 1, len(z) + 1))
    for i in range(len(z)):
        for j in range(len(z)):
            known[i, j] = (relevance[owner == i, j].mean() + relevance[owner == j, i].mean()) / 2
    known[:, -1] = known[-1] = 0.5
    told = evaluate_retrieval(alone, w, owner, wider, image_relevance=known, per_query=True)
    assert single["i2i/NDCG@10"] == close(told["i2i/NDCG@10"])


def test_a_list_of_equally_relevant_candidates_leaves_the_corrected_scale():
    _, z, w, owner, relevance = world()
    found = evaluate_retrieval(z, w, owner, np.ones_like(relevance))
    assert found["i2i/NDCG@10"] == pytest.approx(100)
    assert np.isnan(found["i2i/NDCG@10/above_floor"])


def test_nothing_relevant_counts_zero_and_leaves_the_corrected_scale():
    _, z, w, owner, relevance = world()
    found = evaluate_retrieval(z, w, owner, 0 * relevance)
    assert found["i2i/NDCG@10"] == 0
    assert np.isnan(found["i2i/NDCG@10/above_floor"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@BOTH
def test_lower_precision_comes_close(protocol, dtype):
    _, z, w, owner, relevance = world()
    exact = evaluate_retrieval(z, w, owner, relevance, protocol=protocol)
    tensors = torch.from_numpy(z).to(dtype), torch.from_numpy(w).to(dtype), torch.from_numpy(owner)
    found = evaluate_retrieval(*tensors, torch.from_numpy(relevance).float(), protocol=protocol)
    assert all(isinstance(value, float) for value in found.values())
    assert found["t2t/NDCG@50"] == pytest.approx(exact["t2t/NDCG@50"], abs=1)


def test_features_that_want_a_gradient_are_fine():
    _, z, w, owner, relevance = world()
    found = evaluate_retrieval(torch.tensor(z, requires_grad=True), torch.tensor(w), owner, relevance)
    assert found == evaluate_retrieval(z, w, owner, relevance)


def test_one_image_with_one_caption_is_enough():
    for protocol in (OFFICIAL, CORRECTED):
        found = evaluate_retrieval(torch.ones(1, 2), torch.ones(1, 2), [0], [[1.0]], protocol=protocol)
        assert found["r_mean"] == 100
        assert found["i2i/NDCG@10"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_features": np.ones((13, 5))}, r"image_features \(13, 5\), text_features \(33, 4\)"),
        ({"caption_image": np.zeros(5, int)}, r"caption_image \(5,\)"),
        ({"caption_image": np.full(33, 13)}, "rows 0 to 12"),
        ({"caption_image": np.full(33, -1)}, "rows 0 to 12"),
        ({"relevance": np.ones((13, 33))}, r"relevance has shape \(13, 33\), expected \(33, 13\)"),
        ({"relevance": None}, "relevance is needed"),
        ({"relevance": -np.ones((33, 13))}, "0 or more"),
        ({"image_features": np.full((13, 4), np.nan)}, "finite"),
        ({"scores_i2t": np.ones((33, 13))}, "scores_i2t has shape"),
        ({"scores_t2i": np.full((33, 13), np.nan)}, "NaN"),
        ({"image_relevance": np.ones((33, 13))}, "image_relevance has shape"),
        ({"text_relevance": np.ones((13, 13))}, "text_relevance has shape"),
        ({"protocol": "faithful"}, "unknown protocol 'faithful'; valid: corrected, official"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"ks_ndcg": (0, 10)}, "cut-offs"),
        ({"ks_recall": ()}, "cut-offs"),
        ({"protocol": OFFICIAL, "caption_image": np.zeros(33, int)}, "a caption for every image"),
        ({"mixed_t2it": "transposed", "caption_image": np.zeros(33, int)}, "a caption for every image"),
        ({"mixed_t2it": "official"}, "mixed_t2it is 'official'"),
        ({"mixed_scores": "itm"}, "mixed_scores is 'itm'"),
    ],
)
def test_refuses(change, message):
    _, z, w, owner, relevance = world()
    inputs = {"image_features": z, "text_features": w, "caption_image": owner, "relevance": relevance, **change}
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(**inputs)
