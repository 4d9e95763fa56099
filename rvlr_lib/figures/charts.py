"""Charts of results, each a function from a tidy frame to a figure.

Columns are dataset, dial, arm, seed, metric, value and those that a chart names; one that does not vary may be missing.
Everywhere: a small dot a seed, a large one for the mean, a 95 % t-interval only from five seeds.
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
from rvlr_lib.tables import arm_label, arm_order, differences, metric_label, shown

SEEDS = 5  # from here on an interval is drawn
LINES = {"floor": ":", "teachers": "--", "ceiling": "-"}  # reference rows of plot_arms
BARS = f"small dots: seeds; bars: 95\u00a0% intervals, from {SEEDS} seeds on"
HATCHES = ("", "////", "....", "xxxx")
BESIDE: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center"}  # a number right of its row


def seed_summary(frame: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Mean over seeds, ends of the 95 % t-interval (missing below five seeds) and number of seeds of each group."""

    def end(which: str) -> Callable[[Any], float]:
        return lambda values: getattr(paired_effect(list(values)), which) if len(values) >= SEEDS else float("nan")

    groups = frame.groupby(list(by), sort=False)["value"]
    return groups.agg(mean="mean", low=end("low"), high=end("high"), seeds="count").reset_index()


@style()
def plot_arms(frame: pd.DataFrame, *, baseline: str = "", marks: Mapping[str, float] | None = None) -> Figure:
    """Arms as rows, a panel per metric, dial settings below each other; floor, teachers and ceiling are lines.

    With a ``baseline`` every arm minus it, paired by seed, beside a line at 0. An arm may be an ablation switch, and
    ``marks`` (metric -> size of an effect) the gap that it would have to explain: dashed lines on both sides of 0.
    """
    frame = differences(frame, baseline) if baseline else frame
    metrics, dials = levels(frame, "metric"), levels(frame, "dial")
    arms = [name for name in arm_order(frame["arm"]) if name not in LINES]
    height, look = 0.45 + 0.165 * len(arms), looks(arms)
    narrowest = 1 if len(metrics) * len(dials) * height < MAX_HEIGHT - 0.9 else 2
    label = max((inches(arm_label(name)) for name in arms), default=0)
    most = narrowest, 4 if label < 1.5 else 2
    figure, cells = panel_grid(dials, metrics, most, height, room=0.1 + label, beside=0.3, sharey=True)
    for axes, dial, metric in cells:
        known = part(frame, dial=dial, metric=metric)
        for place, arm in enumerate(arms):
            own, (color, marker, _) = part(known, arm=arm), look[arm]
            axes.plot(own["value"], [place] * len(own), ".", color=color, alpha=0.4, markersize=4)
            for row in seed_summary(own, ["arm"]).itertuples():
                ends = [[row.mean - row.low], [row.high - row.mean]]
                axes.errorbar(row.mean, place, xerr=ends, color=color, marker=marker)
                axes.annotate(shown(row.mean, metric, signed=bool(baseline)), (1.02, place), **BESIDE)
        for name, value in known[known["arm"].isin(LINES)].groupby("arm", sort=False)["value"].mean().items():
            axes.axvline(value, color="0.15", linewidth=1, linestyle=LINES[str(name)], label=arm_label(str(name)))
        if marks and metric in marks:
            for value in (-marks[metric], marks[metric]):
                axes.axvline(value, color="0.4", linewidth=0.8, linestyle="--", label="effect to be explained")
        if baseline:
            axes.axvline(0, color="0.15", linewidth=0.8, zorder=1)
        axes.set_yticks(range(len(arms)), map(arm_label, arms))
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=3)
        axes.xaxis.set_major_formatter("{x:g}")  # 0, not 0.000: narrow panels have no room
    legend_below(figure, f"difference to {arm_label(baseline)}; {BARS}" if baseline else BARS)
    return figure


