from itertools import combinations
from unittest.mock import patch

import pytest


@pytest.fixture(scope="session")
def draw_collection():
    """Function (folder, count) -> list of (file name, captions): drawn pictures as JPEG and PNG of several sizes."""
    return _draw_collection


def _draw_collection(folder, count, *, detail=1.0):
    from rvlr_lib.data import load_dataset

    scenes = load_dataset("scenes", split="train", size=count, text_detail=detail)
    found = []
    for row in range(count):
        name = f"{'ab'[row % 2]}/{row:04d}.{'png' if row % 3 == 0 else 'jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        scenes.image(row).resize((60 + row % 7, 50)).save(folder / name, quality=95)
        found.append((name, [scenes.captions[c] for c in scenes.captions_of(row)[: 1 + row % 5]]))
    return found


@pytest.fixture
def figure_faults():
    """What no figure may have: small letters, text that is cut off, text upon text."""
    return find_faults


def find_faults(figure, smallest=8):
    """One line per fault of a figure as it is drawn; slanted text cannot overlap, as its box is half empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    drawn = []
    original = Text.draw

    def draw(self, renderer):
        if self.get_visible() and self.get_text().strip():
            drawn.append(self)
        original(self, renderer)

    with patch.object(Text, "draw", draw):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
    width, height = canvas.get_width_height()
    found = [f"small: {text.get_text()!r} has {text.get_size()} points" for text in drawn if text.get_size() < smallest]
    boxes = [(text, text.get_window_extent()) for text in dict.fromkeys(drawn)]
    for text, box in boxes:
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1:
            found.append(f"cut off: {text.get_text()!r} at {box.extents.round()} of {width} x {height}")
    straight = [(text, box.padded(-1)) for text, box in boxes if text.get_rotation() % 90 == 0]
    for (one, first), (other, second) in combinations(straight, 2):
        if first.overlaps(second):
            found.append(f"overlap: {one.get_text()!r} and {other.get_text()!r}")
    return found
