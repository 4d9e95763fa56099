"""The style of every figure: widths, colours and markers, text wrapped by its font, and how a figure is saved."""

import textwrap
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from itertools import cycle, product
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import matplotlib.style
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.textpath import text_to_path

from rvlr_lib import config
from rvlr_lib.disk import whole_file, write_text
from rvlr_lib.tables import to_csv

COLUMN, PAGE, MOST = 3.5, 7.16, 9.25  # inches: both widths of an IEEE page, and its height (666 pt)
FONT_SIZE, LINE = 8, 0.14  # points; inches from one line of text to the next
STYLE_FILE = Path(__file__).with_name("rvlr.mplstyle")
style = partial(matplotlib.style.context, STYLE_FILE)  # within a block or a decorated function
BLUE, SKY, TEAL, VERMILLION, ORANGE, PINK = "#0072B2", "#56B4E9", "#00574B", "#D55E00", "#E69F00", "#CC79A7"
MODALITY = {"picture": "#6A3D9A", "caption": "#C9A227"}  # a palette of its own: no arm is purple or ochre
SCRIPTS = ["Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Hiragino Sans", "PingFang SC"]
SCRIPTS += ["Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari", "Noto Sans Thai"]
SCRIPTS += ["Arial Unicode MS", "Droid Sans Fallback"]
WIDTH: ContextVar[float] = ContextVar("inches of a figure", default=PAGE)


class Look(NamedTuple):
    """Colour, marker and line of a series; arms of one colour differ in marker."""

    color: str
    marker: str
    line: Any = "-"


ARMS = {"start": Look("0.65", "o", ":"), "ideal": Look("0.05", "", (0, (2, 1)))}  # and those of presets/arms.yaml
ARMS |= {name: Look(*arm.look) for name, arm in config.ARMS.items() if arm.look}
COLORS = BLUE, VERMILLION, "0.15", SKY, ORANGE, TEAL, PINK, "0.55"
OTHERS = list(map(Look, COLORS, "osD^vPX*", ("-", "--", "-.", ":") * 2))


def looks(names: Iterable[Any]) -> dict[Any, Look]:
    """A look for each name; arms have theirs in every figure."""
    free = cycle(OTHERS)
    return {name: ARMS[name] if name in ARMS else next(free) for name in dict.fromkeys(names)}


@contextmanager
def one_column() -> Iterator[None]:
    """Within this block every figure is as wide as a column of text, 3.5 inches: fewer panels stand side by side."""
    token = WIDTH.set(COLUMN)
    try:
        yield
    finally:
        WIDTH.reset(token)


def page_width() -> float:
    """Inches of a full figure: those of a page, or of a column within :func:`one_column`."""
    return WIDTH.get()


def is_narrow() -> bool:
    """Whether figures are as wide as a column."""
    return page_width() <= COLUMN


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """An empty figure, in inches, that pyplot does not hold: a notebook shows it once, as the value of its cell.

    A ValueError says that it is taller than a page, where no layout can shrink its panels.
    """
    if height > MOST and layout is None:
        raise ValueError(f"the figure would be {height * 72:.0f} pt tall, a page has {MOST * 72:.0f}: show fewer rows")
    figure = plt.figure(figsize=(width, min(height, MOST)), layout=layout)  # pyplot teaches the notebook to show it
    plt.close(figure)
    return figure


@style()
def save_figure(figure: Figure, folder: Path | str, name: str, data: pd.DataFrame) -> None:
    """Write a figure as PNG (200 dpi) and PDF and its data as CSV, each whole or not at all.

    The same figure gives the same bytes. Panels without room are an error: matplotlib would draw them on one spot.
    """
    png, pdf, csv = (Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv"))
    with whole_file(png) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
        figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
    figure.set_layout_engine("none")  # both files have one layout, computed once
    with whole_file(pdf) as temporary:
        figure.savefig(temporary, format="pdf", dpi=300, metadata={"CreationDate": None})
    write_text(csv, to_csv(data))


@cache
def caption_fonts() -> list[str]:
    """Families for captions in any script: the figures' own, then those installed for scripts that it lacks."""
    installed = set(get_font_names())
    return ["DejaVu Sans", *(name for name in SCRIPTS if name in installed)]


def inches(text: str, weight: str = "normal") -> float:
    """Width of a line of text in the figures' font."""
    font = FontProperties(family="DejaVu Sans", size=FONT_SIZE, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def wrap(text: str, width: float, most: int = 99, weight: str = "normal") -> list[str]:
    """Break a text into at most ``most`` lines of ``width`` inches, by words where all fit; the rest is an ellipsis."""
    for broken, count in product((False, True), range(max(6, int(width / 0.055)), 0, -1)):  # letters in a line
        lines = textwrap.wrap(text, count, max_lines=most, placeholder=" …", break_long_words=broken) or [""]
        if max(inches(line, weight) for line in lines) <= 0.97 * width:
            break
    return lines
