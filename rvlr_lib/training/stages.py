"""Makers of the stages of a study: each fills a folder from data, features and settings alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import load_tensors, save_tensors, sha256, write_json
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import Student, teacher_features, tokenize
from rvlr_lib.training.batches import Batches, derived_seed
from rvlr_lib.training.features import Features, FeatureSet, encode, encode_captions, encode_images
from rvlr_lib.training.loop import Execution, cross_modal_recall, fit
from rvlr_lib.training.objectives import Objective, gradient_shares, shuffle_teachers, warm_heads


@dataclass(frozen=True)
class Split:
    """A split as a student is given it: with cached features, or as it is for whole towers."""

    dataset: ImageTextDataset
    features: FeatureSet | None = None

    def encode(self, student: Student, device: torch.device) -> Features:
        """Common-space features, on the CPU in float32."""
        return encode(student, self.dataset if self.features is None else self.features, device)

    @torch.inference_mode()
    def tokens(self, student: Student, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens ``[I, N, W]``, text tokens ``[C, L, W']`` and their mask, for re-ranking."""
        if self.features is not None:
            return self.features.image_tokens, self.features.text_tokens, self.features.text_mask
        student.to(device).eval()
        batches = torch.arange(len(self.dataset)).split(64)
        pixels = (self.dataset.pixels(rows, student.image_size).to(device).float() / 255 for rows in batches)
        images = [student.encode_image(part, tokens=True).tokens.half().cpu() for part in pixels]
        ids = tokenize(student.tokenizer, self.dataset.captions).split(256)
        texts = [student.encode_text(part.to(device), tokens=True) for part in ids]
        length = max(text.mask.shape[1] for text in texts)
        tokens = [pad(text.tokens.half().cpu(), (0, 0, 0, length - text.mask.shape[1])) for text in texts]
        masks = [pad(text.mask.cpu(), (0, length - text.mask.shape[1])) for text in texts]
        return torch.cat(images), torch.cat(tokens), torch.cat(masks)


def make_image_features(
    folder: Path, *, splits: Mapping[str, ImageTextDataset], views: int, optim: TrainSettings, **options: Any
) -> None:
    """Features of the pictures of all splits by frozen towers; augmented views of the training split alone."""
    options |= {"crop_scale": optim.crop_scale, "flip": optim.flip}
    for name, dataset in splits.items():
        encode_images(dataset=dataset, folder=folder, views=views if name == "train" else 1, **options)


def make_text_features(folder: Path, *, splits: Mapping[str, ImageTextDataset], **options: Any) -> None:
    """Features of the captions of all splits by frozen towers."""
    for dataset in splits.values():
        encode_captions(dataset=dataset, folder=folder, **options)


def make_teacher(folder: Path, *, splits: Mapping[str, ImageTextDataset], **options: Any) -> None:
    """Frozen features of one modality by the teacher of a name: ``<split>.safetensors`` each."""
    for name, dataset in splits.items():
        save_tensors(folder / f"{name}.safetensors", {"features": teacher_features(dataset=dataset, **options)})


def train_arm(
    folder: Path,
    *,
    batches: Batches,
    selection: str,
    optim: TrainSettings,
    label: str,
    execution: Execution,
    **arm: Any,
) -> None:
    """Train one arm: weights, log, how it went, and features of validation and test.

    ``selection`` names the split whose ``r_mean`` chooses the epoch; ``arm``: see :func:`start_objective`.
    """
    objective, student, splits, device = start_objective(**arm), arm["student"], arm["splits"], arm["device"]
    chosen = splits[selection].dataset.gallery_sets()[0]
    # the first gallery's rows come first in the split
    images, captions, owner = len(chosen), len(chosen.captions), torch.as_tensor(chosen.caption_image)

    def validate() -> dict[str, float]:
        found = splits[selection].encode(student, device)
        recalls = cross_modal_recall(found[0][:images], found[1][:captions], owner)
        return {"score": recalls["r_mean"], **recalls}

    how = {"seed": arm["seed"], "device": device, "label": label, "execution": execution}
    fitted = fit(objective, arm["weights"], batches, optim, validate=validate, log_path=folder / "log.jsonl", **how)
    objective.load_state_dict(fitted.state)
    save_tensors(folder / "weights.safetensors", student.state_dict())
    for name in ("val", "test"):
        image_features, text_features = splits[name].encode(student, device)
        save_tensors(folder / f"{name}.safetensors", {"images": image_features, "texts": text_features})
    write_json(folder / "fit.json", {key: value for key, value in vars(fitted).items() if key != "state"})


def first_gradients(*, batches: Batches, **arguments: Any) -> dict[str, float]:
    """Norm of each weighted term's gradient at the first batch; arguments as of :func:`train_arm`, without a folder."""
    objective = start_objective(**arguments).to(arguments["device"])
    return gradient_shares(objective, next(batches.take(two_views=objective.two_views, tokens=objective.tokens)))


def start_objective(
    *,
    student: Student,
    start: Path | None,
    splits: Mapping[str, Split],
    weights: LossWeights,
    method: MethodSettings,
    teachers: Features | None,
    shuffled: bool,
    seed: int,
    **_: Any,
) -> Objective:
    """The losses of an arm on a fresh ``student`` with the weights of the stage in ``start``, if any.

    ``teachers`` are unit rows of the training pictures and captions, where a term needs them; ``shuffled`` gives the
    structure term those of other pictures.
    """
    if start is not None:
        load_part(student, start / "weights.safetensors")
    moved = None
    if shuffled and teachers is not None:
        moved = shuffle_teachers(teachers, splits["train"].dataset.caption_image, derived_seed(seed, "shuffled"))
    given = {"teachers": teachers, "structure_teachers": moved, "embed_dim": student.embed_dim, "seed": seed}
    objective = Objective(student, weights, method, **given)
    if objective.represent and method.head_init == "ridge":
        warm_heads(objective, splits["train"].encode(student, torch.device("cpu")))
        student.train()
    return objective


def load_part(module: nn.Module, path: Path) -> None:
    """Load stored weights into a module; ValueError names a file of another architecture."""
    try:
        module.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds weights of another architecture: {error}") from error


def stored_features(folder: Path, split: str) -> Features:
    """Features that :func:`train_arm` stored."""
    tensors = load_tensors(folder / f"{split}.safetensors")
    return tensors["images"], tensors["texts"]


def stamp(path: Path) -> str:
    """SHA-256 of a file, empty where there is none; for cache keys."""
    return sha256(path) if path.is_file() else ""
