import numpy as np
import pytest
import torch
from scipy.stats import ortho_group, rankdata, spearmanr
from sklearn import manifold

from rvlr_lib.metrics import (
    alignment,
    continuity,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    relative_modality_gap,
    trustworthiness,
    uniformity,
)
from rvlr_lib.metrics import structure as module
from rvlr_lib.similarity import cosine_matrix

rng = np.random.default_rng(0)
A, B = rng.normal(size=(60, 6)), rng.normal(size=(60, 9))
MIXED = A @ rng.normal(size=(6, 9)) + B


def neighbours(x, k):
    similarity = (x @ x.T) / np.outer(*[np.linalg.norm(x, axis=1)] * 2)
    np.fill_diagonal(similarity, -np.inf)
    return [set(row) for row in np.argsort(-similarity)[:, :k]]


@pytest.mark.parametrize("k", [1, 5, 59])
@pytest.mark.parametrize("chunk", [7, 1024])
def test_knn_overlap_equals_the_sets(k, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    shared = [100 * len(a & b) / k for a, b in zip(neighbours(A, k), neighbours(MIXED, k), strict=True)]
    assert knn_overlap(A, MIXED, k, per_query=True) == pytest.approx(np.array(shared))
    assert knn_overlap(A, MIXED, k) == pytest.approx(np.mean(shared))
    known = cosine_matrix(torch.from_numpy(A))
    assert knn_overlap(features_b=MIXED, similarity_a=known, k=k) == pytest.approx(np.mean(shared))


def test_knn_overlap_ties_share_the_places_that_are_left():
    similarity = np.array([[1, 0.9, 0.5, 0.5, 0.5, 0.1]] * 6)  # row 0: one neighbour sure, three for one place
    other = np.array([[1, 0.9, 0.8, 0.3, 0.2, 0.1]] * 6)
    overlap = knn_overlap(similarity_a=similarity, similarity_b=other, k=2, per_query=True)
    assert overlap[0] == pytest.approx(100 * (1 + 1 / 3) / 2)
    assert knn_overlap(similarity_a=similarity, similarity_b=similarity, k=2) == pytest.approx(100)


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize("k", [1, 5, 29])
@pytest.mark.parametrize("chunk", [7, 256])
def test_trustworthiness_equals_sklearn(k, chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    # sklearn measures the low space by Euclidean distance, which on unit rows has the order of the cosine.
    trust, kept = (
        100 * manifold.trustworthiness(high, unit(low), n_neighbors=k, metric="cosine")
        for high, low in ((A, MIXED), (MIXED, A))
    )
    assert trust != pytest.approx(kept)
    assert trustworthiness(A, MIXED, k) == pytest.approx(trust)
    assert continuity(A, MIXED, k) == pytest.approx(kept)
    each = trustworthiness(A, MIXED, k, per_query=True)
    assert each.shape == (60,)
    assert each.mean() == pytest.approx(trust)
    known = cosine_matrix(torch.from_numpy(A))
    assert trustworthiness(similarity_high=known, features_low=MIXED, k=k) == pytest.approx(trust)
    assert continuity(similarity_high=known, features_low=MIXED, k=k) == pytest.approx(kept)


def slow_trustworthiness(high, low, k):
    """Over the items and their shares, the rank of each place of a tie looked at by itself."""
    count, total = len(high), 0.0
    for i in range(count):
        others = np.delete(np.arange(count), i)
        shares = []
        for similarity in (high, low):
            first, last = (rankdata(-similarity[i, others], method) for method in ("min", "max"))
            places = [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]
            shares.append([(place <= k).mean() for place in places])
            if similarity is high:
                beyond = [(place[place > k] - k).mean() if (place > k).any() else 0 for place in places]
        total += sum(max(0, low - high) * far for high, low, far in zip(*shares, beyond, strict=True))
    return 100 * (1 - 2 / (count * k * (2 * count - 3 * k - 1)) * total)


def test_ties_of_trustworthiness_share_their_places():
    high, low = (np.round(x @ x.T) for x in (A[:40], MIXED[:40]))  # a handful of distinct values
    assert len(np.unique(high[0])) < 25
    expected = slow_trustworthiness(high, low, 5), slow_trustworthiness(low, high, 5)
    assert trustworthiness(similarity_high=high, similarity_low=low, k=5) == pytest.approx(expected[0])
    assert continuity(similarity_high=high, similarity_low=low, k=5) == pytest.approx(expected[1])
    assert trustworthiness(similarity_high=high, similarity_low=high, k=5) == 100
    assert slow_trustworthiness(A @ A.T, MIXED @ MIXED.T, 5) == pytest.approx(
        trustworthiness(similarity_high=A @ A.T, similarity_low=MIXED @ MIXED.T, k=5)
    )


def test_relational_similarity_equals_scipy_also_with_ties():
    a, b = np.sign(A) + 0.0, MIXED  # signs give a handful of distinct cosines
    upper = np.triu_indices(60, 1)
    expected = spearmanr(*(cosine_matrix(torch.from_numpy(x)).numpy().round(12)[upper] for x in (a, b))).statistic
    assert relational_similarity(a, b) == pytest.approx(expected, abs=1e-9)
    exact = spearmanr(*(cosine_matrix(torch.from_numpy(x)).numpy()[upper] for x in (A, b))).statistic
    assert relational_similarity(A, b) == pytest.approx(exact, abs=1e-9)


def test_relational_similarity_samples_pairs_of_distinct_items(monkeypatch):
    monkeypatch.setattr(module, "PAIR_CHUNK", 7)
    exact = relational_similarity(A, MIXED)
    monkeypatch.setattr(module, "MAX_PAIRS", 500)
    assert relational_similarity(A, MIXED) == exact
    monkeypatch.setattr(module, "MAX_POINTS", 59)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(60, (500,), generator=generator)
    second = (first + torch.randint(1, 60, (500,), generator=generator)) % 60
    assert (first != second).all()
    a, b = (unit(x) @ unit(x).T for x in (A, MIXED))
    expected = spearmanr(a[first, second], b[first, second])
    assert relational_similarity(A, MIXED) == pytest.approx(expected.statistic)


def test_linear_cka_equals_the_gram_form():
    centre = np.eye(60) - 1 / 60
    k, m = (centre @ x @ x.T @ centre for x in (A, MIXED))
    assert linear_cka(A, MIXED) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_rotations_and_scales_keep_every_structure():
    turned = A @ ortho_group.rvs(6, random_state=0)
    for scale in (3, 1e-30, 1e30, 1e-200, 1e200, np.geomspace(1e-30, 1e30, 60)[:, None]):
        b = scale * turned
        assert knn_overlap(A, b) == pytest.approx(100)
        assert trustworthiness(A, b) == pytest.approx(100)
        assert continuity(A, b) == pytest.approx(100)
        assert relational_similarity(A, b) == pytest.approx(1)
        assert uniformity(b) == pytest.approx(uniformity(A))
        if np.ndim(scale) == 0:
            assert linear_cka(A, b) == pytest.approx(1)
            assert relational_similarity(similarity_a=scale * (A @ A.T), features_b=B) == pytest.approx(
                relational_similarity(similarity_a=A @ A.T, features_b=B)
            )


def slow_gaps(images, texts, rows):
    """Modality gap, relative gap, alignment and uniformity of the images, pair by pair."""
    z, w = unit(images), unit(texts)
    both = [(z[i], w[c]) for c, i in enumerate(rows)]
    gap = np.linalg.norm(np.mean([a for a, _ in both], 0) - np.mean([b for _, b in both], 0))

    def among(x):
        return np.mean([(1 - a @ b) / 2 for i, a in enumerate(x) for j, b in enumerate(x) if i != j])

    paired = np.mean([(1 - a @ b) / 2 for a, b in both])
    relative = paired / (paired + (among(z) + among(w)) / 2)
    far = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
    return gap, relative, np.mean([((a - b) ** 2).sum() for a, b in both]), np.log(np.mean(far))


@pytest.mark.parametrize("chunk", [7, 256])
def test_gaps_alignment_and_uniformity_equal_the_loops(chunk, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    rows, texts = rng.integers(0, 60, 100), rng.normal(size=(100, 6)) + 1
    found = [measure(A, texts, rows) for measure in (modality_gap, relative_modality_gap, alignment)]
    assert [*found, uniformity(A)] == pytest.approx(slow_gaps(A, texts, rows))


def test_the_relative_gap_is_closed_on_pairs_and_one_half_where_nothing_relates():
    rows = rng.integers(0, 60, 100)
    assert relative_modality_gap(A, A[rows], rows) == pytest.approx(0, abs=1e-12)
    assert modality_gap(A, A[rows], rows) == pytest.approx(0, abs=1e-12)
    a, b = rng.normal(size=(2, 3000, 16))
    assert relative_modality_gap(a, b, np.arange(3000)) == pytest.approx(0.5, abs=0.005)
    for collapsed in (np.ones((5, 3)), np.full((5, 3), 1e-30)):
        assert relative_modality_gap(collapsed, collapsed, range(5)) == 0.5
    assert relative_modality_gap(np.ones((5, 3)), -np.ones((5, 3)), range(5)) == 1  # collapsed on opposite sides
    scaled = relative_modality_gap(1e-30 * np.float32(A), (1e30 * A[rows]).tolist(), torch.from_numpy(rows).double())
    assert scaled == pytest.approx(0, abs=1e-6)


def test_inputs_whose_meaning_is_plain_are_accepted():
    whole = np.round(4 * A), np.round(4 * MIXED)
    for form in (lambda x: x.astype(int), lambda x: x.tolist(), lambda x: torch.from_numpy(x).half(), np.float16):
        a, b = form(whole[0]), whole[1]
        for measure in (knn_overlap, trustworthiness, relational_similarity, linear_cka):
            assert measure(a, b) == pytest.approx(measure(*whole), rel=1e-2)
    assert knn_overlap(A, MIXED, k=np.int64(5)) == knn_overlap(A, MIXED, k=5.0) == knn_overlap(A, MIXED, 5)
    assert knn_overlap(similarity_a=np.eye(12, dtype=bool), similarity_b=np.eye(12), k=2) == pytest.approx(100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_overlap(A, B[:50]), "60 and 50 items"),
        (lambda: knn_overlap(A, B, 60), "k = 60"),
        (lambda: knn_overlap(A, B, 0), "k must be a whole number of 1 or more"),
        (lambda: knn_overlap(A, B, 2.5), "k must be a whole number"),
        (lambda: knn_overlap(A), "either features_b or similarity_b"),
        (lambda: knn_overlap(A, B, similarity_a=A @ A.T), "either features_a or similarity_a"),
        (lambda: knn_overlap(A * np.nan, B), "features_a must be finite"),
        (lambda: knn_overlap(A, similarity_b=B), r"similarity_b must be finite \[N, N\], got \(60, 9\)"),
        (lambda: trustworthiness(A, B, 30), "k = 30 neighbours of 60 items"),
        (lambda: continuity(A), "either features_low or similarity_low"),
        (lambda: trustworthiness(features_low=B), "either features_high or similarity_high"),
        (lambda: relational_similarity(A[:1], B[:1]), "1 items"),
        (lambda: linear_cka(A, B[:9]), r"\(60, 6\) and \(9, 9\)"),
        (lambda: modality_gap(A, A, [0]), r"caption_image has shape \(1,\)"),
        (lambda: modality_gap(A, A, np.arange(60) + 1), r"0 to 59, got \[60\]"),
        (lambda: alignment(A, A, np.arange(60) / 2), "whole row numbers"),
        (lambda: alignment(A, B, np.arange(60)), r"\(60, 6\) and text_features \(60, 9\)"),
        (lambda: relative_modality_gap(A[:1], A[:1], [0]), "two images"),
        (lambda: uniformity(A[:1]), "N >= 2"),
        (lambda: uniformity(["a"]), "features must hold numbers"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
