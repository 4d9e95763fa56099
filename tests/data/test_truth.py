from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import combinations, pairwise, permutations, product

import numpy as np
import pytest
from sklearn.feature_extraction import DictVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from rvlr_lib.data import bayes_ceiling, facts, load_dataset, truth


def slow_counts(views):
    by_view = []
    for objects, background in zip(views.objects.tolist(), views.background, strict=True):
        counts = Counter()
        for shape, colour, size in objects:
            counts["shape", shape] += 0.5 * (shape >= 0)
            counts["colour", colour] += 0.5 * (colour >= 0)
            counts["size", size] += 0.5 * (size >= 0)
            counts["pair", shape, colour] += shape >= 0 and colour >= 0
        counts["background", background] += background >= 0
        by_view.append(counts)
    return by_view


@pytest.mark.parametrize("kind", ["latent", "shown"])
@pytest.mark.parametrize(("detail", "visibility"), [(0.3, 0.2), (1.0, 1.0), (0.3, 0.0)])
def test_truth_against_counting(kind, detail, visibility, refuses):
    dataset = load_dataset("scenes", split="val", size=8, text_detail=detail, image_visibility=visibility)
    views, result = dataset.scene, dataset.scene.truth(kind)
    images = slow_counts(views.scene if kind == "latent" else views.image)
    texts = [images[i] for i in dataset.caption_image] if kind == "latent" else slow_counts(views.text)
    cosines = cosine_similarity(DictVectorizer().fit_transform(images + texts))
    expected = {"caption_to_image": cosines[8:, :8], "image_to_image": cosines[:8, :8], "text_to_text": cosines[8:, 8:]}
    for name, matrix in vars(result).items():
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, expected[name], atol=1e-6)
    refuses("'seen' is unknown; valid: 'latent'", views.truth, "seen")


def caption_outcomes(objects, background, detail):
    """Every (mentions in order, background) that the generator can produce for a scene, with its chance."""
    chances = Counter()
    factors = [value for scene_object in objects for value in scene_object] + [background]
    for drawn in product((False, True), repeat=len(factors)):
        chance = np.prod([detail if t else 1 - detail for t in drawn])
        stated = [value if t else -1 for t, value in zip(drawn, factors, strict=True)]
        named = [tuple(stated[k : k + 3]) for k in range(0, len(factors) - 1, 3)]
        named = [n for n in named if max(n) >= 0]
        choices = [named] if named else [[(o[0], -1, -1)] for o in objects]
        for choice in choices:
            orders = list(permutations(choice))
            for order in orders:
                chances[order, stated[-1]] += chance / len(choices) / len(orders)
    return chances


def slow_likelihood(views, detail):
    """Likelihood [C][I] from every outcome of every scene."""
    texts, scenes = (zip(view.objects.tolist(), view.background, strict=True) for view in (views.text, views.scene))
    captions = [(tuple(tuple(m) for m in objects if max(m) >= 0), background) for objects, background in texts]
    present = [([tuple(o) for o in objects if o[0] >= 0], background) for objects, background in scenes]
    outcomes = [caption_outcomes(*scene, detail) for scene in present]
    return [[chances[caption] for chances in outcomes] for caption in captions]


@pytest.mark.parametrize("detail", [0.0, 0.15, 0.6, 1.0])
def test_likelihood_against_enumeration(detail):
    dataset = load_dataset("scenes", split="val", size=263, text_detail=detail, seed=5)
    objects = dataset.scene.scene.objects
    number = (objects[:, :, 0] >= 0).sum(1)
    assert np.array_equal(*objects[262, [0, 2]])  # two equal objects can be mentioned in twice as many ways
    few = [np.flatnonzero(number == n)[:keep] for n, keep in ((1, 12), (2, 6), (3, 3), (4, 1))]
    views = dataset.subset(np.concatenate([*few, [262]])).scene
    expected = slow_likelihood(views, detail)
    np.testing.assert_allclose(truth.caption_likelihood(views), expected, rtol=1e-9, atol=1e-15)


