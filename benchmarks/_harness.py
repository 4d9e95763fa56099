"""Shared by the benchmarks: alternating runs, peak memory of a child process, the machine and the table."""

import contextlib
import importlib
import json
import math
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rvlr_lib.disk import write_text

ROOT = Path(__file__).parents[1]
SIZES = ("tiny", "quick", "full")


@dataclass(frozen=True)
class Options:
    """Size of a benchmark: ``full`` is the size of its claim, ``tiny`` only shows that it runs."""

    size: str = "full"
    captions: Path | None = None  # JSON list of {image, caption: [...]}; None: captions of generated scenes

    def pick(self, tiny: Any, quick: Any, full: Any) -> Any:
        """The value for this size."""
        return {"tiny": tiny, "quick": quick, "full": full}[self.size]

    @property
    def repeats(self) -> int:
        """Number of runs of each side."""
        return self.pick(1, 3, 5)


@dataclass(frozen=True)
class Row:
    """One row of the table; ``met`` is None if there is no goal or no measurement."""

    what: str
    against: str
    goal: str
    measured: str
    met: bool | None
    notes: str = ""
    values: dict[str, Any] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether the results of both sides agree; True if they were not compared."""
        return bool(self.values.get("difference", 0) <= self.values.get("allowed_difference", 0))

    def without_goal(self) -> "Row":
        """The row for another size than that of the claim, at which only equality counts."""
        return replace(self, met=None if self.equal else False)


@dataclass(frozen=True)
class Timing:
    """Median seconds of both sides, and the last result of each."""

    ours: float
    theirs: float
    our_result: Any
    their_result: Any

    @property
    def ratio(self) -> float:
        """How many times faster our side is."""
        return self.theirs / self.ours


def alternate(ours: Callable[[], Any], theirs: Callable[[], Any], repeats: int, *, warm_up: bool = True) -> Timing:
    """Time theirs, ours, theirs, ours, ..., so that a busy machine slows both, and take medians."""
    if warm_up:
        theirs(), ours()
    seconds: tuple[list[float], list[float]] = [], []
    results = [None, None]
    for _ in range(repeats):
        for side, run in enumerate((theirs, ours)):
            begin = time.perf_counter()
            results[side] = run()
            synchronize()
            seconds[side].append(time.perf_counter() - begin)
    theirs_seconds, our_seconds = map(statistics.median, seconds)
    return Timing(our_seconds, theirs_seconds, results[1], results[0])


def synchronize() -> None:
    """Wait for the GPU, if one is used."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def speed_row(
    what: str,
    against: str,
    ratio: float,
    at_least: float | None,
    *,
    equal: tuple[float, float] | None = None,
    notes: str = "",
    **values: Any,
) -> Row:
    """A row for a ratio of times; ``equal`` is the largest difference of the results and the allowed one."""
    goal = f"{at_least:g}×" if at_least else "–"
    met = None if at_least is None else ratio >= at_least
    if equal is not None:
        goal += f", equal to {equal[1]:g}"
        notes = "; ".join(filter(None, [f"differ by {equal[0]:.0e}" if equal[0] else "no difference", notes]))
        met = bool(met in (None, True) and equal[0] <= equal[1])
        values |= {"difference": equal[0], "allowed_difference": equal[1]}
    return Row(what, against, goal, f"{rounded(ratio)}×", met, notes, {"ratio": ratio, "at_least": at_least, **values})


def limit_row(what: str, limits: dict[str, float], amounts: dict[str, float], notes: str = "") -> Row:
    """A row for amounts that must not exceed limits, by unit (``s``, ``GB``)."""
    goal = ", ".join(f"≤ {limit:g} {unit}" for unit, limit in limits.items())
    measured = ", ".join(f"{rounded(amounts[unit])} {unit}" for unit in limits)
    met = all(amounts[unit] <= limit for unit, limit in limits.items())
    return Row(what, "–", goal, measured, met, notes, {"limits": limits, "found": amounts})


def skipped(what: str, against: str, goal: str, reason: str) -> Row:
    """A row for a benchmark that cannot run here."""
    return Row(what, against, goal, "not measured", None, reason)


