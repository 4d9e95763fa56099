from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from rvlr_lib.config import Settings
from rvlr_lib.disk import write_json
from rvlr_lib.study import comparisons, sweep
from rvlr_lib.study.comparisons import query_encoder
from rvlr_lib.training.loop import cross_modal_recall


@pytest.fixture
def studies(make_study):
    return {"none": [make_study()], "text": [make_study(**{"data.text_detail": 0.5})]}


def test_warm_fills_the_cache_in_one_thread_and_the_frame_holds_every_study(studies, monkeypatch, capsys):
    threads, set_threads, before = [], torch.set_num_threads, torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", lambda count: (threads.append(count), set_threads(count)))
    curve = (comparisons.mixed, ["matching"], {"shares": [0.5]})
    wanted = [(runs[0], ["start", "matching"], curve) for runs in studies.values()]
    for lines in (["1/2", "2/2"], []):  # the second time there is nothing to do
        sweep.warm(wanted, jobs=1)
        assert [line[-3:] for line in capsys.readouterr().out.splitlines() if line.startswith("stage seeds")] == lines
    assert threads[:2] == [1, before]
    assert all(study.cache.has(study.result_stage(name)) for study, names, _ in wanted for name in names)
    assert all(study.cache.has(comparisons.curve_stage(study, *curve)) for study, *_ in wanted)
    frame = comparisons.study_frame(studies, ["start", "matching"])
    assert list(frame.columns) == ["dataset", "dial", "arm", "seed", "metric", "value"]
    assert not frame.duplicated(["dial", "arm", "seed", "metric"]).any()
    one = frame[(frame["dial"] == "text") & (frame["arm"] == "matching")].set_index("metric")["value"]
    assert one["structure"] == pytest.approx(one[list(comparisons.STRUCTURE)].mean())
    assert comparisons.defined_structure(frame) == "structure"
    undefined = {"dataset": "x", "metrics": dict.fromkeys(comparisons.STRUCTURE), "structure": {}}
    frame = comparisons.study_frame({"none": [SimpleNamespace(result=lambda _: undefined, settings=Settings())]}, ["a"])
    assert frame["value"].isna().all()
    assert comparisons.defined_structure(frame) == "image/overlap_teacher"


def test_recall_as_a_share_of_the_ceiling_of_its_own_seed():
    rows = [("ceiling", 0, "r_mean", 80.0), ("ceiling", 1, "r_mean", 50.0)]
    rows += [("rvlr", 0, "r_mean", 40.0), ("rvlr", 1, "r_mean", 40.0), ("rvlr", 1, "structure", 7.0)]
    frame = pd.DataFrame(rows, columns=["arm", "seed", "metric", "value"]).assign(dial="none")
    rvlr = frame[frame["arm"] == "rvlr"]
    name, shares = comparisons.share_of_ceiling(rvlr, frame)
    assert shares[shares["metric"] == name]["value"].tolist() == [50.0, 80.0]
    assert shares[shares["metric"] == "structure"]["value"].tolist() == [7.0]
    assert comparisons.share_of_ceiling(rvlr, rvlr) == ("r_mean", rvlr)  # no ceiling is known


def test_between_two_arms_the_ends_are_the_arms(studies):
    path = comparisons.gather(comparisons.interpolated, studies, ["matching", "matching_longer"], steps=2)
    assert set(path["alpha"]) == {0.0, 0.5, 1.0}
    for dial, (study,) in studies.items():
        for alpha, arm in ((0.0, "matching"), (1.0, "matching_longer")):
            end = path[(path["dial"] == dial) & (path["alpha"] == alpha)].set_index("metric")["value"]
            metrics = study.result(arm)["metrics"]  # under the headline relevance
            expected = metrics["r_mean"], sum(metrics[key] for key in comparisons.STRUCTURE) / 2
            assert (end["r_mean"], end["structure"]) == pytest.approx(expected, abs=1e-4)


