"""Curves of given features, without training: mixed corpora, perturbed queries, items that moved."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, ImbalanceSpec, impose
from rvlr_lib.data import scenes as grammar
from rvlr_lib.data.dial import FAULTS, drop_words
from rvlr_lib.evaluation.evaluate import Features, first_captions, galleries, mean_of, relevances
from rvlr_lib.metrics import above_floor, knn_overlap, ndcg_and_floor, neighbour_share, recall_at_k
from rvlr_lib.similarity import cosine_matrix, unit_rows

STEPS = tuple(step / 10 for step in range(11))
TABLES = (*grammar.SHAPE_WORDS, *grammar.COLOUR_WORDS, *grammar.SIZE_WORDS, *grammar.BACKGROUND_WORDS)
GROUPS = (*TABLES, grammar.THING_WORDS, grammar.GROUND_WORDS)  # words that mean the same
SYNONYMS = {word: [other for other in group if other != word] for group in GROUPS for word in group}


def tidy(values: Mapping[str, float], dataset: ImageTextDataset, **columns: Any) -> pd.DataFrame:
    """Metrics as rows: ``dataset``, columns as given (``dial``, ``arm``, ``seed``, ...), ``metric``, ``value``."""
    return pd.DataFrame([{"dataset": dataset.name, **columns, "metric": key, "value": v} for key, v in values.items()])


def mix_ratio_curve(
    features: Features, dataset: ImageTextDataset, *, shares=STEPS, k: int = 10, seed: int = 0, **columns: Any
) -> pd.DataFrame:
    """One corpus of pictures and captions, 0 to 100 % captions: quality, and what stands in the top ``k``.

    Each item is in the corpus once, as its picture or as its first caption, nested over ``shares``. Queries are all
    pictures and second captions; what is the query itself leaves the list. Headline relevance, mean over galleries.

    Returns:
        Columns dataset, ``columns``, ``captions`` (percent of the corpus), metric, value (percent). Metrics after
        ``image_query/`` and ``text_query/``: ``NDCG@k``, ``NDCG@k/above_floor``, ``captions_in_top`` (their share of
        the top k) and ``captions_in_top_ideal`` (in an ideal ranking).
    """
    if any(not 0 <= share <= 1 for share in shares):
        raise ValueError(f"shares of captions are 0 to 1, got {list(shares)}")
    parts, frames = [(gallery, pair, _squares(gallery)) for gallery, pair in galleries(features, dataset)], []
    for share in shares:
        rows = []
        for gallery, (images, texts), (of_images, of_texts) in parts:
            first, asked = first_captions(gallery), _second_captions(gallery)
            order = np.random.default_rng(seed).permutation(len(gallery))
            told = np.argsort(order) < round(share * len(gallery))
            is_text = torch.as_tensor(told, device=images.device)
            corpus = torch.where(is_text[:, None], texts[first], images)
            sides = {
                "image_query": (images, of_images, ~told),
                "text_query": (texts[asked], of_texts, told & (asked == first)),
            }
            values: dict[str, float] = {}
            for name, (queries, (to_images, to_texts), itself) in sides.items():
                exclude = torch.diag(torch.as_tensor(itself, device=images.device))
                relevance = torch.as_tensor(np.where(told, to_texts, to_images)).to(images).masked_fill(exclude, 0)
                scores = queries @ corpus.T
                ndcg, floor = ndcg_and_floor(scores, relevance, (k,), exclude)[k]
                values |= {
                    f"{name}/NDCG@{k}": float(np.mean(ndcg)),
                    f"{name}/NDCG@{k}/above_floor": float(np.nanmean(above_floor(ndcg, floor))),
                    f"{name}/captions_in_top": _share_in_top(scores.masked_fill(exclude, -torch.inf), is_text, k),
                    f"{name}/captions_in_top_ideal": _share_in_top(relevance.masked_fill(exclude, -1), is_text, k),
                }
            rows.append(values)
        frames.append(tidy(mean_of(rows), dataset, **columns, captions=100 * share))
    return pd.concat(frames, ignore_index=True)


def document_recall(features: Features, dataset: ImageTextDataset, **columns: Any) -> pd.DataFrame:
    """Documents that are a picture, its first caption, or both (mean of the two features), searched by other captions.

    Columns dataset, columns, ``documents`` (``picture``, ``caption``, ``picture + caption``), metric (``R@K``), value.
    """
    found: dict[str, list[dict[str, float]]] = {}
    for gallery, (images, texts) in galleries(features, dataset):
        first = first_captions(gallery)
        asked = np.setdiff1d(np.arange(len(texts)), first)
        if not len(asked):
            raise ValueError(f"{dataset.name}: no picture has a second caption to search with")
        kinds = {"picture": images, "caption": texts[first], "picture + caption": unit_rows(images + texts[first])}
        for name, documents in kinds.items():
            recall = recall_at_k(texts[asked] @ documents.T, gallery.caption_image[asked])
            found.setdefault(name, []).append({f"R@{k}": value for k, value in recall.items()})
    frames = [tidy(mean_of(rows), dataset, **columns, documents=name) for name, rows in found.items()]
    return pd.concat(frames, ignore_index=True)


def perturb(dataset: ImageTextDataset, kind: str, strength: float, seed: int = 0) -> ImageTextDataset:
    """Queries with a fault of strength 0 (none) to 1, the truth as it was; nested: what changes at 0.2 does so at 0.4.

    ``words_dropped``, ``words_shuffled``, ``synonyms`` (scenes): a word is dropped, changes places or gives way to a
    synonym with the chance ``strength``; or a fault of pictures, such as ``blur`` (``rvlr_lib.data.dial.FAULTS``).
    """
    kinds = ("words_dropped", "words_shuffled", "synonyms", *FAULTS)
    if kind not in kinds or not 0 <= strength <= 1:
        raise ValueError(f"perturbation {kind!r} of strength {strength}: give 0 to 1 of one of {', '.join(kinds)}")
    if kind == "synonyms" and dataset.scene is None:
        raise ValueError(f"synonyms are known for scenes alone, not for {dataset.name}")
    if kind in FAULTS:
        spec = ImbalanceSpec(image_visibility=1 - strength, image_fault=kind, splits=(dataset.split,), seed=seed)
        return impose(dataset, spec)
    if kind == "words_dropped":
        return replace(dataset, captions=drop_words(dataset.captions, 1 - strength, seed))
    texts = [_perturbed(text, kind, strength, [seed, row]) for row, text in enumerate(dataset.captions)]
    return replace(dataset, captions=texts)


def _perturbed(text: str, kind: str, strength: float, seed: Sequence[int]) -> str:
    """One caption with words shuffled or replaced by synonyms."""
    words = np.array(text.split(), dtype=object)
    chances, draws = np.random.default_rng(seed).random((2, len(words)))
    places = np.flatnonzero(chances < strength)
    if kind == "words_shuffled":
        words[places] = words[places[np.argsort(draws[places])]]
        return " ".join(words)
    for place in places:
        if others := SYNONYMS.get(words[place]):
            words[place] = others[int(draws[place] * len(others))]
            if place and words[place - 1] in ("a", "an"):
                words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    return " ".join(words)


def moved_items(
    spaces: Mapping[str, Features], dataset: ImageTextDataset, *, k: int = 10, most: int = 20
) -> pd.DataFrame:
    """The pictures whose ``k`` neighbours in their gallery changed most between spaces, in rank order.

    Columns ``rank``, ``id``, ``row``, ``caption``, ``overlap`` (percent in common, mean of pairs of spaces), ``overlap
    <a> <b>``, ``neighbours <space>`` (nearest first).
    """
    frames, row = [], {name: row for row, name in enumerate(dataset.image_ids)}
    for number, gallery in enumerate(dataset.gallery_sets()):
        ids, first = np.array(gallery.image_ids), first_captions(gallery)
        frame = pd.DataFrame({"id": ids, "row": [row[i] for i in ids], "caption": [gallery.captions[c] for c in first]})
        own = {name: galleries(pair, dataset)[number][1][0] for name, pair in spaces.items()}
        shared = {f"overlap {a} {b}": knn_overlap(own[a], own[b], k=k, per_query=True) for a, b in combinations(own, 2)}
        frame = frame.assign(overlap=np.mean(list(shared.values()), axis=0), **shared)
        for name, x in own.items():
            nearest = cosine_matrix(x).fill_diagonal_(-torch.inf).topk(k).indices
            frame[f"neighbours {name}"] = ids[nearest.cpu().numpy()].tolist()
        frames.append(frame)
    ranked = pd.concat(frames).sort_values("overlap", kind="stable").head(most).reset_index(drop=True)
    ranked.insert(0, "rank", ranked.index + 1)
    return ranked


def _squares(gallery: ImageTextDataset) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Headline relevance ``[I, I]`` of picture queries and of caption queries, each to pictures and to captions."""
    known = next(iter(relevances(gallery).values()))
    first, asked, graded = first_captions(gallery), _second_captions(gallery), known.caption_to_image
    images = known.image_to_image
    if images is None:
        images = np.stack([graded[gallery.captions_of(row)].mean(axis=0) for row in range(len(gallery))])
        images = (images + images.T) / 2
    texts = graded[first].T if known.text_to_text is None else known.text_to_text[np.ix_(asked, first)]
    return (images, graded[first].T), (graded[asked], texts)


def _second_captions(gallery: ImageTextDataset) -> np.ndarray:
    """The second caption of each picture, its first where it has one alone."""
    return np.array([gallery.captions_of(row)[:2][-1] for row in range(len(gallery))])


def _share_in_top(scores: Tensor, marked: Tensor, k: int) -> float:
    """Percent of marked items among the best ``k``, mean over queries; items tied at the last place share it."""
    k = min(k, scores.shape[1] - 1)
    return float(100 * neighbour_share(scores, k)[:, marked].sum(dim=1).mean() / k)
