"""Re-ranking by the matching head at the size of COCO: what belongs to one picture or one caption is computed once."""

from typing import NamedTuple

import torch
from torch import Tensor

from rvlr_lib.evaluation.chunks import halve_until_it_fits, working_bytes
from rvlr_lib.models import FusionEncoder

CAPTIONS_AT_ONCE = 512
TOKENS_AT_ONCE = 4096  # through the fusion encoder on a CPU; pairs of one length are put together up to that many


class PackedTexts(NamedTuple):
    """Tokens of captions without any padding, as :meth:`FusionEncoder.begin_texts` left them."""

    tokens: Tensor  # [T, W], caption after caption
    starts: Tensor  # [n] first row of each caption, int64, CPU
    lengths: Tensor  # [n], CPU


@torch.inference_mode()
def matching_scores(
    fusion: FusionEncoder,
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_mask: Tensor,
    features: tuple[Tensor, Tensor],
    top_k: int,
    *,
    device: torch.device | str = "cpu",
    memory: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Re-rank the best ``top_k`` of every query by the matching head.

    Each fusion layer projects a picture's keys and values once, the layers before a picture see a caption once, and a
    pair in the shortlists of both directions is scored once. Pairs are put together by the length of their caption, so
    nothing is padded. The scores are those of :meth:`Student.match` up to rounding. Candidates outside the shortlist
    keep their order below it (their cosine minus 100).

    Args:
        fusion: the student's fusion encoder; moved to ``device``, in evaluation mode.
        image_tokens: ``[I, N, W_image]``, any floating dtype, also memory-mapped: read in consecutive parts.
        text_tokens: ``[C, L, W]``, with bool ``text_mask [C, L]``, True at real tokens.
        features: unit rows ``[I, D]`` and ``[C, D]``, for shortlists of ``top_k``.
        memory: bytes for keys and values of pictures, default 1 GB on a CPU, else 40 % of what is free; what takes
            more is done in parts. Captions without padding and the two results stay whole.

    Returns:
        ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` on the CPU: the positive matching logit inside the shortlist.

    Raises:
        ValueError: shapes that do not fit, a caption that begins with padding, ``top_k`` below 1.
    """
    images, captions = features
    count, device = len(captions), torch.device(device)
    shapes = f"image_tokens {tuple(image_tokens.shape)}, text_tokens {tuple(text_tokens.shape)}, text_mask "
    shapes += f"{tuple(text_mask.shape)}, features {tuple(images.shape)} and {tuple(captions.shape)}"
    if image_tokens.ndim != 3 or text_tokens.ndim != 3 or text_mask.shape != text_tokens.shape[:2]:
        raise ValueError(f"{shapes}: expected [I, N, W_image], [C, L, W], [C, L]")
    if len(images) != len(image_tokens) or len(captions) != len(text_tokens):
        raise ValueError(f"{shapes} are not of the same pictures and captions")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if not text_mask[:, 0].all():
        row = int((~text_mask[:, 0]).nonzero()[0])
        raise ValueError(f"caption {row} begins with padding, so the matching head cannot score it")
    fusion = fusion.to(device).eval()
    chosen = shortlist(images, captions, top_k, device), shortlist(captions, images, top_k, device)
    keys = torch.arange(len(images))[:, None] * count + chosen[0], chosen[1] * count + torch.arange(count)[:, None]
    pairs = torch.cat([keys[0].flatten(), keys[1].flatten()]).unique()
    logits = torch.empty(len(pairs))
    texts = _begin(fusion, text_tokens, text_mask, device)
    if memory is None:
        memory = working_bytes(device) if device.type == "cuda" else 1_000_000_000
    per_picture = 3 * 2 * len(fusion.layers.layers) * image_tokens.shape[1] * fusion.width * 4  # 3: while it is made
    at_once = working_bytes(device) // (64 * fusion.width) if device.type == "cuda" else TOKENS_AT_ONCE
    for part in torch.arange(len(images)).split(max(1, memory // per_picture)):
        tokens = image_tokens[int(part[0]) : int(part[-1]) + 1].to(device, fusion.image_in.weight.dtype)
        keys_values = fusion.project_images(tokens)
        begin, end = torch.searchsorted(pairs, torch.tensor([part[0], part[-1] + 1]) * count).tolist()
        image_rows, text_rows = pairs[begin:end] // count - part[0], pairs[begin:end] % count
        logits[begin:end] = _score_pairs(fusion, keys_values, texts, image_rows, text_rows, at_once)
    results = []
    for queries, candidates, columns, of_pairs in (
        (images, captions, chosen[0], keys[0]),
        (captions, images, chosen[1], keys[1]),
    ):
        scores = (queries @ candidates.T).sub_(100).cpu()
        found = logits[torch.searchsorted(pairs, of_pairs)]
        results.append(scores.scatter_(1, columns, found.to(scores.dtype)))
    return results[0], results[1]


@torch.no_grad()
def shortlist(queries: Tensor, candidates: Tensor, top_k: int, device: torch.device | str = "cpu") -> Tensor:
    """The ``min(top_k, G)`` candidates ``[G, D]`` of each query ``[Q, D]`` with the highest dot products, best first.

    Exact, on ``device`` in chunks that fit; int64 ``[Q, min(top_k, G)]`` on the CPU.
    """
    queries, candidates = queries.to(device), candidates.to(device)
    k = min(top_k, len(candidates))

    def search(rows: int) -> Tensor:
        return torch.cat([(part @ candidates.T).topk(k, dim=1).indices.cpu() for part in queries.split(rows)])

    return halve_until_it_fits(search, working_bytes(device) // (12 * len(candidates)), "search")


def _score_pairs(
    fusion: FusionEncoder, keys_values: Tensor, texts: PackedTexts, image_rows: Tensor, text_rows: Tensor, tokens: int
) -> Tensor:
    """Positive matching logit of pairs ``[P]``, in batches of captions of one length and so many tokens.

    ``keys_values [layers, 2, I, heads, N, W / heads]`` come from :meth:`FusionEncoder.project_images`; eight tokens of
    a picture count as one of a caption.
    """
    device, grid = texts.tokens.device, keys_values.shape[4]
    of_pairs = texts.lengths[text_rows]
    order = torch.argsort(of_pairs, stable=True)
    lengths_present, counts = of_pairs.unique(return_counts=True)

    def score(at_once: int) -> Tensor:
        logits = torch.empty(len(order))
        for length, rows in zip(lengths_present.tolist(), order.split(counts.tolist()), strict=True):
            for part in rows.split(max(1, at_once // (length + grid // 8))):
                own = (texts.starts[text_rows[part]][:, None] + torch.arange(length)).to(device)
                scored = fusion.match_projected(keys_values, image_rows[part].to(device), texts.tokens[own])
                logits[part] = scored[:, 1].float().cpu()
        return logits

    return halve_until_it_fits(score, tokens, "matching head")


def _begin(fusion: FusionEncoder, tokens: Tensor, mask: Tensor, device: torch.device) -> PackedTexts:
    """Captions through the part of the fusion encoder before a picture, in order of length, their padding dropped."""
    lengths = mask.sum(dim=1).cpu()
    packed, starts, used = [], torch.empty_like(lengths), 0
    for rows in torch.argsort(lengths, stable=True).split(CAPTIONS_AT_ONCE):
        real = mask[rows].to(device)
        width = int(real.any(dim=0).nonzero().max()) + 1
        part = tokens[rows, :width].to(device, fusion.image_in.weight.dtype)
        packed.append(fusion.begin_texts(part, real[:, :width])[real[:, :width]])
        starts[rows] = used + lengths[rows].cumsum(0) - lengths[rows]
        used += len(packed[-1])
    return PackedTexts(torch.cat(packed), starts, lengths)
