from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import HeadStudent, build_towers, principal_directions
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training import FeatureBatches, Objective, fit
from rvlr_lib.training.loop import Execution

CPU = torch.device("cpu")
NOTHING = dict.fromkeys(LossWeights.__dataclass_fields__, 0.0) | {"contrastive": 1.0}
OWNER = torch.arange(32).repeat_interleave(torch.tensor([1, 2]).repeat(16))  # picture of each of 48 captions


@pytest.fixture(scope="session")
def towers():
    open_clip.add_model_config(Path(__file__).parent.parent / "models" / "tiny_48.json")
    return build_towers("tiny_48")


@pytest.fixture(scope="session")
def pairs():
    """32 pictures of noise with a caption or two."""
    pictures = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), dtype=np.uint8)
    captions = [f"picture {owner} {'again ' * (number % 3)}" for number, owner in enumerate(OWNER)]
    ids = [str(row) for row in range(32)]
    return ImageTextDataset("toy", "train", ids, captions, OWNER.numpy(), ArraySource(pictures))


@pytest.fixture(scope="session")
def cached():
    """Function (views) -> cached features of 32 pictures and 48 captions, which know of each other."""

    def make(views=3):
        draw = torch.Generator().manual_seed(0)
        images = torch.randn(32, 24, generator=draw)
        texts = images[OWNER, :20] + 0.5 * torch.randn(48, 20, generator=draw)
        seen = images + 0.1 * torch.randn(views, 32, 24, generator=draw)
        seen[0] = images
        mask = torch.arange(6) < torch.randint(2, 7, (48, 1), generator=draw)
        return SimpleNamespace(
            owner=OWNER,
            images=unit_rows(seen),
            texts=unit_rows(texts),
            image_tokens=torch.randn(32, 4, 24, generator=draw).half(),
            text_tokens=torch.randn(48, 6, 20, generator=draw).half(),
            text_mask=mask,
        )

    return make


@pytest.fixture(scope="session")
def inputs(cached):
    """A batch of 16 with tokens and second views."""
    batches = FeatureBatches(cached(), OWNER, TrainSettings(batch_size=16), "images", 0, CPU)
    return next(batches.take(two_views=True, tokens=True))


@pytest.fixture(scope="session")
def build(cached):
    """Function (weights by name, switches) -> objective of heads with a fusion encoder, and its loss weights."""

    def make(switches=None, *, fusion_layers=1, **weights):
        features, chosen = cached(), LossWeights(**(NOTHING | weights))
        directions = [principal_directions(rows, 8) for rows in (features.images[0], features.texts)]
        student = HeadStudent(*directions, token_widths=(24, 20), fusion_layers=fusion_layers)
        teachers, method = (features.images[0], features.texts), MethodSettings(**(switches or {}))
        return Objective(student, chosen, method, teachers=teachers, embed_dim=8, seed=0), chosen

    return make


@pytest.fixture(scope="session")
def train(cached, tmp_path_factory):
    """Function (objective, weights) -> what four steps an epoch of heads leave."""

    def run(objective, weights, *, log=None, execution=None, validate=lambda: {"score": 0.0}, **optim):
        optim = TrainSettings(**{"epochs": 2, "batch_size": 8, "log_every": 1} | optim)
        batches = FeatureBatches(cached(), OWNER, optim, "images", 0, CPU)
        log = log or tmp_path_factory.mktemp("log") / "log.jsonl"
        return fit(
            objective,
            weights,
            batches,
            optim,
            seed=0,
            device=CPU,
            validate=validate,
            log_path=log,
            label="toy",
            execution=execution or Execution(),
        )

    return run
