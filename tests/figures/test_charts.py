from itertools import product

import numpy as np
import pandas as pd
import pytest

from rvlr_lib.figures import charts, verdicts
from rvlr_lib.metrics.statistics import paired_effect
from tests.figures.conftest import drawn, labels, legend, texts, tidy


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_intervals_only_from_five_seeds():
    frame = pd.DataFrame({"arm": ["a"] * 4 + ["b"] * 5, "value": [1.0, 2, 3, 4, 1, 2, 3, 4, 7]})
    rows, expected = charts.seed_summary(frame, ["arm"]).set_index("arm"), paired_effect([1.0, 2, 3, 4, 7])
    assert rows.loc["a"].tolist() == pytest.approx([2.5, np.nan, np.nan, 4], nan_ok=True)
    assert rows.loc["b"].tolist() == pytest.approx([3.4, expected.low, expected.high, 5])


def test_arms_show_every_seed_the_means_and_references():
    axes = drawn(charts.plot_arms, tidy()).axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "."]
    assert [line.get_xdata().tolist() for line in dots][:2] == [[0, 1, 2, 3, 4], [10, 11, 12, 13, 14]]
    assert labels(axes.texts) == ["2.0", "12.0", "22.0", "32.0"]  # rounded as in tables
    assert labels(axes.get_yticklabels()) == ["matching", "matching longer", "RVLR", "shuffled"]
    assert len(axes.collections) == 4  # one interval per arm
    figure = drawn(charts.plot_arms, tidy(arms=("as given", "rvlr", "floor", "teachers", "ceiling")))
    assert labels(figure.axes[0].get_yticklabels()) == ["as given", "RVLR"]
    assert legend(figure) == ["floor", "teachers", "Bayes ceiling"]
    assert figure.axes[0].lines[0].get_color() == "0.25"  # not the colour of an arm


def test_differences_are_paired_and_name_their_baseline():
    frame = tidy(dials=("image",), metrics=("r_mean",))
    figure = drawn(charts.plot_arms, frame, baseline="matching_longer", marks={"r_mean": 3.0})
    assert labels(figure.axes[0].texts) == ["−10.00", "+10.00", "+20.00"]
    assert "difference from matching longer" in texts(figure)
    verticals = [line.get_xdata()[0] for line in figure.axes[0].lines if len(set(line.get_xdata())) == 1]
    assert {0, -3.0, 3.0} <= set(verticals)


def test_curves_have_the_right_ticks_and_values(refuses):
    axes = drawn(charts.plot_curves, tidy(), "dial", zero=True).axes[0]
    means = [line for line in axes.lines if line.get_marker() not in (".", "None")]
    assert (list(means[0].get_ydata()), {line.get_linestyle() for line in means}) == ([2, 102], {"None"})
    assert labels(axes.get_xticklabels()) == ["poor\npictures", "poor\ncaptions"]
    refuses("nothing to draw", charts.plot_curves, tidy().iloc[:0], "dial")


def test_curves_of_corpora_damage_and_stages():
    base = tidy(dials=("text",), metrics=("image_query/captions_in_top", "image_query/captions_in_top_ideal"))
    mixed = pd.concat([base.assign(captions=share) for share in (0.0, 50.0, 100.0)])
    figure = drawn(charts.plot_mix_ratio, mixed)
    assert (titles(figure), legend(figure).count("ideal")) == (["picture queries: captions in top"], 1)
    damaged = pd.concat([base.assign(perturbation="words_dropped", strength=s, value=99.0) for s in (0.0, 1.0)])
    figure = drawn(charts.plot_curves, damaged, "strength", panel="perturbation", ylabel="R@10 (%)")
    assert (titles(figure), figure.axes[0].get_ylim()[1] < 100.5) == (["words dropped"], True)
    figure = charts.plot_curves(tidy(arms=("start", "matching", "rvlr")), "arm", hue="dial")
    assert labels(figure.axes[0].get_xticklabels()) == ["start", "matching", "RVLR"]


