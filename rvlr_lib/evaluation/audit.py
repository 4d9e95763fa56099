"""Audit of given features without training: imbalance, retrieval, gap, structure and training-free baselines."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, clean_caption, load_dataset, mentioned_share, shown_share
from rvlr_lib.data.dataset import ArraySource
from rvlr_lib.data.formats import parse
from rvlr_lib.data.table import CAPTION_FAULTS, EMPTY, captions_in
from rvlr_lib.evaluation.baselines import training_free
from rvlr_lib.evaluation.evaluate import NEIGHBOURS, Device, first_captions, noise_floor, retrieval_metrics, structure
from rvlr_lib.metrics import finite_rows, knn_overlap, linear_cka, relational_similarity
from rvlr_lib.models import teacher_features
from rvlr_lib.models.towers import model_config
from rvlr_lib.similarity import as_tensor, unit_rows

LOADERS: dict[str, Callable[[Path], Any]] = {".npy": np.load, ".npz": np.load, ".safetensors": load_file}  # no pickles
LOADERS |= dict.fromkeys((".pt", ".pth"), partial(torch.load, map_location="cpu", weights_only=True))
ALPHAS = np.logspace(-4, 3, 15)  # ridge penalties
TABLES = "retrieval", "structure", "baselines"
FILES = ["audit.json", *(f"{name}.{kind}" for name in TABLES for kind in ("csv", "md", "tex"))]
MIN_PICTURES = 50  # pictures; with fewer, a linear probe is meaningless
Encoded = tuple[ImageTextDataset, Tensor, Tensor]  # features [I, D] and [C, D]


@dataclass(frozen=True)
class ImbalanceReport:
    """How much information each modality holds; shares are 0 to 1, or None if the factors are unknown."""

    image_shown: float | None  # exact share of the scenes' factors that the pictures show
    text_shown: float | None  # likewise, that the captions tell
    image_probe: float | None  # held-out share of factor variance that is linear in image features
    text_probe: float | None  # likewise in text features
    image_to_text: float  # held-out share of text feature variance that is linear in image features
    text_to_image: float
    text_to_text: float | None  # from sibling captions: how reliable captions are; None below 50 pairs
    cka: float  # linear CKA of the two spaces
    overlap: float  # percent of the ten nearest neighbours shared by the two spaces
    index: float  # see imbalance_index
    index_from: str  # what the index was computed from


def imbalance_index(image_share: float, text_share: float) -> float:
    """``(image − text) / (image + text)`` of the shares held, −1 to 1; positive if captions hold less.

    Conclusive from exact shares of factors, only a hint from predictability, where whatever pictures hide at random
    counts against captions.

    >>> imbalance_index(1.0, 0.5)
    0.3333333333333333
    """
    return (image_share - text_share) / ((image_share + text_share) or 1.0)


def imbalance_report(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor) -> ImbalanceReport:
    """Measure how much each modality holds, by known factors and by unimodal features ``[I, D]`` and ``[C, E]``.

    Captions are represented by the first of each picture. The share of them that pictures predict is divided by the
    square root of the share of a caption that its sibling predicts (Spearman's correction for attenuation).
    """
    images, captions = _checked(dataset, image_features, text_features)
    texts = captions[first_captions(dataset)]
    across = predictability(images, texts), predictability(texts, images)
    siblings = [rows[:2] for rows in map(dataset.captions_of, range(len(dataset))) if len(rows) > 1]
    reliability = predictability(*captions[np.stack(siblings, axis=1)]) if len(siblings) >= MIN_PICTURES else None
    held = min(1.0, across[0] / reliability**0.5) if reliability else across[0], across[1]
    exact: tuple[float | None, float | None] = (None, None)
    probes, source = exact, "predictability"
    if dataset.scene is not None and "image_fault" not in dataset.info:  # blur hides no factor with certainty
        held = exact = shown_share(dataset), mentioned_share(dataset)
        source = "exact shares of factors"
        factors = dataset.scene.scene.counts()
        probes = predictability(images, factors), predictability(texts, factors)
    cka, overlap = linear_cka(images, texts), knn_overlap(images, texts, k=NEIGHBOURS)
    return ImbalanceReport(*exact, *probes, *across, reliability, cka, overlap, imbalance_index(*held), source)


def predictability(source, target) -> float:
    """Held-out share of the variance of ``target [N, E]`` that is linear in ``source [N, D]``, at least 0.

    ``1 − Σ (y − ŷ)² / Σ (y − ȳ)²``, ŷ by ridge regression on the other four fifths, its penalty by leave-one-out.
    """
    x, y = (np.asarray(torch.as_tensor(rows).double().cpu()) for rows in (source, target))
    scale = x.var(axis=0).mean() or 1.0  # one for all columns, so that rare ones are not inflated
    folds = KFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(RidgeCV(alphas=ALPHAS * len(x) * scale), x, y, cv=folds)
    spread = np.square(y - y.mean(axis=0)).sum()
    return max(0.0, 1 - float(np.square(y - predicted).sum() / spread)) if spread else 0.0


def audit(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor, *, device: Device = "cpu"):
    """Measure a space ``[I, D]``, ``[C, D]`` of 50 or more pictures (else ValueError) without training.

    Keys: ``data``, ``imbalance`` (:class:`ImbalanceReport`), ``retrieval`` and ``floor`` (relevance -> metrics in
    percent), ``structure`` (also images against text), ``baselines`` (rows of ``baselines.training_free``).
    """
    images, texts = (x.to(device) for x in _checked(dataset, image_features, text_features))
    if images.shape[1] != texts.shape[1]:
        shapes = f"image features {tuple(images.shape)} and text features {tuple(texts.shape)}"
        raise ValueError(f"{shapes} share no space: give features projected into the common space")
    pair = unit_rows(images), unit_rows(texts)
    across = pair[0], pair[1][first_captions(dataset)]
    geometry = structure(pair, {}, dataset, device=device)
    geometry["image against text/overlap"] = knn_overlap(*across, k=NEIGHBOURS)
    geometry["image against text/relations"] = relational_similarity(*across)
    geometry["image against text/cka"] = linear_cka(*across)
    return {
        "data": {"name": dataset.name, "split": dataset.split, "pictures": len(images), "captions": len(texts)},
        "imbalance": asdict(imbalance_report(dataset, images, texts)),
        "retrieval": retrieval_metrics(pair, dataset, device=device),
        "floor": noise_floor(dataset, images.shape[1], 0, device, queries=5000),
        "structure": geometry,
        "baselines": training_free(pair, dataset, device=device).to_dict("records"),
    }


def audit_tables(record: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The result of :func:`audit` as tables.

    ``retrieval``: every metric under the headline relevance, next to its floor; ``structure``: imbalance, gap and
    structure of the space, where defined; ``baselines``: those without training, parameters chosen on validation.
    """
    columns = {"found": next(iter(record["retrieval"].values())), "floor": next(iter(record["floor"].values()))}
    retrieval = pd.DataFrame(columns).rename_axis("metric")
    measures = {**record["imbalance"], **record["structure"]}
    values = {name.replace("_", " "): value for name, value in measures.items() if isinstance(value, float)}
    baselines = pd.DataFrame(record["baselines"]).pivot_table("value", ["arm", "parameters"], "metric", sort=False)
    return {
        "retrieval": retrieval[~retrieval.index.str.endswith("above_floor")],
        "structure": pd.DataFrame({"found": values}).rename_axis("metric"),
        "baselines": baselines.rename_axis(columns=None).reset_index("parameters"),
    }


def read_features(image_path: Path, text_path: Path, captions_path: Path) -> Encoded:
    """Feature arrays of your own model, see :func:`read_array`, with captions in picture order.

    ``captions_path`` is a JSON list with one entry per picture: a caption, a list of captions, or an object with either
    under ``caption``. ValueError names the file that cannot be read or does not match the others.
    """
    images, texts, captions = read_array(Path(image_path)), read_array(Path(text_path)), _captions(Path(captions_path))
    counts = [len(group) for group in captions]
    if len(captions) != len(images) or sum(counts) != len(texts):
        rows = f"{len(images)} rows in {image_path} and {len(texts)} in {text_path}"
        pairs = f"{len(captions)} pictures and {sum(counts)} captions"
        raise ValueError(f"{captions_path} holds {pairs}, but there are {rows}")
    if repeated := len(images) - len(images.unique(dim=0)):
        way_out = "ties count against the features: give one row per picture, with a list of all its captions"
        print(f"{image_path}: {repeated} of {len(images)} rows repeat another; {way_out}")
    flat = [caption for group in captions for caption in group]
    blank = ArraySource(np.zeros((len(captions), 1, 1, 3), dtype=np.uint8))
    ids, owner = [str(row) for row in range(len(captions))], np.repeat(np.arange(len(captions)), counts)
    return ImageTextDataset(Path(captions_path).stem, "test", ids, flat, owner, blank), images, texts


def read_array(path: Path) -> Tensor:
    """Float32 rows ``[N, D]`` from ``.npy``, or from ``.npz``, ``.pt`` or ``.safetensors`` with one array.

    ValueError names the file, what is wrong with it and the way out, in one line.
    """
    if path.suffix.lower() not in LOADERS:
        raise ValueError(f"{path} is not a feature file: give one of {', '.join(LOADERS)}")
    if not path.is_file():
        raise ValueError(f"{path} is missing")
    try:
        stored = LOADERS[path.suffix.lower()](path)
        by_name = stored if isinstance(stored, Mapping) else {"": stored}
        arrays = {str(name): as_tensor("it", value) for name, value in by_name.items()}
    except Exception as error:  # loaders raise anything: truncated files, pickles, bad headers, no memory
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UnpicklingError) or "allow_pickle" in reason:  # such messages advise loading it anyway
            reason = "it has another format, or holds objects that could run code"
        raise ValueError(f"{path} is not an array of numbers ({reason}): save rows [N, D] with numpy.save") from None
    if len(arrays) != 1:
        raise ValueError(f"{path} holds {len(arrays)} arrays ({', '.join(arrays)}): save only the one to audit")
    (rows,) = arrays.values()
    if not rows.is_floating_point():
        raise ValueError(f"{path} holds {rows.dtype} {list(rows.shape)}, expected floating-point rows [N, D]")
    rows = finite_rows(str(path), rows.detach())
    largest, rows = rows.abs().amax(dim=1), rows.float()
    if not rows.isfinite().all() or (largest[~rows.any(dim=1)] > 0).any():
        maxima = f"row maxima from {largest[largest > 0].min():.0e} to {largest.max():.0e}"
        raise ValueError(f"{path} holds {maxima}, outside float32: rescale them, which leaves cosines unchanged")
    if zeros := int((~rows.any(dim=1)).sum()):
        print(f"{path}: {zeros} of {len(rows)} rows are all zero, so equally far from everything")
    return rows.contiguous()


