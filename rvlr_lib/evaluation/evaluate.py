"""From features to a report: retrieval under every relevance, floors, ceilings, structure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.relevance import category_relevance, rouge_l_relevance
from rvlr_lib.data.truth import bayes_ceiling
from rvlr_lib.evaluation.rerank import matching_scores as matching_scores
from rvlr_lib.metrics.protocol import evaluate_folds, evaluate_retrieval
from rvlr_lib.metrics.ranking import average, recall_at_k
from rvlr_lib.metrics.statistics import cluster_mean
from rvlr_lib.metrics.structure import (
    alignment,
    continuity,
    knn_overlap,
    linear_cka,
    modality_gap,
    relational_similarity,
    trustworthiness,
    uniformity,
)
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.stages import Features

NEIGHBOURS = 10
FOLD_SIZE = {"coco": 1000}  # COCO 1K: its 5,000 pictures are reported as one gallery and as five of that size
SINGLE_MODAL = ("i2i/", "t2t")
CROSS_MODAL = ("i2t/", "t2i/", "r_mean")
ROWS = 512  # of scores, ranked at once


@dataclass(frozen=True)
class Relevance:
    """Graded relevance of one gallery; the square matrices are None where they are to be derived."""

    caption_to_image: np.ndarray
    image_to_image: np.ndarray | None = None
    text_to_text: np.ndarray | None = None


def relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    """The relevances known for a data set, the headline one first; computed once and kept as long as the data set is.

    Scenes: the truths, ``latent`` (whole scenes) and ``shown`` (what each view tells). Others: ``rouge_l`` and, where
    there are categories, ``category``, which does not reward wording.
    """
    if gallery not in _KNOWN:
        _KNOWN[gallery] = _relevances(gallery)
    return _KNOWN[gallery]


_KNOWN: WeakKeyDictionary[ImageTextDataset, dict[str, Relevance]] = WeakKeyDictionary()


def _relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    if gallery.scene is not None:
        truths = {kind: gallery.scene.truth(kind) for kind in ("latent", "shown")}
        return {
            kind: Relevance(truth.caption_to_image, truth.image_to_image, truth.text_to_text)
            for kind, truth in truths.items()
        }
    found = {"rouge_l": Relevance(rouge_l_relevance(gallery.whole_captions or gallery.captions, gallery.caption_image))}
    if gallery.categories is not None:
        found["category"] = Relevance(category_relevance(gallery.categories, gallery.caption_image))
    return found


def evaluate(
    features: Features,
    dataset: ImageTextDataset,
    *,
    matching_scores: tuple[Tensor, Tensor] | None = None,
    mixed_matching: tuple[Tensor, Tensor] | None = None,
    **switches: Any,
) -> dict[str, dict[str, float]]:
    """Every retrieval figure, a dict per relevance, each a mean over the galleries of the data set.

    COCO also gets ``rouge_l_1k``: the mean over five disjoint folds of 1,000 pictures, beside the whole 5,000.

    Args:
        features: of pictures ``[I, D]`` and captions ``[C, D]``, unit rows.
        dataset: what the features are of.
        matching_scores: ``scores_i2t [I, C]`` and ``scores_t2i [C, I]``; one gallery only.
        mixed_matching: the same, but for mixed lists alone (row 12): R@K stays that of cosines.
        switches: ``protocol``, ``mixed_t2it`` and ``mixed_scores`` of :func:`rvlr_lib.metrics.evaluate_retrieval`.
    """
    if mixed_matching is not None:
        found = evaluate(features, dataset, **{**switches, "mixed_scores": "cosine"})
        mixed = evaluate(features, dataset, matching_scores=mixed_matching, **switches)
        return {
            name: report | {key: value for key, value in mixed[name].items() if key.startswith(("i2it/", "t2it/"))}
            for name, report in found.items()
        }
    reports: dict[str, list[dict[str, float]]] = {}
    for gallery, (images, texts) in galleries(features, dataset):
        scores_i2t, scores_t2i = matching_scores or (None, None)
        fold = FOLD_SIZE.get(gallery.name, len(gallery))
        for name, relevance in relevances(gallery).items():
            square = {"image_relevance": relevance.image_to_image, "text_relevance": relevance.text_to_text}
            inputs = (images, texts, gallery.caption_image, relevance.caption_to_image)
            options = {"scores_i2t": scores_i2t, "scores_t2i": scores_t2i, **square, **switches}
            reports.setdefault(name, []).append(evaluate_retrieval(*inputs, **options))
            if fold < len(gallery) and len(gallery) % fold == 0:
                report = evaluate_folds(*inputs, fold_size=fold, **options)
                reports.setdefault(f"{name}_{_short(fold)}", []).append(report)
    return {name: _mean(rows) for name, rows in reports.items()}


def cross_modal(
    features: Features, dataset: ImageTextDataset, matching_scores: tuple[Tensor, Tensor] | None
) -> dict[str, float] | None:
    """Recall after re-ranking by the matching head, that of COCO 1K under ``1k/...``; None without its scores."""
    if matching_scores is None:
        return None
    reports = evaluate(features, dataset, matching_scores=matching_scores)
    headline = next(iter(reports))
    found = {key: value for key, value in reports[headline].items() if key.startswith(CROSS_MODAL)}
    fold = _short(FOLD_SIZE.get(dataset.name, 0))
    for key, value in reports.get(f"{headline}_{fold}", {}).items():
        if key.startswith(CROSS_MODAL):
            found[f"{fold}/{key}"] = value
    return found


def cluster_recall(features: Features, dataset: ImageTextDataset) -> dict[str, float]:
    """Recall with every picture as one cluster: a caption query counts as its share of its picture's captions.

    Pictures are what was sampled, so they are the unit within a seed. Where all pictures have as many captions this is
    plain recall; ``i2t`` asks each picture once anyway. Mean over galleries.

    Returns:
        ``t2i/R@K``, ``t2i/R@mean`` and ``r_mean``, in percent.
    """
    rows = []
    for gallery, (images, texts) in galleries(features, dataset):
        scores, owner = texts @ images.T, torch.as_tensor(gallery.caption_image)
        i2t, hits = _recall_both_ways(scores, owner)
        t2i = {k: cluster_mean(values, gallery.caption_image) for k, values in hits.items()}
        values = {f"t2i/R@{k}": value for k, value in t2i.items()}
        values["t2i/R@mean"] = float(np.mean(list(t2i.values())))
        rows.append(values | {"r_mean": (values["t2i/R@mean"] + float(np.mean(list(i2t.values())))) / 2})
    return _mean(rows)


def noise_floor(dataset: ImageTextDataset, width: int, seed: int) -> dict[str, dict[str, float]]:
    """What random embeddings reach: the floor of every figure."""
    return evaluate(random_features(dataset, width, seed), dataset)


def random_features(dataset: ImageTextDataset, width: int, seed: int) -> Features:
    """Unit rows in random directions, for every picture and caption."""
    generator = torch.Generator().manual_seed(seed)
    shapes = len(dataset), len(dataset.captions)
    images, texts = (unit_rows(torch.randn(count, width, generator=generator)) for count in shapes)
    return images, texts


def ceiling(dataset: ImageTextDataset) -> dict[str, float]:
    """The Bayes ceiling of cross-modal recall, mean over galleries; empty where the truth is not known."""
    if dataset.scene is None:
        return {}
    return _mean([bayes_ceiling(gallery) for gallery in dataset.gallery_sets()])


def single_modal(report: dict[str, float]) -> dict[str, float]:
    """The figures that teachers of one modality can have."""
    return {key: value for key, value in report.items() if key.startswith(SINGLE_MODAL)}


def structure(features: Features, references: Mapping[str, Features], dataset: ImageTextDataset) -> dict[str, float]:
    """Geometry of each modality against other spaces and both truths, mean over galleries.

    Captions are represented by the first of each picture, so that siblings do not stand for structure.

    Args:
        features: of the space to look at.
        references: features to compare with, by name: ``teacher``, and ``start`` where that is another space.
        dataset: what the features are of.

    Returns:
        ``<modality>/<measure>_<reference>``: ``overlap`` of the ten nearest neighbours, ``trust`` and ``continuity`` in
        percent, ``relations`` (Spearman, -1 to 1) and ``cka``. On scenes overlap and relations also against ``truth``
        (the whole scene) and ``shown`` (what the views show). ``<modality>/uniformity``, ``modality_gap`` and
        ``alignment`` are of the space alone.
    """
    parts = {name: galleries(pair, dataset) for name, pair in references.items()}
    rows = []
    for number, (gallery, pair) in enumerate(galleries(features, dataset)):
        first = np.array([gallery.captions_of(i)[0] for i in range(len(gallery))])
        values = {
            "modality_gap": modality_gap(*pair, gallery.caption_image),
            "alignment": alignment(*pair, gallery.caption_image),
        }
        truths = {"truth": "latent", "shown": "shown"} if gallery.scene is not None else {}
        known = {name: relevances(gallery)[kind] for name, kind in truths.items()}
        for at, modality in enumerate(("image", "text")):
            rows_of = np.arange(len(gallery)) if modality == "image" else first
            space = pair[at][rows_of]
            k = min(NEIGHBOURS, (len(space) - 1) // 2)
            values[f"{modality}/uniformity"] = uniformity(space)
            for name, found in parts.items():
                other = found[number][1][at][rows_of]
                values[f"{modality}/overlap_{name}"] = knn_overlap(space, other, k=k)
                values[f"{modality}/relations_{name}"] = relational_similarity(space, other)
                values[f"{modality}/trust_{name}"] = trustworthiness(other, space, k)
                values[f"{modality}/continuity_{name}"] = continuity(other, space, k)
                values[f"{modality}/cka_{name}"] = linear_cka(space, other)
            for name, truth in known.items():
                square = truth.image_to_image if modality == "image" else truth.text_to_text
                assert square is not None
                square = square[np.ix_(rows_of, rows_of)]
                values[f"{modality}/overlap_{name}"] = knn_overlap(space, similarity_b=square, k=k)
                values[f"{modality}/relations_{name}"] = relational_similarity(space, similarity_b=square)
        rows.append(values)
    return _mean(rows)


def galleries(features: Features, dataset: ImageTextDataset) -> list[tuple[ImageTextDataset, Features]]:
    """Each gallery of a data set with its rows of the features."""
    if dataset.galleries is None:
        return [(dataset, features)]
    parts = []
    for number, gallery in zip(np.unique(dataset.galleries), dataset.gallery_sets(), strict=True):
        images = torch.as_tensor(np.flatnonzero(dataset.galleries == number))
        texts = torch.as_tensor(np.flatnonzero(dataset.galleries[dataset.caption_image] == number))
        parts.append((gallery, (features[0][images], features[1][texts])))
    return parts


def _short(count: int) -> str:
    return f"{count // 1000}k" if count and count % 1000 == 0 else str(count)


def _recall_both_ways(scores: Tensor, owner: Tensor) -> tuple[dict[int, float], dict[int, np.ndarray]]:
    """From scores ``[C, I]``: mean recall of the pictures, and recall of each caption; a few rows at once."""
    parts: tuple[dict[int, list], dict[int, list]] = {}, {}
    for rows in torch.arange(scores.shape[1]).split(ROWS):
        for k, hits in recall_at_k(scores[:, rows].T, owner == rows[:, None], per_query=True).items():
            parts[0].setdefault(k, []).append(hits)
    for rows in torch.arange(len(scores)).split(ROWS):
        for k, hits in recall_at_k(scores[rows], owner[rows], per_query=True).items():
            parts[1].setdefault(k, []).append(hits)
    i2t, t2i = ({k: np.concatenate(found) for k, found in part.items()} for part in parts)
    return average(i2t), t2i


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
