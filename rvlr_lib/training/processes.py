"""Several processes acting as one: shared work, rows gathered with their gradients, common decisions.

Process r of W holds rows ``r B/W`` to ``(r + 1) B/W - 1`` of a batch of B. In a single process, every function here is
a plain call; otherwise all processes must call it.
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
    """Rank of this process and number of processes; ``(0, 1)`` without a process group."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return processes()[0] == 0


@cache
def say_once(line: str) -> None:
    """Print a line in the main process alone, and only the first time."""
    if is_main():
        print(line)


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the processes that torchrun started, each on the GPU of its local rank; do nothing in a single process.

    A process gives up waiting for another after ``timeout`` seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
            if device.index is not None:
                raise ValueError(f"device {device}: under torchrun give cuda, each process takes the GPU of its rank")
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        backend = "nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, timeout=timedelta(seconds=timeout))
    yield
    if processes()[1] > 1:  # not after an error: leaving waits for the others, which may be waiting for this one
        distributed.destroy_process_group()


def data_parallel(objective: nn.Module) -> nn.Module:
    """Return the module to call in training, which averages the gradients over the processes."""
    if processes()[1] == 1:
        return objective
    devices = [torch.cuda.current_device()] if next(objective.parameters()).is_cuda else None
    # settings, not batches, decide which parameters have no gradient
    model = nn.parallel.DistributedDataParallel(objective, devices, static_graph=True)
    model.broadcast_buffers = False  # frozen teachers and statistics; as an argument it is deprecated
    return model


def prefetch(items: Sequence[Any], read: Callable[[Any], Any]) -> Iterator[Any]:
    """Yield ``read(item)`` for each item; a thread reads the next one while the caller uses this one.

    >>> list(prefetch([1, 2, 3], lambda number: number * number))
    [1, 4, 9]
    """
    with ThreadPoolExecutor(1) as pool:
        futures = (pool.submit(read, item) for item in items)
        for future, _ in pairwise(chain(futures, [None])):
            yield future.result()


def shared_work(
    batches: Sequence[Tensor], read: Callable[[Tensor], Tensor], work: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield each batch of rows with ``work(rows, read(rows))``, on the CPU, in every process.

    Process r of W works on batches r, r + W, …; these do not depend on W, so the results are the same bit for bit.
    """
    rank, count = processes()
    local_batches = batches[rank::count]
    results = (work(rows, inputs) for rows, inputs in zip(local_batches, prefetch(local_batches, read), strict=True))
    for start in range(0, len(batches), count):
        result = {name: value.cpu() for name, value in next(results, {}).items()}
        yield from zip(batches[start : start + count], all_gather_objects(result), strict=False)


def local_rows(batch: int) -> slice:
    """Rows of a batch that this process holds; ValueError unless the batch divides into equal parts of two or more."""
    rank, count = processes()
    size = batch // count
    if size * count != batch or (count > 1 and size < 2):
        fault = f"a batch of {batch} rows does not divide over {count} processes into equal parts of two or more rows"
        raise ValueError(f"{fault}: set batch_size to a multiple of {count}")
    return slice(rank * size, (rank + 1) * size)


class _GatherRows(torch.autograd.Function):
    """All-gather whose gradient is summed over the processes; torch's differentiable all-gather is deprecated."""

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
    """Stack ``[B / W, ...]`` of all processes in rank order; in a single process, return ``features`` itself.

    The gradient is summed over the processes. Since each computes the loss of the full batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of a single process with that batch. The official
    gather keeps only the gradient of the local slice, so encoders get 1 / W of it (FIDELITY.md, row 22).
    """
    return features if processes()[1] == 1 else _GatherRows.apply(features)


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum a tensor over the processes, without gradient; in a single process, return it as it is."""
    if processes()[1] > 1:
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def all_gather_objects(value: Any) -> list[Any]:
    """Gather the values of all processes into a list in rank order (the main process first), in every process."""
    values = [value] * processes()[1]
    if len(values) > 1:
        distributed.all_gather_object(values, value)
    return values
