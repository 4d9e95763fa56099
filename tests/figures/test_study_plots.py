import pandas as pd
import pytest

from rvlr_lib.figures import study_charts as study_plots
from rvlr_lib.figures.style import COLUMN, one_column
from rvlr_lib.metrics.statistics import paired_effect
from rvlr_lib.study import claims


def rows(seeds=3):
    return pd.DataFrame(
        [
            {"dial": dial, "variant": variant, "alignment": 0.0, "metric": metric, "seed": seed,
             "value": 10 * place + seed + 3 * (variant == "rvlr")}
            for place, dial in enumerate(("image", "none", "text"))
            for variant in ("matching", "rvlr")
            for metric in ("r_mean", "i2i")
            for seed in range(seeds)
        ]
    )  # fmt: skip


def test_band_is_the_interval_from_three_seeds_and_the_range_below():
    assert study_plots.seed_band([4.0]) == (4, 4, 4)
    assert study_plots.seed_band([1.0, 3.0]) == (2, 1, 3)
    known = paired_effect([1.0, 2.0, 4.0])
    assert study_plots.seed_band([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, known.low, known.high))


def test_curves_over_the_dial_stand_where_the_dial_points_stand():
    figure = study_plots.plot_dial(rows(), ["image", "none", "text"], labels={"none": "balance"}, columns=2, zero=True)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["image", "balance", "text"]
    curve = axes.lines[0]
    assert curve.get_ydata().tolist() == [1, 11, 21]
    assert [round(x) for x in curve.get_xdata()] == [0, 1, 2]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["matching", "RVLR"]
    with pytest.raises(ValueError, match="nothing to draw"):
        study_plots.plot_dial(rows().iloc[:0], ["none"])


def test_a_missing_dial_point_leaves_a_gap():
    table = rows(1)
    table = table[~((table.dial == "none") & (table.variant == "rvlr"))]
    figure = study_plots.plot_dial(table, ["image", "none", "text"])
    assert {len(line.get_xdata()) for line in figure.axes[0].lines if len(line.get_xdata()) > 1} == {2, 3}


def test_strength_claims_and_gap_draw():
    table = rows().assign(alignment=lambda t: t.seed * 1.0, seed=0).drop(columns="variant")
    figure = study_plots.plot_strength(table)
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "1", "2"]
    nan = float("nan")
    forest = pd.DataFrame(
        {"claim": ["a", "b"], "mean": [1.0, nan], "low": [0.5, nan], "high": [2.0, nan], "delta": [1.0, 0.5],
         "verdict": ["holds", "no verdict"]}
    )  # fmt: skip
    figure = study_plots.plot_claims(forest)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b"]
    points = pd.DataFrame({"modality": ["image", "image", "text"], "x": [0.0, 2.0, 5.0], "y": [1.0, 1.0, 3.0]})
    figure = study_plots.plot_gap(points)
    assert figure.axes[0].lines[-1].get_xydata().tolist() == [[1, 1], [5, 3]]


def test_as_wide_as_a_column_panels_stand_below_each_other(figure_faults):
    forest = pd.DataFrame(
        {"claim": ["Q3 beyond unimodal losses", "b"], "mean": [1.0, -30.0], "low": [0.5, -50.0], "high": [2.0, -1.0],
         "delta": [1.0, 0.5], "verdict": ["holds", "does not hold"]}
    )  # fmt: skip
    with one_column():
        dial = study_plots.plot_dial(rows(), ["image", "none", "text"], labels={"image": "poor\npictures"}, columns=3)
        claims_ = study_plots.plot_claims(forest)
    assert dial.get_figwidth() == claims_.get_figwidth() == COLUMN
    assert figure_faults(dial) == figure_faults(claims_) == []
    assert len({axes.get_subplotspec().colspan.start for axes in dial.axes}) == 1
    assert claims_.axes[0].get_yticklabels()[1].get_text() == "b\ndoes not hold"


def test_differences_to_a_variant_are_paired_by_seed():
    table = rows()
    gains = claims.against(table[table.dial == "none"], "matching")
    assert gains.label.unique().tolist() == ["rvlr"]
    assert gains.value.tolist() == [3, 3]
    assert (gains.low == gains.high).all()
    lone = claims.against(table[(table.dial == "none") & (table.seed == 0)], "matching")
    assert lone.low.tolist() == lone.value.tolist() == [3, 3]
    assert claims.against(table.iloc[:0], "matching").empty
