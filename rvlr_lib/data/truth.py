"""What is true about scenes: shares that views tell and show, and the Bayes ceiling of recall."""

from collections.abc import Sequence
from itertools import permutations
from math import comb, factorial

import numpy as np

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.facts import BACKGROUNDS, COLOURS, OBJECTS, SHAPES, SIZES, TILES, Facts, SceneViews

HIDDEN = -2  # in place of an object's factors; -1 is none


def told_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the captions of scenes tell, 0..1; an object told by force does not count."""
    views = _views(dataset)
    return float((_factors(views.text) - views.forced).sum() / _factors(views.told_of).sum())


def shown_share(dataset: ImageTextDataset) -> float:
    """Share of factors that the pictures of scenes show, 0..1."""
    views = _views(dataset)
    return float(_factors(views.image).sum() / _factors(views.scene).sum())


def _views(dataset: ImageTextDataset) -> SceneViews:
    if dataset.scene is None:
        raise ValueError(f"{dataset.name} has no known factors; this needs load_dataset('scenes', ...)")
    return dataset.scene


def _factors(facts: Facts) -> np.ndarray:
    """Number of factors shown by each view, [N]: shape, colour and size of each object, and the background."""
    return (facts.objects >= 0).sum((1, 2)) + (facts.background >= 0)


def caption_likelihood(views: SceneViews) -> np.ndarray:
    """Chance that the generator tells exactly a caption's facts, given what a picture shows, float64 [C, I].

    Of the T = 3n + 1 factors of a scene with n objects the caption tells t, each with chance d; it mentions m objects
    in random order, so the chance is d^t (1 - d)^(T - t) times the number of ways to match its mentions with objects of
    the scene, over m!. A caption that tells one object by its shape alone may also have been forced to: with chance
    (1 - d)^(3n) no object was drawn to be told, and one in n is the object told by force.

    Where k tiles are covered, n is not known: beforehand any of 1 to 4, and n objects on random tiles leave v visible
    and h = n - v hidden with chance C(9 - k, v) C(k, h) / C(9, n); a mention fits a hidden object with the chance of
    the factors it tells. The result is the mean over n given v and k.
    """
    d, told, shown = views.text_detail, views.text, views.image
    present = shown.objects[:, :, 0] >= 0
    visible = present.sum(1)  # [I]
    first = np.take_along_axis(shown.objects, np.argsort(~present, axis=1, kind="stable")[:, :, None], 1)
    facts = (told.objects >= 0).sum((1, 2))  # [C]
    mentioned = (told.objects >= 0).any(2).sum(1)  # [C]
    # a mention that is none fits everything, and so do its (4 - m)! orders
    repeats = np.array([factorial(m) * factorial(OBJECTS - m) for m in range(OBJECTS + 1)])[mentioned]
    shape_alone = (mentioned == 1) & (facts == 1) & (told.objects[:, 0, 0] >= 0)
    chances = _hidden_chances(visible, views.covered)
    likelihood = np.zeros((len(facts), len(visible)))
    for hidden in range(OBJECTS + 1):
        some = np.flatnonzero(chances[:, hidden])
        objects, count = first[some], visible[some] + hidden
        place = np.arange(OBJECTS)
        objects[(place >= visible[some, None]) & (place < count[:, None])] = HIDDEN
        fits = [[_fits(told.objects[:, a], objects[:, b]) for b in place] for a in place]
        ways = np.zeros((len(facts), len(some)))
        for order in permutations(place):
            ways += np.prod([fits[a][b] for a, b in enumerate(order)], axis=0)
        untold = np.maximum(3 * count - facts[:, None], 0)  # where negative there are no ways
        part = ways / repeats[:, None] * d ** facts[:, None] * (1 - d) ** untold
        part[shape_alone] += ways[shape_alone] / factorial(OBJECTS - 1) / count * (1 - d) ** (3 * count)
        likelihood[:, some] += part * chances[some, hidden]

    same = told.background[:, None] == shown.background
    agrees = np.where(shown.background < 0, 1 / BACKGROUNDS, same)
    return likelihood * np.where(told.background[:, None] < 0, 1 - d, d * agrees)


def _hidden_chances(visible: np.ndarray, covered: np.ndarray) -> np.ndarray:
    """Chance of h = 0..4 hidden objects given visible objects and covered tiles [I] -> [I, 5]."""
    table = np.zeros((OBJECTS + 1, TILES + 1, OBJECTS + 1))
    for v, k, h in np.ndindex(table.shape):
        if 1 <= v + h <= OBJECTS:
            table[v, k, h] = comb(TILES - k, v) * comb(k, h) / comb(TILES, v + h)
    chances = table[visible, covered]
    return chances / chances.sum(1, keepdims=True)


def _fits(mentions: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Chance that each mention [C, 3] fits each object [I, 3], 0 or 1 unless it is hidden -> float64 [C, I]."""
    luck = ((1 / np.array([SHAPES, COLOURS, SIZES])) ** (mentions >= 0)).prod(1)
    agrees = [(told < 0)[:, None] | (told[:, None] == true) for told, true in zip(mentions.T, objects.T, strict=True)]
    return np.where(objects[:, 0] == HIDDEN, luck[:, None], np.logical_and.reduce(agrees))


