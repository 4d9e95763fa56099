"""Charts that answer: claims with their verdicts, the regime map, the trade-off plane."""

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
from rvlr_lib.tables import arm_label, arm_order, metric_label, shown

VERDICTS = {"better": BLUE, "worse": VERMILLION, "equivalent": "0.1", "inconclusive": "0.45"}
ORIGIN = "matching"  # where the arrows of a trade-off begin


@style()
def plot_claims(table: pd.DataFrame, *, level: str) -> Figure:
    """Each claim's sentence, effect, interval and verdict; the grey band is ±δ, hollow dots are a claim's parts.

    Columns of ``table``: claim (a sentence), mean, low, high, delta, verdict, and part, which names the parts that
    follow a claim. ``level`` is that of the intervals, as text.
    """
    narrow, width, labels, titles = is_narrow(), page_width(), [], []
    for row in table.to_dict("records"):
        hollow = isinstance(row.get("part"), str)
        titles.append("" if hollow else f"{signed(row['mean'])} {row['verdict']}")
        lines = [row["part"]] if hollow else wrap(row["claim"], width * (0.55 if narrow else 0.45))
        labels.append([*lines, titles[-1]] if narrow and not hollow else lines)
    ends = np.cumsum([0, *(0.08 + LINE * len(lines) for lines in labels)])
    middles = (ends[1:] + ends[:-1]) / 2
    figure = new_figure(width, 0.75 + ends[-1])
    axes = figure.subplots()
    for row, y, band, title in zip(table.itertuples(), middles, pairwise(ends), titles, strict=True):
        color, xerr = VERDICTS.get(row.verdict, "0.45"), [[row.mean - row.low], [row.high - row.mean]]
        axes.fill_betweenx(band, -row.delta, row.delta, color="0.92", linewidth=0)
        face, size, thick = (color, 5.5, 1.6) if title else ("white", 4, 0.9)
        dot: dict[str, Any] = {"markersize": size, "markerfacecolor": face, "elinewidth": thick}
        axes.errorbar(row.mean, y, xerr=xerr, fmt="o", color=color, **dot)
        if not narrow:
            axes.annotate(title, (1.01, y), color=color, weight="bold", **BESIDE)
    axes.axvline(0, color="0.15", linewidth=0.8)
    axes.set_yticks(middles, ["\n".join(lines) for lines in labels])
    axes.set_ylim(ends[-1], 0)
    axes.grid(visible=False, axis="y")
    legend_below(figure, f"effect in points; intervals: {level}; grey: ±δ{'' if all(titles) else '; hollow: controls'}")
    return figure


@style()
def plot_regime_map(frame: pd.DataFrame, *, metric: str = "difference, points") -> Figure:
    """Mean effect by teacher and gradient ratio, a panel per dial setting; hatched unless the interval excludes 0.

    Columns of ``frame``: dial, teacher, ratio, seed, value (a difference in points); ``metric`` names the colour bar.
    """
    dials, teachers, ratios = levels(frame, "dial"), levels(frame, "teacher"), sorted(set(frame["ratio"]))
    rows = seed_summary(frame, ("dial", "teacher", "ratio"))
    most = max(float(rows["mean"].abs().max()), 1e-9)
    text = {"color": "0.05", "path_effects": [withStroke(linewidth=2, foreground="white")]}
    shades = {"cmap": "RdBu", "vmin": -most, "vmax": most, "cbar": False, "linewidths": 0.6}
    height = 0.5 + 0.27 * len(teachers)
    figure, cells = panel_grid([None], dials, (1, len(dials)), height, label=arm_label, sharey=True)
    for axes, _, dial in cells:
        own = select(rows, dial=dial)
        values = own.pivot(index="teacher", columns="ratio", values="mean").reindex(index=teachers, columns=ratios)
        numbers = values.map(lambda value: shown(value, signed=True))
        values = values.rename(index=arm_label, columns="{:g}".format)
        seaborn.heatmap(values, ax=axes, annot=numbers, fmt="", annot_kws=text, **shades)
        for row in own[~((own["low"] > 0) | (own["high"] < 0))].itertuples():
            place = ratios.index(row.ratio), teachers.index(row.teacher)
            axes.add_patch(Rectangle(place, 1, 1, fill=False, hatch="///", edgecolor="0.7", linewidth=0))
        axes.tick_params(rotation=0)
        axes.set(xlabel="gradient ratio", ylabel="")
    figure.colorbar(figure.axes[0].collections[0], ax=figure.axes, shrink=0.8, label=metric)
    legend_below(figure, f"hatched: the 95\u00a0% interval holds 0, or fewer than {SEEDS} seeds")
    return figure


@style()
def plot_trade_off(frame: pd.DataFrame, x: str, y: str, *, paths: pd.DataFrame) -> Figure:
    """Two metrics against each other, a panel per dial setting: dots per seed, arrows from ``ORIGIN``, Pareto front.

    ``paths`` are interpolated weights: columns dial, path (such as ``matching → rvlr``), alpha, seed, metric, value.
    """
    points = frame.pivot_table(index=["dial", "seed", "arm"], columns="metric", values="value", sort=False)
    points = points[[x, y]].dropna().reset_index()
    dials, look = levels(points, "dial"), looks(arm_order(points["arm"]))
    figure, cells = panel_grid([None], dials, (1, len(dials)), 2.6, label=arm_label)
    for axes, _, dial in cells:
        own = select(points, dial=dial).copy()
        # A seed's own level (its world, its split) is not the arms' doing.
        own[[x, y]] += own[[x, y]].mean() - own.groupby("seed")[[x, y]].transform("mean")
        means = own.groupby("arm", sort=False)[[x, y]].mean()
        for _, path in select(paths, dial=dial).groupby("path", sort=False):
            line = path.pivot_table(index="alpha", columns="metric", values="value").reindex(columns=[x, y])
            axes.plot(line[x], line[y], ":.", color="0.35", markersize=2.5, linewidth=1, label="weights interpolated")
        for arm, mean in means.iterrows():
            (color, marker, _), seeds = look[arm], own[own["arm"] == arm]
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
    series = {arm_label(arm): look[arm] for arm in look}
    legend_below(figure, "small: seeds, less each seed's mean over the arms; large: means", series)
    return figure


def pareto_front(points: pd.DataFrame) -> pd.DataFrame:
    """The rows that none exceeds in both of the two columns, from left to right."""
    x, y = points
    order = points.sort_values([x, y], ascending=False)
    return order[order[y] > order[y].cummax().shift(fill_value=-np.inf)][::-1]
