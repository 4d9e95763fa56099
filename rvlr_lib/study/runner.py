"""Where cells are computed: processes of this machine, or the workers of a Dask cluster."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Items = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Runner:
    """How to compute cells, each a call ``function(*item, device, root)`` of a module's function.

    Attributes:
        jobs: processes on this machine, each with its share of the CPU's threads.
        scheduler: address of a Dask scheduler, such as ``tcp://host:8786``; its workers are used instead.
        device, root: of every cell.
        say: told about progress.
    """

    jobs: int = 1
    scheduler: str = ""
    device: str = "auto"
    root: str | None = None
    say: Callable[[str], None] = print

    def run(self, function: Callable[..., Any], items: Items, label: str) -> list[Any]:
        """The results in the order of the items."""
        return [found for _, found in sorted(self.stream(function, items, label), key=lambda pair: pair[0])]

    def stream(self, function: Callable[..., Any], items: Items, label: str) -> Iterator[tuple[int, Any]]:
        """The results as they finish, each with the number of its item."""
        started = time.monotonic()
        with self._pool() as (submit, completed):
            running = {submit(function, *item, self.device, self.root): number for number, item in enumerate(items)}
            for done, future in enumerate(completed(list(running)), start=1):
                yield running[future], future.result()
                elapsed = time.monotonic() - started
                left = elapsed / done * (len(items) - done)
                self.say(f"{label} {done}/{len(items)}: {elapsed / 60:.1f} min, about {left / 60:.0f} min left")

    @contextmanager
    def _pool(self) -> Iterator[tuple[Callable[..., Any], Callable[..., Any]]]:
        """A function that submits a call, and one that gives futures as they finish."""
        if self.scheduler:
            from distributed import as_completed as finished

            with connect(self.scheduler) as client:
                yield lambda function, *given: client.submit(function, *given, pure=False, retries=3), finished
            return
        import multiprocessing

        threads = max(1, (os.cpu_count() or 1) // self.jobs)
        pool = ProcessPoolExecutor(
            self.jobs, multiprocessing.get_context("spawn"), initializer=_quiet, initargs=(threads,)
        )
        try:
            yield pool.submit, as_completed
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def connect(scheduler: str) -> Any:
    """A client of a Dask scheduler.

    Raises:
        ValueError: Dask is not installed, or nobody answers at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs Dask: pip install 'rvlr-companion[cluster]'") from error
    try:
        return Client(scheduler, timeout=5)
    except OSError as error:
        raise ValueError(f"no Dask scheduler answers at {scheduler!r}: {error}") from error


def _quiet(threads: int) -> None:
    """A worker's share of the CPU; its progress bars would write over one another."""
    import sys

    import torch

    torch.set_num_threads(threads)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
