"""Re-ranking by the matching head at the scale of COCO: work on a single picture or caption is done once."""

import torch
from torch import Tensor

from rvlr_lib.evaluation.evaluate import Device, working_bytes
from rvlr_lib.models import FusionEncoder
from rvlr_lib.training.features import Features, halve_until_it_fits

CAPTIONS_AT_ONCE = 32  # per picture, of similar length, on a CPU; on a CUDA device as many as fit in memory


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
    """Score the ``top_k`` candidates of every query by the matching head, each pair once and with hardly any padding.

    ``fusion`` is moved to ``device`` and set to evaluation mode. ``image_tokens [I, N, W_image]`` of any floating dtype
    may be memory-mapped and are read in order; ``text_tokens [C, L, W]`` have a bool ``text_mask [C, L]``, True at real
    tokens; ``features``, unit rows ``[I, D]`` and ``[C, D]``, give the shortlists. Returns ``scores_i2t [I, C]`` and
    ``scores_t2i [C, I]`` on the CPU: the positive matching logit in the shortlist, the cosine minus 100 outside.
    """
    images, captions = features
    count, device = len(captions), torch.device(device)
    fusion = fusion.to(device).eval()
    shortlists = shortlist(images, captions, top_k, device), shortlist(captions, images, top_k, device)
    i2t_pairs = torch.arange(len(images))[:, None] * count + shortlists[0]  # a pair is picture * count + caption
    t2i_pairs = shortlists[1] * count + torch.arange(count)[:, None]
    pairs = torch.cat([i2t_pairs.flatten(), t2i_pairs.flatten()]).unique()  # sorted by picture
    logits = torch.empty(len(pairs))
    lengths = (text_mask * torch.arange(1, text_mask.shape[1] + 1, device=text_mask.device)).amax(dim=1).cpu()
    fitting = working_bytes(device) // (64 * fusion.width * int(lengths.max()))
    at_once = fitting if device.type == "cuda" else CAPTIONS_AT_ONCE

    def score(chunk_size: int) -> Tensor:
        places = [(rows, slice(int(lengths[rows[-1]]))) for rows in by_length.split(chunk_size)]
        chunks = ((text_tokens[at].to(device).to(picture.dtype), text_mask[at].to(device)) for at in places)
        return torch.cat([fusion.match_texts(picture, *chunk) for chunk in chunks])[:, 1].float().cpu()

    sizes = torch.bincount(pairs // count, minlength=len(images)).tolist()
    for row, (partners, row_logits) in enumerate(zip((pairs % count).split(sizes), logits.split(sizes), strict=True)):
        order = lengths[partners].argsort(stable=True)
        picture, by_length = image_tokens[row].to(device, fusion.image_in.weight.dtype), partners[order]
        row_logits[order] = halve_until_it_fits(score, at_once)  # writes into logits
    results = []
    directions = zip((features, features[::-1]), shortlists, (i2t_pairs, t2i_pairs), strict=True)
    for (queries, candidates), columns, listed in directions:
        scores = (queries @ candidates.T).sub_(100).cpu()
        listed_logits = logits[torch.searchsorted(pairs, listed)]
        results.append(scores.scatter_(1, columns, listed_logits.to(scores.dtype)))
    return results[0], results[1]


@torch.no_grad()
def shortlist(queries: Tensor, candidates: Tensor, top_k: int, device: Device = "cpu") -> Tensor:
    """Rows ``[Q, k]`` of each query's ``top_k`` candidates ``[G, D]`` by dot product, best first, on the CPU."""
    queries, candidates, k = queries.to(device), candidates.to(device), min(top_k, len(candidates))

    def search(chunk_size: int) -> Tensor:
        return torch.cat([(part @ candidates.T).topk(k, dim=1).indices.cpu() for part in queries.split(chunk_size)])

    return halve_until_it_fits(search, working_bytes(device) // (12 * len(candidates)))