def test_the_height_of_an_arm_above_interpolated_weights_is_taken_at_its_recall():
    bent = pd.DataFrame({"alpha": [1.0, 0.0, 0.4, 0.6], "r_mean": [50, 40, 60, 60], "structure": [9, 12, 8, 4]})
    flat = bent.assign(structure=1.0)
    lines = [line.melt("alpha", var_name="metric").assign(dial="none", seed=n) for n, line in enumerate((bent, flat))]
    for recall, height in ((45.0, 11.0), (55.0, 9.0), (60.0, 8.0), (70.0, np.nan)):  # at 55 it is reached twice
        arm = pd.DataFrame({"metric": ["r_mean", "structure"], "value": [recall, 10.0]}).assign(dial="none", arm="rvlr")
        frame = pd.concat([arm.assign(seed=seed) for seed in (1, 0)])
        gaps = comparisons.above_path(frame, pd.concat(lines), "rvlr", "r_mean", "structure")
        assert gaps["none", 0] == pytest.approx(10 - height, nan_ok=True)
        assert gaps["none", 1] == pytest.approx(9.0 if recall <= 60 else np.nan, nan_ok=True)


def test_a_curve_is_read_from_the_cache_and_computed_for_other_options(studies, monkeypatch):
    few, written = {"none": studies["none"]}, []
    monkeypatch.setattr(comparisons, "write_json", lambda *args: (written.append(args[0]), write_json(*args)))
    first, again = (comparisons.gather(comparisons.mixed, few, ["matching"], shares=[0.0, 1.0]) for _ in range(2))
    assert len(written) == 1
    pd.testing.assert_frame_equal(first, again)
    assert set(comparisons.gather(comparisons.mixed, few, ["matching"], shares=[0.5])["captions"]) == {50.0}
    assert len(written) == 2
    starts = comparisons.gather(comparisons.mixed, studies, ["start"], shares=[0.5])
    assert starts.groupby("dial")["value"].sum().nunique() == len(studies)  # they differ in their data alone


def test_queries_without_damage_are_those_of_the_test_split(studies):
    study = studies["none"][0]
    options = {"kinds": ["words_dropped", "blur"], "strengths": [0.0, 1.0]}
    frame = comparisons.perturbed(study, ["matching", "matching_longer"], **options)
    clean = cross_modal_recall(*study.test_features("matching"), torch.as_tensor(study.dataset("test").caption_image))
    undamaged = frame[(frame["arm"] == "matching") & (frame["strength"] == 0)].set_index("metric")["value"]
    assert dict(undamaged) == pytest.approx({key: clean[key] for key in undamaged.index}, abs=1e-4)
    assert set(undamaged.index) == {f"{way}/R@{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)}
    assert len(frame) == 2 * 2 * 2 * 3


def test_a_free_query_is_encoded_like_the_test_split(studies, refuses):
    study = studies["none"][0]
    encode, data, rows = query_encoder(study, "matching"), study.dataset("test"), study.test_features("matching")
    for row in (0, 7):
        assert encode(data.captions[row]) == pytest.approx(rows[1][row].numpy(), abs=1e-5)
        assert encode(data.image(row)) == pytest.approx(rows[0][row].numpy(), abs=1e-5)
    for bad, fault in (("!?", "holds no word"), (5, "words or a picture")):
        refuses(fault, encode, bad)


def test_training_free_baselines_have_their_rows(studies, monkeypatch):
    arms, best = ["as given", "centred", "pca", "spectral_cut", "nnn"], {"val": 0.3, "test": 0.8}
    assert list(dict.fromkeys(comparisons.without_training(studies["none"][0], "matching")["arm"])) == arms

    def between(study, path, part, alphas):
        assert path == ("matching", "matching_longer")
        return [(alpha, (part, alpha)) for alpha in alphas]

    monkeypatch.setattr(comparisons, "_between", between)
    score = lambda features, *_, **__: {"r_mean": -abs(features[1] - best[features[0]])}  # noqa: E731
    monkeypatch.setattr(comparisons, "headline_metrics", score)
    frame = comparisons.without_training(studies["none"][0], "matching_longer")
    assert list(dict.fromkeys(frame["arm"])) == [*arms, "weights_interpolated"]
    assert tuple(frame.iloc[-1][["parameters", "value"]]) == ("alpha 0.3", -0.5)
