"""The explorer's widgets and map, in bokeh."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.explore import GREY, KINDS, OTHER, Points

GLUE = Path(__file__).with_name("explorer.js")
# Okabe and Ito, then two greys: told apart by the colour-blind; modality is told by the marker as well.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A7A00", "#404040")
LEVELS = 11  # of the scale of overlaps, 0 to 100 %
HELP = (
    "<p><b>Click a point</b> to see its neighbours in every space, <b>choose a space</b> and watch the points move, or "
    "<b>search by words</b>. Drag to move the map, turn the wheel to zoom.</p>"
)
MAP, PANEL, CONTROL = 640, 520, 200  # pixels


def view(points: Points) -> Any:
    """One data set: controls above, the map on the left, the chosen point on the right."""
    from bokeh.layouts import column, row
    from bokeh.models import (
        ColumnDataSource,
        CustomJS,
        CustomJSHover,
        Div,
        HoverTool,
        RadioButtonGroup,
        Range1d,
        Select,
        TapTool,
        TextInput,
    )
    from bokeh.plotting import figure

    spaces, count = list(points.coords), len(points.pictures)
    modes = colour_modes(points)
    start = spaces[-1]
    marks = np.repeat(["circle", "triangle"], count)
    first = modes["modality"]
    source = ColumnDataSource({
        "x": points.coords[start][:, 0].astype(np.float32), "y": points.coords[start][:, 1].astype(np.float32),
        "color": [first.palette[code] for code in first.codes[start]], "marker": marks.tolist(),
        "picture": np.tile(np.arange(count, dtype=np.int32), 2),
    })  # fmt: skip
    everything = {f"{axis}|{name}": xy[:, at].astype(np.float32)
                  for name, xy in points.coords.items() for at, axis in enumerate("xy")}  # fmt: skip
    for mode, colours in modes.items():
        everything |= {f"{mode}|{name}": codes.astype(np.uint8) for name, codes in colours.codes.items()}
    width = next(iter(points.neighbours.values()))[0].shape[1]
    kinds = ("pictures", "captions")
    near = {
        f"{kind}|{name}": pair[at].astype(np.int32).flatten()
        for name, pair in points.neighbours.items()
        for at, kind in enumerate(kinds)
    }
    rings = ColumnDataSource({"x": [], "y": [], "size": [], "point": []})
    lines = ColumnDataSource({"x0": [], "y0": [], "x1": [], "y1": []})

    reach = 1.06 * max(float(np.abs(xy).max()) for xy in points.coords.values())  # one scale for all spaces
    plot = figure(width=MAP, height=MAP, tools="pan,wheel_zoom,box_zoom,reset", active_scroll="wheel_zoom",
                  x_axis_location=None, y_axis_location=None, toolbar_location="above", name="map",
                  x_range=Range1d(-reach, reach), y_range=Range1d(-reach, reach))  # fmt: skip
    plot.grid.visible = False
    plot.segment("x0", "y0", "x1", "y1", source=lines, color="#555555", line_width=1)
    style = {"fill_color": "color", "line_color": "white", "line_width": 0.4, "size": 8}
    dots = plot.scatter("x", "y", marker="marker", source=source, fill_alpha=0.85, nonselection_fill_alpha=0.85,
                        nonselection_line_alpha=1, **style)  # fmt: skip
    plot.scatter("x", "y", size="size", source=rings, fill_color=None, line_color="black", line_width=2)
    store = ColumnDataSource({"picture": points.pictures, "captions": points.captions})
    caption_of = CustomJSHover(args={"store": store}, code="return store.data.captions[value][0]")
    show = CustomJSHover(args={"store": store}, code="return store.data.picture[value]")
    plot.add_tools(TapTool(renderers=[dots]), HoverTool(
        renderers=[dots], formatters={"@picture": show, "@{picture}": caption_of}, attachment="right",
        tooltips='<div style="width:150px"><img src="@picture{custom}" width="64" style="float:left;margin-right:6px">'
                 '<span>@{picture}{custom}</span></div>',
    ))  # fmt: skip

    space = RadioButtonGroup(labels=spaces, active=len(spaces) - 1, width=260, height=32, align="end", name="space")
    mode = Select(title="colour", value="modality", options=list(modes), width=CONTROL, name="colour")
    words = TextInput(title="words in a caption", placeholder="such as: red star", width=CONTROL, name="words")
    legend = Div(text=first.legend, width=MAP, name="legend")
    panel = Div(text=HELP, width=PANEL, height=MAP, styles={"overflow-y": "auto"}, name="panel")
    glue = CustomJS(
        args={"source": source, "all": ColumnDataSource(everything), "near": ColumnDataSource(near), "rings": rings,
              "lines": lines, "space": space, "mode": mode, "words": words, "legend": legend, "panel": panel,
              "spaces": spaces, "width": width, "store": store, "help": HELP,
              "palettes": {name: colours.palette for name, colours in modes.items()},
              "legends": {name: colours.legend for name, colours in modes.items()},
              "groups": points.groups, "common": [name for name, hits in points.hits.items() if hits is not None]},
        code=GLUE.read_text(encoding="utf-8"),
    )  # fmt: skip
    space.js_on_change("active", glue)
    mode.js_on_change("value", glue)
    words.js_on_change("value_input", glue)
    source.selected.js_on_change("indices", glue)
    notes = Div(text="".join(f"<p>{escape(note)}</p>" for note in points.notes), width=MAP + PANEL)
    return column(row(space, mode, words), row(column(plot, legend), panel), notes)


class Colours:
    """One way to colour the points: a code for each point in each space, the colour of each code, and the legend."""

    def __init__(self, codes: dict[str, np.ndarray], palette: Sequence[str], names: Sequence[str]) -> None:
        self.codes, self.palette = codes, list(palette)
        swatch = '<span style="display:inline-block;width:11px;height:11px;background:{}"></span> {}'
        marks = ["&#9679; picture", "&#9650; caption"]
        shown = [swatch.format(color, escape(name)) for color, name in zip(palette, names, strict=True) if name]
        self.legend = "&emsp;".join([*marks, *shown])


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
                                   ("partner among the first ten", "not", "no common space"))  # fmt: skip
    for reference, shares in points.overlaps.items():
        steps = {name: np.rint(values / 100 * (LEVELS - 1)).astype(int) for name, values in shares.items()}
        ends = [f"{10 * i} %" if i % 5 == 0 else "" for i in range(LEVELS)]
        modes[f"neighbours shared with {reference}"] = Colours(steps, cividis(LEVELS), ends)
    return modes
