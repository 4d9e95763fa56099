import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import HeadStudent, TowerStudent
from rvlr_lib.similarity import principal_directions, unit_rows
from rvlr_lib.training.batches import FeatureBatches, PixelBatches
from rvlr_lib.training.features import FeatureSet
from rvlr_lib.training.loop import fit
from rvlr_lib.training.objectives import Objective

CPU = torch.device("cpu")
assert_equal = partial(torch.testing.assert_close, rtol=0, atol=0)
NOTHING = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0) | {"contrastive": 1.0}
OFFICIAL = {name: value for name, value in vars(LossWeights()).items() if value}
OWNER = torch.arange(32).repeat_interleave(torch.tensor([1, 2]).repeat(16))  # picture of each of 48 captions


def make_pairs():
    """32 noise pictures with one or two captions of different lengths each."""
    pictures = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), dtype=np.uint8)
    captions = [f"picture {owner} {'again ' * (number % 3)}" for number, owner in enumerate(OWNER)]
    return ImageTextDataset("toy", "train", [*map(str, range(32))], captions, OWNER.numpy(), ArraySource(pictures))


def make_cached(views=3):
    """Correlated features of 32 pictures and 48 captions of 2 to 6 tokens."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 24, generator=generator)
    texts = images[OWNER, :20] + 0.5 * torch.randn(48, 20, generator=generator)
    image_views = images + 0.1 * torch.randn(views, 32, 24, generator=generator)
    image_views[0] = images
    mask = torch.arange(6) < torch.randint(2, 7, (48, 1), generator=generator)
    tokens = torch.randn(32, 4, 24, generator=generator).half(), torch.randn(48, 6, 20, generator=generator).half()
    return FeatureSet(unit_rows(image_views), unit_rows(texts), *tokens, mask)


def make_batches(towers=None, rows="images", views=3, device=CPU, **optim):
    """Batches of pictures if towers are given, else of cached features; of size 8 by default."""
    optim = TrainSettings(**{"epochs": 2, "batch_size": 8, "log_every": 1} | optim)
    if towers is not None:
        return PixelBatches(make_pairs(), towers, optim, rows, 0, CPU)
    return FeatureBatches(make_cached(views), OWNER, optim, rows, 0, device)


def make_objective(switches=None, *, towers=None, fusion_layers=1, **weights):
    """An objective on whole towers if they are given, else on heads for cached features."""
    features = make_cached()
    teachers = features.images[0], features.texts
    if towers is not None:
        student = TowerStudent(towers, fusion_layers=fusion_layers)
    else:
        directions = [principal_directions(rows, 8) for rows in teachers]
        student = HeadStudent(*directions, token_widths=(24, 20), fusion_layers=fusion_layers)
    method = MethodSettings(**(switches or {}))
    return Objective(student, LossWeights(**(NOTHING | weights)), method, teachers=teachers, seed=0)


@pytest.fixture(scope="session")
def inputs():
    """A batch of 16 with tokens and second views."""
    return next(make_batches(batch_size=16).take(two_views=True, tokens=True))


def train(objective, *, log=os.devnull, execution=None, validate=lambda: {"score": 0.0}, towers=None, **options):
    """Train on batches with the options of :func:`make_batches`, by default for four steps an epoch."""
    arguments = {"validate": validate, "log_path": Path(log), "label": "toy", "execution": execution}
    return fit(objective, make_batches(towers, **options), **arguments)
