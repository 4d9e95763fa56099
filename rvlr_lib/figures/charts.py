"""Charts of the study, each a function from a table to a figure, all in one style.

Every table is in long form, and its columns are named in the function's docstring. Widths are those of an IEEE page,
letters have 8 points or more, and no chart needs colour: markers, line styles and hatches say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from rvlr_lib.figures.style import COLUMN, is_narrow, new_figure, page_width, style
from rvlr_lib.figures.style import FONT_SIZE as FONT_SIZE
from rvlr_lib.figures.style import PAGE as PAGE
from rvlr_lib.figures.style import save_figure as save_figure
from rvlr_lib.tables import ROW_ORDER, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Known names keep their looks in every figure.
NAMES = ("matching", "matching_longer", "rvlr", "intra", "representation", "structure", "contrastive", "shuffled",
         "untrained_teacher", "frozen", "start", "teachers")  # fmt: skip
MODALITIES = ("image", "text", "both")
MARKERS = "osD^vPX<>*ph"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\")
REFERENCES = {"floor": ":", "teachers": "--", "ceiling": "-"}
LABELS = {
    "overlap_teacher": "neighbours shared\nwith the teacher (%)",
    "overlap_truth": "neighbours shared\nwith the truth (%)",
    "relations_teacher": "relations like the\nteacher's (Spearman)",
    "modality_gap": "modality gap\n(distance of means)",
    "ceiling": "Bayes ceiling",
    "r_mean": "r_mean",
    "rvlr": "RVLR",
}


@dataclass(frozen=True)
class Look:
    """How one series looks: in colour, and without."""

    color: Any
    marker: str
    line: Any
    hatch: str


def looks(names: Iterable[Any]) -> dict[str, Look]:
    """A look for each name; the study's own names have the same one everywhere."""
    import seaborn

    palette = [*seaborn.color_palette("colorblind"), (0.2, 0.2, 0.2), (0.45, 0.45, 0.45)]  # as many as NAMES
    names = list(dict.fromkeys(names))
    places = {name: NAMES.index(name.lower()) for name in names if name.lower() in NAMES}
    free = (i for i in range(len(NAMES) + len(names)) if i not in places.values())
    places |= {name: next(free) for name in names if name not in places}

    def look(i: int) -> Look:
        color, marker, line, hatch = (choice[i % len(choice)] for choice in (palette, MARKERS, LINES, HATCHES))
        return Look(color, str(marker), line, str(hatch))

    return {name: look(places[name]) for name in names}


def pretty(name: str) -> str:
    """A name as a reader sees it.

    >>> pretty("matching_longer"), pretty("t2t_no_siblings/NDCG@10/above_floor")
    ('matching longer', 't2t no siblings\\nNDCG@10 above floor')
    """
    known = LABELS.get(name.lower())
    return known or name.removeprefix("loss/").replace("/", "\n", 1).replace("/", " ").replace("_", " ").replace(
        "r mean", "r_mean"
    )


