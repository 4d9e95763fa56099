"""Re-ranking by the matching head at the size of COCO: what belongs to one picture or one caption is computed once."""

import torch
from torch import Tensor

from rvlr_lib.evaluation.evaluate import Device, working_bytes
from rvlr_lib.models import FusionEncoder
from rvlr_lib.training.features import Features, halve_until_it_fits

CAPTIONS_AT_ONCE = 32  # of one picture, of about one length, on a CPU; on a CUDA device what fits into its memory


@torch.no_grad()
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
    """Re-rank the best ``top_k`` of every query by the matching head: hardly any padding, each pair once.

    ``fusion`` is moved to ``device``, in evaluation mode. ``image_tokens [I, N, W_image]``, any floating dtype, also
    memory-mapped: read in consecutive parts; ``text_tokens [C, L, W]`` with bool ``text_mask [C, L]``, True at real
    tokens; ``features``: unit rows ``[I, D]`` and ``[C, D]``, for the shortlists. Gives ``scores_i2t [I, C]`` and
    ``scores_t2i [C, I]`` on the CPU: the positive matching logit in the shortlist, the cosine minus 100 outside.
    """
    images, captions = features
    count, device, shapes = len(captions), torch.device(device), [tuple(x.shape) for x in (image_tokens, text_tokens)]
    wanted = [(len(images), *shapes[0][1:]), (count, *text_mask.shape[1:], *shapes[1][2:])]
    if list(map(len, shapes)) != [3, 3] or shapes != wanted or text_mask.shape != shapes[1][:2]:
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
    ends = (text_mask * torch.arange(1, text_mask.shape[1] + 1, device=text_mask.device)).amax(dim=1).cpu()
    of_memory = working_bytes(device) // (64 * fusion.width * int(ends.max()))
    at_once = of_memory if device.type == "cuda" else CAPTIONS_AT_ONCE

    def score(chunk_size: int) -> Tensor:
        parts = [(rows, slice(int(ends[rows[-1]]))) for rows in captions_of.split(chunk_size)]  # hardly any padding
        read = ((text_tokens[at].to(device).to(tokens.dtype), text_mask[at].to(device)) for at in parts)
        found = [fusion.match_texts(tokens, *part) for part in read]
        return torch.cat(found)[:, 1].float().cpu()

    sizes = torch.bincount(pairs // count, minlength=len(images)).tolist()
    for row, (own, own_logits) in enumerate(zip((pairs % count).split(sizes), logits.split(sizes), strict=True)):
        order = ends[own].argsort(stable=True)
        tokens, captions_of = image_tokens[row].to(device, fusion.image_in.weight.dtype), own[order]
        own_logits[order] = halve_until_it_fits(score, at_once)
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
