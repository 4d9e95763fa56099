import subprocess
import sys
from collections import defaultdict
from dataclasses import asdict, replace
from itertools import product

import numpy as np
import pytest
from scipy import stats

from rvlr_lib.metrics import (
    Interval,
    bootstrap_false_holds,
    cluster_mean,
    false_holds,
    holm,
    paired_differences,
    t_interval,
    verdicts,
)
from rvlr_lib.metrics import statistics as module

rng = np.random.default_rng(0)
NAN = float("nan")


def slow_cluster_mean(values, clusters):
    groups = defaultdict(list)
    for value, cluster in zip(values, clusters, strict=True):
        if value == value:
            groups[cluster].append(value)
    means = [sum(group) / len(group) for group in groups.values()]
    return sum(means) / len(means)


def test_cluster_mean_equals_the_loop():
    values, clusters = rng.normal(size=200), rng.integers(0, 30, 200) * 7 - 50
    values[rng.random(200) < 0.3] = NAN
    values[clusters == clusters[0]] = NAN
    assert cluster_mean(values, clusters) == pytest.approx(slow_cluster_mean(values, clusters))
    names = [f"image {i}" for i in clusters]
    assert cluster_mean(list(values), names) == pytest.approx(slow_cluster_mean(values, names))
    assert cluster_mean(values, np.arange(200)) == pytest.approx(np.nanmean(values))


def test_cluster_mean_of_nothing_is_nan():
    assert np.isnan(cluster_mean([NAN, NAN], [0, 1]))
    assert np.isnan(cluster_mean([], []))


def test_paired_differences_match_by_key():
    a, b = {3: 1.0, 1: 5.0}, {1: 2.0, 3: 0.5}
    assert paired_differences(a, b).tolist() == [0.5, 3.0]
    assert paired_differences(b, a).tolist() == [-3.0, -0.5]
    queries = paired_differences({0: [1, 2, NAN], 1: [4, 4, 4]}, {1: [1, 1, 1], 0: [0, 0, 0]})
    np.testing.assert_array_equal(queries, [[1, 2, NAN], [3, 3, 3]])


def test_t_interval_equals_scipy():
    for count, confidence in product((2, 5, 40), (0.5, 0.95, 0.999)):
        values = rng.normal(3, 2, count)
        found = t_interval(values, confidence)
        low, high = stats.t.interval(confidence, count - 1, values.mean(), stats.sem(values))
        assert asdict(found) == pytest.approx({"mean": values.mean(), "low": low, "high": high, "seeds": count})
    assert t_interval([0.1] * 7) == Interval(0.1, 0.1, 0.1, 7)


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


def slow_verdicts(differences, delta, alpha, min_seeds):
    """The rule as its docstring words it, one claim after the other."""
    p = {}
    for claim, values in differences.items():
        p[claim] = stats.ttest_1samp(values, 0, alternative="greater").pvalue
    judged = sorted((c for c in p if len(differences[c]) >= min_seeds), key=p.get)
    rest = [c for c in p if c not in judged]
    found, so_far = {}, True
    for j, claim in enumerate(judged + rest):
        values = differences[claim]
        low, high = stats.t.interval(
            1 - alpha / (len(p) - j), len(values) - 1, loc=np.mean(values), scale=stats.sem(values)
        )
        so_far = so_far and low > 0
        if claim in rest:
            verdict = "no verdict"
        elif so_far:
            verdict = "holds"
        else:
            verdict = "does not hold" if high < delta[claim] else "inconclusive"
        found[claim] = {"verdict": verdict, "low": low, "high": high, "p": p[claim], "seeds": len(values)}
    return found


