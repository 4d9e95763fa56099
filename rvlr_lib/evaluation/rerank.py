"""Re-ranking by the matching head at the size of COCO: what belongs to one picture or one caption is computed once."""

import torch
from torch import Tensor

from rvlr_lib.evaluation.evaluate import Device, Features, halve_until_it_fits, working_bytes
from rvlr_lib.models import FusionEncoder

CAPTIONS_AT_ONCE = 512
CPU_MEMORY = 1_000_000_000  # bytes for keys and values of pictures; on a CUDA device 40 % of what is free
TOKENS_AT_ONCE = 4096  # through the fusion encoder on a CPU; pairs of one length are put together up to that many


@torch.inference_mode()
def matching_scores(
    fusion: FusionEncoder,
    image_tokens: Tensor,
    text_tokens: Tensor,
    text_mask: Tensor,
    features: Features,
    top_k: int,
    *,
    device: Device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Re-rank the best ``top_k`` of every query by the matching head: no padding, each picture, caption and pair once.

    Args:
        fusion: the student's fusion encoder; moved to ``device``, in evaluation mode.
        image_tokens: ``[I, N, W_image]``, any floating dtype, also memory-mapped: read in consecutive parts.
        text_tokens: ``[C, L, W]``, with bool ``text_mask [C, L]``, True at real tokens.
        features: unit rows ``[I, D]`` and ``[C, D]``, for the shortlists.

    Returns:
        ``scores_i2t [I, C]`` and ``scores_t2i [C, I]`` on the CPU: the positive matching logit in the shortlist, the
        cosine minus 100 outside.
    """
    images, captions = features
    count, device, shapes = len(captions), torch.device(device), [tuple(x.shape) for x in (image_tokens, text_tokens)]
    if list(map(len, shapes)) != [3, 3] or (len(images), *text_mask.shape) != (shapes[0][0], count, shapes[1][1]):
        given = f"image_tokens {shapes[0]}, text_tokens {shapes[1]}, text_mask {tuple(text_mask.shape)}"
        rows = f"features {tuple(images.shape)}, {tuple(captions.shape)}"
        raise ValueError(f"{given} and {rows} do not fit: expected [I, N, W_image], [C, L, W], [C, L]")
    if top_k < 1:
        raise ValueError(f"top_k must be 1 or more, got {top_k}")
    if not text_mask[:, 0].all():
        row = int((~text_mask[:, 0]).nonzero()[0])
        raise ValueError(f"caption {row} begins with padding, so the matching head cannot score it")
    fusion = fusion.to(device).eval()
    chosen = shortlist(images, captions, top_k, device), shortlist(captions, images, top_k, device)
    keys = torch.arange(len(images))[:, None] * count + chosen[0], chosen[1] * count + torch.arange(count)[:, None]
    pairs = torch.cat([keys[0].flatten(), keys[1].flatten()]).unique()  # sorted by picture
    logits = torch.empty(len(pairs))
    texts = _begin_texts(fusion, text_tokens, text_mask, device)
    memory, at_once = CPU_MEMORY, TOKENS_AT_ONCE
    if device.type == "cuda":
        memory = working_bytes(device)
        at_once = memory // (64 * fusion.width)
    per_picture = 3 * 2 * len(fusion.layers.layers) * image_tokens.shape[1] * fusion.width * 4  # 3: while it is made
    for part in torch.arange(len(images)).split(max(1, memory // per_picture)):
        tokens = image_tokens[int(part[0]) : int(part[-1]) + 1].to(device, fusion.image_in.weight.dtype)
        keys_values = fusion.project_images(tokens)
        begin, end = torch.searchsorted(pairs, torch.tensor([part[0], part[-1] + 1]) * count).tolist()
        image_rows, text_rows = pairs[begin:end] // count - part[0], pairs[begin:end] % count
        logits[begin:end] = _score_pairs(fusion, keys_values, texts, image_rows, text_rows, at_once)
    results = []
    for (queries, candidates), columns, own in zip((features, features[::-1]), chosen, keys, strict=True):
        scores = (queries @ candidates.T).sub_(100).cpu()
        found = logits[torch.searchsorted(pairs, own)]
        results.append(scores.scatter_(1, columns, found.to(scores.dtype)))
    return results[0], results[1]


@torch.no_grad()
def shortlist(queries: Tensor, candidates: Tensor, top_k: int, device: Device = "cpu") -> Tensor:
    """The ``top_k`` candidates ``[G, D]`` of each query ``[Q, D]`` by dot product, best first: ``[Q, k]``, CPU."""
    queries, candidates = queries.to(device), candidates.to(device)
    k = min(top_k, len(candidates))

    def search(chunk_size: int) -> Tensor:
        return torch.cat([(part @ candidates.T).topk(k, dim=1).indices.cpu() for part in queries.split(chunk_size)])

    return halve_until_it_fits(search, working_bytes(device) // (12 * len(candidates)))


def _score_pairs(
    fusion: FusionEncoder, keys_values: Tensor, texts: list[Tensor], image_rows: Tensor, text_rows: Tensor, tokens: int
) -> Tensor:
    """Positive matching logit of pairs ``[P]``, in batches of captions of one length and at most so many tokens."""
    packed, starts, lengths = texts
    device, grid, of_pairs = packed.device, keys_values.shape[4], lengths[text_rows]
    order = torch.argsort(of_pairs, stable=True)
    lengths_present, counts = of_pairs.unique(return_counts=True)

    def score(chunk_size: int) -> Tensor:
        logits = torch.empty(len(order))
        for length, rows in zip(lengths_present.tolist(), order.split(counts.tolist()), strict=True):
            for part in rows.split(max(1, chunk_size // (length + grid // 8))):  # eight of a picture cost as one
                own = (starts[text_rows[part]][:, None] + torch.arange(length)).to(device)
                scored = fusion.match_projected(keys_values, image_rows[part].to(device), packed[own])
                logits[part] = scored[:, 1].float().cpu()
        return logits

    return halve_until_it_fits(score, tokens)


def _begin_texts(fusion: FusionEncoder, tokens: Tensor, mask: Tensor, device: torch.device) -> list[Tensor]:
    """Captions through the layers before a picture, packed: tokens ``[T, W]``, first rows and lengths ``[C]``."""
    lengths = mask.sum(dim=1).cpu()
    packed, starts, used = [], torch.empty_like(lengths), 0
    for rows in torch.argsort(lengths, stable=True).split(CAPTIONS_AT_ONCE):
        real = mask[rows].to(device)
        width = int(real.any(dim=0).nonzero().max()) + 1
        part = tokens[rows, :width].to(device, fusion.image_in.weight.dtype)
        packed.append(fusion.begin_texts(part, real[:, :width])[real[:, :width]])
        starts[rows] = used + lengths[rows].cumsum(0) - lengths[rows]
        used += len(packed[-1])
    return [torch.cat(packed), starts, lengths]