def rounded(value: float) -> str:
    """A number with two significant digits, from 100 on as an integer.

    >>> rounded(0.1234), rounded(3.456), rounded(1791.2)
    ('0.12', '3.5', '1,791')
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time with a fitting unit.

    >>> duration(2e-8), duration(0.0123), duration(61.2)
    ('20 ns', '12 ms', '61 s')
    """
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{rounded(seconds / size)} {unit}"
    return f"{rounded(seconds / 1e-9)} ns"


def largest_difference(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Largest absolute difference over the keys; infinite if keys differ or a value is not finite."""
    if ours.keys() != theirs.keys():
        return math.inf
    largest = max(float((torch.as_tensor(ours[key]) - torch.as_tensor(theirs[key])).abs().max()) for key in theirs)
    return largest if math.isfinite(largest) else math.inf


def in_child(function: Callable[..., dict[str, float]], *arguments: Any) -> dict[str, float]:
    """Call a module-level function in a separate process, so that its peak memory can be measured."""
    code = (
        "import importlib, json, sys; name, function, *rest = json.loads(sys.argv[1]);"
        "print(json.dumps(getattr(importlib.import_module(name), function)(*rest)))"
    )
    call = json.dumps([function.__module__, function.__name__, *arguments])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    options = {"cwd": ROOT, "capture_output": True, "text": True, "env": os.environ | {"PYTHONPATH": path}}
    run = subprocess.run([sys.executable, "-c", code, call], **options)
    if run.returncode:
        raise RuntimeError(f"{function.__module__}.{function.__name__} failed:\n{run.stderr[-2000:]}")
    return json.loads(run.stdout.splitlines()[-1])


class PeakMemory:
    """Context manager: peak memory of the block beyond what the process held before, in GB (10⁹ bytes), as ``gb``."""

    gb = math.nan

    def __enter__(self) -> "PeakMemory":
        with contextlib.suppress(OSError):  # Linux: reset the peak, which imports have raised
            Path("/proc/self/clear_refs").write_text("5")
        self.before = self._read("VmRSS")
        return self

    def __exit__(self, *error: Any) -> None:
        self.gb = max(0.0, self._read("VmHWM") - self.before)

    @staticmethod
    def _read(key: str) -> float:
        status = Path("/proc/self/status")
        if status.is_file():  # on Linux, getrusage of a child starts at the peak of its parent
            return int(status.read_text().split(f"{key}:")[1].split()[0]) * 1024 / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def machine() -> dict[str, Any]:
    """The machine on which figures were measured, without its host name."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        model = re.search(r"^model name\s*: (.+)$", info.read_text(), re.M)
        cpu = model[1].strip() if model else cpu
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": cpu,
        "cores": usable,
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "busy_before": round(os.getloadavg()[0], 1),
    }


def slug(description: dict[str, Any]) -> str:
    """A file name for a machine.

    >>> slug({"cpu": "AMD EPYC 9R14", "cores": 2, "gpu": None})
    'amd-epyc-9r14-2-cores'
    """
    words = f"{description['gpu'] or description['cpu']} {description['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    verdict = {True: "yes", False: "**missed**", None: "–"}
    lines = ["| what | against | goal | measured | reached | notes |", "| --- | --- | --- | ---: | --- | --- |"]
    for row in rows:
        cells = [row.what, row.against, row.goal, row.measured, verdict[row.met], row.notes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as plain values."""
    return [asdict(row) for row in rows]


def load(name: str) -> Any:
    """The module of a benchmark."""
    return importlib.import_module(f"benchmarks.{name}")


def insert_between(page: Path, marker: str, text: str) -> None:
    """Replace the text between ``<!-- marker:begin -->`` and ``<!-- marker:end -->``; ValueError without them."""
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, found, after = rest.partition(end)
    if not found:
        raise ValueError(f"{page} must hold the lines {begin} and {end}, in this order")
    write_text(page, f"{before}{begin}\n{text.strip()}\n{end}{after}")