def test_verdicts_equal_the_rule_in_words():
    seen = set()
    for _ in range(150):
        names = [f"claim {i}" for i in range(rng.integers(1, 7))]
        differences = {name: rng.normal(rng.choice([-1, 0, 0.5, 1, 2]), 1, rng.integers(3, 12)) for name in names}
        delta = {name: rng.choice([0.0, 0.5, 1.5]) for name in names}
        alpha = rng.choice([0.01, 0.05, 0.2])
        found = verdicts(differences, delta, alpha)
        expected = slow_verdicts(differences, delta, alpha, 5)
        assert list(found) == names
        for name in names:
            told = asdict(found[name])
            assert {key: told[key] for key in expected[name]} == pytest.approx(expected[name])
            assert told["mean"] == pytest.approx(np.mean(differences[name]))
            assert (told["claim"], told["delta"]) == (name, delta[name])
            assert told["complete"] == (len(differences[name]) >= 10)
            # The verdict says the same as the adjusted p value.
            assert (told["verdict"] == "holds") == (told["p_adjusted"] < alpha / 2)
            seen.add(told["verdict"])
        counted = [found[name].p if found[name].seeds >= 5 else 1 for name in names]
        assert [found[name].p_adjusted for name in names] == pytest.approx(slow_holm(counted))
    assert seen == {"holds", "does not hold", "inconclusive", "no verdict"}


def test_an_earlier_claim_that_does_not_hold_stops_the_later_ones():
    noise = np.array([-1.5, -1, -0.5, 0, 0, 0, 0, 0.5, 1, 1.5])
    t = {"first": 2.5, "second": 2.45}  # alone each is above t(0.975, 9) = 2.26, together the first needs 2.69
    differences = {name: noise + ratio * stats.sem(noise) for name, ratio in t.items()}
    assert {name: verdicts({name: x}, 0.0)[name].verdict for name, x in differences.items()} == dict.fromkeys(
        t, "holds"
    )
    found = verdicts(differences, 0.0)
    assert found["first"].low < 0 < found["second"].low
    assert {found[name].verdict for name in t} == {"inconclusive"}


def test_equal_differences_have_intervals_of_no_width():
    found = verdicts({"up": [0.1] * 7, "none": [0.0] * 7, "down": [-0.1] * 7}, delta=0.05)
    assert [v.verdict for v in found.values()] == ["holds", "does not hold", "does not hold"]
    assert [(v.mean, v.low, v.high, v.p) for v in found.values()] == [
        (0.1, 0.1, 0.1, 0),
        (0, 0, 0, 1),
        (-0.1, -0.1, -0.1, 1),
    ]
    assert verdicts({"none": [0.0] * 7}, delta=0.0)["none"].verdict == "inconclusive"


def test_few_seeds_give_no_verdict_and_block_nobody():
    sure = [2.0, 2.1, 1.9, 2.2, 1.8]
    found = verdicts({"four": [5.0, 5.1, 5.2, 5.1], "five": sure, "one": [3.0], "none": []}, delta=1.0)
    assert [v.verdict for v in found.values()] == ["no verdict", "holds", "no verdict", "no verdict"]
    assert found["four"].low < 5.1 < found["four"].high
    assert found["four"].p < found["five"].p
    assert found["four"].p_adjusted == 1
    assert (found["one"].mean, found["one"].seeds) == (3, 1)
    assert np.isnan([found["one"].low, found["one"].high, found["one"].p, found["none"].mean]).all()
    assert found["five"].p_adjusted == pytest.approx(4 * found["five"].p)  # all four count
    assert verdicts({"four": [5.0, 5.1, 5.2, 5.1]}, 1.0, min_seeds=4)["four"].verdict == "holds"


def test_planned_seeds_mark_a_claim_as_complete():
    values = rng.normal(size=7)
    few, enough = (verdicts({"x": values}, 1.0, planned_seeds=planned)["x"] for planned in (8, 7))
    assert (few.complete, enough.complete) == (False, True)
    assert few == replace(enough, complete=False)


def test_simulated_studies_follow_the_same_rule():
    values = rng.normal(0.8, 1, size=(100, 4, 6))
    mean, error = module._mean_and_error(values)
    holds = module._step_down(mean, error, 6, module._one_sided_p(mean, error, 6), 0.05)[2]
    expected = [[v.verdict == "holds" for v in verdicts(dict(enumerate(study)), 0.0).values()] for study in values]
    assert holds.tolist() == expected
    assert 0.1 < holds.mean() < 0.9


