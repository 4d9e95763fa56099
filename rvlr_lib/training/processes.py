"""Several processes as one: work shared, rows gathered with their gradients, decisions taken in common.

Process r of W holds rows ``r B/W`` to ``(r + 1) B/W - 1`` of a batch of B. In a single process everything here is a
plain call; otherwise all processes must call it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, distributed, nn


def processes() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where no process group runs."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return processes()[0] == 0


@cache
def say_once(line: str) -> None:
    """Print a line once, in the main process alone."""
    if is_main():
        print(line)


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the processes that torchrun started, each with the GPU of its local rank; alone, do nothing.

    One that waits for another gives up after ``timeout`` seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            if device.index is not None:
                raise ValueError(f"device {device}: under torchrun give cuda, each process takes that of its rank")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield
    if processes()[1] > 1:  # not after an error: leaving waits for the others, who may wait for this one
        distributed.destroy_process_group()


def spread(objective: nn.Module) -> nn.Module:
    """The module to call in training: over several processes it averages the gradients."""
    if processes()[1] == 1:
        return objective
    own = [torch.cuda.current_device()] if next(objective.parameters()).is_cuda else None
    # buffers are frozen teachers and statistics; the switches, not the batch, decide which parameters have no gradient
    return nn.parallel.DistributedDataParallel(objective, own, broadcast_buffers=False, static_graph=True)


def prefetch(items: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[Any]:
    """What is read for each item; a thread reads the next one while the caller uses this one.

    >>> list(prefetch([1, 2, 3], lambda number: number * number))
    [1, 4, 9]
    """
    with ThreadPoolExecutor(1) as pool:
        under_way = (pool.submit(read, item) for item in items)
        for found, _ in pairwise(chain(under_way, [None])):
            yield found.result()


def shared_work(
    batches: Sequence[Tensor], read: Callable[[Tensor], Tensor], work: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Each batch of rows and what the work makes of what is read for it, on the CPU, in every process.

    Process r of W works on every W-th batch, from the r-th. The batches do not depend on W, so neither does a bit of
    the results.
    """
    rank, count = processes()
    own = batches[rank::count]
    done = (work(rows, content) for rows, content in zip(own, prefetch(own, read), strict=True))
    for turn in range(0, len(batches), count):
        found = {name: value.cpu() for name, value in next(done, {}).items()}
        yield from zip(batches[turn : turn + count], held_by_all(found), strict=False)


def own_rows(batch: int) -> slice:
    """The rows of a batch that this process holds; ValueError where it does not divide into parts of two or more."""
    rank, count = processes()
    share = batch // count
    if share * count != batch or (count > 1 and share < 2):
        fault = f"a batch of {batch} rows does not divide over {count} processes into equal parts of two or more rows"
        raise ValueError(f"{fault}: set batch_size to a multiple of {count}")
    return slice(rank * share, (rank + 1) * share)


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is summed over the processes; torch's own differentiable one is deprecated."""

    @staticmethod
    def forward(ctx, features: Tensor) -> Tensor:
        ctx.rows = len(features)
        parts = [torch.empty_like(features) for _ in range(distributed.get_world_size())]
        distributed.all_gather(parts, features.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.contiguous()).split(ctx.rows)[distributed.get_rank()]


def gather_rows(features: Tensor) -> Tensor:
    """Stack ``[B / W, ...]`` of all processes, in rank order; ``features`` itself in a single process.

    The gradient is summed over the processes. So when each computes the loss of the whole batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of one process with the whole batch. The official
    gather keeps the local slice only, and encoders get 1 / W of it (FIDELITY.md, row 22).
    """
    return features if processes()[1] == 1 else _GatherRows.apply(features)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient; itself in a single process."""
    if processes()[1] > 1:
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def held_by_all(value: Any) -> list[Any]:
    """What each process holds, in rank order (the main one first), in every process."""
    found = [value] * processes()[1]
    if len(found) > 1:
        distributed.all_gather_object(found, value)
    return found
