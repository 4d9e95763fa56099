"""Charts of results, each a function from a tidy frame to a figure.

Columns are dataset, dial, arm, seed, metric, value and what a chart's docstring adds; a column that does not vary may be
missing. Everywhere: a small dot a seed, a large one for the mean, a 95 % t-interval only from five seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from rvlr_lib.figures.style import BLUE, COLUMN, FONT_SIZE, PAGE, VERMILLION, Look, looks, new_figure, style, wrap
from rvlr_lib.metrics.statistics import t_interval
from rvlr_lib.tables import arm_label, arm_order, differences, metric_label, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEDS = 5  # from here on an interval is drawn
LINES = {"floor": ":", "teachers": "--", "ceiling": "-"}  # reference rows of plot_arms
VERDICTS = {"better": BLUE, "worse": VERMILLION, "equivalent": "0.15", "inconclusive": "0.6"}
BARS = f"small dots: seeds; bars: 95 % intervals, from {SEEDS} seeds on"


def seed_summary(frame: "pd.DataFrame", by: Sequence[str] = ("dataset", "dial", "arm", "metric")) -> "pd.DataFrame":
    """Mean over seeds, 95 % t-interval (missing below five seeds) and number of seeds of each group."""
    groups = frame.groupby([name for name in by if name in frame], sort=False)["value"]
    return groups.agg(mean="mean", low=lambda v: _interval(v)[0], high=lambda v: _interval(v)[1], seeds="count").reset_index()


def plot_arms(
    frame: "pd.DataFrame", *, metrics: Sequence[str] | None = None, dials: Sequence[str] | None = None,
    width: float = PAGE, xlabel: str = "", zero: bool = False, marks: Mapping[str, float] | None = None,
) -> "Figure":  # fmt: skip
    """Arms as rows, metrics as columns, dial settings below each other; floor, teachers and ceiling are lines.

    Args:
        frame: tidy.
        metrics: columns, in their order; default all.
        dials: likewise.
        width: inches.
        xlabel: below the figure.
        zero: a line at 0, and signs before the numbers.
        marks: metric -> size of an effect, marked by dashed lines on both sides of 0.
    """
    import seaborn

    metrics, dials = _levels(frame, "metric", metrics), _levels(frame, "dial", dials)
    arms = [name for name in arm_order(frame["arm"]) if name not in LINES]
    across = min(len(metrics), 4 if width > COLUMN else 2)
    look = looks(arms)
    with style():
        figure, cells = _grid(dials, metrics, across, width, 0.45 + 0.165 * len(arms), sharey=True)
        for axes, dial, metric in cells:
            part = _part(frame, dial=dial, metric=metric)
            own = part[~part["arm"].isin(LINES)]
            options: dict[str, Any] = {"data": own, "x": "value", "y": "arm", "order": arms, "hue": "arm", "ax": axes,
                                       "hue_order": arms, "palette": [look[arm].color for arm in arms],
                                       "legend": False}  # fmt: skip
            seaborn.stripplot(**options, size=2.6, alpha=0.55, jitter=False, zorder=2)
            seaborn.pointplot(**options, markers=[look[arm].marker for arm in arms], linestyle="none", markersize=4.5,
                              errorbar=_interval, err_kws={"linewidth": 1}, zorder=3)  # fmt: skip
            for arm, value in own.groupby("arm")["value"].mean().items():
                axes.annotate(shown(value, metric, signed=zero), (1.02, arms.index(arm)), va="center",
                              xycoords=("axes fraction", "data"))  # fmt: skip
            for name, line in LINES.items():
                for value in part[part["arm"] == name].groupby("arm")["value"].mean():
                    axes.axvline(value, color="0.15", linewidth=1, linestyle=line, label=arm_label(name))
            for value in [v for size in [(marks or {}).get(metric)] if size for v in (-size, size)]:
                axes.axvline(value, color="0.4", linewidth=0.8, linestyle="--", label="effect to be explained")
            if zero:
                axes.axvline(0, color="0.15", linewidth=0.8, zorder=1)
            title = metric_label(metric) + (f", {arm_label(dial)}" if len(dials) > 1 else "")
            axes.set_title("\n".join(wrap(title, 0.8 * (width - 1) / across)))
            axes.set(xlabel="", ylabel="", ylim=(len(arms) - 0.5, -0.5))
            axes.set_yticks(range(len(arms)), map(arm_label, arms))
            axes.locator_params(axis="x", nbins=4)
            axes.grid(visible=False, axis="y")
            axes.margins(x=0.12)
        _legend(figure, figure.axes, f"{xlabel}; {BARS}" if xlabel else BARS)
    return figure


def plot_differences(frame: "pd.DataFrame", baseline: str, **options: Any) -> "Figure":
    """:func:`plot_arms` of every arm minus the baseline, paired by seed, with a line at 0.

    Also for ablation switches: the arm is then the switch and ``marks`` the gap that it would have to explain.
    """
    change = differences(frame, baseline)
    return plot_arms(change, xlabel=f"difference to {arm_label(baseline)}", zero=True, **options)


def plot_curves(
    frame: "pd.DataFrame", x: str, *, hue: str = "arm", panel: str = "metric", width: float = PAGE, xlabel: str = "",
    ylabel: str = "", ideal: bool = False, zero: bool = False, columns: int = 3,
) -> "Figure":  # fmt: skip
    """Values along ``x``, a line per ``hue``, a panel per ``panel``, and rows of panels where the dial varies besides.

    Args:
        frame: tidy, with the columns named here; numbers in ``x`` stand to scale, words in their order.
        x: such as dial, share, strength, ratio.
        hue: a line each.
        panel: a panel each.
        width: inches.
        xlabel: of every panel.
        ylabel: of every panel.
        ideal: draw the line y = x.
        zero: draw the line y = 0.
        columns: panels side by side.
    """
    import pandas as pd
    import seaborn

    names, panels = list(dict.fromkeys(frame[hue])), _levels(frame, panel)
    dials = _levels(frame, "dial") if "dial" not in (x, hue, panel) else [None]
    scaled, look = pd.api.types.is_numeric_dtype(frame[x]), looks(names)
    with style():
        across = min(len(panels), columns if width > COLUMN else 1)
        figure, cells = _grid(dials, panels, across, width, 1.85)
        for axes, dial, title in cells:
            part = _part(frame, **{"dial": dial, panel: title})
            options: dict[str, Any] = {"data": part, "x": x, "y": "value", "hue": hue, "hue_order": names, "ax": axes,
                                       "palette": [look[name].color for name in names], "legend": False,
                                       "native_scale": scaled}  # fmt: skip
            seaborn.stripplot(**options, dodge=not scaled, jitter=False, size=2.2, alpha=0.5, zorder=2)
            seaborn.pointplot(**options, dodge=False if scaled or len(names) < 2 else 0.8 - 0.8 / len(names),
                              markers=[look[name].marker for name in names], markersize=4, linewidth=1.2,
                              linestyles=[look[name].line for name in names], errorbar=_interval,
                              err_kws={"linewidth": 1}, zorder=3)  # fmt: skip
            if ideal:
                axes.axline((0, 0), slope=1, color="0.3", linewidth=0.9, linestyle=(0, (1, 1)), label="ideal")
            if zero:
                axes.axhline(0, color="0.15", linewidth=0.8, zorder=1)
            if not scaled:
                places = list(dict.fromkeys(part[x]))
                axes.set_xticks(range(len(places)), ["\n".join(wrap(arm_label(name), 0.75)) for name in places])
            name = metric_label(str(title)) + (f", {arm_label(dial)}" if len(dials) > 1 else "")
            axes.set_title("\n".join(wrap(name, 0.85 * width / across)))
            axes.set(xlabel=xlabel, ylabel=ylabel)
        _legend(figure, figure.axes, BARS, {arm_label(name): look[name] for name in names})
    return figure


def plot_mix_ratio(frame: "pd.DataFrame", **options: Any) -> "Figure":
    """Share of captions among the top ten against their share of the corpus: extra column ``share`` (%), ideal dotted."""
    return plot_curves(frame, "share", xlabel="captions in the corpus (%)", ylabel="captions in top 10 (%)", ideal=True,
                       **options)  # fmt: skip


def plot_perturbations(frame: "pd.DataFrame", **options: Any) -> "Figure":
    """Recall against the strength of a change to the query: extra columns ``perturbation`` and ``strength``."""
    return plot_curves(frame, "strength", panel="perturbation", xlabel="strength", ylabel="recall (%)", **options)


def plot_strength(frame: "pd.DataFrame", **options: Any) -> "Figure":
    """Every metric against the strength of matching, a line per dial setting: extra column ``strength``."""
    return plot_curves(frame, "strength", hue="dial", xlabel="strength of matching", columns=2, **options)


def plot_structure_stages(frame: "pd.DataFrame", stages: Sequence[str], **options: Any) -> "Figure":
    """What each stage leaves of the structure: a panel per metric (``image/overlap_teacher``, …), a line per dial setting.

    Args:
        frame: tidy; its arms are the stages.
        stages: from left to right, such as start, matching, matching_longer, rvlr.
        options: of :func:`plot_curves`.
    """
    import pandas as pd

    order = pd.Categorical(frame["arm"], stages, ordered=True)
    known = frame.assign(arm=order).dropna(subset="arm").sort_values("arm", kind="stable")
    return plot_curves(known.assign(arm=known["arm"].astype(str)), "arm", hue="dial", columns=2, **options)


def log_frame(logs: Mapping[str, Sequence[Mapping[str, Any]]], first: str = "matching") -> "pd.DataFrame":
    """Training logs by arm as a frame (arm, stage, step, term, value); stage 2 goes on where ``first`` ends.

    Args:
        logs: arm -> records with ``step`` and the value of each term.
        first: the arm of stage 1.
    """
    import pandas as pd

    end = max((record["step"] for record in logs.get(first, ())), default=0)
    rows = [(arm, 1 if arm == first else 2, record["step"] + (arm != first) * end, term, float(value))
            for arm, records in logs.items() for record in records for term, value in record.items()
            if term not in ("step", "epoch", "seed") and isinstance(value, int | float)]  # fmt: skip
    return pd.DataFrame(rows, columns=["arm", "stage", "step", "term", "value"])


def plot_training(
    log: "pd.DataFrame", terms: Sequence[str] | None = None, *, width: float = PAGE, columns: int = 3
) -> "Figure":
    """Loss terms, validation scores or any other logged value over steps, a panel each; a line where stage 2 begins.

    Args:
        log: from :func:`log_frame`.
        terms: those to draw, in their order; default the losses, then the validation scores.
        width: inches.
        columns: panels side by side.
    """
    found = list(dict.fromkeys(log["term"]))
    kinds = [[t for t in found if t.startswith(kind)] for kind in ("loss", "validation")]
    terms = list(terms) if terms is not None else [*kinds[0], *kinds[1]] or found
    switch = log[log["stage"] == 1]["step"].max()
    look = looks(log["arm"])
    with style():
        figure, cells = _grid([None], terms, min(len(terms), columns if width > COLUMN else 2), width, 1.55)
        for axes, _, term in cells:
            for arm, line in log[log["term"] == term].groupby("arm", sort=False):
                values = line["value"].rolling(max(1, len(line) // 20), center=True, min_periods=1).mean()
                if len(line) > 60:
                    axes.plot(line["step"], line["value"], color=look[arm].color, linewidth=0.4, alpha=0.3)
                axes.plot(line["step"], values, color=look[arm].color, linestyle=look[arm].line, markersize=3,
                          marker=look[arm].marker, markevery=max(1, len(line) // 6))  # fmt: skip
            if (log["stage"] == 2).any() and switch == switch:
                axes.axvline(switch, color="0.3", linewidth=0.8, linestyle=":", label="stage 2 begins")
            axes.set_title(metric_label(term))
            axes.set_xlabel("step")
            axes.locator_params(axis="x", nbins=4)
        _legend(figure, figure.axes, "", {arm_label(arm): look[arm] for arm in look})
    return figure


def plot_gradient_shares(frame: "pd.DataFrame", *, width: float = PAGE) -> "Figure":
    """Share of each loss term in the gradient: a stacked bar per arm.

    Args:
        frame: columns arm, term, value (gradient norm; means over seeds are taken) and perhaps ``moment``, a panel each.
        width: inches.
    """
    moments = _levels(frame, "moment")
    arms, terms = arm_order(frame["arm"]), list(dict.fromkeys(frame["term"]))
    look = looks(terms)
    with style():
        figure, cells = _grid([None], moments, len(moments) if width > COLUMN else 1, width, 0.5 + 0.24 * len(arms), sharey=True)
        for axes, _, moment in cells:
            table = _part(frame, moment=moment).pivot_table(index="arm", columns="term", values="value")
            table = table.reindex(index=arms, columns=terms).fillna(0.0)
            shares, left = 100 * table.div(table.sum(axis=1), axis=0), 0.0
            for number, term in enumerate(terms):
                bars = axes.barh(range(len(arms)), shares[term], left=left, color=look[term].color, edgecolor="white",
                                 hatch=("", "////", "....", "xxxx")[number % 4], label=metric_label(term))  # fmt: skip
                axes.bar_label(bars, [shown(v) if v > 9 else "" for v in shares[term]], label_type="center",
                               bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6})  # fmt: skip
                left = left + shares[term]
            axes.set_yticks(range(len(arms)), map(arm_label, arms))
            axes.set(xlim=(0, 100), ylim=(len(arms) - 0.5, -0.5), xlabel="share of gradient norms (%)")
            axes.set_title(str(moment or ""))
        _legend(figure, figure.axes)
    return figure


def plot_claims(table: "pd.DataFrame", *, level: str = "95 %, Holm-corrected", width: float = PAGE) -> "Figure":
    """Each claim's sentence, effect, interval and verdict; the grey band is ±δ, hollow dots are a claim's parts.

    Args:
        table: a row per claim and part: claim (the sentence), part (its name; missing for the claim itself), mean, low,
            high, delta, verdict.
        level: of the intervals, as text.
        width: inches.
    """
    whole = table[table["part"].isna()] if "part" in table else table
    claims = list(whole["claim"])
    room = width * (0.45 if width > COLUMN else 0.5)
    labels = [wrap(text, room) for text in claims]
    heights = [0.16 * max(len(lines), 2) + 0.2 + 0.13 * (sum(table["claim"] == c) - 1) for c, lines in zip(claims, labels, strict=True)]
    with style():
        figure = new_figure(width, 0.75 + sum(heights))
        axes = figure.subplots()
        top = 0.0
        ticks = []
        for (_, row), height in zip(whole.iterrows(), heights, strict=True):
            middle = top + height / 2
            parts = table[(table["claim"] == row["claim"]) & (table.index != row.name)]
            axes.fill_betweenx([top + 0.04, top + height - 0.04], -row["delta"], row["delta"], color="0.92", linewidth=0)
            for number, (_, one) in enumerate([(None, row), *parts.iterrows()]):
                color, y = VERDICTS.get(one["verdict"], "0.6"), middle + 0.13 * (number - len(parts) / 2)
                axes.plot([one["low"], one["high"]], [y, y], color=color, linewidth=1.6 if not number else 0.9)
                axes.plot(one["mean"], y, "o", color=color, markersize=5.5 if not number else 4, markeredgewidth=1.1,
                          markerfacecolor="white" if number else color)  # fmt: skip
                if number:
                    axes.annotate(one["part"], (1.01, y), xycoords=("axes fraction", "data"), va="center", color="0.35")
                else:
                    axes.annotate(f"{shown(one['mean'], signed=True)} {one['verdict']}", (1.01, y), va="center", color=color,
                                  xycoords=("axes fraction", "data"), weight="bold")  # fmt: skip
            ticks.append(middle)
            top += height
        axes.axvline(0, color="0.15", linewidth=0.8)
        axes.set_yticks(ticks, ["\n".join(lines) for lines in labels])
        axes.set(ylim=(top, 0))
        axes.grid(visible=False, axis="y")
        _legend(figure, [], f"effect in points; intervals: {level}; grey: ±δ" + ("; hollow: parts" if len(table) > len(claims) else ""))
    return figure


def plot_regime_map(frame: "pd.DataFrame", *, metric: str = "", width: float = PAGE) -> "Figure":
    """Mean effect by teacher and gradient ratio, a panel per dial setting; hatched where the interval holds 0 or is unknown.

    Args:
        frame: columns dial, teacher, ratio, seed, value (a difference in points).
        metric: names the colour bar.
        width: inches.
    """
    import seaborn
    from matplotlib.patches import Rectangle

    dials, teachers = _levels(frame, "dial"), list(dict.fromkeys(frame["teacher"]))
    ratios = sorted(set(frame["ratio"]))
    rows = seed_summary(frame, ("dial", "teacher", "ratio"))
    most = max(float(rows["mean"].abs().max()), 1e-9)
    with style():
        across = len(dials) if width > COLUMN else 1
        figure, cells = _grid([None], dials, across, width, 0.5 + 0.27 * len(teachers), sharey=True)
        for axes, _, dial in cells:
            part = _part(rows, dial=dial)
            values = part.pivot(index="teacher", columns="ratio", values="mean").reindex(index=teachers, columns=ratios)
            seaborn.heatmap(values, ax=axes, cmap="RdBu", vmin=-most, vmax=most, cbar=False, linewidths=0.6,
                            annot=values.map(lambda v: shown(v, signed=True)), fmt="",
                            annot_kws={"bbox": {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.5},
                                       "color": "0.05"})  # fmt: skip
            for row in part.itertuples():
                if not (row.low > 0 or row.high < 0):
                    place = ratios.index(row.ratio), teachers.index(row.teacher)
                    axes.add_patch(Rectangle(place, 1, 1, fill=False, hatch="////", edgecolor="0.45", linewidth=0))
            axes.set_xticks([i + 0.5 for i in range(len(ratios))], [f"{ratio:g}" for ratio in ratios])
            axes.set_yticks([i + 0.5 for i in range(len(teachers))], map(arm_label, teachers), rotation=0)
            axes.set(xlabel="gradient ratio", ylabel="", title=arm_label(dial or ""))
        bar = figure.colorbar(figure.axes[0].collections[0], ax=figure.axes, shrink=0.8)
        bar.set_label(metric or "points")
        _legend(figure, [], f"hatched: the 95 % interval holds 0, or fewer than {SEEDS} seeds")
    return figure


def plot_trade_off(
    frame: "pd.DataFrame", x: str = "r_mean", y: str = "single_modal", *, paths: "pd.DataFrame | None" = None,
    origin: str = "matching", width: float = PAGE, labels: Sequence[str] | None = None,
) -> "Figure":  # fmt: skip
    """Retrieval against structure, a panel per dial setting: dots per seed, arrows from ``origin``, the Pareto front.

    Args:
        frame: tidy, with the metrics ``x`` and ``y``.
        x: metric across.
        y: metric upwards.
        paths: interpolated weights: columns dial, path (``matching → rvlr``), alpha, seed, metric, value; drawn dotted.
        origin: the arm at which arrows start.
        width: inches.
        labels: of both axes.
    """
    keys = [name for name in ("dial", "arm", "seed") if name in frame]
    wide = frame[frame["metric"].isin((x, y))].pivot_table(index=keys, columns="metric", values="value", sort=False)
    points = wide.dropna().reset_index()
    dials, look = _levels(points, "dial"), looks(arm_order(points["arm"]))
    across, down = labels or (metric_label(x), metric_label(y))
    with style():
        figure, cells = _grid([None], dials, len(dials) if width > COLUMN else 1, width, 2.6)
        for axes, _, dial in cells:
            part = _part(points, dial=dial)
            means = part.groupby("arm", sort=False)[[x, y]].mean()
            for arm, own in part.groupby("arm", sort=False):
                axes.plot(own[x], own[y], look[arm].marker, color=look[arm].color, markersize=2.5, alpha=0.45)
            for _, path in [] if paths is None else _part(paths, dial=dial).groupby("path", sort=False):
                line = path.pivot_table(index="alpha", columns="metric", values="value")
                axes.plot(line[x], line[y], ":", marker=".", color="0.35", markersize=2.5, linewidth=1, zorder=2,
                          label="weights interpolated")  # fmt: skip
            for arm, mean in means.iterrows():
                if origin in means.index and arm != origin:
                    axes.annotate("", mean, means.loc[origin], arrowprops={"arrowstyle": "->", "color": look[arm].color,
                                                                          "linewidth": 0.9, "shrinkB": 4})  # fmt: skip
                axes.plot(*mean, look[arm].marker, color=look[arm].color, markersize=6, markeredgecolor="white", zorder=4)
            axes.margins(0.12)
            low, floor = axes.get_xlim()[0], axes.get_ylim()[0]
            front = _front(means.to_numpy().tolist())
            steps = [(low, front[0][1]), *(p for a, b in zip_longest(front, front[1:])
                                           for p in ([a, (a[0], b[1])] if b else [a, (a[0], floor)]))]  # fmt: skip
            axes.fill_between(*zip(*steps, strict=True), floor, color="0.93", zorder=0, label="below the Pareto front")
            axes.set(xlim=(low, None), ylim=(floor, None), xlabel=across, ylabel=down, title=arm_label(dial or ""))
        _legend(figure, figure.axes, "small: seeds, large: means", {arm_label(arm): look[arm] for arm in look})
    return figure


def _front(points: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
    """Points that none exceeds in both coordinates, from left to right.

    >>> _front([(1, 3), (2, 2), (1, 1), (3, 0)])
    [(1, 3), (2, 2), (3, 0)]
    """
    kept: list[tuple[float, float]] = []
    for a, b in sorted(map(tuple, points), reverse=True):
        if not kept or b > kept[-1][1]:
            kept.append((a, b))
    return kept[::-1]


def _interval(values: Any) -> tuple[float, float]:
    """Ends of the 95 % t-interval; NaN below five seeds."""
    if len(values) < SEEDS:
        return float("nan"), float("nan")
    known = t_interval(list(values))
    return known.low, known.high


def _levels(frame: "pd.DataFrame", column: str, wanted: Sequence[Any] | None = None) -> list[Any]:
    """Values of a column in their order, ``[None]`` where it is missing.

    Raises:
        ValueError: nothing to draw, or a value that is not there.
    """
    if frame.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    found = list(dict.fromkeys(frame[column])) if column in frame else [None]
    for name in wanted or ():
        if name not in found:
            raise ValueError(f"{column} {name!r} is not in the table, which has {', '.join(map(str, found))}")
    return list(wanted) if wanted is not None else found


def _part(frame: "pd.DataFrame", **values: Any) -> "pd.DataFrame":
    """The rows with these values; a value of None takes all."""
    for column, value in values.items():
        frame = frame if value is None else frame[frame[column] == value]
    return frame


def _grid(
    rows: Sequence[Any], panels: Sequence[Any], across: int, width: float, height: float, **options: Any
) -> tuple["Figure", list[tuple["Axes", Any, Any]]]:
    """A figure with its panels: for each of ``rows`` all ``panels``, ``across`` side by side; one alone is a column wide."""
    lines = [(row, panels[i : i + across]) for row in rows for i in range(0, len(panels), across)]
    figure = new_figure(width if across > 1 else min(width, 1.35 * COLUMN), 0.55 + len(lines) * height)
    grid = figure.subplots(len(lines), across, squeeze=False, **options)
    cells = []
    for number, (row, part) in enumerate(lines):
        cells += [(grid[number, i], row, name) for i, name in enumerate(part)]
        for axes in grid[number, len(part) :]:
            axes.remove()
    return figure, cells


def _legend(
    figure: "Figure", panels: Sequence["Axes"], note: str = "", series: Mapping[str, Look] | None = None
) -> None:
    """A note and one legend below all panels: the series, and every label that a panel has."""
    from matplotlib.lines import Line2D

    width = figure.get_figwidth()
    if note:
        figure.supxlabel("\n".join(wrap(note, width - 0.1)), fontsize=FONT_SIZE)
    handles: dict[str, Any] = {
        name: Line2D([], [], color=look.color, marker=look.marker, linestyle=look.line) for name, look in (series or {}).items()
    }
    for axes in panels:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    if handles:
        columns = max(1, int(width / (0.55 + 0.062 * max(map(len, handles)))))
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=min(columns, len(handles)))
