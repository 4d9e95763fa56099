"""Re-ranking by the matching head at the size of COCO: what belongs to one picture or one caption is computed once."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.student import Student
from rvlr_lib.models.towers import Towers, tokenize

PIXELS_AT_ONCE = 8 * 384**2  # through the tower: a Swin-B at 384 px takes 110 MB of activations for each picture
CAPTIONS_AT_ONCE = 512
TOKENS_AT_ONCE = 4096  # through the fusion encoder: pairs of one length are put together up to that many text tokens
QUERIES_AT_ONCE = 256  # rows of scores that are ranked together
BLOCK = 64  # candidates of which only the best is looked at first


class PackedTexts(NamedTuple):
    """Tokens of captions without any padding, as :meth:`FusionEncoder.begin_texts` left them."""

    tokens: Tensor  # [T, W], caption after caption
    starts: Tensor  # [n] first row of each caption, int64
    lengths: Tensor  # [n]

    @classmethod
    def pack(cls, tokens: Tensor, mask: Tensor) -> "PackedTexts":
        """Drop the padding of tokens ``[n, L, W]``, bool mask ``[n, L]``.

        Raises:
            ValueError: the first token of a caption, on which the matching head stands, is padding.
        """
        if not mask[:, 0].all():
            row = int((~mask[:, 0]).nonzero()[0])
            raise ValueError(f"caption {row} begins with padding, so the matching head cannot score it")
        lengths = mask.sum(dim=1)
        return cls(tokens[mask], lengths.cumsum(0) - lengths, lengths)


@torch.inference_mode()
def matching_scores(
    student: Student,
    towers: Towers,
    dataset: ImageTextDataset,
    features: tuple[Tensor, Tensor],
    top_k: int,
    device: torch.device,
    *,
    memory_limit: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Re-rank the best ``top_k`` of every query by the matching head.

    Every picture and caption goes through its tower once, and each fusion layer projects a picture's keys and values
    once. A pair that stands in the shortlists of both directions is scored once. Pairs are put together by the length
    of their caption, so nothing is padded. The scores are those of :meth:`Student.match` up to rounding.

    Candidates outside the shortlist keep their order below it (their cosine minus 100).

    Args:
        student: with a fusion encoder; moved to ``device``.
        towers: for their tokenizer and picture size.
        dataset: ``I`` pictures and ``C`` captions.
        features: unit rows ``[I, D]`` and ``[C, D]``, for the shortlists.
        top_k: length of a shortlist, cut to the number of candidates.
        device: to compute on.
        memory_limit: GB (10⁹ bytes) for keys and values of the pictures, and as much again for the tokens of captions.
            What takes more is done in parts: more parts of captions encode pictures again, more parts of pictures cost
            nothing. The two results take 4 bytes per picture and caption each, the activations less than 1 GB.

    Returns:
        ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` on the CPU: the positive matching logit inside the shortlist.

    Raises:
        ValueError: no fusion encoder, ``top_k`` below 1 or ``memory_limit`` not above 0.
    """
    if student.fusion is None:
        raise ValueError("this student has no fusion encoder: build it with fusion_layers >= 1")
    if top_k < 1 or memory_limit <= 0:
        raise ValueError(f"top_k must be 1 or more and memory_limit above 0, got {top_k} and {memory_limit}")
    student.to(device).eval()
    images, captions = features
    chosen = shortlist(images, captions, top_k), shortlist(captions, images, top_k)
    pairs = _unique_pairs(*chosen)
    logits = torch.empty(len(pairs))
    token_ids = tokenize(towers.tokenizer, dataset.captions)
    for caption_rows in _caption_parts(token_ids, student.fusion.width, memory_limit):
        texts = _encode_texts(student, token_ids[caption_rows], device)
        place = torch.full((len(captions),), -1)
        place[caption_rows] = torch.arange(len(caption_rows))
        for first, keys_values in _picture_parts(student, towers, dataset, device, memory_limit):
            begin, end = first * len(captions), (first + keys_values.shape[2]) * len(captions)
            rows = torch.arange(*torch.searchsorted(pairs, torch.tensor([begin, end])).tolist())
            rows = rows[place[pairs[rows] % len(captions)] >= 0]
            image_rows, text_rows = pairs[rows] // len(captions) - first, place[pairs[rows] % len(captions)]
            logits[rows] = score_pairs(student.fusion, keys_values, texts, image_rows, text_rows)
        del texts, keys_values  # before the next part takes as much again
    results = []
    for queries, candidates, columns, image_first in (
        (images, captions, chosen[0], True), (captions, images, chosen[1], False),
    ):  # fmt: skip
        scores = queries @ candidates.T
        scores -= 100
        rows = torch.arange(len(queries))[:, None]
        keys = rows * len(captions) + columns if image_first else columns * len(captions) + rows
        results.append(scores.scatter_(1, columns, logits[torch.searchsorted(pairs, keys)].to(scores.dtype)))
    return results[0], results[1]


@torch.no_grad()
def shortlist(queries: Tensor, candidates: Tensor, top_k: int) -> Tensor:
    """Exact search: the ``min(top_k, G)`` candidates of each query with the highest dot products, best first.

    Args:
        queries: ``[Q, D]``.
        candidates: ``[G, D]``.
        top_k: how many.

    Returns:
        Indices, int64 ``[Q, min(top_k, G)]``; never more than 256 queries are scored at once.
    """
    k = min(top_k, len(candidates))
    room = queries.new_empty(len(candidates) * min(QUERIES_AT_ONCE, len(queries)))  # fresh memory costs as much as topk
    found = []
    for part in queries.split(QUERIES_AT_ONCE):  # candidates in rows: the faster way round for tall matrices
        scores = room[: len(candidates) * len(part)].view(len(candidates), len(part))
        found.append(_best(torch.mm(candidates, part.T, out=scores), k))
    return torch.cat(found)


