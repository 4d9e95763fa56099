"""Charts of results, each a function from a tidy frame to a figure.

Columns are dataset, dial, arm, seed, metric, value and any that a chart names; constant columns may be missing.
In every chart small dots are seeds, large dots means, and bars 95 % t-intervals, drawn for five or more seeds only.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from rvlr_lib.config import ARMS
from rvlr_lib.figures.style import LINE, MAX_HEIGHT, Look, inches, is_narrow, looks, new_figure, page_width, style, wrap
from rvlr_lib.metrics.statistics import paired_effect
from rvlr_lib.tables import arm_label, arm_order, differences, format_number, metric_label

SEEDS = 5  # least number for an interval
GUIDES = {"floor": ":", "teachers": "--", "ceiling": "-"}  # references that plot_arms draws as lines
BARS = f"small dots: seeds; bars: 95\u00a0% intervals ({SEEDS} or more seeds)"
HATCHES = ("", "////", "....", "xxxx")
BESIDE: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}  # a number to the right of its row


def seed_summary(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean, ``low`` and ``high`` of the 95 % t-interval (NaN below five seeds) and number of seeds per group."""

    def end(which: str) -> Callable[[Any], float]:
        return lambda values: getattr(paired_effect(list(values)), which) if len(values) >= SEEDS else float("nan")

    groups = frame.groupby(list(by), sort=False)["value"]
    return groups.agg(mean="mean", low=end("low"), high=end("high"), seeds="count").reset_index()


