"""Gathering hard negatives and their tokens, forward and backward: indexing against a loop over the samples."""

import torch
from torch import Tensor

from benchmarks._harness import Options, Row, alternate, duration, speed_row
from rvlr_lib.losses import sample_hard_negatives


def ours(similarity: Tensor, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """Token rows of the 3B pairs, as the training objective gathers them."""
    image, text = sample_hard_negatives(similarity, 0.07, generator=torch.Generator().manual_seed(0))
    pairs = torch.arange(len(images), device=images.device)
    image_rows = torch.cat([pairs, image.to(pairs.device), pairs])
    text_rows = torch.cat([pairs, pairs, text.to(pairs.device)])
    return images.index_select(0, image_rows), texts.index_select(0, text_rows)


def slow(similarity: Tensor, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
    """The same with one draw and one row per sample."""
    generator = torch.Generator().manual_seed(0)
    chosen: list[list[Tensor]] = []
    for scores, tokens in ((similarity.T, images), (similarity, texts)):
        negatives = []
        for i in range(len(scores)):
            weights = torch.softmax(scores[i] / 0.07, dim=0) + 1e-5
            weights[i] = 0
            negatives.append(tokens[int(torch.multinomial(weights, 1, generator=generator))])
        chosen.append(negatives)
    return torch.cat([images, torch.stack(chosen[0]), images]), torch.cat([texts, texts, torch.stack(chosen[1])])


def rows(options: Options) -> list[Row]:
    """Batch 128 with the token counts of Swin-B at 384 px and of captions of 60 tokens."""
    batch, image_shape, text_shape = options.pick(
        (6, (5, 8), (4, 8)), (36, (145, 1024), (60, 768)), (128, (145, 1024), (60, 768))
    )
    generator = torch.Generator().manual_seed(1)
    similarity = torch.rand(batch, batch, generator=generator)
    tokens = [torch.randn(batch, *shape, generator=generator).requires_grad_() for shape in (image_shape, text_shape)]
    gradients = [torch.randn(3 * batch, *shape, generator=generator) for shape in (image_shape, text_shape)]

    def step(gather) -> list[Tensor]:
        for leaf in tokens:
            leaf.grad = None
        torch.autograd.backward(gather(similarity, *tokens), gradients)
        return [leaf.grad for leaf in tokens]

    timing = alternate(lambda: step(ours), lambda: step(slow), options.pick(1, 3, 3))
    gaps = [(a - b).abs().max().item() for a, b in zip(timing.our_result, timing.their_result, strict=True)]
    return [
        speed_row(
            f"hard-negative gather, forward + backward, batch {batch}, {image_shape[0]}×{image_shape[1]:,} and "
            f"{text_shape[0]}×{text_shape[1]} tokens",
            "a loop over the samples",
            timing.ratio,
            3.5,
            equal=(max(gaps), 1e-4),
            notes=f"{duration(timing.ours)} and {duration(timing.theirs)}",
        )
    ]
