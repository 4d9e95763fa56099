from dataclasses import replace

import pytest

from rvlr_lib.disk import write_json
from rvlr_lib.study.plan import Claim, check_seal, load_plan, write_seal
from rvlr_lib.study.sweep import _Search

TRIAL = {"learning_rate": 1e-3, "strengths": {}}
CHOSEN = {"dials": {"image": {"data.image_visibility": 0.5}}, "epochs": 3}
CHOSEN["arms"] = {"matching_longer": {"recall": TRIAL, "structure": TRIAL, "r_mean": 50.0, "off": False}}


@pytest.fixture
def tuned(tmp_path):
    write_json(tmp_path / "results" / "tuning.json", {"chosen": CHOSEN})
    return tmp_path / "results"


@pytest.mark.parametrize(("name", "primary"), [("study", 4), ("followup", 3)])
def test_the_plans_of_the_checkout_are_valid(name, primary):
    plan = load_plan(name)
    assert plan.seeds >= 10
    assert sum(claim.primary for claim in plan.claims.values()) == primary
    assert not {*plan.tuning.seeds, *plan.regime_map.seeds} & set(range(plan.seeds))  # worlds of their own


def test_settings_follow_what_was_chosen(plan):
    settings = plan.settings("scenes", "image", 3, CHOSEN)
    assert (settings.seed, settings.world_seed, settings.stage2.epochs) == (3, 3, 3)
    assert settings.data.image_visibility == 0.5
    assert settings.arms["matching_longer"].learning_rate == 1e-3


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"arms": ["rvlx"]}, "unknown arm 'rvlx'"),
        ({"seeds": 1}, "two seeds or more"),
        ({"nonsense": 1}, "'nonsense': valid are preset, sets"),
        ({"dials": {"none": {"data.nope": 1}}}, "unknown dial point|data.nope"),
        ({"dials": {"text": {}, "image": {}}}, "unknown dial point 'none'"),
        ({"claims": {"x": {"text": "", "metric": "r_mean", "effect": "scenes:rvlr|dark", "primary": True}}}, "no such"),
        ({"claims": {"x": {"text": "", "metric": "r_mean", "effect": "rvlr - matching"}}}, "is no sum"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(write_plan, change, fault, refuses):
    refuses(fault, load_plan, write_plan(**change))


def test_a_seal_fits_until_claims_or_tuning_change_or_it_is_edited(plan, tuned, refuses):
    seal = write_seal(plan, tuned, "2026-01-01")
    assert check_seal(plan, tuned) == seal["sha256"]
    other = plan.claims | {"recall": Claim("other words", "r_mean", "scenes:rvlr|text - scenes:matching|text")}
    refuses("differs from what .* sealed, in claims", check_seal, replace(plan, claims=other), tuned)
    write_json(tuned / "tuning.json", {"chosen": CHOSEN | {"epochs": 4}})
    refuses("tuning.json differs", check_seal, plan, tuned)
    seal["parts"]["chosen"]["epochs"] = 4
    write_json(tuned / "seal.json", seal)
    refuses("was edited", check_seal, plan, tuned)


def test_a_seal_comes_before_the_seeds(plan, tuned, refuses):
    write_json(tuned / "scenes" / "seed-0.json", {})
    refuses("comes before", write_seal, plan, tuned, "2026-01-01")


def test_one_length_and_one_visibility_are_taken_as_they_are(write_plan):
    plan = load_plan(write_plan(tuning={"lengths": [3], "visibilities": [0.4]}))
    search = _Search(plan, runner=None)
    assert (search.strength(), search.length(["rvlr"])) == ((0.4, {}), (3, {}))
