"""Figures with pictures and captions in them, laid out in inches: examples, retrieved lists, one item on the dial."""

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from rvlr_lib.figures import style as look
from rvlr_lib.figures.style import FONT_SIZE, LINE, MAX_HEIGHT, MODALITY, is_narrow, page_width, wrap
from rvlr_lib.tables import arm_label, shown

GAP, HEADING, NARROW_ITEMS = 0.06, 0.7, 3  # inches, inches, items side by side in a column
# Inches of pictures and lines of captions, of which the first that a page holds is taken.
SIZES = ((0.8, 7, 9), (0.65, 6, 9), (0.5, 6, 9), (0.36, 5, 9), (0.36, 3, 9), (0.36, 3, 6), (0.36, 2, 4), (0.3, 2, 3))
FRAMES = {True: (look.BLUE, "-", 2.2), False: (look.VERMILLION, (0, (3, 2)), 0.9), None: ("0.6", "-", 0.6)}
MARKS = {True: "✓", False: "✗", None: ""}


class Hit(NamedTuple):
    """One retrieved item: a picture or a caption; ``hit`` is None where nobody can say."""

    item: Any
    name: str = ""
    hit: bool | None = None
    relevance: float | None = None


class Query(NamedTuple):
    """A query, the item that belongs to it, the best items of each method and the true item's rank there."""

    item: Any
    results: Mapping[str, Sequence[Hit]]
    name: str = ""
    truth: Any = None
    ranks: Mapping[str, int] = {}
    title: str = ""
    kind: str = "query"
    shares: Mapping[str, float] = {}  # picture, caption -> what it holds, 0 to 1


class Cell(NamedTuple):
    """What stands in a table (see ``_draw``), with a title above, lines below and perhaps a frame."""

    item: Any
    above: str = ""
    below: str = ""
    frame: Any = None


Row = tuple[Sequence[str], Sequence[Cell]]  # lines beside it, and its cells


def plot_examples(groups: Mapping[str, Sequence[tuple[Any, str]]]) -> Figure:
    """Pictures with their captions below, a row per group: title -> (picture, caption), as many in each row."""
    most = NARROW_ITEMS if is_narrow() else max(map(len, groups.values()))
    rows = [([title], [Cell(item, below=text) for item, text in row[:most]]) for title, row in groups.items()]
    return _table(rows, [1.0] * most)


def plot_retrieval_panel(queries: Sequence[Query]) -> Figure:
    """Queries and what belongs to them, beside a row of the best items per method and the true item's rank there.

    Right: thick frame and a tick; wrong: thin dashed frame and a cross; unknown: thin frame; beside the mark the
    relevance. A figure as wide as a column shows three items of each list, two where captions are among them.
    """
    found = [row for query in queries for row in query.results.values()]
    narrow = NARROW_ITEMS - any(isinstance(hit.item, str) for row in found for hit in row)  # words need more room
    most = narrow if is_narrow() else max(map(len, found))
    rows: list[Row] = []
    for query in queries:
        rows += [([], [Cell("", above=query.title)])] if query.title else []
        first = [Cell(query.item, query.kind), *([] if query.truth is None else [Cell(query.truth, "belongs to it")])]
        lists = [*query.results.items(), *[("", ())] * (len(first) - len(query.results))]
        for number, (method, hits) in enumerate(lists):
            heading = [arm_label(method), *([f"rank {query.ranks[method]}"] if method in query.ranks else [])]
            cells = first[number : number + 1] or [Cell(None)]
            for hit in hits[:most]:
                value = "" if hit.relevance is None else shown(hit.relevance, "relevance")
                cells.append(Cell(hit.item, below=f"{MARKS[hit.hit]} {value}".strip(), frame=FRAMES[hit.hit]))
            rows.append((heading, cells))
    return _table(rows, [1.3 if is_narrow() else 1.8, *[1.0] * most])


def retrieval_table(queries: Sequence[Query]) -> pd.DataFrame:
    """The table behind :func:`plot_retrieval_panel`, a line per item, with the rank of the query's true item."""
    lines = [
        (query.name, method, rank, hit.name, hit.hit, hit.relevance, query.ranks.get(method))
        for query in queries
        for method, row in query.results.items()
        for rank, hit in enumerate(row, start=1)
    ]
    return pd.DataFrame(lines, columns=["query", "method", "rank", "item", "hit", "relevance", "true_rank"])


