"""Evaluation of features: COCO and its folds, noise floors, matching scores, structure, relevance by meaning."""

import dataclasses

import numpy as np
import pytest
import torch

from rvlr_lib.data import load_dataset
from rvlr_lib.evaluation import evaluate as evaluation
from rvlr_lib.metrics import evaluate_folds, evaluate_retrieval, knn_overlap


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", split="test", galleries=2, gallery_size=30)


def test_coco_is_reported_complete_and_in_folds(emoji, monkeypatch):
    monkeypatch.setitem(evaluation.FOLDS, "coco", ("20", 20))
    images, texts = features = evaluation.random_features(emoji, 8, 0)
    plain = evaluation.retrieval_metrics(features, emoji)
    coco = dataclasses.replace(emoji, name="coco")
    reports = evaluation.retrieval_metrics(features, coco)
    assert list(reports) == ["rouge_l", "rouge_l_20", "category", "category_20"]
    assert {name: reports[name] for name in plain} == plain
    relevance = evaluation.relevances(coco)["rouge_l"].caption_to_image
    assert reports["rouge_l_20"] == evaluate_folds(images, texts, coco.caption_image, relevance, fold_size=20)
    reranked = evaluation.evaluate(features, coco, matching=(images @ texts.T, texts @ images.T))["reranked"]
    assert reranked["20/t2i/R@1"] == reports["rouge_l_20"]["t2i/R@1"]
    assert reranked["t2i/R@1"] == plain["rouge_l"]["t2i/R@1"] != reranked["20/t2i/R@1"]


def test_the_floor_of_few_pictures_is_a_mean_over_draws(emoji):
    single = [evaluation.noise_floor(emoji, 8, seed, queries=1)["rouge_l"]["r_mean"] for seed in (3, 4, 5)]
    mean = evaluation.noise_floor(emoji, 8, 3, queries=3 * len(emoji))["rouge_l"]["r_mean"]
    assert mean == pytest.approx(np.mean(single))


def test_matching_scores_rerank_and_enter_mixed_lists_on_request(emoji):
    images, texts = features = evaluation.random_features(emoji, 8, 0)
    owner = torch.as_tensor(emoji.caption_image)
    perfect = (owner == torch.arange(len(emoji))[:, None]).float()
    record = evaluation.evaluate(features, emoji, matching=(perfect, perfect.T), official=True)
    plain = evaluation.retrieval_metrics(features, emoji)
    assert record["metrics_by_relevance"] == plain
    assert record["metrics"] == plain["rouge_l"]
    assert record["reranked"]["r_mean"] > 80 > record["metrics"]["r_mean"]
    assert set(record["reranked"]) == {key for key in plain["rouge_l"] if key.startswith(("i2t/", "t2i/", "r_mean"))}
    inputs = images, texts, owner, evaluation.relevances(emoji)["rouge_l"].caption_to_image
    scores = {"scores_i2t": perfect, "scores_t2i": perfect.T}
    assert record["official"] == evaluate_retrieval(*inputs, protocol="official", **scores)
    mixed = evaluation.evaluate(features, emoji, matching=(perfect, perfect.T), mixed_scores="matching")["metrics"]
    expected = evaluate_retrieval(*inputs, mixed_scores="matching", **scores)
    for key, value in mixed.items():
        assert value == (expected if key.startswith(("i2it", "t2it")) else plain["rouge_l"])[key]
    assert mixed["i2it/NDCG@10"] != plain["rouge_l"]["i2it/NDCG@10"]


def test_two_unimodal_spaces_of_different_widths(emoji):
    images, texts = evaluation.random_features(emoji, 8, 0)[0], evaluation.random_features(emoji, 12, 1)[1]
    record = evaluation.evaluate((images, texts), emoji, references={"teacher": (images, texts)}, common_space=False)
    assert {key.split("/")[0] for key in record["metrics"]} == {"i2i", "t2t", "t2t_no_siblings"}
    wide = evaluation.retrieval_metrics((evaluation.random_features(emoji, 12, 2)[0], texts), emoji)["rouge_l"]
    assert record["metrics"]["t2t/NDCG@10"] == wide["t2t/NDCG@10"]
    assert record["structure"]["text/overlap_teacher"] == 100
    assert not {"modality_gap", "relative_modality_gap", "alignment"} & record["structure"].keys()


def test_structure_is_a_mean_over_galleries_of_first_captions(scenes):
    features, other = evaluation.random_features(scenes, 8, 0), evaluation.random_features(scenes, 8, 1)
    measures = evaluation.structure(features, {"start": other, "teacher": features}, scenes)
    slow = []
    for begin in (0, 30):
        first = range(5 * begin, 5 * (begin + 30), 5)
        slow.append(knn_overlap(features[1][first], other[1][first], k=10))
    assert measures["text/overlap_start"] == pytest.approx(np.mean(slow))
    assert measures["image/overlap_teacher"] == 100
    assert {"image/relations_truth", "text/overlap_shown", "modality_gap", "alignment"} <= measures.keys()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_device_gives_the_numbers_of_the_cpu(emoji):
    features = evaluation.random_features(emoji, 64, 0)
    references = {"start": evaluation.random_features(emoji, 64, 1)}
    on_cpu, on_cuda = (evaluation.evaluate(features, emoji, references=references, device=d) for d in ("cpu", "cuda"))
    for part in ("metrics", "structure"):
        assert on_cuda[part] == pytest.approx(on_cpu[part], abs=1e-4)


def test_relevance_by_meaning(emoji, refuses):
    meaning = evaluation.sentence_relevance(emoji)
    features = evaluation.random_features(emoji, 8, 0)
    reports = evaluation.retrieval_metrics(features, emoji, known={"meaning": meaning})
    expected = evaluate_retrieval(*features, emoji.caption_image, meaning.caption_to_image)
    assert reports == {"meaning": pytest.approx(expected, abs=1e-4)}
    refuses(r"nowhere.*config.json", evaluation.sentence_relevance, emoji, "nowhere")
