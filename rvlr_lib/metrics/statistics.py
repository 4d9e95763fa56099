"""Inference over seeds: confidence intervals, Holm's correction, equivalence tests, verdicts and their power.

The unit of analysis is the seed: a claim rests on one paired difference per seed. Needs SciPy, imported when called.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MAX_CLAIMS, ALPHA = 4, 0.05  # most claims in a family, and the family's chance of any false direction
CONFIDENCE = 0.95
VERDICTS = ("better", "better, below δ", "equivalent", "worse, below δ", "worse", "inconclusive")


@dataclass(frozen=True)
class Effect:
    """Mean of paired differences over seeds, in their unit."""

    mean: float
    low: float  # ends of the two-sided 95% t-interval
    high: float
    p: float  # two-sided, for "mean = 0", unadjusted
    sd: float
    seeds: int


def paired_effect(values) -> Effect:
    """Mean, Student's two-sided interval ``mean ± t sd / sqrt(n)`` and p value of ``[S]`` differences, one per seed.

    If all values are equal, the interval has width 0 and p is 0, or 1 if they are 0. ValueError for fewer than 2 seeds
    and for values that are not finite.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [S] of 2 or more seeds, got {values}")
    equal = bool((values == values[0]).all())  # a rounded mean would give a deviation of not quite 0
    mean, sd = (values[0], 0.0) if equal else (values.mean(), values.std(ddof=1))
    half_width = _half_width(sd, len(values), 1 - CONFIDENCE)
    p = float(mean == 0) if sd == 0 else 2 * t.sf(abs(mean) / (sd / np.sqrt(len(values))), len(values) - 1)
    return Effect(float(mean), float(mean - half_width), float(mean + half_width), float(p), float(sd), len(values))


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one claim; see :func:`verdicts`."""

    verdict: str  # one of VERDICTS
    effect: Effect
    low: float  # ends of the Holm-corrected two-sided interval
    high: float
    interval_90: tuple[float, float]  # must lie inside ±delta for equivalence
    delta: float  # the smallest difference that would matter


def verdicts(effects: Mapping[str, Effect], deltas: Mapping[str, float]) -> dict[str, Verdict]:
    """Decide up to four claims of the form "A is higher than B" jointly: claim -> verdict, in the given order.

    Better or worse: the Holm-corrected two-sided t-interval excludes 0. The ``j``-th smallest (from 0) of ``m`` p
    values gets the level ``1 − 0.05 / (m − j)``, up to the first interval that contains 0; the rest get its level.
    Equivalent: the 90% t-interval lies inside ±delta (two one-sided tests at 5%, uncorrected). Below δ: both hold.

    ``deltas`` are in the unit of the effects. ValueError for no claims or more than four, and for a delta that is
    missing, negative or infinite.
    """
    if not 1 <= len(effects) <= MAX_CLAIMS:
        raise ValueError(f"expected one to {MAX_CLAIMS} claims, got {len(effects)}")
    if wrong := [name for name in effects if not 0 <= deltas.get(name, -1) < np.inf]:
        raise ValueError(f"every claim needs a finite delta of 0 or more; without one: {', '.join(wrong)}")
    decided, tests = {}, len(effects)
    for name, effect in sorted(effects.items(), key=lambda item: item[1].p):
        half, half_90 = (_half_width(effect.sd, effect.seeds, share) for share in (ALPHA / tests, 0.10))
        low, high = effect.mean - half, effect.mean + half
        interval_90 = effect.mean - half_90, effect.mean + half_90
        small = max(-interval_90[0], interval_90[1]) < deltas[name]
        verdict = "equivalent" if small else "inconclusive"
        if low > 0 or high < 0:
            tests -= 1
            verdict = ("better" if low > 0 else "worse") + (", below δ" if small else "")
        decided[name] = Verdict(verdict, effect, low, high, interval_90, float(deltas[name]))
    return {name: decided[name] for name in effects}


def power(sd: float, seeds: int, delta: float, *, effect: float = 0.0, claims: int = 1) -> dict[str, float]:
    """Chance of each verdict on a claim whose paired differences are normal with mean ``effect`` and deviation ``sd``.

    The claim is assumed to come first in Holm's order among ``claims``, at the strictest level, ``0.05 / claims``.
    Exact up to quadrature over the observed deviation (1e-4). ValueError for arguments out of range.
    """
    from scipy.stats import chi2, norm

    if not (0 < sd < np.inf and seeds >= 2 and delta >= 0 and claims >= 1):
        raise ValueError(f"out of range: sd {sd}, seeds {seeds}, delta {delta}, claims {claims}")
    observed_sd = sd * np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, seeds - 1) / (seeds - 1))
    critical = _half_width(observed_sd, seeds, ALPHA / claims)  # a mean above is better, below −critical worse
    inside = np.maximum(delta - _half_width(observed_sd, seeds, 0.10), 0)  # a smaller |mean| is equivalent
    lesser, greater = np.minimum(critical, inside), np.maximum(critical, inside)
    edges = (greater, np.inf), (critical, inside), (-lesser, lesser), (-inside, -critical), (-np.inf, -greater)
    chances = {}
    for verdict, (low, high) in zip(VERDICTS, edges, strict=False):
        upper, lower = (norm.cdf(x, effect, sd / np.sqrt(seeds)) for x in (high, low))
        chances[verdict] = float(np.maximum(upper - lower, 0).mean())
    return chances | {"inconclusive": max(0.0, 1 - sum(chances.values()))}


def _half_width(sd, seeds: int, level: float):
    """Half the width of the two-sided t-interval that misses the mean with chance ``level``."""
    from scipy.stats import t

    return t.isf(level / 2, seeds - 1) * sd / np.sqrt(seeds)
