"""Figures with pictures and captions in them: examples, retrieved lists, the common space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.figures.charts import legend_columns, looks, pretty
from rvlr_lib.figures.projection import Projection
from rvlr_lib.figures.style import FONT_SIZE, caption_fonts, is_narrow, new_figure, page_width, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINE = 0.14  # inches from one line of text to the next
MARGIN = 0.06
THUMBNAIL, PICTURE, LINES = 0.27, 0.8, 7  # inches, inches, most lines of a retrieved caption
NARROW_ITEMS = 3  # side by side in a figure as wide as a column
HIT, MISS = "✓", "✗"
OTHER = "other"


@dataclass(frozen=True)
class Hit:
    """One retrieved item.

    Attributes:
        item: a picture (PIL or array) or a caption.
        name: id for the table of the figure.
        hit: whether it is right; None where nobody can say.
        relevance: graded relevance to the query, 0 to 1.
    """

    item: Any
    name: str = ""
    hit: bool | None = None
    relevance: float | None = None


@dataclass(frozen=True)
class Query:
    """A query and what each method puts first.

    Attributes:
        item: a picture (PIL or array) or a caption.
        results: method -> its best items, best first.
        name: id for the table of the figure.
    """

    item: Any
    results: Mapping[str, Sequence[Hit]]
    name: str = field(default="")


@style()
def plot_examples(groups: Mapping[str, Sequence[tuple[Any, str]]]) -> Figure:
    """Pictures with their captions below, a row per group.

    Args:
        groups: title of the row, such as ``detail 0.6`` -> (picture, caption), the same number in each row.
    """
    if is_narrow():
        groups = {title: row[:NARROW_ITEMS] for title, row in groups.items()}
    count = max(map(len, groups.values()))
    left = LINE + 2 * MARGIN
    wide = (page_width() - left) / count
    size = min(wide - 2 * MARGIN, 1.1)
    texts = {title: [_wrap(text, wide - 2 * MARGIN, 9) for _, text in row] for title, row in groups.items()}
    heights = {title: size + 3 * MARGIN + LINE * max(map(len, rows)) for title, rows in texts.items()}
    figure = new_figure(page_width(), sum(heights.values()) + MARGIN, layout=None)
    top = MARGIN
    for title, row in groups.items():
        _write(figure, MARGIN + LINE / 2, top + size / 2, title, rotation=90, ha="center", va="center", weight="bold")
        for i, ((picture, _), text) in enumerate(zip(row, texts[title], strict=True)):
            middle = left + (i + 0.5) * wide
            _picture(_axes(figure, middle - size / 2, top, size, size), picture)
            _write(figure, middle, top + size + MARGIN, "\n".join(text), ha="center", va="top")
        top += heights[title]
    return figure


@style()
def plot_retrieval_panel(queries: Sequence[Query], *, query_width: float = 1.2) -> Figure:
    """Queries on the left, then a row of the best items per method; right ones framed and ticked.

    Right: thick frame and a tick; wrong: thin dashed frame and a cross; unknown: thin frame. The relevance stands
    beside the mark.

    Args:
        queries: from :func:`rvlr_lib.figures.browser.make_query`.
        query_width: inches for the query.
    """
    narrow = is_narrow()  # then the query stands above its lists
    if narrow:
        queries = [replace(query, results={name: row[:NARROW_ITEMS] for name, row in query.results.items()})
                   for query in queries]  # fmt: skip
    count = max(len(row) for query in queries for row in query.results.values())
    left = 2 * LINE + (MARGIN if narrow else query_width + 5 * MARGIN)
    wide = (page_width() - left - MARGIN) / count
    top, blocks = MARGIN + LINE, []
    for query in queries:
        head = _query_height(query.item) if narrow else 0.0
        high = max(_height(hit.item, wide - 2 * MARGIN) for row in query.results.values() for hit in row)
        step = high + LINE + 2 * MARGIN
        blocks.append((top, head, high, step))
        top += max(head + len(query.results) * step, 0 if narrow else query_width) + MARGIN
    figure = new_figure(page_width(), top + MARGIN, layout=None)
    for i in range(count):
        _write(figure, left + (i + 0.5) * wide, MARGIN / 2, f"{i + 1}", ha="center", va="top", color="0.35")
    for query, (top, head, high, step) in zip(queries, blocks, strict=True):
        if top > MARGIN + LINE:
            y = 1 - (top - MARGIN / 2) / figure.get_figheight()
            figure.add_artist(_line([0.01, 0.99], [y, y]))
        _query(figure, query.item, top, page_width() - 2 * MARGIN if narrow else query_width,
               head or len(query.results) * step)  # fmt: skip
        for j, (method, row) in enumerate(query.results.items()):
            y = top + head + j * step + MARGIN
            name = "\n".join(_wrap(pretty(method), 0.85 * step, 2))  # bold letters are wider
            _write(figure, left - LINE, y + high / 2, name, rotation=90, ha="center", va="center", weight="bold")
            for i, hit in enumerate(row):
                _result(figure, hit, left + i * wide + MARGIN, y, wide - 2 * MARGIN, high)
    return figure


def _query_height(item: Any) -> float:
    """Inches of a query that stands above its lists."""
    if isinstance(item, str):
        return LINE * len(_wrap(item, page_width() - 2 * MARGIN, LINES)) + MARGIN
    return PICTURE


def _query(figure: Figure, item: Any, top: float, width: float, height: float) -> None:
    """The query, in the upper left corner of its block."""
    if isinstance(item, str):
        text = _wrap(item, width, max(1, int(height / LINE)))
        _write(figure, MARGIN, top + MARGIN, "\n".join(text), va="top")
    else:
        size = min(width, height) - MARGIN
        _picture(_axes(figure, MARGIN, top + MARGIN, size, size), item)


def _result(figure: Figure, hit: Hit, x: float, y: float, width: float, height: float) -> None:
    """One retrieved item, with its mark and its relevance below."""
    _show(_axes(figure, x, y, width, height), hit, width)
    mark = {True: HIT, False: MISS, None: ""}[hit.hit]
    value = "" if hit.relevance is None else f"{hit.relevance:.2f}"
    _write(figure, x + width / 2, y + height + MARGIN / 2, f"{mark} {value}".strip(), ha="center", va="top")


def retrieval_table(queries: Sequence[Query]) -> pd.DataFrame:
    """The table behind :func:`plot_retrieval_panel`: query, method, rank, item, hit, relevance."""
    import pandas as pd

    lines = [
        (query.name, method, rank, hit.name, hit.hit, hit.relevance)
        for query in queries
        for method, row in query.results.items()
        for rank, hit in enumerate(row, start=1)
    ]
    return pd.DataFrame(lines, columns=["query", "method", "rank", "item", "hit", "relevance"])


@style()
def plot_embedding(
    *projections: Projection,
    image_labels: Sequence[Any] | None = None,
    text_labels: Sequence[Any] | None = None,
    thumbnail: Callable[[int], Any] | None = None,
    thumbnails: int = 6,
    most_labels: int = 7,
) -> Figure:
    """The same points in several spaces side by side, a row per projection; circles are pictures, triangles captions.

    Args:
        projections: from ``project_spaces``, such as UMAP and its PCA control, of the same
            spaces and the same items.
        image_labels: ``[I]`` label of every picture, drawn as colour; without labels colour is the modality.
        text_labels: ``[C]`` label of every caption.
        thumbnail: picture of a row, such as ``dataset.image``.
        thumbnails: how many pictures to show, the same in all panels, far from each other.
        most_labels: labels with a colour of their own, the most frequent ones; the others are grey.
    """
    spaces = list(projections[0].coords)
    across, down = len(spaces), len(projections)
    if is_narrow():  # then a row per space, a column per projection
        across, down = down, across
    wide = page_width() / max(across, 2)
    colors, labels = _groups(projections[0], image_labels, text_labels, most_labels)
    handles = _handles(colors)
    columns = legend_columns(list(handles), wide * across)
    below = 0.2 + 0.17 * -(-len(handles) // columns)  # the legend
    figure = new_figure(wide * across, down * (wide + 0.32) + 0.25 + below)
    grid = figure.subplots(down, across, squeeze=False)
    grid = grid.T if is_narrow() else grid
    for number, (row, projection) in enumerate(zip(grid, projections, strict=True)):
        coords = projection.coords
        reach = 1.15 * max(float(np.abs(xy).max()) for pair in coords.values() for xy in pair)
        least = 1.5 * THUMBNAIL * 2 * reach / wide  # nearer ones would lie on each other
        shown = _far_apart([coords[space][0] for space in spaces], thumbnails if thumbnail else 0, least)
        for axes, space in zip(row, spaces, strict=True):
            for xy, marker, own in zip(coords[space], "o^", labels, strict=True):
                for label, color in colors.items():
                    part = xy[own == label]
                    axes.scatter(*part.T, s=7, color=color, marker=marker, alpha=0.65, linewidths=0, rasterized=True)
            for i in shown:
                _thumbnail(axes, thumbnail(int(projection.image_rows[i])), coords[space][0][i])  # type: ignore[misc]
            trust = projection.trustworthiness[space]
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], box_aspect=1)
            axes.set_xlabel(
                f"trustworthiness {trust['joint']:.2f}\nimage {trust['image']:.2f}, text {trust['text']:.2f}"
            )
            axes.spines[:].set_visible(True)
            if number == 0 and is_narrow():
                axes.set_ylabel(pretty(space), weight="bold")
            elif number == 0:
                axes.set_title(pretty(space))
        if is_narrow():
            row[0].set_title(projection.name)
        else:
            row[0].set_ylabel(projection.name, weight="bold")
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
    return figure


def _groups(
    projection: Projection, image_labels: Any, text_labels: Any, most: int
) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The colour of each label, and the label of each drawn picture and caption; the modality where there are none."""
    rows = {"picture": projection.image_rows, "caption": projection.text_rows}
    if image_labels is None and text_labels is None:
        labels = [np.full(len(own), name) for name, own in rows.items()]
        return {name: look.color for name, look in looks(rows).items()}, labels
    given = zip(rows.values(), (image_labels, text_labels), strict=True)
    labels = [np.full(len(own), OTHER) if all_ is None else np.asarray(all_).astype(str)[own] for own, all_ in given]
    names, counts = np.unique(np.concatenate(labels), return_counts=True)
    kept = sorted([str(name) for name in names[np.argsort(-counts, kind="stable")] if name != OTHER][:most])
    colors = {name: look.color for name, look in looks(kept).items()}
    labels = [np.where(np.isin(own, kept), own, OTHER) for own in labels]
    return colors | ({OTHER: "0.75"} if OTHER in np.concatenate(labels) else {}), labels


