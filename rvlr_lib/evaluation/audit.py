"""What imbalance does to a given space: how much each modality holds, retrieval, gap and structure; no training."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, clean_caption, load_dataset, shown_share, told_share
from rvlr_lib.data.dataset import ArraySource
from rvlr_lib.evaluation import evaluate as evaluation
from rvlr_lib.metrics.structure import (
    alignment,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    uniformity,
)
from rvlr_lib.similarity import unit_rows

if TYPE_CHECKING:
    import pandas as pd

FOLDS = 5
ALPHAS = np.logspace(-4, 3, 15)
LEAST = 50  # pictures; below it a linear probe says nothing


@dataclass(frozen=True)
class ImbalanceReport:
    """How much each modality holds; shares from 0 to 1, None where the factors are not known.

    Attributes:
        image_shown: exact share of the scenes' factors that the pictures show.
        text_shown: exact share that the captions tell.
        image_probe: share of the variance of the scenes' factors that a linear probe recovers from image features.
        text_probe: the same from text features.
        image_to_text: cross-modal predictability, the share of the variance of text features that is linear in the
            image features, on held-out pictures.
        text_to_image: the other direction.
        text_to_text: what a caption predicts of another one of the same picture: how reliably captions tell; None where
            fewer than 50 pictures have two.
        cka: linear CKA of the two feature spaces.
        overlap: percent of the ten nearest neighbours that the two spaces share.
        index: the imbalance index, see :func:`imbalance_index`.
        index_from: what the index was computed from.
    """

    image_shown: float | None
    text_shown: float | None
    image_probe: float | None
    text_probe: float | None
    image_to_text: float
    text_to_image: float
    text_to_text: float | None
    cka: float
    overlap: float
    index: float
    index_from: str


def imbalance_index(image_share: float, text_share: float) -> float:
    """``(image − text) / (image + text)`` of the shares that two modalities hold, −1 to 1.

    0: they hold the same; positive: the captions hold less; ±1: one holds nothing. Two that hold nothing give 0.

    Limits. From exact shares of factors it is a fact about the data. From predictability it is a lead: linear
    predictability is nearly the same in both directions, since what either side leaves out at random is noise to the
    other. So what pictures hold is taken as the share they predict of what captions tell *reliably*: divided by the
    root of what one caption predicts of another of the same picture (Spearman's correction for attenuation; the
    sibling is as noisy as the caption). Pictures have no such siblings, and what they hide at random still
    counts against captions: an index below 0 is too near to 0. With one caption per picture the same holds on both
    sides. It mixes what the data hold with what the features keep, and sees only what is encoded linearly.

    Raises:
        ValueError: a share is negative.

    >>> imbalance_index(1.0, 0.5), imbalance_index(0.5, 0.5)
    (0.3333333333333333, 0.0)
    """
    if image_share < 0 or text_share < 0:
        raise ValueError(f"shares are not negative, got {image_share} and {text_share}")
    total = image_share + text_share
    return (image_share - text_share) / total if total else 0.0


def imbalance_report(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor) -> ImbalanceReport:
    """How much each modality of a data set holds, by its factors and by unimodal features.

    A picture is represented by its first caption. Probes are ridge regressions, their strength chosen
    inside each of five folds of pictures.

    Args:
        dataset: at least 50 pictures.
        image_features: ``[I, D]`` of a unimodal image teacher, or of the image tower to be judged.
        text_features: ``[C, E]`` of a unimodal text teacher, or of the text tower.

    Raises:
        ValueError: too few pictures, or features that do not fit the data set.
    """
    images, texts = _first_pairs(dataset, image_features, text_features)
    across = predictability(images, texts), predictability(texts, images)
    shown: tuple[float | None, float | None] = (None, None)
    siblings = _sibling_pairs(dataset, text_features)
    reliable = predictability(*siblings) if len(siblings[0]) >= LEAST else None
    probes, basis = shown, (min(1.0, across[0] / reliable**0.5) if reliable else across[0], across[1])
    exact = dataset.scene is not None and "image_fault" not in dataset.info  # blur hides no factor for certain
    if exact and dataset.scene is not None:
        factors = dataset.scene.scene.counts()
        shown = basis = shown_share(dataset), told_share(dataset)
        probes = predictability(images, factors), predictability(texts, factors)
    return ImbalanceReport(
        *shown,
        *probes,
        *across,
        reliable,
        cka=linear_cka(images, texts),
        overlap=knn_overlap(torch.as_tensor(images), torch.as_tensor(texts), k=evaluation.NEIGHBOURS),
        index=imbalance_index(*basis),
        index_from="exact shares of factors" if exact else "predictability",
    )


def predictability(source: np.ndarray, target: np.ndarray, *, seed: int = 0) -> float:
    """Share of the variance of ``target [N, E]`` that is linear in ``source [N, D]``, held out; 0 where it is negative.

    ``1 − Σ (y − ŷ)² / Σ (y − ȳ)²`` over all entries, ŷ from a ridge regression of the other four fifths.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    scale = source.var(axis=0).mean() or 1.0  # one for all columns: a rare one must not be blown up
    model = RidgeCV(alphas=ALPHAS * len(source) * scale)
    predicted = cross_val_predict(model, source, target, cv=KFold(FOLDS, shuffle=True, random_state=seed))
    missed, spread = np.square(target - predicted).sum(), np.square(target - target.mean(axis=0)).sum()
    return float(max(0.0, 1 - missed / spread)) if spread else 0.0


