"""The cells of a study, computed over processes or a cluster: independent, cached, written as they finish."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import commit, provenance
from rvlr_lib.study.plan import BY_STRUCTURE, Plan, check_seal, profile_plan, read_chosen, reference_folder, write_seal
from rvlr_lib.study.regime import run_map
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.study import Study
from rvlr_lib.study.tuning import tune as run_tuning

KEPT = ("r_mean", "i2t/R@1", "t2i/R@1", "i2t/R@10", "t2i/R@10")


def run_study(
    profile: str = "study",
    *,
    tune: bool = False,
    seal: bool = False,
    regime_map: bool = False,
    seeds: str = "",
    sets: str = "",
    jobs: int = 1,
    scheduler: str = "",
    results: str = "",
    device: str = "auto",
    root: str | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """The command ``rvlr study``: tune, seal, or compute the confirmation seeds that ``results`` lacks.

    Args:
        profile: whose ``study`` part is the plan.
        tune: tune instead, and write ``tuning.json``.
        seal: seal the tuned plan instead, and write ``seal.json``.
        regime_map: compute the map instead, ``map/seed-<n>.json``.
        seeds: such as ``0-5`` or ``0,3``; empty: all that are planned.
        sets: data sets, comma between; empty: all of the plan.
        jobs, scheduler, device, root: see :class:`Runner`.
        results: folder; empty: that of the checkout's reference results.
        say: told about progress.

    Raises:
        ValueError: the plan is not valid, not tuned, or was changed since it was sealed.
    """
    plan, folder = profile_plan(profile), Path(results) if results else reference_folder()
    runner = Runner(jobs, scheduler, device, root, say)
    if tune:
        run_tuning(plan, folder, runner, say)
    elif seal:
        say(f"sealed: {write_seal(plan, folder, time.strftime('%Y-%m-%d'))['sha256']}")
    elif regime_map:
        run_map(plan, folder, runner, parse_seeds(seeds) or list(plan.regime_map.seeds))
    else:
        names = sets.split(",") if sets else list(plan.sets)
        confirm(plan, folder, runner, names, parse_seeds(seeds))


def confirm(plan: Plan, folder: Path, runner: Runner, sets: Sequence[str], seeds: Sequence[int]) -> None:
    """Compute the sealed seeds that ``folder`` lacks, ``<data set>/seed-<n>.json`` each, written as they finish."""
    sealed, chosen = check_seal(plan, folder), read_chosen(folder)
    unknown = [name for name in sets if name not in plan.sets]
    if unknown:
        raise ValueError(f"unknown data set {unknown[0]!r}: the plan has {', '.join(plan.sets)}")
    todo = []
    for name in sets:
        part = plan.sets[name]
        for seed in seeds or range(part.seeds):
            there = _open(folder, name, seed, sealed)["cells"]
            for dial in part.dials:
                arms = [arm for arm in part.arms if f"{arm}|{dial}" not in there]
                todo += [(name, dial, seed, arms)] if arms else []
    runner.say(f"{sum(len(arms) for *_, arms in todo)} cells to compute")
    items = [(plan, chosen, *cell) for cell in todo]
    for number, cells in runner.stream(compute_cell, items, "cells"):
        name, _, seed, _ = todo[number]
        record, order = _open(folder, name, seed, sealed), plan.sets[name].cells()
        record["cells"] |= cells
        record["cells"] = {cell: record["cells"][cell] for cell in order if cell in record["cells"]}
        write_json(_file(folder, name, seed), record)


def compute_cell(
    plan: Plan,
    chosen: Mapping[str, Any],
    part: str,
    dial: str,
    seed: int,
    arms: Sequence[str],
    device: str,
    root: str | None,
) -> dict[str, Any]:
    """Small records of some arms at one dial point and seed; runs in a process of its own."""
    found = {}
    for name in arms:
        begun = time.process_time()
        settings = plan.settings(part, dial, seed, chosen, by_structure=name.endswith(BY_STRUCTURE))
        study = Study(settings, device=device, root=Path(root) if root else None)
        record = study.result(name.removesuffix(BY_STRUCTURE)).record
        metrics = {
            relevance: {
                key: _rounded(value, 3)
                for key, value in report.items()
                if "/NDCG@10" in key or (number == 0 and key in KEPT)
            }
            for number, (relevance, report) in enumerate(record["metrics_by_relevance"].items())
        }
        found[f"{name}|{dial}"] = {
            "metrics": metrics,
            "structure": {key: _rounded(value, 4) for key, value in record["structure"].items()},
            "validation_r_mean": _rounded(record.get("training", {}).get("best_score"), 4),
            "device": record["provenance"]["device"],
            "commit": commit(),
            "cpu_seconds": round(time.process_time() - begun, 1),
        }
    return found


def read_seeds(folder: Path, dataset: str, sealed: str = "") -> dict[int, dict[str, Any]]:
    """Cells by seed, of all seeds of a data set in a folder.

    Args:
        folder: of ``<data set>/seed-<n>.json``.
        dataset: one of the plan's.
        sealed: the seal that every file must carry; empty: any, but one.

    Raises:
        ValueError: a file is damaged, or files are of different seals or devices; they are never put together.
    """
    files = sorted((folder / dataset).glob("seed-*.json"), key=lambda path: int(path.stem.removeprefix("seed-")))
    records = {path: read_json(path) for path in files}
    for path, record in records.items():
        if not isinstance(record, dict) or not {"seed", "sealed", "cells"} <= record.keys():
            raise ValueError(f"{path} is no result of `rvlr study`: remove it and run again")
        if record["sealed"] != (sealed or next(iter(records.values()))["sealed"]):
            raise ValueError(
                f"{path} was computed under another seal: results of different plans are never put together"
            )
    devices = {str(cell["device"]).split(":")[0] for record in records.values() for cell in record["cells"].values()}
    if len(devices) > 1:
        raise ValueError(
            f"{folder / dataset} holds results of {' and '.join(sorted(devices))}, which differ in precision: "
            "they are never put together"
        )
    return {record["seed"]: record["cells"] for record in records.values()}


def parse_seeds(text: str) -> list[int]:
    """Seeds as the command line gives them.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if not found:
            raise ValueError(f"seeds {text!r}: expected something like 0-4 or 0,3,7")
        seeds += range(int(found[1]), int(found[2] or found[1]) + 1)
    return seeds


def _open(folder: Path, dataset: str, seed: int, sealed: str) -> dict[str, Any]:
    path = _file(folder, dataset, seed)
    if not path.is_file():
        return {"seed": seed, "dataset": dataset, "sealed": sealed, "provenance": provenance(), "cells": {}}
    record = read_json(path)
    if record.get("sealed") != sealed:
        raise ValueError(f"{path} was computed under another seal: give another folder, or remove it")
    return record


def _file(folder: Path, dataset: str, seed: int) -> Path:
    return folder / dataset / f"seed-{seed}.json"


def _rounded(value: float | None, digits: int) -> float | None:
    """None stays: a figure that is not defined."""
    return None if value is None else round(value, digits)
