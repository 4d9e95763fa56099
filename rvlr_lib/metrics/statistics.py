"""What a comparison over seeds allows to say: intervals, Holm's correction, verdicts, and how often they are wrong.

The seed is the unit: queries of one run share its training, so they are averaged first (:func:`cluster_mean`) and a
claim rests on one difference per seed. Needs SciPy, imported when called.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MAX_CLAIMS = 6


def cluster_mean(values, clusters) -> float:
    """Mean over clusters (say, images) of the mean within each, so that a cluster of many values weighs no more.

    Args:
        values: ``[Q]``; NaN is left out.
        clusters: ``[Q]``, a label for each value; a cluster of only NaN is left out.

    Returns:
        In the unit of ``values``; NaN where nothing is left.

    Raises:
        ValueError: not two vectors of one length.

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


def paired_differences(a: Mapping[Any, Any], b: Mapping[Any, Any], *, unit: str = "query") -> np.ndarray:
    """``a − b`` on the same seeds or queries, matched by key.

    Args:
        a: seed or query id -> number, or seed -> array ``[Q]`` of the same queries in the same order.
        b: likewise.
        unit: what a key is, for the error.

    Returns:
        float64 ``[S]``, or ``[S, Q]``, in the order of ``a``.

    Raises:
        ValueError: keys that only one side has, named; arrays of different shapes; nothing to compare.

    >>> paired_differences({0: 71.0, 1: 70.5}, {1: 70.0, 0: 70.0}, unit="seed")
    array([1. , 0.5])
    """
    alone = [[key for key in x if key not in y] for x, y in ((a, b), (b, a))]
    if any(alone):
        told = "; ".join(f"only in {name}: {_named(keys)}" for name, keys in zip("ab", alone, strict=True) if keys)
        raise ValueError(f"unequal {unit} sets in a paired test: {told}")
    if not a:
        raise ValueError(f"a paired test needs at least one {unit}")
    pairs = [(np.asarray(a[key], dtype=np.float64), np.asarray(b[key], dtype=np.float64)) for key in a]
    for key, (x, y) in zip(a, pairs, strict=True):
        if not x.shape == y.shape == pairs[0][0].shape:
            raise ValueError(f"unequal query sets in a paired test: {x.shape} and {y.shape} at {unit} {key!r}")
    return np.array([x - y for x, y in pairs])


def _named(keys: Sequence[Hashable]) -> str:
    return ", ".join(map(repr, keys[:10])) + (f" and {len(keys) - 10} more" if len(keys) > 10 else "")


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its confidence interval, all in the unit of the values."""

    mean: float
    low: float
    high: float
    seeds: int


def t_interval(values, confidence: float = 0.95) -> Interval:
    """Student's two-sided interval of the mean, ``mean ± t sd / sqrt(n)``; equal values give an interval of width 0.

    Args:
        values: ``[S]``, one a seed.
        confidence: between 0 and 1.

    Raises:
        ValueError: fewer than 2 seeds, values that are not finite, a confidence out of range.

    >>> t_interval([1.0, 2.0, 3.0]).mean
    2.0
    """
    values = _seed_values("the interval", values)
    if len(values) < 2:
        raise ValueError(f"an interval over seeds needs at least 2 seeds, got {len(values)}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    mean, error = _mean_and_error(values)
    half = _half_width(error, len(values), 1 - confidence)
    return Interval(float(mean), float(mean - half), float(mean + half), len(values))


def holm(p_values) -> np.ndarray:
    """P values adjusted for a family of tests (Holm 1979): the ``j``-th smallest (from 0) times ``m − j``.

    None falls below its predecessor in that order, and none exceeds 1. Rejecting where the adjusted value is below
    ``alpha`` keeps the chance of any false rejection at ``alpha`` at most, however the tests depend on each other.

    Args:
        p_values: ``[m]``.

    Returns:
        float64 ``[m]``, in the order given.

    Raises:
        ValueError: not a vector of values from 0 to 1.

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
    """What the seeds say about one claim; see :func:`verdicts`.

    Attributes:
        claim: its name.
        verdict: what may be said.
        mean: of the differences; NaN without seeds.
        low: end of the adjusted two-sided interval; NaN below 2 seeds.
        high: the other end.
        seeds: how many there are.
        p: one-sided, of "mean > 0", not adjusted; NaN below 2 seeds.
        p_adjusted: Holm's; a claim without verdict counts as 1.
        delta: the smallest difference that would matter.
        complete: whether all planned seeds are there.
    """

    claim: str
    verdict: Literal["holds", "does not hold", "inconclusive", "no verdict"]
    mean: float
    low: float
    high: float
    seeds: int
    p: float
    p_adjusted: float
    delta: float
    complete: bool