def test_verdicts_rarely_hold_where_nothing_differs():
    for seeds, claims in ((10, 6), (5, 6), (10, 1)):
        rates = false_holds(seeds=seeds, claims=claims)
        assert 0.01 < rates["family_wise"] <= 0.05
        assert rates["family_wise"] == pytest.approx(0.025, abs=4 * rates["error"])  # one side of alpha
        assert rates["per_claim"] == pytest.approx(rates["family_wise"] / claims, rel=0.2)


def slow_bootstrap(values):
    """Over every possible resample."""
    means = [np.mean(drawn) for drawn in product(values, repeat=len(values))]
    low, high = np.quantile(means, [0.025, 0.975])
    return low > 0 or high < 0


def test_bootstrap_of_few_seeds_finds_differences_where_there_are_none():
    rates = bootstrap_false_holds()
    assert rates["excludes_zero"] > 0.10
    assert rates["excludes_zero"] == pytest.approx(0.16, abs=4 * rates["error"])
    assert rates["above_zero"] == pytest.approx(rates["excludes_zero"] / 2, rel=0.2)
    assert bootstrap_false_holds(seeds=40)["excludes_zero"] < 0.08
    slow = np.mean([slow_bootstrap(values) for values in rng.normal(size=(200, 4))])
    four = bootstrap_false_holds(seeds=4)
    assert four["excludes_zero"] == pytest.approx(slow, abs=4 * np.sqrt(slow * (1 - slow) / 200))


def test_simulations_scale_with_both_noises():
    calm = module._no_difference((2000, 3), 100, 0.0, 5.0, seed=0)
    assert calm.std() == pytest.approx(0.5, rel=0.05)
    assert module._no_difference((2000, 3), 100, 2.0, 5.0, 0).std() == pytest.approx(np.hypot(2, 0.5), rel=0.05)
    assert false_holds(100, seed=1) == false_holds(100, seed=1)


def test_scipy_waits_until_it_is_needed():
    code = "import sys, rvlr_lib.metrics; print('scipy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cluster_mean([1.0, 2.0], [0]), r"\(2,\) and \(1,\)"),
        (lambda: cluster_mean([[1.0]], [[0]]), r"values \[Q\]"),
        (lambda: paired_differences({0: 1.0, 7: 1.0}, {0: 1.0}), "unequal query sets in a paired test: only in a: 7"),
        (lambda: paired_differences({0: 1.0}, {0: 1.0, "x": 1.0}, unit="seed"), "unequal seed sets .* only in b: 'x'"),
        (lambda: paired_differences(dict.fromkeys(range(14), 1.0), {}), "9 and 4 more"),
        (lambda: paired_differences({}, {}), "at least one query"),
        (lambda: paired_differences({5: [1.0, 2.0]}, {5: [1.0]}), r"unequal query sets .*\(2,\) and \(1,\) at query 5"),
        (lambda: paired_differences({0: [1.0], 1: [1.0, 2.0]}, {0: [1.0], 1: [1.0, 2.0]}), "at query 1"),
        (lambda: t_interval([1.0]), "at least 2 seeds, got 1"),
        (lambda: t_interval([1.0, NAN]), "finite"),
        (lambda: t_interval([1.0, 2.0], 95), "confidence"),
        (lambda: holm([0.1, NAN]), "from 0 to 1"),
        (lambda: holm([1.1]), "from 0 to 1"),
        (lambda: verdicts({}, 1.0), "one to 6 claims"),
        (lambda: verdicts({str(i): [1.0] for i in range(7)}, 1.0), "got 7"),
        (lambda: verdicts({"a": [1.0, np.inf]}, 1.0), "'a' needs one finite value"),
        (lambda: verdicts({"a": [1.0], "b": [1.0]}, {"a": 1.0}), "no delta for 'b'"),
        (lambda: verdicts({"a": [1.0]}, -1.0), "not negative"),
        (lambda: verdicts({"a": [1.0]}, NAN), "finite"),
        (lambda: verdicts({"a": [1.0]}, 1.0, alpha=5), "alpha"),
        (lambda: verdicts({"a": [1.0]}, 1.0, min_seeds=1), "min_seeds"),
        (lambda: false_holds(seeds=1), "at least 2 seeds"),
        (lambda: bootstrap_false_holds(seeds=1), "at least 2 seeds"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call()
