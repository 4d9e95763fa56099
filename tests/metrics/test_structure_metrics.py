import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, rankdata, spearmanr
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize

from rvlr_lib import metrics as m
from rvlr_lib.metrics import structure

rng = np.random.default_rng(0)
A, B = rng.normal(size=(60, 6)), rng.normal(size=(60, 9))
MIXED = A @ rng.normal(size=(6, 9)) + B
# Cosines of sign vectors are exact multiples of 1/8, so that most neighbours are tied.
TIED, OTHER = np.sign(rng.normal(size=(2, 40, 16)))
SMALL_CHUNKS = pytest.mark.parametrize("chunk", [7, 256])


def places(similarity, i):
    """The ranks that each other item may take among the neighbours of ``i``, several if it is tied."""
    others = np.delete(similarity[i], i)
    first, last = (rankdata(-others, method) for method in ("min", "max"))
    return [np.arange(a, b + 1) for a, b in zip(first, last, strict=True)]


def slow_overlap(a, b, k):
    """Percent shared, where an item's share in the first k is the share of its possible places."""
    shares = [[(p <= k).mean() for p in places(x, i)] for i in range(len(a)) for x in (a, b)]
    return np.array([100 * np.minimum(*pair).sum() / k for pair in zip(shares[::2], shares[1::2], strict=True)])


@SMALL_CHUNKS
@pytest.mark.parametrize("k", [1, 5, 19])
@pytest.mark.parametrize("spaces", [(A, MIXED), (TIED, OTHER)], ids=["spread", "tied"])
def test_neighbours_equal_the_loop(spaces, k, chunk, monkeypatch):
    monkeypatch.setattr(structure, "CHUNK", chunk)
    a, b = map(cosine_similarity, spaces)
    shared = slow_overlap(a, b, k)
    assert m.knn_overlap(*spaces, k, per_query=True) == pytest.approx(shared)
    assert m.knn_overlap(*spaces, k) == pytest.approx(shared.mean())
    assert m.knn_overlap(*spaces, len(a) - 1) == pytest.approx(100)


def test_relational_similarity_equals_scipy_also_with_ties_and_on_a_sample_of_pairs(monkeypatch):
    expected = spearmanr(pdist(TIED, "cosine"), pdist(MIXED[:40], "cosine")).statistic
    assert m.relational_similarity(TIED, MIXED[:40]) == pytest.approx(expected, abs=1e-9)
    exact = m.relational_similarity(A, MIXED)
    assert exact == pytest.approx(spearmanr(pdist(A, "cosine"), pdist(MIXED, "cosine")).statistic)
    for name, value in (("PAIR_CHUNK", 7), ("MAX_PAIRS", 500), ("MAX_POINTS", 59)):
        monkeypatch.setattr(structure, name, value)
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(60, (500,), generator=generator)
    second = (first + torch.randint(1, 60, (500,), generator=generator)) % 60
    assert (first != second).all()
    sampled = spearmanr(cosine_similarity(A)[first, second], cosine_similarity(MIXED)[first, second]).statistic
    assert m.relational_similarity(A, MIXED) == pytest.approx(sampled) != exact


def test_linear_cka_equals_the_gram_form():
    centre, far = np.eye(60) - 1 / 60, [(x + 3000).astype(np.float32) for x in (A, MIXED)]  # centred in float64
    a, b = (centre @ x @ x.T @ centre for x in map(np.float64, far))
    assert m.linear_cka(*far) == pytest.approx((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))


def test_rotation_and_scale_change_nothing():
    turned = A @ ortho_group.rvs(6, random_state=0)
    for scale in (3, 1e-30, 1e30, 1e-200, 1e200, np.geomspace(1e-30, 1e30, 60)[:, None]):
        b = scale * turned
        values = [metric(A, b) for metric in (m.knn_overlap, m.relational_similarity)]
        assert values == pytest.approx([100, 1])
        assert m.uniformity(b) == pytest.approx(m.uniformity(A))
        if np.ndim(scale) == 0:
            assert m.linear_cka(A, b) == pytest.approx(1)


def slow_gaps(images, texts, rows):
    """Modality gap, relative gap, alignment and the images' uniformity, from distances of all pairs."""
    z, w = normalize(images), normalize(texts)
    gap = np.linalg.norm(z[rows].mean(axis=0) - w.mean(axis=0))
    squares = ((z[rows] - w) ** 2).sum(axis=1)
    paired, among = squares.mean() / 4, (pdist(z, "cosine").mean() + pdist(w, "cosine").mean()) / 4
    return gap, paired / (paired + among), squares.mean(), np.log(np.exp(-2 * pdist(z, "sqeuclidean")).mean())


@SMALL_CHUNKS
def test_gaps_alignment_and_uniformity_equal_the_loops(chunk, monkeypatch):
    monkeypatch.setattr(structure, "CHUNK", chunk)
    rows, texts = rng.integers(0, 60, 100), rng.normal(size=(100, 6)) + 1
    values = [metric(A, texts, rows) for metric in (m.modality_gap, m.relative_modality_gap, m.alignment)]
    assert [*values, m.uniformity(A)] == pytest.approx(slow_gaps(A, texts, rows))


def test_the_relative_gap_of_collapsed_spaces():
    for collapsed in (np.ones((5, 3)), np.full((5, 3), 1e-30)):
        assert m.relative_modality_gap(collapsed, collapsed, range(5)) == 0.5
    assert m.relative_modality_gap(np.ones((5, 3)), -np.ones((5, 3)), range(5)) == 1  # collapsed on opposite sides
