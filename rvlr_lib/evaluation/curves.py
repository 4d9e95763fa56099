"""Curves of given features, without training: mixed corpora, perturbed queries, weights between two models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, ImbalanceSpec, impose
from rvlr_lib.data import scenes as grammar
from rvlr_lib.data.dial import FAULTS, drop_words
from rvlr_lib.evaluation.baselines import interpolate_weights
from rvlr_lib.evaluation.evaluate import (
    Device,
    Features,
    Relevance,
    cluster_recall,
    first_captions,
    galleries,
    relevances,
)
from rvlr_lib.metrics import knn_overlap, ndcg_and_floor, recall_at_k
from rvlr_lib.similarity import unit_rows

if TYPE_CHECKING:
    import pandas as pd

STEPS = tuple(step / 10 for step in range(11))
TEXT_PERTURBATIONS = ("words_dropped", "words_shuffled", "synonyms")
TABLES = (grammar.SHAPE_WORDS, grammar.COLOUR_WORDS, grammar.SIZE_WORDS, grammar.BACKGROUND_WORDS)
SYNONYMS = {
    word: tuple(other for other in group if other != word)
    for group in (*(words for table in TABLES for words in table), grammar.THING_WORDS, grammar.GROUND_WORDS)
    for word in group
}


def tidy(values: Mapping[str, float], dataset: ImageTextDataset | str, **columns: Any) -> "pd.DataFrame":
    """Metrics as rows: ``dataset``, columns as given (``dial``, ``arm``, ``seed``, ...), ``metric``, ``value``."""
    import pandas as pd

    name = dataset if isinstance(dataset, str) else dataset.name
    return pd.DataFrame([{"dataset": name, **columns, "metric": key, "value": v} for key, v in values.items()])


def mix_ratio_curve(
    features: Features,
    dataset: ImageTextDataset,
    *,
    shares: Sequence[float] = STEPS,
    k: int = 10,
    seed: int = 0,
    device: Device = "cpu",
    **columns: Any,
) -> "pd.DataFrame":
    """One corpus of pictures and captions, 0 to 100 % captions: quality, and what stands in the top ``k``.

    Each item is in the corpus once, as its picture or as its first caption; who is a caption at 20 % is one at 40 %.
    Queries are all pictures, and a second caption of each item (its first where it has no other). What is the query
    itself leaves the list. Relevance is the headline one. Mean over galleries.

    Returns:
        Columns dataset, ``columns``, ``captions`` (percent of the corpus), metric, value (percent). Metrics, for
        ``image_query`` and ``text_query``: ``…/NDCG@k``, ``…/NDCG@k/above_floor``, ``…/captions_in_top`` and
        ``…/captions_in_top_ideal``: the captions' share of the top k, and what it is in an ideal ranking.

    Raises:
        ValueError: a share outside 0 to 1.
    """
    import pandas as pd

    if any(not 0 <= share <= 1 for share in shares):
        raise ValueError(f"shares of captions are 0 to 1, got {list(shares)}")
    frames = []
    parts = [(gallery, pair, _squares(gallery)) for gallery, pair in galleries(features, dataset, device)]
    for share in shares:
        rows = []
        for gallery, (images, texts), graded in parts:
            first, count = first_captions(gallery), len(gallery)
            order = np.random.default_rng(seed).permutation(count)
            told = np.zeros(count, dtype=bool)
            told[order[: round(share * count)]] = True
            is_text = torch.as_tensor(told, device=images.device)
            corpus = torch.where(is_text[:, None], texts[first], images)
            asked = _second_captions(gallery)
            values: dict[str, float] = {}
            for name, queries, modality, itself in (
                ("image_query", images, 0, ~told),
                ("text_query", texts[asked], 1, told & (asked == first)),
            ):
                relevance = torch.as_tensor(np.where(told, graded[modality][1], graded[modality][0]))
                exclude = torch.diag(torch.as_tensor(itself, device=images.device))
                relevance = relevance.to(images.device, images.dtype).masked_fill(exclude, 0)
                scores = queries @ corpus.T
                ndcg, floor = ndcg_and_floor(scores, relevance, (k,), exclude)[k]
                room = np.where(floor < 100 - 1e-9, 100 - floor, np.nan)
                values |= {
                    f"{name}/NDCG@{k}": float(np.mean(ndcg)),
                    f"{name}/NDCG@{k}/above_floor": float(np.nanmean(100 * (ndcg - floor) / room)),
                    f"{name}/captions_in_top": _share_in_top(scores.masked_fill(exclude, -torch.inf), is_text, k),
                    f"{name}/captions_in_top_ideal": _share_in_top(relevance.masked_fill(exclude, -1), is_text, k),
                }
            rows.append(values)
        mean = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        frames.append(tidy(mean, dataset, **columns, captions=100 * share))
    return pd.concat(frames, ignore_index=True)


def document_recall(
    features: Features, dataset: ImageTextDataset, *, device: Device = "cpu", **columns: Any
) -> "pd.DataFrame":
    """Documents that are a picture, its first caption, or both (mean of the two features), searched by other captions.

    Returns:
        Columns dataset, columns, ``documents`` (``picture``, ``caption``, ``picture + caption``), metric (``R@K``),
        value (percent); mean over galleries.

    Raises:
        ValueError: no picture has a second caption.
    """
    import pandas as pd

    found: dict[str, list[dict[int, float]]] = {}
    for gallery, (images, texts) in galleries(features, dataset, device):
        first = first_captions(gallery)
        queries = np.setdiff1d(np.arange(len(texts)), first)
        if not len(queries):
            raise ValueError(f"{dataset.name}: no picture has a second caption to search with")
        kinds = {"picture": images, "caption": texts[first], "picture + caption": unit_rows(images + texts[first])}
        for name, documents in kinds.items():
            scores = texts[queries] @ documents.T
            found.setdefault(name, []).append(recall_at_k(scores, gallery.caption_image[queries]))
    rows = [
        tidy({f"R@{k}": float(np.mean([p[k] for p in parts])) for k in parts[0]}, dataset, **columns, documents=name)
        for name, parts in found.items()
    ]
    return pd.concat(rows, ignore_index=True)


def perturb(dataset: ImageTextDataset, kind: str, strength: float, seed: int = 0) -> ImageTextDataset:
    """Queries with a fault of a stated strength, the truth as it was; nested: what is changed at 0.2 is so at 0.4.

    Args:
        dataset: any.
        kind: ``words_dropped``: each word goes with the chance ``strength``; ``words_shuffled``: each changes places
            with that chance; ``synonyms`` (scenes): each word that has one is replaced by a synonym with that chance;
            or a fault of pictures, such as ``blur`` (``rvlr_lib.data.dial.FAULTS``).
        strength: 0 (as it is) to 1.

    Raises:
        ValueError: unknown kind, a strength outside 0 to 1, synonyms of other sets than scenes.

    >>> perturb_caption("a tiny red disc", "words_shuffled", 0.0, 0)
    'a tiny red disc'
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength} lies outside 0 to 1")
    if kind in FAULTS:
        spec = ImbalanceSpec(image_visibility=1 - strength, image_fault=kind, splits=(dataset.split,), seed=seed)
        return impose(dataset, spec)
    if kind not in TEXT_PERTURBATIONS:
        raise ValueError(f"perturbation {kind!r} is unknown; valid: {', '.join((*TEXT_PERTURBATIONS, *FAULTS))}")
    if kind == "synonyms" and dataset.scene is None:
        raise ValueError(f"synonyms are known for scenes alone, not for {dataset.name}")
    if kind == "words_dropped":
        return replace(dataset, captions=drop_words(dataset.captions, 1 - strength, seed))
    return replace(
        dataset,
        captions=[perturb_caption(text, kind, strength, [seed, row]) for row, text in enumerate(dataset.captions)],
    )


