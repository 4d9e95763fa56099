"""Figures that contain pictures and captions, laid out in inches: examples, ranked lists, one item along the dial."""

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
from rvlr_lib.tables import arm_label, format_number

GAP, HEADING, NARROW_ITEMS = 0.06, 0.7, 3  # inches, inches, items side by side in one column
# Picture size in inches, most lines of a caption, most lines of a titled caption; the first that fits a page is used.
SIZES = ((0.8, 7, 9), (0.65, 6, 9), (0.5, 6, 9), (0.36, 5, 9), (0.36, 3, 9), (0.36, 3, 6), (0.36, 2, 4), (0.3, 2, 3))
FRAMES = {True: (look.BLUE, "-", 2.2), False: (look.VERMILLION, (0, (3, 2)), 0.9), None: ("0.6", "-", 0.6)}
MARKS = {True: "✓", False: "✗", None: ""}


class Hit(NamedTuple):
    """One retrieved item, a picture or a caption; ``hit`` is None if unknown."""

    item: Any
    name: str = ""
    hit: bool | None = None
    relevance: float | None = None


class Query(NamedTuple):
    """A query, its true match, and for each method the best items and the rank of the true match."""

    item: Any
    results: Mapping[str, Sequence[Hit]]
    name: str = ""
    truth: Any = None
    ranks: Mapping[str, int] = {}
    title: str = ""
    kind: str = "query"
    shares: Mapping[str, float] = {}  # picture, caption -> share of the factors that it shows, 0 to 1


class Cell(NamedTuple):
    """A table cell: an item (see ``_draw``), a title above, text below and an optional frame."""

    item: Any
    above: str = ""
    below: str = ""
    frame: Any = None


Row = tuple[Sequence[str], Sequence[Cell]]  # heading lines, cells


def plot_examples(groups: Mapping[str, Sequence[tuple[Any, str]]]) -> Figure:
    """Plot pictures with their captions below, a row per group; ``groups``: title -> (picture, caption) pairs."""
    count = NARROW_ITEMS if is_narrow() else max(map(len, groups.values()))
    rows = [([title], [Cell(item, below=text) for item, text in pairs[:count]]) for title, pairs in groups.items()]
    return _table(rows, [1.0] * count)


def plot_retrieval_panel(queries: Sequence[Query]) -> Figure:
    """Plot each query and its true match next to the best items of each method and the rank of the true match.

    Right: thick frame and a tick; wrong: thin dashed frame and a cross; unknown: thin frame. The number after the mark
    is the relevance. In a one-column figure each list shows three items, or two if any of them is a caption.
    """
    lists = [hits for query in queries for hits in query.results.values()]
    narrow = NARROW_ITEMS - any(isinstance(hit.item, str) for hits in lists for hit in hits)  # words need more room
    count = narrow if is_narrow() else max(map(len, lists))
    rows: list[Row] = []
    for query in queries:
        rows += [([], [Cell("", above=query.title)])] if query.title else []
        first = [Cell(query.item, query.kind), *([] if query.truth is None else [Cell(query.truth, "true match")])]
        results = [*query.results.items(), *[("", ())] * (len(first) - len(query.results))]
        for number, (method, hits) in enumerate(results):
            heading = [arm_label(method), *([f"rank {query.ranks[method]}"] if method in query.ranks else [])]
            cells = first[number : number + 1] or [Cell(None)]
            for hit in hits[:count]:
                value = "" if hit.relevance is None else format_number(hit.relevance, "relevance")
                cells.append(Cell(hit.item, below=f"{MARKS[hit.hit]} {value}".strip(), frame=FRAMES[hit.hit]))
            rows.append((heading, cells))
    return _table(rows, [1.3 if is_narrow() else 1.8, *[1.0] * count])


def retrieval_table(queries: Sequence[Query]) -> pd.DataFrame:
    """Data of :func:`plot_retrieval_panel`: a row per item, with the rank of the query's true match."""
    rows = [
        (query.name, method, rank, hit.name, hit.hit, hit.relevance, query.ranks.get(method))
        for query in queries
        for method, hits in query.results.items()
        for rank, hit in enumerate(hits, start=1)
    ]
    return pd.DataFrame(rows, columns=["query", "method", "rank", "item", "hit", "relevance", "true_rank"])