def verdicts(
    differences: Mapping[str, Sequence[float]],
    delta: Mapping[str, float] | float,
    alpha: float = 0.05,
    min_seeds: int = 5,
    planned_seeds: int = 10,
) -> dict[str, Verdict]:
    """Decide claims of the form "this is higher than that" from one difference per seed, all claims together.

    Holm's step-down over the ``m`` claims given: they are ordered by the p value of a one-sided t-test of "mean > 0",
    equal ones as given. The ``j``-th in that order (from 0) gets the two-sided t-interval of level
    ``1 − alpha / (m − j)``, and

    - **holds** if the interval lies above 0 and all earlier ones in the order hold,
    - else **does not hold** if the interval lies below the claim's ``delta``, the smallest difference that matters,
    - else **inconclusive**;
    - **no verdict** below ``min_seeds``: it is counted in ``m``, comes last in the order and blocks nobody.

    "Holds" is the same as ``p_adjusted < alpha / 2``, as the intervals are two-sided: where no claim is true, any of
    them holds in at most ``alpha / 2`` of all studies (:func:`false_holds` measures it). "Does not hold" has no such
    guarantee over all claims together. A claim that holds may still be smaller than its ``delta``: look at ``high``.
    Where all seeds give the same difference the interval has width 0, and p is 0 above 0, otherwise 1.
    A claim with fewer seeds than ``planned_seeds`` is judged all the same and marked by ``complete=False``. Claims may
    differ in their number of seeds.

    Args:
        differences: claim -> one difference per seed; one to six claims.
        delta: for all claims or for each, not negative, in the unit of the differences.
        alpha: above 0, below 1.
        min_seeds: below it no verdict; at least 2.
        planned_seeds: how many seeds make a claim complete.

    Returns:
        claim -> verdict, in the order given.

    Raises:
        ValueError: no claim or more than six, a difference that is not finite, a delta that is missing or negative,
            ``alpha`` or ``min_seeds`` out of range.

    >>> found = verdicts({"better": [2.0, 2.1, 1.9, 2.2, 1.8], "faster": [-1.0, -2.0, -1.5, -1.2, -1.8]}, delta=0.5)
    >>> [(claim, found[claim].verdict, found[claim].complete) for claim in found]
    [('better', 'holds', False), ('faster', 'does not hold', False)]
    """
    names = list(differences)
    if not 1 <= len(names) <= MAX_CLAIMS:
        raise ValueError(f"one to {MAX_CLAIMS} claims can be decided together, got {len(names)}")
    if not 0 < alpha < 1 or min_seeds < 2:
        raise ValueError(f"alpha must be between 0 and 1 and min_seeds at least 2, got {alpha} and {min_seeds}")
    deltas = _deltas(names, delta)
    values = [_seed_values(repr(name), differences[name]) for name in names]
    counts = np.array([len(x) for x in values])
    mean, error = np.array([_mean_and_error(x) for x in values]).T
    p = _one_sided_p(mean, error, counts)
    enough = counts >= min_seeds
    low, high, holds = _step_down(mean, error, counts, np.where(enough, p, np.inf), alpha)
    adjusted = holm(np.where(enough, p, 1.0))
    found = {}
    for i, name in enumerate(names):
        verdict: Literal["holds", "does not hold", "inconclusive", "no verdict"]
        if not enough[i]:
            verdict = "no verdict"
        elif holds[i]:
            verdict = "holds"
        else:
            verdict = "does not hold" if high[i] < deltas[i] else "inconclusive"
        found[name] = Verdict(
            claim=name,
            verdict=verdict,
            mean=float(mean[i]),
            low=float(low[i]),
            high=float(high[i]),
            seeds=int(counts[i]),
            p=float(p[i]),
            p_adjusted=float(adjusted[i]),
            delta=deltas[i],
            complete=bool(counts[i] >= planned_seeds),
        )
    return found


def _deltas(names: Sequence[str], delta: Mapping[str, float] | float) -> list[float]:
    given = delta if isinstance(delta, Mapping) else dict.fromkeys(names, delta)
    missing = [name for name in names if name not in given]
    if missing:
        raise ValueError(f"no delta for {_named(missing)}")
    deltas = [float(given[name]) for name in names]
    if not all(0 <= value < np.inf for value in deltas):
        raise ValueError(f"every delta must be finite and not negative, got {deltas}")
    return deltas