def plot_dial_item(columns: Sequence[Query]) -> Figure:
    """One item along the dial: picture and caption as the dial leaves them, what each side holds, and its neighbours.

    Neighbours by truth come first; under each space those kept are framed and counted. ``columns`` are those of
    :func:`rvlr_lib.figures.browser.dial_query`, below each other where the figure is as wide as a column.
    """
    rows: list[Row] = []
    groups = [[column] for column in columns] if is_narrow() else [columns]
    for group in groups:
        rows.append(([], [Cell([Cell(c.item), Cell(c.shares)], c.title, c.truth) for c in group]))
        for name in columns[0].results:
            cells = []
            for hits in (column.results[name] for column in group):
                known = [hit.hit for hit in hits if hit.hit is not None]
                strip = [Cell(hit.item, frame=FRAMES[True] if hit.hit else None) for hit in hits]
                cells.append(Cell([*strip, Cell(f"{sum(known)}/{len(hits)}" if known else "")]))
            rows.append(([arm_label(name)], cells))
    return _table(rows, [1.0] * len(groups[0]))


@look.style()
def _table(rows: Sequence[Row], shares: Sequence[float]) -> Figure:
    """Rows of cells, each as tall as its tallest; pictures and captions shrink until a page holds all."""
    wide = (page_width() - HEADING) / sum(shares)
    edges = [HEADING + wide * share for share in accumulate(shares, initial=0)]
    rooms = [end - start - 2 * GAP for start, end in pairwise(edges)]
    places = [list(zip(cells, edges, rooms, strict=False)) for _, cells in rows]
    above = [LINE * any(cell.above for cell in cells) for _, cells in rows]
    below = [max(LINE * len(wrap(c.below, room)) if c.below else 0 for c, _, room in p) + 2.5 * GAP for p in places]
    pictures = [room for place in places for c, _, room in place if hasattr(c.item, "size")]
    for largest, most, own_most in SIZES:
        size = min([largest, *pictures])  # of every picture that has a cell of its own
        heights = ((_height(c.item, room, size, own_most if c.above else most) for c, _, room in p) for p in places)
        high = list(map(max, heights))
        steps = [lift + tall + (own if tall else 0) for lift, tall, own in zip(above, high, below, strict=True)]
        if sum(steps) + GAP <= MAX_HEIGHT:
            break
    width, height = page_width(), sum(steps) + GAP
    figure = look.new_figure(width, height, layout=None)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)  # in inches
    page.axis("off")
    tops = accumulate(steps, initial=GAP)
    for (heading, _), place, lift, tall, top in zip(rows, places, above, high, tops, strict=False):
        lines = "\n".join(line for text in heading for line in wrap(text, 0.8 * HEADING))
        _write(page, GAP, top + lift + tall / 2, lines, va="center", weight="bold")
        for cell, x, room in place:
            _write(page, x, top, cell.above, weight="bold")
            _draw(page, x, top + lift, room, tall, cell.item, cell.frame, size)
            _write(page, x + room / 2, top + lift + tall + GAP / 2, "\n".join(wrap(cell.below, room)), ha="center")
    return figure


def _height(item: Any, room: float, picture: float, most: int) -> float:
    """Inches that an item needs: a caption of at most ``most`` lines, a row of pictures, a picture."""
    if isinstance(item, str):
        return LINE * len(wrap(item, room - GAP, most)) + GAP if item else 0.0
    return min(picture, room / len(item)) if isinstance(item, list) and len(item) > 2 else picture


def _draw(page: Axes, x: float, y: float, width: float, height: float, item: Any, frame: Any, most: float) -> None:
    """A picture of ``most`` inches at most, a caption, bars of shares, or cells side by side, amid a box."""
    if isinstance(item, str):
        lines = wrap(item, width, int(height / LINE + 0.01))
        _write(page, x + width / 2, y + height / 2, "\n".join(lines), ha="center", va="center")
    elif isinstance(item, list):
        for i, cell in enumerate(item):
            _draw(page, x + i * width / len(item), y, width / len(item) - GAP, height, cell.item, cell.frame, most)
    elif isinstance(item, Mapping):
        for place, (name, share) in enumerate(item.items()):
            middle = y + height / 2 + (place - 0.5) * 1.2 * LINE
            page.barh(middle, share * width, LINE, left=x, color=MODALITY[name], alpha=0.5)
            _write(page, x + GAP / 2, middle, f"{name} {shown(100 * share)} %", va="center")
    elif item is not None:
        array = np.asarray(item)
        scale = min(min(width, most) / array.shape[1], min(height, most) / array.shape[0])
        wide, tall = scale * array.shape[1], scale * array.shape[0]
        x, y, width, height = x + (width - wide) / 2, y + (height - tall) / 2, wide, tall
        page.imshow(array, extent=(x, x + width, y + height, y), aspect="auto")
    if frame is not None:
        color, line, thick = frame
        page.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linestyle=line, linewidth=thick))


def _write(page: Axes, x: float, y: float, text: str, **how: Any) -> None:
    how = how if "weight" in how else {"family": look.caption_fonts(), **how}  # few of those fonts come in bold
    page.text(x, y, text, **{"va": "top", "fontsize": FONT_SIZE, "linespacing": 1.15, **how})
