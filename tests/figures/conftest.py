import pandas as pd
import pytest
from matplotlib.text import Text

from rvlr_lib.data import ImbalanceSpec, load_dataset

ARMS = ("matching", "matching_longer", "rvlr", "shuffled")


@pytest.fixture(scope="session")
def scenes():
    return load_dataset("scenes", split="test", galleries=1, gallery_size=40, imbalance=ImbalanceSpec())


@pytest.fixture(scope="session")
def truth(scenes):
    return scenes.scene.truth("latent")


@pytest.fixture(scope="session")
def space(scenes):
    """Features of scenes that rank every own item first."""
    return scenes.scene.image.counts().astype(float), scenes.scene.text.counts().astype(float)


@pytest.fixture(scope="session")
def tidy():
    """A frame of results: arm i has value 10 i + seed + 100 at the second dial setting."""

    def make(seeds=5, arms=ARMS, metrics=("r_mean", "i2i/NDCG@10"), dials=("image", "text")):
        rows = [
            ("scenes", dial, arm, seed, metric, 10.0 * i + seed + 100 * d)
            for d, dial in enumerate(dials)
            for i, arm in enumerate(arms)
            for seed in range(seeds)
            for metric in metrics
        ]
        return pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])

    return make


@pytest.fixture
def drawn(figure_faults):
    """Function draw -> its figure on a page; both widths are without faults."""
    from rvlr_lib.figures.style import one_column

    def both(draw):
        with one_column():
            assert figure_faults(draw()) == []
        figure = draw()
        assert figure_faults(figure) == []
        return figure

    return both


@pytest.fixture
def texts():
    """Function figure -> all its words."""
    return lambda figure: " ".join(artist.get_text() for artist in figure.findobj(Text)).replace("\n", " ")