def _seed_values(what: str, values) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if found.ndim != 1 or not np.isfinite(found).all():
        raise ValueError(f"{what} needs one finite value per seed [S], got {values!r}")
    return found


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean ``[...]`` and standard error ``[...]`` of ``[..., S]``; NaN where there are too few, 0 for equal values."""
    count = values.shape[-1]
    nothing = np.full(values.shape[:-1], np.nan)
    if count < 2:
        return (values[..., 0] if count else nothing), nothing
    equal = (values == values[..., :1]).all(axis=-1)  # their mean is rounded, so their deviation is not quite 0
    mean = np.where(equal, values[..., 0], values.mean(axis=-1))
    return mean, np.where(equal, 0, values.std(axis=-1, ddof=1) / np.sqrt(count))


def _half_width(error, count, level) -> np.ndarray:
    """Of the two-sided t-interval that misses with chance ``level``."""
    from scipy.stats import t

    return np.asarray(t.isf(np.asarray(level) / 2, np.maximum(np.asarray(count) - 1, 1)) * error)


def _one_sided_p(mean: np.ndarray, error: np.ndarray, count) -> np.ndarray:
    """Of "mean > 0"; NaN below 2 seeds."""
    from scipy.stats import t

    ratio = np.where(mean > 0, np.inf, -np.inf)
    np.divide(mean, error, out=ratio, where=error != 0)
    return np.asarray(t.sf(ratio, np.maximum(np.asarray(count) - 1, 1)))


def _step_down(mean, error, count, p, alpha: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Low and high end of each claim's interval and whether it holds, ``[..., m]`` each."""
    order = np.argsort(p, axis=-1, kind="stable")
    place = np.argsort(order, axis=-1)
    half = _half_width(error, count, alpha / (np.shape(p)[-1] - place))
    above = np.take_along_axis(mean - half > 0, order, axis=-1)
    holds = np.take_along_axis(np.logical_and.accumulate(above, axis=-1), place, axis=-1)
    return mean - half, mean + half, holds


def false_holds(
    simulations: int = 2000,
    seeds: int = 10,
    claims: int = 6,
    *,
    queries: int = 1000,
    sd_seed: float = 1.0,
    sd_query: float = 30.0,
    alpha: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """How often the rule of :func:`verdicts` says "holds" in simulated studies in which nothing differs.

    The difference of a claim in a seed is what that seed's training does, ``N(0, sd_seed²)``, plus the mean of
    ``queries`` independent errors ``N(0, sd_query²)``; claims are independent.

    Returns:
        Shares from 0 to 1: ``family_wise`` (any claim holds; at most ``alpha``, and about half of it as intervals are
        two-sided), ``per_claim``, and ``error``, the standard error of the first.

    >>> false_holds(simulations=400)["family_wise"] <= 0.05
    True
    """
    values = _no_difference((simulations, claims, seeds), queries, sd_seed, sd_query, seed)
    mean, error = _mean_and_error(values)
    holds = _step_down(mean, error, seeds, _one_sided_p(mean, error, seeds), alpha)[2]
    any_holds = float(holds.any(axis=-1).mean())
    spread = float(np.sqrt(any_holds * (1 - any_holds) / simulations))
    return {"family_wise": any_holds, "per_claim": float(holds.mean()), "error": spread}


def bootstrap_false_holds(
    simulations: int = 2000,
    seeds: int = 5,
    *,
    queries: int = 1000,
    sd_seed: float = 1.0,
    sd_query: float = 30.0,
    alpha: float = 0.05,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """How often a percentile bootstrap over few seeds finds a difference in the studies of :func:`false_holds`.

    The seeds of one claim are drawn with replacement ``resamples`` times; the interval runs from the ``alpha / 2`` to
    the ``1 − alpha / 2`` quantile of their means. With few seeds it is far too narrow (of 5, it misses 0 three times as
    often as it should), which is why :func:`verdicts` does not use it.

    Returns:
        Shares from 0 to 1: ``excludes_zero`` (should be ``alpha``), ``above_zero`` (should be ``alpha / 2``), and
        ``error``, the standard error of the first.

    >>> bootstrap_false_holds(simulations=400)["excludes_zero"] > 0.1
    True
    """
    values = _no_difference((simulations, seeds), queries, sd_seed, sd_query, seed)
    rng = np.random.default_rng(seed + 1)
    weights = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=resamples) / seeds
    low, high = np.quantile(values @ weights.T, [alpha / 2, 1 - alpha / 2], axis=1)
    above, outside = float((low > 0).mean()), float(((low > 0) | (high < 0)).mean())
    spread = float(np.sqrt(outside * (1 - outside) / simulations))
    return {"excludes_zero": outside, "above_zero": above, "error": spread}


def _no_difference(shape: tuple[int, ...], queries: int, sd_seed: float, sd_query: float, seed: int) -> np.ndarray:
    """Differences ``[..., S]`` of two equal methods; the mean of the query errors is drawn at once."""
    if shape[-1] < 2 or min(shape) < 1 or queries < 1:
        raise ValueError(f"expected simulations, claims, queries and at least 2 seeds, got {shape}, {queries} queries")
    rng = np.random.default_rng(seed)
    return rng.normal(0, sd_seed, shape) + rng.normal(0, sd_query / np.sqrt(queries), shape)
