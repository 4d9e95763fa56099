from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, permutations, product
from math import comb

import numpy as np
import pytest

from rvlr_lib.data import bayes_ceiling, facts, load_dataset, truth


def load(split="val", size=40, **options):
    if split == "test":
        return load_dataset("scenes", split=split, **options)
    return load_dataset("scenes", split=split, size=size, **options)


# Similarity


def slow_counts(objects, background):
    counts = Counter()
    for shape, colour, size in objects:
        counts["shape", shape] += 0.5 * (shape >= 0)
        counts["colour", colour] += 0.5 * (colour >= 0)
        counts["size", size] += 0.5 * (size >= 0)
        counts["pair", shape, colour] += shape >= 0 and colour >= 0
    counts["background", background] += background >= 0
    return counts


def slow_cosine(a, b):
    norms = [sum(v * v for v in x.values()) ** 0.5 for x in (a, b)]
    return sum(v * b[k] for k, v in a.items()) / (norms[0] * norms[1])


@pytest.mark.parametrize("kind", ["latent", "shown"])
@pytest.mark.parametrize("detail", [0.3, 1.0])
def test_truth_against_counting(kind, detail):
    dataset = load(size=6, text_detail=detail)
    views, result = dataset.scene, dataset.scene.truth(kind)
    images = [slow_counts(o.tolist(), b) for o, b in zip(views.scene.objects, views.scene.background, strict=True)]
    texts = [slow_counts(o.tolist(), b) for o, b in zip(views.text.objects, views.text.background, strict=True)]
    if kind == "latent":
        texts = [images[i] for i in dataset.caption_image]
    for matrix, rows, columns in (
        (result.caption_to_image, texts, images),
        (result.image_to_image, images, images),
        (result.text_to_text, texts, texts),
    ):
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, [[slow_cosine(a, b) for b in columns] for a in rows], atol=1e-6)


def test_truth_by_hand():
    told = facts.Facts(np.full((3, 4, 3), -1, np.int8), np.array([5, 5, -1], np.int8))
    told.objects[0, 0], told.objects[1, 0], told.objects[2, 0] = (1, 2, 0), (1, 3, 0), (1, -1, -1)
    views = facts.SceneViews(told, told, told, np.arange(3), np.zeros(3, bool), 0.5, np.zeros(3, int), told)
    long = (1 + 1 + 3 / 4) ** 0.5
    expected = [[1, (1 + 2 / 4) / long**2, (1 / 4) / (long * 0.5)]]
    np.testing.assert_allclose(views.truth("shown").image_to_image[:1], expected, atol=1e-6)
    blank = replace(views, image=replace(told, objects=told.objects * 0 - 1))
    assert blank.truth("shown").image_to_image[2].tolist() == [0, 0, 0]


def test_shown_is_latent_where_everything_is_told():
    views = load(text_detail=1.0).scene
    for part in ("caption_to_image", "image_to_image", "text_to_text"):
        np.testing.assert_allclose(getattr(views.truth("shown"), part), getattr(views.truth("latent"), part), atol=1e-6)
    assert np.linalg.eigvalsh(views.truth("shown").text_to_text.astype(float)).min() > -1e-5
    with pytest.raises(ValueError, match="'seen' is unknown; choose 'latent'"):
        views.truth("seen")


# Bayes ceiling


def caption_outcomes(objects, background, detail):
    """Every (mentions in order, background) that the generator can tell of a scene, with its chance."""
    chances = Counter()
    factors = [value for scene_object in objects for value in scene_object] + [background]
    for told in product((False, True), repeat=len(factors)):
        chance = np.prod([detail if t else 1 - detail for t in told])
        shown = [value if t else -1 for t, value in zip(told, factors, strict=True)]
        named = [tuple(shown[k : k + 3]) for k in range(0, len(factors) - 1, 3)]
        named = [n for n in named if max(n) >= 0]
        choices = [named] if named else [[(o[0], -1, -1)] for o in objects]
        for choice in choices:
            orders = list(permutations(choice))
            for order in orders:
                chances[order, shown[-1]] += chance / len(choices) / len(orders)
    return chances


def facts_of(views, c):
    return tuple(tuple(m) for m in views.text.objects[c].tolist() if max(m) >= 0), views.text.background[c]


@pytest.mark.parametrize("detail", [0.0, 0.15, 0.6, 1.0])
def test_likelihood_against_enumeration(detail):
    dataset = load(size=60, text_detail=detail, seed=5)
    number = (dataset.scene.scene.objects[:, :, 0] >= 0).sum(1)
    few = np.concatenate([np.flatnonzero(number == n)[:keep] for n, keep in ((1, 6), (2, 6), (3, 3), (4, 1))])
    dataset = dataset.subset(few)
    views = dataset.scene
    outcomes = []
    for objects, background in zip(views.scene.objects, views.scene.background, strict=True):
        outcomes.append(caption_outcomes([tuple(o) for o in objects.tolist() if o[0] >= 0], background, detail))
        assert abs(sum(outcomes[-1].values()) - 1) < 1e-9
    expected = [[chances[facts_of(views, c)] for chances in outcomes] for c in range(len(dataset.captions))]
    np.testing.assert_allclose(truth.caption_likelihood(views), expected, rtol=1e-9, atol=1e-15)


