import numpy as np
import pytest
from scipy.stats import ttest_1samp

from rvlr_lib.config import load_settings
from rvlr_lib.losses import DISTANCES
from rvlr_lib.report import fidelity
from rvlr_lib.study.ablation import OFFICIAL_RATE_SUM, differences, drift_multiplier, switches


def rows_of(gains, metric="r_mean"):
    rows = []
    for seed, gain in enumerate(gains):
        rows.append({"switch": "corrected", "group": "reference", "seed": seed, "metric": metric, "value": 50.0 + seed})
        rows.append({"switch": "x", "group": "switch", "seed": seed, "metric": metric, "value": 50.0 + seed + gain})
    return rows


def test_every_switch_changes_one_thing_that_the_settings_know():
    found = switches()
    for switch in found.values():
        load_settings("corrected", overrides=switch.overrides)
    assert {switch.row for switch in found.values()} == {0, 1, 2, 3, 4, 5, 6, 24}
    assert len([s for s in found.values() if s.group == "distance"]) == len(DISTANCES) - 1 == 6
    weights = [s.overrides["method.fusion_weight"] for s in found.values() if s.group == "fusion weight"]
    assert weights == [0.0, 0.5, 1.0]


def test_differences_agree_with_a_paired_t_interval():
    gains = np.random.default_rng(0).normal(1.0, 1.0, 7)
    (found,) = differences(rows_of(gains), "corrected")
    interval = ttest_1samp(gains, 0.0).confidence_interval(0.95)
    assert found["difference"] == pytest.approx(gains.mean())
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("gains", "reading"),
    [([9.0], "not decided"), ([9.0, 9.1, 9.0, 9.1], "not decided"), ([9.0, 9.1, 9.0, 9.1, 9.0], "higher"),
     ([-9.0, -9.1, -9.0, -9.1, -9.0], "lower"), ([9.0, -9.0, 9.0, -9.0, 1.0], "not decided")],
)  # fmt: skip
def test_nothing_is_read_off_few_or_scattered_seeds(gains, reading):
    (found,) = differences(rows_of(gains), "corrected")
    assert found["reading"] == reading
    assert np.isnan(found["low"]) == (len(gains) == 1)


def test_seeds_without_a_partner_are_left_out():
    rows = rows_of([1.0, 2.0])
    rows.append({"switch": "x", "group": "switch", "seed": 9, "metric": "r_mean", "value": 1000.0})
    assert differences(rows, "corrected")[0]["difference"] == pytest.approx(1.5)


def test_the_drift_multiplier_matches_the_official_sum_of_rates():
    settings = load_settings("scenes")
    steps = 200
    multiplier = drift_multiplier(settings, steps)
    assert multiplier * settings.stage2.learning_rate * steps / 2 == pytest.approx(OFFICIAL_RATE_SUM)


def test_the_table_has_all_33_rows_and_each_a_switch_or_a_reason():
    assert [row.number for row in fidelity.ROWS] == list(range(1, 34))
    known = load_settings("official").method.__dataclass_fields__
    for row in fidelity.ROWS:
        assert bool(row.switches) != bool(row.why), row.number
        assert set(row.switches) <= set(known)
    named = {name for row in fidelity.ROWS for name in row.switches}
    official, corrected = load_settings("official").method, load_settings("corrected").method
    assert {name for name in known if getattr(official, name) != getattr(corrected, name)} <= named


def test_what_was_measured_stands_in_its_row():
    results = {
        "metrics": {"row 11: t2it transposed rvlr | t2it/NDCG@10": -1.25, "drift as it is | r_mean": 3.0},
        "tables": {"training_switches": [
            {"switch": "teacher_terms", "metric": "r_mean", "difference": 0.5, "low": None, "high": None, "seeds": 1,
             "reading": "not decided"}]},
    }  # fmt: skip
    found = fidelity.measured(results)
    assert found == {1: "teacher_terms: r_mean +0.5, 1 seed(s), not decided", 11: "t2it/NDCG@10 of rvlr -1.2"}
    lines = fidelity.table(found).splitlines()
    assert "not decided" in lines[2]
    assert lines[3].endswith("| – |")
