"""What a comparison over seeds allows to say: intervals, Holm's correction, equivalence, verdicts and their power.

The seed is the unit: queries of one run share its training, so they are averaged first (:func:`cluster_mean`) and a
claim rests on one paired difference a seed. Needs SciPy, imported when called.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_CLAIMS = 4
VERDICTS = ("better", "better, below δ", "equivalent", "worse, below δ", "worse", "inconclusive")


def cluster_mean(values, clusters) -> float:
    """Mean over clusters (say, images) of the mean within each, so that a cluster of many values weighs no more.

    ``values [Q]`` may hold NaN, which is left out; ``clusters [Q]`` are labels. NaN where nothing is left; ValueError
    where the two are no vectors of one length.

    >>> cluster_mean([1.0, 3.0, 8.0, float("nan")], ["cat", "cat", "dog", "dog"])
    5.0
    """
    values, clusters = np.asarray(values, dtype=np.float64), np.asarray(clusters)
    if values.ndim != 1 or values.shape != clusters.shape:
        raise ValueError(f"expected values [Q] and clusters [Q], got {values.shape} and {clusters.shape}")
    there = ~np.isnan(values)
    _, group = np.unique(clusters[there], return_inverse=True)
    if not len(group):
        return float("nan")
    return float(np.mean(np.bincount(group, weights=values[there]) / np.bincount(group)))


def paired_differences(a: Mapping[Any, float], b: Mapping[Any, float]) -> np.ndarray:
    """``a − b`` by seed, float64 ``[S]`` in the order of ``a``; ValueError unless both hold the same seeds.

    >>> paired_differences({0: 71.0, 1: 70.5}, {1: 70.0, 0: 70.0})
    array([1. , 0.5])
    """
    if not a or a.keys() != b.keys():
        only = [[key for key in x if key not in y] for x, y in ((a, b), (b, a))]
        raise ValueError(f"a paired comparison needs the same seeds on both sides; only in a: {only[0]}, b: {only[1]}")
    return np.array([float(a[key]) - float(b[key]) for key in a])


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences over seeds, in their unit."""

    mean: float
    low: float  # ends of the two-sided t-interval
    high: float
    p: float  # two-sided, of "mean = 0", not adjusted
    sd: float
    seeds: int


