from collections import Counter

import numpy as np
import pytest
from scipy import stats

from rvlr_lib.metrics import VERDICTS, paired_effect, power, verdicts
from rvlr_lib.study.plan import load_plan

rng = np.random.default_rng(0)
PLAN = load_plan()
SEEDS = PLAN.seeds


def test_an_effect_equals_scipy():
    for count in (2, 5, 40):
        values = rng.normal(1, 2, count)
        found = paired_effect(values)
        low, high = stats.t.interval(0.95, count - 1, values.mean(), stats.sem(values))
        p = stats.ttest_1samp(values, 0).pvalue
        assert list(vars(found).values()) == pytest.approx([values.mean(), low, high, p, values.std(ddof=1), count])
    for value, p in ((0.1, 0), (-0.1, 0), (0.0, 1)):
        assert list(vars(paired_effect([value] * 7)).values()) == [value, value, value, p, 0, 7]


def slow_holm(p):
    """P values times m − j in rising order, never below one before."""
    raised = np.minimum(1, np.sort(p) * np.arange(len(p), 0, -1))
    return np.maximum.accumulate(raised)[np.argsort(np.argsort(p))]


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
        found = verdicts(effects, delta)
        assert list(found) == names
        adjusted = slow_holm([stats.ttest_1samp(values[name], 0).pvalue for name in names])
        for name, p in zip(names, adjusted, strict=True):
            told, x = found[name], values[name]
            assert told.verdict == slow_verdict(x, delta[name], p)
            assert (told.low > 0 or told.high < 0) == (p < 0.05)  # interval and p value say the same
            assert told.within == pytest.approx(stats.t.interval(0.9, len(x) - 1, x.mean(), stats.sem(x)))
            assert told.effect == effects[name]
            seen[told.verdict] += 1
    assert seen.keys() == set(VERDICTS)


@pytest.mark.parametrize(("sd", "effect"), [(1.5, 0.0), (1.5, 1.0), (0.4, 0.5), (0.7, -0.6)])
def test_power_equals_the_simulation(sd, effect):
    draws, told = rng.normal(effect, sd, (20_000, SEEDS)), power(sd, SEEDS, 1.0, effect=effect)
    mean, error = draws.mean(axis=1), draws.std(axis=1, ddof=1) / np.sqrt(SEEDS)
    sure = abs(mean) > stats.t.isf(0.025, SEEDS - 1) * error
    small = abs(mean) + stats.t.isf(0.05, SEEDS - 1) * error < 1
    seen = [sure & (mean > 0) & ~small, sure & (mean > 0) & small, ~sure & small]
    seen += [sure & (mean < 0) & small, sure & (mean < 0) & ~small, ~sure & ~small]
    assert tuple(told) == VERDICTS
    assert list(told.values()) == pytest.approx([x.mean() for x in seen], abs=0.015)
    above = stats.nct.sf(stats.t.isf(0.025, SEEDS - 1), SEEDS - 1, effect * np.sqrt(SEEDS) / sd)  # exact
    assert told["better"] + told["better, below δ"] == pytest.approx(above, abs=1e-4)


def test_a_study_of_nothing_finds_something_better_at_most_once_in_forty():
    draws, false = np.random.default_rng(1), 0
    counts = {name: len(claim.parts) for name, claim in PLAN.claims.items() if claim.primary}
    for _ in range(2000):
        values = {name: map(paired_effect, draws.normal(0, 1, (count, SEEDS))) for name, count in counts.items()}
        weakest = {name: min(own, key=lambda effect: effect.mean / effect.sd) for name, own in values.items()}
        false += any("better" in own.verdict for own in verdicts(weakest, dict.fromkeys(weakest, 1.0)).values())
    assert false / 2000 <= 0.025
