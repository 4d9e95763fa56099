"""Training-free baselines, mixed corpora, perturbed queries and moved items; ValueError for unfit arguments."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, ImbalanceSpec, apply_imbalance
from rvlr_lib.data import scenes as grammar
from rvlr_lib.data.dial import FAULTS, drop_words
from rvlr_lib.evaluation.evaluate import Features, first_captions, galleries, headline_metrics, mean_of, relevances
from rvlr_lib.metrics import above_floor, finite_rows, knn_overlap, ndcg_and_floor, neighbour_share, recall_at_k
from rvlr_lib.similarity import cosine_matrix, unit_rows

Split = tuple[Features, ImageTextDataset]
BANK = 2000  # training queries for neighbour normalisation
STEPS = tuple(step / 10 for step in range(11))
FACTOR_WORDS = (*grammar.SHAPE_WORDS, *grammar.COLOUR_WORDS, *grammar.SIZE_WORDS, *grammar.BACKGROUND_WORDS)
GROUPS = (*FACTOR_WORDS, grammar.THING_WORDS, grammar.GROUND_WORDS)  # words of the same meaning
SYNONYMS = {word: [other for other in group if other != word] for group in GROUPS for word in group}


def centre(features, reference) -> Tensor:
    """``features [N, D]`` minus the mean row of their training features ``[M, D]``, as unit rows (GR-CLIP).

    >>> centre([[2.0, 1.0], [1.0, 3.0]], [[0.0, 1.0], [2.0, 1.0]])
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float64)
    """
    features, reference = _of_one_width("features", features, "reference", reference)
    return unit_rows(features.double() - reference.double().mean(dim=0)).to(features)


def principal_components(features: Features, reference: Features, *, width: int) -> Features:
    """Unit rows of both modalities on the ``width`` leading principal directions of their pooled training features."""
    rows = torch.cat(reference).double()
    if not 1 <= width <= min(rows.shape[1], len(rows) - 1):
        raise ValueError(f"width {width} needs features as wide and {width + 1} reference rows, got {list(rows.shape)}")
    mean = rows.mean(dim=0)
    directions = torch.linalg.eigh((rows - mean).T @ (rows - mean)).eigenvectors.flip(1)[:, :width]
    images, texts = (unit_rows((x.double() - mean) @ directions).to(x.dtype) for x in features)
    return images, texts


def spectral_cut(features: Features, reference: Features, *, leading: int, trailing: int) -> Features:
    """Drop the first and last singular directions of the cross-covariance, for single-modal retrieval (IsoCLIP).

    Row m of the reference pictures ``[M, D]`` pairs with row m of the reference captions ``[M, D']``. Returns unit rows
    of width ``min(D, D') − leading − trailing``: pictures on the remaining left directions, captions on the right ones.
    """
    if len(reference[0]) != len(reference[1]):
        raise ValueError(f"reference: {len(reference[0])} pictures and {len(reference[1])} captions are not paired")
    x, y = (rows.double() - rows.double().mean(dim=0) for rows in reference)
    left, _, right = torch.linalg.svd(x.T @ y, full_matrices=False)
    kept = slice(leading, left.shape[1] - trailing)
    if leading < 0 or trailing < 0 or kept.start >= kept.stop:
        raise ValueError(f"leading {leading} and trailing {trailing} leave none of {left.shape[1]} directions")
    sides = zip(features, (left, right.T), strict=True)
    images, texts = (unit_rows(rows.double() @ basis[:, kept]).to(rows.dtype) for rows, basis in sides)
    return images, texts


def normalise_by_neighbours(scores, bank_scores, *, weight: float, k: int) -> Tensor:
    """``scores [Q, G] − weight · mean of the k largest of each column of bank_scores [B, G]`` (NNN).

    The bank holds training queries of the same modality: candidates close to many of them lose what these share.

    >>> normalise_by_neighbours([[1.0, 0.5]], [[0.8, 0.0], [0.6, 0.2], [0.0, 0.0]], weight=1.0, k=2)
    tensor([[0.3000, 0.4000]], dtype=torch.float64)
    """
    scores, bank = _of_one_width("scores", scores, "bank_scores", bank_scores)
    if not math.isfinite(weight) or k != int(k) or not 1 <= k <= len(bank):
        raise ValueError(f"weight {weight}, k = {k} neighbours of a bank of {len(bank)} queries: k is 1 to {len(bank)}")
    return scores - weight * bank.topk(int(k), dim=0).values.mean(dim=0).to(scores)


def interpolate_weights(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """``(1 − alpha) · start + alpha · trained`` of two state dicts (WiSE-FT); integer buffers come from ``trained``.

    >>> interpolate_weights({"w": torch.zeros(2)}, {"w": torch.ones(2)}, 0.25)
    {'w': tensor([0.2500, 0.2500])}
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}, expected 0 (all of start) to 1 (all of trained)")
    before, after = ({k: f"{v.dtype} {list(v.shape)}" for k, v in state.items()} for state in (start, trained))
    if differing := sorted(k for k in before.keys() | after.keys() if before.get(k) != after.get(k)):
        k = differing[0]
        raise ValueError(f"{k!r} is {before.get(k, 'missing')} in start and {after.get(k, 'missing')} in trained")
    pairs = {k: (start[k].detach().to(value.device), value.detach()) for k, value in trained.items()}
    return {k: torch.lerp(a, b, alpha) if b.is_floating_point() else b.clone() for k, (a, b) in pairs.items()}


def training_free(
    features: Features, dataset: ImageTextDataset, *, splits: tuple[Split, Split] | None = None, seed=0, device="cpu"
) -> pd.DataFrame:
    """Metrics of the features as given and of each baseline, with parameters chosen on validation (headline relevance).

    ``splits`` are train, the source of means, directions and the bank, and validation; by default 40 % of the data
    set's pictures are train, 20 % validation and 40 % test. ``pca`` and ``spectral_cut`` are chosen by single-modal
    NDCG@10, ``nnn``, which changes only cross-modal scores, by ``r_mean``; the first wins a tie. Columns: dataset, arm
    (``as given``, ``centred``, ``pca``, ``spectral_cut``, ``nnn``), parameters, metric (NDCG@10, R@K, ``r_mean``),
    value (percent).
    """
    if splits:
        (train, validation), test = splits, (features, dataset)
    else:
        order = np.random.default_rng(seed).permutation(len(dataset))
        drawn = np.split(order, [round(0.4 * len(order)), round(0.6 * len(order))])
        train, validation, test = (_subset(features, dataset, np.sort(rows)) for rows in drawn)
    (images, texts), width = train[0], features[0].shape[1]
    generator = torch.Generator().manual_seed(seed)
    bank = [unit_rows(x[torch.randperm(len(x), generator=generator)[:BANK]]) for x in (images, texts)]
    paired = images[torch.as_tensor(train[1].caption_image)]
    widths = sorted({min(w, width, len(images) - 1) for w in (16, 32, 64, 128, 256)})
    cuts = product((0, 1, 2, 4), sorted({0, width // 4, width // 2}))
    ks = sorted({min(k, *map(len, bank)) for k in (1, 8, 64)})
    neighbours = [{"weight": weight, "k": k} for weight, k in product((0.25, 0.5, 1.0), ks)]
    pca, cut = partial(principal_components, reference=train[0]), partial(spectral_cut, reference=(paired, texts))
    methods: dict[str, tuple[Callable[..., Features], list[dict[str, Any]]]] = {
        "as given": (lambda pair: pair, [{}]),
        "centred": (lambda pair: (centre(pair[0], images), centre(pair[1], texts)), [{}]),
        "pca": (pca, [{"width": w} for w in widths]),
        "spectral_cut": (cut, [{"leading": a, "trailing": b} for a, b in cuts if a + b < width]),
        "nnn": (lambda pair, **_: (unit_rows(pair[0]), unit_rows(pair[1])), neighbours),
    }

    def measure(arm: str, split: Split, parameters: Mapping[str, Any]) -> dict[str, float]:
        reports, matching, ks_ndcg = [], None, () if arm == "nnn" else (10,)
        for gallery, (z, w) in galleries(methods[arm][0](split[0], **parameters), split[1]):
            if arm == "nnn":
                i2t = normalise_by_neighbours(z @ w.T, bank[0] @ w.T, **parameters)
                matching = i2t, normalise_by_neighbours(w @ z.T, bank[1] @ z.T, **parameters)
            reports.append(headline_metrics((z, w), gallery, matching=matching, ks_ndcg=ks_ndcg, device=device))
        return mean_of(reports)

    frames = []
    for arm, (_, candidates) in methods.items():
        goals = ["r_mean"] if arm == "nnn" else ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10"]
        tried = candidates if len(candidates) > 1 else []
        scores = [sum(measure(arm, validation, values)[key] for key in goals) for values in tried] or [0.0]
        chosen = candidates[int(np.argmax(scores))]
        parameters = ", ".join(f"{name} {value:g}" for name, value in chosen.items())
        frames.append(tidy(measure(arm, test, chosen), dataset, arm=arm, parameters=parameters))
    return pd.concat(frames, ignore_index=True)


def _subset(features: Features, dataset: ImageTextDataset, rows: np.ndarray) -> Split:
    """A data set's pictures of these rows with their captions, and the features of both."""
    captions = np.concatenate([dataset.captions_of(row) for row in rows])
    return (features[0][rows], features[1][captions]), dataset.subset(rows)


def _of_one_width(name: str, value, reference_name: str, reference) -> Features:
    """Rows and their reference on one device; ValueError if their widths differ."""
    rows, reference = finite_rows(name, value), finite_rows(reference_name, reference)
    if rows.shape[1] != reference.shape[1]:
        shapes = f"{name} {tuple(rows.shape)} and {reference_name} {tuple(reference.shape)}"
        raise ValueError(f"{shapes} do not match: give rows of one width")
    return rows, reference.to(rows.device)


def tidy(values: Mapping[str, float], dataset: ImageTextDataset, **columns: Any) -> pd.DataFrame:
    """One row per metric: ``dataset``, the given columns (``dial``, ``arm``, ``seed``, ...), ``metric``, ``value``."""
    return pd.DataFrame([{"dataset": dataset.name, **columns, "metric": key, "value": v} for key, v in values.items()])


def mix_ratio_curve(
    features: Features, dataset: ImageTextDataset, *, shares=STEPS, k: int = 10, seed: int = 0, **columns: Any
) -> pd.DataFrame:
    """Quality and composition of the top ``k`` in a mixed corpus of pictures and captions, at 0 to 100 % captions.

    Each item is in the corpus once, as its picture or its first caption, nested over ``shares``. Queries are all
    pictures and second captions; the query itself is left out of its list. Headline relevance, mean over galleries.
    Columns: dataset, ``columns``, ``captions`` (percent of the corpus), metric, value (percent). Metrics are prefixed
    with ``image_query/`` or ``text_query/``: ``NDCG@k``, ``NDCG@k/above_floor``, ``captions_in_top`` (share of captions
    in the top k) and ``captions_in_top_ideal`` (likewise in an ideal ranking).
    """
    if any(not 0 <= share <= 1 for share in shares):
        raise ValueError(f"shares of captions must be 0 to 1, got {list(shares)}")
    graded, frames = [(gallery, pair, _item_relevance(gallery)) for gallery, pair in galleries(features, dataset)], []
    for share in shares:
        reports = []
        for gallery, (images, texts), (image_relevance, text_relevance) in graded:
            first, second = first_captions(gallery), _second_captions(gallery)
            order = np.random.default_rng(seed).permutation(len(gallery))
            as_text = np.argsort(order) < round(share * len(gallery))
            marked = torch.as_tensor(as_text, device=images.device)
            corpus = torch.where(marked[:, None], texts[first], images)
            by_text = texts[second], text_relevance, as_text & (second == first)
            sides = {"image_query": (images, image_relevance, ~as_text), "text_query": by_text}
            values: dict[str, float] = {}
            for name, (queries, (to_images, to_texts), in_corpus) in sides.items():
                exclude = torch.diag(torch.as_tensor(in_corpus, device=images.device))
                relevance = torch.as_tensor(np.where(as_text, to_texts, to_images)).to(images).masked_fill(exclude, 0)
                scores = queries @ corpus.T
                ndcg, floor = ndcg_and_floor(scores, relevance, (k,), exclude)[k]
                values |= {
                    f"{name}/NDCG@{k}": float(np.mean(ndcg)),
                    f"{name}/NDCG@{k}/above_floor": float(np.nanmean(above_floor(ndcg, floor))),
                    f"{name}/captions_in_top": _share_in_top(scores.masked_fill(exclude, -torch.inf), marked, k),
                    f"{name}/captions_in_top_ideal": _share_in_top(relevance.masked_fill(exclude, -1), marked, k),
                }
            reports.append(values)
        frames.append(tidy(mean_of(reports), dataset, **columns, captions=100 * share))
    return pd.concat(frames, ignore_index=True)


def document_recall(features: Features, dataset: ImageTextDataset, **columns: Any) -> pd.DataFrame:
    """Recall in percent of documents (a picture, its first caption or both, mean feature) by the other captions.

    Columns: dataset, columns, ``documents`` (``picture``, ``caption``, ``picture + caption``), metric (``R@K``), value.
    """
    recalls: dict[str, list[dict[str, float]]] = {}
    for gallery, (images, texts) in galleries(features, dataset):
        first = first_captions(gallery)
        queries = np.setdiff1d(np.arange(len(texts)), first)
        if not len(queries):
            raise ValueError(f"{dataset.name}: no picture has a second caption to search with")
        kinds = {"picture": images, "caption": texts[first], "picture + caption": unit_rows(images + texts[first])}
        for name, documents in kinds.items():
            recall = recall_at_k(texts[queries] @ documents.T, gallery.caption_image[queries])
            recalls.setdefault(name, []).append({f"R@{k}": value for k, value in recall.items()})
    frames = [tidy(mean_of(reports), dataset, **columns, documents=name) for name, reports in recalls.items()]
    return pd.concat(frames, ignore_index=True)


def perturb(dataset: ImageTextDataset, kind: str, strength: float, seed: int = 0) -> ImageTextDataset:
    """Perturb queries with strength 0 (none) to 1 and keep the truth; nested: what changes at 0.2 also does at 0.4.

    ``words_dropped``, ``words_shuffled``, ``synonyms`` (scenes only): each word is dropped, moved or replaced by a
    synonym with probability ``strength``; other kinds are faults of pictures, ``rvlr_lib.data.dial.FAULTS``.
    """
    kinds = ("words_dropped", "words_shuffled", "synonyms", *FAULTS)
    if kind not in kinds or not 0 <= strength <= 1:
        raise ValueError(f"perturbation {kind!r} of strength {strength}: give 0 to 1 of one of {', '.join(kinds)}")
    if kind == "synonyms" and dataset.scene is None:
        raise ValueError(f"synonyms are known only for scenes, not for {dataset.name}")
    if kind in FAULTS:
        spec = ImbalanceSpec(image_visibility=1 - strength, image_fault=kind, splits=(dataset.split,), seed=seed)
        return apply_imbalance(dataset, spec)
    if kind == "words_dropped":
        return replace(dataset, captions=drop_words(dataset.captions, 1 - strength, seed))
    texts = [_perturbed(text, kind, strength, [seed, row]) for row, text in enumerate(dataset.captions)]
    return replace(dataset, captions=texts)


def _perturbed(text: str, kind: str, strength: float, seed: Sequence[int]) -> str:
    """A caption with some words shuffled or replaced by synonyms."""
    words = np.array(text.split(), dtype=object)
    chances, draws = np.random.default_rng(seed).random((2, len(words)))
    places = np.flatnonzero(chances < strength)
    if kind == "words_shuffled":
        words[places] = words[places[np.argsort(draws[places])]]
        return " ".join(words)
    for place in places:
        if synonyms := SYNONYMS.get(words[place]):
            words[place] = synonyms[int(draws[place] * len(synonyms))]
            if place and words[place - 1] in ("a", "an"):
                words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    return " ".join(words)


def moved_items(
    spaces: Mapping[str, Features], dataset: ImageTextDataset, *, k: int = 10, most: int = 20
) -> pd.DataFrame:
    """The ``most`` pictures whose ``k`` neighbours in their gallery changed most between spaces, ranked.

    Columns ``rank``, ``id``, ``row``, ``caption``, ``overlap`` (percent shared, mean over pairs of spaces), ``overlap
    <a> <b>``, ``neighbours <space>`` (nearest first).
    """
    frames, row = [], {name: row for row, name in enumerate(dataset.image_ids)}
    for number, gallery in enumerate(dataset.gallery_sets):
        ids, first = np.array(gallery.image_ids), first_captions(gallery)
        frame = pd.DataFrame({"id": ids, "row": [row[i] for i in ids], "caption": [gallery.captions[c] for c in first]})
        images = {name: galleries(pair, dataset)[number][1][0] for name, pair in spaces.items()}
        pairs = {f"overlap {a} {b}": (images[a], images[b]) for a, b in combinations(images, 2)}
        overlaps = {name: knn_overlap(*pair, k=k, per_query=True) for name, pair in pairs.items()}
        frame = frame.assign(overlap=np.mean(list(overlaps.values()), axis=0), **overlaps)
        for name, x in images.items():
            nearest = cosine_matrix(x).fill_diagonal_(-torch.inf).topk(k).indices
            frame[f"neighbours {name}"] = ids[nearest.cpu().numpy()].tolist()
        frames.append(frame)
    ranked = pd.concat(frames).sort_values("overlap", kind="stable").head(most).reset_index(drop=True)
    ranked.insert(0, "rank", ranked.index + 1)
    return ranked


def _item_relevance(gallery: ImageTextDataset) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Headline relevance ``[I, I]`` of picture queries and of caption queries, each to pictures and to captions."""
    headline = next(iter(relevances(gallery).values()))
    first, second, graded = first_captions(gallery), _second_captions(gallery), headline.caption_to_image
    images, texts = headline.image_to_image, headline.text_to_text
    if images is None:
        images = np.stack([graded[gallery.captions_of(row)].mean(axis=0) for row in range(len(gallery))])
        images = (images + images.T) / 2
    texts = graded[first].T if texts is None else texts[np.ix_(second, first)]
    return (images, graded[first].T), (graded[second], texts)


def _second_captions(gallery: ImageTextDataset) -> np.ndarray:
    """Row of each picture's second caption, or of its only one."""
    return np.array([gallery.captions_of(row)[:2][-1] for row in range(len(gallery))])


def _share_in_top(scores: Tensor, marked: Tensor, k: int) -> float:
    """Percent of marked items in the top ``k``, mean over queries; items tied for the last place share it."""
    k = min(k, scores.shape[1] - 1)
    return float(100 * neighbour_share(scores, k)[:, marked].sum(dim=1).mean() / k)
