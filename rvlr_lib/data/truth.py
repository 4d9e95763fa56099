"""What is true about scenes: shares that views tell and show, and the Bayes ceiling of recall."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from math import comb, factorial

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.facts import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIZES, TILES, Facts, SceneViews, Truth

__all__ = [
    "Facts",
    "SceneViews",
    "Truth",
    "bayes_ceiling",
    "caption_likelihood",
    "expected_recall",
    "shown_share",
    "told_share",
]


def told_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the captions tell, 0..1; the shape of an object told by force is not counted.

    Raises:
        ValueError: If the data set has no known factors.
    """
    views = _views(dataset)
    return float((_factors(views.text) - views.forced).sum() / _factors(views.told_of).sum())


def shown_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the pictures show, 0..1.

    Raises:
        ValueError: If the data set has no known factors.
    """
    views = _views(dataset)
    return float(_factors(views.image).sum() / _factors(views.scene).sum())


def _factors(facts: Facts) -> np.ndarray:
    """Number of factors shown by each view, [N]: shape, colour and size of each object, and the background."""
    return (facts.objects >= 0).sum((1, 2)) + (facts.background >= 0)


def caption_likelihood(views: SceneViews) -> np.ndarray:
    """Chance that the generator tells exactly a caption's facts, given what a picture shows, float64 [C, I].

    Of the T = 3n + 1 factors of a scene with n objects the caption tells t, each with chance d; it mentions m objects
    in random order, so the chance is d^t (1 - d)^(T - t) times the number of ways to match its mentions with objects of
    the scene, over m!. A caption that tells one object by its shape alone may also have been forced to: with chance
    (1 - d)^(3n) no object was drawn to be told, and one in n is the object told by force.

    Where tiles are covered, n is not known. Before anything is seen it is any of 1 to 4, and n objects on random tiles
    leave v visible and h = n - v hidden with chance C(9 - k, v) C(k, h) / C(9, n) when k tiles are covered; hidden
    objects are of any kind, so a mention fits one with the chance of the factors it tells. The result is the mean over
    n given v and k.
    """
    d, told, shown, covered = views.text_detail, views.text, views.image, views.covered_tiles
    present = shown.objects[:, :, 0] >= 0
    visible = present.sum(1)  # [I]
    first = np.take_along_axis(shown.objects, np.argsort(~present, axis=1, kind="stable")[:, :, None], 1)
    facts = (told.objects >= 0).sum((1, 2))  # [C]
    mentions = (told.objects >= 0).any(2)  # [C, 4]
    by_luck = ((1 / np.array([SHAPES, COLOURS, SIZES])) ** (told.objects >= 0)).prod(2)  # [C, 4]

    # fits[a][b]: mention a may be object b; a mention that is none fits everything, and so do its (4 - m)! orders
    fits = [[_fits(told.objects[:, a], first[:, b]) for b in range(OBJECTS)] for a in range(OBJECTS)]
    mentioned = mentions.sum(1)
    repeats = np.array([factorial(m) * factorial(OBJECTS - m) for m in range(OBJECTS + 1)])[mentioned]
    shape_alone = (mentioned == 1) & (facts == 1) & (told.objects[:, 0, 0] >= 0)
    chances = _hidden_chances(visible, covered)
    likelihood = np.zeros((len(facts), len(visible)))
    for hidden in range(OBJECTS + 1):
        some = np.flatnonzero(chances[:, hidden])
        if not len(some):
            continue
        ways = np.zeros((len(facts), len(some)))
        for order in permutations(range(OBJECTS)):
            product = np.ones_like(ways)
            for a, b in enumerate(order):
                guess = (b >= visible[some]) & (b < visible[some] + hidden)
                product *= np.where(guess, by_luck[:, [a]], fits[a][b][:, some]) if hidden else fits[a][b][:, some]
            ways += product
        objects = visible[some] + hidden
        untold = np.maximum(3 * objects - facts[:, None], 0)  # where negative there are no ways
        part = ways / repeats[:, None] * d ** facts[:, None] * (1 - d) ** untold
        alike = ways[shape_alone] / factorial(OBJECTS - 1)
        part[shape_alone] += alike / objects * (1 - d) ** (3 * objects)
        likelihood[:, some] += part * chances[some, hidden]

    same = told.background[:, None] == shown.background
    agrees = np.where(shown.background < 0, 1 / BACKGROUNDS, same)
    return likelihood * np.where(told.background[:, None] < 0, 1 - d, d * agrees)


def _hidden_chances(visible: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Chance of h = 0..4 hidden objects given visible objects and covered tiles [I] -> [I, 5]."""
    table = np.zeros((OBJECTS + 1, TILES + 1, OBJECTS + 1))
    for v in range(OBJECTS + 1):
        for k in range(TILES + 1):
            for h in range(OBJECTS + 1 - v):
                if v + h:
                    table[v, k, h] = comb(TILES - k, v) * comb(k, h) / comb(TILES, v + h)
    chances = table[visible, covered]
    return chances / chances.sum(1, keepdims=True)


