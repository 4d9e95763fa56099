"""Figures with pictures and captions in them, laid out in inches: examples, retrieved lists, one item on the dial."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.figures.style import (
    BLUE,
    FONT_SIZE,
    LINE,
    MODALITY,
    MOST,
    VERMILLION,
    caption_fonts,
    is_narrow,
    new_figure,
    page_width,
    style,
    wrap,
)
from rvlr_lib.tables import arm_label, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GAP, PICTURE, LINES, NARROW_ITEMS = 0.06, 0.8, 7, 3  # inches; most lines of a retrieved caption; items in a column
FRAMES = {True: (BLUE, "-", 2.2), False: (VERMILLION, (0, (3, 2)), 0.9), None: ("0.6", "-", 0.6)}
MARKS = {True: "✓", False: "✗", None: ""}


@dataclass(frozen=True)
class Hit:
    """One retrieved item: a picture (PIL or array) or a caption; ``hit`` is None where nobody can say."""

    item: Any
    name: str = ""
    hit: bool | None = None
    relevance: float | None = None


@dataclass(frozen=True)
class Query:
    """A query, the item that belongs to it, the best items of each method and the true item's rank there."""

    item: Any
    results: Mapping[str, Sequence[Hit]]
    name: str = ""
    truth: Any = None
    ranks: Mapping[str, int] = field(default_factory=dict)
    title: str = ""
    kind: str = "query"


@dataclass(frozen=True)
class DialColumn:
    """One item at one dial setting: what each side holds (shares, 0 to 1), its neighbours by truth and by space."""

    title: str
    picture: Any
    caption: str
    shares: Mapping[str, float]
    neighbours: Mapping[str, Sequence[Hit]]


def plot_examples(groups: Mapping[str, Sequence[tuple[Any, str]]]) -> "Figure":
    """Pictures with their captions below, a row per group: title -> (picture, caption), as many in each row."""
    most = NARROW_ITEMS if is_narrow() else max(map(len, groups.values()))
    width = page_width()
    left = LINE + 2 * GAP
    wide = (width - left) / most
    size = min(wide - 2 * GAP, 1.1)
    texts = {title: [wrap(text, wide - 2 * GAP, 9) for _, text in row[:most]] for title, row in groups.items()}
    heights = {title: size + 3 * GAP + LINE * max(map(len, rows)) for title, rows in texts.items()}
    page, top = _page(width, sum(heights.values()) + GAP), GAP
    for title, row in groups.items():
        _heading(page, GAP + LINE / 2, top + size / 2, title)
        for i, ((picture, _), text) in enumerate(zip(row, texts[title], strict=False)):
            middle = left + (i + 0.5) * wide
            _draw(page, middle - size / 2, top, size, size, picture)
            _write(page, middle, top + size + GAP, "\n".join(text), ha="center")
        top += heights[title]
    return page.figure


def plot_retrieval_panel(queries: Sequence[Query]) -> "Figure":
    """Queries with the item that belongs to them, then a row of the best items per method, and the true item's rank.

    Right: thick frame and a tick; wrong: thin dashed frame and a cross; unknown: thin frame; beside the mark the
    relevance. In a figure as wide as a column the query stands above its lists, which show three items.
    """
    narrow, width = is_narrow(), page_width()
    lists = [{name: list(row)[: NARROW_ITEMS if narrow else None] for name, row in q.results.items()} for q in queries]
    head = 0.0 if narrow else 1.25
    left = head + 3 * LINE + 3 * GAP
    wide = (width - left - GAP) / max(len(row) for rows in lists for row in rows.values())
    for size in (PICTURE, 0.65, 0.5, 0.36):  # inches of a picture: smaller ones where the page would be too short
        blocks, top = [], GAP
        for query, rows in zip(queries, lists, strict=True):
            own = [item for item in (query.item, query.truth) if item is not None]
            tall = max(_height(item, (width / 2 if narrow else head) - GAP, size) for item in own) + LINE + 2 * GAP
            high = max(_height(hit.item, wide - 2 * GAP, size) for row in rows.values() for hit in row)
            step, title = high + LINE + 2 * GAP, 1.3 * LINE if query.title else 0.0
            start = top + title + (tall if narrow else 0)
            blocks.append((query, rows, top, title, tall, high, step, start))
            top = max(start + step * len(rows), 0 if narrow else top + title + tall * len(own)) + 2 * GAP
        if top <= MOST:
            break
    page = _page(width, top)
    for query, rows, top, title, tall, high, step, start in blocks:
        _write(page, GAP, top, query.title, weight="bold")
        for i, (name, item) in enumerate(((query.kind, query.item), ("belongs to it", query.truth))):
            if item is not None:
                x, y = (GAP + i * width / 2, top + title) if narrow else (GAP, top + title + i * tall)
                _write(page, x, y, name, color="0.4")
                room = (width / 2 if narrow else head) - GAP
                _draw(page, x, y + LINE + GAP / 2, size, size, item, text_width=room)
        for j, (method, row) in enumerate(rows.items()):
            y = start + j * step
            name = wrap(arm_label(method), step, 2) + ([f"rank {query.ranks[method]}"] if method in query.ranks else [])
            _heading(page, left - 1.5 * LINE - GAP, y + high / 2, "\n".join(name))
            for i, hit in enumerate(row):
                x = left + i * wide + GAP
                _draw(page, x, y, wide - 2 * GAP, high, hit.item, FRAMES[hit.hit])
                value = "" if hit.relevance is None else shown(hit.relevance, "relevance")
                mark = f"{MARKS[hit.hit]} {value}".strip()
                _write(page, x + wide / 2 - GAP, y + high + GAP / 2, mark, ha="center")
    return page.figure


