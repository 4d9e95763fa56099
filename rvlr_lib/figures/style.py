"""Shared style of all figures: widths, colours and markers, text wrapped by rendered width, saving."""

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
from rvlr_lib.disk import atomic_path, write_text
from rvlr_lib.tables import to_csv

COLUMN_WIDTH, PAGE_WIDTH, MAX_HEIGHT = 3.5, 7.16, 9.25  # inches: IEEE column, page width, page height
FONT_SIZE, LINE = 8, 0.14  # points; inches per line of text
STYLE_FILE = Path(__file__).with_name("rvlr.mplstyle")
style = partial(matplotlib.style.context, STYLE_FILE)  # context manager and decorator
BLUE, SKY, TEAL, VERMILLION, ORANGE, PINK = "#0072B2", "#56B4E9", "#00574B", "#D55E00", "#E69F00", "#CC79A7"
MODALITY = {"picture": "#6A3D9A", "caption": "#C9A227"}  # colours that no arm uses
SCRIPT_FONTS = ["Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Hiragino Sans", "PingFang SC"]
SCRIPT_FONTS += ["Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari", "Noto Sans Thai"]
SCRIPT_FONTS += ["Arial Unicode MS", "Droid Sans Fallback"]
WIDTH: ContextVar[float] = ContextVar("figure width in inches", default=PAGE_WIDTH)


class Look(NamedTuple):
    """Colour, marker and line style of a series; arms that share a colour differ in marker."""

    color: str
    marker: str
    line: Any = "-"


ARM_LOOKS = {"start": Look("0.65", "o", ":"), "ideal": Look("0.05", "", (0, (2, 1)))}  # not in presets/arms.yaml
ARM_LOOKS |= {name: Look(*arm.look) for name, arm in config.ARMS.items() if arm.look}
COLORS = BLUE, VERMILLION, "0.15", SKY, ORANGE, TEAL, PINK, "0.55"
OTHER_LOOKS = list(map(Look, COLORS, "osD^vPX*", ("-", "--", "-.", ":") * 2))


def looks(names: Iterable[Any], others: Iterable[Look] = OTHER_LOOKS) -> dict[Any, Look]:
    """Return a look for each name: an arm's own, the same in every figure, or the next of ``others``."""
    free = cycle(others)
    return {name: ARM_LOOKS[name] if name in ARM_LOOKS else next(free) for name in dict.fromkeys(names)}


@contextmanager
def one_column() -> Iterator[None]:
    """Make every figure in this block one text column wide (3.5 inches), with fewer panels side by side."""
    token = WIDTH.set(COLUMN_WIDTH)
    try:
        yield
    finally:
        WIDTH.reset(token)


def page_width() -> float:
    """Width of a full-width figure in inches: the page, or one column within :func:`one_column`."""
    return WIDTH.get()


def is_narrow() -> bool:
    """Whether figures are one column wide."""
    return page_width() <= COLUMN_WIDTH


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """Create an empty figure, sized in inches and closed in pyplot, so that a notebook shows only the cell's value.

    With a layout engine the height is capped at a page; without one a taller figure raises ValueError.
    """
    if height > MAX_HEIGHT and layout is None:
        raise ValueError(f"figure of {height * 72:.0f} pt exceeds a page of {MAX_HEIGHT * 72:.0f} pt: show fewer rows")
    figure = plt.figure(figsize=(width, min(height, MAX_HEIGHT)), layout=layout)  # pyplot sets up notebook display
    plt.close(figure)
    return figure


@style()
def save_figure(figure: Figure, folder: Path | str, name: str, data: pd.DataFrame) -> None:
    """Write a figure as PNG (200 dpi) and PDF and its data as CSV, each file atomically.

    Output is byte-for-byte reproducible. A collapsed layout is an error: matplotlib would draw panels on one spot.
    """
    png, pdf, csv = (Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv"))
    with atomic_path(png) as temporary, warnings.catch_warnings():
        warnings.filterwarnings("error", "constrained_layout not applied", UserWarning)
        figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
    figure.set_layout_engine("none")  # keep the computed layout for the PDF
    with atomic_path(pdf) as temporary:
        figure.savefig(temporary, format="pdf", dpi=300, metadata={"CreationDate": None})
    write_text(csv, to_csv(data))


@cache
def caption_fonts() -> list[str]:
    """Font families for captions in any script: DejaVu Sans, then installed fonts for scripts that it lacks."""
    return ["DejaVu Sans", *(name for name in SCRIPT_FONTS if name in get_font_names())]


def inches(text: str, weight: str = "normal") -> float:
    """Width in inches of a line of text in the figures' font."""
    font = FontProperties(family="DejaVu Sans", size=FONT_SIZE, weight=weight)
    return text_to_path.get_text_width_height_descent(text, font, ismath=False)[0] / 72


def wrap(text: str, width: float, most: int = 99, weight: str = "normal") -> list[str]:
    """Wrap text to ``width`` inches and at most ``most`` lines, splitting words only if needed; "…" marks a cut."""
    for split, letters in product((False, True), range(max(6, int(width / 0.055)), 0, -1)):
        lines = textwrap.wrap(text, letters, max_lines=most, placeholder=" …", break_long_words=split) or [""]
        if max(inches(line, weight) for line in lines) <= 0.97 * width:
            break
    return lines
