"""Draw a diagram of the method: towers, heads, fusion encoder, teachers and the seven loss terms.

python docs/method_diagram.py data/reference/method.png
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from rvlr_lib.figures.style import style

PICTURE, CAPTION, BOTH, LOSS, TEACHER = "#cfe3f3", "#fbe3c5", "#e6e6e6", "#ffffff", "#dcead9"
BOXES = {  # name -> x, y, width, height, colour, text
    "picture": (0.2, 4.6, 1.2, 0.7, PICTURE, "picture"),
    "caption": (0.2, 1.0, 1.2, 0.7, CAPTION, "caption"),
    "image tower": (1.9, 4.6, 2.3, 0.7, PICTURE, "image tower\n(frozen or trained)"),
    "text tower": (1.9, 1.0, 2.3, 0.7, CAPTION, "text tower\n(frozen or trained)"),
    "image head": (4.9, 4.6, 1.3, 0.7, PICTURE, "head → z"),
    "text head": (4.9, 1.0, 1.3, 0.7, CAPTION, "head → w"),
    "fusion": (4.5, 2.35, 2.0, 0.7, BOTH, "fusion encoder\n(tokens of both)"),
    "image teacher": (1.9, 6.1, 2.3, 0.7, TEACHER, "image teacher\n(frozen)"),
    "text teacher": (1.9, -0.5, 2.3, 0.7, TEACHER, "text teacher\n(frozen)"),
    "mixture": (11.1, 2.7, 2.4, 0.8, TEACHER, "target relations\nE = λT + (1 − λ)I"),
    "image representation": (7.2, 6.1, 3.1, 0.7, LOSS, "1  image representation"),
    "contrastive": (7.2, 3.55, 3.1, 0.7, LOSS, "2  contrastive, z ↔ w"),
    "matching": (7.2, 2.35, 3.1, 0.7, LOSS, "3  matching, hard negatives"),
    "structure": (11.1, 4.6, 2.4, 0.7, LOSS, "4  structure, D(F, E)"),
    "teacher terms": (11.1, 1.0, 2.4, 0.7, LOSS, "5, 6  D(I, E), D(T, E)"),
    "text representation": (7.2, -0.5, 3.1, 0.7, LOSS, "7  text representation"),
}
ARROWS = [
    ("picture", "image tower"),
    ("caption", "text tower"),
    ("image tower", "image head"),
    ("text tower", "text head"),
    ("image tower", "fusion"),
    ("text tower", "fusion"),
    ("image head", "contrastive"),
    ("text head", "contrastive"),
    ("fusion", "matching"),
    ("image head", "image representation"),
    ("image teacher", "image representation"),
    ("text head", "text representation"),
    ("text teacher", "text representation"),
    ("image head", "structure"),
    ("text head", "structure"),
    ("image teacher", "mixture"),
    ("text teacher", "mixture"),
    ("mixture", "structure"),
    ("mixture", "teacher terms"),
]


def draw(path: Path) -> None:
    """Write the diagram."""
    with style():
        figure, axes = plt.subplots(figsize=(9.6, 4.4))
        axes.set(xlim=(0, 13.8), ylim=(-0.9, 7.1))
        axes.axis("off")
        for x, y, width, height, colour, text in BOXES.values():
            look = {"boxstyle": "round,pad=0.05", "facecolor": colour, "edgecolor": "#444444"}
            axes.add_patch(FancyBboxPatch((x, y), width, height, **look))
            axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8)
        for start, end in ARROWS:
            (x0, y0, width0, height0, *_), (x1, y1, width1, height1, *_) = BOXES[start], BOXES[end]
            if x1 > x0 + width0:  # to the right
                tail, head = (x0 + width0 + 0.05, y0 + height0 / 2), (x1 - 0.08, y1 + height1 / 2)
            elif y1 > y0:
                tail, head = (x0 + width0 / 2, y0 + height0), (x1 + width1 / 2, y1 - 0.06)
            else:
                tail, head = (x0 + width0 / 2, y0), (x1 + width1 / 2, y1 + height1 + 0.06)
            arrow = FancyArrowPatch(tail, head, arrowstyle="-|>", mutation_scale=8, color="#444444", lw=0.8, zorder=0)
            axes.add_patch(arrow)
        axes.text(12.3, 6.35, "relations: cosines of\nall pairs of a batch / τ₂", ha="center", va="center", fontsize=8)
        figure.savefig(path, dpi=200, bbox_inches="tight")


if __name__ == "__main__":
    draw(Path(sys.argv[1] if len(sys.argv) > 1 else "data/reference/method.png"))
