from dataclasses import replace

import numpy as np
import pytest

from rvlr_lib.disk import read_json
from rvlr_lib.study import claims
from rvlr_lib.study.plan import reference_folder

CHOSEN = {"arms": {}, "epochs": 3, "dials": {"image": {"data.image_visibility": 0.5}}}
TUNED, SEAL = {"chosen": CHOSEN, "trials": {}}, {"date": "d", "sha256": "s"}


def results(gain, control, seeds=12, sd=0.5):
    draws = np.random.default_rng(0).normal(0, sd, (seeds, 2))
    cell = lambda value: {"metrics": {"latent": {"r_mean": value}}, "structure": {}, "commit": "c", "cpu_seconds": 1.0}  # noqa: E731
    moves = {"matching_longer|text": np.zeros(seeds), "rvlr|text": gain + draws[:, 0]}
    moves["mean_relation|text"] = control + draws[:, 1]
    return {"scenes": {seed: {name: cell(50 + gains[seed]) for name, gains in moves.items()} for seed in range(seeds)}}


def test_an_unknown_metric_is_refused_and_the_frame_leaves_out_undefined_values(refuses):
    cell = {"metrics": {"latent": {"a": 1.0, "b": 3.0}}, "structure": {"gap": 0.5}}
    refuses("no metric 'c'", claims.metric_of, cell, "c")
    frame = claims.results_frame(results(1.0, 0.0, seeds=2), ["r_mean", "never"])
    assert list(frame.columns) == ["dataset", "dial", "arm", "seed", "metric", "value"]
    assert len(frame) == 6
    assert set(frame["arm"]) == {"matching_longer", "rvlr", "mean_relation"}


def test_no_effect_is_shown_before_the_planned_seeds_are_complete(plan):
    first = results(5.0, 0.0, seeds=1)
    assert claims.judge(plan, first) == {}
    page = claims.claims_page(plan, first, TUNED, SEAL)
    assert "no verdict, some planned seeds are missing" in page
    assert "+5" not in page


def test_a_claim_is_drawn_with_its_control(plan):
    study = replace(plan, seeds=12), results(5.0, 6.0)
    frame = claims.claims_frame(*study, claims.judge(*study))
    assert frame["part"].tolist()[1:] == ["constant target"]
    text = claims.headline(*study, claims.judge(*study))
    assert "1 of 1 sealed claims hold, and in 1 of them the control gains as much or more" in text
    assert "; constant target +6" in text
    assert frame["mean"].round().tolist() == [5.0, 6.0]


def test_companions_that_differ_in_their_dial_make_one_sentence(plan):
    other = replace(plan.claims["constant"], text="what matching bends")
    plan = replace(plan, claims={**plan.claims, "bend, nothing taken": other, "bend, poor captions": other})
    text = claims.lead(plan, results(1.0, 2.0), "bend")
    assert text.startswith("What matching bends: nothing taken +")
    assert "; poor captions +" in text
    assert "12 seeds" in text
    assert claims.lead(plan, results(1.0, 2.0, seeds=1), "bend") == "bend: no effect yet, some seeds are missing."
    later = {"scenes": replace(plan.sets["scenes"], seeds=13)}  # twelve are there
    assert claims.companions(replace(plan, sets=later), results(1.0, 2.0)) == {}


def test_zero_did_as_well_if_an_arm_ties_with_matching_longer():
    trial = {"strengths": {"structure": 1.0}, "scores": {"100": {"text": {"r_mean": 80.0}}}}
    tuned = {"chosen": {"arms": {}}, "trials": {}}
    for name in ("matching_longer", "rvlr"):
        tuned["chosen"]["arms"][name], tuned["trials"][name] = {"recall": {"strengths": trial["strengths"]}}, [trial]
    assert claims.zero_did_as_well(tuned, "rvlr", "recall")


@pytest.mark.parametrize("profile", ["study", "followup", "towers"])
def test_readme_and_claims_page_match_the_committed_study(profile):
    """The claims include better, worse and equivalent ones, pairs of effects, and arms that tuning switched off."""
    folder, (plan, results, tuned) = reference_folder(profile), claims.read_study(profile)
    judged = claims.judge(plan, results)
    readme = (folder.parents[2] / "README.md").read_text(encoding="utf-8")
    after = readme.partition(claims.tally(plan, results, judged).removesuffix(")"))[2]
    rows = [line for line in after.splitlines() if line.startswith("| ")][1 : len(judged) + 1]
    for row, (name, verdict) in zip(rows, judged.items(), strict=True):
        gains = [(verdict.effect, verdict), *((gain, gain) for _, gain in claims.control_of(plan, name, results))]
        cells = [f"{claims.signed(effect.mean)} ({claims.interval(x.low, x.high)})" for effect, x in gains]
        assert row.endswith(f" | {' | '.join([verdict.verdict, *cells, *['–'] * (2 - len(cells))])} |")
    written = (folder / "claims.md").read_text(encoding="utf-8")
    assert claims.claims_page(plan, results, tuned, read_json(folder / "seal.json")) == written
