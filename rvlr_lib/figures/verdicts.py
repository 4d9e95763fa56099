"""Charts that answer: claims with their verdicts, the regime map, the trade-off plane."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from rvlr_lib.figures.charts import SEEDS, legend_below, levels, panel_grid, part, seed_summary
from rvlr_lib.figures.style import BLUE, VERMILLION, is_narrow, looks, new_figure, page_width, style, wrap
from rvlr_lib.tables import arm_label, arm_order, metric_label, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

VERDICTS = {"better": BLUE, "worse": VERMILLION, "equivalent": "0.1", "inconclusive": "0.45"}


def plot_claims(table: "pd.DataFrame", *, level: str = "95\u00a0%, Holm-corrected") -> "Figure":
    """Each claim's sentence, effect, interval and verdict; the grey band is ±δ, hollow dots are a claim's parts.

    Args:
        table: a row per claim and part: claim (the sentence), part (its name; missing for the claim itself), mean, low,
            high, delta, verdict.
        level: of the intervals, as text.
    """
    beside, width = not is_narrow(), page_width()  # where verdicts stand; else below the sentence
    whole = table[table["part"].isna()] if "part" in table else table
    titles = [
        f"{shown(mean, signed=True)} {verdict}" for mean, verdict in zip(whole["mean"], whole["verdict"], strict=True)
    ]
    labels = [wrap(text, width * (0.45 if beside else 0.55)) for text in whole["claim"]]
    labels = labels if beside else [[*lines, title] for lines, title in zip(labels, titles, strict=True)]
    counts = [int((table["claim"] == claim).sum()) for claim in whole["claim"]]
    heights = [0.2 + 0.15 * max(len(lines), count) for lines, count in zip(labels, counts, strict=True)]
    with style():
        figure = new_figure(width, 0.75 + sum(heights))
        axes = figure.subplots()
        middles, top = [], 0.0
        for (place, row), height, title in zip(whole.iterrows(), heights, titles, strict=True):
            parts = table[(table["claim"] == row["claim"]) & (table.index != place)]
            band = [top + 0.04, top + height - 0.04]
            axes.fill_betweenx(band, -row["delta"], row["delta"], color="0.92", linewidth=0)
            middles.append(top + height / 2)
            top += height
            for number, (_, one) in enumerate([(place, row), *parts.iterrows()]):
                color, y = VERDICTS.get(one["verdict"], "0.45"), middles[-1] + 0.15 * (number - len(parts) / 2)
                axes.plot([one["low"], one["high"]], [y, y], color=color, linewidth=0.9 if number else 1.6)
                face, size = ("white", 4) if number else (color, 5.5)
                axes.plot(one["mean"], y, "o", color=color, markersize=size, markerfacecolor=face)
                if beside or number:
                    text, weight = (one["part"], "normal") if number else (title, "bold")
                    how = {"xycoords": ("axes fraction", "data"), "va": "center", "color": color, "weight": weight}
                    axes.annotate(text, (1.01, y), **how)
        axes.axvline(0, color="0.15", linewidth=0.8)
        axes.set_yticks(middles, ["\n".join(lines) for lines in labels])
        axes.set_ylim(top, 0)
        axes.grid(visible=False, axis="y")
        hollow = "; hollow: parts" if len(table) > len(whole) else ""
        legend_below(figure, f"effect in points; intervals: {level}; grey: ±δ{hollow}")
    return figure


def plot_regime_map(frame: "pd.DataFrame", *, metric: str = "difference, points") -> "Figure":
    """Mean effect by teacher and gradient ratio, a panel per dial setting; hatched unless the interval excludes 0.

    Args:
        frame: columns dial, teacher, ratio, seed, value (a difference in points).
        metric: names the colour bar.
    """
    import seaborn
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import withStroke

    dials, teachers, ratios = levels(frame, "dial"), levels(frame, "teacher"), sorted(set(frame["ratio"]))
    rows = seed_summary(frame, ("dial", "teacher", "ratio"))
    most = max(float(rows["mean"].abs().max()), 1e-9)
    with style():
        across = 1 if is_narrow() else len(dials)
        figure, cells = panel_grid([None], dials, across, 0.5 + 0.27 * len(teachers), sharey=True)
        text = {"color": "0.05", "path_effects": [withStroke(linewidth=2, foreground="white")]}
        shades = {"cmap": "RdBu", "vmin": -most, "vmax": most, "cbar": False, "linewidths": 0.6}
        for axes, _, dial in cells:
            own = part(rows, dial=dial)
            values = own.pivot(index="teacher", columns="ratio", values="mean").reindex(index=teachers, columns=ratios)
            numbers = values.map(lambda value: shown(value, signed=True))
            seaborn.heatmap(values, ax=axes, annot=numbers, fmt="", annot_kws=text, **shades)
            for row in own.itertuples():
                if not (row.low > 0 or row.high < 0):
                    place = ratios.index(row.ratio), teachers.index(row.teacher)
                    axes.add_patch(Rectangle(place, 1, 1, fill=False, hatch="///", edgecolor="0.7", linewidth=0))
            axes.set_xticks([i + 0.5 for i in range(len(ratios))], [f"{ratio:g}" for ratio in ratios])
            axes.set_yticks([i + 0.5 for i in range(len(teachers))], map(arm_label, teachers), rotation=0)
            axes.set(xlabel="gradient ratio", ylabel="", title=arm_label(dial or ""))
        figure.colorbar(figure.axes[0].collections[0], ax=figure.axes, shrink=0.8, label=metric)
        legend_below(figure, f"hatched: the 95\u00a0% interval holds 0, or fewer than {SEEDS} seeds")
    return figure


def plot_trade_off(
    frame: "pd.DataFrame", x: str, y: str, *, paths: "pd.DataFrame | None" = None, origin: str = "matching"
) -> "Figure":
    """Two metrics against each other, a panel per dial setting: dots per seed, arrows from ``origin``, Pareto front.

    Args:
        frame: tidy, with the metrics ``x`` and ``y``.
        x: metric across, such as r_mean.
        y: metric upwards, such as the mean of i2i and t2t above the floor.
        paths: interpolated weights: columns dial, path (such as ``matching → rvlr``), alpha, seed, metric, value.
        origin: the arm at which arrows start.
    """
    keys = [name for name in ("dial", "seed", "arm") if name in frame]
    points = frame[frame["metric"].isin((x, y))].pivot_table(index=keys, columns="metric", values="value", sort=False)
    points = points.dropna().reset_index()
    dials, look = levels(points, "dial"), looks(arm_order(points["arm"]))
    with style():
        figure, cells = panel_grid([None], dials, 1 if is_narrow() else len(dials), 2.6)
        for axes, _, dial in cells:
            own = part(points, dial=dial).copy()
            if "seed" in own:  # a seed's own level (its world, its split) is not the arms' doing
                own[[x, y]] += own[[x, y]].mean() - own.groupby("seed")[[x, y]].transform("mean")
            means = own.groupby("arm", sort=False)[[x, y]].mean()
            for _, path in [] if paths is None else part(paths, dial=dial).groupby("path", sort=False):
                line = path.pivot_table(index="alpha", columns="metric", values="value")
                axes.plot(
                    line[x], line[y], ":.", color="0.35", markersize=2.5, linewidth=1, label="weights interpolated"
                )
            for arm, mean in means.iterrows():
                color, marker, _ = look[arm]
                seeds = own[own["arm"] == arm]
                axes.plot(seeds[x], seeds[y], marker, color=color, markersize=2.5, alpha=0.45)
                if origin in means.index and arm != origin:
                    arrow = {"arrowstyle": "->", "color": color, "linewidth": 0.9, "shrinkB": 4}
                    axes.annotate("", mean, means.loc[origin], arrowprops=arrow)
                axes.plot(*mean, marker, color=color, markersize=6, markeredgecolor="white", zorder=4)
            axes.margins(0.12)
            (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
            front = pareto_front(means.to_numpy().tolist())
            steps = [(edge, b[1]) for a, b in pairwise([(left, high), *front]) for edge in (a[0], b[0])]
            axes.fill_between(*zip(*steps, strict=True), low, color="0.93", zorder=0, label="below the Pareto front")
            labels = {"xlabel": metric_label(x), "ylabel": metric_label(y), "title": arm_label(dial or "")}
            axes.set(xlim=(left, right), ylim=(low, high), **labels)
        series = {arm_label(arm): look[arm] for arm in look}
        legend_below(figure, "small: seeds, each without its own level; large: means", series)
    return figure


def pareto_front(points: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """Points that none exceeds in both coordinates, from left to right.

    >>> pareto_front([(1, 3), (2, 2), (1, 1), (3, 0)])
    [(1, 3), (2, 2), (3, 0)]
    """
    kept: list[tuple[float, ...]] = []
    for point in sorted(map(tuple, points), reverse=True):
        if not kept or point[1] > kept[-1][1]:
            kept.append(point)
    return kept[::-1]
