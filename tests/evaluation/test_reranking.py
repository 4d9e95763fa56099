"""Re-ranking that computes what pairs share once equals the matching head on one padded pair at a time."""

import pytest
import torch
from torch.nn import functional as F

from rvlr_lib.data import load_dataset
from rvlr_lib.evaluation import evaluate as evaluation
from rvlr_lib.evaluation import rerank as reranking
from rvlr_lib.evaluation.rerank import PackedTexts, matching_scores, score_pairs, shortlist
from rvlr_lib.models import Student, build_towers
from rvlr_lib.models.towers import tokenize
from rvlr_lib.similarity import unit_rows

CPU = torch.device("cpu")
TOP_K = 5


@pytest.fixture(scope="module")
def towers():
    return build_towers("tiny", seed=3)


@pytest.fixture(scope="module")
def emoji():
    """40 pictures with one to seven captions of several lengths."""
    return load_dataset("emoji", split="train").subset(range(0, 800, 20))


@pytest.fixture(scope="module")
def features(emoji):
    generator = torch.Generator().manual_seed(0)
    return tuple(unit_rows(torch.randn(n, 16, generator=generator)) for n in (len(emoji), len(emoji.captions)))


def a_student(towers, layers):
    """Weights spread far enough that the logits of any two pairs differ."""
    student = Student(towers, fusion_layers=layers).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in student.fusion.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return student


@torch.inference_mode()
def slow_scores(student, towers, dataset, features, top_k):
    """One pair at a time through ``Student.match``, its caption padded to the whole context."""
    cosine = features[0] @ features[1].T
    token_ids = tokenize(towers.tokenizer, dataset.captions)
    results = []
    for scores, image_first in ((cosine, True), (cosine.T, False)):
        reranked = scores - 100
        for query in range(len(scores)):
            for candidate in scores[query].topk(min(top_k, scores.shape[1])).indices.tolist():
                image, caption = (query, candidate) if image_first else (candidate, query)
                pixels = dataset.pixels([image], towers.image_size).float() / 255
                text = student.encode_text(token_ids[caption : caption + 1], tokens=True)
                padding = token_ids.shape[1] - text.tokens.shape[1]
                tokens, mask = F.pad(text.tokens, (0, 0, 0, padding)), F.pad(text.mask, (0, padding))
                logits = student.match(student.encode_image(pixels, tokens=True).tokens, tokens, mask)[0]
                reranked[query, candidate] = logits[0, 1]
        results.append(reranked)
    return results


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_are_those_of_one_padded_pair_at_a_time(towers, emoji, features, layers):
    student = a_student(towers, layers)
    slow = slow_scores(student, towers, emoji, features, TOP_K)
    fast = matching_scores(student, towers, emoji, features, TOP_K, CPU)
    for ours, theirs in zip(fast, slow, strict=True):
        assert (ours > -50).sum() == ours.shape[0] * TOP_K
        assert theirs[theirs > -50].std() > 0.01
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_parts_of_pictures_and_captions_change_nothing(towers, emoji, features, monkeypatch):
    student = a_student(towers, 2)
    whole = matching_scores(student, towers, emoji, features, TOP_K, CPU)
    monkeypatch.setattr(reranking, "PIXELS_AT_ONCE", 3 * towers.image_size**2)
    monkeypatch.setattr(reranking, "CAPTIONS_AT_ONCE", 9)
    monkeypatch.setattr(reranking, "TOKENS_AT_ONCE", 30)
    monkeypatch.setattr(reranking, "QUERIES_AT_ONCE", 11)
    per_picture = 2 * 2 * 36 * 96 * 4
    parts = []
    taken = reranking._picture_parts
    monkeypatch.setattr(reranking, "_picture_parts", lambda *a: (parts.append(len(p[1][0][0])) or p for p in taken(*a)))
    in_parts = matching_scores(student, towers, emoji, features, TOP_K, CPU, memory_limit=3 * per_picture / 1e9)
    assert parts[:14] == [3] * 13 + [1]
    assert len(parts) > 14  # and again for the next part of captions
    assert len(parts) % 14 == 0
    for ours, theirs in zip(in_parts, whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_pair_picture_and_caption_is_computed_once(towers, emoji, features, monkeypatch):
    student = a_student(towers, 2)
    pairs, pictures, captions = [], [], []
    score, image, text = score_pairs, student.encode_image, student.encode_text
    monkeypatch.setattr(reranking, "score_pairs", lambda f, k, t, i, c: (pairs.append(len(i)), score(f, k, t, i, c))[1])
    monkeypatch.setattr(student, "encode_image", lambda x, **o: (pictures.append(len(x)), image(x, **o))[1])
    monkeypatch.setattr(student, "encode_text", lambda x, **o: (captions.append(len(x)), text(x, **o))[1])
    matching_scores(student, towers, emoji, features, TOP_K, CPU)
    i2t, t2i = shortlist(*features, TOP_K), shortlist(*features[::-1], TOP_K)
    wanted = {(i, int(c)) for i, row in enumerate(i2t) for c in row} | {
        (int(i), c) for c, row in enumerate(t2i) for i in row
    }
    assert sum(pairs) == len(wanted) < i2t.numel() + t2i.numel()
    assert sum(pictures) == len(emoji)
    assert sum(captions) == len(emoji.captions)


def test_training_and_scoring_attend_through_the_fused_kernel(towers):
    """No layer builds its attention matrix by hand: the profiler sees two calls a layer, either way."""
    student = a_student(towers, 2)
    image = student.encode_image(torch.rand(3, 3, 48, 48), tokens=True)
    text = student.encode_text(tokenize(towers.tokenizer, ["a cat", "two dogs", "a fox"]), tokens=True)

    def calls(run):
        with torch.profiler.profile() as profile:
            run()
        return sum(event.count for event in profile.key_averages() if event.key == "aten::scaled_dot_product_attention")

    student.train()
    assert calls(lambda: student.match(image.tokens, text.tokens, text.mask)) == 4
    student.eval()
    memory = student.fusion.project_images(image.tokens)
    begun = student.fusion.begin_texts(text.tokens, text.mask)
    assert calls(lambda: student.fusion.match_projected(memory, torch.arange(3), begun)) == 3


def test_bad_input_says_what_is_wrong(towers, emoji, features):
    with pytest.raises(ValueError, match="fusion_layers"):
        matching_scores(Student(towers), towers, emoji, features, TOP_K, CPU)
    with pytest.raises(ValueError, match="got 0 and 1.0"):
        matching_scores(a_student(towers, 1), towers, emoji, features, 0, CPU)
    with pytest.raises(ValueError, match="caption 1 begins with padding"):
        PackedTexts.pack(torch.ones(2, 3, 4), torch.tensor([[True, True, False], [False, True, True]]))


def test_a_shortlist_longer_than_the_gallery_takes_all(features):
    images, captions = features
    assert shortlist(captions, images, 500).shape == (len(captions), len(images))
    assert torch.equal(shortlist(images, captions, 3), (images @ captions.T).topk(3).indices)


@pytest.mark.parametrize("count", [64 * 40, 64 * 40 + 5])
def test_exact_search_looks_at_blocks_first_and_finds_the_same(count):
    generator = torch.Generator().manual_seed(0)
    queries, candidates = (torch.randn(n, 4, generator=generator) for n in (300, count))
    scores = queries @ candidates.T
    best = shortlist(queries, candidates, 10)
    assert torch.equal(best, scores.topk(10).indices)
    assert count % 64 == 0 or (best >= 64 * 40).any()  # behind the last whole block


def test_evaluation_offers_it_by_name():
    assert evaluation.matching_scores is matching_scores
