"""Curves of given features against slow versions that take one query and one document at a time."""

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from rvlr_lib.data.scenes import COLOUR_WORDS, SHAPE_WORDS
from rvlr_lib.evaluation import baselines as curves
from rvlr_lib.evaluation.evaluate import random_features, relevances
from rvlr_lib.similarity import unit_rows


def slow_ranking(dataset, features, as_text, query, modality):
    """(score, relevance, is a caption) of every document but the query itself."""
    images, texts = features
    headline = next(iter(relevances(dataset).values()))
    graded, captions = headline.caption_to_image, [dataset.captions_of(i) for i in range(len(dataset))]
    second = captions[query][:2][-1]

    def to_picture(document):
        if modality == "text":
            return graded[second, document]
        if headline.image_to_image is not None:
            return headline.image_to_image[query, document]
        both_ways = (query, document), (document, query)
        return np.mean([np.mean([graded[c, b] for c in captions[a]]) for a, b in both_ways])

    def to_caption(caption):
        direct = modality == "text" and headline.text_to_text is not None
        return headline.text_to_text[second, caption] if direct else graded[caption, query]

    z, entries = images[query] if modality == "image" else texts[second], []
    for document in range(len(dataset)):
        caption = captions[document][0]
        if as_text[document] and not (modality == "text" and caption == second):
            entries.append((float(z @ texts[caption]), float(to_caption(caption)), True))
        elif not as_text[document] and not (modality == "image" and document == query):
            entries.append((float(z @ images[document]), float(to_picture(document)), False))
    return entries


@pytest.mark.parametrize("name", ["scenes", "emoji"])
def test_mixed_corpora_document_by_document(name, request):
    dataset = request.getfixturevalue(name)
    features = random_features(dataset, 16, 0)
    frame = curves.mix_ratio_curve(features, dataset, shares=(0, 0.5, 1), k=4, seed=1, arm="rvlr")
    assert list(frame.columns) == ["dataset", "arm", "captions", "metric", "value"]
    values = frame.set_index(["captions", "metric"])["value"]
    count = len(dataset)
    as_text = np.isin(np.arange(count), np.random.default_rng(1).permutation(count)[: count // 2])
    for modality in ("image", "text"):
        ndcg, share, ideal_share = [], [], []
        for query in range(count):
            entries = slow_ranking(dataset, features, as_text, query, modality)
            scores, grades, _ = zip(*entries, strict=True)
            ndcg.append(100 * ndcg_score([grades], [scores], k=4))
            share.append(25 * sum(e[2] for e in sorted(entries, reverse=True)[:4]))
            fourth = sorted(grades, reverse=True)[3]
            above = [e for e in entries if e[1] > fourth]
            tied = [e for e in entries if e[1] == fourth]
            tied_share = (4 - len(above)) * sum(e[2] for e in tied) / len(tied)
            ideal_share.append(25 * (sum(e[2] for e in above) + tied_share))
        assert values[50, f"{modality}_query/NDCG@4"] == pytest.approx(np.mean(ndcg), abs=1e-4)
        assert values[50, f"{modality}_query/captions_in_top"] == pytest.approx(np.mean(share), abs=1e-4)
        assert values[50, f"{modality}_query/captions_in_top_ideal"] == pytest.approx(np.mean(ideal_share), abs=1e-4)
        assert values[0, f"{modality}_query/captions_in_top"] == 0
        assert values[100, f"{modality}_query/captions_in_top_ideal"] == 100


def test_documents_of_a_picture_its_caption_or_both(scenes):
    images, texts = random_features(scenes, 16, 0)
    first = [5 * i for i in range(40)]
    hits = {"picture": [], "caption": [], "picture + caption": []}
    for caption, owner in enumerate(scenes.caption_image):
        both = unit_rows(images + texts[first])
        for name, documents in zip(hits, (images, texts[first], both), strict=True) if caption % 5 else ():
            hits[name].append(int((documents @ texts[caption]).argmax()) == owner)
    frame = curves.document_recall((images, texts), scenes, seed=0).query("metric == 'R@1'").set_index("documents")
    for name, is_hit in hits.items():
        assert frame.loc[name, "value"] == pytest.approx(100 * np.mean(is_hit))


def test_perturbations_do_what_they_say(scenes):
    synonyms = {w: set(words) for table in (SHAPE_WORDS, COLOUR_WORDS) for words in table for w in words}
    for kind in ("words_dropped", "words_shuffled", "synonyms"):
        assert curves.perturb(scenes, kind, 0).captions == scenes.captions
    half, full = (curves.perturb(scenes, "synonyms", s) for s in (0.5, 1))
    changed = 0
    for plain, some, after in zip(scenes.captions, half.captions, full.captions, strict=True):
        for a, b, c in zip(plain.split(), some.split(), after.split(), strict=True):
            if a in synonyms:
                assert c != a
                assert c in synonyms[a]
                assert b in (a, c)  # nested
                changed += 1
            if a == "an":
                assert c in ("a", "an")
    assert changed > 100
    assert not any(f" a {v}" in f" {text}" for text in full.captions for v in "aeiou")
    shuffled = curves.perturb(scenes, "words_shuffled", 1).captions
    assert [sorted(text.split()) for text in shuffled] == [sorted(text.split()) for text in scenes.captions]
    assert shuffled != scenes.captions
    assert all(len(text.split()) == 1 for text in curves.perturb(scenes, "words_dropped", 1).captions)
    blurred = curves.perturb(scenes, "blur", 0.5)
    assert not torch.equal(blurred.pixels([0], 48), scenes.pixels([0], 48))
    assert blurred.captions == scenes.captions


def test_items_whose_neighbours_moved_most_come_first(emoji):
    base, third = random_features(emoji, 8, 0), random_features(emoji, 8, 5)
    moved = base[0].clone()
    moved[3] = -moved[3]
    frame = curves.moved_items({"start": base, "rvlr": (moved, base[1])}, emoji, k=3, most=5)
    assert (frame["id"][0], frame["overlap"][0]) == (emoji.image_ids[3], 0)
    assert frame["overlap"].is_monotonic_increasing
    assert frame["rank"].tolist() == [1, 2, 3, 4, 5]
    row = int(frame["row"][1])
    nearest = (moved @ moved[row]).argsort(descending=True)[1:4]
    assert frame["neighbours rvlr"][1] == [emoji.image_ids[i] for i in nearest]
    three = curves.moved_items({"a": base, "b": third, "c": base}, emoji, k=3)
    assert three["overlap a c"].eq(100).all()
    np.testing.assert_allclose(three["overlap"], three[["overlap a b", "overlap a c", "overlap b c"]].mean(axis=1))


def test_bad_input_is_named(scenes, emoji, refuses):
    for kind, strength in (("typos", 0.5), ("blur", 2)):
        refuses(f"{kind!r} of strength {strength}: give 0 to 1", curves.perturb, scenes, kind, strength)
    refuses("synonyms are known only for scenes", curves.perturb, emoji, "synonyms", 0.5)
    refuses("shares of captions must be 0 to 1", curves.mix_ratio_curve, None, scenes, shares=(50,))
    refuses("no picture has a second caption", curves.document_recall, random_features(emoji, 4, 0), emoji)
