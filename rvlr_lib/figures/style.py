"""The style of every figure: widths, colours, markers, text wrapped by its font, and how a figure is saved."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.disk import whole_file

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COLUMN, PAGE, MOST = 3.5, 7.16, 9.25  # inches: both widths of an IEEE page, and its height (666 pt)
WIDTHS = {"column": COLUMN, "page": PAGE}
FONT_SIZE, LINE = 8, 0.14  # points; inches from one line of text to the next
STYLE_FILE = Path(__file__).with_name("rvlr.mplstyle")
BLUE, SKY, GREEN, VERMILLION, ORANGE, PINK = "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#E69F00", "#CC79A7"
MODALITY = {"picture": "#6A3D9A", "caption": "#C9A227"}  # a palette of its own: no arm is purple or ochre
SCRIPTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Micro Hei", "Hiragino Sans", "PingFang SC", "Nirmala UI",
           "Microsoft YaHei", "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
           "Droid Sans Fallback")  # fmt: skip


@dataclass(frozen=True)
class Look:
    """Colour, marker and line of one series; any two of an arm's family differ in marker and line too."""

    color: Any
    marker: str
    line: Any = "-"


ARMS = {  # baselines grey, the method blue, controls vermillion and orange, peers green
    "start": Look("0.65", "o", ":"), "teachers": Look("0.65", "s", ":"), "frozen": Look("0.65", "D", ":"),
    "matching": Look("0.45", "o"), "matching_longer": Look("0.05", "s"), "rvlr": Look(BLUE, "D"),
    "rvlr_published": Look(BLUE, "d", "--"), "rvlr_published_cold": Look(BLUE, "p", ":"),
    "structure": Look(SKY, "^"), "teacher_lite2": Look(SKY, "h", ":"), "representation": Look(SKY, "v", "--"),
    "intra": Look(VERMILLION, "P"), "anchor": Look(VERMILLION, "X", "--"),
    "shuffled": Look(ORANGE, "<"), "mean_relation": Look(ORANGE, ">", "--"),
    "rkd": Look(GREEN, "*"), "soft_labels": Look(GREEN, "p", "--"), "cyclip": Look(GREEN, "h", ":"),
}  # fmt: skip
OTHERS = [Look(*look) for look in zip((BLUE, VERMILLION, "0.15", SKY, ORANGE, GREEN, PINK, "0.55"), "osD^vPX*",
                                      ("-", "--", "-.", ":", "-", "--", "-.", ":"), strict=True)]  # fmt: skip


def looks(names: Iterable[Any]) -> dict[Any, Look]:
    """A look for each name; arms have theirs in every figure."""
    names = list(dict.fromkeys(names))
    free = (OTHERS[i % len(OTHERS)] for i in range(len(names)))
    return {name: ARMS[name] if name in ARMS else next(free) for name in names}


@contextmanager
def style() -> Iterator[None]:
    """The style file within a block: ``with style(): ...``; ``matplotlib.style.use(STYLE_FILE)`` for a whole script."""
    from matplotlib.style import context

    with context(STYLE_FILE):
        yield


def new_figure(width: float, height: float, *, layout: str | None = "constrained") -> "Figure":
    """An empty figure, in inches, that pyplot does not hold: a notebook shows it once, as the value of its cell.

    Raises:
        ValueError: taller than a page, where the layout cannot shrink its panels.
    """
    import matplotlib.pyplot as plt

    if height > MOST and layout is None:
        raise ValueError(f"the figure would be {height * 72:.0f} pt tall, the page has {MOST * 72:.0f}: show fewer rows")
    figure = plt.figure(figsize=(width, min(height, MOST)), layout=layout)  # pyplot teaches the notebook to show it
    plt.close(figure)
    return figure


def save_figure(
    figure: "Figure", folder: Path | str, name: str, data: "pd.DataFrame", info: Mapping[str, str] | None = None
) -> dict[str, Path]:
    """Write a figure as PNG and PDF and its data as CSV, each whole or not at all; the same figure gives the same bytes.

    Args:
        figure: 200 dots an inch as PNG; pictures and points inside the PDF 300.
        folder: made where missing.
        name: of the files, without suffix.
        data: what was drawn, at full precision.
        info: ``title`` and ``caption``, kept inside both files (PNG: ``PIL.Image.open(path).text``).

    Returns:
        Paths by ``png``, ``pdf`` and ``csv``.
    """
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in ("png", "pdf", "csv")}
    told = dict(info or {})
    png = {"Title": told.get("title"), "Description": told.get("caption"), "Software": None}
    pdf = {"Title": told.get("title"), "Subject": told.get("caption"), "CreationDate": None}
    with style():
        with whole_file(paths["png"]) as temporary:
            known = {key: text for key, text in png.items() if text is not None or key == "Software"}
            figure.savefig(temporary, format="png", dpi=200, metadata=known)
        figure.set_layout_engine("none")  # both files have one layout, computed once
        with whole_file(paths["pdf"]) as temporary:
            figure.savefig(temporary, format="pdf", dpi=300, metadata=pdf)
    with whole_file(paths["csv"]) as temporary:
        data.to_csv(temporary, index=any(level is not None for level in data.index.names), lineterminator="\n")
    return paths


@cache
def caption_fonts() -> list[str]:
    """Families for captions in any script: the figures' own, then those installed for scripts that it lacks."""
    from matplotlib.font_manager import get_font_names

    return ["DejaVu Sans", *(name for name in SCRIPTS if name in set(get_font_names()))]


def wrap(text: str, width: float, most: int = 99) -> list[str]:
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
            last = last[:-1].rstrip()
        lines = [*lines[: most - 1], f"{last} …"]
    return lines