@style()
def plot_structure_stages(
    table: pd.DataFrame, *, trunk: Sequence[str] = ("start", "matching"), ylabel: str = "neighbours shared (%)"
) -> Figure:
    """What happens to the neighbourhoods of each modality: a row per modality, a column per reference.

    Args:
        table: columns modality, dial, stage, reference, value; drawn in the order in which they appear.
        trunk: the stages that follow each other; every other stage is a branch from the last of them.
        ylabel: what is measured.
    """
    modalities, references, stages, dials = (_unique(table[c]) for c in ("modality", "reference", "stage", "dial"))
    turned = is_narrow() and len(references) > 1  # then a row per reference, a column per modality
    figure = new_figure(page_width() if len(references) > 1 else COLUMN,
                        1.0 + 1.45 * len(references if turned else modalities))  # fmt: skip
    shape = (len(references), len(modalities)) if turned else (len(modalities), len(references))
    grid = figure.subplots(*shape, sharex=True, sharey="row" if turned else "col", squeeze=False)
    grid = grid.T if turned else grid
    shared = [stage for stage in stages if stage in trunk]
    paths = [shared, *([*shared[-1:], stage] for stage in stages if stage not in trunk)]
    for (i, modality), (j, reference) in ((a, b) for a in enumerate(modalities) for b in enumerate(references)):
        axes = grid[i, j]
        part = table[(table["modality"] == modality) & (table["reference"] == reference)]
        for (dial, look), shift in zip(looks(dials).items(), _spread(len(dials), 0.06), strict=True):
            values = part[part["dial"] == dial].set_index("stage")["value"]
            for path in paths:
                known = [stage for stage in path if stage in values.index]
                places = [stages.index(stage) + shift for stage in known]
                axes.plot(places, values[known], color=look.color, marker=look.marker, linestyle=look.line,
                          label=dial if path is shared else None)  # fmt: skip
        axes.set_xticks(range(len(stages)), map(pretty, stages), rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlim(-0.3, len(stages) - 0.7)
        if i == 0 and not turned:
            axes.set_title(f"with the {reference}")
        if j == 0:
            axes.set_title(modality) if turned else axes.set_ylabel(f"{modality}\n{ylabel}")
        if i == 0 and turned:
            axes.set_ylabel(f"with the {reference}\n{ylabel}")
    _legend(figure, grid[0, 0])
    return figure


@style()
def plot_information(table: pd.DataFrame) -> Figure:
    """How much each modality holds: bars per modality and dial point.

    Args:
        table: columns modality, dial, value and, where several things are measured, measure (a panel each).
    """
    table = table if "measure" in table else table.assign(measure="value")
    return _bar_panels(table, panel="measure", row="dial", hue="modality", columns=2)


@style()
def plot_results(table: pd.DataFrame, *, columns: int = 3) -> Figure:
    """Scores per metric and variant; floor dotted, teachers dashed, Bayes ceiling solid.

    Args:
        table: columns metric, variant, value (:func:`rvlr_lib.tables.result_rows`) and, where there are several seeds,
            low and high; the rows ``floor``, ``teachers`` and ``ceiling`` become lines.
        columns: panels side by side.
    """
    return _bar_panels(table, panel="metric", row="variant", hue=None, columns=columns)


@style()
def plot_structure_bars(table: pd.DataFrame) -> Figure:
    """Geometry of the spaces: a panel per measure, a bar per method and modality.

    Args:
        table: columns method, modality, measure, value (:func:`rvlr_lib.tables.structure_rows`).
    """
    return _bar_panels(table, panel="measure", row="method", hue="modality", columns=4)


@style()
def plot_loss_curves(table: pd.DataFrame, terms: Sequence[str] | None = None) -> Figure:
    """Every loss term and validation score over steps, a line per variant; long curves have their running mean on top.

    Args:
        table: columns variant, step, term, value (:func:`rvlr_lib.tables.log_rows`).
        terms: those to draw; default all but those of :func:`plot_traces`.
    """
    return _curves(table, [term for term in _unique(table["term"]) if not _is_trace(term)] if terms is None else terms)


@style()
def plot_traces(table: pd.DataFrame, terms: Sequence[str] | None = None) -> Figure:
    """Fusion weight, temperatures and gradient norm over steps, a line per variant.

    Args:
        table: as for :func:`plot_loss_curves`.
        terms: those to draw; default the temperatures, the fusion weight and the gradient norm.
    """
    return _curves(table, list(filter(_is_trace, _unique(table["term"]))) if terms is None else terms)


@style()
def plot_dot_intervals(table: pd.DataFrame, *, baseline: str | None = None, xlabel: str = "") -> Figure:
    """A dot with its interval per label, a panel per metric.

    Args:
        table: columns label, value and perhaps low, high (the interval) and metric (a panel each).
        baseline: label of the row that a vertical line marks.
        xlabel: of every panel.
    """
    table = table if "metric" in table else table.assign(metric="")
    labels, metrics = _unique(table["label"]), _unique(table["metric"])
    figure, panels = _panels(len(metrics), 4, 0.5 + 0.2 * len(labels), sharey=True)
    color = looks(labels)[labels[0]].color
    for axes, metric in zip(panels, metrics, strict=True):
        part = table[table["metric"] == metric]
        places = [labels.index(name) for name in part["label"]]
        axes.errorbar(part["value"], places, xerr=_interval(part), fmt="o", color=color, capsize=2, elinewidth=1)
        for value in part[part["label"] == baseline]["value"]:
            axes.axvline(value, color="0.3", linewidth=0.8, linestyle="--", zorder=0)
        axes.set_yticks(range(len(labels)), map(pretty, labels))
        axes.set(title=pretty(metric), xlabel=xlabel, ylim=(len(labels) - 0.5, -0.5))
        axes.margins(x=0.12)
        axes.locator_params(axis="x", nbins=3 if is_narrow() else 4)
    return figure


def legend_columns(names: Sequence[str], width: float) -> int:
    """How many entries of a legend stand side by side in ``width`` inches."""
    return min(len(names), max(1, int(width / (0.6 + 0.065 * max(map(len, names))))))


def _unique(values: pd.Series) -> list[Any]:
    return list(dict.fromkeys(values))


def _spread(count: int, step: float) -> list[float]:
    return [(i - (count - 1) / 2) * step for i in range(count)]


def _is_trace(term: str) -> bool:
    return "temperature" in term or term in ("fusion_weight", "gradient_norm")


def _interval(rows: pd.DataFrame) -> Any:
    """Distances down and up to low and high; None where no interval is known."""
    if not {"low", "high"} <= set(rows) or not (rows["high"] > rows["low"]).any():
        return None
    return [(rows["value"] - rows["low"]).clip(lower=0), (rows["high"] - rows["value"]).clip(lower=0)]


def _panels(count: int, columns: int, height: float, *, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most ``columns``, each ``height`` inches; one alone has the width of a column."""
    if not count:
        raise ValueError("there is nothing to draw: the table has no such rows")
    columns = min(columns, count)
    if is_narrow():
        columns = min(columns, 1 if sharey and count <= 4 else 2)
    rows = -(-count // columns)
    figure = new_figure(page_width() if columns > 1 else COLUMN, rows * height + 0.35)
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _legend(figure: Figure, *panels: Axes) -> None:
    """One legend below all panels, of every label that any of them has."""
    found = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    order = [*MODALITIES, *ROW_ORDER]
    labels = sorted(found, key=lambda label: order.index(label) if label in order else -1)
    if labels:
        names = [pretty(label) for label in labels]
        handles = [found[label] for label in labels]
        figure.legend(handles, names, loc="outside lower center", ncols=legend_columns(names, figure.get_figwidth()))


def _bar_panels(table: pd.DataFrame, *, panel: str, row: str, hue: str | None, columns: int) -> Figure:
    """Horizontal bars: a panel, a row and, within a row, a bar per value of those columns; reference rows are lines."""
    from matplotlib.patheffects import withStroke

    lines = table[table[row].isin(ROW_ORDER)]
    bars = table[~table[row].isin(ROW_ORDER)]
    if hue is not None:  # a teacher among methods is a row like any other
        lines, bars = table[:0], table
    titles, rows = _unique(table[panel]), _unique(bars[row])
    hues = _unique(bars[hue]) if hue else [None]
    if set(hues) <= set(MODALITIES):
        hues = [name for name in MODALITIES if name in hues]
    looked = looks(hues if hue else rows)
    figure, panels = _panels(len(titles), columns, 0.45 + (0.1 + 0.15 * len(hues)) * len(rows), sharey=True)
    for axes, title in zip(panels, titles, strict=True):
        part = bars[bars[panel] == title]
        own_hues = [name for name in hues if hue is None or (part[hue] == name).any()]
        thick = 0.8 / max(1, len(own_hues))
        for name, shift in zip(own_hues, _spread(len(own_hues), thick), strict=True):
            own = part if hue is None else part[part[hue] == name]
            drawn = [looked[key] for key in (own[row] if hue is None else own[hue])]
            container = axes.barh([rows.index(key) + shift for key in own[row]], own["value"], thick * 0.92,
                                  xerr=_interval(own), color=[look.color for look in drawn], edgecolor="white",
                                  hatch=[look.hatch for look in drawn], linewidth=0, label=name,
                                  error_kw={"elinewidth": 1, "capsize": 2})  # fmt: skip
            digits = 1 if part["value"].abs().max() > 2 else 2
            for text in axes.bar_label(container, fmt=partial(shown, decimals=digits), padding=2):
                text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        for key, line in REFERENCES.items():
            for value in lines[(lines[panel] == title) & (lines[row] == key)]["value"]:
                axes.axvline(value, color="0.15", linewidth=1, linestyle=line, label=key)
        most, least = axes.dataLim.x1, min(axes.dataLim.x0, 0)
        axes.set_xlim(least * 1.25, max(most, 1e-9) * 1.25)
        axes.set_yticks(range(len(rows)), map(pretty, rows))
        axes.set(title=pretty(title), ylim=(len(rows) - 0.5, -0.5))
        axes.locator_params(axis="x", nbins=4)
        axes.grid(visible=False, axis="y")
    if hue or len(lines):
        _legend(figure, *panels)
    return figure


def _curves(table: pd.DataFrame, terms: Sequence[str]) -> Figure:
    from matplotlib.ticker import LogLocator, NullFormatter

    looked = looks(_unique(table["variant"]))
    columns = 2 if len(terms) in (2, 4) or is_narrow() else 3
    figure, panels = _panels(len(terms), columns, 1.55)
    for number, (axes, term) in enumerate(zip(panels, terms, strict=True)):
        part = table[table["term"] == term]
        for variant in _unique(part["variant"]):
            line, look = part[part["variant"] == variant].sort_values("step"), looked[variant]
            shown = line["value"]
            if len(line) > 60:
                axes.plot(line["step"], shown, color=look.color, linewidth=0.4, alpha=0.35)
                shown = shown.rolling(len(line) // 20, center=True, min_periods=1).mean()
            axes.plot(line["step"], shown, color=look.color, linestyle=look.line, marker=look.marker,
                      markevery=max(1, len(line) // 8), label=variant)  # fmt: skip
        title = pretty(term).replace("\n", " ")
        axes.set_title(title.replace(" ", "\n", 1) if is_narrow() else title)
        values = part["value"]
        if term == "gradient_norm" and 0 < 10 * values.min() < values.max():
            axes.set_yscale("log")
            subs = (1, 2, 5) if values.max() < 30 * values.min() else (1,)
            axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        if number >= len(terms) - columns:
            axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=4)
    _legend(figure, *panels)
    return figure