def test_likelihood_with_equal_objects():
    """Two equal objects can be told in twice as many ways; the enumeration above seldom meets them."""
    objects = [(2, 3, 1), (2, 3, 1), (2, 4, 0)]
    scene = facts.Facts(np.full((1, 4, 3), -1, np.int8), np.array([6], np.int8))
    scene.objects[0, :3] = objects
    outcomes = caption_outcomes(objects, 6, 0.4)
    text = facts.Facts(np.full((len(outcomes), 4, 3), -1, np.int8), np.array([b for _, b in outcomes], np.int8))
    for c, (mentions, _) in enumerate(outcomes):
        text.objects[c, : len(mentions)] = mentions
    owner = np.zeros(len(outcomes), int)
    views = facts.SceneViews(scene, scene, text, owner, owner > 0, 0.4, np.zeros(1, int), scene[owner])
    likelihood = truth.caption_likelihood(views)[:, 0]
    np.testing.assert_allclose(likelihood, list(outcomes.values()), rtol=1e-9)
    assert abs(likelihood.sum() - 1) < 1e-9


def slow_recall(scores, positives, k):
    """Expected recall over all orders of ties, in fractions."""
    hits = []
    for row, own in zip(scores, positives, strict=True):
        every = permutations(range(len(row)))
        orders = [order for order in every if all(row[a] >= row[b] for a, b in pairwise(order))]
        hits.append(Fraction(sum(any(own[j] for j in p[:k]) for p in orders), len(orders)))
    return 100 * float(sum(hits) / len(hits))


def test_expected_recall_against_all_orders_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (30, 6)) / 3
    positives = rng.random((30, 6)) < 0.4
    positives[:, 2] |= ~positives.any(1)
    fast = truth.expected_recall(scores, positives, range(1, 8))
    for k in range(1, 7):
        assert abs(fast[k] - slow_recall(scores, positives, k)) < 1e-9
    assert fast[7] == 100
    all_alike = truth.expected_recall(np.zeros((1, 20)), np.arange(20)[None] < 5, [3])
    assert abs(all_alike[3] - 100 * (1 - comb(15, 3) / comb(20, 3))) < 1e-9


@pytest.mark.parametrize("detail", [0.0, 0.2, 0.6])
def test_ceiling_against_brute_force(detail):
    """Enumerated chances, fractions for the posteriors' ties, all orders of ties."""
    whole = load(size=40, text_detail=detail, seed=2)
    number = (whole.scene.scene.objects[:, :, 0] >= 0).sum(1)
    dataset = whole.subset(np.flatnonzero(number <= 2)[:4])
    captions = np.array([c for i in range(4) for c in dataset.captions_of(i)[: 1 + i % 2]])
    owner = dataset.caption_image[captions]
    scene = dataset.scene.subset(np.arange(4), captions, owner)
    words = [dataset.captions[c] for c in captions]
    dataset = replace(dataset, captions=words, caption_image=owner, scene=scene)
    outcomes = [
        caption_outcomes([tuple(o) for o in objects.tolist() if o[0] >= 0], background, Fraction(detail))
        for objects, background in zip(scene.scene.objects, scene.scene.background, strict=True)
    ]
    likelihood = [[Fraction(chances[facts_of(scene, c)]) for chances in outcomes] for c in range(len(words))]
    posterior = np.array([[value / sum(row) for value in row] for row in likelihood], dtype=object)
    own = owner[:, None] == np.arange(4)
    ceiling = bayes_ceiling(dataset, ks=(1, 2, 3))
    for k in (1, 2, 3):
        assert abs(ceiling[f"t2i/R@{k}"] - slow_recall(likelihood, own, k)) < 1e-9
        assert abs(ceiling[f"i2t/R@{k}"] - slow_recall(posterior.T, own.T, k)) < 1e-9
    assert ceiling["t2i/R@mean"] == pytest.approx(np.mean([ceiling[f"t2i/R@{k}"] for k in (1, 2, 3)]))
    assert ceiling["r_mean"] == pytest.approx((ceiling["i2t/R@mean"] + ceiling["t2i/R@mean"]) / 2)


def test_chances_equal_by_arithmetic_are_ties():
    chances = np.random.default_rng(0).random((10_000, 1)) * 0.3 ** np.arange(30)
    thirds, tenths = chances / (chances + chances + chances), chances / np.repeat(chances[None], 10, 0).sum(0)
    assert len(np.unique(thirds)) + len(np.unique(tenths)) > 2
    assert len(np.unique(truth._rounded(thirds))) == len(np.unique(truth._rounded(tenths))) == 1
    assert np.allclose(truth._rounded(chances), chances, rtol=1e-11, atol=0)


def test_ceiling_needs_one_gallery_with_factors():
    with pytest.raises(ValueError, match=r"gallery_sets\(\)"):
        bayes_ceiling(load("test", galleries=2, gallery_size=5))
    with pytest.raises(ValueError, match="emoji has no known factors"):
        bayes_ceiling(load_dataset("emoji", split="test", limit=3))
