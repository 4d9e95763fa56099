"""Several processes as one: rows gathered with their gradients, random states, and what all of them must agree on.

Process r of W holds rows ``r B/W`` to ``(r + 1) B/W - 1`` of a batch of B. In a single process everything here is a
plain call; otherwise all processes must call it.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import pad


def processes() -> tuple[int, int]:
    """The number of this process and how many there are; ``(0, 1)`` where no process group runs."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return processes()[0] == 0


@contextmanager
def process_group(device: torch.device, timeout: float) -> Iterator[None]:
    """Join the processes that torchrun started, each with the GPU of its local rank; alone, do nothing.

    One that waits for another gives up after ``timeout`` seconds.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        if device.type == "cuda":
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


def own_rows(batch: int) -> slice:
    """The rows of a batch that this process holds; ValueError where it does not divide into parts of two or more."""
    rank, count = processes()
    share = batch // count
    if share * count != batch or (count > 1 and share < 2):
        raise ValueError(
            f"a batch of {batch} rows does not divide over {count} processes into equal parts of two or more rows: "
            f"set batch_size to a multiple of {count}"
        )
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
        return add_up(gradient.contiguous()).split(ctx.rows)[distributed.get_rank()]


def gather_rows(features: Tensor) -> Tensor:
    """Stack ``[B / W, ...]`` of all processes, in rank order; ``features`` itself in a single process.

    The gradient is summed over the processes. So when each computes the loss of the whole batch and
    ``DistributedDataParallel`` averages, parameters get the gradient of one process with the whole batch. The official
    gather keeps the local slice only, and encoders get 1 / W of it (FIDELITY.md, row 22).
    """
    return features if processes()[1] == 1 else _GatherRows.apply(features)


def gather_tokens(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Stack sequences ``[B / W, L, D]`` and masks ``[B / W, L]`` of a length of each process's own, padded alike."""
    if processes()[1] == 1:
        return tokens, mask
    missing = max(_of_all(tokens.shape[1])) - tokens.shape[1]
    masks = gather_rows(pad(mask.to(torch.uint8), (0, missing))).bool()
    return gather_rows(pad(tokens, (0, 0, 0, missing))), masks


def add_up(values: Tensor) -> Tensor:
    """Sum of a tensor over the processes, without gradient; itself in a single process."""
    if processes()[1] > 1:
        values = values.detach().clone()
        distributed.all_reduce(values)
    return values


def broadcast_json(value: Any) -> Any:
    """What the main process holds, in every process: anything that JSON can hold."""
    content = [value]
    if processes()[1] > 1:
        distributed.broadcast_object_list(content, 0, device=carrier())
    return content[0]


def same_everywhere(value: int) -> bool:
    """Whether all processes hold the same number."""
    return len(set(_of_all(value))) == 1


def _of_all(value: int) -> list[int]:
    return [value] if processes()[1] == 1 else gather_rows(torch.tensor([value], device=carrier())).tolist()


def random_states(device: torch.device, generators: Mapping[str, torch.Generator]) -> dict[str, Any]:
    """Random states of torch in every process, uint8 ``[W, n]``, and of generators that are alike in all."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    every = {name: gather_rows(state[None].to(carrier())).cpu() for name, state in states.items()}
    return {"torch": every, "own": {name: generator.get_state() for name, generator in generators.items()}}


def put_back(states: Mapping[str, Any], device: torch.device, generators: Mapping[str, torch.Generator]) -> None:
    """Put back what :func:`random_states` gave; a process that was not there takes the first one's."""
    rank = processes()[0]
    own = {name: rows[rank if rank < len(rows) else 0].clone() for name, rows in states["torch"].items()}
    torch.set_rng_state(own["cpu"])
    if "cuda" in own and device.type == "cuda":
        torch.cuda.set_rng_state(own["cuda"], device)
    for name, generator in generators.items():
        generator.set_state(states["own"][name])


def carrier() -> torch.device:
    """The device whose tensors the process group can send; the CPU in a single process."""
    nccl = processes()[1] > 1 and "nccl" in distributed.get_backend()
    return torch.device("cuda" if nccl else "cpu")
