"""Ground truth of scenes: shares of factors in captions and pictures, and the Bayes ceiling of recall."""

from collections.abc import Sequence
from itertools import permutations
from math import comb, factorial

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.facts import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIZES, TILES, Facts, SceneViews

HIDDEN = -2  # in place of a hidden object's factors; -1 means no object


def mentioned_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the captions of scenes mention, 0..1; forced mentions do not count."""
    views = _views(dataset)
    return float((_factors(views.text) - views.forced).sum() / _factors(views.described).sum())


def shown_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the pictures of scenes show, 0..1."""
    views = _views(dataset)
    return float(_factors(views.image).sum() / _factors(views.scene).sum())


def _views(dataset: ImageTextDataset) -> SceneViews:
    if dataset.scene is None:
        raise ValueError(f"{dataset.name} has no known factors: use load_dataset('scenes', ...)")
    return dataset.scene


def _factors(facts: Facts) -> np.ndarray:
    """Number of factors that each view shows, [N]: shape, colour and size of each object, and the background."""
    return (facts.objects >= 0).sum((1, 2)) + (facts.background >= 0)


def caption_likelihood(views: SceneViews) -> np.ndarray:
    """Probability that the generator produces exactly a caption's facts, given what a picture shows, float64 [C, I].

    Of the T = 3n + 1 factors of a scene with n objects the caption mentions t, each with chance d; its m objects are in
    random order, so the probability is d^t (1 - d)^(T - t) times the number of ways to match its mentions with objects
    of the scene, divided by m!. A caption that names one object by its shape alone may also be a forced one: with
    chance (1 - d)^(3n) no object was drawn to be mentioned, and each of the n objects is then equally likely.

    If k tiles are covered, n is unknown: a priori uniform on 1 to 4, and n objects on random tiles leave v visible and
    h = n - v hidden with chance C(9 - k, v) C(k, h) / C(9, n); a mention fits a hidden object with the chance of the
    factors it names. The result is the mean over n given v and k.
    """
    d, text, shown = views.text_detail, views.text, views.image
    present = shown.objects[:, :, 0] >= 0
    visible = present.sum(1)  # [I]
    ordered = np.take_along_axis(shown.objects, np.argsort(~present, axis=1, kind="stable")[:, :, None], 1)
    facts = (text.objects >= 0).sum((1, 2))  # [C], number of object factors mentioned
    mentioned = (text.objects >= 0).any(2).sum(1)  # [C], number of objects mentioned
    # the 4 - m empty mentions fit every object, in all (4 - m)! orders
    repeats = np.array([factorial(m) * factorial(OBJECTS - m) for m in range(OBJECTS + 1)])[mentioned]
    shape_only = (mentioned == 1) & (facts == 1) & (text.objects[:, 0, 0] >= 0)
    chances = _hidden_chances(visible, views.covered)
    likelihood = np.zeros((len(facts), len(visible)))
    for hidden in range(OBJECTS + 1):
        images = np.flatnonzero(chances[:, hidden])
        objects, count = ordered[images], visible[images] + hidden
        place = np.arange(OBJECTS)
        objects[(place >= visible[images, None]) & (place < count[:, None])] = HIDDEN
        fits = [[_fits(text.objects[:, a], objects[:, b]) for b in place] for a in place]
        ways = np.zeros((len(facts), len(images)))
        for order in permutations(place):
            ways += np.prod([fits[a][b] for a, b in enumerate(order)], axis=0)
        unmentioned = np.maximum(3 * count - facts[:, None], 0)  # if negative, there are no ways
        term = ways / repeats[:, None] * d ** facts[:, None] * (1 - d) ** unmentioned
        term[shape_only] += ways[shape_only] / factorial(OBJECTS - 1) / count * (1 - d) ** (3 * count)
        likelihood[:, images] += term * chances[images, hidden]

    agrees = np.where(shown.background < 0, 1 / BACKGROUNDS, text.background[:, None] == shown.background)
    return likelihood * np.where(text.background[:, None] < 0, 1 - d, d * agrees)


def _hidden_chances(visible: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Chance of h = 0..4 hidden objects, [I, 5], given the numbers of visible objects and covered tiles, [I]."""
    table = np.zeros((OBJECTS + 1, TILES + 1, OBJECTS + 1))
    for v, k, h in np.ndindex(table.shape):
        if 1 <= v + h <= OBJECTS:
            table[v, k, h] = comb(TILES - k, v) * comb(k, h) / comb(TILES, v + h)
    chances = table[visible, covered]
    return chances / chances.sum(1, keepdims=True)


def _fits(mentions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Chance that each mention [C, 3] fits each object [I, 3], float64 [C, I]; 0 or 1 unless the object is hidden."""
    chance = ((1 / np.array([SHAPES, COLOURS, SIZES])) ** (mentions >= 0)).prod(1)
    agrees = [(said < 0)[:, None] | (said[:, None] == true) for said, true in zip(mentions.T, objects.T, strict=True)]
    return np.where(objects[:, 0] == HIDDEN, chance[:, None], np.logical_and.reduce(agrees))


def bayes_ceiling(dataset: ImageTextDataset, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall of Bayes' rule on one gallery of scenes, given the generator and the visible factors of every picture.

    Text to image ranks pictures by the likelihood of the caption's facts given the picture; image to text ranks
    captions by the posterior probability that they describe the picture, under a uniform prior over pictures. Ties
    count as the exact expectation of random order: what is missing to 100 is due to ambiguous captions.
    Limits: each query is ranked on its own (a joint assignment of all captions of a gallery may do better), and ranking
    captions one by one is optimal for k = 1, but does not spread its guesses for larger k.

    Returns ``i2t/R@1`` ..., ``t2i/R@1`` ..., ``i2t/R@mean``, ``t2i/R@mean`` and their mean ``r_mean``, in percent.
    ValueError if the data set has no known factors or more than one gallery.
    """
    views = _views(dataset)
    if dataset.galleries is not None and len(np.unique(dataset.galleries)) > 1:
        raise ValueError(f"{dataset.name}/{dataset.split} has several galleries: take each of dataset.gallery_sets")
    likelihood = caption_likelihood(views)
    posterior = _rounded(likelihood / likelihood.sum(1, keepdims=True))  # t2i: same order and ties as likelihood
    matches = views.caption_image[:, None] == np.arange(len(dataset))
    values: dict[str, float] = {}
    for direction, scores, positives in (("i2t", posterior.T, matches.T), ("t2i", posterior, matches)):
        recalls = expected_recall(scores, positives, ks)
        values |= {f"{direction}/R@{k}": recall for k, recall in recalls.items()}
        values[f"{direction}/R@mean"] = float(np.mean(list(recalls.values())))
    return values | {"r_mean": (values["i2t/R@mean"] + values["t2i/R@mean"]) / 2}


def expected_recall(scores: np.ndarray, positives: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall at k in percent under random order of ties; [Q, G] scores and bool positives.

    Only the positives with a query's best positive score matter: P of them are among E tied candidates, of which s fit
    into the first k places, so all are missed with probability C(E - P, s) / C(E, s).
    """
    from scipy.stats import hypergeom

    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    ahead, tied = (scores > best).sum(1), (scores == best).sum(1)
    hits = ((scores == best) & positives).sum(1)
    missed = {k: hypergeom.pmf(0, tied, hits, np.clip(k - ahead, 0, tied)) for k in ks}
    return {k: float(100 * (1 - chance).mean()) for k, chance in missed.items()}


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values with mantissas rounded to twelve decimals, so that arithmetically equal values compare equal."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa, 12), exponent)
