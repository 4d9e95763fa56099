import pandas as pd
import pytest

from rvlr_lib.data import ImbalanceSpec, load_dataset

ARMS = ("matching", "matching_longer", "rvlr", "shuffled")


@pytest.fixture(scope="session")
def scenes():
    return load_dataset("scenes", split="test", galleries=1, gallery_size=40, imbalance=ImbalanceSpec())


@pytest.fixture(scope="session")
def space(scenes):
    """Features of scenes that rank every own item first."""
    return scenes.scene.image.counts().astype(float), scenes.scene.text.counts().astype(float)


@pytest.fixture
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


@pytest.fixture(params=["page", "column"])
def width(request):
    """Both widths: the test runs in each."""
    from rvlr_lib.figures.style import one_column

    if request.param == "page":
        yield 7.16
    else:
        with one_column():
            yield 3.5


@pytest.fixture
def texts():
    """Function figure -> all its words."""
    from matplotlib.text import Text

    return lambda figure: "\n".join(artist.get_text() for artist in figure.findobj(Text))
