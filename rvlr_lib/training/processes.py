"""How a training is carried out: processes, compilation, memory, checkpoints. Nothing here decides a result."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rvlr_lib.training.gather import gather_rows, processes


@dataclass(frozen=True)
class Execution:
    """How to train; no part of any cache key.

    Attributes:
        compile: compile the repeated blocks of the towers and of the fusion encoder; worth it for long trainings.
        gradient_checkpointing: keep no activations inside the towers' blocks and compute them twice.
        checkpoints: folder of the checkpoints, None for none.
        save_every: steps between two checkpoints.
        resume: ``last``, a checkpoint's name such as ``step-000120``, or ``no``, which removes those that are there.
    """

    compile: bool = False
    gradient_checkpointing: bool = False
    checkpoints: Path | None = None
    save_every: int = 500
    resume: str = "last"

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise ValueError(f"save_every={self.save_every}: checkpoints are at least one step apart")


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
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count > 1:
        from accelerate import Accelerator
        from accelerate.utils import InitProcessGroupKwargs

        limit = InitProcessGroupKwargs(timeout=timedelta(seconds=timeout))
        Accelerator(cpu=device.type == "cpu", kwargs_handlers=[limit])
    yield processes()
    leave()  # not after an error: leaving waits for the others, who may wait for us


def leave() -> None:
    """Leave the process group, if there is one; what follows runs in this process alone."""
    if processes()[1] > 1:
        torch.distributed.destroy_process_group()


def spread(objective: nn.Module) -> nn.Module:
    """The module to call in training: over several processes it averages the gradients."""
    if processes()[1] == 1:
        return objective
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    batch_norm = [name for name, part in objective.named_modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    if batch_norm:
        raise ValueError(f"{batch_norm[0]} is batch normalisation, which sees the rows of one process only: train this "
                         "model in a single process")  # fmt: skip
    device = next(objective.parameters()).device
    # buffers are frozen teachers and pixel statistics, the same everywhere: nothing to send at every step
    ignored = [name for name, _ in objective.named_buffers()]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(objective, ignored)
    # static: the switches, not the batch, decide which parameters have no gradient
    options = DistributedDataParallelKwargs(static_graph=True)
    return Accelerator(cpu=device.type == "cpu", kwargs_handlers=[options]).prepare_model(objective)


def compile_blocks(module: nn.Module) -> int:
    """Compile every block that a module repeats, in place; names of weights stay. The number of blocks.

    A block is compiled once for all its repetitions, and lengths of captions that change cost no compilation each.
    """
    found = 0
    for part in module.modules():
        if isinstance(part, nn.ModuleList) and len({type(block) for block in part}) == 1:
            for block in part:
                block.compile(dynamic=None)
                found += 1
    return found


def checkpoint_gradients(module: nn.Module) -> None:
    """Turn on gradient checkpointing in the towers of a student or teacher.

    Raises:
        ValueError: a tower has none to turn on.
    """
    for name, part in module.named_modules():
        if name.split(".")[-1] in ("visual", "text", "tower"):
            if not hasattr(part, "set_grad_checkpointing"):
                raise ValueError(f"gradient checkpointing: {type(part).__name__} ({name}) cannot do it; leave it out")
            part.set_grad_checkpointing(True)


def broadcast_json(value: Any) -> Any:
    """What the main process holds, in every process: anything that JSON can hold."""
    if processes()[1] == 1:
        return value
    device = carrier()
    content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8).to(device)
    length = torch.tensor(len(content), device=device)
    torch.distributed.broadcast(length, 0)
    content = content if is_main() else torch.empty(int(length), dtype=torch.uint8, device=device)
    torch.distributed.broadcast(content, 0)
    return json.loads(bytes(content.cpu().tolist()))


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
