"""What a comparison over seeds allows to say: intervals, Holm's correction, equivalence, verdicts and their power.

The seed is the unit: a claim rests on one paired difference a seed. Needs SciPy, imported when called.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MAX_CLAIMS, ALPHA = 4, 0.05  # a family of claims, and its chance of any false direction
CONFIDENCE = 0.95
VERDICTS = ("better", "better, below δ", "equivalent", "worse, below δ", "worse", "inconclusive")


@dataclass(frozen=True)
class Effect:
    """A mean of paired differences over seeds, in their unit."""

    mean: float
    low: float  # ends of the two-sided 95 % t-interval
    high: float
    p: float  # two-sided, of "mean = 0", not adjusted
    sd: float
    seeds: int


def paired_effect(values) -> Effect:
    """Mean, Student's two-sided interval ``mean ± t sd / sqrt(n)`` and p value of one difference a seed, ``[S]``.

    Equal values give an interval of width 0, and p is 0 unless they are 0. ValueError below 2 seeds and for values that
    are not finite.
    """
    from scipy.stats import t

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values [S] of 2 or more seeds, got {values}")
    equal = bool((values == values[0]).all())  # their mean is rounded, so their deviation is not quite 0
    mean, sd = (values[0], 0.0) if equal else (values.mean(), values.std(ddof=1))
    half = _half_width(sd, len(values), 1 - CONFIDENCE)
    p = float(mean == 0) if sd == 0 else 2 * t.sf(abs(mean) / (sd / np.sqrt(len(values))), len(values) - 1)
    return Effect(float(mean), float(mean - half), float(mean + half), float(p), float(sd), len(values))


@dataclass(frozen=True)
class Verdict:
    """What the seeds say about one claim; see :func:`verdicts`."""

    verdict: str  # one of VERDICTS
    effect: Effect
    low: float  # ends of the Holm-corrected two-sided interval
    high: float
    within: tuple[float, float]  # the 90 % interval that must lie inside ±delta for equivalence
    delta: float  # the smallest difference that would matter


def verdicts(effects: Mapping[str, Effect], deltas: Mapping[str, float]) -> dict[str, Verdict]:
    """Decide up to four claims "this is higher than that" together: claim -> verdict, in the order given.

    Better or worse: the Holm-corrected two-sided t-interval lies off 0. The ``j``-th smallest p value (from 0) of ``m``
    gets the level ``1 − 0.05 / (m − j)``, up to the first interval that holds 0; its level serves for the rest.
    Equivalent: the 90 % t-interval lies inside ±delta (two one-sided tests at 5 %, not corrected). Below δ: both.

    ``deltas`` are in the unit of the effects. ValueError for no claim or more than four, and a delta that is missing,
    negative or infinite.
    """
    if not 1 <= len(effects) <= MAX_CLAIMS:
        raise ValueError(f"expected one to {MAX_CLAIMS} claims, got {len(effects)}")
    if wrong := [name for name in effects if not 0 <= deltas.get(name, -1) < np.inf]:
        raise ValueError(f"every claim needs a finite delta, not negative; not so: {', '.join(wrong)}")
    found, tests = {}, len(effects)
    for name, effect in sorted(effects.items(), key=lambda item: item[1].p):
        half, narrow = (_half_width(effect.sd, effect.seeds, share) for share in (ALPHA / tests, 0.10))
        low, high, within = effect.mean - half, effect.mean + half, (effect.mean - narrow, effect.mean + narrow)
        small = max(-within[0], within[1]) < deltas[name]
        word = "equivalent" if small else "inconclusive"
        if low > 0 or high < 0:
            tests -= 1
            word = ("better" if low > 0 else "worse") + (", below δ" if small else "")
        found[name] = Verdict(word, effect, low, high, within, float(deltas[name]))
    return {name: found[name] for name in effects}


def power(sd: float, seeds: int, delta: float, *, effect: float = 0.0, claims: int = 1) -> dict[str, float]:
    """Chance of each verdict on a claim whose paired differences are normal with deviation ``sd`` and mean ``effect``.

    Of a family of ``claims`` the claim is taken to come first in Holm's order, at ``0.05 / claims``, the strictest.
    Exact but for a quadrature over the observed deviation (1e-4).
    """
    from scipy.stats import chi2, norm

    if not (0 < sd < np.inf and seeds >= 2 and delta >= 0 and claims >= 1):
        raise ValueError(f"out of range: sd {sd}, seeds {seeds}, delta {delta}, claims {claims}")
    seen = sd * np.sqrt(chi2.ppf((np.arange(4000) + 0.5) / 4000, seeds - 1) / (seeds - 1))
    off = _half_width(seen, seeds, ALPHA / claims)  # beyond it the mean is better, below −off worse
    inside = np.maximum(delta - _half_width(seen, seeds, 0.10), 0)  # below it in size the mean is equivalent
    both, either = np.minimum(off, inside), np.maximum(off, inside)
    edges = (either, np.inf), (off, inside), (-both, both), (-inside, -off), (-np.inf, -either)
    found = {}
    for verdict, (low, high) in zip(VERDICTS, edges, strict=False):
        upper, lower = (norm.cdf(x, effect, sd / np.sqrt(seeds)) for x in (high, low))
        found[verdict] = float(np.maximum(upper - lower, 0).mean())
    return found | {"inconclusive": max(0.0, 1 - sum(found.values()))}


def _half_width(sd, seeds: int, level: float):
    """Of the two-sided t-interval that misses with chance ``level``."""
    from scipy.stats import t

    return t.isf(level / 2, seeds - 1) * sd / np.sqrt(seeds)