@style()
def plot_arms(frame: pd.DataFrame, *, baseline: str = "", marks: Mapping[str, float] | None = None) -> Figure:
    """Plot arms as rows and references (``GUIDES``) as lines; panels: a column per metric, a row per dial setting.

    With a ``baseline``, plot each arm's difference from it, paired by seed. An arm may be an ablation switch; ``marks``
    (metric -> gap to explain) then draws dashed lines at plus and minus the gap.
    """
    frame = differences(frame, baseline) if baseline else frame
    metrics, dials = levels(frame, "metric"), levels(frame, "dial")
    arms = [name for name in arm_order(frame["arm"]) if name not in GUIDES]
    look = looks(arms, [Look("0.25", "o")])  # no row borrows an arm's colour
    height = 0.45 + 0.165 * max(len(arms), 3 if len(dials) > 1 else 0)  # room for the name of a dial setting
    label_width = max((inches(arm_label(name)) for name in arms), default=0)
    across = 1 if len(metrics) * len(dials) * height < MAX_HEIGHT - 0.9 else 2, 4 if label_width < 1.5 else 2
    figure, cells = panel_grid(dials, metrics, across, height, left=0.1 + label_width, margin=0.3, sharey=True)
    for axes, dial, metric in cells:
        panel = select(frame, dial=dial, metric=metric)
        for y, arm in enumerate(arms):
            seeds, (color, marker, _) = select(panel, arm=arm), look[arm]
            axes.plot(seeds["value"], [y] * len(seeds), ".", color=color, alpha=0.4, markersize=4)
            for row in seed_summary(seeds, ["arm"]).itertuples():
                bar = [[row.mean - row.low], [row.high - row.mean]]
                axes.errorbar(row.mean, y, xerr=bar, color=color, marker=marker)
                axes.annotate(format_number(row.mean, metric, signed=bool(baseline)), (1.02, y), **BESIDE)
        for name, value in panel[panel["arm"].isin(GUIDES)].groupby("arm", sort=False)["value"].mean().items():
            axes.axvline(value, color="0.15", linewidth=1, linestyle=GUIDES[str(name)], label=arm_label(str(name)))
        if marks and metric in marks:
            for value in (-marks[metric], marks[metric]):
                axes.axvline(value, color="0.4", linewidth=0.8, linestyle="--", label="gap to explain")
        if baseline:
            axes.axvline(0, color="0.15", linewidth=0.8, zorder=1)
        axes.set_yticks(range(len(arms)), map(arm_label, arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter("{x:g}")  # 0, not 0.000, which is too wide for narrow panels
    legend_below(figure, f"difference from {arm_label(baseline)}; {BARS}" if baseline else BARS)
    return figure


@style()
def plot_curves(
    frame: pd.DataFrame,
    x: str,
    *,
    hue: str = "arm",
    panel: str = "metric",
    zero: bool = False,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Plot values along ``x``, a line per ``hue``, a panel per ``panel``; a dial not among these makes rows of panels.

    Numeric ``x`` is drawn to scale; words keep their order and get no line, as they are categories. ``zero`` draws
    the line y = 0.
    """
    names, panels, ticks = levels(frame, hue), levels(frame, panel), levels(frame, x)
    dials = [None] if "dial" in (x, hue, panel) else levels(frame, "dial")
    look = looks(names)
    numeric = pd.api.types.is_numeric_dtype(frame[x])
    if not numeric:  # dots only, shifted sideways so that none hides another
        look = {name: series._replace(line="") for name, series in look.items()}
        shift = frame[hue].map(names.index) - (len(names) - 1) / 2
        frame = frame.assign(**{x: frame[x].map(ticks.index) + shift * min(0.08, 0.6 / len(names))})
    figure, cells = panel_grid(dials, panels, (1, 3), 1.85)
    for axes, dial, title in cells:
        for name, (color, marker, line) in look.items():
            seeds = select(frame, **{"dial": dial, panel: title, hue: name})
            means = seed_summary(seeds, [x]).sort_values(x)
            bars = [means["mean"] - means["low"], means["high"] - means["mean"]]
            if (means["seeds"] > 1).any():
                axes.plot(seeds[x], seeds["value"], ".", color=color, markersize=3, alpha=0.4)
            axes.errorbar(means[x], means["mean"], bars, color=color, elinewidth=0.9, marker=marker, linestyle=line)
        if zero:
            axes.axhline(0, color="0.15", linewidth=0.8, zorder=1)
        if not numeric:
            axes.set_xticks(range(len(ticks)), ["\n".join(wrap(arm_label(name), 0.75)) for name in ticks])
        axes.set(xlabel=xlabel, ylabel="\n".join(filter(None, (axes.get_ylabel(), ylabel))))
        if "(%)" in ylabel:  # matplotlib pads a flat line by 5 % of its value
            low, high = axes.get_ylim()
            axes.set_ylim(max(low, -0.05 * high), min(high, 100 + 0.05 * (100 - low)))
    legend_below(figure, BARS, {arm_label(name): look[name] for name in names})
    return figure


def plot_mix_ratio(frame: pd.DataFrame) -> Figure:
    """Plot captions in the top ten against their share of the corpus (``mix_ratio_curve``), and an ideal ranking."""
    measured = frame[frame["metric"].str.endswith("captions_in_top")]
    ideal = frame[frame["metric"].str.endswith("_ideal") & (frame["arm"] == frame["arm"].iloc[0])]
    ideal = ideal.assign(arm="ideal", metric=ideal["metric"].str.removesuffix("_ideal"))
    labels: Any = {"xlabel": "captions in the corpus (%)", "ylabel": "captions in top 10 (%)"}
    return plot_curves(pd.concat([measured, ideal]), "captions", **labels)


def log_frame(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Training logs of the arms as a frame (arm, stage, step, term, value); stage 2 starts where ``matching`` ends."""
    end = max((record["step"] for record in logs.get("matching", ())), default=0)
    rows = [
        (arm, ARMS[arm].stage, record["step"] + (end if ARMS[arm].stage == 2 else 0), term, float(value))
        for arm, records in logs.items()
        for record in records
        for term, value in record.items()
        if term not in ("step", "epoch", "seed") and isinstance(value, int | float)
    ]
    return pd.DataFrame(rows, columns=["arm", "stage", "step", "term", "value"])


@style()
def plot_training(log: pd.DataFrame, terms: Sequence[str] | None = None) -> Figure:
    """Plot the ``terms`` (default all) of a :func:`log_frame`, a panel each, with a line where stage 2 begins."""
    terms = terms or levels(log, "term")
    look, stage_end = looks(log["arm"]), log[log["stage"] == 1]["step"].max()
    figure, cells = panel_grid([None], terms, (2, 3), 1.55)
    for axes, _, term in cells:
        for arm, curve in select(log, term=term).groupby("arm", sort=False):
            (color, marker, line), every = look[arm], max(1, len(curve) // 6)
            if len(curve) > 60:
                axes.plot(curve["step"], curve["value"], color=color, linewidth=0.4, alpha=0.3)
            smooth = curve["value"].rolling(max(1, len(curve) // 20), center=True, min_periods=1).mean()
            axes.plot(curve["step"], smooth, line, color=color, marker=marker, markersize=3, markevery=every)
        if stage_end < log["step"].max():
            axes.axvline(stage_end, color="0.3", linewidth=0.8, linestyle=":", label="stage 2 begins")
        axes.set_xlabel("step")
    legend_below(figure, "", {arm_label(arm): look[arm] for arm in look})
    return figure


@style()
def plot_gradient_shares(frame: pd.DataFrame) -> Figure:
    """Plot each loss term's share of the summed gradient norms (columns arm, term, value) as stacked bars."""
    arms, terms = arm_order(frame["arm"]), levels(frame, "term")
    figure, [(axes, _, _)] = panel_grid([None], [None], (1, 1), 0.5 + 0.24 * len(arms))
    table = frame.pivot_table(index="arm", columns="term", values="value", fill_value=0.0)
    shares = 100 * table.div(table.sum(axis=1), axis=0).reindex(index=arms, columns=terms)
    least = 33 / (page_width() - 1.4)  # percent: smaller shares have no room for their number
    left = shares.cumsum(axis=1) - shares
    for (term, look), hatch in zip(looks(terms).items(), cycle(HATCHES), strict=False):
        options = {"left": left[term], "color": look.color, "hatch": hatch, "label": metric_label(term)}
        bars = axes.barh(list(map(arm_label, arms)), shares[term], edgecolor="white", **options)
        numbers = [format_number(share) if share > least else "" for share in shares[term]]
        axes.bar_label(bars, numbers, label_type="center", bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6})
    axes.set(xlim=(0, 100), ylim=(len(arms) - 0.5, -0.5), xlabel="share of summed gradient norms (%)")
    legend_below(figure)
    return figure


def levels(frame: pd.DataFrame, column: str) -> list[Any]:
    """Values of a column in order of appearance, or ``[None]`` without that column; ValueError for an empty frame."""
    if frame.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    return list(frame[column].unique()) if column in frame else [None]


def select(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """Rows that have the given value in each named column; None matches every row."""
    for column, value in values.items():
        frame = frame if value is None else frame[frame[column] == value]
    return frame


def panel_grid(
    rows: Sequence[Any],
    panels: Sequence[Any],
    across: tuple[int, int],
    height: float,
    *,
    label: Callable[[str], str] = metric_label,
    left: float = 0.0,
    margin: float = 0.45,
    **options: Any,
) -> tuple[Figure, list[tuple[Axes, Any, Any]]]:
    """Create a figure with all ``panels`` for each of ``rows``; return it and its titled panels (axes, row, panel).

    ``across`` limits the panels side by side, in a column and on a page. In inches: ``height`` of a panel with a
    one-line title, ``left`` margin of the figure, ``margin`` of each panel; titles (by ``label``) wrap to the rest.
    Narrow panels have at most three ticks along x.
    """
    count = min(len(panels), across[0] if is_narrow() else across[1])
    lines = [(row, panels[i : i + count]) for row in rows for i in range(0, len(panels), count)]
    width = page_width() if count > 1 else min(page_width(), 4.725)
    inner = (width - left) / count - margin
    titles = {name: wrap("" if name is None else label(str(name)), inner, weight="bold") for name in panels}
    total = sum(height + LINE * (max(len(titles[name]) for name in names) - 1) for _, names in lines)
    figure, cells = new_figure(width, 0.55 + total), []
    for (row, names), line in zip(lines, figure.subplots(len(lines), count, squeeze=False, **options), strict=True):
        for axes in line[len(names) :]:
            axes.remove()
        if len(rows) > 1:
            line[0].set_ylabel(arm_label(row), weight="bold")
        for axes, name in zip(line, names, strict=False):
            axes.set_title("\n".join(titles[name]))
            axes.locator_params(axis="x", nbins=2 if inner < 1.35 else 4)
            cells.append((axes, row, name))
    return figure, cells


def legend_below(figure: Figure, note: str = "", series: Mapping[str, Look] | None = None) -> None:
    """Put a note and one legend (``series``, then labels of the panels) below all panels; the figure grows with it."""
    width, handles = figure.get_figwidth(), dict[str, Any]()
    for name, (color, marker, line) in (series or {}).items():
        handles[name] = Line2D([], [], color=color, marker=marker, linestyle=line)
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    lines, names = wrap(note, width - 0.1) if note else [], list(handles)
    columns = max(1, min(len(names), int(width / (0.5 + max(map(inches, names), default=0.0)))))
    rows = len(lines) - (-len(names) // columns)  # rounded up
    figure.set_figheight(min(MAX_HEIGHT, figure.get_figheight() + 0.19 * max(0, rows - 1)))
    if handles:
        figure.legend(list(handles.values()), names, title="\n".join(lines), loc="outside lower center", ncols=columns)
    else:
        figure.supxlabel("\n".join(lines))
