"""The imbalance study: dial points × variants × seeds, as cells that are cached, resumable and independent."""

import dataclasses
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.config import VARIANTS, Settings, as_dict, load_settings
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.metrics.statistics import MAX_CLAIMS
from rvlr_lib.provenance import provenance
from rvlr_lib.study.cache import source_hash

ALIGNMENT = "method.weights.alignment"
BEST = "best"  # stands for the strength that validation chooses among those inside the axis


@dataclass(frozen=True)
class Cell:
    """One trained or reference row at one dial point, ``rvlr|text``; with a matching strength, ``matching+3|text``."""

    dial: str
    variant: str
    alignment: float = 0.0

    def __str__(self) -> str:
        return f"{self.variant}{f'+{self.alignment:g}' if self.alignment else ''}|{self.dial}"


@dataclass(frozen=True)
class Claim:
    """A question put beforehand: a weighted sum of cells whose mean over seeds should lie above 0.

    Attributes:
        text: the claim in words.
        metric: key of the results, such as ``r_mean``.
        effect: such as ``rvlr|text - matching_longer|text``; a term may have a factor, ``0.5*rvlr|text``.
        primary: whether it is one of the claims that Holm's correction counts; others get an interval, no verdict.
    """

    text: str
    metric: str
    effect: str
    primary: bool = True

    @property
    def terms(self) -> list[tuple[float, str]]:
        """Factors and names of cells.

        Raises:
            ValueError: the effect is not such a sum.

        >>> Claim("", "r_mean", "rvlr|text - 0.5*matching+3|none").terms
        [(1.0, 'rvlr|text'), (-0.5, 'matching+3|none')]
        """
        term = r"(?:([\d.]+)\*)?([a-z_]+(?:\+[\w.]+)?\|\w+)"
        if not re.fullmatch(rf"{term}(?: [+-] {term})*", self.effect):
            raise ValueError(f"effect {self.effect!r} is no sum such as 'rvlr|text - 0.5*matching+3|none'")
        found = re.findall(rf"([+-] )?{term}", self.effect)
        return [(float(factor or 1) * (-1 if sign == "- " else 1), cell) for sign, factor, cell in found]


@dataclass(frozen=True)
class Sweep:
    """What a study computes, and what it asks; the ``study`` part of a profile.

    Attributes:
        dataset: preset of the data set.
        seeds: planned.
        dials: name -> overrides of the settings.
        variants: at every dial point, references such as ``start`` and ``ceiling`` among them.
        axes: more cells: ``variants``, ``dials`` and, for the axis of matching strength, ``alignment`` values.
        claims: name -> claim.
        delta: metric -> the smallest difference that matters, in points.
        overrides: of the settings, everywhere.
    """

    dataset: str
    seeds: int
    dials: Mapping[str, Mapping[str, Any]]
    variants: Sequence[str]
    claims: Mapping[str, Claim]
    delta: Mapping[str, float]
    axes: Sequence[Mapping[str, Any]] = ()
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[Cell]:
        """Every cell of one seed, dial by dial."""
        found = [Cell(dial, variant) for dial in self.dials for variant in self.variants]
        for axis in self.axes:
            strengths = axis.get("alignment", [0.0])
            found += [Cell(d, v, float(s)) for d in axis["dials"] for v in axis["variants"] for s in strengths]
        return sorted(dict.fromkeys(found), key=lambda cell: list(self.dials).index(cell.dial))

    def settings(self, cell: Cell, seed: int) -> Any:
        """The settings of a cell."""
        chosen = {**self.overrides, **self.dials[cell.dial], "seed": seed}
        if cell.alignment:
            chosen[ALIGNMENT] = cell.alignment
        return load_settings(self.dataset, "corrected", overrides=chosen)

    def identity(self) -> dict[str, Any]:
        """What must be equal for results to be averaged: all settings of every dial point, without the seed."""
        return {dial: as_dict(self.settings(Cell(dial, "matching"), 0)) for dial in self.dials}