@style()
def plot_curves(
    frame: pd.DataFrame,
    x: str,
    *,
    hue: str = "arm",
    panel: str = "metric",
    columns: int = 3,
    zero: bool = False,
    xlabel: str = "",
    ylabel: str = "",
) -> Figure:
    """Values along ``x``, a line per ``hue``, a panel per ``panel``; rows of panels where the dial varies besides.

    Numbers in ``x`` stand to scale, words in their order and without a line, as arms are no sequence. ``columns``
    panels stand side by side on a page; ``zero`` draws the line y = 0.
    """
    names, panels, places = levels(frame, hue), levels(frame, panel), levels(frame, x)
    dials = [None] if "dial" in (x, hue, panel) else levels(frame, "dial")
    scaled = pd.api.types.is_numeric_dtype(frame[x])
    look = {name: own if scaled else own._replace(line="") for name, own in looks(names).items()}  # words: dots alone
    if not scaled:  # a little apart, so that none hides another
        apart = frame[hue].map(names.index) - (len(names) - 1) / 2
        frame = frame.assign(**{x: frame[x].map(places.index) + apart * min(0.08, 0.6 / len(names))})
    figure, cells = panel_grid(dials, panels, (1, columns), 1.85)
    for axes, dial, title in cells:
        for name, (color, marker, line) in look.items():
            own = part(frame, **{"dial": dial, panel: title, hue: name})
            mean = seed_summary(own, [x]).sort_values(x)
            ends = [mean["mean"] - mean["low"], mean["high"] - mean["mean"]]
            if (mean["seeds"] > 1).any():
                axes.plot(own[x], own["value"], ".", color=color, markersize=3, alpha=0.4)
            axes.errorbar(mean[x], mean["mean"], ends, color=color, elinewidth=0.9, marker=marker, linestyle=line)
        if zero:
            axes.axhline(0, color="0.15", linewidth=0.8, zorder=1)
        if not scaled:
            axes.set_xticks(range(len(places)), ["\n".join(wrap(arm_label(name), 0.75)) for name in places])
        axes.set(xlabel=xlabel, ylabel="\n".join(filter(None, (axes.get_ylabel(), ylabel))))
    legend_below(figure, BARS, {arm_label(name): look[name] for name in names})
    return figure


def plot_mix_ratio(frame: pd.DataFrame) -> Figure:
    """Captions among the best ten against their share of the corpus, by ``mix_ratio_curve``, and an ideal ranking."""
    own = frame[frame["metric"].str.endswith("captions_in_top")]
    ideal = frame[frame["metric"].str.endswith("_ideal") & (frame["arm"] == frame["arm"].iloc[0])]
    ideal = ideal.assign(arm="ideal", metric=ideal["metric"].str.removesuffix("_ideal"))
    labels: Any = {"xlabel": "captions in the corpus (%)", "ylabel": "captions in top 10 (%)"}
    return plot_curves(pd.concat([own, ideal]), "captions", columns=2, **labels)


