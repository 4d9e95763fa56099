"""The explorer's widgets and map, in bokeh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.report.explorer import GREY, KINDS, OTHER, UNIMODAL, Points

GLUE = Path(__file__).with_name("explorer.js")
# Okabe and Ito, then two greys: told apart by the colour-blind; modality is told by the marker as well.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A7A00", "#404040")
HELP = (
    "<p><b>Click a point</b> to see its neighbours in every space, <b>choose a space</b> and watch the points move, or "
    "<b>search by words</b>. Drag to move the map, turn the wheel to zoom.</p><p>Or begin with one of these:</p>"
)
MAP, PANEL, CONTROL = 640, 520, 270  # pixels
CROWD = 700  # pictures from which points are drawn smaller


def view(points: Points) -> tuple[Any, Any]:
    """One data set: controls above, the map on the left, the chosen point on the right.

    Returns:
        The layout, and the glue, which is to run once when the page is ready.
    """
    from bokeh.layouts import column, row
    from bokeh.models import CustomJS, Div

    modes = colour_modes(points)
    stores, spaces = _stores(points, modes), list(points.coords)
    plot, controls = _map(points, stores), _controls(points, modes)
    legend = Div(text=modes["modality"].legend, width=MAP, name=_name(points, "legend"))
    panel = Div(text=HELP, width=PANEL, height=MAP, styles={"overflow-y": "auto"}, name=_name(points, "panel"))
    glue = CustomJS(
        args=stores | controls | {
            "legend": legend, "panel": panel, "help": HELP, "spaces": spaces, "groups": points.groups,
            "width": next(iter(points.neighbours.values()))[0].shape[1],
            "palettes": {mode: colours.palette for mode, colours in modes.items()},
            "legends": {mode: colours.legend for mode, colours in modes.items()},
            "common": [space for space, hits in points.hits.items() if hits is not None]},
        code=GLUE.read_text(encoding="utf-8"),
    )  # fmt: skip
    for key, changed in {"space": "active", "mode": "value", "words": "value_input"}.items():
        controls[key].js_on_change(changed, glue)
    stores["source"].selected.js_on_change("indices", glue)
    notes = Div(text="".join(f"<p>{escape(note)}</p>" for note in points.notes), width=MAP + PANEL)
    return column(row(*controls.values()), row(column(plot, legend), panel), notes), glue


def _name(points: Points, part: str) -> str:
    return f"{points.dataset} {part}"  # a page may show several data sets


def _stores(points: Points, modes: dict[str, Colours]) -> dict[str, Any]:
    """What the page knows: points drawn, all spaces and colours, neighbours, pictures and words, rings and lines."""
    from bokeh.models import ColumnDataSource

    spaces, count = list(points.coords), len(points.pictures)
    first, coords = modes["modality"], points.coords[spaces[-1]].astype(np.float32)
    source = {"x": coords[:, 0], "y": coords[:, 1], "color": [first.palette[i] for i in first.codes[spaces[-1]]],
              "marker": ["circle"] * count + ["triangle"] * count,
              "picture": np.tile(np.arange(count, dtype=np.int32), 2)}  # fmt: skip
    places = {f"{axis}|{space}": xy[:, at].astype(np.float32)
              for space, xy in points.coords.items() for at, axis in enumerate("xy")}  # fmt: skip
    codes = {f"{mode}|{space}": values.astype(np.uint8)
             for mode, colours in modes.items() for space, values in colours.codes.items()}  # fmt: skip
    near = {
        f"{kind}|{space}": pair[at].astype(np.int32).flatten()
        for space, pair in points.neighbours.items()
        for at, kind in enumerate(("pictures", "captions"))
    }
    tables: dict[str, dict[str, Any]] = {
        "source": source, "all": places | codes, "near": near,
        "store": {"picture": points.pictures, "captions": points.captions},
        "rings": {"x": [], "y": [], "size": [], "point": []}, "lines": {"x0": [], "y0": [], "x1": [], "y1": []},
    }  # fmt: skip
    return {name: ColumnDataSource(table) for name, table in tables.items()}


def _map(points: Points, stores: dict[str, Any]) -> Any:
    """The points, rings and lines on top, and what a point shows below the mouse."""
    from bokeh.models import CustomJSHover, HoverTool, Range1d, TapTool
    from bokeh.plotting import figure

    reach = 1.06 * max(float(np.abs(xy).max()) for xy in points.coords.values())  # one scale for all spaces
    plot = figure(width=MAP, height=MAP, tools="pan,wheel_zoom,box_zoom,reset", active_scroll="wheel_zoom",
                  x_axis_location=None, y_axis_location=None, toolbar_location="above", name=_name(points, "map"),
                  x_range=Range1d(-reach, reach), y_range=Range1d(-reach, reach))  # fmt: skip
    plot.grid.visible = False
    plot.segment("x0", "y0", "x1", "y1", source=stores["lines"], color="#555555", line_width=1)
    dots = plot.scatter("x", "y", marker="marker", source=stores["source"], fill_color="color", line_color="white",
                        line_width=0.4, size=8 if len(points.pictures) < CROWD else 6, fill_alpha=0.85,
                        nonselection_fill_alpha=0.85, nonselection_line_alpha=1)  # fmt: skip
    plot.scatter("x", "y", size="size", source=stores["rings"], fill_color=None, line_color="black", line_width=2)
    looked_up = {"store": stores["store"]}
    caption_of = CustomJSHover(args=looked_up, code="return store.data.captions[value][0]")
    picture_of = CustomJSHover(args=looked_up, code="return store.data.picture[value]")
    plot.add_tools(TapTool(renderers=[dots]), HoverTool(
        renderers=[dots], formatters={"@picture": picture_of, "@{picture}": caption_of}, attachment="right",
        tooltips='<div style="width:150px"><img src="@picture{custom}" width="64" style="float:left;margin-right:6px">'
                 '<span>@{picture}{custom}</span></div>',
    ))  # fmt: skip
    return plot


def _controls(points: Points, modes: dict[str, Colours]) -> dict[str, Any]:
    """The space, the colour and the words to look for."""
    from bokeh.models import RadioButtonGroup, Select, TextInput

    spaces, example = list(points.coords), " ".join(points.captions[0][0].split()[-2:])
    return {
        "space": RadioButtonGroup(labels=spaces, active=len(spaces) - 1, width=260, height=32, align="end",
                                  name=_name(points, "space")),
        "mode": Select(title="colour", value="modality", options=list(modes), width=CONTROL,
                       name=_name(points, "colour")),
        "words": TextInput(title="words in a caption", placeholder=f"such as: {example}", width=CONTROL,
                           name=_name(points, "words")),
    }  # fmt: skip


class Colours:
    """One way to colour the points: a code for each point in each space, the colour of each code, and the legend."""

    def __init__(self, codes: dict[str, np.ndarray], palette: Sequence[str], names: Sequence[str]) -> None:
        self.codes, self.palette = codes, list(palette)
        swatch = (
            '<span style="white-space:nowrap"><span style="display:inline-block;width:11px;height:11px;'
            'background:{}"></span> {}</span>'
        )
        marks = ["&#9679; picture", "&#9650; caption"]
        shown = [swatch.format(color, escape(name)) for color, name in zip(palette, names, strict=True)]
        self.legend = "&emsp; ".join([*marks, *shown])


def colour_modes(points: Points) -> dict[str, Colours]:
    """Modality, every group, hit or miss, and the share of neighbours kept, as codes into small palettes."""
    from bokeh.palettes import cividis

    spaces, count = list(points.coords), len(points.pictures)
    modality = np.repeat([0, 1], count)
    modes = {"modality": Colours(dict.fromkeys(spaces, modality), PALETTE[:2], ["picture", "caption"])}
    for name, labels in points.groups.items():
        kept = sorted(label for label, _ in Counter(labels).most_common(KINDS))
        codes = np.tile([kept.index(label) if label in kept else len(kept) for label in labels], 2)
        more = [OTHER] if codes.max() == len(kept) else []
        palette = [*PALETTE[: len(kept)], *([GREY] * len(more))]
        modes[name] = Colours(dict.fromkeys(spaces, codes), palette, [*kept, *more])
    hits = {name: np.full(2 * count, 2) if found is None else 1 - found.astype(int)
            for name, found in points.hits.items()}  # fmt: skip
    modes["hit or miss"] = Colours(hits, (PALETTE[0], PALETTE[1], GREY),
                                   ("hit: partner among the first ten", "miss", "no common space"))  # fmt: skip
    for reference, shares in points.overlaps.items():
        tenths = {name: np.rint(values / 10).astype(int) for name, values in shares.items()}
        told = [values for name, values in tenths.items() if name != UNIMODAL or len(tenths) == 1]
        top = max(1, int(np.percentile(np.concatenate(told), 98)))  # few points share more; they have the last colour
        steps = {name: values.clip(max=top) for name, values in tenths.items()}
        names = [f"{10 * i} %" for i in range(top)] + [f"{10 * top} %" + (" or more" if top < 10 else "")]
        modes[f"neighbours shared with {reference}"] = Colours(steps, cividis(top + 1), names)
    return modes
