"""Messages for bad input; a check shared by several functions is tested on one of them."""

import numpy as np
import pytest
import torch

from rvlr_lib import metrics as m
from tests.metrics.test_protocol import world

S, NAN = torch.zeros(2, 3), float("nan")
A, B = np.random.default_rng(0).normal(size=(60, 6)), np.random.default_rng(1).normal(size=(60, 9))
ONE = {"a": m.paired_effect([1.0, 2.0])}
NAMES = ("image_features", "text_features", "caption_image", "relevance")
RANKING = [
    (lambda: m.recall_at_k(S, torch.zeros(2, 4).bool()), r"\(2, 3\).*\(2, 4\)"),
    (lambda: m.recall_at_k(S, [0, 1, 2]), r"\(2, 3\).*\(3,\)"),
    (lambda: m.recall_at_k(S, [True, False]), r"\(2, 3\).*\(2,\)"),
    (lambda: m.recall_at_k(S, [0, 3]), r"0 to 2, got \[3\]"),
    (lambda: m.recall_at_k(S, [0, -1]), "0 to 2"),
    (lambda: m.recall_at_k(S, [0, 0.5]), "0.5"),
    (lambda: m.recall_at_k(S, S + 2), "positives must be bool, or 0 and 1"),
    (lambda: m.recall_at_k(S, [0, 1], (1.5,)), "cut-off.*1.5"),
    (lambda: m.recall_at_k(S, [0, 1], ()), "cut-off"),
    (lambda: m.recall_at_k(S * NAN, [0, 1]), "scores hold NaN"),
    (lambda: m.recall_at_k(torch.zeros(0, 3), []), "at least one query"),
    (lambda: m.recall_at_k(torch.zeros(3), [0]), r"\[Q, G\]"),
    (lambda: m.recall_at_k([["a"]], [0]), "scores must hold numbers"),
    (lambda: m.ndcg_at_k(S, torch.zeros(3, 2)), r"relevance has shape \(3, 2\), expected \(2, 3\)"),
    (lambda: m.ndcg_at_k(S, S, (1,), torch.zeros(3).bool()), r"\(2, 3\) and exclude \(3,\)"),
    (lambda: m.ndcg_at_k(S, S, (1,), S + 0.5), "exclude must be bool, or 0 and 1"),
    (lambda: m.ndcg_at_k(S, S - 1), "0 or more"),
    (lambda: m.ndcg_at_k(S, S * NAN), "finite"),
    (lambda: m.ndcg_at_k(S, S + torch.inf), "finite"),
]
PROTOCOL = [
    ({"image_features": np.ones((13, 5))}, r"image_features \(13, 5\) and text_features \(33, 4\)"),
    ({"image_features": np.full((13, 4), np.nan)}, "finite"),
    ({"caption_image": np.zeros(5, int)}, r"caption_image has shape \(5,\).*\(33,\)"),
    ({"relevance": np.ones((13, 33))}, r"relevance has shape \(13, 33\), expected \(33, 13\)"),
    ({"relevance": None}, "relevance must hold numbers"),
    ({"image_relevance": np.full((13, 13), np.inf)}, "image_relevance must be 0 or more and finite"),
    ({"text_relevance": np.ones((13, 13))}, "text_relevance has shape"),
    ({"scores_i2t": np.ones((33, 13))}, "scores_i2t has shape"),
    ({"protocol": "faithful"}, "unknown protocol 'faithful'; valid: corrected, official"),
    ({"mixed_t2it": "official"}, "unknown mixed_t2it 'official'"),
    ({"mixed_scores": "itm"}, "unknown mixed_scores 'itm'"),
    ({"chunk_size": 0}, "chunk_size"),
    ({"ks_ndcg": (0, 10)}, "cut-offs ks_ndcg"),
    ({"protocol": "official", "caption_image": np.zeros(33, int)}, "a caption for every image"),
    ({"fold_size": 8}, "fold_size 8 does not divide 13 images"),
    ({"fold_size": 0}, "fold_size"),
    ({"fold_size": 13, "per_query": True}, "per_query"),
    ({"fold_size": 13, "scores_t2i": np.ones((13, 33))}, "scores_t2i has shape"),
    ({"fold_size": 13, "caption_image": [0]}, "caption_image has shape"),
]
OTHERS = [
    (lambda: m.knn_overlap(A, B[:50]), r"\(60, 6\) and \(50, 9\)"),
    (lambda: m.knn_overlap(A, B, 60), "k = 60"),
    (lambda: m.knn_overlap(A, B, 2.5), "k must be whole"),
    (lambda: m.knn_overlap(A * np.nan, B), "features .* 60 rows are not finite, row 0 first"),
    (lambda: m.relational_similarity(A[:1], B[:1]), "1 items"),
    (lambda: m.linear_cka(A, B[:9]), r"\(60, 6\) and \(9, 9\)"),
    (lambda: m.modality_gap(A, A, [0]), r"caption_image has shape \(1,\)"),
    (lambda: m.alignment(A, B, np.arange(60)), r"\(60, 6\) and text_features \(60, 9\)"),
    (lambda: m.relative_modality_gap(A[:1], A[:2], [0, 0]), "two images and two captions are needed, got 1 and 2"),
    (lambda: m.relative_modality_gap(A[:2], A[:1], [0]), "got 2 and 1"),
    (lambda: m.uniformity(A[:1]), "N >= 2"),
    (lambda: m.paired_effect([1.0]), "2 or more seeds"),
    (lambda: m.paired_effect([1.0, NAN]), "finite"),
    (lambda: m.verdicts({}, {}), "one to 4 claims"),
    (lambda: m.verdicts(dict.fromkeys("abcde", ONE["a"]), {}), "got 5"),
    (lambda: m.verdicts(ONE | {"b": ONE["a"]}, {"a": 1.0}), "without one: b"),
    (lambda: m.verdicts(ONE, {"a": -1.0}), "0 or more"),
    (lambda: m.verdicts(ONE, {"a": NAN}), "finite"),
    (lambda: m.power(0.0, 12, 1.0), "sd 0.0"),
    (lambda: m.power(1.5, 1, 1.0), "seeds 1"),
]


@pytest.mark.parametrize(("call", "message"), RANKING + OTHERS)
def test_bad_input_is_named(call, message, refuses):
    refuses(message, call)


@pytest.mark.parametrize(("change", "message"), PROTOCOL)
def test_bad_input_of_the_evaluation_is_named(change, message, refuses):
    evaluate = m.evaluate_folds if "fold_size" in change else m.evaluate_retrieval
    refuses(message, evaluate, **(dict(zip(NAMES, world()[1:], strict=True)) | change))
