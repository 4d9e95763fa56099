"""The stages of a study, each from data and settings to weights and features."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.config import Settings, TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.losses.weights import LossWeights
from rvlr_lib.metrics.ranking import recall_at_k
from rvlr_lib.models.student import Student
from rvlr_lib.models.teachers import Teacher
from rvlr_lib.models.towers import Towers, tokenize
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.gather import add_up, processes
from rvlr_lib.training.loop import BatchSource, Fitted, fit
from rvlr_lib.training.objectives import StudentObjective, TeacherObjective
from rvlr_lib.training.processes import Execution, carrier, max_over_processes

Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
ENCODE_BATCH = 256  # pictures of a batch, fewer where they are large
PIXELS_AT_ONCE = 16 * 384**2  # a Swin-B at 384 px takes 110 MB of activations for each picture


def derived_seed(seed: int, *names: str) -> int:
    """A seed for one purpose, so that no two purposes share a stream."""
    digest = hashlib.sha256(":".join([str(seed), *names]).encode()).digest()
    return int.from_bytes(digest[:4])


@torch.inference_mode()
def encode(
    dataset: ImageTextDataset,
    tokenizer: Any,
    image_size: int,
    device: torch.device,
    image: Callable[[Tensor], Tensor],
    text: Callable[[Tensor], Tensor],
) -> Features:
    """Features of all pictures and captions of a data set, on the CPU in float32.

    Captions are encoded in order of length, so that trimming saves most. Several processes share the work, and all of
    them get all features.
    """
    token_ids = tokenize(tokenizer, dataset.captions)
    order = torch.argsort((token_ids != 0).sum(dim=1), stable=True)

    def encode_pictures(rows: Tensor) -> Tensor:
        pixels = dataset.pixels(rows, image_size).to(device)
        return image(pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels)

    pictures = max(1, min(ENCODE_BATCH, PIXELS_AT_ONCE // max(1, image_size) ** 2))
    images = _in_shares(torch.arange(len(dataset)).split(pictures), encode_pictures)
    texts = _in_shares(order.split(2 * ENCODE_BATCH), lambda rows: text(token_ids[rows].to(device)))
    return images, texts


def _in_shares(batches: Sequence[Tensor], encode_rows: Callable[[Tensor], Tensor]) -> Tensor:
    """Features ``[N, D]`` of batches of rows; process r of W takes every W-th batch, from the r-th.

    The batches do not depend on W, so neither does a bit of the features.
    """
    rank, count = processes()
    found = [(rows, encode_rows(rows).float().to(carrier())) for rows in batches[rank::count]]
    width = max_over_processes(found[0][1].shape[1] if found else 0)
    features = torch.zeros(sum(map(len, batches)), width, device=carrier())
    for rows, part in found:
        features[rows.to(carrier())] = part
    return add_up(features).cpu()


def encode_with_student(student: Student, dataset: ImageTextDataset, towers: Towers, device: torch.device) -> Features:
    """Common-space features of a data set."""
    student.to(device).eval()
    return encode(
        dataset,
        towers.tokenizer,
        towers.image_size,
        device,
        lambda pixels: student.encode_image(pixels).features,
        lambda token_ids: student.encode_text(token_ids).features,
    )


def encode_with_teachers(
    teachers: tuple[Teacher, Teacher], dataset: ImageTextDataset, towers: Towers, device: torch.device
) -> Features:
    """Teacher features of a data set: pictures by the image teacher, captions by the text teacher."""
    image, text = (teacher.to(device).eval() for teacher in teachers)
    return encode(dataset, towers.tokenizer, towers.image_size, device, image, text)


def train_teacher(
    modality: str,
    towers: Towers,
    train: ImageTextDataset,
    validation: ImageTextDataset,
    settings: TrainSettings,
    *,
    seed: int,
    device: torch.device,
    log_path: Path,
    execution: Execution | None = None,
) -> tuple[Teacher, Fitted]:
    """Train one unimodal teacher; its score is how often a second view finds the first among the validation items."""
    teacher = Teacher(towers, modality)
    objective = TeacherObjective(teacher)
    source = BatchSource(train, towers.tokenizer, towers.image_size, settings, "images", seed)
    views = BatchSource(validation, towers.tokenizer, towers.image_size, settings, "images", seed + 1)

    @torch.inference_mode()
    def validate() -> dict[str, float]:
        first, second = [], []
        for inputs in views.epoch(0, device, two_views=True):
            pair = (
                (inputs.pixels, inputs.second_pixels)
                if modality == "image"
                else (inputs.token_ids, inputs.second_token_ids)
            )
            first.append(teacher(pair[0]))
            second.append(teacher(pair[1]))
        scores = torch.cat(first) @ torch.cat(second).T
        return {"score": recall_at_k(scores, torch.arange(len(scores)), ks=(1,))[1]}

    weights = LossWeights(image_intra=1.0, text_intra=1.0)
    fitted = fit(objective, weights, source, settings, seed=seed, device=device, validate=validate,
                 log_path=log_path, label=f"{modality} teacher", execution=execution)  # fmt: skip
    objective.load_state_dict(fitted.state)
    return teacher, fitted


def train_student(
    student: Student,
    towers: Towers,
    train: ImageTextDataset,
    selection: ImageTextDataset,
    settings: Settings,
    stage: TrainSettings,
    weights: LossWeights,
    teacher_features: Features | None,
    *,
    seed: int,
    device: torch.device,
    log_path: Path,
    label: str,
    execution: Execution | None = None,
) -> Fitted:
    """Train a student in place; ``selection`` chooses the epoch by ``r_mean`` of cosine retrieval."""
    objective = StudentObjective(student, weights, settings.method, teacher_features, towers.embed_dim, seed)
    source = BatchSource(train, towers.tokenizer, towers.image_size, stage, settings.data.rows, seed)

    def validate() -> dict[str, float]:
        images, texts = encode_with_student(student, selection, towers, device)
        recalls = cross_modal_recall(images, texts, torch.as_tensor(selection.caption_image))
        return {"score": recalls["r_mean"], **recalls}

    fitted = fit(objective, weights, source, stage, seed=seed, device=device, validate=validate,
                 log_path=log_path, label=label, execution=execution)  # fmt: skip
    objective.load_state_dict(fitted.state)
    return fitted


def cross_modal_recall(images: Tensor, texts: Tensor, caption_image: Tensor) -> dict[str, float]:
    """Recall of cosine retrieval in both directions and their mean, in percent."""
    positives = caption_image.unsqueeze(0) == torch.arange(len(images)).unsqueeze(1)
    scores = images @ texts.T
    i2t, t2i = recall_at_k(scores, positives), recall_at_k(scores.T, caption_image)
    values = {f"{name}/R@{k}": recall[k] for name, recall in (("i2t", i2t), ("t2i", t2i)) for k in recall}
    return values | {"r_mean": sum(values.values()) / len(values)}


def oracle_teacher(dataset: ImageTextDataset) -> Features:
    """Teachers whose relations are the truth of the whole scenes: unit factor counts, of pictures and captions alike.

    Raises:
        ValueError: the factors of the data set are not known.
    """
    if dataset.scene is None:
        raise ValueError(f"{dataset.name} has no known factors: the oracle teacher is for scenes")
    views = dataset.scene
    return unit_rows(torch.from_numpy(views.scene.counts())), unit_rows(torch.from_numpy(views.told_of.counts()))


def shuffle_teacher(features: Features, caption_image: Tensor, seed: int) -> Features:
    """Give every picture, and all its captions, the teacher rows of another picture: the ``shuffled`` control.

    The permutation has no fixed point. Where the other picture has fewer captions, they repeat.
    """
    images, texts = features
    count = len(images)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    other = torch.empty(count, dtype=torch.long)
    other[order] = order.roll(1)
    captions_of: list[list[int]] = [[] for _ in range(count)]
    rows = torch.empty(len(texts), dtype=torch.long)
    for caption, image in enumerate(caption_image.tolist()):
        captions_of[image].append(caption)
    for image, captions in enumerate(captions_of):
        donors = captions_of[int(other[image])]
        for position, caption in enumerate(captions):
            rows[caption] = donors[position % len(donors)]
    return images[other], texts[rows]
