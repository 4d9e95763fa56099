import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from rvlr_lib.figures import charts as plots

VARIANTS = ("start", "matching", "matching_longer", "rvlr", "intra")
METRICS = ("i2t/R@1", "t2i/R@10", "r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10/above_floor")


def results(metrics=METRICS):
    levels = {
        "floor": 3.0,
        "teachers": 70.0,
        **{name: 20.0 + 9 * i for i, name in enumerate(VARIANTS)},
        "ceiling": 90.0,
    }
    rows = [(metric, name, value, value - 2, value + 2) for metric in metrics for name, value in levels.items()]
    return pd.DataFrame(rows, columns=["metric", "variant", "value", "low", "high"])


def stages():
    rows = [
        (modality, dial, stage, reference, 100 - 15 * i + 5 * ("0.6" in dial) + 3 * (modality == "text"))
        for modality in ("image", "text")
        for dial in ("detail 1.0", "detail 0.6")
        for i, stage in enumerate(("start", "matching", "matching_longer", "rvlr"))
        for reference in ("teacher", "latent truth", "shown truth")
    ]
    return pd.DataFrame(rows, columns=["modality", "dial", "stage", "reference", "value"])


def log():
    steps = range(100)
    rows = [(v, s, "loss/contrastive", 3 - s / 50 + s % 2) for v in VARIANTS[1:] for s in steps]
    rows += [("rvlr", s, "loss/image_teacher_structure", 1 + s / 9) for s in steps]
    rows += [(v, s, "gradient_norm", 0.05 * 1.08**s) for v in VARIANTS[1:] for s in steps]
    rows += [("rvlr", s, term, 0.5 - s / 300) for term in ("fusion_weight", "relation_temperature") for s in steps]
    rows += [(v, 10 * epoch, "validation/r_mean", epoch) for v in VARIANTS[1:] for epoch in range(10)]
    return pd.DataFrame(rows, columns=["variant", "step", "term", "value"])


def structure():
    percent = [(v, m, o, 40 + 7 * i) for i, v in enumerate(VARIANTS) for m in ("image", "text")
               for o in ("overlap_teacher", "overlap_truth")]  # fmt: skip
    gap = [(v, "both", "modality_gap", i / 5) for i, v in enumerate(VARIANTS)]
    return pd.DataFrame(percent + gap, columns=["method", "modality", "measure", "value"])


def information():
    rows = [(m, d, v) for d in ("detail 1.0", "detail 0.6") for m, v in (("image", 100.0), ("text", 61.0))]
    return pd.DataFrame(rows, columns=["modality", "dial", "value"])


def ablation():
    labels = ("corrected", "relation temperature learnable", "distance cumulative_l1")
    rows = [(label, metric, i - 1.0, i - 1.5, i - 0.2) for i, label in enumerate(labels) for metric in METRICS[:3]]
    return pd.DataFrame(rows, columns=["label", "metric", "value", "low", "high"])


CHARTS = {
    "stages": lambda: plots.plot_structure_stages(stages()),
    "stages, one reference": lambda: plots.plot_structure_stages(stages()[lambda t: t["reference"] == "teacher"]),
    "information": lambda: plots.plot_information(information()),
    "information, two measures": lambda: plots.plot_information(
        pd.concat([information().assign(measure=name) for name in ("share of factors shown (%)", "entropy (bits)")])
    ),
    "loss": lambda: plots.plot_loss_curves(log()),
    "traces": lambda: plots.plot_traces(log()),
    "results": lambda: plots.plot_results(results()),
    "results, one metric": lambda: plots.plot_results(results(METRICS[:1])[["metric", "variant", "value"]]),
    "structure": lambda: plots.plot_structure_bars(structure()),
    "dots": lambda: plots.plot_dot_intervals(ablation(), baseline="corrected", xlabel="points above corrected"),
    "dots, no interval": lambda: plots.plot_dot_intervals(ablation()[["label", "value"]]),
}


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_legible_and_leave_nothing_behind(name, figure_faults):
    before = dict(matplotlib.rcParams)
    figure = CHARTS[name]()
    assert figure_faults(figure) == []
    assert figure.get_figwidth() in (plots.COLUMN, plots.PAGE)
    assert plt.get_fignums() == []
    assert dict(matplotlib.rcParams) == before


