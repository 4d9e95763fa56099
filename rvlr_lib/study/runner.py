"""Where cells are computed: in processes on this machine or by the workers of a Dask cluster."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

Items = Sequence[tuple[Any, ...]]
say = partial(print, flush=True)


@dataclass(frozen=True)
class Runner:
    """How to compute cells; each is a call ``function(*item, device, root)`` of a module-level function."""

    jobs: int = 1  # processes on this machine, one thread each
    scheduler: str = ""  # address of a Dask scheduler, such as tcp://host:8786, whose workers are used instead
    device: str = "auto"
    root: str | None = None  # of runs and cache

    def run(self, function: Callable[..., Any], items: Items, label: str) -> list[Any]:
        """Results in the order of the items."""
        return [result for _, result in sorted(self.stream(function, items, label), key=lambda pair: pair[0])]

    def stream(self, function: Callable[..., Any], items: Items, label: str) -> Iterator[tuple[int, Any]]:
        """Results as they finish, each with the index of its item."""
        started = time.monotonic()
        with self._executor() as executor:
            calls = [(*item, self.device, self.root) for item in items]
            futures = {executor.submit(_one_thread, function, *call): index for index, call in enumerate(calls)}
            try:
                for done, future in enumerate(as_completed(futures), start=1):
                    yield futures[future], future.result()
                    elapsed = time.monotonic() - started
                    remaining = elapsed / done * (len(items) - done)
                    say(f"{label} {done}/{len(items)}: {elapsed / 60:.1f} min, about {remaining / 60:.0f} min left")
            finally:  # after a failure, or if the caller stops early
                for future in futures:
                    future.cancel()

    @contextmanager
    def _executor(self) -> Iterator[Executor]:
        if self.scheduler:
            with connect(self.scheduler) as client, client.get_executor(pure=False, retries=3) as executor:
                yield executor
        else:
            with ProcessPoolExecutor(self.jobs, multiprocessing.get_context("spawn"), _quiet) as executor:
                yield executor


def connect(scheduler: str) -> Any:
    """A client of a Dask scheduler; ValueError if Dask is not installed, OSError if nothing answers."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("--scheduler needs Dask: pip install 'rvlr-companion[cluster]'") from error
    return Client(scheduler, timeout=5)


def _one_thread(function: Callable[..., Any], *item: Any) -> Any:
    """Call a function in one thread, so that results do not depend on the number of workers."""
    torch.set_num_threads(1)
    return function(*item)


def _quiet() -> None:
    """Silence stderr: progress bars of several processes would overwrite each other."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115