def load_sweep(path: Path, overrides: Mapping[str, Any] | None = None) -> Sweep:
    """The ``study`` part of a profile, checked.

    Raises:
        ValueError: a missing part or an unknown key, variant, dial point or cell; names it.
    """
    import yaml

    if not path.is_file():
        raise ValueError(f"{path} is not there; a study is the 'study' part of a profile")
    plan = dict((yaml.safe_load(path.read_text()) or {}).get("study") or {})
    known = {item.name: item for item in dataclasses.fields(Sweep)}
    needed = [name for name, item in known.items() if item.default is item.default_factory is dataclasses.MISSING]
    _only(plan, known, f"{path}: unknown key of 'study'")
    _needs(needed, plan, f"{path}: 'study'")
    for name, claim in plan["claims"].items():
        _only(claim, [item.name for item in dataclasses.fields(Claim)], f"{path}: claim {name}: unknown key")
        _needs(("text", "metric", "effect"), claim, f"{path}: claim {name}")
    claims = {name: Claim(**claim) for name, claim in plan["claims"].items()}
    sweep = Sweep(**plan | {"claims": claims, "overrides": {**plan.get("overrides", {}), **(overrides or {})}})
    references = ("start", "teachers", "floor", "ceiling")
    for axis in sweep.axes:
        _only(axis, ("variants", "dials", "alignment"), f"{path}: unknown key of an axis")
        _only(axis["dials"], sweep.dials, f"{path}: an axis names an unknown dial point")
    _only((cell.variant for cell in sweep.cells()), (*VARIANTS, *references), f"{path}: unknown variant")
    names = {str(cell) for cell in sweep.cells()}
    names |= {f"{cell.variant}+{BEST}|{cell.dial}" for cell in sweep.cells() if cell.alignment}
    for name, claim in claims.items():
        _only((cell for _, cell in claim.terms), names, f"{path}: claim {name} names a cell that is not computed:")
        if claim.primary:
            _only([claim.metric], sweep.delta, f"{path}: claim {name}: no delta for")
    dialled = {key for dial in sweep.dials.values() for key in dial}
    for key in overrides or {}:
        if key == "seed" or key in dialled:
            raise ValueError(f"{key} belongs to the plan of {path} (seeds and dial points) and cannot be set")
    if sweep.seeds < 2 or sum(claim.primary for claim in claims.values()) > MAX_CLAIMS:
        raise ValueError(f"{path}: a study plans two seeds or more and at most {MAX_CLAIMS} primary claims")
    sweep.identity()  # every setting is checked before anything runs
    return sweep