def test_faults_are_seen(figure_faults):
    figure = plots.new_figure(3.5, 2, layout=None)
    figure.text(0.1, 0.1, "small letters", size=7)
    figure.text(0.5, 0.5, "one on", size=8)
    figure.text(0.51, 0.5, "another", size=8)
    figure.text(0.95, 0.8, "over the edge", size=8)
    assert [fault.split(":")[0] for fault in figure_faults(figure)] == ["small", "cut off", "overlap"]


def test_results_draw_the_table():
    table = results()
    figure = plots.plot_results(table)
    for axes, metric in zip(figure.axes, METRICS, strict=False):
        part = table[table["metric"] == metric].set_index("variant")["value"]
        assert [bar.get_width() for bar in axes.patches] == list(part[list(VARIANTS)])
        lines = {line.get_label(): (line.get_xdata()[0], line.get_linestyle()) for line in axes.lines if
                 line.get_label() in plots.REFERENCES}  # fmt: skip
        assert axes.yaxis_inverted()
        assert axes.get_xlim()[1] == pytest.approx(1.25 * 90)
        assert lines == {"floor": (3.0, ":"), "teachers": (70.0, "--"), "ceiling": (90.0, "-")}
        ends = axes.collections[0].get_segments()
        assert np.allclose([segment[:, 0] for segment in ends], [(v - 2, v + 2) for v in part[list(VARIANTS)]])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["floor", "teachers", "Bayes ceiling"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "start", "matching", "matching longer", "RVLR", "intra"
    ]  # fmt: skip


def test_stages_branch_after_the_first_stage():
    axes = plots.plot_structure_stages(stages()).axes[0]
    first = [line for line in axes.lines if line.get_color() == axes.lines[0].get_color()]
    assert [list(np.round(line.get_xdata())) for line in first] == [[0, 1], [1, 2], [1, 3]]
    assert [list(line.get_ydata()) for line in first] == [[100, 85], [85, 70], [85, 55]]
    without = plots.plot_structure_stages(stages()[lambda t: t["stage"] != "matching"]).axes[0]
    assert list(np.round(without.lines[1].get_xdata())) == [0, 1]


def test_long_curves_get_their_running_mean():
    table = log()
    axes = plots.plot_loss_curves(table, ["loss/contrastive"]).axes[0]
    raw, smooth = axes.lines[:2]
    assert list(raw.get_ydata()) == list(table[:100]["value"])
    assert smooth.get_ydata()[50] == pytest.approx(np.mean(raw.get_ydata()[48:53]))
    assert len(plots.plot_loss_curves(table, ["validation/r_mean"]).axes[0].lines) == 4


def test_terms_are_shared_out_between_curves_and_traces():
    def titles(figure):
        return [axes.get_title() for axes in figure.axes if axes.get_visible()]

    assert titles(plots.plot_loss_curves(log())) == ["contrastive", "image teacher structure", "validation r_mean"]
    traces = plots.plot_traces(log())
    assert titles(traces) == ["gradient norm", "fusion weight", "relation temperature"]
    assert traces.axes[0].get_yscale() == "log"
    assert [text.get_text() for text in traces.axes[0].get_yticklabels()][1:-1] == ["0.1", "1", "10", "100"]
    narrow = log()[lambda t: (t["term"] == "gradient_norm") & t["step"].between(20, 50)]
    axes = plots.plot_traces(narrow).axes[0]
    assert {"0.2", "0.5", "1"} <= {text.get_text() for text in axes.get_yticklabels()}
    assert not [text for text in axes.get_yticklabels(minor=True) if text.get_text()]


def test_dots_draw_the_table():
    table = ablation()
    axes = plots.plot_dot_intervals(table, baseline="corrected").axes[1]
    part = table[table["metric"] == METRICS[1]]
    assert list(axes.lines[0].get_xdata()) == list(part["value"])
    assert np.allclose([s[:, 0] for s in axes.collections[0].get_segments()], part[["low", "high"]])
    assert axes.lines[-1].get_xdata()[0] == -1.0
    unknown = table.assign(low=table["low"].where(table["label"] != "corrected"))
    assert plots.plot_dot_intervals(unknown) is not None


