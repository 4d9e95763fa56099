"""Re-ranking with the matching head: computations shared by pairs done once, against one padded query at a time."""

import torch
from torch import Tensor

from benchmarks._harness import Options, Row, alternate, duration, speed_row
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.models.fusion import FusionEncoder


@torch.inference_mode()
def ours(fusion: FusionEncoder, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """Matching scores ``[I, C]``: every caption is on the shortlist of every picture."""
    features = torch.zeros(len(images), 1), torch.zeros(len(texts), 1)
    return matching_scores(fusion, images, texts, mask, features, max(len(images), len(texts)))[0]


@torch.inference_mode()
def slow(fusion: FusionEncoder, images: Tensor, texts: Tensor, mask: Tensor) -> Tensor:
    """The same for one query picture at a time, with captions padded to the context length."""
    return torch.stack([fusion(image.expand(len(texts), -1, -1), texts, mask)[0][:, 1] for image in images])


def rows(options: Options) -> list[Row]:
    """The paper's pair of encoders: 145 picture tokens, captions padded to 60, a fusion of six layers."""
    queries, top_k, width, image_width, layers = options.pick(
        (2, 5, 64, 48, 2), (2, 16, 768, 1024, 6), (4, 64, 768, 1024, 6)
    )
    torch.manual_seed(0)
    fusion = FusionEncoder(width, image_width, layers).eval()
    images, texts = torch.randn(queries, 145, image_width), torch.randn(top_k, 60, width)
    lengths = torch.randint(9, 20, (top_k,))  # 14 tokens on average, as in Flickr30k
    mask = torch.arange(60) < lengths[:, None]
    inputs = fusion, images, texts, mask
    timing = alternate(lambda: ours(*inputs), lambda: slow(*inputs), options.pick(1, 2, 3))
    pairs = queries * top_k
    return [
        speed_row(
            f"re-ranking, top {top_k}, fusion of {layers} layers",
            "one query at a time with padding",
            timing.ratio,
            3,
            equal=(float((timing.our_result - timing.their_result).abs().max()), 1e-5),
            notes=f"{duration(timing.ours / pairs)} and {duration(timing.theirs / pairs)} a pair; towers not counted",
        )
    ]
