"""Queries of one's own: words or a picture as features of the spaces of a study."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from rvlr_lib.study.study import Study

TOWERS = ("teachers", "start", "frozen")  # spaces of the teachers themselves
Encoder = Callable[[Any], "np.ndarray"]


def query_encoders(study: Study, names: Mapping[str, str]) -> dict[str, Encoder]:
    """The encoders of several spaces, of those that can take a query of one's own.

    Towers that are frozen read stored features and take none; teachers that were not trained here have no weights.

    Args:
        study: from :func:`rvlr_lib.study.study.open_study`.
        names: label -> variant, ``teachers`` or ``frozen``.

    Returns:
        label -> :func:`query_encoder`, perhaps empty.
    """
    model = study.settings.model
    if model.freeze_towers:
        return {}
    trained_here = {model.image_teacher, model.text_teacher} == {"train"}
    return {label: query_encoder(study, name) for label, name in names.items() if trained_here or name not in TOWERS}


def query_encoder(study: Study, name: str) -> Encoder:
    """A function from words or a picture to a feature in one space of a study.

    The model is loaded when the function is first called, and kept.

    Args:
        study: from :func:`rvlr_lib.study.study.open_study`.
        name: a trained variant, ``teachers`` (also ``start``, whose towers are the teachers') or ``frozen``.

    Returns:
        Takes words (text, cleaned as captions are) or a picture (PIL, resized as the data set's are) and returns a unit
        feature ``[D]``, float32. It raises ``ValueError`` for anything else, and for words without a letter or digit.
    """
    import torch

    from rvlr_lib.data import clean_caption
    from rvlr_lib.models.towers import tokenize

    loaded: dict[str, Callable[[Tensor], Tensor]] = {}

    @torch.inference_mode()
    def encode(item: Any) -> np.ndarray:
        if not loaded:
            loaded["image"], loaded["text"] = _towers(study, name)
        if isinstance(item, str):
            words = clean_caption(item)
            if not words:
                raise ValueError(f"{item!r} holds no word: type letters or digits")
            feature = loaded["text"](tokenize(study.towers.tokenizer, [words]).to(study.device))
        elif hasattr(item, "convert"):
            pixels = _pixels(item, study.towers.image_size).to(study.device)
            feature = loaded["image"](pixels.float() / 255)
        else:
            raise ValueError(f"a query is words or a picture (PIL), not {type(item).__name__}")
        return feature[0].float().cpu().numpy()

    return encode


def _pixels(picture: Any, size: int) -> Tensor:
    import numpy as np

    from rvlr_lib.data.dataset import ArraySource

    return ArraySource(np.asarray(picture.convert("RGB"))[None]).pixels([0], size)


def _towers(study: Study, name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The functions that encode pictures and token ids."""
    import torch

    from rvlr_lib.config import VARIANTS
    from rvlr_lib.models.teachers import Teacher, orthogonal_maps
    from rvlr_lib.training.checkpoint import load_tensors, load_weights

    if name in VARIANTS and VARIANTS[name].stage > 0:
        student = study.trained_student(name)
        return lambda pixels: student.encode_image(pixels).features, lambda ids: student.encode_text(ids).features
    if name not in TOWERS:
        raise ValueError(f"{name!r} has no encoder: take a trained variant, teachers or frozen")
    teachers = []
    for modality in ("image", "text"):
        teacher = Teacher(study.towers, modality)
        path = study.teacher_folder(modality) / "weights.safetensors"
        load_weights(teacher, load_tensors(path), str(path))
        teachers.append(teacher.to(study.device).eval())
    image, text = teachers
    if name != "frozen":
        return image, text
    train, (images, texts) = study.dataset("train"), study.teacher_features("train")
    turn = orthogonal_maps(images[torch.as_tensor(train.caption_image)], texts)
    maps = [part.to(study.device) for part in turn]
    return lambda pixels: image(pixels) @ maps[0], lambda ids: text(ids) @ maps[1]
