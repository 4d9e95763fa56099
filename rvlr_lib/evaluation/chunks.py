"""How many rows to compute at once on a device, and what to do where its memory does not suffice."""

from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

CPU_BYTES = 100_000_000  # beyond it larger chunks gain no speed
CUDA_SHARE = 0.4  # of the free memory
Result = TypeVar("Result")


def working_bytes(device: torch.device | str) -> int:
    """Bytes that one chunk may take: 100 MB on the CPU, 40 % of what is free on a CUDA device."""
    device = torch.device(device)
    if device.type != "cuda":
        return CPU_BYTES
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(CUDA_SHARE * (torch.cuda.mem_get_info(device)[0] + cached))


def halve_until_it_fits(compute: Callable[[int], Result], rows: int, what: str) -> Result:
    """``compute(rows)``; where the device runs out of memory, again with half the rows until it fits.

    The numbers must not depend on ``rows``. Said once.

    Raises:
        torch.OutOfMemoryError: even one row does not fit.
    """
    first = rows = max(1, rows)
    while True:
        try:
            found = compute(rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        else:
            if rows < first:
                _say(f"{what}: {first} rows at once did not fit in memory, {rows} did; the numbers are the same")
            return found
        rows //= 2  # outside the handler, whose traceback keeps tensors alive
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@cache
def _say(line: str) -> None:
    """Print a line the first time it is said."""
    print(line)