def encode_with_model(
    name_or_path: str, model: str, pretrained: str | None, *, split="test", image_root=None, device: Device = "cpu"
) -> Encoded:
    """A data set and its features in the space of an open_clip model or ``local-dir:``; ValueError without weights."""
    dataset = load_dataset(name_or_path, split=split, image_root=image_root)
    if not pretrained and not model.startswith("local-dir:"):
        if ":" not in model:
            model_config(model)  # ValueError if there is no such model
        way_out = "give --model and --pretrained, a tag or a weight file, or --model local-dir:FOLDER"
        raise ValueError(f"{model} has random weights in its common space: {way_out}")
    spec = f"open_clip:{model}:{pretrained}" if pretrained else model
    images, texts = (teacher_features(spec, modality, dataset, device) for modality in ("image", "text"))
    return dataset, images, texts


def _captions(path: Path) -> list[list[str]]:
    """The cleaned captions of each picture, by the rules for your own collections."""
    entries, captions = parse(path), list[list[str]]()
    if not isinstance(entries, list):
        raise ValueError(f"{path} is not a list with one entry per picture")
    for number, entry in enumerate(entries):
        texts = captions_in(entry.get("caption", entry) if isinstance(entry, dict) else entry) or [("", EMPTY)]
        captions.append([clean_caption(text) for text, _ in texts])
        for (text, fault), cleaned in zip(texts, captions[-1], strict=True):
            if fault or not cleaned:
                raise ValueError(f"{path}: {CAPTION_FAULTS[fault or EMPTY].format(text, f'entry {number}')}")
    return captions


def _checked(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    images, texts = finite_rows("image features", image_features), finite_rows("text features", text_features)
    if (len(images), len(texts)) != (len(dataset), len(dataset.captions)):
        counts = f"{len(dataset)} pictures and {len(dataset.captions)} captions"
        raise ValueError(f"features {tuple(images.shape)} and {tuple(texts.shape)} do not match {counts}")
    if len(images) < MIN_PICTURES:
        way_out = f"give at least {MIN_PICTURES}, or with --dataset another --split"
        raise ValueError(f"{len(images)} pictures are too few for a linear probe: {way_out}")
    return images.float(), texts.float()
