"""The cells of a study, computed over processes or a cluster: independent, cached, written as they finish."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rvlr_lib.config import ArmSettings, Settings, arm
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import commit, provenance
from rvlr_lib.study.cache import Stage
from rvlr_lib.study.comparisons import curve_stage
from rvlr_lib.study.plan import BY_STRUCTURE, Plan, check_seal, load_plan, read_chosen, reference_folder, write_seal
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
    results: str = "",
    **running: Any,
) -> None:
    """The command ``rvlr study``: compute the confirmation seeds that ``results`` lacks, or tune, seal, draw the map.

    Options as its help says, ``running`` those of :class:`rvlr_lib.study.runner.Runner`. ValueError: the plan is not
    valid, not tuned, or was changed since it was sealed.
    """
    plan, folder = load_plan(profile), Path(results) if results else reference_folder(profile)
    runner = Runner(**running)
    if tune:
        run_tuning(plan, folder, runner)
    elif seal:
        runner.say(f"sealed: {write_seal(plan, folder, time.strftime('%Y-%m-%d'))['sha256']}")
    elif regime_map:
        if not plan.regime_map.seeds:
            raise ValueError(f"the plan of {profile} has no regime_map")
        run_map(plan, folder, runner, parse_seeds(seeds) or list(plan.regime_map.seeds))
    else:
        confirm(plan, folder, runner, sets.split(",") if sets else list(plan.sets), parse_seeds(seeds))


def confirm(plan: Plan, folder: Path, runner: Runner, sets: Sequence[str], seeds: Sequence[int]) -> None:
    """Compute the sealed seeds that ``folder`` lacks, ``<data set>/seed-<n>.json`` each, written as they finish."""
    sealed, chosen = check_seal(plan, folder), read_chosen(folder)
    if unknown := [name for name in sets if name not in plan.sets]:
        raise ValueError(f"unknown data set {unknown[0]!r}: the plan has {', '.join(plan.sets)}")
    files, todo = {}, []
    for name in sets:
        part = plan.sets[name]
        if beyond := [seed for seed in seeds if seed >= part.seeds]:
            raise ValueError(f"seed {beyond[0]} of {name} is not planned: 0 to {part.seeds - 1} are")
        for seed in seeds or range(part.seeds):
            files[name, seed] = folder / name / f"seed-{seed}.json"
            there = _read(files[name, seed], sealed)["cells"] if files[name, seed].is_file() else {}
            for dial in part.dials:
                arms = [arm for arm in part.arms if f"{arm}|{dial}" not in there]
                cells = {f"{arm}|{dial}": plan.settings(name, dial, seed, chosen, arm) for arm in arms}
                todo += [(name, seed, cells)] if cells else []
    runner.say(f"{sum(len(cells) for *_, cells in todo)} cells to compute")
    for number, cells in runner.stream(compute_cells, [(cells,) for *_, cells in todo], "cells"):
        name, seed, _ = todo[number]
        record = {"seed": seed, "dataset": name, "sealed": sealed, "provenance": provenance(), "cells": {}}
        if files[name, seed].is_file():
            record = _read(files[name, seed], sealed)
        cells = record["cells"] | cells
        record["cells"] = {cell: cells[cell] for cell in plan.sets[name].cells() if cell in cells}
        write_json(files[name, seed], record)


def compute_cells(cells: Mapping[str, Settings], device: str, root: str | None) -> dict[str, Any]:
    """Small records of cells such as ``rvlr|text``, one after another; runs in a process of its own."""
    found = {}
    for cell, settings in cells.items():
        begun, name = time.process_time(), cell.partition("|")[0].removesuffix(BY_STRUCTURE)
        record = Study(settings, device=device, root=root).result(name)
        metrics, fit = {}, record.get("training")
        for number, (relevance, report) in enumerate(record["metrics_by_relevance"].items()):
            recalls = KEPT if number == 0 else ()  # they are the same under every relevance
            kept = {key: value for key, value in report.items() if "/NDCG@10" in key or key in recalls}
            metrics[relevance] = _rounded(kept, 3)
        found[cell] = {
            "metrics": metrics,
            "structure": _rounded(record["structure"], 4),
            "validation_r_mean": fit and round(fit["history"][fit["best_epoch"]]["r_mean"], 4),
            "device": record["provenance"]["device"],
            "commit": commit(),
            "cpu_seconds": round(time.process_time() - begun, 1),
        }
    return found


def run_map(plan: Plan, folder: Path, runner: Runner, seeds: Sequence[int]) -> None:
    """Compute the seeds that ``folder/map`` lacks, ``seed-<n>.json`` each."""
    chosen, dials = read_chosen(folder), plan.regime_map.dials
    files = {seed: folder / "map" / f"seed-{seed}.json" for seed in seeds}
    todo = [(dial, seed) for seed in seeds if not files[seed].is_file() for dial in dials]
    found: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
    for number, cells in runner.stream(map_cell, [(plan, chosen, *item) for item in todo], "map"):
        dial, seed = todo[number]
        found[seed][dial] = cells
        if len(found[seed]) == len(dials):
            cells = {dial: found[seed][dial] for dial in dials}
            write_json(files[seed], {"seed": seed, "provenance": provenance(), "cells": cells})


def map_cell(
    plan: Plan, chosen: Mapping[str, Any], dial: str, seed: int, device: str, root: str | None
) -> dict[str, Any]:
    """Validation scores by teacher and gradient ratio at one dial point and seed; ``0`` is ``matching_longer``."""
    base = plan.settings(plan.regime_map.dataset, dial, seed, chosen)
    rate = base.arms["matching_longer"].learning_rate

    def study(**arms: ArmSettings) -> Study:
        return Study(dataclasses.replace(base, arms={**base.arms, **arms}), device=device, root=root)

    found: dict[str, Any] = {"0": study().validation("matching_longer")}
    for label, name in plan.regime_map.teachers.items():
        source = arm(name).takes or name
        group = arm(source).groups[0]
        norms = study(**{source: ArmSettings(rate, {group: 1.0})}).first_gradients(name)
        for ratio in plan.regime_map.ratios:
            strength = float(f"{ratio / (norms[group] / norms['contrastive']):.4g}")
            scores = study(**{source: ArmSettings(rate, {group: strength})}).validation(name)
            found[f"{label}|{ratio:g}"] = scores | {"strength": strength}
    return found | {"learning_rate": rate}


def warm(wanted: Sequence[tuple[Any, ...]], *, jobs: int = 0, say: Callable[[str], None] = print) -> None:
    """Fill the cache with results, one thread for each process, so that numbers do not depend on their number.

    Args:
        wanted: a study, its arms and references such as ``start``, and any number of curves each; a curve is a
            function for :func:`rvlr_lib.study.comparisons.gather`, its arms and its options.
        jobs: processes; 0: as many as PyTorch has threads, at most four; on a GPU one.
        say: told about each finished study.
    """
    todo = []
    for study, names, *curves in wanted:
        if not all(map(study.cache.has, _wanted_stages(study, names, curves))):
            todo.append((study.settings, names, curves, str(study.device), str(study.cache.root)))
    on_gpu, label = any(device != "cpu" for *_, device, _ in todo), "stage seeds and dial settings"
    jobs = 1 if on_gpu else min(jobs or min(torch.get_num_threads(), 4), len(todo))
    if jobs > 1:
        Runner(jobs, threads=1, say=say).run(_warm_cell, todo, label)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if on_gpu else 1)
    try:
        for number, item in enumerate(todo, start=1):
            _warm_cell(*item)
            say(f"{label} {number}/{len(todo)}")
    finally:
        torch.set_num_threads(threads)


def _warm_cell(settings: Any, names: Sequence[str], curves: Sequence[Any], device: str, root: str, *_: Any) -> None:
    study = Study(settings, device=device, root=root)
    for stage in _wanted_stages(study, names, curves):
        study.cache.folder(stage)


def _wanted_stages(study: Study, names: Sequence[str], curves: Sequence[Any]) -> list[Stage]:
    return [*map(study.result_stage, names), *(curve_stage(study, *curve) for curve in curves)]


def read_seeds(folder: Path, dataset: str, sealed: str, planned: int) -> dict[int, dict[str, Any]]:
    """Cells by planned seed, ``folder/<data set>/seed-<n>.json`` each; ValueError: other seals, different devices."""
    files = {seed: folder / dataset / f"seed-{seed}.json" for seed in range(planned)}
    found = {seed: _read(path, sealed)["cells"] for seed, path in files.items() if path.is_file()}
    devices = {re.sub(r":\d+", "", cell["device"]) for cells in found.values() for cell in cells.values()}
    if len(devices) > 1:
        held = f"{folder / dataset} holds results of {' and '.join(sorted(devices))}"
        raise ValueError(f"{held}, which differ in precision: they are never put together")
    return found


def _read(path: Path, sealed: str) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or not {"seed", "sealed", "cells"} <= record.keys():
        raise ValueError(f"{path} is no result of `rvlr study`: remove it and run again")
    if record["sealed"] != sealed:
        raise ValueError(f"{path} was computed under another seal: give another folder, or remove it")
    return record


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


def _rounded(values: Mapping[str, float | None], digits: int) -> dict[str, float | None]:
    """None stays: a figure that is not defined."""
    return {key: None if value is None else round(value, digits) for key, value in values.items()}
