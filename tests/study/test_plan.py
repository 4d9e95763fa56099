from dataclasses import replace

import pytest

from rvlr_lib.disk import write_json
from rvlr_lib.study.plan import Claim, check_seal, load_plan, write_seal
from rvlr_lib.study.sweep import _Search

TRIAL = {"learning_rate": 1e-3, "strengths": {}}
CHOSEN = {"dials": {"image": {"data.image_visibility": 0.5}}, "epochs": 3}
CHOSEN["arms"] = {"matching_longer": {"recall": TRIAL, "structure": TRIAL | {"learning_rate": 2e-3}, "off": False}}


def test_settings_follow_what_was_chosen(plan):
    settings = plan.settings("scenes", "image", 3, CHOSEN)
    assert (settings.seed, settings.world_seed, settings.stage2.epochs) == (3, 3, 3)
    assert settings.data.image_visibility == 0.5
    assert settings.arms["matching_longer"].learning_rate == 1e-3
    assert plan.settings("scenes", "image", 3, CHOSEN, "a/structure").arms["matching_longer"].learning_rate == 2e-3


WRONG = [({"arms": ["rvlx"]}, "unknown arm 'rvlx'"), ({"nonsense": 1}, "'nonsense'; valid: preset, sets")]
WRONG += [({"seeds": 1}, "two seeds or more"), ({"dials": {"text": {}, "image": {}}}, "unknown dial setting 'none'")]
WRONG += [({"dials": {"text": {}, "image": {}, "none": {"data.nope": 1}}}, "data.nope")]
EFFECTS = {"scenes:rvlr|dark": "unknown cell", "rvlr - matching": "is not a sum"}
WRONG += [({"tuning": change}, "that no verdict sees, 2 or more") for change in ({"seeds": [1, 9]}, {"trials": 0})]
WRONG += [({"claims": {"x": {"text": "", "metric": "r_mean", "effect": bad}}}, EFFECTS[bad]) for bad in EFFECTS]


@pytest.mark.parametrize(("change", "fault"), WRONG)
def test_a_wrong_plan_is_refused_by_name(write_plan, change, fault, refuses):
    refuses(fault, load_plan, write_plan(**change))


def test_a_seal_fits_until_claims_or_tuning_change_or_it_is_edited(plan, tmp_path, refuses):
    write_json(tmp_path / "tuning.json", {"chosen": CHOSEN})
    seal = write_seal(plan, tmp_path, "2026-01-01")
    assert check_seal(plan, tmp_path) == seal["sha256"]
    other = plan.claims | {"recall": Claim("other words", "r_mean", "scenes:rvlr|text - scenes:matching|text")}
    refuses("differs from what .* sealed, in claims", check_seal, replace(plan, claims=other), tmp_path)
    write_json(tmp_path / "tuning.json", {"chosen": CHOSEN | {"epochs": 4}})
    refuses("tuning.json differs", check_seal, plan, tmp_path)
    seal["parts"]["chosen"]["epochs"] = 4
    write_json(tmp_path / "seal.json", seal)
    refuses("was edited", check_seal, plan, tmp_path)


def test_one_length_and_one_visibility_are_taken_as_they_are(write_plan, refuses):
    refuses("smoke.yaml has no 'study' part: give --profile study", load_plan, "smoke")
    search = _Search(load_plan(write_plan(tuning={"lengths": [3], "visibilities": [0.4]})), runner=None)
    assert (search.visibility(), search.length(["rvlr"])) == ((0.4, {}), (3, {}))
