"""Queries of one's own: words or a picture as features of the spaces of a study."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import clean_caption
from rvlr_lib.data.dataset import ArraySource
from rvlr_lib.models import CachedRows, HeadStudent, encode_image_tokens, encode_text_tokens, tokenize
from rvlr_lib.similarity import unit_rows
from rvlr_lib.study.study import Study

Encoder = Callable[[Any], np.ndarray]


def query_encoder(study: Study, name: str) -> Encoder:
    """A function from words or a picture to a unit row ``[D]`` in the space of an arm, ``start`` or ``teachers``.

    It takes words (cleaned as captions are) or a picture (PIL, resized as the data set's are); ``ValueError`` for
    anything else, and for words without a letter or digit. The towers are loaded when it is first called, and kept.

    Raises:
        ValueError: teachers that are not the study's own towers have no encoder here.
    """
    model = study.settings.model
    if name == "teachers" and {model.image_teacher, model.text_teacher} != {"towers"}:
        raise ValueError(f"teachers {model.image_teacher!r} and {model.text_teacher!r} cannot encode new queries")
    loaded: dict[str, Callable[[Tensor], Tensor]] = {}

    @torch.inference_mode()
    def encode(item: Any) -> np.ndarray:
        if not loaded:
            loaded["image"], loaded["text"] = tower_encoders(study, name)
        if isinstance(item, str):
            words = clean_caption(item)
            if not words:
                raise ValueError(f"{item!r} holds no word: type letters or digits")
            feature = loaded["text"](tokenize(study.towers.tokenizer, [words]).to(study.device))
        elif hasattr(item, "convert"):
            pixels = ArraySource(np.asarray(item.convert("RGB"))[None]).pixels([0], study.towers.image_size)
            feature = loaded["image"](pixels.to(study.device).float() / 255)
        else:
            raise ValueError(f"a query is words or a picture (PIL), not {type(item).__name__}")
        return feature[0].float().cpu().numpy()

    return encode


def tower_encoders(study: Study, name: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The functions that encode pictures ``[B, 3, S, S]`` in 0..1 and token ids."""
    towers, student = study.towers, None if name == "teachers" else study.student(name)
    if student is not None and not isinstance(student, HeadStudent):
        return lambda pixels: student.encode_image(pixels).features, lambda ids: student.encode_text(ids).features
    visual, text = towers.visual.to(study.device).eval(), towers.text.to(study.device).eval()
    low, high = (torch.tensor(values, device=study.device).view(1, -1, 1, 1) for values in (towers.mean, towers.std))

    def image(pixels: Tensor) -> Tensor:
        rows = encode_image_tokens(visual, (pixels - low) / high, tokens=False, projected=False)[0]
        return unit_rows(rows) if student is None else student.encode_image(CachedRows(rows)).features

    def caption(ids: Tensor) -> Tensor:
        rows = encode_text_tokens(text, ids, tokens=False, projected=False)[0]
        return unit_rows(rows) if student is None else student.encode_text(CachedRows(rows)).features

    return image, caption