def parse_seeds(text: str) -> list[int]:
    """Seeds as the command line gives them.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in text.split(","):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not found:
            raise ValueError(f"seeds {text!r}: expected something like 0-4 or 0,3,7")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return seeds


def run_sweep(
    sweep: Sweep,
    seeds: Iterable[int],
    results: Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    root: Path | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Compute the cells that ``results`` lacks; each is written there as soon as it is finished.

    Args:
        sweep: what to compute.
        seeds: which seeds.
        results: folder of ``seed-<n>.json``, one file per seed.
        jobs: processes; each gets its share of the CPU's threads.
        device: to compute on.
        root: of the cache, see :func:`rvlr_lib.study.cache.default_root`.
        say: told about progress.

    Raises:
        ValueError: ``results`` holds a study of other settings, or a file there is damaged.
    """
    seeds, cells = list(dict.fromkeys(seeds)), sweep.cells()
    records = {seed: _open(sweep, seed, results) for seed in seeds}
    # neighbours in the queue are of different seeds, so that they seldom wait for one another's teachers
    rounds = [seeds[at : at + jobs] for at in range(0, len(seeds), jobs)]
    todo = [
        (cell, seed) for some in rounds for cell in cells for seed in some if str(cell) not in records[seed]["cells"]
    ]
    say(f"{len(cells) * len(seeds)} cells of {len(seeds)} seeds, {len(todo)} to compute with {jobs} processes")
    if not todo:
        return
    threads = max(1, (os.cpu_count() or 1) // jobs)
    started, spent = time.monotonic(), 0.0
    pool = ProcessPoolExecutor(jobs, mp_context=_spawn(), initializer=_quiet, initargs=(threads,))
    try:
        running = {
            pool.submit(compute_cell, sweep, cell, seed, device, str(root) if root else None): (cell, seed)
            for cell, seed in todo
        }
        for done, future in enumerate(as_completed(running), start=1):
            cell, seed = running[future]
            found = future.result()
            records[seed] = _open(sweep, seed, results)  # another process may have added cells since
            kept = records[seed]["cells"] | {str(cell): found}
            order = [*(str(planned) for planned in cells), *kept]  # cells of another plan stay, behind
            records[seed]["cells"] = {name: kept[name] for name in dict.fromkeys(order) if name in kept}
            write_json(_file(results, seed), records[seed])
            spent += found["cpu_seconds"]
            elapsed = time.monotonic() - started
            left = elapsed / done * (len(todo) - done)
            say(
                f"[{done}/{len(todo)}] seed {seed} {cell}: {found['cpu_seconds']:.0f} CPU s; "
                f"{elapsed / 60:.0f} min so far, about {left / 60:.0f} min left"
            )
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    say(f"done: {spent / 3600:.2f} CPU hours; {results}")


def compute_cell(sweep: Sweep, cell: Cell, seed: int, device: str, root: str | None) -> dict[str, Any]:
    """The small record of one cell: metrics by relevance, structure, validation score, CPU seconds."""
    from rvlr_lib.evaluation import evaluate as evaluation
    from rvlr_lib.study.study import Study

    begun = time.process_time()
    study = Study(sweep.settings(cell, seed), device=device, root=Path(root) if root else None)
    result = study.result(cell.variant)
    record = result.record
    headline = next(iter(record["metrics_by_relevance"].values()))
    if result.features is not None and "r_mean" in headline:  # within a seed the picture is the unit
        headline |= evaluation.cluster_recall(result.features, study.dataset("test"))
    metrics = {}
    for number, (relevance, report) in enumerate(record["metrics_by_relevance"].items()):
        kept = {key: value for key, value in report.items() if "/NDCG@10" in key or (number == 0 and "NDCG" not in key)}
        metrics[relevance] = {key: _rounded(value, 3) for key, value in kept.items()}
    found = {"metrics": metrics, "structure": {key: _rounded(value, 4) for key, value in record["structure"].items()}}
    if "training" in record:
        found["validation_r_mean"] = round(record["training"]["best_score"], 4)
        found["train_seconds"] = round(record["training"]["seconds"], 1)
    return {**found, "device": record["provenance"]["device"], "commit": record["provenance"]["commit"],
            "cpu_seconds": round(time.process_time() - begun, 1)}  # fmt: skip


def read_results(folder: Path, sweep: Sweep | None = None) -> dict[int, dict[str, Any]]:
    """Cells by name, by seed, of all seeds in a folder.

    Args:
        folder: of ``seed-<n>.json``.
        sweep: where given, its settings must be those of the results.

    Raises:
        ValueError: there is none, a file is damaged, or the files are of different settings.
    """
    files = sorted(folder.glob("seed-*.json"), key=lambda path: int(path.stem.removeprefix("seed-")))
    if not files:
        raise ValueError(f"{folder} holds no results of a study: `rvlr study` makes them")
    records = {path: read_json(path) for path in files}
    for path, record in records.items():
        if not isinstance(record, dict) or not {"seed", "identity", "cells"} <= record.keys():
            raise ValueError(f"{path} is no result of `rvlr study`: remove it and run again")
    wanted = _json(sweep.identity()) if sweep else next(iter(records.values()))["identity"]
    for path, record in records.items():
        _same(wanted, record["identity"], path)
    devices = {str(cell["device"]).split(":")[0] for record in records.values() for cell in record["cells"].values()}
    if len(devices) > 1:
        raise ValueError(f"{folder} holds results of {' and '.join(sorted(devices))}, whose precision differs: give "
                         "each device its own folder, they are never put together")  # fmt: skip
    return {record["seed"]: record["cells"] for record in records.values()}


def read_provenance(folder: Path) -> dict[str, Any]:
    """Where the results of a folder came from: that of the first seed, and the commits of all."""
    found = [read_json(path)["provenance"] for path in sorted(folder.glob("seed-*.json"))]
    cells = [cell for path in sorted(folder.glob("seed-*.json")) for cell in read_json(path)["cells"].values()]
    commits = dict.fromkeys([one["commit"] for one in found] + [cell["commit"] for cell in cells if "commit" in cell])
    return {**found[0], "commit": ", ".join(commits)}


def _open(sweep: Sweep, seed: int, results: Path) -> dict[str, Any]:
    path = _file(results, seed)
    if path.is_file():
        record = read_json(path)
        _same(_json(sweep.identity()), record.get("identity"), path)
        return record
    modules = {
        "data": "rvlr_lib.study.inputs",
        "training": "rvlr_lib.training.stages",
        "evaluation": "rvlr_lib.evaluation.evaluate",
    }
    code = {part: source_hash(module)[:16] for part, module in modules.items()}
    return {
        "seed": seed,
        "identity": _json(sweep.identity()),
        "provenance": {**provenance(), "code": code},
        "cells": {},
    }


def _same(wanted: Any, found: Any, path: Path) -> None:
    """Refuse other settings; one that did not exist when the results were made had its default's effect."""
    defaults = _json(as_dict(Settings()))
    wanted, found = ({dial: _filled(own, defaults) for dial, own in each.items()} for each in (wanted, found or {}))
    if wanted != found:
        raise ValueError(
            f"{path} was computed with other settings ({_first_difference(wanted, found)}); results of different "
            "settings are never put together: give another folder, or remove it"
        )


def _filled(found: Any, defaults: Any) -> Any:
    """Nested settings with those that are missing taken from ``defaults``."""
    if not isinstance(found, dict) or not isinstance(defaults, dict):
        return found
    return {**defaults, **{key: _filled(value, defaults.get(key)) for key, value in found.items()}}


def _first_difference(wanted: Any, found: Any, at: str = "") -> str:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in [*wanted, *found]:
            if wanted.get(key) != found.get(key):
                return _first_difference(wanted.get(key), found.get(key), f"{at}.{key}".lstrip("."))
    return f"{at}: {found!r} there, {wanted!r} here"


def _file(results: Path, seed: int) -> Path:
    return results / f"seed-{seed}.json"


def _json(value: Any) -> Any:
    """As it is after a round through JSON."""
    import json

    return json.loads(json.dumps(value))


def _rounded(value: float | None, digits: int) -> float | None:
    """None stays: a figure that is not defined."""
    return None if value is None else round(value, digits)


def _spawn() -> Any:
    import multiprocessing

    return multiprocessing.get_context("spawn")


def _quiet(threads: int) -> None:
    """A worker's share of the CPU; its progress bars would write over one another."""
    import sys

    import torch

    torch.set_num_threads(threads)
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def _needs(names: Iterable[str], there: Iterable[str], what: str) -> None:
    missing = [name for name in names if name not in there]
    if missing:
        raise ValueError(f"{what} lacks {', '.join(map(repr, missing))}")


def _only(names: Iterable[str], valid: Iterable[str], what: str) -> None:
    valid = list(valid)
    wrong = [name for name in names if name not in valid]
    if wrong:
        raise ValueError(f"{what} {wrong[0]!r}; valid: {', '.join(map(str, valid))}")


def open_results(
    folder: str | Path = "", dataset: str = "scenes", profile: str = "study"
) -> tuple[Sweep, dict[int, dict[str, Any]]] | None:
    """The plan of a study and what its seeds found, for a notebook; None, and a line that says so, where there is none.

    Args:
        folder: of ``seed-<n>.json``; empty: the results that come with the checkout.
        dataset: that is looked at; a study of another one is not shown.
        profile: whose ``study`` part is the plan.
    """
    checkout = Path(__file__).parents[2]
    place = Path(folder) if folder else checkout / "data" / "reference" / "study"
    plan = checkout / "notebooks" / "profiles" / f"{profile}.yaml"
    if not plan.is_file() or not list(place.glob("seed-*.json")):
        print(f"No results of the study in {place.name}: `rvlr study` makes them. What follows is one seed.")
        return None
    sweep = load_sweep(plan)
    if sweep.dataset != dataset:
        print(f"The study is of {sweep.dataset}; for {dataset} there is none, what follows is one seed.")
        return None
    results = read_results(place, sweep)
    whole = sum(len(cells) == len(sweep.cells()) for cells in results.values())
    print(f"The study on {sweep.dataset}: {len(results)} seeds ({whole} whole) of {sweep.seeds} planned.")
    return sweep, results
