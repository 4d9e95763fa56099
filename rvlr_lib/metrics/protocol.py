"""The complete retrieval evaluation: across modalities, within one, and in mixed lists."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics import ranking
from rvlr_lib.metrics.ranking import ndcg_and_floor, paired_rows, recall_at_k, whole_numbers
from rvlr_lib.similarity import as_tensor, row_numbers

# Rows and columns of each matrix: images (i) or captions (c)
SIDES = {"relevance": "ci", "scores_i2t": "ic", "scores_t2i": "ci", "image_relevance": "ii", "text_relevance": "cc"}


@torch.no_grad()
def evaluate_retrieval(
    image_features,
    text_features,
    caption_image,
    relevance,
    *,
    scores_i2t=None,
    scores_t2i=None,
    image_relevance=None,
    text_relevance=None,
    protocol: str = "corrected",
    mixed_t2it: str = "direct",
    mixed_scores: str = "cosine",
    ks_recall=(1, 5, 10),
    ks_ndcg=(10, 20, 50),
    chunk_size: int | None = None,
    per_query: bool = False,
) -> dict[str, Any]:
    """Evaluate a common space of ``I`` images and ``C`` captions; returns percentages by key.

    Keys: ``i2t/R@1`` …, ``i2t/R@mean``, ``t2i/…``, ``r_mean``, ``i2i/NDCG@10`` …, ``t2t/…``, ``i2it/…``, ``t2it/…``.
    Every list has one query per image, the image or its first caption ``q(i)``; only ``t2i`` uses every caption.
    An image without captions is a miss in ``i2t`` and undefined (NaN) in the graded lists. ValueError for mismatched
    shapes, non-finite features, NaN scores, negative or non-finite relevance, unknown image rows or switches.

    Args:
        image_features, text_features: ``[I, D]``, ``[C, D]`` tensors, arrays or lists; normalised to unit length here.
        caption_image: ``[C]`` image row of each caption, in any order, any number per image.
        relevance: ``[C, I]`` relevance of image ``i`` to caption ``c``, finite, non-negative; bool counts as 0 and 1.
        scores_i2t, scores_t2i: matching scores ``[I, C]``, ``[C, I]`` that replace cosines in the recalls (under the
            official protocol also in the mixed lists).
        image_relevance: known ``[I, I]`` relevance, corrected protocol only; default: mean of ``relevance`` over an
            image's captions, symmetrised.
        text_relevance: known ``[C, C]`` relevance, likewise; default: relevance of each caption to the query's image.
        protocol: ``"corrected"`` removes the query itself from every graded list, uses cosines in mixed lists and adds
            ``t2t_no_siblings`` (all captions of the query's image removed) and ``…/above_floor``, the mean of
            ``100 (x − floor) / (100 − floor)`` over queries whose floor is below 100. ``"official"`` reproduces the
            official numbers (FIDELITY.md, rows 11, 12, 14 to 17): the query's own score and relevance are set to 0
            (i2i, t2t) or kept (mixed), matching scores are ranked together with cosines, ``t2it`` is transposed.
        mixed_t2it: ``"transposed"`` applies row 11 alone to the corrected protocol: in the list of caption ``q(i)``,
            image ``j`` gets the score and relevance of image ``i`` and caption ``q(j)``.
        mixed_scores: ``"matching"`` applies row 12 alone: mixed lists rank matching scores together with cosines.
        ks_recall, ks_ndcg: cut-offs of R@K and NDCG@K; an empty ``ks_ndcg`` gives recall alone, much faster.
        chunk_size: query rows scored at once, at least 32; affects memory, not results. Default: 1.5 million scores.
        per_query: return float64 arrays, NaN where undefined, instead of means over the defined queries. ``r_mean`` is
            then each image's share: half its ``i2t`` plus half its captions' ``t2i``, scaled by I/C.
    """
    for name, choice, valid in (
        ("protocol", protocol, ("corrected", "official")),
        ("mixed_t2it", mixed_t2it, ("direct", "transposed")),
        ("mixed_scores", mixed_scores, ("cosine", "matching")),
    ):
        if choice not in valid:
            raise ValueError(f"unknown {name} {choice!r}; valid: {', '.join(valid)}")
    official, ks_recall = protocol == "official", whole_numbers("cut-offs ks_recall", ks_recall)
    ks_ndcg = whole_numbers("cut-offs ks_ndcg", ks_ndcg) if np.size(ks_ndcg) else ()
    z, w, owner = paired_rows(image_features, text_features, caption_image)
    images, captions, device = len(z), len(w), z.device
    to_images, to_captions = _cosines(z), _cosines(w)
    chunk_size = max(1, 1_500_000 // (images + captions)) if chunk_size is None else chunk_size
    (chunk,) = whole_numbers("chunk_size", chunk_size)
    matrices = relevance, scores_i2t, scores_t2i, image_relevance, text_relevance
    R, i2t, t2i, between_images, between_captions = _matrices(matrices, images, captions, device)
    every_image, every_caption = torch.arange(images, device=device), torch.arange(captions, device=device)
    first = torch.full((images,), captions, device=device).scatter_reduce_(0, owner, every_caption, "amin")
    captioned, q = first < captions, first % captions  # without captions q is arbitrary, the values NaN
    transposed, matching = official or mixed_t2it == "transposed", official or mixed_scores == "matching"
    if transposed and not captioned.all():
        raise ValueError("the official protocol and a transposed t2it need a caption for every image")
    if official:
        between_images = between_captions = None
    elif between_images is None:
        between_images = _mean_relevance(R, owner, captioned)

    values: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows in _chunks(every_image, chunk):
        positives, queries = owner == rows[:, None], q[rows]
        self_image, self_text = every_image == rows[:, None], every_caption == queries[:, None]
        cosines, relevances = to_captions(z[rows]), R[:, rows].T.contiguous()
        for k, hits in recall_at_k(cosines if i2t is None else i2t[rows], positives, ks_recall, per_query=True).items():
            values[f"i2t/R@{k}"].append(hits)
        if not ks_ndcg:
            continue

        # Of each list: scores, relevance and, for the corrected protocol, the candidates to remove
        i2i = to_images(z[rows]), R[queries] if between_images is None else between_images[rows], self_image
        t2t = to_captions(w[queries]), relevances if between_captions is None else between_captions[queries], self_text
        index = (q, rows[:, None]) if transposed else (queries,)  # transposed: entry (q(j), i) for image j
        t2i_cosines = z[rows] @ w[q].T if transposed else to_images(w[queries])
        texts = i2t[rows] if matching and i2t is not None else cosines, relevances, torch.zeros_like(positives)
        pictures = t2i[index] if matching and t2i is not None else t2i_cosines, R[index], torch.zeros_like(self_image)
        lists: dict[str, tuple[Tensor, ...]] = {"i2i": i2i, "t2t": t2t}
        if not official:
            lists["t2t_no_siblings"] = (*t2t[:2], positives)
        for name, within, across in (("i2it", i2i, texts), ("t2it", t2t, pictures)):
            lists[name] = tuple(torch.cat(pair, dim=1) for pair in zip(within, across, strict=True))
        for name, (scores, gains, exclude) in lists.items():
            if official and name in ("i2i", "t2t"):
                scores, gains = scores.masked_fill(exclude, 0), gains.masked_fill(exclude, 0)
            ndcgs = ndcg_and_floor(scores, gains, ks_ndcg, None if official else exclude, official=official)
            for k, (value, floor) in ndcgs.items():
                value[~captioned[rows].cpu().numpy()] = np.nan
                values[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    values[f"{name}/NDCG@{k}/above_floor"].append(ranking.above_floor(value, floor))
    for rows in _chunks(every_caption, chunk):
        scores = to_images(w[rows]) if t2i is None else t2i[rows]
        for k, hits in recall_at_k(scores, owner[rows], ks_recall, per_query=True).items():
            values[f"t2i/R@{k}"].append(hits)

    result = {key: np.concatenate(chunks) for key, chunks in values.items()}
    for direction in ("i2t", "t2i"):
        result[f"{direction}/R@mean"] = np.mean([result[f"{direction}/R@{k}"] for k in ks_recall], axis=0)
    caption_shares = np.bincount(owner.cpu().numpy(), result["t2i/R@mean"], images) * images / captions
    result["r_mean"] = (result["i2t/R@mean"] + caption_shares) / 2
    return result if per_query else ranking.average(result)


def _cosines(candidates: Tensor) -> Callable[[Tensor], Tensor]:
    """From unit rows ``[n, D]`` to cosines with the candidates; equal candidates tie, however products are rounded."""
    distinct, number = candidates.unique(dim=0, return_inverse=True)
    if len(distinct) == len(candidates):
        return lambda rows: rows @ candidates.T
    return lambda rows: (rows @ distinct.T)[:, number]


def _chunks(rows: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Rows in chunks of about ``chunk``, at least 32: small products round differently, which changes near-ties."""
    return rows.tensor_split(min(-(-len(rows) // chunk), max(1, len(rows) // 32)))


def _matrices(matrices: Iterable[Any], images: int, captions: int, device: torch.device) -> list[Any]:
    """The matrices of :data:`SIDES`, checked; None stays None except for ``relevance``, which is required."""
    checked, size = [], {"i": images, "c": captions}
    for (name, sides), value in zip(SIDES.items(), matrices, strict=True):
        check = ranking.check_scores if name.startswith("scores") else ranking.check_relevance
        present = value is not None or name == "relevance"
        checked.append(check(name, value, tuple(size[side] for side in sides), device) if present else None)
    return checked


def _mean_relevance(R: Tensor, owner: Tensor, captioned: Tensor) -> Tensor:
    """``[I, I]``: relevance of image ``j`` averaged over the captions of image ``i``, symmetrised."""
    images = len(captioned)
    mean = R.new_zeros(images, images, dtype=torch.float64)  # in which equal means stay equal
    for rows in torch.arange(len(R), device=R.device).split(1000):
        mean.index_add_(0, owner[rows], R[rows].double())
    mean /= torch.bincount(owner, minlength=images).clamp_min(1)[:, None]
    mean = torch.where(captioned[:, None], mean, mean.T)  # without captions only the other direction is known
    return (mean + mean.T) / 2


def evaluate_folds(
    image_features, text_features, caption_image, relevance, *, fold_size: int = 1000, **options: Any
) -> dict[str, float]:
    """Mean of :func:`evaluate_retrieval` over disjoint folds of ``fold_size`` consecutive images and their captions.

    COCO 1K is this with 1,000: five folds of the 5,000 test images (the official code uses only the first 1,000,
    FIDELITY.md, row 19). ``options`` are those of :func:`evaluate_retrieval` except ``per_query``, with matrices of the
    complete gallery; scores limited to a shortlist of ``top_k`` per query leave fewer than ``top_k`` in a fold.
    ValueError as there, and if ``fold_size`` does not divide the number of images.
    """
    images, texts = as_tensor("image_features", image_features), as_tensor("text_features", text_features)
    (size,) = whole_numbers("fold_size", fold_size)
    if len(images) % size:
        raise ValueError(f"fold_size {size} does not divide {len(images)} images")
    if options.get("per_query"):
        raise ValueError("per_query is not available here: call evaluate_retrieval on the images of one fold")
    owner = row_numbers("caption_image", caption_image, len(texts), len(images), images.device)
    matrices = [relevance, *(options.pop(name, None) for name in list(SIDES)[1:])]
    matrices = _matrices(matrices, len(images), len(texts), images.device)
    reports = []
    for fold in torch.arange(len(images), device=images.device).split(size):
        rows = {"i": fold, "c": ((owner >= fold[0]) & (owner <= fold[-1])).nonzero()[:, 0]}
        fold_matrices: dict[str, Any] = {}
        for (name, sides), matrix in zip(SIDES.items(), matrices, strict=True):
            fold_matrices[name] = None if matrix is None else matrix[rows[sides[0]][:, None], rows[sides[1]]]
        fold_owner = owner[rows["c"]] - fold[0]
        reports.append(evaluate_retrieval(images[fold], texts[rows["c"]], fold_owner, **fold_matrices, **options))
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
