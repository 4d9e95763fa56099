"""The whole retrieval evaluation: across modalities, within one, and in mixed lists."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics.ranking import (
    average,
    check_ks,
    check_relevance,
    check_scores,
    ndcg_and_floor,
    recall_at_k,
    row_numbers,
    whole_number,
)
from rvlr_lib.similarity import as_tensor, unit_rows


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
    """Evaluate a common space on ``I`` images and ``C`` captions.

    Every list asks once per image: with the image, or with its first caption ``q(i)``; only ``t2i`` asks with every
    caption. An image without captions is a miss in ``i2t`` and no query (NaN) of the graded lists.

    Args:
        image_features: ``[I, D]``, unit-normalised inside; tensors, arrays or lists, here and below.
        text_features: ``[C, D]``.
        caption_image: ``[C]`` row of the image of each caption, in any order, any number per image.
        relevance: ``[C, I]`` of image ``i`` to caption ``c``, finite, not negative; bool counts as 0 and 1.
        scores_i2t: ``[I, C]`` matching scores for ``i2t`` (official protocol: also in the mixed lists); default cosine.
        scores_t2i: ``[C, I]`` likewise.
        image_relevance: ``[I, I]`` where it is known; default the mean of ``relevance`` over an image's captions, made
            symmetric. Corrected protocol only.
        text_relevance: ``[C, C]`` where it is known; default the relevance of a caption to the query's image.
            Corrected protocol only.
        protocol: ``"corrected"`` removes the query itself from every graded list, uses cosines in mixed lists and adds
            ``t2t_no_siblings`` (all captions of the query's image removed) and chance-corrected values.
            ``"official"`` reproduces the official numbers with rows 11, 12 and 14 to 17 of FIDELITY.md: the query's own
            score and relevance zeroed (i2i, t2t) or kept (mixed), matching scores beside cosines, ``t2it`` transposed.
        mixed_t2it: ``"transposed"`` gives the corrected protocol row 11 alone: image ``j`` in the list of caption
            ``q(i)`` has score and relevance of image ``i`` and caption ``q(j)``.
        mixed_scores: ``"matching"`` gives it row 12 alone: matching scores, where given, beside cosines in mixed lists.
        ks_recall: cut-offs of R@K.
        ks_ndcg: cut-offs of NDCG@K.
        chunk_size: query rows scored at once; changes memory, not results. Default: about 1.5 million scores.
        per_query: float64 arrays, one value per query, NaN where undefined, instead of means over the defined queries.
            ``r_mean`` is then each image's share: half its ``i2t`` and half its captions' ``t2i``, scaled by I/C.

    Returns:
        Percent by key: ``i2t/R@1`` …, ``i2t/R@mean``, ``t2i/…``, ``r_mean``, ``i2i/NDCG@10`` …, ``t2t/…``, ``i2it/…``,
        ``t2it/…``; corrected also ``t2t_no_siblings/…`` and, for each NDCG, ``…/above_floor``, the mean of
        ``100 (x − floor) / (100 − floor)`` over the queries whose floor is below 100.

    Raises:
        ValueError: shapes that do not fit, no image or caption, NaN or infinite features, NaN scores, relevance below 0
            or not finite, a caption of no image, an unknown protocol, a cut-off or chunk below 1.

    >>> report = evaluate_retrieval(torch.eye(3), torch.eye(3), [0, 1, 2], torch.eye(3))
    >>> report["r_mean"], report["t2it/NDCG@10"]
    (100.0, 100.0)
    """
    for name, value, valid in (
        ("protocol", protocol, ("corrected", "official")),
        ("mixed_t2it", mixed_t2it, ("direct", "transposed")),
        ("mixed_scores", mixed_scores, ("cosine", "matching")),
    ):
        if value not in valid:
            raise ValueError(f"unknown {name} {value!r}; valid: {', '.join(valid)}")
    official, ks_recall = protocol == "official", check_ks(ks_recall)
    world = _world(image_features, text_features, caption_image, relevance, scores_i2t, scores_t2i)
    images, captions, device = len(world.z), len(world.w), world.z.device
    if (official or mixed_t2it == "transposed") and not world.captioned.all():
        raise ValueError("the official protocol and a transposed t2it need a caption for every image")
    if image_relevance is not None:
        image_relevance = check_relevance("image_relevance", image_relevance, (images, images), device)
    elif not official:
        image_relevance = _mean_relevance(world)
    if text_relevance is not None:
        text_relevance = check_relevance("text_relevance", text_relevance, (captions, captions), device)
    known = None if official else (image_relevance, text_relevance)
    chunk = whole_number("chunk_size", max(1, 1_500_000 // (images + captions)) if chunk_size is None else chunk_size)

    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows in torch.arange(images, device=device).split(chunk):
        own = world.caption_image == rows[:, None]
        cosines = world.z[rows] @ world.w.T
        scores = cosines if world.scores_i2t is None else world.scores_i2t[rows]
        for k, hits in recall_at_k(scores, own, ks_recall, per_query=True).items():
            found[f"i2t/R@{k}"].append(hits)
        lists = _graded_lists(world, rows, own, cosines, known, mixed_t2it == "transposed", mixed_scores == "matching")
        for name, scores, graded, exclude in lists:
            for k, (value, floor) in ndcg_and_floor(scores, graded, ks_ndcg, exclude, official=official).items():
                value[~world.captioned[rows].cpu().numpy()] = np.nan
                found[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    room = np.where(floor < 100 - 1e-9, 100 - floor, np.nan)
                    found[f"{name}/NDCG@{k}/above_floor"].append(100 * (value - floor) / room)
    for rows in torch.arange(captions, device=device).split(chunk):
        scores = world.w[rows] @ world.z.T if world.scores_t2i is None else world.scores_t2i[rows]
        for k, hits in recall_at_k(scores, world.caption_image[rows], ks_recall, per_query=True).items():
            found[f"t2i/R@{k}"].append(hits)

    result = {key: np.concatenate(parts) for key, parts in found.items()}
    for direction in ("i2t", "t2i"):
        result[f"{direction}/R@mean"] = np.mean([result[f"{direction}/R@{k}"] for k in ks_recall], axis=0)
    from_captions = np.bincount(world.caption_image.cpu().numpy(), result["t2i/R@mean"], images) * images / captions
    result["r_mean"] = (result["i2t/R@mean"] + from_captions) / 2
    return result if per_query else average(result)


class _World(NamedTuple):
    """The inputs as checked tensors on one device; ``z``, ``w``, ``q`` as in the formulas."""

    z: Tensor  # [I, D] unit rows
    w: Tensor  # [C, D] unit rows
    caption_image: Tensor  # [C]
    relevance: Tensor  # [C, I]
    scores_i2t: Tensor | None
    scores_t2i: Tensor | None
    q: Tensor  # [I] first caption of each image, 0 where there is none
    captioned: Tensor  # bool [I]


def _world(image_features, text_features, caption_image, relevance, scores_i2t, scores_t2i) -> _World:
    z = as_tensor("image_features", image_features)
    w = as_tensor("text_features", text_features, z.device)
    if z.ndim != 2 or w.ndim != 2 or z.shape[1] != w.shape[1] or not z.numel() * w.numel():
        shapes = f"image_features {tuple(z.shape)} and text_features {tuple(w.shape)}"
        raise ValueError(f"{shapes} do not fit: expected [I, D] and [C, D] with I, C, D >= 1")
    dtype = torch.promote_types(torch.promote_types(z.dtype, w.dtype), torch.float32)  # half precision ties a lot
    z, w = z.to(dtype), w.to(dtype)
    if not (z.isfinite().all() and w.isfinite().all()):
        raise ValueError("features must be finite")
    owner = row_numbers("caption_image", caption_image, len(w), len(z), z.device)
    first = torch.full((len(z),), len(w), device=z.device)
    first.scatter_reduce_(0, owner, torch.arange(len(w), device=z.device), "amin")
    if relevance is None:
        raise ValueError("relevance is needed")
    relevance = check_relevance("relevance", relevance, (len(w), len(z)), z.device)
    given = []
    for name, scores, shape in (
        ("scores_i2t", scores_i2t, (len(z), len(w))),
        ("scores_t2i", scores_t2i, (len(w), len(z))),
    ):
        scores = None if scores is None else check_scores(as_tensor(name, scores, z.device))
        if scores is not None and scores.shape != shape:
            raise ValueError(f"{name} has shape {tuple(scores.shape)}, expected {shape}")
        given.append(scores)
    return _World(unit_rows(z), unit_rows(w), owner, relevance, *given, first % len(w), first < len(w))


def _mean_relevance(world: _World) -> Tensor:
    """``[I, I]``: relevance of image ``j`` averaged over the captions of image ``i``, both ways."""
    counts = torch.bincount(world.caption_image, minlength=len(world.z)).clamp_min(1)
    total = world.relevance.new_zeros(len(world.z), len(world.z))
    mean = total.index_add_(0, world.caption_image, world.relevance) / counts[:, None]
    mean = torch.where(world.captioned[:, None], mean, mean.T)  # no captions: only the other way is known
    return (mean + mean.T) / 2


def _graded_lists(
    world: _World,
    rows: Tensor,
    own: Tensor,
    cosines: Tensor,
    known: tuple[Tensor, Tensor | None] | None,
    transposed: bool,
    matching: bool,
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Name, scores ``[q, G]``, relevance ``[q, G]`` and what leaves the list, for the query images ``rows [q]``.

    ``own [q, C]``: their captions; ``cosines [q, C]``: with all captions; ``known``: relevance among images and among
    captions, None for the official protocol.
    """
    z, w, R, q = world.z, world.w, world.relevance, world.q[rows]
    official = known is None
    transposed, matching = transposed or official, matching or official
    image_image, text_text = z[rows] @ z.T, w[q] @ w.T
    images, to_captions = R[q] if known is None else known[0][rows], R[:, rows].T.contiguous()
    texts = to_captions if known is None or known[1] is None else known[1][q]
    self_image, self_text = (torch.arange(len(x), device=z.device) == i[:, None] for x, i in ((z, rows), (w, q)))
    for name, scores, graded, itself in (
        ("i2i", image_image, images, self_image),
        ("t2t", text_text, texts, self_text),
    ):
        if official:
            yield name, scores.masked_fill(itself, 0), graded.masked_fill(itself, 0), None
        else:
            yield name, scores, graded, itself
    if not official:
        yield "t2t_no_siblings", text_text, texts, own

    i2t, t2i = (world.scores_i2t, world.scores_t2i) if matching else (None, None)
    across = cosines if i2t is None else i2t[rows]
    kept = None if official else torch.cat([self_image, torch.zeros_like(own)], 1)
    yield "i2it", torch.cat([image_image, across], 1), torch.cat([images, to_captions], 1), kept
    if transposed:
        cell = world.q, rows[:, None]
        across, to_images = z[rows] @ w[world.q].T if t2i is None else t2i[cell], R[cell]
    else:
        across, to_images = w[q] @ z.T if t2i is None else t2i[q], R[q]
    kept = None if official else torch.cat([self_text, torch.zeros_like(self_image)], 1)
    yield "t2it", torch.cat([text_text, across], 1), torch.cat([texts, to_images], 1), kept


def evaluate_folds(
    image_features, text_features, caption_image, relevance, *, fold_size: int = 1000, **options: Any
) -> dict[str, float]:
    """Mean of :func:`evaluate_retrieval` over disjoint folds of ``fold_size`` consecutive images and their captions.

    COCO 1K is this with 1,000: five folds of the 5,000 test images (the official code takes the first 1,000 alone,
    FIDELITY.md, row 19).

    Args:
        image_features: ``[I, D]``.
        text_features: ``[C, D]``.
        caption_image: ``[C]``.
        relevance: ``[C, I]``.
        fold_size: images of a fold; must divide ``I``.
        options: of :func:`evaluate_retrieval`, matrices for the whole gallery. Matching scores may have been
            shortlisted in the whole gallery; a fold then has fewer than ``top_k`` of them to a query.

    Returns:
        Percent by key, the unweighted mean over the folds.

    Raises:
        ValueError: ``fold_size`` does not divide ``I``, ``per_query`` is asked for, or as :func:`evaluate_retrieval`.
    """
    images, texts = as_tensor("image_features", image_features), as_tensor("text_features", text_features)
    if len(images) % whole_number("fold_size", fold_size):
        raise ValueError(f"fold_size {fold_size} does not divide {len(images)} images")
    if options.get("per_query"):
        raise ValueError("per_query goes with evaluate_retrieval on the images of one fold")
    owner = row_numbers("caption_image", caption_image, len(texts), len(images), images.device)
    sides = {"relevance": "ci", "scores_i2t": "ic", "scores_t2i": "ci", "image_relevance": "ii", "text_relevance": "cc"}
    options["relevance"], whole, sizes = relevance, {}, {"i": len(images), "c": len(texts)}
    for name in sides.keys() & options.keys():
        matrix, shape = options.pop(name), tuple(sizes[side] for side in sides[name])
        if matrix is not None:
            whole[name] = as_tensor(name, matrix, images.device)
            if tuple(whole[name].shape) != shape:
                raise ValueError(f"{name} has shape {tuple(whole[name].shape)}, expected {shape}")
    reports = []
    for fold in torch.arange(len(images), device=images.device).split(int(fold_size)):
        rows = {"i": fold, "c": ((owner >= fold[0]) & (owner <= fold[-1])).nonzero()[:, 0]}
        cut: dict[str, Any] = {
            name: matrix[rows[sides[name][0]][:, None], rows[sides[name][1]]] for name, matrix in whole.items()
        }
        features = images[fold], texts[rows["c"]], owner[rows["c"]] - fold[0]
        reports.append(evaluate_retrieval(*features, **({"relevance": None} | cut), **options))
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