def log_frame(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """Training logs by arm as a frame (arm, stage, step, term, value); stage 2 begins where ``matching`` ends."""
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
    """The ``terms`` (or all) of :func:`log_frame`, a panel each; a line where stage 2 begins."""
    terms = terms or levels(log, "term")
    look, switch = looks(log["arm"]), log[log["stage"] == 1]["step"].max()
    figure, cells = panel_grid([None], terms, (2, 3), 1.55)
    for axes, _, term in cells:
        for arm, line in part(log, term=term).groupby("arm", sort=False):
            (color, marker, dashes), every = look[arm], max(1, len(line) // 6)
            if len(line) > 60:
                axes.plot(line["step"], line["value"], color=color, linewidth=0.4, alpha=0.3)
            smooth = line["value"].rolling(max(1, len(line) // 20), center=True, min_periods=1).mean()
            axes.plot(line["step"], smooth, dashes, color=color, marker=marker, markersize=3, markevery=every)
        if switch < log["step"].max():
            axes.axvline(switch, color="0.3", linewidth=0.8, linestyle=":", label="stage 2 begins")
        axes.set_xlabel("step")
    legend_below(figure, "", {arm_label(arm): look[arm] for arm in look})
    return figure


@style()
def plot_gradient_shares(frame: pd.DataFrame) -> Figure:
    """Share of each loss term in the gradient norms (columns arm, term, value): stacked bars."""
    arms, terms = arm_order(frame["arm"]), levels(frame, "term")
    figure, [(axes, _, _)] = panel_grid([None], [None], (1, 1), 0.5 + 0.24 * len(arms))
    table = frame.pivot_table(index="arm", columns="term", values="value", fill_value=0.0)
    shares = 100 * table.div(table.sum(axis=1), axis=0).reindex(index=arms, columns=terms)
    least = 33 / (page_width() - 1.4)  # percent: narrower parts have no room for a number
    left = shares.cumsum(axis=1) - shares
    for (term, look), hatch in zip(looks(terms).items(), cycle(HATCHES), strict=False):
        own = {"left": left[term], "color": look.color, "hatch": hatch, "label": metric_label(term)}
        bars = axes.barh(list(map(arm_label, arms)), shares[term], edgecolor="white", **own)
        texts = [shown(share) if share > least else "" for share in shares[term]]
        axes.bar_label(bars, texts, label_type="center", bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6})
    axes.set(xlim=(0, 100), ylim=(len(arms) - 0.5, -0.5), xlabel="share of gradient norms (%)")
    legend_below(figure)
    return figure


def levels(frame: pd.DataFrame, column: str) -> list[Any]:
    """Values of a column in their order, ``[None]`` where it is missing; ValueError where the frame has no rows."""
    if frame.empty:
        raise ValueError("there is nothing to draw: the table has no rows")
    return list(frame[column].unique()) if column in frame else [None]


def part(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values; None takes all."""
    for column, value in values.items():
        frame = frame if value is None else frame[frame[column] == value]
    return frame


def panel_grid(
    rows: Sequence[Any],
    panels: Sequence[Any],
    most: tuple[int, int],
    height: float,
    *,
    label: Callable[[str], str] = metric_label,
    room: float = 0.0,
    beside: float = 0.45,
    **options: Any,
) -> tuple[Figure, list[tuple[Axes, Any, Any]]]:
    """A figure and its titled panels (axes, row, panel): for each of ``rows`` all ``panels``.

    At most so many stand side by side, in a column and on a page, as the two numbers of ``most`` say.
    In inches: ``height`` of a panel with one line of title, ``room`` beside all panels, ``beside`` each of them; titles
    by ``label`` keep clear of both. Narrow panels have three ticks at most along x.
    """
    across = min(len(panels), most[0] if is_narrow() else most[1])
    lines = [(row, panels[i : i + across]) for row in rows for i in range(0, len(panels), across)]
    width = page_width() if across > 1 else min(page_width(), 4.725)
    inner = (width - room) / across - beside
    titles = {name: wrap("" if name is None else label(str(name)), inner, weight="bold") for name in panels}
    high = sum(height + LINE * (max(len(titles[name]) for name in names) - 1) for _, names in lines)
    figure, cells = new_figure(width, 0.55 + high), []
    for (row, names), line in zip(lines, figure.subplots(len(lines), across, squeeze=False, **options), strict=True):
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
    """A note and one legend below all panels, whose figure grows by its rows: the series, and every panel's labels."""
    width, handles = figure.get_figwidth(), dict[str, Any]()
    for name, (color, marker, line) in (series or {}).items():
        handles[name] = Line2D([], [], color=color, marker=marker, linestyle=line)
    for axes in figure.axes:
        handles |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    told, titles = wrap(note, width - 0.1) if note else [], list(handles)
    columns = max(1, min(len(titles), int(width / (0.5 + max(map(inches, titles), default=0.0)))))
    rows = len(told) - (-len(titles) // columns)  # upwards
    figure.set_figheight(min(MAX_HEIGHT, figure.get_figheight() + 0.19 * max(0, rows - 1)))
    if not handles:
        figure.supxlabel("\n".join(told))
        return
    figure.legend(list(handles.values()), titles, title="\n".join(told), loc="outside lower center", ncols=columns)