def test_structure_keeps_modalities_apart():
    figure = plots.plot_structure_bars(structure())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["image", "text", "both"]
    shared, gap = figure.axes[0], figure.axes[2]
    assert len(shared.patches) == 10
    assert len(gap.patches) == 5
    assert shared.patches[0].get_hatch() != shared.patches[5].get_hatch()


def test_looks_are_stable_and_different_without_colour():
    alone, among = plots.looks(["rvlr"])["rvlr"], plots.looks(["baseline", "matching", "RVLR"])
    assert alone == among["RVLR"]
    assert len({look.color for look in among.values()}) == 3
    known = plots.looks(plots.NAMES).values()
    assert len({look.color for look in known}) == len(plots.NAMES)
    assert len({(look.marker, str(look.line)) for look in known}) == len(plots.NAMES)
    assert len({look.hatch for look in plots.looks(VARIANTS[:-1]).values()}) > 2
    assert len(plots.looks(map(str, range(30)))) == 30


@pytest.mark.parametrize("draw", [plots.plot_results, plots.plot_loss_curves, plots.plot_traces])
def test_nothing_to_draw_is_said(draw):
    columns = ["metric", "variant", "step", "term", "value"]
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(pd.DataFrame(columns=columns))


def test_save_figure(tmp_path):
    table = results()
    figure = plots.plot_results(table)
    paths = plots.save_figure(figure, tmp_path / "new", "scenes_results", table)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "scenes_results.csv", "scenes_results.pdf", "scenes_results.png"
    ]  # fmt: skip
    with Image.open(paths["png"]) as image:
        assert image.width == round(7.16 * 200)
    pdf = paths["pdf"].read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert b"CreationDate" not in pdf
    pd.testing.assert_frame_equal(pd.read_csv(paths["csv"]), table, check_dtype=False)
    before = {suffix: path.read_bytes() for suffix, path in paths.items()}
    plots.save_figure(plots.plot_results(table), tmp_path / "new", "scenes_results", table)
    assert {suffix: path.read_bytes() for suffix, path in paths.items()} == before
    named = table.set_index(pd.Index(range(len(table)), name="row"))
    assert pd.read_csv(plots.save_figure(figure, tmp_path, "x", named)["csv"]).columns[0] == "row"


def test_a_figure_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    figure = plots.plot_information(information())
    path = plots.save_figure(figure, tmp_path, "x", information())["png"]
    old = path.read_bytes()

    def fail(target, **_):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        plots.save_figure(figure, tmp_path, "x", information())
    assert path.read_bytes() == old
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".pdf", ".png"]


def test_style_reaches_ticks_that_are_made_later(figure_faults):
    figure = plots.plot_loss_curves(log())
    assert figure_faults(figure) == []  # draws outside the style
    assert {label.get_size() for axes in figure.axes for label in axes.get_yticklabels()} == {8.0}


def test_importing_is_light():
    heavy = {"matplotlib", "seaborn", "pandas", "umap", "sklearn", "ipywidgets", "torch"}
    names = ("tables", "figures.charts", "figures.panels", "figures.browser", "figures.projection")
    modules = ", ".join(f"rvlr_lib.{name}" for name in names)
    code = f"import sys, {modules}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_labels_of_bars_round_as_tables_do():
    from rvlr_lib.tables import shown

    values = pd.DataFrame({"r_mean": [43.45, 0.35, 94.25]})
    table = values.round(1)["r_mean"].map("{:.1f}".format).tolist()
    assert [shown(value) for value in values["r_mean"]] == table == ["43.4", "0.4", "94.2"]
    rows = results(["i2t/R@1"]).assign(value=43.45, low=43.0, high=44.0)
    figure = plots.plot_results(rows[~rows.variant.isin(("floor", "teachers", "ceiling"))])
    assert {text.get_text() for axes in figure.axes for text in axes.texts} == {"43.4"}
