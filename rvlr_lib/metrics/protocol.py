"""The whole retrieval evaluation: across modalities, within one, and in mixed lists."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.metrics.ranking import average, ndcg_and_floor, recall_at_k
from rvlr_lib.similarity import unit_rows

GradedList = tuple[str, Tensor, Tensor, Tensor | None]
"""Name, scores ``[q, G]``, relevance ``[q, G]`` and what leaves the list."""


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
    ks_recall: Sequence[int] = (1, 5, 10),
    ks_ndcg: Sequence[int] = (10, 20, 50),
    chunk_size: int | None = None,
    per_query: bool = False,
) -> dict[str, Any]:
    """Evaluate a common space on ``I`` images and ``C`` captions.

    Every list asks once per image: with the image, or with its first caption ``q(i)``; only ``t2i`` asks with every
    caption. An image without captions is a miss in ``i2t`` and no query (NaN) of the graded lists.

    Args:
        image_features: ``[I, D]``, unit-normalised inside; tensors or arrays, here and below.
        text_features: ``[C, D]``.
        caption_image: ``[C]`` row of the image of each caption, in any order, any number per image.
        relevance: ``[C, I]`` of image ``i`` to caption ``c``, not negative.
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
        ValueError: shapes that do not fit, no image or caption, NaN or infinite features, NaN scores, negative
            relevance, a caption of no image, an unknown protocol, a cut-off or chunk below 1.
    """
    if protocol not in ("corrected", "official"):
        raise ValueError(f"unknown protocol {protocol!r}; valid: corrected, official")
    if mixed_t2it not in ("direct", "transposed") or mixed_scores not in ("cosine", "matching"):
        raise ValueError(
            f"mixed_t2it is {mixed_t2it!r} (valid: direct, transposed), "
            f"mixed_scores is {mixed_scores!r} (valid: cosine, matching)"
        )
    official = protocol == "official"
    world = _World.build(image_features, text_features, caption_image, relevance, scores_i2t, scores_t2i)
    images, captions = len(world.z), len(world.w)
    if (official or mixed_t2it == "transposed") and not world.captioned.all():
        raise ValueError("the official protocol and a transposed t2it need a caption for every image")
    image_relevance = _matrix("image_relevance", image_relevance, (images, images), world.z)
    text_relevance = _matrix("text_relevance", text_relevance, (captions, captions), world.z)
    if image_relevance is None and not official:
        image_relevance = world.mean_relevance()
    if chunk_size is None:
        chunk_size = max(1, 1_500_000 // (images + captions))
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be 1 or more, got {chunk_size}")

    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for rows in _chunks(images, chunk_size):
        own = world.caption_image == world.numbers(rows)[:, None]
        cosines = world.z[rows] @ world.w.T
        scores = cosines if world.scores_i2t is None else world.scores_i2t[rows]
        for k, hits in recall_at_k(scores, own, ks_recall, per_query=True).items():
            found[f"i2t/R@{k}"].append(hits)
        switches = mixed_t2it == "transposed", mixed_scores == "matching"
        lists = (
            world.official(rows, scores)
            if official
            else world.corrected(rows, own, cosines, image_relevance, text_relevance, *switches)
        )
        for name, scores, graded, exclude in lists:
            for k, (value, floor) in ndcg_and_floor(scores, graded, ks_ndcg, exclude, official=official).items():
                value[~world.captioned[rows].cpu().numpy()] = np.nan
                found[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    room = np.where(floor < 100 - 1e-9, 100 - floor, np.nan)
                    found[f"{name}/NDCG@{k}/above_floor"].append(100 * (value - floor) / room)
    for rows in _chunks(captions, chunk_size):
        scores = world.w[rows] @ world.z.T if world.scores_t2i is None else world.scores_t2i[rows]
        for k, hits in recall_at_k(scores, world.caption_image[rows], ks_recall, per_query=True).items():
            found[f"t2i/R@{k}"].append(hits)

    result = {key: np.concatenate(parts) for key, parts in found.items()}
    for direction in ("i2t", "t2i"):
        result[f"{direction}/R@mean"] = np.mean([result[f"{direction}/R@{k}"] for k in ks_recall], axis=0)
    image_of = world.caption_image.cpu().numpy()
    result["r_mean"] = (
        result["i2t/R@mean"] + np.bincount(image_of, result["t2i/R@mean"], images) * images / captions
    ) / 2
    return result if per_query else average(result)


@dataclass(frozen=True, eq=False)
class _World:
    """The inputs as checked tensors on one device; ``z``, ``w``, ``q`` as in the contract's formulas."""

    z: Tensor  # [I, D] unit rows
    w: Tensor  # [C, D] unit rows
    caption_image: Tensor  # [C]
    relevance: Tensor  # [C, I]
    scores_i2t: Tensor | None
    scores_t2i: Tensor | None
    q: Tensor  # [I] first caption of each image, 0 where there is none
    captioned: Tensor  # bool [I]

    @classmethod
    def build(cls, image_features, text_features, caption_image, relevance, scores_i2t, scores_t2i) -> "_World":
        z = torch.as_tensor(image_features)
        w = torch.as_tensor(text_features, device=z.device)
        dtype = torch.promote_types(torch.promote_types(z.dtype, w.dtype), torch.float32)  # half precision ties a lot
        z, w = z.to(dtype), w.to(dtype)
        owner = torch.as_tensor(caption_image, device=z.device).long()
        shapes = f"image_features {tuple(z.shape)}, text_features {tuple(w.shape)}, caption_image {tuple(owner.shape)}"
        if z.ndim != 2 or w.ndim != 2 or z.shape[1] != w.shape[1] or owner.shape != (len(w),) or not len(z) * len(w):
            raise ValueError(f"{shapes} do not fit: expected [I, D], [C, D], [C] with I, C >= 1")
        if not (z.isfinite().all() and w.isfinite().all()):
            raise ValueError("features must be finite")
        if owner.min() < 0 or owner.max() >= len(z):
            raise ValueError(f"caption_image must hold image rows 0 to {len(z) - 1}")
        first = torch.full((len(z),), len(w), device=z.device)
        first.scatter_reduce_(0, owner, torch.arange(len(w), device=z.device), "amin")
        relevance = _matrix("relevance", relevance, (len(w), len(z)), z)
        if relevance is None:
            raise ValueError("relevance is needed")
        return cls(
            z=unit_rows(z),
            w=unit_rows(w),
            caption_image=owner,
            relevance=relevance,
            scores_i2t=_matrix("scores_i2t", scores_i2t, (len(z), len(w)), z),
            scores_t2i=_matrix("scores_t2i", scores_t2i, (len(w), len(z)), z),
            q=first % len(w),
            captioned=first < len(w),
        )

    def numbers(self, rows: slice) -> Tensor:
        """The rows of a chunk as indices."""
        return torch.arange(rows.start, rows.stop, device=self.z.device)

    def mean_relevance(self) -> Tensor:
        """``[I, I]``: relevance of image ``j`` averaged over the captions of image ``i``, both ways."""
        counts = torch.bincount(self.caption_image, minlength=len(self.z))
        total = self.relevance.new_zeros(len(self.z), len(self.z)).index_add_(0, self.caption_image, self.relevance)
        mean = total / counts.clamp_min(1)[:, None]
        mean = torch.where(self.captioned[:, None], mean, mean.T)  # no captions: only the other way is known
        return (mean + mean.T) / 2

    def corrected(
        self,
        rows: slice,
        own: Tensor,
        cosines: Tensor,
        image_relevance: Tensor,
        text_relevance: Tensor | None,
        transposed: bool,
        matching: bool,
    ) -> Iterator[GradedList]:
        """The lists of the corrected protocol for the query rows.

        ``own [q, C]``: their captions; ``cosines [q, C]``: with all captions.
        """
        z, w, R, q, numbers = self.z, self.w, self.relevance, self.q[rows], self.numbers(rows)
        self_image = _at(numbers, len(z))
        self_text = _at(q, len(w))
        to_captions = R[:, rows].T.contiguous()
        texts = to_captions if text_relevance is None else text_relevance[q]
        image_image, text_text, images = z[rows] @ z.T, w[q] @ w.T, image_relevance[rows]
        yield "i2i", image_image, images, self_image
        yield "t2t", text_text, texts, self_text
        yield "t2t_no_siblings", text_text, texts, own
        i2t = self.scores_i2t if matching else None
        cross = cosines if i2t is None else i2t[rows]
        mixed = torch.cat([image_image, cross], 1), torch.cat([images, to_captions], 1)
        yield "i2it", *mixed, torch.cat([self_image, torch.zeros_like(own)], 1)
        t2i = self.scores_t2i if matching else None
        if transposed:
            cross = z[rows] @ w[self.q].T if t2i is None else t2i[self.q, numbers[:, None]]
        else:
            cross = w[q] @ z.T if t2i is None else t2i[q]
        to_images = R[self.q, numbers[:, None]] if transposed else R[q]
        mixed = torch.cat([text_text, cross], 1), torch.cat([texts, to_images], 1)
        yield "t2it", *mixed, torch.cat([self_text, torch.zeros_like(self_image)], 1)

    def official(self, rows: slice, cross: Tensor) -> Iterator[GradedList]:
        """The lists of the official protocol for the query rows; ``cross [q, C]``: their scores of all captions."""
        z, w, R, q, numbers = self.z, self.w, self.relevance, self.q[rows], self.numbers(rows)
        to_captions = R[:, rows].T.contiguous()
        to_images, from_images = R[q], R[self.q, numbers[:, None]]
        image_image, text_text = z[rows] @ z.T, w[q] @ w.T
        yield "i2it", torch.cat([image_image, cross], 1), torch.cat([to_images, to_captions], 1), None
        cross = z[rows] @ w[self.q].T if self.scores_t2i is None else self.scores_t2i[self.q, numbers[:, None]]
        yield "t2it", torch.cat([text_text, cross], 1), torch.cat([to_captions, from_images], 1), None
        for name, scores, graded, self_index in (
            ("i2i", image_image, to_images, numbers),
            ("t2t", text_text, to_captions, q),
        ):
            is_self = _at(self_index, scores.shape[1])
            yield name, scores.masked_fill(is_self, 0), graded.masked_fill(is_self, 0), None


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(begin, min(begin + size, count)) for begin in range(0, count, size))


def _at(index: Tensor, width: int) -> Tensor:
    """Bool ``[q, width]``, True at one index a row."""
    return torch.arange(width, device=index.device) == index[:, None]


def _matrix(name: str, value, shape: tuple[int, int], like: Tensor) -> Tensor | None:
    if value is None:
        return None
    value = torch.as_tensor(value, device=like.device)
    if tuple(value.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape}")
    return value
