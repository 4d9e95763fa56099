from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from rvlr_lib.metrics import ndcg_and_floor, ndcg_at_k, recall_at_k
from tests.metrics.slow_protocol import slow_ndcg, slow_recall

rng = np.random.default_rng(0)


def test_recall_equals_the_loop_also_with_ties():
    scores = rng.integers(0, 4, (60, 12)).astype(float)
    positives = rng.random((60, 12)) < 0.2
    assert not positives.any(axis=1).all()  # some queries without a positive
    hits_at = recall_at_k(scores, positives, (1, 3, 7, 12, 40), per_query=True)
    for k, hits in hits_at.items():
        assert hits.tolist() == [slow_recall(s, p, k) for s, p in zip(scores, positives, strict=True)]
    assert recall_at_k(scores, positives, (3,)) == {3: pytest.approx(hits_at[3].mean())}
    assert recall_at_k([[-np.inf, -np.inf, 0.0]], [0], (2, 3)) == {2: 0, 3: 100}  # -inf is a score like any other
    index = rng.integers(0, 12, 60)
    assert recall_at_k(scores, index, (1, 2, 5)) == recall_at_k(scores, np.eye(12, dtype=bool)[index], (1, 2, 5))


def test_unambiguous_inputs_are_accepted():
    scores, mask, index = rng.normal(size=(6, 5)), rng.random((6, 5)) < 0.4, rng.integers(0, 5, 6)
    relevant = rng.random((6, 5)) < 0.5
    recall, ndcg = recall_at_k(scores, mask, (1, 3)), ndcg_at_k(scores, relevant, (1, 3), mask)
    for ks in (np.array([1, 3]), torch.tensor([1, 3]), (1.0, 3.0), range(1, 4, 2)):
        assert recall_at_k(scores, mask, ks) == recall
        assert [type(k) for k in ndcg_at_k(scores, relevant, ks, mask)] == [int, int]
    assert recall_at_k(scores, mask, 3) == {3: recall[3]}
    for form in (int, np.uint16, np.float16):
        assert recall_at_k(scores.tolist(), mask.astype(form), (1, 3)) == recall
        assert ndcg_at_k(scores, relevant.astype(form), (1, 3), mask.astype(form)) == ndcg
        assert recall_at_k(scores, index.astype(form), (1, 3)) == recall_at_k(scores, index, (1, 3))
    assert ndcg_at_k(scores[::-1], relevant[::-1], (1, 3), mask[::-1]) == pytest.approx(ndcg)  # negative strides
    assert ndcg_at_k(scores.astype(">f8"), relevant, (1, 3), mask) == ndcg
    assert recall_at_k(np.array([[1, 2**63]], np.uint64), [1], (1,)) == {1: 100}
    for dtype in (torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.uint16, torch.uint64):
        assert recall_at_k(torch.eye(300)[255:256], torch.tensor([255]).to(dtype), (1,)) == {1: 100}  # > 255 columns
        scores, excluded = torch.tensor([[3, 2, 1], [1, 2, 3]]).to(dtype), [[False] * 3, [True, False, False]]
        assert recall_at_k(scores, [0, 0], (1,)) == {1: 50}
        assert ndcg_at_k(scores, torch.tensor([[1, 0, 0], [0, 0, 1]]).to(dtype), (1,), excluded) == {1: 100}


def test_ndcg_equals_scikit_learn_also_with_ties():
    relevance = 7 * rng.random((40, 25))  # any scale
    for scores in (rng.normal(size=(40, 25)), rng.integers(0, 6, (40, 25)).astype(np.float32)):
        for k, value in ndcg_at_k(scores, relevance, (1, 4, 10, 25)).items():
            assert value == pytest.approx(100 * ndcg_score(relevance, scores, k=k), abs=1e-9)


def test_the_mean_over_all_rankings_is_the_floor():
    gains = [0.2, 0.0, 1.0, 0.7]
    ((_, floor),) = ndcg_and_floor([[4.0, 3.0, 2.0, 1.0]], [gains], (3,)).values()
    assert floor[0] == pytest.approx(100 * ndcg_score([gains] * 24, [*permutations(range(4))], k=3))


def test_excluded_candidates_count_in_neither_ranking_nor_ideal():
    scores, relevance, exclude = rng.normal(size=(30, 20)), rng.random((30, 20)), rng.random((30, 20)) < 0.3
    relevance[0], exclude[1] = 0, True  # nothing relevant; no candidate left
    for k, (value, floor) in ndcg_and_floor(scores, relevance, (1, 5, 30), exclude).items():
        expected = [slow_ndcg(s[~e], r[~e], k) for s, r, e in zip(scores, relevance, exclude, strict=True)]
        assert np.stack([value, floor], 1) == pytest.approx(np.array(expected), nan_ok=True)
    last = ndcg_at_k([[0.0, -np.inf, 5.0]], [[0.0, 1.0, 1.0]], (2,), [[False, False, True]])[2]
    assert last == pytest.approx(100 / np.log2(3))  # a genuine -inf ranks ahead of excluded candidates


def test_official_ties_follow_argsort_from_the_end():
    scores, relevance = rng.integers(0, 3, (50, 40)).astype(np.float32), rng.random((50, 40))
    order = np.argsort(scores, axis=1)[:, ::-1]
    ((value, _),) = ndcg_and_floor(scores, relevance, (10,), official=True).values()
    by_rank = np.empty_like(scores)
    np.put_along_axis(by_rank, order, -np.arange(40.0, dtype=np.float32)[None].repeat(50, 0), 1)
    assert value == pytest.approx(ndcg_at_k(by_rank, relevance, (10,), per_query=True)[10])