def _handles(colors: Mapping[str, Any]) -> dict[str, Any]:
    from matplotlib.lines import Line2D

    markers = {"picture": "o", "caption": "^"} | {name: "s" for name in colors if name not in ("picture", "caption")}
    return {
        pretty(name): Line2D([], [], linestyle="", marker=marker, color=colors.get(name, "0.3"))
        for name, marker in markers.items()
    }


def _far_apart(layouts: Sequence[np.ndarray], count: int, least: float) -> list[int]:
    """Rows far from each other in every layout: each next one has the greatest least distance to those before."""
    chosen = [int(np.linalg.norm(layouts[0], axis=1).argmax())][:count]
    while 0 < len(chosen) < count:
        near = np.min([np.linalg.norm(xy[:, None] - xy[chosen], axis=2).min(axis=1) for xy in layouts], axis=0)
        if near.max() < least:
            break
        chosen.append(int(near.argmax()))
    return chosen


def _thumbnail(axes: Axes, picture: Any, xy: np.ndarray) -> None:
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    array = np.asarray(picture)
    box = OffsetImage(array, zoom=THUMBNAIL * 72 / max(array.shape[:2]))
    axes.add_artist(AnnotationBbox(box, tuple(xy), pad=0.08, bboxprops={"linewidth": 0.5, "edgecolor": "0.2"}))


