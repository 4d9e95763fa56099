import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from rvlr_lib.figures import style


def lines(height=2):
    with style.style():
        figure = style.new_figure(3.5, height)
        figure.subplots().plot([0, 1], [0, 1])
    return figure


def test_saved_figures_have_exact_width_and_data_and_are_reproducible(tmp_path, refuses):
    def files(folder):
        return {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}

    data = pd.DataFrame({"value": [1 / 3]}, index=pd.Index(["rvlr"], name="arm"))
    style.save_figure(lines(), tmp_path / "a", "x", data)
    style.save_figure(lines(), tmp_path / "b", "x", data)
    saved = files("a")
    assert saved.keys() == {"x.png", "x.pdf", "x.csv"}
    assert saved == files("b")
    assert Image.open(tmp_path / "a" / "x.png").size == (700, 400)
    assert saved["x.csv"] == b"arm,value\nrvlr,0.3333333333333333\n"
    assert b"Type3" not in saved["x.pdf"].replace(b" ", b"")
    broken = lines()
    broken.axes[0].set_title("$\\nothing$", parse_math=True)
    refuses("nothing", style.save_figure, broken, tmp_path / "a", "x", data)
    with pytest.raises(UserWarning, match="collapsed to zero"):
        style.save_figure(lines(0.1), tmp_path / "a", "x", data)
    assert files("a") == saved


def test_width_height_cap_and_style_do_not_leak():
    with style.one_column():
        assert (style.page_width(), style.is_narrow()) == (3.5, True)
    assert (style.page_width(), style.is_narrow()) == (7.16, False)
    assert style.new_figure(7.16, 20).get_figheight() == 9.25
    lines()
    assert (plt.get_fignums(), plt.rcParams["axes.grid"]) == ([], False)


def least_distance(colors):
    """Smallest CIELAB distance under deuteranopia, simulated in linear RGB (Machado et al. 2009, severity 1.0)."""
    rgb = np.array([to_rgb(color) for color in colors])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]])
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    f = np.cbrt((linear @ seen.T).clip(0, 1) @ to_xyz.T / [0.9505, 1.0, 1.089])
    points = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    return distances[~np.eye(len(points), dtype=bool)].min()


def test_palettes_are_colour_blind_safe_and_arms_of_one_colour_differ_in_marker():
    assert least_distance(["#00aa00", "#c08000"]) < 25  # green and orange look alike
    assert least_distance(style.MODALITY.values()) > 60
    families = {look.color for name, look in style.ARM_LOOKS.items() if name != "ideal"}
    assert not families & set(style.MODALITY.values())
    assert least_distance(families) > 15
    for color in families:
        markers = [look.marker for look in style.ARM_LOOKS.values() if look.color == color and look.marker]
        assert len(markers) == len(set(markers))
    assert {"matching", "matching_longer", "rvlr", "intra", "shuffled", "mean_relation"} <= style.ARM_LOOKS.keys()
    looks = style.looks(["x", "rvlr", "y", "x"])
    assert (looks["rvlr"], len(set(looks.values())), len(looks)) == (style.ARM_LOOKS["rvlr"], 3, 3)


def test_wrapping():
    assert style.wrap("one two three", 0.55) == ["one two", "three"]
    assert style.wrap("a long caption of a picture", 0.8, 2)[-1].endswith(" …")
    assert "".join(style.wrap("x" * 40, 0.8)) == "x" * 40
    assert style.wrap("95\u00a0% intervals", 0.5) == ["95\u00a0%", "intervals"]
    assert style.wrap("woman running medium dark", 0.6) == ["woman", "running", "medium", "dark"]
    assert style.inches("wide", "bold") > style.inches("wide") > style.inches("w")
