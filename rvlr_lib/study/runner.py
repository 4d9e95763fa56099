"""Where cells are computed: processes of this machine, or the workers of a Dask cluster."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from joblib import cpu_count

Items = Sequence[tuple[Any, ...]]


@dataclass(frozen=True)
class Runner:
    """How to compute cells, each a call ``function(*item, device, root)`` of a module's function."""

    jobs: int = 1  # processes on this machine
    scheduler: str = ""  # address of a Dask scheduler, such as tcp://host:8786; its workers are used instead
    device: str = "auto"
    root: str | None = None  # of runs and cache
    say: Callable[[str], None] = print  # told about progress
    threads: int = 0  # of each process; 0: its share of the CPU's

    def run(self, function: Callable[..., Any], items: Items, label: str) -> list[Any]:
        """The results in the order of the items."""
        return [result for _, result in sorted(self.stream(function, items, label), key=lambda pair: pair[0])]

    def stream(self, function: Callable[..., Any], items: Items, label: str) -> Iterator[tuple[int, Any]]:
        """The results as they finish, each with the number of its item."""
        started = time.monotonic()
        with self._executor() as executor:
            futures = {executor.submit(function, *item, self.device, self.root): n for n, item in enumerate(items)}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    yield futures[future], future.result()
                    elapsed = time.monotonic() - started
                    left = elapsed / done * (len(items) - done)
                    self.say(f"{label} {done}/{len(items)}: {elapsed / 60:.1f} min, about {left / 60:.0f} min left")
            finally:  # one failed, or nobody wants the others
                for future in futures:
                    future.cancel()

    @contextmanager
    def _executor(self) -> Iterator[Executor]:
        if self.scheduler:
            with connect(self.scheduler) as client, client.get_executor(pure=False, retries=3) as executor:
                yield executor
        else:
            threads = self.threads or max(1, cpu_count() // self.jobs)
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(self.jobs, spawn, initializer=_quiet, initargs=(threads,)) as executor:
                yield executor


def connect(scheduler: str) -> Any:
    """A client of a Dask scheduler; ValueError where Dask is not installed, or nobody answers at the address."""
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
    torch.set_num_threads(threads)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
