"""The whole retrieval evaluation: across modalities, within one, and in mixed lists."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics import ranking
from rvlr_lib.metrics.ranking import ndcg_and_floor, recall_at_k, whole_number
from rvlr_lib.similarity import as_tensor, unit_rows

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
        ks_recall, ks_ndcg: cut-offs of R@K and NDCG@K.
        chunk_size: query rows scored at once; changes memory, not results. Default: about 1.5 million scores.
        per_query: float64 arrays, NaN where undefined, instead of means over the defined queries. ``r_mean`` is then
            each image's share: half its ``i2t`` and half its captions' ``t2i``, scaled by I/C.
    """
    _switch("protocol", protocol, "corrected", "official")
    _switch("mixed_t2it", mixed_t2it, "direct", "transposed")
    _switch("mixed_scores", mixed_scores, "cosine", "matching")
    official, ks_recall = protocol == "official", ranking.check_ks(ks_recall)
    transposed, matching = official or mixed_t2it == "transposed", official or mixed_scores == "matching"
    world = _world(image_features, text_features, caption_image, relevance, official, transposed)
    images, captions, device = len(world.z), len(world.w), world.z.device
    if transposed and not world.captioned.all():
        raise ValueError("the official protocol and a transposed t2it need a caption for every image")
    known = [("image_relevance", image_relevance, images), ("text_relevance", text_relevance, captions)]
    graded = [None if x is None else ranking.check_relevance(name, x, (n, n), device) for name, x, n in known]
    ways = [("scores_i2t", scores_i2t, (images, captions)), ("scores_t2i", scores_t2i, (captions, images))]
    i2t, t2i = (
        None if x is None else ranking.check_scores(as_tensor(name, x, device), name, shape) for name, x, shape in ways
    )
    if not official:
        world = world._replace(images=_mean_relevance(world) if graded[0] is None else graded[0], texts=graded[1])
    if matching:
        world = world._replace(i2t=i2t, t2i=t2i)
    chunk = whole_number("chunk_size", max(1, 1_500_000 // (images + captions)) if chunk_size is None else chunk_size)

    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows in torch.arange(images, device=device).split(chunk):
        own = world.owner == rows[:, None]
        cosines = world.z[rows] @ world.w.T
        for k, hits in recall_at_k(cosines if i2t is None else i2t[rows], own, ks_recall, per_query=True).items():
            found[f"i2t/R@{k}"].append(hits)
        for name, scores, grades, exclude in _graded_lists(world, rows, own, cosines):
            for k, (value, floor) in ndcg_and_floor(scores, grades, ks_ndcg, exclude, official=official).items():
                value[~world.captioned[rows].cpu().numpy()] = np.nan
                found[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    room = np.where(floor < 100 - 1e-9, 100 - floor, np.nan)
                    found[f"{name}/NDCG@{k}/above_floor"].append(100 * (value - floor) / room)
    for rows in torch.arange(captions, device=device).split(chunk):
        scores = world.w[rows] @ world.z.T if t2i is None else t2i[rows]
        for k, hits in recall_at_k(scores, world.owner[rows], ks_recall, per_query=True).items():
            found[f"t2i/R@{k}"].append(hits)

    result = {key: np.concatenate(parts) for key, parts in found.items()}
    for direction in ("i2t", "t2i"):
        result[f"{direction}/R@mean"] = np.mean([result[f"{direction}/R@{k}"] for k in ks_recall], axis=0)
    from_captions = np.bincount(world.owner.cpu().numpy(), result["t2i/R@mean"], images) * images / captions
    result["r_mean"] = (result["i2t/R@mean"] + from_captions) / 2
    return result if per_query else ranking.average(result)


def _switch(name: str, chosen: str, *valid: str) -> None:
    if chosen not in valid:
        raise ValueError(f"unknown {name} {chosen!r}; valid: {', '.join(valid)}")


class _World(NamedTuple):
    """The inputs as checked tensors on one device; ``z``, ``w``, ``R``, ``q`` as in the formulas."""

    z: Tensor  # [I, D] unit rows
    w: Tensor  # [C, D] unit rows
    owner: Tensor  # [C] image of each caption
    R: Tensor  # [C, I]
    q: Tensor  # [I] first caption of each image, 0 where there is none
    captioned: Tensor  # bool [I]
    official: bool
    transposed: bool
    images: Tensor | None = None  # relevance [I, I]
    texts: Tensor | None = None  # relevance [C, C]
    i2t: Tensor | None = None  # scores of mixed lists [I, C], else cosine
    t2i: Tensor | None = None


def _world(image_features, text_features, caption_image, relevance, official: bool, transposed: bool) -> _World:
    z = as_tensor("image_features", image_features)
    w = as_tensor("text_features", text_features, z.device)
    if z.ndim != 2 or w.ndim != 2 or z.shape[1] != w.shape[1] or not z.numel() * w.numel():
        shapes = f"image_features {tuple(z.shape)} and text_features {tuple(w.shape)}"
        raise ValueError(f"{shapes} do not fit: expected [I, D] and [C, D] with I, C, D >= 1")
    dtype = torch.promote_types(torch.promote_types(z.dtype, w.dtype), torch.float32)  # half precision ties a lot
    z, w = z.to(dtype), w.to(dtype)
    if not (z.isfinite().all() and w.isfinite().all()):
        raise ValueError("features must be finite")
    if relevance is None:
        raise ValueError("relevance is needed")
    owner = ranking.row_numbers("caption_image", caption_image, len(w), len(z), z.device)
    first = torch.full((len(z),), len(w), device=z.device)
    first.scatter_reduce_(0, owner, torch.arange(len(w), device=z.device), "amin")
    relevance = ranking.check_relevance("relevance", relevance, (len(w), len(z)), z.device)
    q, captioned = first % len(w), first < len(w)
    return _World(unit_rows(z), unit_rows(w), owner, relevance, q, captioned, official, transposed)


def _mean_relevance(world: _World) -> Tensor:
    """``[I, I]``: relevance of image ``j`` averaged over the captions of image ``i``, both ways."""
    counts = torch.bincount(world.owner, minlength=len(world.z)).clamp_min(1)
    mean = world.R.new_zeros(len(world.z), len(world.z)).index_add_(0, world.owner, world.R) / counts[:, None]
    mean = torch.where(world.captioned[:, None], mean, mean.T)  # no captions: only the other way is known
    return (mean + mean.T) / 2


def _graded_lists(
    world: _World, rows: Tensor, own: Tensor, cosines: Tensor
) -> Iterator[tuple[str, Tensor, Tensor, Tensor | None]]:
    """Name, scores ``[q, G]``, relevance ``[q, G]`` and what leaves the list, for the query images ``rows [q]``.

    ``own [q, C]``: their captions; ``cosines [q, C]``: with all captions.
    """
    z, w, R, q = world.z, world.w, world.R, world.q[rows]
    to_captions = R[:, rows].T.contiguous()
    self_image, self_text = (torch.arange(len(x), device=z.device) == i[:, None] for x, i in ((z, rows), (w, q)))
    images = z[rows] @ z.T, R[q] if world.images is None else world.images[rows], self_image
    texts = w[q] @ w.T, to_captions if world.texts is None else world.texts[q], self_text
    for name, (scores, grades, itself) in (("i2i", images), ("t2t", texts)):
        if world.official:
            yield name, scores.masked_fill(itself, 0), grades.masked_fill(itself, 0), None
        else:
            yield name, scores, grades, itself
    if not world.official:
        yield "t2t_no_siblings", texts[0], texts[1], own
    cell = (world.q, rows[:, None]) if world.transposed else (q,)
    dots = z[rows] @ w[world.q].T if world.transposed else w[q] @ z.T
    across = {
        "i2it": (images, cosines if world.i2t is None else world.i2t[rows], to_captions),
        "t2it": (texts, dots if world.t2i is None else world.t2i[cell], R[cell]),
    }
    for name, ((scores, grades, itself), others, other_grades) in across.items():
        kept = None if world.official else torch.cat([itself, torch.zeros_like(others, dtype=torch.bool)], 1)
        yield name, torch.cat([scores, others], 1), torch.cat([grades, other_grades], 1), kept


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
    if len(images) % whole_number("fold_size", fold_size):
        raise ValueError(f"fold_size {fold_size} does not divide {len(images)} images")
    if options.get("per_query"):
        raise ValueError("per_query goes with evaluate_retrieval on the images of one fold")
    owner = ranking.row_numbers("caption_image", caption_image, len(texts), len(images), images.device)
    whole = {name: options.pop(name, None) for name in SIDES} | {"relevance": relevance}
    whole = {name: as_tensor(name, x, images.device) for name, x in whole.items() if x is not None}
    for name, x in whole.items():
        shape = tuple({"i": len(images), "c": len(texts)}[side] for side in SIDES[name])
        if tuple(x.shape) != shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, expected {shape}")
    reports = []
    for fold in torch.arange(len(images), device=images.device).split(int(fold_size)):
        rows = {"i": fold, "c": ((owner >= fold[0]) & (owner <= fold[-1])).nonzero()[:, 0]}
        cut: dict[str, Any] = {"relevance": None}  # which is refused
        cut |= {name: x[rows[SIDES[name][0]][:, None], rows[SIDES[name][1]]] for name, x in whole.items()}
        z, w, own = images[fold], texts[rows["c"]], owner[rows["c"]] - fold[0]
        reports.append(evaluate_retrieval(z, w, own, **cut, **options))
    return {key: float(np.mean([report[key] for report in reports])) for key in reports[0]}
