import json
from pathlib import Path

import numpy as np
import pytest
import torch

from rvlr_lib.losses import image_text_contrastive_loss, representation_distillation_loss, structure_distillation_loss

OFFICIAL_NAMES = {"mae": "mae", "mse": "mse", "kl": "cumulative_l1", "wd": "wasserstein"}


@pytest.fixture(params=sorted(Path(__file__).parent.glob("losses_*.json")), ids=lambda path: path.stem)
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
    features = x["image_features"], x["text_features"], params["temperature"]
    assert float(image_text_contrastive_loss(*features)) == near(official["itc_unique"])
    assert float(image_text_contrastive_loss(*features, x["image_ids"])) == near(official["itc_ids"])
    for name, side in (("iic_ids", "image"), ("ttc_ids", "text")):
        pair = x[f"{side}_features"], x[f"{side}_teacher_projected"]
        loss = representation_distillation_loss(*pair, params["temperature"], x["image_ids"])
        assert float(loss) == near(official[name])


@pytest.mark.parametrize("name", OFFICIAL_NAMES)
def test_structure(case, name):
    x, params, official = case
    options = {"fusion_weight": params["fusion_weight"], "temperature": params["relation_temperature"]}
    options |= {"distance": OFFICIAL_NAMES[name], "cost_features": x["text_features"]}
    terms = structure_distillation_loss(x["fusion"], x["teacher_image"], x["teacher_text"], **options)
    assert [float(term) for term in terms] == [near(official[name][key]) for key in ("kd", "kdi", "kdt")]