def bayes_ceiling(dataset: ImageTextDataset, ks: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall that Bayes' rule reaches on one gallery of scenes, knowing the generator and every picture's factors.

    Text to image ranks pictures by the chance of the caption's facts given the picture; image to text ranks captions by
    the posterior chance that they tell of the picture, all pictures equally probable beforehand. Equal chances are ties
    in random order, of which the value is the exact expectation: what is missing to 100 is ambiguity of the captions.
    Limits: each query is seen on its own (assigning all captions of a gallery jointly may do better), and ranking
    captions one by one is best for k = 1 but does not spread its guesses for larger k.

    Returns ``i2t/R@1`` ..., ``t2i/R@1`` ..., ``i2t/R@mean``, ``t2i/R@mean`` and their mean ``r_mean``, in percent.
    ValueError: the data set has no known factors or more than one gallery.
    """
    views = _views(dataset)
    if dataset.galleries is not None and len(np.unique(dataset.galleries)) > 1:
        raise ValueError(f"{dataset.name}/{dataset.split} has several galleries; ask each of dataset.gallery_sets()")
    likelihood = caption_likelihood(views)
    posterior = _rounded(likelihood / likelihood.sum(1, keepdims=True))  # ties of t2i are the same: one sum a caption
    own = views.caption_image[:, None] == np.arange(len(dataset))
    values: dict[str, float] = {}
    for way, scores, positives in (("i2t", posterior.T, own.T), ("t2i", posterior, own)):
        recalls = expected_recall(scores, positives, ks)
        values |= {f"{way}/R@{k}": recall for k, recall in recalls.items()}
        values[f"{way}/R@mean"] = float(np.mean(list(recalls.values())))
    return values | {"r_mean": (values["i2t/R@mean"] + values["t2i/R@mean"]) / 2}


def expected_recall(scores: np.ndarray, positives: np.ndarray, ks: Sequence[int]) -> dict[int, float]:
    """Expected recall at k in percent where equal scores stand in random order; [Q, G] scores and bool positives.

    Only the positives with a query's best positive score matter: P of them stand among E equals, of which s fill the
    places up to k, so all are missed with the chance C(E - P, s) / C(E, s).
    """
    from scipy.stats import hypergeom

    best = np.where(positives, scores, -np.inf).max(1, keepdims=True)
    ahead, equals = (scores > best).sum(1), (scores == best).sum(1)
    hits = ((scores == best) & positives).sum(1)
    missed = {k: hypergeom.pmf(0, equals, hits, np.clip(k - ahead, 0, equals)) for k in ks}
    return {k: float(100 * (1 - chance).mean()) for k, chance in missed.items()}


def _rounded(values: np.ndarray) -> np.ndarray:
    """Values to twelve significant binary-scaled digits, so that what is equal by arithmetic compares equal."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa, 12), exponent)
