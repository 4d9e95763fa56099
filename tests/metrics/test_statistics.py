from collections import Counter

import numpy as np
import pytest
from scipy import stats

from rvlr_lib.metrics import VERDICTS, paired_effect, power, verdicts

rng = np.random.default_rng(0)
SEEDS = 10


def test_an_effect_equals_scipy():
    for count in (2, 5, 40):
        values = rng.normal(1, 2, count)
        effect = paired_effect(values)
        low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        p = stats.ttest_1samp(values, 0).pvalue
        assert list(vars(effect).values()) == pytest.approx([values.mean(), low, high, p, values.std(ddof=1), count])
    for value, p in ((0.1, 0), (-0.1, 0), (0.0, 1)):
        assert list(vars(paired_effect([value] * 7)).values()) == [value, value, value, p, 0, 7]


def slow_holm(p):
    """P values times m − j in ascending order, made monotone."""
    scaled = np.minimum(1, np.sort(p) * np.arange(len(p), 0, -1))
    return np.maximum.accumulate(scaled)[np.argsort(np.argsort(p))]


def slow_verdict(values, delta, p_adjusted):
    """The rule in words: Holm's p value for the direction, scipy's two one-sided tests for the size."""
    upper = stats.ttest_1samp(values, delta, alternative="less").pvalue
    lower = stats.ttest_1samp(values, -delta, alternative="greater").pvalue
    small = max(upper, lower) < 0.05
    if p_adjusted < 0.05:
        return ("better" if np.mean(values) > 0 else "worse") + (", below δ" if small else "")
    return "equivalent" if small else "inconclusive"


def test_verdicts_equal_the_rule_in_words():
    seen = Counter()
    for _ in range(200):
        names = [f"claim {i}" for i in range(rng.integers(1, 5))]
        spread = rng.choice([0.3, 1.0])
        values = {name: rng.normal(rng.choice([-1, -0.4, 0, 0.4, 1]), spread, rng.integers(3, 13)) for name in names}
        delta = {name: rng.choice([0.0, 0.7, 1.5]) for name in names}
        effects = {name: paired_effect(x) for name, x in values.items()}
        decided = verdicts(effects, delta)
        assert list(decided) == names
        adjusted = slow_holm([stats.ttest_1samp(values[name], 0).pvalue for name in names])
        for name, p in zip(names, adjusted, strict=True):
            claim, x = decided[name], values[name]
            assert claim.verdict == slow_verdict(x, delta[name], p)
            assert (claim.low > 0 or claim.high < 0) == (p < 0.05)  # interval and p value agree
            assert claim.interval_90 == pytest.approx(stats.t.interval(0.9, len(x) - 1, x.mean(), stats.sem(x)))
            assert claim.effect == effects[name]
            seen[claim.verdict] += 1
    assert seen.keys() == set(VERDICTS)


@pytest.mark.parametrize(("sd", "effect"), [(1.5, 0.0), (1.5, 1.0), (0.4, 0.5), (0.7, -0.6)])
def test_power_equals_the_simulation(sd, effect):
    draws, chances = rng.normal(effect, sd, (20_000, SEEDS)), power(sd, SEEDS, 1.0, effect=effect)
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    decided = abs(mean) > stats.t.isf(0.025, SEEDS - 1) * error
    small = abs(mean) + stats.t.isf(0.05, SEEDS - 1) * error < 1
    seen = [decided & (mean > 0) & ~small, decided & (mean > 0) & small, ~decided & small]
    seen += [decided & (mean < 0) & small, decided & (mean < 0) & ~small, ~decided & ~small]
    assert tuple(chances) == VERDICTS
    assert list(chances.values()) == pytest.approx([x.mean() for x in seen], abs=0.015)
    above = stats.nct.sf(stats.t.isf(0.025, SEEDS - 1), SEEDS - 1, effect * np.sqrt(SEEDS) / sd)  # exact
    assert chances["better"] + chances["better, below δ"] == pytest.approx(above, abs=1e-4)