def _height(item: Any, width: float) -> float:
    """Inches that an item needs: a picture, or a caption of at most seven lines."""
    return len(_wrap(item, width - MARGIN, LINES)) * LINE + MARGIN if isinstance(item, str) else PICTURE


def _show(axes: Axes, hit: Hit, width: float) -> None:
    """The item in a frame that says whether it is right."""
    palette = looks(("a", "b", "c", "d"))
    good, bad = palette["c"].color, palette["d"].color
    color, line, thick = {True: (good, "-", 2.2), False: (bad, (0, (3, 2)), 0.9), None: ("0.6", "-", 0.6)}[hit.hit]
    if isinstance(hit.item, str):
        axes.text(0.5, 0.5, "\n".join(_wrap(hit.item, width - MARGIN, LINES)), ha="center", va="center",
                  transform=axes.transAxes, linespacing=1.15, family=caption_fonts())  # fmt: skip
        axes.set(xticks=[], yticks=[])
    else:
        _picture(axes, hit.item)
    axes.spines[:].set(visible=True, color=color, linestyle=line, linewidth=thick)


def _picture(axes: Axes, picture: Any) -> None:
    axes.imshow(np.asarray(picture))
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _axes(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes placed in inches from the upper left corner."""
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def _write(figure: Figure, x: float, y: float, text: str, **how: Any) -> None:
    across, down = figure.get_size_inches()
    if "weight" not in how:  # words of people; titles of rows are ours
        how["family"] = caption_fonts()
    figure.text(x / across, 1 - y / down, text, linespacing=1.15, **how)


def _line(x: list[float], y: list[float]) -> Any:
    from matplotlib.lines import Line2D

    return Line2D(x, y, color="0.7", linewidth=0.6)


def _wrap(text: str, width: float, most: int) -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` inches, measured with the font; the rest is an ellipsis."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(family="DejaVu Sans", size=FONT_SIZE)

    def fits(line: str) -> bool:
        return text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] <= 0.97 * width * 72

    lines = [""]
    for word in text.split():
        if fits(f"{lines[-1]} {word}".strip()):
            lines[-1] = f"{lines[-1]} {word}".strip()
            continue
        lines = lines if lines[-1] else lines[:-1]
        while not fits(word) and len(word) > 1:  # a word longer than a line is cut
            cut = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or fits(word[:n]))
            lines.append(word[:cut])
            word = word[cut:]
        lines.append(word)
    if len(lines) > most:
        last = lines[most - 1]
        while last and not fits(f"{last} …"):
            last = last.rsplit(" ", 1)[0] if " " in last else last[:-1]
        lines = [*lines[: most - 1], f"{last.rstrip()} …"]
    return lines
