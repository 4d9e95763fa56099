"""Makers of the stages of a study: each fills a folder from data, features and settings alone."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rvlr_lib.config import MethodSettings, TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import load_tensors, save_tensors, sha256, write_json
from rvlr_lib.losses.weights import LossWeights
from rvlr_lib.models import Student, Towers, teacher_features, tokenize
from rvlr_lib.training.batches import derived_seed
from rvlr_lib.training.features import FeatureSet, encode, encode_captions, encode_images
from rvlr_lib.training.loop import Execution, cross_modal_recall, fit
from rvlr_lib.training.objectives import Objective, gradient_shares, shuffle_teachers, warm_heads

Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]


@dataclass(frozen=True)
class Split:
    """A split as a student is given it: with cached features, or as it is for whole towers."""

    dataset: ImageTextDataset
    features: FeatureSet | None = None

    def encode(self, student: Student, device: torch.device) -> Features:
        """Common-space features, on the CPU in float32."""
        return encode(student, self.dataset if self.features is None else self.features, device)

    def tokens(self, student: Student, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Image tokens ``[I, N, W]``, text tokens ``[C, L, W']`` and their mask, for re-ranking."""
        if self.features is not None:
            found = self.features.image_tokens, self.features.text_tokens, self.features.text_mask
            assert all(part is not None for part in found)
            return found
        return encode_tokens(student, self.dataset, device)


def make_image_features(
    folder: Path,
    *,
    towers: Towers,
    splits: Mapping[str, ImageTextDataset],
    views: int,
    optim: TrainSettings,
    tokens: bool,
    precision: str,
    seed: int,
    device: torch.device,
) -> None:
    """Features of the pictures of all splits by frozen towers; augmented views of the training split alone."""
    for name, dataset in splits.items():
        encode_images(
            towers,
            dataset,
            folder,
            views=views if name == "train" else 1,
            tokens=tokens,
            precision=precision,
            seed=seed,
            crop_scale=optim.crop_scale,
            flip=optim.flip,
            device=device,
        )


def make_text_features(
    folder: Path,
    *,
    towers: Towers,
    splits: Mapping[str, ImageTextDataset],
    tokens: bool,
    precision: str,
    device: torch.device,
) -> None:
    """Features of the captions of all splits by frozen towers."""
    for dataset in splits.values():
        encode_captions(towers, dataset, folder, tokens=tokens, precision=precision, device=device)


def make_teacher(
    folder: Path, *, spec: str, modality: str, splits: Mapping[str, ImageTextDataset], device: torch.device
) -> None:
    """Frozen features of one modality by the teacher of a name: ``<split>.safetensors`` each."""
    for name, dataset in splits.items():
        save_tensors(folder / f"{name}.safetensors", {"features": teacher_features(spec, modality, dataset, device)})


def train_arm(
    folder: Path,
    *,
    student: Student,
    start: Path | None,
    batches: Any,
    splits: Mapping[str, Split],
    selection: str,
    weights: LossWeights,
    method: MethodSettings,
    optim: TrainSettings,
    teachers: Features | None,
    shuffled: bool,
    seed: int,
    device: torch.device,
    label: str,
    execution: Execution,
) -> None:
    """Train one arm: weights, log, how it went, and features of validation and test.

    Args:
        folder: to fill.
        student: fresh; trained in place.
        start: folder of the stage that it goes on from.
        batches: of the training split.
        splits: ``train``, ``val`` and ``test``.
        selection: split whose ``r_mean`` chooses the epoch.
        weights, method, optim: of the losses, their switches, the optimisation.
        teachers: unit rows of the training pictures and captions, where a term needs them.
        shuffled: the structure term hears the teachers of other pictures.
        seed: of the objective.
        device: to compute on.
        label: for the progress bar and errors.
        execution: how to train.
    """
    objective = _objective(student, start, splits, weights, method, teachers, shuffled, seed, device)
    chosen = splits[selection].dataset.gallery_sets()[0]
    # the first gallery's rows come first in the split
    images, captions = len(chosen), len(chosen.captions)

    def validate() -> dict[str, float]:
        found = splits[selection].encode(student, device)
        recalls = cross_modal_recall(found[0][:images], found[1][:captions], torch.as_tensor(chosen.caption_image))
        return {"score": recalls["r_mean"], **recalls}

    fitted = fit(
        objective,
        weights,
        batches,
        optim,
        seed=seed,
        device=device,
        validate=validate,
        log_path=folder / "log.jsonl",
        label=label,
        execution=execution,
    )
    objective.load_state_dict(fitted.state)
    save_tensors(folder / "weights.safetensors", student.state_dict())
    student.eval()
    for name in ("val", "test"):
        images_found, texts = splits[name].encode(student, device)
        save_tensors(folder / f"{name}.safetensors", {"images": images_found, "texts": texts})
    summary = asdict(fitted)
    summary.pop("state")
    write_json(folder / "fit.json", summary)


