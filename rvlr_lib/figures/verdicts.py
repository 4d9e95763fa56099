"""Charts of outcomes: claims with verdicts, regime map, trade-off between two metrics."""

from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from rvlr_lib.figures.charts import BESIDE, SEEDS, legend_below, levels, panel_grid, seed_summary, select
from rvlr_lib.figures.style import BLUE, LINE, VERMILLION, is_narrow, looks, new_figure, page_width, style, wrap
from rvlr_lib.study.claims import signed
from rvlr_lib.tables import arm_label, arm_order, format_number, metric_label

VERDICTS = {"better": BLUE, "worse": VERMILLION, "equivalent": "0.1", "inconclusive": "0.45"}
ORIGIN = "matching"  # arm at which the arrows of a trade-off start


@style()
def plot_claims(table: pd.DataFrame, *, level: str) -> Figure:
    """Plot each claim's effect and interval with its sentence and verdict, over a grey band of ±δ.

    Columns of ``table``: claim (a sentence), mean, low, high, delta, verdict, and part. A row with a part is a control
    of the claim above it, drawn hollow. ``level`` describes the intervals, as text.
    """
    narrow, width, labels, verdicts = is_narrow(), page_width(), [], []
    for row in table.to_dict("records"):
        is_control = isinstance(row.get("part"), str)
        verdicts.append("" if is_control else f"{signed(row['mean'])} {row['verdict']}")
        lines = [row["part"]] if is_control else wrap(row["claim"], width * (0.55 if narrow else 0.45))
        labels.append([*lines, verdicts[-1]] if narrow and not is_control else lines)
    edges = np.cumsum([0, *(0.08 + LINE * len(lines) for lines in labels)])
    middles = (edges[1:] + edges[:-1]) / 2
    figure = new_figure(width, 0.75 + edges[-1])
    axes = figure.subplots()
    for row, y, band, verdict in zip(table.itertuples(), middles, pairwise(edges), verdicts, strict=True):
        color, bar = VERDICTS.get(row.verdict, "0.45"), [[row.mean - row.low], [row.high - row.mean]]
        axes.fill_betweenx(band, -row.delta, row.delta, color="0.92", linewidth=0)
        face, size, thick = (color, 5.5, 1.6) if verdict else ("white", 4, 0.9)
        dot: dict[str, Any] = {"markersize": size, "markerfacecolor": face, "elinewidth": thick}
        axes.errorbar(row.mean, y, xerr=bar, fmt="o", color=color, **dot)
        if not narrow:
            axes.annotate(verdict, (1.01, y), color=color, weight="bold", **BESIDE)
    axes.axvline(0, color="0.15", linewidth=0.8)
    axes.set_yticks(middles, ["\n".join(lines) for lines in labels])
    axes.set_ylim(edges[-1], 0)
    axes.grid(visible=False, axis="y")
    note = f"effect in points; intervals: {level}; grey band: ±δ"
    legend_below(figure, note if all(verdicts) else f"{note}; hollow: controls")
    return figure


