"""Pinned contents of the data sets and results of a short training, which refactoring must not change.

``python -m tests.test_pins --write`` rewrites tests/golden/pins.json; do so only if a change is intended.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from rvlr_lib.data import ImbalanceSpec, bayes_ceiling, load_dataset, mentioned_share, shown_share
from rvlr_lib.metrics import evaluate_retrieval
from rvlr_lib.training.features import encode
from tests.tiny import tiny_towers
from tests.training import conftest
from tests.training.conftest import OFFICIAL, make_objective

PINS = Path(__file__).parent / "golden" / "pins.json"
SETS = {"scenes_seed0": ("scenes", 0), "scenes_seed3": ("scenes", 3), "emoji": ("emoji", None)}
DIALS = {"full": ImbalanceSpec(), "half": ImbalanceSpec(text_detail=0.5, image_visibility=0.5)}
CASES = [f"{name}/{split}/{dial}" for name in SETS for split in ("train", "val", "test") for dial in DIALS]


def load(case):
    kind, split, dial = case.split("/")
    name, seed = SETS[kind]
    size = {"galleries": 2, "gallery_size": 32} if split == "test" else {"size": 64}
    return load_dataset(name, split=split, imbalance=DIALS[dial], **({"seed": seed} | size if name == "scenes" else {}))


def sha(*parts):
    """SHA-256 of arrays and lists of strings, including their shapes."""
    digest = hashlib.sha256()
    for part in parts:
        array = np.asarray(part)
        data = json.dumps(part).encode() if array.dtype.kind == "U" else array.tobytes()
        digest.update(f"{array.shape}".encode() + data)
    return digest.hexdigest()


def weighted_sum(matrix):
    """A number that changes when entries change or swap, but hardly with rounding."""
    values = matrix.astype(np.float64).ravel()
    return float(values @ (1 + np.arange(values.size) * 0.6180339887 % 1))


def describe(case):
    dataset = load(case)
    pins = {
        "images": len(dataset),
        "image_ids": sha(dataset.image_ids),
        "captions": sha(dataset.captions),
        "caption_image": sha(dataset.caption_image.astype("<i8")),
        "pictures": sha(*(np.asarray(dataset.image(row)) for row in range(32))),
        "pixels": sha(dataset.pixels(range(32), 48).numpy()),
        "categories": sha(dataset.categories) if dataset.categories else None,
        "galleries": None if dataset.galleries is None else sha(dataset.galleries.astype("<i8")),
    }
    if views := dataset.scene:
        for side in ("scene", "image", "text"):
            pins[f"counts/{side}"] = sha(getattr(views, side).counts().astype("<f4"))
        for kind in ("latent", "shown"):  # cosines differ in the last bit between machines, so they are not hashed
            pins |= {f"truth/{kind}/{name}": weighted_sum(matrix) for name, matrix in vars(views.truth(kind)).items()}
        pins |= {f"ceiling/{k}": value for k, value in bayes_ceiling(dataset.gallery_sets[0]).items()}
        pins |= {"told_share": mentioned_share(dataset), "shown_share": shown_share(dataset)}
    return pins


def train():
    """Log of some of twenty steps with every loss term at once, and the retrieval metrics of the student."""
    objective = make_objective(towers=tiny_towers(), **OFFICIAL, image_intra=1.0, text_intra=2.0, alignment=0.5)
    with tempfile.TemporaryDirectory() as folder:
        options = {"epochs": 10, "batch_size": 16, "precision": "float32"}
        conftest.train(objective, log=f"{folder}/log", towers=tiny_towers(), **options)
        steps = [line for line in map(json.loads, Path(folder, "log").read_text().splitlines()) if "total" in line]
    logged = {f"step {step}/{name}": value for step in (0, 10, 19) for name, value in steps[step].items()
              if name in ("total", "gradient_norm") or name.startswith("loss/")}  # fmt: skip
    dataset = load("scenes_seed0/train/full")
    features, truth = encode(objective.student, dataset), dataset.scene.truth("latent")
    scores = evaluate_retrieval(*features, dataset.caption_image, truth.caption_to_image,
                                image_relevance=truth.image_to_image, text_relevance=truth.text_to_text)  # fmt: skip
    return logged, scores


@pytest.mark.parametrize("case", CASES)
def test_splits_are_unchanged(case):
    assert describe(case) == pytest.approx(json.loads(PINS.read_text())["splits"][case])


def test_a_short_training_is_unchanged():
    (logged, scores), pins = train(), json.loads(PINS.read_text())
    assert logged == pytest.approx(pins["training"], rel=1e-5)
    assert scores == pytest.approx(pins["metrics"], rel=1e-5)


if __name__ == "__main__" and sys.argv[1:] == ["--write"]:
    logged, scores = train()
    pins = {"splits": {case: describe(case) for case in CASES}, "training": logged, "metrics": scores}
    PINS.write_text(json.dumps(pins, indent=1) + "\n")