def test_likelihood_of_covered_pictures_is_the_mean_over_possible_hidden_objects():
    """Enumerate every number, position and kind of objects that fits the picture, weighted by its chance."""
    dataset = load_dataset("scenes", split="val", size=30, text_detail=0.4, image_visibility=0.6, seed=3)
    views = dataset.scene
    visible = (views.image.objects[:, :, 0] >= 0).sum(1)
    kinds = np.array(list(product(range(8), range(8), range(2))), dtype=np.int8)
    rows = np.flatnonzero(visible >= 3)[:2]  # so at most one object is hidden
    assert visible[rows].min() == 3
    for row in rows:
        seen, count, covered = views.image.objects[row], int(visible[row]), int(views.covered[row])
        scenes = np.repeat(np.concatenate([seen[seen[:, 0] >= 0], seen[seen[:, 0] < 0]])[None], 1 + len(kinds), 0)
        if count < 4:
            scenes[1:, count] = kinds
        shown = facts.Facts(scenes, np.full(len(scenes), views.image.background[row], np.int8))
        likelihood = truth.caption_likelihood(replace(views, image=shown, covered=np.zeros(len(scenes), int)))
        chances = []  # that n objects on nine cells leave this many visible
        for n in range(count, min(count + 1, 4) + 1):
            remaining = [sum(cell >= covered for cell in cells) for cells in combinations(range(9), n)]
            chances.append(np.mean(np.array(remaining) == count))
        terms = [likelihood[:, 0], likelihood[:, 1:].mean(1)][: len(chances)]
        expected = np.average(terms, axis=0, weights=chances)
        np.testing.assert_allclose(truth.caption_likelihood(views)[:, row], expected, rtol=1e-9, atol=1e-15)


def slow_recall(scores, positives, k):
    """Expected recall over all orders of ties, in exact fractions."""
    hits = []
    for row, positive in zip(scores, positives, strict=True):
        candidates = permutations(range(len(row)))
        orders = [order for order in candidates if all(row[a] >= row[b] for a, b in pairwise(order))]
        hits.append(Fraction(sum(any(positive[j] for j in p[:k]) for p in orders), len(orders)))
    return 100 * float(sum(hits) / len(hits))


def test_expected_recall_against_all_orders_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (30, 6)) / 3
    positives = rng.random((30, 6)) < 0.4
    positives[:, 2] |= ~positives.any(1)
    fast = truth.expected_recall(scores, positives, range(1, 8))
    assert fast == pytest.approx({k: slow_recall(scores, positives, k) for k in range(1, 8)}, abs=1e-9)


@pytest.mark.parametrize("detail", [0.0, 0.2, 0.6])
def test_ceiling_against_brute_force(detail):
    """Enumerated chances, exact fractions for ties of posteriors, all orders of ties."""
    dataset = load_dataset("scenes", split="val", size=40, text_detail=detail, seed=2)
    dataset = dataset.subset(np.flatnonzero((dataset.scene.scene.objects[:, :, 0] >= 0).sum(1) <= 2)[:4])
    captions = np.array([c for i in range(4) for c in dataset.captions_of(i)[: 1 + i % 2]])
    owner = dataset.caption_image[captions]
    scene = dataset.scene.subset(np.arange(4), captions, owner)
    words = [dataset.captions[c] for c in captions]
    dataset = replace(dataset, captions=words, caption_image=owner, scene=scene)
    likelihood = [[Fraction(chance) for chance in row] for row in slow_likelihood(scene, Fraction(detail))]
    posterior = np.array([[value / sum(row) for value in row] for row in likelihood], dtype=object)
    pairs = owner[:, None] == np.arange(4)
    ceiling = bayes_ceiling(dataset, ks=(1, 2, 3))
    for direction, scores, positives in (("t2i", likelihood, pairs), ("i2t", posterior.T, pairs.T)):
        expected = [slow_recall(scores, positives, k) for k in (1, 2, 3)]
        assert [ceiling[f"{direction}/R@{k}"] for k in (1, 2, 3)] == pytest.approx(expected, abs=1e-9)
        assert ceiling[f"{direction}/R@mean"] == pytest.approx(np.mean(expected))
    assert ceiling["r_mean"] == pytest.approx((ceiling["i2t/R@mean"] + ceiling["t2i/R@mean"]) / 2)


def test_arithmetically_equal_chances_are_ties():
    chances = np.random.default_rng(0).random((10_000, 1)) * 0.3 ** np.arange(30)
    thirds, tenths = chances / (chances + chances + chances), chances / np.repeat(chances[None], 10, 0).sum(0)
    assert len(np.unique(thirds)) + len(np.unique(tenths)) > 2
    assert len(np.unique(truth._rounded(thirds))) == len(np.unique(truth._rounded(tenths))) == 1
    assert np.allclose(truth._rounded(chances), chances, rtol=1e-11, atol=0)
