"""Several processes as one: rows gathered with their gradients, random states, and what all of them must agree on.

Process r of W holds rows ``r B/W`` to ``(r + 1) B/W - 1`` of a batch of B. In a single process everything here is a
plain call; otherwise all processes must call it.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def processes() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where no process group runs."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return processes()[0] == 0


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started; alone, do nothing.

    Args:
        device: of the training; on CUDA each process takes the GPU of its local rank.
        timeout: seconds after which a process that waits for another one gives up.

    Yields:
        The number of this process and how many there are.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
        Accelerator(cpu=device.type == "cpu", kwargs_handlers=[limit])
    yield processes()
    leave()  # not after an error: leaving waits for the others, who may wait for this one


def leave() -> None:
    """Leave the process group, if there is one; what follows runs in this process alone."""
    if processes()[1] > 1:
        torch.distributed.destroy_process_group()


def spread(objective: nn.Module) -> nn.Module:
    """The module to call in training: over several processes it averages the gradients.

    Raises:
        ValueError: a batch normalisation in training mode, whose statistics would be of one process's rows.
    """
    if processes()[1] == 1:
        return objective
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    for name, part in objective.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training:
            raise ValueError(
                f"{name} is batch normalisation in training mode, which sees the rows of one process "
                "only: keep it in evaluation mode, or train this model in a single process"
            )
    device = next(objective.parameters()).device
    # buffers are frozen teachers and statistics, the same everywhere: nothing to send at every step
    ignored = [name for name, _ in objective.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, ignored)
    # static: the switches, not the batch, decide which parameters have no gradient
    options = DistributedDataParallelKwargs(static_graph=True)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[options]).prepare_model(objective)


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
        raise ValueError(
            f"a batch of {batch} rows does not divide over {count} processes into equal parts of two or "
            f"more rows: set batch_size to a multiple of {count}"
        )
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
    """Stack the rows of all processes, in rank order; ``features`` itself in a single process.

    The gradient is summed over the processes. So when each computes the loss of the whole batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of one process with the whole batch. The official
    gather keeps the local slice only, and encoders get 1 / W of it (FIDELITY.md, row 22).

    Args:
        features: ``[B / W, ...]`` of any type, the same shape in every process.
    """
    return features if processes()[1] == 1 else _GatherRows.apply(features)


def gather_tokens(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Stack token sequences ``[B / W, L, D]`` that each process trimmed to a length of its own.

    Returns:
        ``[B, L', D]`` and the mask ``[B, L']`` with the longest ``L'``; what is added is masked.
    """
    if processes()[1] == 1:
        return tokens, mask
    missing = max_over_processes(tokens.shape[1]) - tokens.shape[1]
    padded = F.pad(mask.to(torch.uint8), (0, missing))
    return gather_rows(F.pad(tokens, (0, 0, 0, missing))), gather_rows(padded).bool()


def add_up(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient; itself in a single process."""
    if processes()[1] > 1:
        values = values.detach().clone()
        torch.distributed.all_reduce(values)
    return values


def broadcast_json(value: Any) -> Any:
    """What the main process holds, in every process: anything that JSON can hold."""
    if processes()[1] == 1:
        return value
    content = [json.dumps(value)]
    torch.distributed.broadcast_object_list(content, 0, device=carrier())
    return json.loads(content[0])


def max_over_processes(value: int) -> int:
    """The greatest of the processes' numbers."""
    if processes()[1] == 1:
        return value
    found = torch.tensor(value, device=carrier())
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
    return int(found)


def same_everywhere(value: int) -> bool:
    """Whether all processes hold the same number."""
    return max_over_processes(value) == -max_over_processes(-value)


def every_random_state(device: torch.device) -> dict[str, Tensor]:
    """Random states of torch in every process, uint8 ``[W, n]``."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return {name: gather_rows(state[None].to(carrier())).cpu() for name, state in states.items()}


def set_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Put back what :func:`every_random_state` gave; a process that was not there takes the first one's."""
    rank = processes()[0]
    for name, rows in states.items():
        state = rows[rank if rank < len(rows) else 0].clone()
        if name == "cpu":
            torch.set_rng_state(state)
        elif device.type == "cuda":
            torch.cuda.set_rng_state(state, device)


def carrier() -> torch.device:
    """The device whose tensors the process group can send; the CPU in a single process."""
    if processes()[1] == 1:
        return torch.device("cpu")
    return torch.device("cuda" if "nccl" in torch.distributed.get_backend() else "cpu")
