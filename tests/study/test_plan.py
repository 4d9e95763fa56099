import dataclasses

import pytest
import yaml

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.study.plan import Claim, check_seal, load_plan, profile_plan, write_seal

TRIAL = {"learning_rate": 1e-3, "strengths": {}}
CHOSEN = {
    "arms": {"matching_longer": {"recall": TRIAL, "structure": TRIAL, "r_mean": 50.0, "off": False}},
    "dials": {"image": {"data.image_visibility": 0.5}},
    "epochs": 3,
}


@pytest.fixture
def tuned(tmp_path):
    write_json(tmp_path / "results" / "tuning.json", {"chosen": CHOSEN})
    return tmp_path / "results"


def test_the_plan_of_the_checkout_is_valid():
    plan = profile_plan("study")
    assert plan.seeds >= 10
    assert sum(claim.primary for claim in plan.claims.values()) == 4
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
        ({"claims": {"x": {"text": "", "metric": "r_mean", "effect": "scenes:rvlr|dark", "primary": True}}}, "no such"),
    ],
)
def test_a_wrong_plan_is_refused_by_name(plan_file, change, fault):
    study = yaml.safe_load(plan_file.read_text())["study"] | change
    plan_file.write_text(yaml.safe_dump({"study": study}))
    with pytest.raises(ValueError, match=fault):
        load_plan(plan_file)


def test_an_effect_that_is_no_sum_is_refused():
    with pytest.raises(ValueError, match="is no sum"):
        _ = Claim("", "r_mean", "rvlr - matching").parts


def test_a_seal_fits_until_claims_or_tuning_change(plan, tuned):
    seal = write_seal(plan, tuned, "2026-01-01")
    assert check_seal(plan, tuned) == seal["sha256"]
    claim = dataclasses.replace(plan.claims["recall"], text="other words")
    with pytest.raises(ValueError, match="differs from what .* sealed, in claims"):
        check_seal(dataclasses.replace(plan, claims={**plan.claims, "recall": claim}), tuned)
    write_json(tuned / "tuning.json", {"chosen": CHOSEN | {"epochs": 4}})
    with pytest.raises(ValueError, match="tuning.json differs"):
        check_seal(plan, tuned)


def test_an_edited_seal_is_no_seal(plan, tuned):
    seal = write_seal(plan, tuned, "2026-01-01")
    seal["parts"]["chosen"]["epochs"] = 99
    write_json(tuned / "seal.json", seal)
    with pytest.raises(ValueError, match="was edited"):
        check_seal(plan, tuned)
    assert read_json(tuned / "seal.json")["sha256"]


def test_a_seal_comes_before_the_seeds(plan, tuned):
    write_json(tuned / "scenes" / "seed-0.json", {})
    with pytest.raises(ValueError, match="comes before"):
        write_seal(plan, tuned, "2026-01-01")
