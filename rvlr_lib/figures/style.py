"""One look for every figure: its style file, its widths, how it is saved, and the memory of how it was drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.tables import replacing

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.5, 7.16  # inches
FONT_SIZE = 8
OTHER_SCRIPTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Hiragino Sans", "PingFang SC",
                 "Microsoft YaHei", "Malgun Gothic", "Nirmala UI", "Noto Sans Devanagari", "Noto Sans Thai",
                 "Arial Unicode MS", "Droid Sans Fallback")  # fmt: skip
STYLE_FILE = Path(__file__).with_name("rvlr.mplstyle")


@cache
def caption_fonts() -> list[str]:
    """Families for words of people: the figures' own, behind it what is installed for the scripts that it lacks.

    Not for all text of a figure: few of these fonts come in bold.
    """
    from matplotlib.font_manager import get_font_names

    return ["DejaVu Sans", *(name for name in OTHER_SCRIPTS if name in set(get_font_names()))]


@dataclass(frozen=True)
class Recipe:
    """The call that drew a figure: the function's name with its module, and its arguments."""

    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Remembering:
    """A function of one argument that keeps what it returned."""

    function: Callable[[Any], Any]
    known: dict[Any, Any] = field(default_factory=dict)

    def __call__(self, key: Any) -> Any:
        """The value of a key, asked for once."""
        if key not in self.known:
            self.known[key] = self.function(key)
        return self.known[key]


class style:
    """The style of every figure, ``rvlr.mplstyle``: ``with style():`` or the decorator ``@style()``.

    A figure that a decorated function drew keeps its :class:`Recipe`, so that it can be drawn again from saved data
    (:mod:`rvlr_lib.figures.redraw`).
    """

    def __enter__(self) -> None:
        from matplotlib.style import context

        self._context = context(STYLE_FILE)
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)

    def __call__(self, draw: Callable[..., Any]) -> Callable[..., Any]:
        """Give the style and the memory of the call to a function that draws."""

        @wraps(draw)
        def drawn(*arguments: Any, **options: Any) -> Any:
            kept = {name: Remembering(value) if callable(value) else value for name, value in options.items()}
            with style():
                figure = draw(*arguments, **kept)
            figure.recipe = Recipe(f"{draw.__module__}.{draw.__name__}", arguments, kept)
            return figure

        return drawn


_NARROW: ContextVar[bool] = ContextVar("figures as wide as a column", default=False)


@contextmanager
def one_column() -> Iterator[None]:
    """Within this block every figure is as wide as a column of text, 3.5 inches: fewer panels stand side by side."""
    token = _NARROW.set(True)
    try:
        yield
    finally:
        _NARROW.reset(token)


def is_narrow() -> bool:
    """Whether figures are to be as wide as a column."""
    return _NARROW.get()


def page_width() -> float:
    """Inches of a figure that would fill the page, were it not for :func:`one_column`."""
    return COLUMN if is_narrow() else PAGE


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> Figure:
    """An empty figure, inches, that pyplot does not hold: a notebook shows it once, where it stands last in a cell."""
    import matplotlib.pyplot as plt

    figure = plt.figure(figsize=(width, height), layout=layout)  # pyplot also teaches the notebook to show figures
    plt.close(figure)
    return figure


def save_figure(figure: Figure, folder: Path | str, name: str, data: pd.DataFrame) -> dict[str, Path]:
    """Write a figure as PNG and PDF, and the table it was drawn from as CSV, each whole or not at all.

    The same figure gives the same bytes: no dates are written.

    Args:
        figure: to write, 200 dots an inch (300 for pictures and points inside the PDF).
        folder: made where missing.
        name: of the files, without suffix.
        data: written with six digits; its index only if it has a name.

    Returns:
        The paths, by ``png``, ``pdf`` and ``csv``.
    """
    paths = write_pictures(figure, folder, name) | {"csv": Path(folder) / f"{name}.csv"}
    named = any(level is not None for level in data.index.names)
    with replacing(paths["csv"]) as temporary:
        data.to_csv(temporary, index=named, float_format="%.6g", lineterminator="\n")
    return paths


def write_pictures(figure: Figure, folder: Path | str, name: str) -> dict[str, Path]:
    """Write a figure as PNG and PDF, as :func:`save_figure` does; the paths, by ``png`` and ``pdf``."""
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf")}
    with style():
        with replacing(paths["png"]) as temporary:
            figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})
        figure.set_layout_engine("none")  # both have one layout, computed once
        with replacing(paths["pdf"]) as temporary:
            figure.savefig(temporary, format="pdf", dpi=300, metadata={"CreationDate": None})
    return paths
