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


def test_trustworthiness_of_a_case_by_hand():
    high = np.array([[9.0, 5, 4, 3, 2]] * 5)  # row 0 ranks items 1, 2, 3, 4
    low = np.array([[9.0, 2, 3, 4, 5]] * 5)  # and here 4, 3, 2, 1
    each = trustworthiness(similarity_high=high, similarity_low=low, k=1, per_query=True)
    assert each[0] == pytest.approx(0)  # its neighbour is the farthest, rank 4: 1 - 2 / (2N - 3k - 1) (4 - 1)
    each = trustworthiness(similarity_high=high, similarity_low=low, k=2, per_query=True)
    assert each[0] == pytest.approx(100 * (1 - (1 + 2) * 2 / (2 * 3)))


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


@pytest.mark.parametrize("measure", [trustworthiness, continuity])
def test_a_collapsed_space_lands_on_chance(measure):
    count, k = 60, 10
    chance = 100 * (1 - (count - 1 - k) * (count - k) / ((count - 1) * (2 * count - 3 * k - 1)))
    assert measure(similarity_high=np.ones((count, count)), features_low=A, k=k) == pytest.approx(chance)
    assert measure(features_high=A, similarity_low=np.ones((count, count)), k=k) == pytest.approx(chance)
    shuffled = [measure(A, A[rng.permutation(count)], k) for _ in range(30)]
    assert np.mean(shuffled) == pytest.approx(chance, abs=1)


def test_rotations_and_scales_keep_every_structure():
    turned = 3 * A @ ortho_group.rvs(6, random_state=0)
    assert knn_overlap(A, turned) == pytest.approx(100)
    assert trustworthiness(A, turned) == pytest.approx(100)
    assert continuity(A, turned) == pytest.approx(100)
    assert relational_similarity(A, turned) == pytest.approx(1)
    assert linear_cka(A, turned) == pytest.approx(1)
    assert uniformity(turned) == pytest.approx(uniformity(A))


def test_unrelated_spaces_land_on_chance():
    a, b = rng.normal(size=(400, 16)), rng.normal(size=(400, 16))
    assert knn_overlap(a, b, 20) == pytest.approx(100 * 20 / 399, abs=1.5)
    assert abs(relational_similarity(a, b)) < 0.03
    assert linear_cka(a, b) < 0.15


def test_relational_similarity_equals_scipy_also_with_ties():
    a, b = np.sign(A) + 0.0, MIXED  # signs give a handful of distinct cosines
    upper = np.triu_indices(60, 1)
    expected = spearmanr(*(cosine_matrix(torch.from_numpy(x)).numpy().round(12)[upper] for x in (a, b))).statistic
    assert relational_similarity(a, b) == pytest.approx(expected, abs=1e-9)
    exact = spearmanr(*(cosine_matrix(torch.from_numpy(x)).numpy()[upper] for x in (A, b))).statistic
    assert relational_similarity(A, b) == pytest.approx(exact, abs=1e-9)


def test_relational_similarity_of_a_known_matrix():
    known = cosine_matrix(torch.from_numpy(A))
    assert relational_similarity(similarity_a=known, features_b=MIXED) == pytest.approx(relational_similarity(A, MIXED))
    sample = {"max_points": 40, "max_pairs": 300}
    assert relational_similarity(similarity_a=known, features_b=MIXED, **sample) == pytest.approx(
        relational_similarity(A, MIXED, **sample)
    )


def test_relational_similarity_samples_pairs_of_distinct_items(monkeypatch):
    monkeypatch.setattr(module, "PAIR_CHUNK", 7)
    generator = torch.Generator().manual_seed(3)
    first = torch.randint(60, (500,), generator=generator)
    second = (first + torch.randint(1, 60, (500,), generator=generator)) % 60
    assert (first != second).all()
    a, b = (unit(x) @ unit(x).T for x in (A, MIXED))
    expected = spearmanr(a[first, second], b[first, second])
    assert relational_similarity(A, MIXED, max_points=59, max_pairs=500, seed=3) == pytest.approx(expected.statistic)
    assert relational_similarity(A, MIXED, max_points=60, max_pairs=500, seed=3) == relational_similarity(A, MIXED)