def _best(scores: Tensor, k: int) -> Tensor:
    """The k best rows of each column, best first, ``[Q, k]``; they stand in the k blocks whose best are highest."""
    blocks = len(scores) // BLOCK
    if blocks < 4 * k:
        return scores.T.topk(k, dim=1).indices
    highest = scores[: blocks * BLOCK].unflatten(0, (blocks, BLOCK)).amax(dim=1)
    chosen = highest.T.topk(k, dim=1).indices[:, :, None] * BLOCK + torch.arange(BLOCK, device=scores.device)
    rest = torch.arange(blocks * BLOCK, len(scores), device=scores.device).expand(scores.shape[1], -1)
    rows = torch.cat([chosen.flatten(1), rest], dim=1)
    own = torch.arange(scores.shape[1], device=scores.device)[:, None]
    return rows.gather(1, scores[rows, own].topk(k, dim=1).indices)


@torch.inference_mode()
def score_pairs(
    fusion: FusionEncoder, keys_values: Tensor, texts: PackedTexts, image_rows: Tensor, text_rows: Tensor
) -> Tensor:
    """Positive matching logit of pairs, in batches of captions of one length.

    Args:
        fusion: in evaluation mode.
        keys_values: ``[layers, 2, I, heads, N, W / heads]``, from :meth:`FusionEncoder.project_images`.
        texts: packed captions on the same device.
        image_rows: ``[P]`` row of the picture of each pair, int64.
        text_rows: ``[P]`` row of the caption of each pair, int64.

    Returns:
        float32 ``[P]`` on the CPU.
    """
    device = texts.tokens.device
    starts, lengths = texts.starts.cpu(), texts.lengths.cpu()
    of_pairs = lengths[text_rows]
    order = torch.argsort(of_pairs, stable=True)
    logits = torch.empty(len(order))
    lengths_present, counts = of_pairs.unique(return_counts=True)
    for length, rows in zip(lengths_present.tolist(), order.split(counts.tolist()), strict=True):
        for part in rows.split(max(1, TOKENS_AT_ONCE // length)):
            tokens = (starts[text_rows[part]][:, None] + torch.arange(length)).to(device)
            scored = fusion.match_projected(keys_values, image_rows[part].to(device), texts.tokens[tokens])
            logits[part] = scored[:, 1].float().cpu()
    return logits


def _unique_pairs(of_images: Tensor, of_captions: Tensor) -> Tensor:
    """Sorted keys ``image * C + caption`` of the pairs in the shortlists of either direction."""
    captions = len(of_captions)
    first = torch.arange(len(of_images))[:, None] * captions + of_images
    second = of_captions * captions + torch.arange(captions)[:, None]
    return torch.cat([first.flatten(), second.flatten()]).unique()


def _caption_parts(token_ids: Tensor, width: int, memory_limit: float) -> list[Tensor]:
    """Rows of captions in order of length, in parts whose tokens stay below the limit (but a caption at least)."""
    lengths = (token_ids != 0).sum(dim=1)
    order = torch.argsort(lengths, stable=True)
    part = (lengths[order].cumsum(0) * width * 4 / (memory_limit * 1e9)).long()
    return list(order.split(part.unique_consecutive(return_counts=True)[1].tolist()))


def _encode_texts(student: Student, token_ids: Tensor, device: torch.device) -> PackedTexts:
    """Captions (best in order of length) through the text tower and the part of the fusion encoder before a picture."""
    assert student.fusion is not None
    room, lengths, used = torch.empty(0), [], 0
    for batch in token_ids.split(CAPTIONS_AT_ONCE):
        encoded = student.encode_text(batch.to(device), tokens=True)
        assert encoded.tokens is not None
        assert encoded.mask is not None
        part = PackedTexts.pack(student.fusion.begin_texts(encoded.tokens, encoded.mask), encoded.mask)
        if not used:  # some towers drop a mark, so there may be fewer tokens than ids
            room = part.tokens.new_empty(int((token_ids != 0).sum()), part.tokens.shape[1])
        room[used : used + len(part.tokens)] = part.tokens
        used += len(part.tokens)
        lengths.append(part.lengths)
    of_captions = torch.cat(lengths)
    return PackedTexts(room[:used], of_captions.cumsum(0) - of_captions, of_captions)


def _picture_parts(
    student: Student, towers: Towers, dataset: ImageTextDataset, device: torch.device, memory_limit: float
) -> Iterator[tuple[int, Tensor]]:
    """First row and projected keys and values of consecutive pictures, as many at once as the limit allows.

    What is yielded is overwritten by the next part.
    """
    assert student.fusion is not None
    room: Tensor | None = None
    first = used = 0
    for rows in torch.arange(len(dataset)).split(max(1, PIXELS_AT_ONCE // towers.image_size**2)):
        pixels = dataset.pixels(rows, towers.image_size).to(device).float() / 255
        encoded = student.encode_image(pixels, tokens=True)
        assert encoded.tokens is not None
        projected = student.fusion.project_images(encoded.tokens)
        if room is None:
            fitting = int(memory_limit * 1e9 / (projected[:, :, 0].numel() * projected.element_size()))
            shape = list(projected.shape)
            shape[2] = max(len(rows), min(len(dataset), fitting))
            room = projected.new_empty(shape)
        if used + len(rows) > room.shape[2]:
            yield first, room[:, :, :used]
            first, used = first + used, 0
        room[:, :, used : used + len(rows)] = projected
        used += len(rows)
    assert room is not None
    yield first, room[:, :, :used]
