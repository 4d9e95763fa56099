"""The whole retrieval evaluation: across modalities, within one, and in mixed lists."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics import ranking
from rvlr_lib.metrics.ranking import ndcg_and_floor, paired_rows, recall_at_k, whole_numbers
from rvlr_lib.similarity import as_tensor, row_numbers

# Rows and columns of the matrices: images or captions
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
    """Evaluate a common space on ``I`` images and ``C`` captions: percent by key.

    Keys: ``i2t/R@1`` …, ``i2t/R@mean``, ``t2i/…``, ``r_mean``, ``i2i/NDCG@10`` …, ``t2t/…``, ``i2it/…``, ``t2it/…``.
    Every list asks once per image, with the image or its first caption ``q(i)``; only ``t2i`` asks with every caption.
    An image without captions is a miss in ``i2t`` and no query (NaN) of the graded lists. ValueError for shapes that do
    not fit, numbers that are not finite, relevance below 0, a caption of no image, an unknown switch.

    Args:
        image_features, text_features: ``[I, D]``, ``[C, D]``, unit-normalised inside; tensors, arrays or lists.
        caption_image: ``[C]`` row of the image of each caption, in any order, any number per image.
        relevance: ``[C, I]`` of image ``i`` to caption ``c``, finite, not negative; bool counts as 0 and 1.
        scores_i2t, scores_t2i: matching scores ``[I, C]``, ``[C, I]`` (official protocol: also in the mixed lists);
            default cosine.
        image_relevance: ``[I, I]`` where it is known, corrected protocol only; default the mean of ``relevance`` over
            an image's captions, made symmetric.
        text_relevance: ``[C, C]`` likewise; default the relevance of a caption to the query's image.
        protocol: ``"corrected"`` removes the query itself from every graded list, uses cosines in mixed lists and adds
            ``t2t_no_siblings`` (all captions of the query's image removed) and ``…/above_floor``, the mean of
            ``100 (x − floor) / (100 − floor)`` over the queries whose floor is below 100. ``"official"`` reproduces the
            official numbers (FIDELITY.md, rows 11, 12, 14 to 17): the query's own score and relevance zeroed (i2i, t2t)
            or kept (mixed), matching scores beside cosines, ``t2it`` transposed.
        mixed_t2it: ``"transposed"`` gives the corrected protocol row 11 alone: image ``j`` in the list of caption
            ``q(i)`` has score and relevance of image ``i`` and caption ``q(j)``.
        mixed_scores: ``"matching"`` gives it row 12 alone: matching scores, where given, beside cosines in mixed lists.
        ks_recall, ks_ndcg: cut-offs of R@K and NDCG@K; no ``ks_ndcg``: recall alone, in a fraction of the time.
        chunk_size: query rows scored at once, at least 32; changes memory, no results. Default: 1.5 million scores.
        per_query: float64 arrays, NaN where undefined, instead of means over the defined queries. ``r_mean`` is then
            each image's share: half its ``i2t`` and half its captions' ``t2i``, scaled by I/C.
    """
    for name, chosen, valid in (
        ("protocol", protocol, ("corrected", "official")),
        ("mixed_t2it", mixed_t2it, ("direct", "transposed")),
        ("mixed_scores", mixed_scores, ("cosine", "matching")),
    ):
        if chosen not in valid:
            raise ValueError(f"unknown {name} {chosen!r}; valid: {', '.join(valid)}")
    official, ks_recall = protocol == "official", whole_numbers("cut-offs ks_recall", ks_recall)
    z, w, owner = paired_rows(image_features, text_features, caption_image)
    images, captions, device = len(z), len(w), z.device
    usual = max(1, 1_500_000 // (images + captions))
    (chunk,) = whole_numbers("chunk_size", usual if chunk_size is None else chunk_size)
    matrices = relevance, scores_i2t, scores_t2i, image_relevance, text_relevance
    R, i2t, t2i, between_images, between_captions = _matrices(matrices, images, captions, device)
    every_image, every_caption = torch.arange(images, device=device), torch.arange(captions, device=device)
    first = torch.full((images,), captions, device=device).scatter_reduce_(0, owner, every_caption, "amin")
    captioned, q = first < captions, first % captions  # where an image has none, any caption: NaN below
    transposed, matching = official or mixed_t2it == "transposed", official or mixed_scores == "matching"
    if transposed and not captioned.all():
        raise ValueError("the official protocol and a transposed t2it need a caption for every image")
    if official:
        between_images = between_captions = None
    elif between_images is None:
        between_images = _mean_relevance(R, owner, captioned)

    values: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows in _parts(every_image, chunk):
        is_own, asked = owner == rows[:, None], q[rows]
        self_image, self_text = every_image == rows[:, None], every_caption == asked[:, None]
        cosines, to_captions = z[rows] @ w.T, R[:, rows].T.contiguous()
        for k, hits in recall_at_k(cosines if i2t is None else i2t[rows], is_own, ks_recall, per_query=True).items():
            values[f"i2t/R@{k}"].append(hits)
        if not np.size(ks_ndcg):
            continue

        # Scores, relevance and, in the corrected protocol, what leaves the list
        i2i = z[rows] @ z.T, R[asked] if between_images is None else between_images[rows], self_image
        t2t = w[asked] @ w.T, to_captions if between_captions is None else between_captions[asked], self_text
        cell = (q, rows[:, None]) if transposed else (asked,)  # transposed: of image j the entry (q(j), i)
        dots = z[rows] @ w[q].T if transposed else w[asked] @ z.T
        to_texts = i2t[rows] if matching and i2t is not None else cosines, to_captions, torch.zeros_like(is_own)
        to_images = t2i[cell] if matching and t2i is not None else dots, R[cell], torch.zeros_like(self_image)
        lists: dict[str, tuple[Tensor, ...]] = {"i2i": i2i, "t2t": t2t}
        if not official:
            lists["t2t_no_siblings"] = (*t2t[:2], is_own)
        for name, within, across in (("i2it", i2i, to_texts), ("t2it", t2t, to_images)):
            lists[name] = tuple(torch.cat(both, dim=1) for both in zip(within, across, strict=True))
        for name, (scores, grades, exclude) in lists.items():
            if official and name in ("i2i", "t2t"):
                scores, grades = scores.masked_fill(exclude, 0), grades.masked_fill(exclude, 0)
            listed = ndcg_and_floor(scores, grades, ks_ndcg, None if official else exclude, official=official)
            for k, (value, floor) in listed.items():
                value[~captioned[rows].cpu().numpy()] = np.nan
                values[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    values[f"{name}/NDCG@{k}/above_floor"].append(ranking.above_floor(value, floor))
    for rows in _parts(every_caption, chunk):
        scores = w[rows] @ z.T if t2i is None else t2i[rows]
        for k, hits in recall_at_k(scores, owner[rows], ks_recall, per_query=True).items():
            values[f"t2i/R@{k}"].append(hits)

    result = {key: np.concatenate(parts) for key, parts in values.items()}
    for direction in ("i2t", "t2i"):
        result[f"{direction}/R@mean"] = np.mean([result[f"{direction}/R@{k}"] for k in ks_recall], axis=0)
    from_captions = np.bincount(owner.cpu().numpy(), result["t2i/R@mean"], images) * images / captions
    result["r_mean"] = (result["i2t/R@mean"] + from_captions) / 2
    return result if per_query else ranking.average(result)


def _parts(rows: Tensor, chunk: int) -> tuple[Tensor, ...]:
    """Rows in parts of ``chunk``, yet of 32 or more: products of few round otherwise, which would break ties anew."""
    return rows.tensor_split(min(-(-len(rows) // chunk), max(1, len(rows) // 32)))


def _matrices(matrices: Iterable[Any], images: int, captions: int, device: torch.device) -> list[Any]:
    """The matrices of :data:`SIDES`, checked; None stays None but for ``relevance``, which is needed."""
    checked, size = [], {"i": images, "c": captions}
    for (name, sides), value in zip(SIDES.items(), matrices, strict=True):
        check = ranking.check_scores if name.startswith("scores") else ranking.check_relevance
        needed = value is not None or name == "relevance"
        checked.append(check(name, value, tuple(size[side] for side in sides), device) if needed else None)
    return checked


def _mean_relevance(R: Tensor, owner: Tensor, captioned: Tensor) -> Tensor:
    """``[I, I]``: relevance of image ``j`` averaged over the captions of image ``i``, both ways."""
    images = len(captioned)
    mean = R.new_zeros(images, images, dtype=torch.float64)  # equal means stay equal
    for part in torch.arange(len(R), device=R.device).split(1000):
        mean.index_add_(0, owner[part], R[part].double())
    mean /= torch.bincount(owner, minlength=images).clamp_min(1)[:, None]
    mean = torch.where(captioned[:, None], mean, mean.T)  # no captions: only the other way is known
    return (mean + mean.T) / 2


def evaluate_folds(
    image_features, text_features, caption_image, relevance, *, fold_size: int = 1000, **options: Any
) -> dict[str, float]:
    """Mean of :func:`evaluate_retrieval` over disjoint folds of ``fold_size`` consecutive images and their captions.

    COCO 1K is this with 1,000: five folds of the 5,000 test images (the official code takes the first 1,000 alone,
    FIDELITY.md, row 19). ``options`` of :func:`evaluate_retrieval` but ``per_query``, matrices for the whole gallery;
    scores shortlisted there leave a fold fewer than ``top_k`` to a query. ValueError as there, and where ``fold_size``
    does not divide the images.
    """
    images, texts = as_tensor("image_features", image_features), as_tensor("text_features", text_features)
    (size,) = whole_numbers("fold_size", fold_size)
    if len(images) % size:
        raise ValueError(f"fold_size {size} does not divide {len(images)} images")
    if options.get("per_query"):
        raise ValueError("per_query goes with evaluate_retrieval on the images of one fold")
    owner = row_numbers("caption_image", caption_image, len(texts), len(images), images.device)
    matrices = [relevance, *(options.pop(name, None) for name in list(SIDES)[1:])]
    whole = _matrices(matrices, len(images), len(texts), images.device)
    reports = []
    for fold in torch.arange(len(images), device=images.device).split(size):
        rows = {"i": fold, "c": ((owner >= fold[0]) & (owner <= fold[-1])).nonzero()[:, 0]}
        cut: dict[str, Any] = {}
        for (name, sides), matrix in zip(SIDES.items(), whole, strict=True):
            cut[name] = None if matrix is None else matrix[rows[sides[0]][:, None], rows[sides[1]]]
        fold_owner = owner[rows["c"]] - fold[0]
        reports.append(evaluate_retrieval(images[fold], texts[rows["c"]], fold_owner, **cut, **options))
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