def paired_effect(values, confidence: float = 0.95) -> Effect:
    """Mean, Student's two-sided interval ``mean ± t sd / sqrt(n)`` and p value of one difference a seed.

    ``values [S]``; equal ones give an interval of width 0, and p is 0 unless they are 0. ValueError below 2 seeds, for
    values that are not finite and for a confidence outside 0 to 1.

    >>> paired_effect([1.0, 2.0, 3.0]).mean
    2.0
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected one finite value a seed [S], of at least 2 seeds, got {values}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    equal = bool((values == values[0]).all())  # their mean is rounded, so their deviation is not quite 0
    mean, sd = (values[0], 0.0) if equal else (values.mean(), values.std(ddof=1))
    half = _half_width(sd, len(values), 1 - confidence)
    p = float(mean == 0) if sd == 0 else 2 * t.sf(abs(mean) / (sd / np.sqrt(len(values))), len(values) - 1)
    return Effect(float(mean), float(mean - half), float(mean + half), float(p), float(sd), len(values))


def holm(p_values) -> np.ndarray:
    """P values ``[m]`` adjusted for a family of tests (Holm 1979): the ``j``-th smallest (from 0) times ``m − j``.

    None falls below its predecessor in that order, and none exceeds 1. Rejecting where the adjusted value is at most
    ``alpha`` keeps the chance of any false rejection at ``alpha``, however the tests depend on each other.

    >>> holm([0.01, 0.04, 0.02])
    array([0.03, 0.04, 0.04])
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"expected p values [m] from 0 to 1, got {p_values!r}")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1)
    return adjusted


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one claim; see :func:`verdicts`."""

    verdict: str  # one of VERDICTS
    effect: Effect
    low: float  # ends of the Holm-corrected two-sided interval
    high: float
    p_adjusted: float  # Holm's, two-sided
    within: tuple[float, float]  # the 90 % interval that must lie inside ±delta for equivalence
    delta: float  # the smallest difference that would matter


def verdicts(
    effects: Mapping[str, Any], deltas: Mapping[str, float] | float, alpha: float = 0.05
) -> dict[str, Verdict]:
    """Decide up to four claims "this is higher than that" together, each from one paired difference a seed.

    - **better**, **worse**: the Holm-corrected two-sided t-interval lies off 0. The ``j``-th smallest p value (from 0)
      of ``m`` gets the level ``1 − alpha / (m − j)``, up to the first interval that holds 0; its level serves for the
      rest, which then hold 0 too.
    - **equivalent**: the 90 % t-interval lies inside ±delta (two one-sided tests at 5 %, not corrected).
    - **better, below δ**, **worse, below δ**: both.
    - **inconclusive**: neither.

    Where nothing differs, some claim is called better in at most ``alpha / 2`` of all studies.

    Args:
        effects: claim -> :class:`Effect`, or its ``[S]`` differences.
        deltas: for all claims or for each, not negative, in the unit of the differences.
        alpha: above 0, below 1.

    Returns:
        claim -> verdict, in the order given. ValueError for no claim or more than four, a missing or negative delta.

    >>> found = verdicts({"recall": [2.0, 2.1, 1.9, 2.2, 1.8], "speed": [0.1, -0.1, 0.0, 0.1, -0.2]}, deltas=0.5)
    >>> [(claim, found[claim].verdict) for claim in found]
    [('recall', 'better'), ('speed', 'equivalent')]
    """
    if not 1 <= len(effects) <= MAX_CLAIMS:
        raise ValueError(f"one to {MAX_CLAIMS} claims can be decided together, got {len(effects)}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be between 0 and 1, got {alpha}")
    known = {name: x if isinstance(x, Effect) else paired_effect(x) for name, x in effects.items()}
    given = deltas if isinstance(deltas, Mapping) else dict.fromkeys(known, deltas)
    if wrong := [name for name in known if name not in given or not 0 <= given[name] < np.inf]:
        raise ValueError(f"every claim needs a finite delta, not negative; not so: {', '.join(map(str, wrong))}")
    adjusted = dict(zip(known, holm([effect.p for effect in known.values()]), strict=True))
    found, tests = {}, len(known)
    for name in sorted(known, key=lambda name: known[name].p):
        effect, delta = known[name], float(given[name])

        half, narrow = (_half_width(effect.sd, effect.seeds, share) for share in (alpha / tests, 0.10))
        low, high, within = effect.mean - half, effect.mean + half, (effect.mean - narrow, effect.mean + narrow)
        if low > 0 or high < 0:
            tests -= 1
        verdict = _word(low, high, -delta < within[0] and within[1] < delta)
        found[name] = Verdict(verdict, effect, low, high, float(adjusted[name]), within, delta)
    return {name: found[name] for name in known}


def _word(low: float, high: float, small: bool) -> str:
    if low > 0 or high < 0:
        return ("better" if low > 0 else "worse") + (", below δ" if small else "")
    return "equivalent" if small else "inconclusive"


def power(
    sd: float, seeds: int, delta: float, *, effect: float = 0.0, claims: int = 1, alpha: float = 0.05
) -> dict[str, float]:
    """Chance of each verdict on a claim whose paired differences are normal with deviation ``sd`` and mean ``effect``.

    Of a family of ``claims`` the claim is taken to come first in Holm's order, at ``alpha / claims``, the strictest.
    Exact but for a quadrature over the observed deviation (1e-4).

    >>> {name: round(chance, 2) for name, chance in power(1.5, 12, 1.0).items() if chance > 0.1}
    {'equivalent': 0.41, 'inconclusive': 0.54}
    """
    from scipy.stats import chi2, norm

    if not (0 < sd < np.inf and seeds >= 2 and delta >= 0 and claims >= 1 and 0 < alpha < 1):
        raise ValueError(f"out of range: sd {sd}, seeds {seeds}, delta {delta}, claims {claims}, alpha {alpha}")
    chances = (np.arange(4000) + 0.5) / 4000
    seen = sd * np.sqrt(chi2.ppf(chances, seeds - 1) / (seeds - 1))
    off = _half_width(seen, seeds, alpha / claims)  # beyond it the mean is better, below −off worse
    inside = np.maximum(delta - _half_width(seen, seeds, 0.10), 0)  # below it in size the mean is equivalent

    def between(low, high) -> float:
        upper, lower = (norm.cdf(x, effect, sd / np.sqrt(seeds)) for x in (high, low))
        return float(np.maximum(upper - lower, 0).mean())

    both, either = np.minimum(off, inside), np.maximum(off, inside)
    found = {
        "better": between(either, np.inf),
        "better, below δ": between(off, inside),
        "equivalent": between(-both, both),
        "worse, below δ": between(-inside, -off),
        "worse": between(-np.inf, -either),
    }
    return found | {"inconclusive": max(0.0, 1 - sum(found.values()))}


def _half_width(sd, seeds: int, level: float) -> Any:
    """Of the two-sided t-interval that misses with chance ``level``."""
    from scipy.stats import t

    return t.isf(level / 2, seeds - 1) * sd / np.sqrt(seeds)