def first_gradients(**arguments: Any) -> dict[str, float]:
    """Norm of each weighted term's gradient at the first batch; arguments as of :func:`train_arm`, without a folder."""
    names = ("student", "start", "splits", "weights", "method", "teachers", "shuffled", "seed", "device")
    objective = _objective(**{name: arguments[name] for name in names}).to(arguments["device"])
    inputs = next(iter(arguments["batches"].take(two_views=objective.two_views, tokens=objective.tokens)))
    return gradient_shares(objective, inputs)


def _objective(
    student: Student,
    start: Path | None,
    splits: Mapping[str, Split],
    weights: LossWeights,
    method: MethodSettings,
    teachers: Features | None,
    shuffled: bool,
    seed: int,
    device: torch.device,
) -> Objective:
    """The losses of an arm on a student that stands at the start of its stage, teacher heads warm where wanted."""
    if start is not None:
        load_part(student, start / "weights.safetensors")
    structure_teachers = None
    if shuffled and teachers is not None:
        owner = torch.as_tensor(splits["train"].dataset.caption_image)
        structure_teachers = shuffle_teachers(teachers, owner, derived_seed(seed, "shuffled"))
    objective = Objective(
        student,
        weights,
        method,
        teachers=teachers,
        structure_teachers=structure_teachers,
        embed_dim=student.embed_dim,
        seed=seed,
    )
    if objective.represent and method.head_init == "ridge":
        warm_heads(objective, splits["train"].encode(student, torch.device("cpu")))
        student.train()
    return objective


def load_part(module: nn.Module, path: Path) -> None:
    """Load stored weights into a module.

    Raises:
        ValueError: keys or shapes of another architecture; names the file.
    """
    try:
        module.load_state_dict(load_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds weights of another architecture: {error}") from error


@torch.inference_mode()
def encode_tokens(student: Student, dataset: ImageTextDataset, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of a whole-tower student: pictures ``[I, N, W]``, captions ``[C, L, W']``, and their mask."""
    student.to(device).eval()
    ids = tokenize(student.tokenizer, dataset.captions)
    images = [
        student.encode_image(dataset.pixels(rows, student.image_size).to(device).float() / 255, tokens=True).tokens
        for rows in torch.arange(len(dataset)).split(64)
    ]
    texts = [student.encode_text(part.to(device), tokens=True) for part in ids.split(256)]
    length = max(text.mask.shape[1] for text in texts)
    pad = torch.nn.functional.pad
    tokens = [pad(text.tokens.half().cpu(), (0, 0, 0, length - text.mask.shape[1])) for text in texts]
    masks = [pad(text.mask.cpu(), (0, length - text.mask.shape[1])) for text in texts]
    return torch.cat([part.half().cpu() for part in images]), torch.cat(tokens), torch.cat(masks)


def stored_features(folder: Path, split: str) -> Features:
    """Features that :func:`train_arm` stored."""
    tensors = load_tensors(folder / f"{split}.safetensors")
    return tensors["images"], tensors["texts"]


def stamp(path: Path) -> str:
    """SHA-256 of a file, empty where there is none; for cache keys."""
    return sha256(path) if path.is_file() else ""
