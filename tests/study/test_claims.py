from dataclasses import replace

import numpy as np
import pytest

from rvlr_lib.disk import read_json
from rvlr_lib.study import claims
from rvlr_lib.study.plan import reference_folder

CHOSEN = {"arms": {"rvlr": {"off": True}}, "epochs": 3, "dials": {"image": {"data.image_visibility": 0.5}}}
TUNED, SEAL = {"chosen": CHOSEN | {"arms": {}}, "trials": {}}, {"date": "d", "sha256": "s"}


@pytest.fixture
def whole(plan):
    """The plan, as many seeds planned as :func:`results` has."""
    return replace(plan, seeds=12)


def results(gain, control, seeds=12, sd=0.5):
    draws = np.random.default_rng(0).normal(0, sd, (seeds, 2))
    cell = lambda value: {"metrics": {"latent": {"r_mean": value}}, "structure": {}, "commit": "c", "cpu_seconds": 1.0}  # noqa: E731
    moves = {"matching_longer|text": np.zeros(seeds), "rvlr|text": gain + draws[:, 0]}
    moves["mean_relation|text"] = control + draws[:, 1]
    return {"scenes": {seed: {name: cell(50 + own[seed]) for name, own in moves.items()} for seed in range(seeds)}}


def test_metrics_joined_are_their_mean_and_the_frame_leaves_out_what_is_not_defined(refuses):
    cell = {"metrics": {"latent": {"a": 1.0, "b": 3.0}}, "structure": {"gap": 0.5}}
    assert claims.metric_of(cell, "a & b") == 2.0
    assert claims.metric_of(cell, "gap") == 0.5
    refuses("no metric 'c'", claims.metric_of, cell, "c")
    frame = claims.results_frame(results(1.0, 0.0, seeds=2), ["r_mean", "never"])
    assert list(frame.columns) == ["dataset", "dial", "arm", "seed", "metric", "value"]
    assert len(frame) == 6
    assert set(frame["arm"]) == {"matching_longer", "rvlr", "mean_relation"}


def test_no_effect_is_shown_before_the_planned_seeds_are_whole(plan):
    found = results(5.0, 0.0, seeds=1)
    assert claims.judge(plan, found) == {}
    page = claims.claims_page(plan, found, TUNED, SEAL)
    assert "no verdict, the planned seeds are not whole" in page
    assert "+5" not in page


def test_the_control_stands_in_the_same_sentence_and_so_does_what_tuning_switched_off(whole):
    found = results(5.0, 6.0)
    text = claims.sentence(whole, "recall", found, claims.judge(whole, found), CHOSEN)
    for part in ("**better**", "the constant target alone: +6", "more than the claim's own +", "of rvlr beat none"):
        assert part in text
    frame = claims.claims_frame(whole, found, claims.judge(whole, found))
    assert frame["part"].isna().tolist() == [True, False]
    assert frame["mean"].round().tolist() == [5.0, 6.0]


def test_of_two_effects_the_weaker_one_is_judged(whole):
    both = replace(whole.claims["recall"], also="scenes:rvlr|text - scenes:mean_relation|text")
    found = claims.judge(replace(whole, claims={**whole.claims, "recall": both}), results(5.0, 5.0))["recall"]
    assert found.verdict != "better"
    assert abs(found.effect.mean) < 1


def test_companions_that_differ_in_their_dial_are_one_sentence(plan, refuses):
    other = replace(plan.claims["constant"], text="what matching bends")
    plan = replace(plan, claims={**plan.claims, "bend, nothing taken": other, "bend, poor captions": other})
    text = claims.lead(plan, results(1.0, 2.0), "bend")
    assert text.startswith("What matching bends: nothing taken +")
    assert "; poor captions +" in text
    assert "12 seeds" in text
    refuses("no companion begins with 'recall'", claims.lead, plan, results(1.0, 2.0), "recall")


@pytest.mark.parametrize(("gain", "verdict", "held"), [(5.0, "better", 1), (-5.0, "worse", 0)])
def test_worse_is_said_as_loud_as_better(whole, tmp_path, gain, verdict, held):
    found = results(gain, 0.0)
    text = claims.claims_page(whole, found, TUNED, SEAL)
    assert f"**{verdict}**" in text
    assert ("RVLR retrieves better: worse." in text) == (verdict == "worse")
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("verdict", "claims")))
    claims.insert_verdicts(page, whole, found, TUNED)
    assert f"**{held} of 1 sealed claims hold**: recall {verdict} (" in page.read_text()


@pytest.mark.parametrize("profile", ["study", "followup", "towers"])
def test_the_readme_and_the_page_of_claims_say_what_the_committed_study_says(profile, tmp_path):
    folder, page, study = reference_folder(profile), tmp_path / "README.md", claims.read_study(profile)
    readme = (folder.parents[2] / "README.md").read_text(encoding="utf-8")
    page.write_text(readme, encoding="utf-8")
    claims.insert_verdicts(page, *study, profile)
    assert page.read_text(encoding="utf-8") == readme
    written = (folder / "claims.md").read_text(encoding="utf-8")
    assert claims.claims_page(*study, read_json(folder / "seal.json")) == written