def test_stage_two_begins_where_stage_one_ends():
    record = [{"step": s, "epoch": 1, "loss/contrastive": 1.0 / s, "name": "x"} for s in range(1, 81)]
    record.append({"step": 80, "validation/score": 50.0})
    log = charts.log_frame(dict.fromkeys(("matching", "intra_only", "rvlr"), record))
    ends = log.groupby("arm")["step"].agg(["min", "max"])
    assert ends.T.to_dict("list") == {"matching": [1, 80], "intra_only": [1, 80], "rvlr": [81, 160]}
    assert charts.log_frame({"rvlr": record})["step"].max() == 80
    figure = drawn(charts.plot_training, log)
    assert titles(figure) == ["contrastive", "validation score"]
    assert 80 in [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert "stage 2" not in texts(charts.plot_training(log[log.arm == "matching"], ["loss/contrastive"]))


def test_gradient_shares_add_up_to_a_hundred():
    frame = pd.DataFrame({"arm": ["matching", "matching", "rvlr", "rvlr"], "value": [3.0, 1.0, 3.0, 1.0]})
    axes = drawn(charts.plot_gradient_shares, frame.assign(term=["contrastive", "structure"] * 2)).axes[0]
    assert [round(bar.get_width()) for bar in axes.patches] == [75, 75, 25, 25]
    assert labels(axes.texts) == ["75.0", "75.0", "25.0", "25.0"]
    rows = [(arm, f"{term}_image_teacher_structure", 1.0) for arm in "xyz" for term in "abcdefg"]  # a long legend
    drawn(charts.plot_gradient_shares, pd.DataFrame(rows, columns=["arm", "term", "value"]))


def test_titles_and_ticks_fit_their_panel():
    record = [{"step": s, "loss/image_teacher_structure": s, "loss/text_teacher_structure": s} for s in (1, 2)]
    drawn(charts.plot_training, charts.log_frame({"matching": record, "rvlr": record}))
    metrics = ("r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10", "t2it/NDCG@10")
    frame = tidy(arms=("matching", "row 24: representation bidirectional"), metrics=metrics, dials=("none",), seeds=2)
    frame["value"] *= 0.004
    for axes in drawn(charts.plot_arms, frame, baseline="matching").axes:
        assert sum(low <= tick <= high for tick in axes.get_xticks() for low, high in [axes.get_xlim()]) <= 3


def test_claims_are_sentences_with_verdicts_and_hollow_controls():
    claims = [
        ("Tuned RVLR recalls more than tuned matching longer on scenes", None, -0.4, -1.1, 0.3, 1.0, "inconclusive"),
        ("It keeps more structure than its controls", None, 1.2, 0.4, 2.0, 0.5, "better"),
        ("It keeps more structure than its controls", "minus intra", 1.4, 0.4, 2.2, 0.5, None),
    ]
    columns = ["claim", "part", "mean", "low", "high", "delta", "verdict"]
    figure = drawn(verdicts.plot_claims, pd.DataFrame(claims, columns=columns), level="90\u00a0%")
    shown = texts(figure)
    assert all(text in shown for text in ("matching longer on scenes", "+1.20 better", "intervals: 90\u00a0%"))
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == "white" for dot in dots] == [False, False, True]
    assert dots[0].get_color() != dots[1].get_color()


def test_regime_map_hatches_cells_whose_interval_contains_zero_or_is_missing():
    cases = product((("weak", 0.0), ("oracle", 9.0), ("bad", -9.0)), (0.0, 0.3), range(6))
    rows = [("none", teacher, ratio, seed, shift + (-1) ** seed) for (teacher, shift), ratio, seed in cases]
    frame = pd.DataFrame(rows, columns=["dial", "teacher", "ratio", "seed", "value"])
    figure = drawn(verdicts.plot_regime_map, frame)
    assert [patch.get_xy() for patch in figure.axes[0].patches if patch.get_hatch()] == [(0, 0), (1, 0)]
    few = verdicts.plot_regime_map(frame[frame.seed < 4])
    assert len([patch for patch in few.axes[0].patches if patch.get_hatch()]) == 6


def test_trade_off_removes_the_seed_effect():
    frame = tidy(metrics=("r_mean", "single"), seeds=3)
    frame.loc[frame.metric == "single", "value"] = 50 - frame[frame.metric == "single"]["value"] / 2
    path = pd.DataFrame({"metric": ["r_mean", "single"] * 2, "alpha": [0, 0, 1, 1], "value": [0, 0, 20, 20]})
    path = path.assign(dial="image", path="matching → rvlr")
    figure = drawn(verdicts.plot_trade_off, frame, "r_mean", "single", paths=path)
    axes = figure.axes[0]
    means = [line for line in axes.lines if line.get_markersize() == 6]
    assert [line.get_xdata()[0] for line in means] == pytest.approx([1, 11, 21, 31])
    assert len([text for text in axes.texts if text.arrow_patch is not None]) == 3
    seeds = next(line for line in axes.lines if line.get_markersize() == 2.5 and line.get_marker() == "o")
    assert seeds.get_xdata() == pytest.approx([1, 1, 1])
    assert "interpolated weights" in texts(figure)
    drawn(verdicts.plot_trade_off, frame, "r_mean", "single", paths=path[path["metric"] == "r_mean"])


def test_pareto_front_is_what_nothing_dominates():
    points = pd.DataFrame(np.random.default_rng(0).random((60, 2)).round(1), columns=["x", "y"])
    dominated = [((points >= p).all(axis=1) & (points > p).any(axis=1)).any() for p in points.to_numpy()]
    slow = points[~np.array(dominated)].drop_duplicates().sort_values("x")
    assert verdicts.pareto_front(points).to_numpy().tolist() == slow.to_numpy().tolist()
