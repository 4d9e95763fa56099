"""Efficient re-ranking gives the scores of the matching head on one padded pair at a time."""

import pytest
import torch

from rvlr_lib.evaluation import rerank
from rvlr_lib.evaluation.rerank import matching_scores, shortlist
from rvlr_lib.models import FusionEncoder
from rvlr_lib.similarity import unit_rows

IMAGES, CAPTIONS, TOP_K = 17, 40, 5


def a_fusion(layers):
    """A fusion encoder whose weights are spread enough for the logits of any two pairs to differ."""
    torch.manual_seed(layers)
    fusion = FusionEncoder(24, 24, layers, 32).eval()
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return fusion


@pytest.fixture(scope="module")
def inputs():
    """Tokens of pictures and captions, the mask, and features for the shortlists."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.randn(*s, generator=generator) for s in ((IMAGES, 7, 24), (CAPTIONS, 12, 24)))
    mask = torch.arange(12) < torch.randint(1, 11, (CAPTIONS, 1), generator=generator)
    return images, texts, mask, tuple(unit_rows(torch.randn(n, 16, generator=generator)) for n in (IMAGES, CAPTIONS))


@torch.inference_mode()
def slow_scores(fusion, images, texts, mask, features):
    """Score one pair at a time, its caption padded to the full context."""
    cosine = features[0] @ features[1].T
    results = []
    for scores, image_first in ((cosine, True), (cosine.T, False)):
        reranked = scores - 100
        for query in range(len(scores)):
            for candidate in scores[query].argsort(descending=True)[:TOP_K].tolist():
                i, c = (query, candidate) if image_first else (candidate, query)
                reranked[query, candidate] = fusion(images[i : i + 1], texts[c : c + 1], mask[c : c + 1])[0][0, 1]
        results.append(reranked)
    return results


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_are_those_of_one_padded_pair_at_a_time(inputs, layers, monkeypatch):
    fusion = a_fusion(layers)
    slow = slow_scores(fusion, *inputs)
    assert slow[0][slow[0] > -50].std() > 0.01
    at_once = matching_scores(fusion, *inputs, TOP_K)
    monkeypatch.setattr(rerank, "CAPTIONS_AT_ONCE", 3)
    monkeypatch.setattr(rerank, "working_bytes", lambda device: 12 * CAPTIONS * 3)
    in_chunks = matching_scores(fusion, *inputs, TOP_K)
    for result in (at_once, in_chunks):
        for ours, expected in zip(result, slow, strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_half_precision_tokens_and_long_shortlists_are_accepted(inputs):
    images, texts, mask, features = inputs
    fusion = a_fusion(1)
    half = matching_scores(fusion, images.half(), texts.half(), mask, features, 500)
    full = matching_scores(fusion, images, texts, mask, features, 500)
    torch.testing.assert_close(half[0], full[0], rtol=0.01, atol=0.01)
    torch.testing.assert_close(full[0], full[1].T)
    assert torch.equal(shortlist(*features, 3), (features[0] @ features[1].T).topk(3).indices)
