"""What a study starts from: data sets, towers, teachers and the cached features of frozen towers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rvlr_lib.config import ModelSettings, TrainSettings
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.models.pretrained import pretrained_teacher
from rvlr_lib.models.teachers import Teacher
from rvlr_lib.models.towers import Towers, build_towers
from rvlr_lib.study.cache import cached
from rvlr_lib.training import stages
from rvlr_lib.training.checkpoint import load_tensors, save_tensors
from rvlr_lib.training.frozen import frozen_towers, with_features
from rvlr_lib.training.processes import Execution
from rvlr_lib.training.stages import Features

if TYPE_CHECKING:
    from rvlr_lib.study.study import Study


@lru_cache(maxsize=2)
def fresh_towers(model: ModelSettings, seed: int) -> Towers:
    """The towers that the settings ask for, built once; where they are not the tiny ones, says how pictures come in.

    Raises:
        ValueError: settings that do not fit each other, or whatever :func:`build_towers` refuses.
    """
    if model.freeze_towers and model.fusion_layers:
        raise ValueError("freeze_towers keeps no tokens for the fusion encoder: set model.fusion_layers to 0")
    if model.init == "teacher" and not model.freeze_towers and {model.image_teacher, model.text_teacher} != {"train"}:
        raise ValueError("a student cannot start on the towers of teachers that are not trained here: set model.init "
                         "to scratch, which starts on its own weights (pretrained ones where named)")  # fmt: skip
    towers = build_towers(model.name, model.pretrained, seed=seed, image_weights=model.image_weights,
                          text_weights=model.text_weights, text_layers=model.text_layers,
                          context_length=model.context_length)  # fmt: skip
    if model.name != "tiny":
        print(f"preprocessing: {towers.preprocessing()}")
    return towers


def random_towers(model: ModelSettings, seed: int) -> Towers:
    """Towers of the same architecture that never saw anything; only a text tower of Hugging Face keeps its weights."""
    return build_towers(model.name, None, seed=seed, text_weights=model.text_weights, text_layers=model.text_layers,
                        context_length=model.context_length)  # fmt: skip


def make_teacher(
    study: Study,
    modality: str,
    settings: TrainSettings,
    spec: str,
    seed: int,
    folder: Path,
    *,
    trained: bool,
    execution: Execution,
) -> None:
    """Fill the folder of a teacher: log, weights where it is trained here, and the features of every split."""
    (folder / "log.jsonl").touch()
    if spec != "train" and trained:
        encode = pretrained_teacher(spec, modality, study.device)
        for split in SPLITS:
            save_tensors(folder / f"{split}.safetensors", {"features": encode(study.pictures(split))})
        return
    model = study.settings.model
    towers = study.towers if trained else random_towers(model, seed)
    data = study.dataset if trained else study.pictures
    train = data("train")
    alone = sum(len(train.captions_of(i)) == 1 for i in range(len(train)))
    if modality == "text" and alone and settings.epochs:
        print(f"{alone} of {len(train)} pictures have one caption: its two dropout views teach the text tower")
    if settings.epochs:
        teacher, fitted = stages.train_teacher(modality, towers, train, data("val"), settings, seed=seed,
                                               device=study.device, log_path=folder / "log.jsonl",
                                               execution=execution)  # fmt: skip
        study.write_fit(folder, fitted)
    else:
        teacher = Teacher(towers, modality)
    save_tensors(folder / "weights.safetensors", teacher.state_dict())
    encoder = teacher.to(study.device).eval()
    for split in SPLITS:
        features = _encode(data(split), towers, study.device, encoder, modality)
        save_tensors(folder / f"{split}.safetensors", {"features": features})


def _encode(dataset: ImageTextDataset, towers: Towers, device: torch.device, encoder: Any, modality: str) -> Tensor:
    """Features of one modality of a data set."""
    skip: Callable[[Tensor], Tensor] = lambda inputs: torch.zeros(len(inputs), 1)  # noqa: E731
    image, text = (encoder, skip) if modality == "image" else (skip, encoder)
    pair = stages.encode(dataset, towers.tokenizer, towers.image_size, device, image, text)
    return pair[0] if modality == "image" else pair[1]


class Frozen:
    """Cached features of a study's frozen towers, and what stands on them.

    Args:
        study: whose settings say ``freeze_towers``.
        parts: what decides the features, for the cache.
    """

    def __init__(self, study: Study, parts: dict[str, Any]) -> None:
        model = study.settings.model
        seed = stages.derived_seed(study.settings.seed, "towers")

        def compute(folder: Path) -> None:
            towers = fresh_towers(model, seed)
            encoders = [Teacher(towers, modality).to(study.device).eval() for modality in ("image", "text")]
            for split in SPLITS:
                images, texts = stages.encode(study.pictures(split), towers.tokenizer, towers.image_size, study.device,
                                              encoders[0], encoders[1])  # fmt: skip
                save_tensors(folder / f"{split}.safetensors", {"images": images, "texts": texts})

        folder = cached(study.root, "frozen", parts, "rvlr_lib.training.stages", compute)
        stored = {split: load_tensors(folder / f"{split}.safetensors") for split in SPLITS}
        self.features: dict[str, Features] = {split: (t["images"], t["texts"]) for split, t in stored.items()}
        captions = {split: study.pictures(split).captions for split in SPLITS}
        self.towers = frozen_towers(fresh_towers(model, seed), self.features, captions)
        self.datasets = {split: with_features(study.pictures(split), self.features[split][0]) for split in SPLITS}


def stamp(spec: str) -> str:
    """SHA-256 of the file that a teacher's name ends in, empty where there is none; for the cache."""
    path = Path(spec.split(":", 1)[1])
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def same_width(features: Features) -> Features:
    """Both features at the wider one's width, zeros added, which changes no cosine within a modality."""
    width = max(part.shape[1] for part in features)
    images, texts = (torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in features)
    return images, texts
