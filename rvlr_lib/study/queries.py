"""Queries of one's own: words or a picture as features of the spaces of a study."""

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import clean_caption
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.models import CachedRows
from rvlr_lib.study.study import Study
from rvlr_lib.training.features import encode, encode_captions, encode_images


def query_encoder(study: Study, name: str) -> Callable[[Any], np.ndarray]:
    """A function from words or a picture to a unit row ``[D]`` in the space of an arm or of the ``start``.

    It takes words (cleaned as captions are) or a picture (PIL, resized as the data set's are); ``ValueError`` for
    anything else, and for words without a letter or digit. The towers are loaded when it is first called, and kept.
    """
    student = cache(lambda: study.student(name))

    def encode_one(item: Any) -> np.ndarray:
        words, picture = "none", np.zeros((1, 1, 1, 3), np.uint8)
        if isinstance(item, str):
            words = clean_caption(item)
            if not words:
                raise ValueError(f"{item!r} holds no word: type letters or digits")
        elif hasattr(item, "convert"):
            picture = np.asarray(item.convert("RGB"))[None]
        else:
            raise ValueError(f"a query is words or a picture (PIL), not {type(item).__name__}")
        one = ImageTextDataset("query", "test", ["query"], [words], np.zeros(1, np.int64), ArraySource(picture))
        return new_features(study, {name: student()}, one, int(isinstance(item, str)))[name][0].numpy()

    return encode_one


@torch.inference_mode()
def new_features(study: Study, students: Mapping[str, Any], dataset: ImageTextDataset, side: int) -> dict[str, Tensor]:
    """Features of new pictures (0) or captions (1) in each space; frozen towers see them once, as those of a study."""
    model = study.settings.model
    if not model.freeze_towers:
        return {name: encode(student, dataset, study.device)[side] for name, student in students.items()}
    options = {"towers": study.towers, "splits": {"few": dataset}, "device": study.device, "tokens": False}
    with TemporaryDirectory() as scratch:
        (encode_images, encode_captions)[side](Path(scratch), precision=model.precision, **options)
        rows = torch.from_numpy(np.load(Path(scratch) / "few" / "features.npy"))
    seen = CachedRows((rows if side else rows[:, 0]).to(study.device))
    heads = {name: (student.encode_image, student.encode_text)[side] for name, student in students.items()}
    return {name: head(seen).features.float().cpu() for name, head in heads.items()}