def audit(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor, *, seed: int = 0) -> dict[str, Any]:
    """Everything that can be said of a space without training.

    Args:
        dataset: the pictures and captions the features are of.
        image_features: ``[I, D]``, any length.
        text_features: ``[C, D]``, in the order of the captions.
        seed: of the noise floor.

    Returns:
        ``imbalance`` (:class:`ImbalanceReport` as a dict), ``retrieval`` and ``floor`` (relevance -> metrics in
        percent), and ``structure``: ``modality_gap``, ``alignment``, ``uniformity`` of each modality, and of the image
        space against the text space ``overlap`` (percent), ``relations`` (Spearman) and ``cka``.

    Raises:
        ValueError: features that do not fit the data set or are not finite, or too few pictures.
    """
    images, texts = _checked(dataset, image_features, text_features)
    pair = unit_rows(images), unit_rows(texts)
    first = [int(dataset.captions_of(row)[0]) for row in range(len(dataset))]
    k = evaluation.NEIGHBOURS
    return {
        "data": {
            "name": dataset.name,
            "split": dataset.split,
            "pictures": len(dataset),
            "captions": len(dataset.captions),
        },
        "imbalance": asdict(imbalance_report(dataset, images, texts)),
        "retrieval": evaluation.evaluate(pair, dataset),
        "floor": evaluation.noise_floor(dataset, images.shape[1], seed),
        "structure": {
            "modality_gap": modality_gap(*pair, dataset.caption_image),
            "alignment": alignment(*pair, dataset.caption_image),
            "image/uniformity": uniformity(pair[0]),
            "text/uniformity": uniformity(pair[1]),
            "image against text/overlap": knn_overlap(pair[0], pair[1][first], k=k),
            "image against text/relations": relational_similarity(pair[0], pair[1][first]),
            "image against text/cka": linear_cka(pair[0], pair[1][first]),
        },
    }


def audit_table(found: Mapping[str, Any]) -> "pd.DataFrame":
    """Every retrieval figure beside its floor, under the headline relevance."""
    import pandas as pd

    reports = [next(iter(found[part].values())) for part in ("retrieval", "floor")]
    keys = [key for key in reports[0] if not key.endswith("above_floor")]
    rows = [{"metric": key, "found": reports[0][key], "floor": reports[1][key]} for key in keys]
    return pd.DataFrame(rows).set_index("metric")


def write_audit(found: Mapping[str, Any], features: tuple[Tensor, Tensor], folder: Path) -> Path:
    """Write ``audit.json``, the table, and the figures of retrieval and of the gap.

    Returns:
        The path of the JSON.
    """
    import pandas as pd

    from rvlr_lib.disk import write_json
    from rvlr_lib.figures.charts import plot_results, save_figure
    from rvlr_lib.figures.study_charts import plot_gap
    from rvlr_lib.provenance import provenance
    from rvlr_lib.tables import write_table

    table = audit_table(found)
    write_table(table, folder, "audit")
    wanted = [key for key in table.index if key == "r_mean" or key.endswith(("R@1", "R@10", "NDCG@10"))]
    rows = pd.DataFrame(
        [
            {
                "dataset": found["data"]["name"],
                "variant": name,
                "metric": key,
                "seed": 0,
                "value": table.loc[key, column],
            }
            for key in wanted
            for name, column in (("features", "found"), ("floor", "floor"))
        ]
    )
    save_figure(plot_results(rows), folder, "retrieval", rows)
    points = gap_points(*features)
    save_figure(plot_gap(points), folder, "gap", points)
    path = folder / "audit.json"
    write_json(path, {**found, "provenance": provenance()})
    return path