def perturb_caption(caption: str, kind: str, strength: float, seed: int | Sequence[int]) -> str:
    """One caption under ``words_shuffled`` or ``synonyms``."""
    words, generator = caption.split(), np.random.default_rng(seed)
    chosen = generator.random(len(words)) < strength
    draws = generator.random(len(words))
    if kind == "words_shuffled":
        places = np.flatnonzero(chosen)
        for place, source in zip(places, places[np.argsort(draws[places])], strict=True):
            words[place] = caption.split()[source]
        return " ".join(words)
    for place in np.flatnonzero(chosen):
        others = SYNONYMS.get(words[place], ())
        if others:
            words[place] = others[int(draws[place] * len(others))]
            if place and words[place - 1] in ("a", "an"):
                words[place - 1] = "an" if words[place][0] in "aeiou" else "a"
    return " ".join(words)


def perturbation_curve(
    encode: Callable[[ImageTextDataset], Features],
    dataset: ImageTextDataset,
    kinds: Sequence[str],
    strengths: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    *,
    seed: int = 0,
    **columns: Any,
) -> "pd.DataFrame":
    """Recall of perturbed queries in the gallery as it is, against strength.

    ``encode`` gives the features of a data set by the model to look at. Captions are queries of ``t2i``, pictures of
    ``i2t``; ``kinds`` and ``strengths`` as in :func:`perturb`.

    Returns:
        Columns dataset, ``columns``, ``perturbation``, ``strength``, metric (``t2i/R@K`` or ``i2t/R@K``), value.
    """
    import pandas as pd

    clean, frames = encode(dataset), []
    for kind in kinds:
        side = 0 if kind in FAULTS else 1
        for strength in strengths:
            pair = list(clean)
            if strength:
                pair[side] = encode(perturb(dataset, kind, strength, seed))[side]
            found = cluster_recall((pair[0], pair[1]), dataset)
            found = {key: value for key, value in found.items() if key.startswith(("i2t/", "t2i/")[side])}
            frames.append(tidy(found, dataset, **columns, perturbation=kind, strength=strength))
    return pd.concat(frames, ignore_index=True)