def plot_dial_item(columns: Sequence[Query]) -> Figure:
    """Plot one item along the dial: picture and caption as degraded, the share of factors in each, and its neighbours.

    True neighbours come first; in each space those retained are framed and counted. ``columns`` are results of
    :func:`rvlr_lib.figures.browser.dial_query`, stacked in a one-column figure.
    """
    rows: list[Row] = []
    groups = [[column] for column in columns] if is_narrow() else [columns]
    for group in groups:
        rows.append(([], [Cell([Cell(q.item), Cell(q.shares)], q.title, q.truth) for q in group]))
        for name in columns[0].results:
            cells = []
            for hits in (column.results[name] for column in group):
                judged = [hit.hit for hit in hits if hit.hit is not None]
                strip = [Cell(hit.item, frame=FRAMES[True] if hit.hit else None) for hit in hits]
                cells.append(Cell([*strip, Cell(f"{sum(judged)}/{len(hits)}" if judged else "")]))
            rows.append(([arm_label(name)], cells))
    return _table(rows, [1.0] * len(groups[0]))


@look.style()
def _table(rows: Sequence[Row], shares: Sequence[float]) -> Figure:
    """Draw rows of cells, each as tall as its tallest cell; pictures and captions shrink until all fit a page."""
    unit = (page_width() - HEADING) / sum(shares)
    edges = [HEADING + unit * share for share in accumulate(shares, initial=0)]
    widths = [end - start - 2 * GAP for start, end in pairwise(edges)]
    placed = [list(zip(cells, edges, widths, strict=False)) for _, cells in rows]
    titles = [LINE * any(cell.above for cell in cells) for _, cells in rows]
    texts = [max(LINE * len(wrap(c.below, w)) if c.below else 0 for c, _, w in row) + 2.5 * GAP for row in placed]
    picture_widths = [width for row in placed for cell, _, width in row if hasattr(cell.item, "size")]
    for largest, most, titled_most in SIZES:
        size = min([largest, *picture_widths])  # of pictures that fill a cell
        heights = [max(_height(c.item, w, size, titled_most if c.above else most) for c, _, w in row) for row in placed]
        steps = [title + item + (text if item else 0) for title, item, text in zip(titles, heights, texts, strict=True)]
        if sum(steps) + GAP <= MAX_HEIGHT:
            break
    width, height = page_width(), sum(steps) + GAP
    figure = look.new_figure(width, height, layout=None)
    page = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0), autoscale_on=False)  # in inches
    page.axis("off")
    tops = accumulate(steps, initial=GAP)
    for (heading, _), row, title, height, top in zip(rows, placed, titles, heights, tops, strict=False):
        y = top + title
        lines = "\n".join(line for text in heading for line in wrap(text, 0.8 * HEADING))
        _write(page, GAP, y + height / 2, lines, va="center", weight="bold")
        for cell, x, width in row:
            _write(page, x, top, cell.above, weight="bold")
            _draw(page, x, y, width, height, cell.item, cell.frame, size)
            _write(page, x + width / 2, y + height + GAP / 2, "\n".join(wrap(cell.below, width)), ha="center")
    return figure


def _height(item: Any, width: float, picture: float, most: int) -> float:
    """Height in inches of a caption of at most ``most`` lines, a row of pictures, or a picture."""
    if isinstance(item, str):
        return LINE * len(wrap(item, width - GAP, most)) + GAP if item else 0.0
    return min(picture, width / len(item)) if isinstance(item, list) and len(item) > 2 else picture


def _draw(page: Axes, x: float, y: float, width: float, height: float, item: Any, frame: Any, most: float) -> None:
    """Draw a picture of at most ``most`` inches, a caption, bars of shares, or cells side by side, centred in a box."""
    if isinstance(item, str):
        lines = wrap(item, width, int(height / LINE + 0.01))
        _write(page, x + width / 2, y + height / 2, "\n".join(lines), ha="center", va="center")
    elif isinstance(item, list):
        for i, cell in enumerate(item):
            _draw(page, x + i * width / len(item), y, width / len(item) - GAP, height, cell.item, cell.frame, most)
    elif isinstance(item, Mapping):
        for number, (name, share) in enumerate(item.items()):
            middle = y + height / 2 + (number - 0.5) * 1.2 * LINE
            page.barh(middle, share * width, LINE, left=x, color=MODALITY[name], alpha=0.5)
            _write(page, x + GAP / 2, middle, f"{name} {format_number(100 * share)} %", va="center")
    elif item is not None:
        array = np.asarray(item)
        scale = min(min(width, most) / array.shape[1], min(height, most) / array.shape[0])
        w, h = scale * array.shape[1], scale * array.shape[0]
        x, y, width, height = x + (width - w) / 2, y + (height - h) / 2, w, h
        page.imshow(array, extent=(x, x + width, y + height, y), aspect="auto")
    if frame is not None:
        color, line, weight = frame
        page.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=color, linestyle=line, linewidth=weight))


def _write(page: Axes, x: float, y: float, text: str, **options: Any) -> None:
    options = options if "weight" in options else {"family": look.caption_fonts(), **options}  # few come in bold
    page.text(x, y, text, **{"va": "top", "fontsize": FONT_SIZE, "linespacing": 1.15, **options})
