"""From features to the record of a result: retrieval under every relevance, structure, provenance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rvlr_lib.config import MethodSettings
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import write_json
from rvlr_lib.evaluation import evaluate as evaluation

Features = tuple[Tensor, Tensor]


def make_result(
    folder: Path,
    *,
    kind: str,
    dataset: ImageTextDataset,
    method: MethodSettings,
    device: torch.device,
    info: dict[str, Any],
    features: Features | None = None,
    references: Mapping[str, Features] | None = None,
    training: dict[str, Any] | None = None,
    **options: Any,
) -> None:
    """Write ``result.json``. TODO: adapt to the evaluation room."""
    write_json(folder / "result.json", {})


def same_width(features: Features) -> Features:
    """Both features at the wider one's width, zeros added, which changes no cosine within a modality."""
    width = max(part.shape[1] for part in features)
    images, texts = (torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in features)
    return images, texts
