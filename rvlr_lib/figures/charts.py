"""Charts of results, each a function from a tidy frame to a figure.

Columns are dataset, dial, arm, seed, metric, value and those that a chart names; one that does not vary may be missing.
Everywhere: a small dot a seed, a large one for the mean, a 95 % t-interval only from five seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rvlr_lib.figures.style import COLUMN, FONT_SIZE, MOST, Look, is_narrow, looks, new_figure, page_width, style, wrap
from rvlr_lib.metrics.statistics import paired_effect
from rvlr_lib.tables import arm_label, arm_order, differences, metric_label, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS = 5  # from here on an interval is drawn
LINES = {"floor": ":", "teachers": "--", "ceiling": "-"}  # reference rows of plot_arms
BARS = f"small dots: seeds; bars: 95\u00a0% intervals, from {SEEDS} seeds on"


def seed_summary(frame: "pd.DataFrame", by: Sequence[str] = ("dataset", "dial", "arm", "metric")) -> "pd.DataFrame":
    """Mean over seeds, ends of the 95 % t-interval (missing below five seeds) and number of seeds of each group."""

    def end(which: str) -> Callable[[Any], float]:
        return lambda values: getattr(paired_effect(list(values)), which) if len(values) >= SEEDS else float("nan")

    groups = frame.groupby([name for name in by if name in frame], sort=False)["value"]
    return groups.agg(mean="mean", low=end("low"), high=end("high"), seeds="count").reset_index()


def plot_arms(
    frame: "pd.DataFrame", *, xlabel: str = "", zero: bool = False, marks: Mapping[str, float] | None = None
) -> "Figure":
    """Arms as rows, a panel per metric, dial settings below each other; floor, teachers and ceiling are lines.

    Args:
        frame: tidy; order and choice of arms, metrics and dial settings are its own.
        xlabel: below the figure.
        zero: a line at 0, and signs before the numbers.
        marks: metric -> size of an effect, marked by dashed lines on both sides of 0.
    """
    metrics, dials = levels(frame, "metric"), levels(frame, "dial")
    arms = [name for name in arm_order(frame["arm"]) if name not in LINES]
    height, look = 0.45 + 0.165 * len(arms), looks(arms)
    stacked = len(metrics) * len(dials) * height < MOST - 0.9
    with style():
        across = min(len(metrics), (1 if stacked else 2) if is_narrow() else 4)
        figure, cells = panel_grid(dials, metrics, across, height, sharey=True)
        for axes, dial, metric in cells:
            known = part(frame, dial=dial, metric=metric)
            for place, arm in enumerate(arms):
                own = part(known, arm=arm)
                axes.plot(own["value"], [place] * len(own), ".", color=look[arm].color, alpha=0.4, markersize=4)
                for row in seed_summary(own, ["arm"]).itertuples():
                    ends = [[row.mean - row.low], [row.high - row.mean]]
                    axes.errorbar(row.mean, place, xerr=ends, color=look[arm].color, marker=look[arm].marker)
                    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}
                    axes.annotate(shown(row.mean, metric, signed=zero), (1.02, place), **beside)
            for name, line in LINES.items():
                for value in part(known, arm=name).groupby("arm")["value"].mean():
                    axes.axvline(value, color="0.15", linewidth=1, linestyle=line, label=arm_label(name))
            for size in [marks[metric]] if marks and metric in marks else []:
                for value in (-size, size):
                    axes.axvline(value, color="0.4", linewidth=0.8, linestyle="--", label="effect to be explained")
            if zero:
                axes.axvline(0, color="0.15", linewidth=0.8, zorder=1)
            axes.set_title("\n".join(wrap(metric_label(metric), 0.85 * (page_width() - 1) / across)))
            axes.set_yticks(range(len(arms)), map(arm_label, arms))
            axes.set_ylim(len(arms) - 0.5, -0.5)
            if len(dials) > 1 and metric in metrics[::across]:
                axes.set_ylabel(arm_label(dial), weight="bold")
            axes.locator_params(axis="x", nbins=4)
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.12)
        legend_below(figure, f"{xlabel}; {BARS}" if xlabel else BARS)
    return figure


def plot_differences(frame: "pd.DataFrame", baseline: str, marks: Mapping[str, float] | None = None) -> "Figure":
    """:func:`plot_arms` of every arm minus the baseline, paired by seed, with a line at 0.

    Also for ablation switches: the arm is then the switch, and ``marks`` the gap that it would have to explain.
    """
    change = differences(frame, baseline)
    return plot_arms(change, xlabel=f"difference to {arm_label(baseline)}", zero=True, marks=marks)


def plot_curves(
    frame: "pd.DataFrame",
    x: str,
    *,
    hue: str = "arm",
    panel: str = "metric",
    columns: int = 3,
    zero: bool = False,
    **labels: str,
) -> "Figure":
    """Values along ``x``, a line per ``hue``, a panel per ``panel``; rows of panels where the dial varies besides.

    Args:
        frame: tidy, with the columns named here; numbers in ``x`` stand to scale, words in their order.
        x: such as dial, strength.
        hue: a line each.
        panel: a panel each.
        columns: panels side by side on a page.
        zero: draw the line y = 0.
        labels: ``xlabel`` and ``ylabel``.
    """
    import pandas as pd

    names, panels, places = levels(frame, hue), levels(frame, panel), levels(frame, x)
    dials = [None] if "dial" in (x, hue, panel) else levels(frame, "dial")
    scaled, look = pd.api.types.is_numeric_dtype(frame[x]), looks(names)
    if not scaled:  # a little apart, so that none hides another
        apart = frame[hue].map(names.index) - (len(names) - 1) / 2
        frame = frame.assign(**{x: frame[x].map(places.index) + apart * min(0.08, 0.6 / len(names))})
    with style():
        across = min(len(panels), 1 if is_narrow() else columns)
        figure, cells = panel_grid(dials, panels, across, 1.85)
        for axes, dial, title in cells:
            for name in names:
                own = part(frame, **{"dial": dial, panel: title, hue: name})
                mean, color = seed_summary(own, [x]).sort_values(x), look[name].color
                ends = [mean["mean"] - mean["low"], mean["high"] - mean["mean"]]
                if (mean["seeds"] > 1).any():
                    axes.plot(own[x], own["value"], ".", color=color, markersize=3, alpha=0.4)
                shape = {"marker": look[name].marker, "linestyle": look[name].line}
                axes.errorbar(mean[x], mean["mean"], ends, color=color, elinewidth=0.9, **shape)
            if zero:
                axes.axhline(0, color="0.15", linewidth=0.8, zorder=1)
            if not scaled:
                axes.set_xticks(range(len(places)), ["\n".join(wrap(arm_label(name), 0.75)) for name in places])
            head = metric_label(str(title)) + (f", {arm_label(dial)}" if len(dials) > 1 else "")
            axes.set_title("\n".join(wrap(head, 0.85 * page_width() / across)))
            axes.set(**labels)
        legend_below(figure, BARS, {arm_label(name): look[name] for name in names})
    return figure


def plot_mix_ratio(frame: "pd.DataFrame") -> "Figure":
    """Captions among the best ten against their share of the corpus (column ``captions``, %), and an ideal ranking.

    Args:
        frame: of :func:`rvlr_lib.evaluation.curves.mix_ratio_curve`: the metrics ``…/captions_in_top`` and ``…_ideal``.
    """
    import pandas as pd

    own = frame[frame["metric"].str.endswith("captions_in_top")]
    ideal = frame[frame["metric"].str.endswith("_ideal") & (frame["arm"] == frame["arm"].iloc[0])]
    ideal = ideal.assign(arm="ideal", metric=ideal["metric"].str.removesuffix("_ideal"))
    both, ylabel = pd.concat([own, ideal]), "captions in top 10 (%)"
    return plot_curves(both, "captions", columns=2, xlabel="captions in the corpus (%)", ylabel=ylabel)


def plot_perturbations(frame: "pd.DataFrame", k: int = 10) -> "Figure":
    """R@k against the strength of a change to the query (columns ``perturbation`` and ``strength``)."""
    own = frame[frame["metric"].str.endswith(f"R@{k}")]
    return plot_curves(own, "strength", panel="perturbation", xlabel="strength", ylabel=f"R@{k} (%)")


def plot_strength(frame: "pd.DataFrame") -> "Figure":
    """Every metric against the strength of matching (column ``strength``), a line per dial setting."""
    return plot_curves(frame, "strength", hue="dial", columns=2, xlabel="strength of matching")


def plot_structure_stages(frame: "pd.DataFrame", stages: Sequence[str]) -> "Figure":
    """What each stage leaves of the structure: a panel per metric (``image/overlap_truth``), a line per dial setting.

    Args:
        frame: tidy; its arms are the stages.
        stages: from left to right, such as start, matching, matching_longer, rvlr.
    """
    known = frame[frame["arm"].isin(stages)].sort_values("arm", key=lambda c: c.map(stages.index), kind="stable")
    return plot_curves(known, "arm", hue="dial", columns=2)


def log_frame(logs: Mapping[str, Sequence[Mapping[str, Any]]], first: str = "matching") -> "pd.DataFrame":
    """Training logs by arm as a frame (arm, stage, step, term, value); stage 2 begins where ``first`` ends."""
    import pandas as pd

    end = max((record["step"] for record in logs.get(first, ())), default=0)
    rows = []
    for arm, records in logs.items():
        for record in records:
            known = {
                k: v for k, v in record.items() if k not in ("step", "epoch", "seed") and isinstance(v, int | float)
            }
            at = (arm, 1, record["step"]) if arm == first else (arm, 2, record["step"] + end)
            rows += [(*at, term, float(value)) for term, value in known.items()]
    return pd.DataFrame(rows, columns=["arm", "stage", "step", "term", "value"])


def plot_training(log: "pd.DataFrame", terms: Sequence[str] | None = None) -> "Figure":
    """Loss terms, then validation scores (or ``terms``) over steps, a panel each; a line where stage 2 begins.

    Args:
        log: from :func:`log_frame`.
        terms: those to draw, in their order.
    """
    found = levels(log, "term")
    terms = terms or [t for kind in ("loss", "validation") for t in found if t.startswith(kind)] or found
    look, switch = looks(log["arm"]), log[log["stage"] == 1]["step"].max()
    with style():
        figure, cells = panel_grid([None], terms, min(len(terms), 2 if is_narrow() else 3), 1.55)
        for axes, _, term in cells:
            for arm, line in part(log, term=term).groupby("arm", sort=False):
                values = line["value"].rolling(max(1, len(line) // 20), center=True, min_periods=1).mean()
                if len(line) > 60:
                    axes.plot(line["step"], line["value"], color=look[arm].color, linewidth=0.4, alpha=0.3)
                shape = {"marker": look[arm].marker, "linestyle": look[arm].line, "markevery": max(1, len(line) // 6)}
                axes.plot(line["step"], values, color=look[arm].color, markersize=3, **shape)
            if switch < log["step"].max():
                axes.axvline(switch, color="0.3", linewidth=0.8, linestyle=":", label="stage 2 begins")
            axes.set(title=metric_label(term), xlabel="step")
            axes.locator_params(axis="x", nbins=4)
        legend_below(figure, "", {arm_label(arm): look[arm] for arm in look})
    return figure


def plot_gradient_shares(frame: "pd.DataFrame") -> "Figure":
    """Share of each loss term in the gradient: a stacked bar per arm.

    Args:
        frame: columns arm, term, value (norm; seeds are averaged) and perhaps ``moment``, a panel each.
    """
    moments, arms, terms = levels(frame, "moment"), arm_order(frame["arm"]), levels(frame, "term")
    look, across = looks(terms), 1 if is_narrow() else len(moments)
    least = 33 * across / (page_width() - 1.4)  # percent: narrower parts have no room for a number
    with style():
        figure, cells = panel_grid([None], moments, across, 0.5 + 0.24 * len(arms), sharey=True)
        for axes, _, moment in cells:
            table = part(frame, moment=moment).pivot_table(index="arm", columns="term", values="value", fill_value=0.0)
            shares, left = 100 * table.div(table.sum(axis=1), axis=0).reindex(index=arms, columns=terms), 0.0
            for number, term in enumerate(terms):
                fill: dict[str, Any] = {"color": look[term].color, "hatch": ("", "////", "....", "xxxx")[number % 4]}
                bars = axes.barh(
                    range(len(arms)), shares[term], left=left, edgecolor="white", label=metric_label(term), **fill
                )
                texts = [shown(value) if value > least else "" for value in shares[term]]
                box = {"facecolor": "white", "linewidth": 0, "pad": 0.6}
                axes.bar_label(bars, texts, label_type="center", bbox=box)
                left = left + shares[term]
            axes.set_yticks(range(len(arms)), map(arm_label, arms))
            axes.set(
                xlim=(0, 100), ylim=(len(arms) - 0.5, -0.5), xlabel="share of gradient norms (%)", title=moment or ""
            )
        legend_below(figure)
    return figure


def levels(frame: "pd.DataFrame", column: str) -> list[Any]:
    """Values of a column in their order, ``[None]`` where it is missing.

    Raises:
        ValueError: the frame is empty.
    """
    if frame.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    return list(dict.fromkeys(frame[column])) if column in frame else [None]


def part(frame: "pd.DataFrame", **values: Any) -> "pd.DataFrame":
    """The rows with these values; None takes all."""
    for column, value in values.items():
        frame = frame if value is None else frame[frame[column] == value]
    return frame


def panel_grid(
    rows: Sequence[Any], panels: Sequence[Any], across: int, height: float, **options: Any
) -> tuple["Figure", list[tuple["Axes", Any, Any]]]:
    """A figure with its panels: for each of ``rows`` all ``panels``, ``across`` side by side; one alone is narrower."""
    lines = [(row, panels[i : i + across]) for row in rows for i in range(0, len(panels), across)]
    width = page_width() if across > 1 else min(page_width(), 1.35 * COLUMN)
    figure = new_figure(width, 0.55 + len(lines) * height)
    grid = figure.subplots(len(lines), across, squeeze=False, **options)
    for (_, names), line in zip(lines, grid, strict=True):
        for axes in line[len(names) :]:
            axes.remove()
    return figure, [
        (axes, row, name)
        for (row, names), line in zip(lines, grid, strict=True)
        for name, axes in zip(names, line, strict=False)
    ]


def legend_below(figure: "Figure", note: str = "", series: Mapping[str, Look] | None = None) -> None:
    """A note and one legend below all panels: the series, and every label that a panel has."""
    from matplotlib.lines import Line2D

    width, handles = figure.get_figwidth(), dict[str, Any]()
    for name, (color, marker, line) in (series or {}).items():
        handles[name] = Line2D([], [], color=color, marker=marker, linestyle=line)
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    note = "\n".join(wrap(note, width - 0.1))
    if not handles:
        figure.supxlabel(note, fontsize=FONT_SIZE)
        return
    columns = min(len(handles), max(1, int(width / (0.45 + 0.06 * max(map(len, handles))))))
    figure.legend(
        list(handles.values()), list(handles), title=note, loc="outside lower center", ncols=columns, columnspacing=1.2
    )
