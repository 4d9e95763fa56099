"""One batch out of the batches of several processes, so that contrast sees every negative."""

import torch
from torch import Tensor


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is summed over the processes; torch's own differentiable one is deprecated."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.rows = len(features)
        parts = [torch.empty_like(features) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        begin = torch.distributed.get_rank() * ctx.rows
        return total[begin : begin + ctx.rows]


def gather_rows(features: Tensor) -> Tensor:
    """Stack the rows of all processes, in rank order.

    The gradient is summed over the processes. So when each computes the loss of the whole batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of one process with the whole batch. The official
    gather keeps the local slice only, and encoders get 1 / W of it (FIDELITY.md, row 22).

    Args:
        features: ``[B, D]``, the same ``B`` in every process.

    Returns:
        ``[W B, D]``; ``features`` itself in a single process.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    return _GatherRows.apply(features)