@style()
def plot_regime_map(frame: pd.DataFrame, *, metric: str = "difference, points") -> Figure:
    """Plot mean effects by teacher and gradient ratio per dial setting; hatched unless the interval excludes 0.

    Columns of ``frame``: dial, teacher, ratio, seed, value (a difference in points); ``metric`` labels the colour bar.
    """
    dials, teachers, ratios = levels(frame, "dial"), levels(frame, "teacher"), sorted(set(frame["ratio"]))
    effects = seed_summary(frame, ("dial", "teacher", "ratio"))
    largest = max(float(effects["mean"].abs().max()), 1e-9)
    text = {"color": "0.05", "path_effects": [withStroke(linewidth=2, foreground="white")]}
    shades = {"cmap": "RdBu", "vmin": -largest, "vmax": largest, "cbar": False, "linewidths": 0.6}
    figure, cells = panel_grid([None], dials, (1, len(dials)), 0.5 + 0.27 * len(teachers), label=arm_label, sharey=True)
    for axes, _, dial in cells:
        panel = select(effects, dial=dial)
        values = panel.pivot(index="teacher", columns="ratio", values="mean").reindex(index=teachers, columns=ratios)
        numbers = values.map(lambda value: format_number(value, signed=True))
        values = values.rename(index=arm_label, columns="{:g}".format)
        seaborn.heatmap(values, ax=axes, annot=numbers, fmt="", annot_kws=text, **shades)
        for row in panel[~((panel["low"] > 0) | (panel["high"] < 0))].itertuples():
            corner = ratios.index(row.ratio), teachers.index(row.teacher)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", edgecolor="0.7", linewidth=0))
        axes.tick_params(rotation=0)
        axes.set(xlabel="pull (gradient ratio)", ylabel="")
    figure.colorbar(figure.axes[0].collections[0], ax=figure.axes, shrink=0.8, label=metric)
    legend_below(figure, f"hatched: 95\u00a0% interval contains 0, or fewer than {SEEDS} seeds")
    return figure


@style()
def plot_trade_off(frame: pd.DataFrame, x: str, y: str, *, paths: pd.DataFrame) -> Figure:
    """Plot metric ``y`` against ``x``, a panel per dial setting: dots per seed, arrows from ``ORIGIN``, Pareto front.

    ``paths``: results of interpolated weights: dial, path (such as ``matching → rvlr``), alpha, seed, metric, value.
    """
    points = frame.pivot_table(index=["dial", "seed", "arm"], columns="metric", values="value", sort=False)
    points = points[[x, y]].dropna().reset_index()
    dials, look = levels(points, "dial"), looks(arm_order(points["arm"]))
    figure, cells = panel_grid([None], dials, (1, len(dials)), 2.6, label=arm_label)
    for axes, _, dial in cells:
        panel = select(points, dial=dial).copy()
        # remove the seed effect (scenes and split differ by seed), which no arm causes
        panel[[x, y]] += panel[[x, y]].mean() - panel.groupby("seed")[[x, y]].transform("mean")
        means = panel.groupby("arm", sort=False)[[x, y]].mean()
        for _, path in select(paths, dial=dial).groupby("path", sort=False):
            line = path.pivot_table(index="alpha", columns="metric", values="value").reindex(columns=[x, y])
            axes.plot(line[x], line[y], ":.", color="0.35", markersize=2.5, linewidth=1, label="interpolated weights")
        for arm, mean in means.iterrows():
            (color, marker, _), seeds = look[arm], panel[panel["arm"] == arm]
            axes.plot(seeds[x], seeds[y], marker, color=color, markersize=2.5, alpha=0.45)
            if ORIGIN in means.index and arm != ORIGIN:
                arrow = {"arrowstyle": "->", "color": color, "linewidth": 0.9, "shrinkB": 4}
                axes.annotate("", mean, means.loc[ORIGIN], arrowprops=arrow)
            axes.plot(*mean, marker, color=color, markersize=6, markeredgecolor="white", zorder=4)
        axes.margins(0.12)
        (left, right), (low, high), front = axes.get_xlim(), axes.get_ylim(), pareto_front(means)
        shade: dict[str, Any] = {"color": "0.93", "zorder": 0, "label": "below the Pareto front"}
        axes.fill_between([left, *front[x]], [high, *front[y]], low, step="pre", **shade)
        axes.set(xlim=(left, right), ylim=(low, high), xlabel=metric_label(x), ylabel=metric_label(y))
    note = "small dots: seeds, seed effect removed; large: means"
    legend_below(figure, note, {arm_label(arm): look[arm] for arm in look})
    return figure


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """Rows that no other row dominates in the two columns, from left to right."""
    x, y = points
    order = points.sort_values([x, y], ascending=False)
    return order[order[y] > order[y].cummax().shift(fill_value=-np.inf)][::-1]