def interpolation_curve(
    start: Mapping[str, Tensor],
    trained: Mapping[str, Tensor],
    measure: Callable[[dict[str, Tensor]], Mapping[str, float]],
    dataset: ImageTextDataset | str,
    *,
    alphas: Sequence[float] = STEPS,
    **columns: Any,
) -> "pd.DataFrame":
    """Metrics of the models between two state dicts: columns dataset, ``columns``, ``alpha`` (0: start), metric, value.

    ``measure`` evaluates a state dict; nothing is trained.
    """
    import pandas as pd

    states = ((alpha, interpolate_weights(start, trained, alpha)) for alpha in alphas)
    return pd.concat([tidy(measure(s), dataset, **columns, alpha=alpha) for alpha, s in states], ignore_index=True)


def moved_items(
    spaces: Mapping[str, Features], dataset: ImageTextDataset, *, modality: str = "image", k: int = 10, most: int = 20
) -> "pd.DataFrame":
    """The items whose neighbours changed most between two or three spaces, in rank order.

    ``spaces`` are features by name (``start``, ``matching_longer``, ``rvlr``); neighbours are those of an item's own
    gallery; the modality is ``image``, or ``text`` (the first caption of each picture).

    Returns:
        Columns ``rank``, ``id``, ``row`` (of the picture), ``caption``, ``overlap`` (percent of neighbours in common,
        mean over the pairs of spaces; least first), ``overlap <a> <b>`` of each pair, and ``neighbours <space>``: ids,
        nearest first.

    Raises:
        ValueError: fewer than two spaces, an unknown modality, ``k`` beyond a gallery.
    """
    import pandas as pd

    if len(spaces) < 2 or modality not in ("image", "text"):
        raise ValueError(f"expected two or more spaces and image or text, got {list(spaces)} and {modality!r}")
    at, rows = ("image", "text").index(modality), []
    parts = {name: galleries(pair, dataset) for name, pair in spaces.items()}
    place = {name: row for row, name in enumerate(dataset.image_ids)}
    for number, gallery in enumerate(dataset.gallery_sets()):
        first, ids = first_captions(gallery), np.array(gallery.image_ids)
        kept = slice(None) if modality == "image" else first
        own = {name: found[number][1][at][kept] for name, found in parts.items()}
        overlap = {
            f"overlap {a} {b}": knn_overlap(own[a], own[b], k=k, per_query=True) for a, b in combinations(own, 2)
        }
        cosines = {name: (unit_rows(x) @ unit_rows(x).T).fill_diagonal_(-torch.inf) for name, x in own.items()}
        nearest = {name: ids[scores.topk(k).indices.cpu().numpy()] for name, scores in cosines.items()}
        frame = pd.DataFrame(
            {"id": ids, "row": [place[i] for i in ids], "caption": [gallery.captions[c] for c in first]}
        )
        frame["overlap"] = np.mean(list(overlap.values()), axis=0)
        frame = frame.assign(**overlap, **{f"neighbours {name}": found.tolist() for name, found in nearest.items()})
        rows.append(frame)
    ranked = pd.concat(rows).sort_values("overlap", kind="stable").head(most).reset_index(drop=True)
    ranked.insert(0, "rank", ranked.index + 1)
    return ranked


def _squares(gallery: ImageTextDataset) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Headline relevance ``[I, I]`` of picture queries and of caption queries, each to pictures and to captions."""
    known: Relevance = next(iter(relevances(gallery).values()))
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
    last = scores.topk(k, dim=1).values[:, -1:]
    nearer, tied = scores > last, scores == last
    left = k - nearer.sum(dim=1)
    share = (nearer & marked).sum(dim=1) + left.double() * (tied & marked).sum(dim=1) / tied.sum(dim=1)
    return float(100 * share.mean() / k)
