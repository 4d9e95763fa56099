"""Stages of a study: each function fills a folder from data, features and settings alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rvlr_lib.config import MethodSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import load_tensors, save_tensors, write_json
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import Student
from rvlr_lib.training.batches import Batches, derived_seed
from rvlr_lib.training.features import Features, FeatureSet, encode
from rvlr_lib.training.loop import Execution, cross_modal_recall, fit
from rvlr_lib.training.objectives import Objective, shuffle_teachers, warm_heads

# a data set and what a student encodes of it: the same for whole towers, cached features for heads
Split = tuple[ImageTextDataset, ImageTextDataset | FeatureSet]


def train_arm(
    folder: Path, *, arm: Mapping[str, Any], batches: Batches, selection: str, label: str, execution: Execution
) -> None:
    """Train one arm and store its weights, log, training record, and features of validation and test.

    ``selection`` names the split whose ``r_mean`` chooses the epoch; without a cross-modal loss it is the last one.
    ``arm``: arguments of :func:`build_objective`.
    """
    objective, splits = build_objective(**arm, device=batches.device), arm["splits"]
    student, weights = objective.student, objective.weights
    dataset, inputs = splits[selection]
    gallery = dataset.gallery_sets[0]
    owner = torch.as_tensor(gallery.caption_image, device=batches.device)

    def validate() -> dict[str, float]:
        images, texts = (rows.to(batches.device) for rows in encode(student, inputs, batches.device))
        # the first gallery's rows come first in the split
        recalls = cross_modal_recall(images[: len(gallery)], texts[: len(gallery.captions)], owner)
        cross_modal = weights.contrastive or weights.matching  # without, recall is at chance and chooses nothing
        return {"score": recalls["r_mean"] if cross_modal else batches.epoch, **recalls}

    fitted = fit(objective, batches, validate=validate, log_path=folder / "log.jsonl", label=label, execution=execution)
    objective.load_state_dict(fitted.state)
    save_tensors(folder / "weights.safetensors", student.state_dict())
    for name in ("val", "test"):
        image_features, text_features = encode(student, splits[name][1], batches.device)
        save_tensors(folder / f"{name}.safetensors", {"images": image_features, "texts": text_features})
    write_json(folder / "fit.json", {key: value for key, value in vars(fitted).items() if key != "state"})


def build_objective(
    *,
    student: Student,
    splits: Mapping[str, Split],
    weights: LossWeights,
    method: MethodSettings,
    teachers: Features | None,
    shuffled: bool,
    seed: int,
    device: torch.device,
) -> Objective:
    """Set up an arm's objective on the ``student`` that it starts from.

    ``teachers`` are unit rows of the training pictures and captions, if a term needs them; ``shuffled`` gives the
    structure term those of other pictures.
    """
    (dataset, inputs), other_teachers = splits["train"], None
    if shuffled and teachers is not None:  # None if tuning switched the term off
        other_teachers = shuffle_teachers(teachers, dataset.caption_image, derived_seed(seed, "shuffled"))
    objective = Objective(student, weights, method, teachers=teachers, structure_teachers=other_teachers, seed=seed)
    if objective.has_representation and method.head_init == "ridge":
        warm_heads(objective, encode(student, inputs, device))
    student.train()
    return objective


def stored_features(folder: Path, split: str) -> Features:
    """Read the features of a split that :func:`train_arm` stored."""
    tensors = load_tensors(folder / f"{split}.safetensors")
    return tensors["images"], tensors["texts"]