def _fits(mentions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Whether each mention [C, 3] may speak of each object [I, 3] -> bool [C, I]; of an absent object none may."""
    rows, codes = np.unique(mentions, axis=0, return_inverse=True)
    kinds, at = np.unique(objects, axis=0, return_inverse=True)
    table = ((rows[:, None] < 0) | (rows[:, None] == kinds)).all(2)
    return table[codes.ravel()][:, at.ravel()]


def bayes_ceiling(dataset: ImageTextDataset, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall that Bayes' rule reaches on this gallery's captions, knowing the generator and every picture's factors.

    Text to image ranks the pictures by the chance of the caption's facts given the picture; image to text ranks the
    captions by the posterior chance that they tell of the picture, every picture equally probable beforehand. Equal
    chances are ties in random order; the value is the exact expectation over these orders, no sampling. So what is
    missing to 100 is ambiguity of the captions, not weakness of a model. Limits: it sees each query on its own (a
    method that assigns all captions of a gallery jointly may do better, and so may luck); and image to text ranks
    captions one by one, which is best for k = 1 but does not spread its guesses over what is uncertain for larger k.

    Args:
        dataset: Scenes, one gallery: I pictures, C captions.
        ks: Cut-offs of recall.

    Returns:
        ``i2t/R@1`` ..., ``t2i/R@1`` ..., ``i2t/R@mean``, ``t2i/R@mean`` and their mean ``r_mean``, in percent.

    Raises:
        ValueError: If the data set has no known factors or more than one gallery.
    """
    views = _views(dataset)
    if dataset.galleries is not None and len(np.unique(dataset.galleries)) > 1:
        raise ValueError(f"{dataset.name}/{dataset.split} has several galleries; ask each of dataset.gallery_sets()")
    likelihood = caption_likelihood(views)
    posterior = _rounded(likelihood / likelihood.sum(1, keepdims=True))  # ties of t2i are the same: one sum a caption
    own = views.caption_image[:, None] == np.arange(len(dataset))
    values: dict[str, float] = {}
    for way, scores, positives in (("i2t", posterior.T, own.T), ("t2i", posterior, own)):
        values |= {f"{way}/R@{k}": v for k, v in expected_recall(scores, positives, ks).items()}
        values[f"{way}/R@mean"] = float(np.mean([values[f"{way}/R@{k}"] for k in ks]))
    return values | {"r_mean": (values["i2t/R@mean"] + values["t2i/R@mean"]) / 2}


def expected_recall(scores: np.ndarray, positives: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall at k in percent where equal scores stand in random order; [Q, G] scores and bool positives.

    Only the positives with a query's best positive score matter: P of them stand among E equals, of which s fill the
    places up to k, so all are missed with the chance C(E - P, s) / C(E, s).
    """
    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    ahead, equals = (scores > best).sum(1), (scores == best).sum(1)
    hits = ((scores == best) & positives).sum(1)
    log_factorial = np.concatenate([[0.0], np.log(np.arange(1, scores.shape[1] + 1)).cumsum()])
    recalls = {}
    for k in ks:
        places = np.clip(k - ahead, 0, equals)
        certain = places > equals - hits
        left = np.maximum(equals - hits - places, 0)
        log_miss = log_factorial[equals - hits] - log_factorial[left]
        log_miss += log_factorial[equals - places] - log_factorial[equals]
        recalls[k] = float(100 * (1 - np.where(certain, 0.0, np.exp(log_miss))).mean())
    return recalls


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values to twelve significant binary-scaled digits, so that what is equal by arithmetic compares equal."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa, 12), exponent)


def _views(dataset: ImageTextDataset) -> SceneViews:
    if dataset.scene is None:
        raise ValueError(f"{dataset.name} has no known factors; this needs load_dataset('scenes', ...)")
    return dataset.scene
