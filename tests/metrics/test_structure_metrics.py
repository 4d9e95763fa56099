import numpy as np
import pytest
import torch
from scipy.stats import ortho_group, spearmanr

from rvlr_lib.metrics import alignment, knn_overlap, linear_cka, modality_gap, relational_similarity, uniformity
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


def test_rotations_and_scales_keep_every_structure():
    turned = 3 * A @ ortho_group.rvs(6, random_state=0)
    assert knn_overlap(A, turned) == pytest.approx(100)
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
    assert relational_similarity(similarity_a=known, features_b=MIXED, max_points=40) == pytest.approx(
        relational_similarity(A, MIXED, max_points=40)
    )


def test_relational_similarity_takes_a_seeded_subset_of_many():
    few = relational_similarity(A, MIXED, max_points=40)
    assert few == relational_similarity(A, MIXED, max_points=40)
    assert few != relational_similarity(A, MIXED, max_points=40, seed=1)
    assert few == pytest.approx(relational_similarity(A, MIXED), abs=0.1)


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
