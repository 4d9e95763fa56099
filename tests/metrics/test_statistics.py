from collections import Counter
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rvlr_lib.metrics import VERDICTS, holm, paired_effect, power, verdicts

rng = np.random.default_rng(0)
NAN = float("nan")
SEEDS, CLAIMS = 12, 4  # of the study's plan


def test_an_effect_equals_scipy():
    for count, confidence in product((2, 5, 40), (0.5, 0.95, 0.999)):
        values = rng.normal(1, 2, count)
        found = paired_effect(values, confidence)
        low, high = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
        p = stats.ttest_1samp(values, 0).pvalue
        expected = (values.mean(), low, high, p, values.std(ddof=1), count)
        assert (found.mean, found.low, found.high, found.p, found.sd, found.seeds) == pytest.approx(expected)
    for value, p in ((0.1, 0), (-0.1, 0), (0.0, 1)):
        found = paired_effect([value] * 7)
        assert (found.mean, found.low, found.high, found.p) == (value, value, value, p)


def slow_holm(p):
    order = sorted(range(len(p)), key=lambda i: p[i])
    found, worst = [None] * len(p), 0.0
    for j, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - j) * p[i]))
        found[i] = worst
    return found


def test_holm_equals_the_loop():
    for count in (1, 2, 6, 20):
        for p in (rng.random(count), rng.random(count) ** 4, rng.integers(0, 3, count) / 4):
            assert holm(p) == pytest.approx(slow_holm(p))
    assert holm([]).shape == (0,)


def slow_verdict(values, delta, p_adjusted, alpha):
    """The rule in words: Holm's p value for the direction, scipy's two one-sided tests for the size."""
    upper = stats.ttest_1samp(values, delta, alternative="less").pvalue
    lower = stats.ttest_1samp(values, -delta, alternative="greater").pvalue
    small = max(upper, lower) < 0.05
    if p_adjusted < alpha:
        return ("better" if np.mean(values) > 0 else "worse") + (", below δ" if small else "")
    return "equivalent" if small else "inconclusive"


def test_verdicts_equal_the_rule_in_words():
    seen = Counter()
    for _ in range(200):
        names = [f"claim {i}" for i in range(rng.integers(1, 5))]
        spread = rng.choice([0.3, 1.0])
        values = {name: rng.normal(rng.choice([-1, -0.4, 0, 0.4, 1]), spread, rng.integers(3, 13)) for name in names}
        delta = {name: rng.choice([0.0, 0.7, 1.5]) for name in names}
        alpha = rng.choice([0.01, 0.05, 0.2])
        found = verdicts(values, delta, alpha)
        assert list(found) == names
        adjusted = slow_holm([stats.ttest_1samp(values[name], 0).pvalue for name in names])
        for name, p in zip(names, adjusted, strict=True):
            told = found[name]
            assert told.verdict == slow_verdict(values[name], delta[name], p, alpha)
            assert told.p_adjusted == pytest.approx(p)
            assert (told.low > 0 or told.high < 0) == (p < alpha)  # interval and p value say the same
            assert told.within == pytest.approx((lambda e: (e.low, e.high))(paired_effect(values[name], 0.9)))
            assert told.effect == paired_effect(values[name])
            seen[told.verdict] += 1
        assert verdicts({name: paired_effect(x) for name, x in values.items()}, delta, alpha) == found
    assert seen.keys() == set(VERDICTS)


@pytest.mark.parametrize(("sd", "effect"), [(1.5, 0.0), (1.5, 1.0), (0.4, 0.5), (0.7, -0.6)])
def test_power_equals_the_simulation(sd, effect):
    draws, told = rng.normal(effect, sd, (20_000, SEEDS)), power(sd, SEEDS, 1.0, effect=effect)
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    sure, small = (
        abs(mean) > stats.t.isf(0.025, SEEDS - 1) * error,
        abs(mean) + stats.t.isf(0.05, SEEDS - 1) * error < 1,
    )
    seen = [sure & (mean > 0) & ~small, sure & (mean > 0) & small, ~sure & small]
    seen += [sure & (mean < 0) & small, sure & (mean < 0) & ~small, ~sure & ~small]
    assert tuple(told) == VERDICTS
    assert list(told.values()) == pytest.approx([x.mean() for x in seen], abs=0.015)
    above = stats.nct.sf(stats.t.isf(0.025, SEEDS - 1), SEEDS - 1, effect * np.sqrt(SEEDS) / sd)  # exact
    assert told["better"] + told["better, below δ"] == pytest.approx(above, abs=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: paired_effect([1.0]), "2 or more seeds"),
        (lambda: paired_effect([1.0, NAN]), "finite"),
        (lambda: paired_effect([1.0, 2.0], 95), "confidence"),
        (lambda: holm([0.1, NAN]), "from 0 to 1"),
        (lambda: verdicts({}, 1.0), "one to 4 claims"),
        (lambda: verdicts({str(i): [1.0, 2.0] for i in range(5)}, 1.0), "got 5"),
        (lambda: verdicts({"a": [1.0, 2.0], "b": [1.0, 2.0]}, {"a": 1.0}), "not so: b"),
        (lambda: verdicts({"a": [1.0, 2.0]}, -1.0), "not negative"),
        (lambda: verdicts({"a": [1.0, 2.0]}, NAN), "finite"),
        (lambda: verdicts({"a": [1.0, 2.0]}, 1.0, alpha=5), "alpha"),
        (lambda: power(0.0, 12, 1.0), "sd 0.0"),
        (lambda: power(1.5, 1, 1.0), "seeds 1"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
