"""One of two gloo processes: gradients of the contrastive loss under our gather and under the official one.

Usage: two_ranks.py RANK FILE. For each gather, rank 0 prints the norms of the averaged gradients of the encoder and the
temperature, over those of one process with the whole batch, and the cosine of the encoder's two gradients.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from rvlr_lib.losses import image_text_contrastive_loss
from rvlr_lib.training.gather import gather_rows


class LocalSlice(torch.autograd.Function):
    """Gather whose gradient is the own slice, without the other processes' share."""

    @staticmethod
    def forward(ctx, rows):
        ctx.count = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        begin = dist.get_rank() * ctx.count
        return gradient[begin : begin + ctx.count]


def gradients(pixels, words, gather):
    torch.manual_seed(1)
    encoder = torch.nn.Linear(6, 4, dtype=torch.float64)
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    image, text = (gather(torch.nn.functional.normalize(encoder(x))) for x in (pixels, words))
    image_text_contrastive_loss(image, text, temperature).backward()
    return encoder.weight.grad, temperature.grad


def main(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    pixels, words = torch.randn(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mine = slice(4 * rank, 4 * rank + 4)
    whole = gradients(pixels, words, lambda rows: rows)
    report = {}
    for name, gather in (("ours", gather_rows), ("official", LocalSlice.apply)):
        parts = gradients(pixels[mine], words[mine], gather)
        for part in parts:
            dist.all_reduce(part)
            part /= 2  # what DistributedDataParallel does
        report[name] = [(part.norm() / full.norm()).item() for part, full in zip(parts, whole, strict=True)]
        report[name].append(torch.cosine_similarity(parts[0].flatten(), whole[0].flatten(), dim=0).item())
    if rank == 0:
        print(json.dumps(report), flush=True)
    dist.barrier()
    dist.destroy_process_group()
    os._exit(0)  # gloo's threads may outlive the group, and a normal exit then aborts now and then


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