def gap_points(image_features: Tensor, text_features: Tensor, *, most: int = 1000, seed: int = 0) -> "pd.DataFrame":
    """Both modalities in the plane of their two main axes (PCA of unit rows together): ``modality``, ``x``, ``y``."""
    import pandas as pd

    generator = torch.Generator().manual_seed(seed)
    parts = [unit_rows(x.double()) for x in (image_features, text_features)]
    parts = [x[torch.randperm(len(x), generator=generator)[:most]] for x in parts]
    both = torch.cat(parts)
    centred = both - both.mean(dim=0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    place = (centred @ axes.T).numpy()
    names = ["image"] * len(parts[0]) + ["text"] * len(parts[1])
    return pd.DataFrame({"modality": names, "x": place[:, 0], "y": place[:, 1]})


def read_features(image_path: Path, text_path: Path, captions_path: Path) -> tuple[ImageTextDataset, Tensor, Tensor]:
    """Feature arrays and captions of one's own model.

    Args:
        image_path: ``.npy [I, D]``.
        text_path: ``.npy [C, D]``, the captions of the first picture first, then those of the second, and so on.
        captions_path: JSON, a list with one entry per picture: a caption, a list of captions, or an object with such
            an entry ``caption``.

    Raises:
        ValueError: a file that cannot be read or does not fit the others; names it and the shapes.
    """
    arrays = []
    for path in (image_path, text_path):
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise ValueError(f"{path} is no array of numbers ({error}): save one with numpy.save") from error
        if array.ndim != 2 or array.dtype.kind != "f":
            raise ValueError(f"{path} holds {array.dtype} {list(array.shape)}, expected floating-point rows [N, D]")
        arrays.append(torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))
    captions = _captions(captions_path)
    counts = [len(each) for each in captions]
    if len(captions) != len(arrays[0]) or sum(counts) != len(arrays[1]):
        raise ValueError(
            f"{captions_path} holds {len(captions)} pictures and {sum(counts)} captions, but there are "
            f"{len(arrays[0])} rows in {image_path} and {len(arrays[1])} in {text_path}"
        )
    cleaned = [clean_caption(caption) for each in captions for caption in each]
    if not all(cleaned):
        raise ValueError(
            f"{captions_path}: caption {cleaned.index('')} has no letter or digit; give it words or leave it out"
        )
    dataset = ImageTextDataset(
        name=captions_path.stem,
        split="test",
        image_ids=[str(row) for row in range(len(captions))],
        captions=cleaned,
        caption_image=np.repeat(np.arange(len(captions)), counts),
        source=ArraySource(np.zeros((len(captions), 1, 1, 3), dtype=np.uint8)),
    )
    return dataset, arrays[0], arrays[1]


def encode_with_model(
    name_or_path: str,
    model: str,
    pretrained: str | None,
    *,
    split: str = "test",
    image_root: str | None = None,
    device: str = "auto",
) -> tuple[ImageTextDataset, Tensor, Tensor]:
    """A data set and its features from an open_clip model as it is."""
    from rvlr_lib.models.student import Student
    from rvlr_lib.models.towers import build_towers
    from rvlr_lib.training.loop import choose_device
    from rvlr_lib.training.stages import encode_with_student

    where = choose_device(device)
    dataset = load_dataset(name_or_path, split=split, image_root=image_root)
    towers = build_towers(model, pretrained)
    if not pretrained:
        print(f"{model} has random weights: give --pretrained to audit a trained model")
    images, texts = encode_with_student(Student(towers), dataset, towers, where)
    return dataset, images, texts


def _captions(path: Path) -> list[list[str]]:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds no list with one entry per picture")
    found: list[list[str]] = []
    for number, entry in enumerate(entries):
        own = entry.get("caption") if isinstance(entry, dict) else entry
        own = [own] if isinstance(own, str) else own
        if not isinstance(own, Sequence) or not own or not all(isinstance(caption, str) for caption in own):
            raise ValueError(
                f"{path}: entry {number} is no caption, no list of captions, and has no 'caption': {entry!r}"
            )
        found.append(list(own))
    return found


def _checked(dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
    images, texts = (torch.as_tensor(x).float() for x in (image_features, text_features))
    if images.ndim != 2 or texts.ndim != 2 or (len(images), len(texts)) != (len(dataset), len(dataset.captions)):
        raise ValueError(
            f"features {tuple(images.shape)} and {tuple(texts.shape)} do not fit {len(dataset)} pictures and "
            f"{len(dataset.captions)} captions"
        )
    for name, rows in (("image", images), ("text", texts)):
        if not rows.isfinite().all():
            raise ValueError(
                f"{name} features hold {int((~rows.isfinite()).any(dim=1).sum())} rows that are not finite"
            )
    if len(images) < LEAST:
        raise ValueError(f"{len(images)} pictures are too few for a linear probe: give at least {LEAST}")
    return images, texts


def _sibling_pairs(dataset: ImageTextDataset, text_features: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Features of the first and of the second caption of each picture that has two."""
    pairs = [dataset.captions_of(row)[:2] for row in range(len(dataset))]
    rows = np.array([pair for pair in pairs if len(pair) == 2], dtype=np.int64).reshape(-1, 2)
    texts = torch.as_tensor(text_features).float()
    return texts[rows[:, 0]].numpy(), texts[rows[:, 1]].numpy()


def _first_pairs(
    dataset: ImageTextDataset, image_features: Tensor, text_features: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    images, texts = _checked(dataset, image_features, text_features)
    first = [int(dataset.captions_of(row)[0]) for row in range(len(dataset))]
    return images.numpy(), texts[first].numpy()
