"""One batch out of the batches of several processes, so that contrast sees every negative.

Process r of W holds rows ``r B/W`` to ``(r + 1) B/W - 1`` of a batch of B. Everything here is a plain call in a single
process, and must be called by all of them otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def processes() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where no process group runs."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def own_rows(batch: int) -> slice:
    """The rows of a batch that this process holds.

    Raises:
        ValueError: the batch does not divide over the processes, or leaves one with a single row.

    >>> own_rows(8)
    slice(0, 8, None)
    """
    rank, count = processes()
    share = batch // count
    if share * count != batch or (count > 1 and share < 2):
        raise ValueError(f"a batch of {batch} rows does not divide over {count} processes into equal parts of two or "
                         f"more rows: set batch_size to a multiple of {count}")  # fmt: skip
    return slice(rank * share, (rank + 1) * share)


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
        features: ``[B / W, ...]`` of any type, the same shape in every process.

    Returns:
        ``[B, ...]``; ``features`` itself in a single process.
    """
    return features if processes()[1] == 1 else _GatherRows.apply(features)


def gather_tokens(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Stack token sequences that each process trimmed to a length of its own.

    Args:
        tokens: ``[B / W, L, D]``.
        mask: bool ``[B / W, L]``, True at real tokens.

    Returns:
        ``[B, L', D]`` and ``[B, L']`` with the longest ``L'``; what is added is masked. Itself in a single process.
    """
    if processes()[1] == 1:
        return tokens, mask
    missing = _longest(tokens) - tokens.shape[1]
    padded = F.pad(mask.to(torch.uint8), (0, missing))
    return gather_rows(F.pad(tokens, (0, 0, 0, missing))), gather_rows(padded).bool()


def batch_dropout(features: Tensor, chance: float) -> Tensor:
    """Dropout of this process's rows, drawn for the whole batch: the same as in a single process.

    Args:
        features: ``[B / W, L, ...]``; ``L`` may differ between the processes.
        chance: to zero an entry; the others grow by ``1 / (1 - chance)``.
    """
    rank, count = processes()
    if count == 1:
        return F.dropout(features, chance)
    rows, length = features.shape[:2]
    kept = F.dropout(features.new_ones(count * rows, _longest(features), *features.shape[2:]), chance)
    return features * kept[rank * rows : (rank + 1) * rows, :length]


def add_up(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient; itself in a single process."""
    if processes()[1] > 1:
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
    return values


def _longest(features: Tensor) -> int:
    """The greatest second dimension over the processes."""
    length = torch.tensor(features.shape[1], device=features.device)
    torch.distributed.all_reduce(length, torch.distributed.ReduceOp.MAX)
    return int(length)
