"""Charts of the imbalance study: curves over the dial and over the strength of matching, the gap, and the claims."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rvlr_lib.figures.charts import legend_columns, looks, pretty
from rvlr_lib.figures.style import COLUMN, is_narrow, new_figure, page_width, style
from rvlr_lib.metrics.statistics import paired_effect

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BAND_SEEDS = 3  # below it the band is the range of the seeds, from it the 95 % t-interval


def seed_band(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean over seeds and the ends of its band: the 95 % t-interval from three seeds, the range below.

    >>> seed_band([1.0, 3.0])
    (2.0, 1.0, 3.0)
    """
    mean = sum(values) / len(values)
    if len(values) < BAND_SEEDS:
        return mean, min(values), max(values)
    known = paired_effect(values)
    return mean, known.low, known.high


@style()
def plot_dial(
    table: pd.DataFrame,
    dials: Sequence[str],
    *,
    labels: Mapping[str, str] | None = None,
    columns: int = 3,
    zero: bool = False,
) -> Figure:
    """Curves over the dial, a panel per metric, a line per variant, with a band over seeds.

    Args:
        table: columns dial, variant, metric, seed, value.
        dials: the dial points from left to right.
        labels: what stands below each of them.
        columns: panels side by side.
        zero: draw a line at 0, for changes.
    """
    return _curves(table, "dial", list(dials), labels or {}, columns, zero)


@style()
def plot_strength(table: pd.DataFrame, *, columns: int = 2) -> Figure:
    """Curves over the strength of matching, a panel per metric, a line per dial point, with a band over seeds.

    Args:
        table: columns alignment, dial, metric, seed, value.
        columns: panels side by side.
    """
    strengths = sorted(set(table["alignment"]))
    renamed = table.rename(columns={"dial": "variant"})
    figure = _curves(renamed, "alignment", strengths, {s: f"{s:g}" for s in strengths}, columns, False)
    for axes in figure.axes:
        axes.set_xlabel("weight of the squared distance of pairs")
    return figure


@style()
def plot_gap(points: pd.DataFrame) -> Figure:
    """Both modalities in the plane of their main axes; the line joins their means.

    Args:
        points: columns modality (image, text), x, y.
    """
    figure = new_figure(COLUMN, 2.6)
    axes = figure.subplots()
    means = []
    for name, look in looks(("image", "text")).items():
        part = points[points.modality == name]
        axes.plot(part.x, part.y, look.marker, color=look.color, markersize=2.5, alpha=0.45, markeredgewidth=0,
                  label=name, rasterized=True)  # fmt: skip
        means.append((part.x.mean(), part.y.mean()))
    axes.plot(*zip(*means, strict=True), color="0.1", linewidth=1.2, marker="+", markersize=7, label="means")
    axes.set(xlabel="first axis", ylabel="second axis")
    axes.set_aspect("equal", adjustable="datalim")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@style()
def plot_claims(table: pd.DataFrame) -> Figure:
    """Each claim's effect and interval, one below the other, with delta as a tick and the verdict beside it.

    Args:
        table: columns claim, mean, low, high, delta, verdict; one unit for all.
    """
    beside = not is_narrow()  # where the verdict stands; else below the name
    figure = new_figure(page_width(), 0.6 + (0.3 if beside else 0.38) * len(table))
    axes = figure.subplots()
    known = table.dropna(subset=["mean"])
    places = [list(table["claim"]).index(name) for name in known["claim"]]
    spread = [(known["mean"] - known["low"]).fillna(0), (known["high"] - known["mean"]).fillna(0)]
    axes.axvline(0, color="0.2", linewidth=0.8)
    axes.errorbar(known["mean"], places, xerr=spread, fmt="o", color=looks(["rvlr"])["rvlr"].color, capsize=2.5)
    axes.plot(table["delta"], range(len(table)), "|", color="0.35", markersize=11)
    for place, verdict in enumerate(table["verdict"] if beside else ()):
        axes.annotate(verdict, (1.01, place), xycoords=("axes fraction", "data"), va="center")
    names = table["claim"] if beside else table["claim"] + "\n" + table["verdict"]
    axes.set_yticks(range(len(table)), list(names))
    axes.set(xlabel="effect, points (grey tick: delta)", ylim=(len(table) - 0.5, -0.5))
    return figure


def _curves(table: pd.DataFrame, along: str, places: list, labels: Mapping, columns: int, zero: bool) -> Figure:
    metrics, variants = list(dict.fromkeys(table["metric"])), list(dict.fromkeys(table["variant"]))
    if not metrics:
        raise ValueError("there is nothing to draw: the table has no rows")
    columns = min(columns, len(metrics), 1 if is_narrow() else columns)
    rows = -(-len(metrics) // columns)
    figure = new_figure(page_width() if columns > 1 else COLUMN, rows * 1.75 + 0.45)
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    look = looks(variants)
    shift = 0.035
    for axes, metric in zip(grid, metrics, strict=False):
        for number, variant in enumerate(variants):
            part = table[(table["metric"] == metric) & (table["variant"] == variant)]
            found = {place: part[part[along] == place]["value"].tolist() for place in places}
            found = {place: values for place, values in found.items() if values}
            _line(axes, found, places, look[variant], pretty(str(variant)), shift * (number - len(variants) / 2))
        if zero:
            axes.axhline(0, color="0.2", linewidth=0.8, zorder=0)
        axes.set_title(pretty(metric))
        axes.set_xticks(range(len(places)), [str(labels.get(place, place)) for place in places])
        axes.margins(x=0.08)
    for axes in grid[len(metrics) :]:
        axes.set_visible(False)
    handles = {label: handle for a in grid for handle, label in zip(*a.get_legend_handles_labels(), strict=True)}
    names = list(handles)
    figure.legend(list(handles.values()), names, loc="outside lower center",
                  ncols=legend_columns(names, figure.get_figwidth()))  # fmt: skip
    return figure


def _line(axes: Axes, found: dict, places: list, look, label: str, shift: float) -> None:
    """One curve: mean, markers, and the band as bars at each place, a little apart so that none hides another."""
    if not found:
        return
    x = [places.index(place) + shift for place in found]
    mean, low, high = zip(*(seed_band(values) for values in found.values()), strict=True)
    bars = [[m - lo for m, lo in zip(mean, low, strict=True)], [hi - m for m, hi in zip(mean, high, strict=True)]]
    axes.errorbar(x, mean, yerr=bars, color=look.color, marker=look.marker, linestyle=look.line, markersize=3.5,
                  elinewidth=0.8, capsize=1.5, label=label)  # fmt: skip
