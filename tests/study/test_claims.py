import numpy as np
import pytest

from rvlr_lib.study import claims
from rvlr_lib.study.claims import claims_frame, claims_page, judge, lead, metric_of, results_frame, sentence

CHOSEN = {"arms": {"rvlr": {"off": True}}, "epochs": 3, "dials": {"image": {"data.image_visibility": 0.5}}}


def results(gain, control, seeds=12, sd=0.5):
    draws = np.random.default_rng(0).normal(0, sd, (seeds, 2))
    cell = lambda value: {"metrics": {"latent": {"r_mean": value}}, "structure": {}, "commit": "c", "cpu_seconds": 1.0}  # noqa: E731
    return {
        "scenes": {
            seed: {
                "matching_longer|text": cell(50.0),
                "rvlr|text": cell(50 + gain + draws[seed, 0]),
                "mean_relation|text": cell(50 + control + draws[seed, 1]),
            }
            for seed in range(seeds)
        }
    }


def test_metrics_joined_are_their_mean():
    cell = {"metrics": {"latent": {"a": 1.0, "b": 3.0}}, "structure": {"gap": 0.5}}
    assert metric_of(cell, "a & b") == 2.0
    assert metric_of(cell, "gap") == 0.5
    with pytest.raises(ValueError, match="no metric 'c'"):
        metric_of(cell, "c")


def test_no_effect_is_shown_before_the_planned_seeds_are_whole(plan):
    found = results(5.0, 0.0, seeds=1)
    assert judge(plan, found) == {}
    page = claims_page(plan, found, {"chosen": CHOSEN | {"arms": {}}, "trials": {}}, {"date": "d", "sha256": "s"})
    assert "no verdict, the planned seeds are not whole" in page
    assert "+5" not in page


def test_the_control_stands_in_the_same_sentence_and_so_does_what_tuning_switched_off(plan, replaced):
    plan = replaced(plan, seeds=12)
    found = results(5.0, 6.0)
    text = sentence(plan, "recall", found, judge(plan, found), CHOSEN)
    assert "**better**" in text
    assert "the constant target alone: +6" in text
    assert "more than the claim's own +" in text
    assert "tuning switched rvlr off" in text


def test_of_two_effects_the_weaker_one_is_judged(plan, replaced):
    both = replaced(plan.claims["recall"], also="scenes:rvlr|text - scenes:mean_relation|text")
    plan = replaced(plan, seeds=12, claims={**plan.claims, "recall": both})
    found = judge(plan, results(5.0, 5.0))["recall"]
    assert found.verdict != "better"
    assert abs(found.effect.mean) < 1


def test_worse_is_said_as_loud_as_better(plan, replaced):
    plan = replaced(plan, seeds=12)
    found = results(-5.0, 0.0)
    tuned = {"chosen": CHOSEN | {"arms": {}}, "trials": {}}
    page = claims_page(replaced(plan), found, tuned, {"date": "d", "sha256": "s"})
    assert "**worse**" in page
    assert "RVLR retrieves better: worse." in page


def test_the_frame_is_tidy():
    frame = results_frame(results(1.0, 0.0, seeds=2), ["r_mean"])
    assert list(frame.columns) == ["dataset", "dial", "arm", "seed", "metric", "value"]
    assert len(frame) == 6


def test_companions_that_differ_in_their_dial_are_one_sentence(plan, replaced):
    other = replaced(plan.claims["constant"], text="what matching bends")
    plan = replaced(plan, claims={**plan.claims, "bend, nothing taken": other, "bend, poor captions": other})
    text = lead(plan, results(1.0, 2.0), "bend")
    assert text.startswith("What matching bends: nothing taken +")
    assert "; poor captions +" in text
    assert "12 seeds" in text
    with pytest.raises(ValueError, match="no companion begins with 'recall'"):
        lead(plan, results(1.0, 2.0), "recall")


def test_the_control_is_drawn_below_its_claim(plan, replaced):
    plan = replaced(plan, seeds=12)
    frame = claims_frame(plan, results(5.0, 3.0), judge(plan, results(5.0, 3.0)))
    assert frame["part"].isna().tolist() == [True, False]
    assert frame["mean"].round().tolist() == [5.0, 3.0]


@pytest.mark.parametrize(
    ("gain", "told"), [(5.0, "**1 of 1 sealed claims hold.**"), (-5.0, "**0 of 1 sealed claims hold.**")]
)
def test_a_page_says_how_many_claims_hold(plan, replaced, monkeypatch, tmp_path, gain, told):
    study = replaced(plan, seeds=12), results(gain, 0.0), {"chosen": CHOSEN}
    monkeypatch.setattr(claims, "read_study", lambda *_: study)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- {name}:begin -->\n<!-- {name}:end -->\n" for name in ("verdict", "claims")))
    claims.insert_verdicts(page)
    assert told in page.read_text()


def test_the_readme_and_the_page_of_claims_say_what_the_committed_study_says(tmp_path):
    folder, page = claims.reference_folder(), tmp_path / "README.md"
    readme = (folder.parents[2] / "README.md").read_text(encoding="utf-8")
    page.write_text(readme, encoding="utf-8")
    claims.insert_verdicts(page)
    assert page.read_text(encoding="utf-8") == readme
    written = (folder / "claims.md").read_text(encoding="utf-8")
    assert claims_page(*claims.read_study(), claims.read_json(folder / "seal.json")) == written