def retrieval_table(queries: Sequence[Query]) -> "pd.DataFrame":
    """The table behind :func:`plot_retrieval_panel`, a line per item, with the rank of the query's true item."""
    import pandas as pd

    lines = [
        (query.name, method, rank, hit.name, hit.hit, hit.relevance, query.ranks.get(method))
        for query in queries
        for method, row in query.results.items()
        for rank, hit in enumerate(row, start=1)
    ]
    return pd.DataFrame(lines, columns=["query", "method", "rank", "item", "hit", "relevance", "true_rank"])


def plot_dial_item(columns: Sequence[DialColumn]) -> "Figure":
    """One item along the dial: picture and caption as the dial leaves them, what each side holds, and its neighbours.

    Neighbours by truth come first; under each space those kept are framed and counted.

    Args:
        columns: from :func:`rvlr_lib.figures.browser.dial_column`, such as poor pictures, balance, poor captions; below
            each other where the figure is as wide as a column.
    """
    narrow, width = is_narrow(), page_width()
    wide = width if narrow else width / len(columns)
    count = max(len(row) for column in columns for row in column.neighbours.values())
    rows = len(columns[0].neighbours)
    side, above = (0.85, 0.0) if narrow else (0.0, 1.1 * LINE)  # names stand beside the rows, or above them
    head = 1.5 * LINE + PICTURE + 2 * GAP
    size = (wide - side - GAP) / count - GAP
    if narrow:
        size = min(size, ((MOST - GAP) / len(columns) - head - GAP) / rows - GAP)
    step = size + GAP + above
    block = head + step * rows + GAP
    page = _page(width, block * (len(columns) if narrow else 1) + GAP)
    for number, column in enumerate(columns):
        x, y = (GAP, number * block + GAP) if narrow else (number * wide + GAP, GAP)
        _write(page, x, y, column.title, weight="bold")
        y += 1.3 * LINE
        _draw(page, x, y, PICTURE, PICTURE, column.picture)
        left, room = x + PICTURE + GAP, wide - PICTURE - 3 * GAP
        _write(page, left, y, "\n".join(wrap(column.caption, room, 3)))
        for place, (name, color) in enumerate(MODALITY.items()):
            middle, bar = y + PICTURE - (1.65 - place) * 1.1 * LINE, room - 1.0
            _write(page, left, middle, name, va="center")
            for share, shade in ((1.0, "0.92"), (column.shares[name], color)):
                page.barh(middle, share * bar, 0.1, left=left + 0.52, color=shade)
            _write(page, left + 0.56 + bar, middle, f"{shown(100 * column.shares[name])} %", va="center")
        y += head - 1.3 * LINE
        for name, row in column.neighbours.items():
            known = any(hit.hit is not None for hit in row)
            kept = f"{sum(bool(hit.hit) for hit in row)} of {len(row)}" if known else ""
            text = arm_label(name) + (("\n" if narrow else ": ") + kept if kept else "")
            _write(page, x, y + (size / 2 if narrow else 0), text, va="center" if narrow else "top")
            for i, hit in enumerate(row):
                frame = FRAMES[True] if hit.hit else None
                _draw(page, x + side + i * (size + GAP), y + above, size, size, hit.item, frame)
            y += step
    return page.figure


def _height(item: Any, width: float, picture: float) -> float:
    """Inches that an item needs."""
    return max(len(wrap(item, width - GAP, LINES)) * LINE + GAP, 0.5) if isinstance(item, str) else picture


def _page(width: float, height: float) -> "Axes":
    """Axes over a whole new figure, measured in inches from the upper left corner."""
    with style():
        axes = new_figure(width, height, layout=None).add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        axes.axis("off")
    return axes


def _draw(
    page: "Axes", x: float, y: float, width: float, height: float, item: Any, frame: Any = None, text_width: float = 0
) -> None:
    """A picture or a caption in a box, in a frame of (colour, line style, thickness); a query's text has no box."""
    if isinstance(item, str):
        lines = "\n".join(wrap(item, (text_width or width) - GAP, LINES))
        if text_width:
            _write(page, x, y, lines)
        else:
            _write(page, x + width / 2, y + height / 2, lines, ha="center", va="center")
    else:
        array = np.asarray(item)
        scale = min(width / array.shape[1], height / array.shape[0])
        x, width = (x if text_width else x + (width - scale * array.shape[1]) / 2), scale * array.shape[1]
        y, height = y + (height - scale * array.shape[0]) / 2, scale * array.shape[0]
        page.imshow(array, extent=(x, x + width, y + height, y), aspect="auto")
    if frame is not None:
        from matplotlib.patches import Rectangle

        color, line, thick = frame
        page.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linestyle=line, linewidth=thick))


def _heading(page: "Axes", x: float, y: float, text: str) -> None:
    """Bold text that runs upwards beside a row."""
    _write(page, x, y, text, rotation=90, ha="center", va="center", weight="bold")


def _write(page: "Axes", x: float, y: float, text: str, **how: Any) -> None:
    how = how if "weight" in how else {"family": caption_fonts(), **how}  # few of those fonts come in bold
    page.text(x, y, text, **{"va": "top", "fontsize": FONT_SIZE, "linespacing": 1.15, **how})
