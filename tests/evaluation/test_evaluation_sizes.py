"""Evaluation at the size of COCO: folds beside the whole, relevance computed once, memory that a machine has."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rvlr_lib.data import load_dataset
from rvlr_lib.evaluation import evaluate as evaluation
from rvlr_lib.metrics import evaluate_folds, evaluate_retrieval

ROOT = Path(__file__).parents[2]
MEMORY = """
import sys, torch
from benchmarks._harness import PeakMemory
from rvlr_lib.metrics import evaluate_retrieval

images, captions = 5000, 25000
generator = torch.Generator().manual_seed(0)
z, w = (torch.randn(n, 256, generator=generator) for n in (images, captions))
relevance = torch.rand(captions, images, generator=generator)
owner = torch.arange(images).repeat_interleave(5)
evaluate_retrieval(z[:50], w[:250], owner[:250], relevance[:250, :50])
with PeakMemory() as peak:
    evaluate_retrieval(z, w, owner, relevance, protocol=sys.argv[1])
print(peak.gb)
"""


@pytest.fixture
def emoji():
    return load_dataset("emoji", split="test").subset(range(60))


def test_coco_is_reported_whole_and_in_folds(emoji, monkeypatch):
    monkeypatch.setitem(evaluation.FOLD_SIZE, "coco", 20)
    images, texts = features = evaluation.random_features(emoji, 8, 0)
    plain = evaluation.evaluate(features, emoji)
    coco = dataclasses.replace(emoji, name="coco")
    found = evaluation.evaluate(features, coco)
    assert list(found) == ["rouge_l", "rouge_l_20", "category", "category_20"]
    assert {name: found[name] for name in plain} == plain
    relevance = evaluation.relevances(coco)["rouge_l"].caption_to_image
    assert found["rouge_l_20"] == evaluate_folds(images, texts, coco.caption_image, relevance, fold_size=20)
    reranked = evaluation.cross_modal(features, coco, (images @ texts.T, texts @ images.T))
    assert (
        reranked["20/t2i/R@1"] == found["rouge_l_20"]["t2i/R@1"] != reranked["t2i/R@1"] == plain["rouge_l"]["t2i/R@1"]
    )


def test_relevance_is_computed_once_for_a_data_set(emoji, monkeypatch):
    calls = []
    slow = evaluation.rouge_l_relevance
    monkeypatch.setattr(evaluation, "rouge_l_relevance", lambda *a: calls.append(1) or slow(*a))
    assert evaluation.relevances(emoji) is evaluation.relevances(emoji)
    other = evaluation.relevances(emoji.subset(range(9)))["rouge_l"].caption_to_image
    assert other.shape == (9, 9)
    assert len(calls) == 2


def test_recall_in_parts_is_recall(emoji, monkeypatch):
    features = evaluation.random_features(emoji, 8, 0)
    whole = evaluation.cluster_recall(features, emoji)
    monkeypatch.setattr(evaluation, "ROWS", 7)
    assert evaluation.cluster_recall(features, emoji) == whole
    relevance = np.zeros((len(emoji.captions), len(emoji)))
    plain = evaluate_retrieval(*features, emoji.caption_image, relevance)
    assert whole["r_mean"] == pytest.approx(plain["r_mean"])


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["corrected", "official"])
def test_metrics_of_coco_take_less_than_four_gigabytes(protocol):
    """Beside inputs of 0.5 GB; one whole matrix of captions and images more would be seen at 0.5 GB."""
    run = subprocess.run([sys.executable, "-c", MEMORY, protocol], cwd=ROOT, capture_output=True, text=True, check=True)
    assert float(run.stdout) < 0.7
