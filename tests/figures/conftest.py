from itertools import combinations
from unittest.mock import patch

import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from rvlr_lib.figures.style import one_column

ARMS = ("matching", "matching_longer", "rvlr", "shuffled")


@pytest.fixture(scope="session")
def truth(scenes):
    return scenes.scene.truth("latent")


@pytest.fixture(scope="session")
def space(scenes):
    """Features of scenes that rank the true match of every query first."""
    return scenes.scene.image.counts().astype(float), scenes.scene.text.counts().astype(float)


def tidy(seeds=5, arms=ARMS, metrics=("r_mean", "i2i/NDCG@10"), dials=("image", "text")):
    """A frame of results: arm i has value 10 i + seed + 100 at the second dial setting."""
    index = pd.MultiIndex.from_product([["scenes"], dials, arms, range(seeds), metrics])
    frame = index.to_frame(index=False, name=["dataset", "dial", "arm", "seed", "metric"])
    value = 10.0 * frame["arm"].map(arms.index) + frame["seed"] + 100 * frame["dial"].map(dials.index)
    return frame.assign(value=value)


def find_faults(figure, smallest=8):
    """One line per fault of a drawn figure; slanted text is not checked for overlap, as its box is half empty."""
    drawn_texts = []
    original = Text.draw

    def draw(self, renderer):
        if self.get_visible() and self.get_text().strip():
            drawn_texts.append(self)
        original(self, renderer)

    with patch.object(Text, "draw", draw):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    width, height = canvas.get_width_height()
    faults = [f"small: {t.get_text()!r} has {t.get_size()} points" for t in drawn_texts if t.get_size() < smallest]
    boxes = [(text, text.get_window_extent()) for text in dict.fromkeys(drawn_texts)]
    for text, box in boxes:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            faults.append(f"cut off: {text.get_text()!r} at {box.extents.round()} of {width} x {height}")
    straight = [(text, box.padded(-1)) for text, box in boxes if text.get_rotation() % 90 == 0]
    for (one, first), (other, second) in combinations(straight, 2):
        if first.overlaps(second):
            faults.append(f"overlap: {one.get_text()!r} and {other.get_text()!r}")
    return faults


def drawn(draw, *arguments, **options):
    """Figure of a plotting function at page width; asserts that neither width has faults."""
    with one_column():
        assert find_faults(draw(*arguments, **options)) == []
    figure = draw(*arguments, **options)
    assert find_faults(figure) == []
    return figure


def texts(figure):
    """All text of a figure."""
    return " ".join(artist.get_text() for artist in figure.findobj(Text)).replace("\n", " ")


def labels(ticks):
    return [tick.get_text() for tick in ticks]


def legend(figure):
    return labels(figure.legends[0].get_texts())
