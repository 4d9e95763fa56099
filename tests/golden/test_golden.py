"""Ours against the numbers of the official code."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rvlr_lib.losses import image_text_contrastive_loss, representation_distillation_loss, structure_distillation_loss
from rvlr_lib.metrics import evaluate_retrieval

FOLDER = Path(__file__).parent
OFFICIAL_NAMES = {"mae": "mae", "mse": "mse", "kl": "cumulative_l1", "wd": "wasserstein"}


@pytest.fixture(params=sorted(FOLDER.glob("losses_*.json")), ids=lambda path: path.stem)
def case(request):
    arrays = np.load(request.param.with_suffix(".npz"))
    x = {name: torch.from_numpy(arrays[name]) for name in arrays}
    x = {name: value.double() if value.is_floating_point() else value for name, value in x.items()}
    stored = json.loads(request.param.read_text())
    return x, stored["params"], stored["official"]


def near(value):
    return pytest.approx(value, rel=1e-6)


def test_contrastive_and_representation(case):
    x, params, official = case
    arguments = x["image_features"], x["text_features"], params["temperature"]
    assert float(image_text_contrastive_loss(*arguments)) == near(official["itc_unique"])
    assert float(image_text_contrastive_loss(*arguments, x["image_ids"])) == near(official["itc_ids"])
    for name, modality in (("iic_ids", "image"), ("ttc_ids", "text")):
        pair = x[f"{modality}_features"], x[f"{modality}_teacher_projected"]
        loss = representation_distillation_loss(*pair, params["temperature"], x["image_ids"])
        assert float(loss) == near(official[name])


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_structure(case, name):
    x, params, official = case
    options = {"fusion_weight": params["fusion_weight"], "temperature": params["relation_temperature"]}
    options |= {"distance": OFFICIAL_NAMES[name], "cost_features": x["text_features"]}
    terms = structure_distillation_loss(x["fusion"], x["teacher_image"], x["teacher_text"], **options)
    assert [float(term) for term in terms] == [near(official[name][key]) for key in ("kd", "kdi", "kdt")]


def our_key(official: str) -> str:
    """``i2t_@1`` -> ``i2t/R@1``, ``I2I_@10`` -> ``i2i/NDCG@10``, ``r_mean`` stays."""
    if official == "r_mean":
        return official
    name, cut = official.split("_")
    return f"{name}/R@{cut.lstrip('@')}" if name in ("i2t", "t2i") else f"{name.lower()}/NDCG{cut}"


@pytest.mark.parametrize("chunk_size", [None, 1, 3, 17, 23])
def test_official_protocol_gives_every_official_number(chunk_size):
    arrays = np.load(FOLDER / "metrics_0.npz")
    official = json.loads((FOLDER / "metrics_0.json").read_text())["official"]
    x = arrays["image_embeddings"], arrays["text_embeddings"]
    options = {"scores_i2t": arrays["scores_i2t"], "scores_t2i": arrays["scores_t2i"], "protocol": "official"}
    owner = np.repeat(np.arange(len(x[0])), 5)
    result = evaluate_retrieval(*x, owner, arrays["relevance"], chunk_size=chunk_size, **options)
    assert result == pytest.approx({our_key(key): value for key, value in official.items()}, abs=1e-4)