def test_sampled_relations_are_near_the_exact_ones():
    x = rng.normal(size=(2500, 8))
    y = x + rng.normal(size=(2500, 8))
    exact, sampled = (relational_similarity(x, y, max_points=limit) for limit in (2500, 2000))
    assert sampled == pytest.approx(exact, abs=3e-3)  # 1 / sqrt(2,000,000) = 7e-4
    assert sampled != exact
    few = relational_similarity(x, y, max_pairs=20_000)
    assert few == relational_similarity(x, y, max_pairs=20_000)
    assert few != relational_similarity(x, y, max_pairs=20_000, seed=1)
    assert few == pytest.approx(exact, abs=0.03)


def test_linear_cka_equals_the_gram_form():
    centre = np.eye(60) - 1 / 60
    k, m = (centre @ x @ x.T @ centre for x in (A, MIXED))
    assert linear_cka(A, MIXED) == pytest.approx((k * m).sum() / np.sqrt((k * k).sum() * (m * m).sum()))


def test_gap_alignment_and_uniformity_equal_the_loops():
    pairs = rng.integers(0, 60, 100)
    texts = rng.normal(size=(100, 6)) + 1
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (A, texts)]
    both = [(unit[0][i], unit[1][c]) for c, i in enumerate(pairs)]
    gap = np.linalg.norm(np.mean([a for a, _ in both], 0) - np.mean([b for _, b in both], 0))
    assert modality_gap(A, texts, pairs) == pytest.approx(gap)
    assert alignment(A, texts, pairs) == pytest.approx(np.mean([((a - b) ** 2).sum() for a, b in both]))
    far = [np.exp(-2 * ((a - b) ** 2).sum()) for i, a in enumerate(unit[0]) for j, b in enumerate(unit[0]) if i != j]
    assert uniformity(A) == pytest.approx(np.log(np.mean(far)))
    assert modality_gap(A, A[pairs], pairs) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("chunk", [7, 60])
def test_uniformity_in_chunks(chunk, monkeypatch):
    whole = uniformity(A)
    monkeypatch.setattr(module, "CHUNK", chunk)
    assert uniformity(A) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: knn_overlap(A, B[:50]), "60 and 50 items"),
        (lambda: knn_overlap(A, B, 60), "k = 60"),
        (lambda: knn_overlap(A, B, 0), "k = 0"),
        (lambda: knn_overlap(A), "either features_b or similarity_b"),
        (lambda: knn_overlap(A, B, similarity_a=A @ A.T), "either features_a or similarity_a"),
        (lambda: knn_overlap(A * np.nan, B), "finite features"),
        (lambda: knn_overlap(A, similarity_b=B), r"\[N, N\]"),
        (lambda: trustworthiness(A, B[:9]), "60 and 9 items"),
        (lambda: trustworthiness(A, B, 30), "k = 30 neighbours of 60 items"),
        (lambda: continuity(A, B, 0), "k = 0"),
        (lambda: continuity(A), "either features_low or similarity_low"),
        (lambda: trustworthiness(features_low=B), "either features_high or similarity_high"),
        (lambda: relational_similarity(A, B, max_pairs=1), "max_pairs = 1"),
        (lambda: relational_similarity(A[:1], B[:1]), "1 items"),
        (lambda: relational_similarity(A, B[:9]), "60 and 9 items"),
        (lambda: relational_similarity(A), "either features_b or similarity_b"),
        (lambda: linear_cka(A, B[:9]), r"\(60, 6\) and \(9, 9\)"),
        (lambda: modality_gap(A, A, [0]), "do not fit"),
        (lambda: alignment(A, B, np.arange(60)), "do not fit"),
        (lambda: uniformity(A[:1]), "N >= 2"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
