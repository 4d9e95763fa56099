"""Tuning, confirmation and regime map of a study: independent, cached cells over processes or a cluster."""

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rvlr_lib.config import ARMS, ArmSettings, Settings, arm
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import commit, provenance
from rvlr_lib.study.cache import Stage
from rvlr_lib.study.comparisons import curve_stage
from rvlr_lib.study.plan import Plan, arm_of, check_seal, load_plan, read_chosen, reference_folder, write_seal
from rvlr_lib.study.runner import Runner, say
from rvlr_lib.study.study import Study
from rvlr_lib.training.batches import derived_seed

Trial = dict[str, Any]  # learning_rate, strengths
Key = tuple[str, int]  # arm, number of its trial
Scores = dict[str, dict[str, dict[str, float]]]  # seed -> dial -> r_mean and structure, on validation
SAME_DRAWS = {"mean_relation": "structure"}  # groups of terms with the same draws, so that their trials pair up
CELL_SECONDS = 15  # of a CPU core: average of the study's cells, heads at its sizes
RECALLS = ("r_mean", "i2t/R@1", "t2i/R@1", "i2t/R@10", "t2i/R@10")


def run_study(profile: str = "study", *, results: str = "", **options: Any) -> None:
    """The command ``rvlr study``: compute the confirmation seeds missing from ``results``, or tune, seal, draw the map.

    ``options``: ``tune``, ``seal`` or ``regime_map``, and those of :class:`rvlr_lib.study.runner.Runner`. ValueError if
    the plan is not valid, not tuned, or was changed since it was sealed.
    """
    plan, folder = load_plan(profile), reference_folder(profile, results)
    tune, seal, regime_map = (options.pop(name, False) for name in ("tune", "seal", "regime_map"))
    if tune + seal + regime_map > 1:
        raise ValueError("give one of tune, seal and regime_map")
    runner = Runner(**options)
    if tune and (folder / "seal.json").is_file():
        raise ValueError(f"{folder} holds a sealed study, whose tuning is final: give another folder with --results")
    if tune:
        run_tuning(plan, folder, runner)
    elif seal:
        say(f"sealed: {write_seal(plan, folder, time.strftime('%Y-%m-%d'))['sha256']}")
    elif regime_map:
        if not plan.regime_map.seeds:
            raise ValueError(f"the plan of {profile} has no regime_map")
        run_map(plan, folder, runner)
    else:
        confirm(plan, folder, runner)


def confirm(plan: Plan, folder: Path, runner: Runner) -> None:
    """Compute the sealed cells that ``folder`` lacks; ``<data set>/seed-<n>.json`` grows as they finish."""
    sealed, chosen = check_seal(plan, folder, adding=True), read_chosen(folder)
    todo = []
    for name, part in plan.sets.items():
        for seed in range(part.seeds):
            path = folder / name / f"seed-{seed}.json"
            record = {"seed": seed, "dataset": name, "sealed": sealed, "cells": {}}
            present = _read_seed(path, sealed)["cells"] if path.is_file() else {}
            for dial in part.dials:
                arms = [arm for arm in part.arms if f"{arm}|{dial}" not in present]
                cells = {f"{arm}|{dial}": plan.settings(name, dial, seed, chosen, arm) for arm in arms}
                todo += [(path, record, part, cells)] if cells else []
    count = sum(len(cells) for *_, cells in todo)
    say(f"{count} cells to compute, about {count * CELL_SECONDS / 3600:.1f} CPU hours (whole towers: 7 ×)")
    for number, cells in runner.stream(compute_cells, [(cells,) for *_, cells in todo], "cells"):
        path, record, part, _ = todo[number]  # the file is read again: another process may have added cells
        record = _read_seed(path, sealed) if path.is_file() else record | {"provenance": provenance()}
        cells = record["cells"] | cells
        write_json(path, record | {"cells": {cell: cells[cell] for cell in part.cells() if cell in cells}})


def compute_cells(cells: Mapping[str, Settings], device: str, root: str | None) -> dict[str, Any]:
    """Short records of cells such as ``rvlr|text``, one after another; runs in its own process."""
    records = {}
    for cell, settings in cells.items():
        started = time.process_time()
        result = Study(settings, device=device, root=root).result(arm_of(cell))
        metrics = {}
        for number, (relevance, report) in enumerate(result["metrics_by_relevance"].items()):
            recalls = RECALLS if number == 0 else ()  # they are the same under every relevance
            kept = {key: value for key, value in report.items() if "/NDCG@10" in key or key in recalls}
            metrics[relevance] = _rounded(kept, 3)
        records[cell] = {
            "metrics": metrics,
            "structure": _rounded(result["structure"], 4),
            "device": result["provenance"]["device"],
            "commit": commit(),
            "cpu_seconds": round(time.process_time() - started, 1),
        }
    return records


def run_map(plan: Plan, folder: Path, runner: Runner) -> None:
    """Compute the seeds of the map that ``folder`` lacks, into ``map/seed-<n>.json`` each."""
    chosen, dials, seeds = read_chosen(folder), plan.regime_map.dials, plan.regime_map.seeds
    files = {seed: folder / "map" / f"seed-{seed}.json" for seed in seeds}
    todo = [(dial, seed) for seed in seeds if not files[seed].is_file() for dial in dials]
    finished: dict[int, dict[str, Any]] = {seed: dict.fromkeys(dials) for seed in seeds}
    for number, cells in runner.stream(map_cell, [(plan, chosen, *item) for item in todo], "map"):
        dial, seed = todo[number]
        finished[seed][dial] = cells
        if all(finished[seed].values()):
            write_json(files[seed], {"seed": seed, "provenance": provenance(), "cells": finished[seed]})


def map_cell(
    plan: Plan, chosen: Mapping[str, Any], dial: str, seed: int, device: str, root: str | None
) -> dict[str, Any]:
    """Validation scores by ``teacher|gradient ratio`` at one dial setting and seed; ``0`` is ``matching_longer``."""
    base = plan.settings(plan.regime_map.dataset, dial, seed, chosen)
    rate = base.arms["matching_longer"].learning_rate

    def study(**arms: ArmSettings) -> Study:
        return Study(replace(base, arms={**base.arms, **arms}), device=device, root=root)

    cells: dict[str, Any] = {"0": study().validation("matching_longer")}
    for label, name in plan.regime_map.teachers.items():
        tuned_as = arm(name).takes or name
        group = arm(tuned_as).groups[0]
        norms = study(**{tuned_as: ArmSettings(rate, {group: 1.0})}).first_gradients(name)
        for ratio in plan.regime_map.ratios:
            strength = float(f"{ratio / (norms[group] / norms['contrastive']):.4g}")
            scores = study(**{tuned_as: ArmSettings(rate, {group: strength})}).validation(name)
            cells[f"{label}|{ratio:g}"] = scores | {"strength": strength}
    return cells | {"learning_rate": rate}


def warm(wanted: Sequence[tuple[Any, ...]], *, jobs: int = 0) -> None:
    """Fill the cache with results, one thread per process, so that numbers do not depend on how many processes run.

    ``wanted``: tuples of a study, its arms and references such as ``start``, and any number of curves: a function for
    :func:`rvlr_lib.study.comparisons.gather`, its arms and its options. ``jobs``: processes; 0 takes PyTorch's number
    of threads, at most four; a GPU gets one.
    """
    todo = []
    for study, names, *curves in wanted:
        if not all(map(study.cache.has, _wanted_stages(study, names, curves))):
            todo.append((study.settings, names, curves, str(study.device), str(study.cache.root)))
    on_gpu, label = any(device != "cpu" for *_, device, _ in todo), "stage seeds and dial settings"
    jobs = 1 if on_gpu else min(jobs or min(torch.get_num_threads(), 4), len(todo))
    if jobs > 1:
        Runner(jobs).run(_warm_study, todo, label)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(threads if on_gpu else 1)
    try:
        for number, item in enumerate(todo, start=1):
            _warm_study(*item)
            say(f"{label} {number}/{len(todo)}")
    finally:
        torch.set_num_threads(threads)


def _warm_study(settings: Any, names: Sequence[str], curves: Sequence[Any], device: str, root: str, *_: Any) -> None:
    study = Study(settings, device=device, root=root)
    for stage in _wanted_stages(study, names, curves):
        study.cache.folder(stage)


def _wanted_stages(study: Study, names: Sequence[str], curves: Sequence[Any]) -> list[Stage]:
    return [*map(study.result_stage, names), *(curve_stage(study, *curve) for curve in curves)]


def read_seeds(folder: Path, dataset: str, sealed: str, planned: int) -> dict[int, dict[str, Any]]:
    """Cells of ``folder/<data set>/seed-<n>.json`` by planned seed; ValueError if seals or devices differ."""
    files = {seed: folder / dataset / f"seed-{seed}.json" for seed in range(planned)}
    seeds = {seed: _read_seed(path, sealed)["cells"] for seed, path in files.items() if path.is_file()}
    devices = {re.sub(r":\d+", "", cell["device"]) for cells in seeds.values() for cell in cells.values()}
    if len(devices) > 1:
        fault = f"{folder / dataset} holds results of {' and '.join(sorted(devices))}"
        raise ValueError(f"{fault}, which differ in precision: they are never combined")
    return seeds


def _read_seed(path: Path, sealed: str) -> dict[str, Any]:
    record = read_json(path)
    if not isinstance(record, dict) or not {"seed", "sealed", "cells"} <= record.keys():
        raise ValueError(f"{path} is not a result of `rvlr study`: remove it and run again")
    if record["sealed"] != sealed:
        raise ValueError(f"{path} was computed under another seal: give another folder, or remove it")
    return record


def _rounded(values: Mapping[str, float | None], digits: int) -> dict[str, float | None]:
    """Rounded values; None, a metric that is not defined, stays None."""
    return {key: None if value is None else round(value, digits) for key, value in values.items()}


def tuned_arms(plan: Plan) -> list[str]:
    """The arms that get a tuning of their own, in the plan's order."""
    planned = [*(name for part in plan.sets.values() for name in part.arms), *plan.regime_map.teachers.values()]
    names = dict.fromkeys(map(arm_of, planned))
    return [name for name in names if name in ARMS and arm(name).stage == 2 and not arm(name).takes]


def draw_trials(plan: Plan, name: str, *, middle: bool = False) -> list[Trial]:
    """The random trials of an arm, or with ``middle`` the one in the middle of its log-uniform ranges.

    All arms share the learning rates; arms with the same group of terms share its quantiles.
    """
    space = plan.tuning

    def draw(purpose: str, bounds: Sequence[float]) -> list[float]:
        generator = np.random.default_rng(derived_seed(0, "trials", purpose))
        quantiles = np.array([0.5]) if middle else generator.random(space.trials)
        low, high = np.log(bounds[0]), np.log(bounds[1])
        return [float(f"{value:.3g}") for value in np.exp(low + quantiles * (high - low))]

    rates = draw("learning_rate", space.learning_rate)
    trials: list[Trial] = [{"learning_rate": rate, "strengths": {}} for rate in rates]
    for group in arm(name).groups:
        bounds = space.strengths.get(f"{name}.{group}") or space.strengths[group]
        for trial, strength in zip(trials, draw(SAME_DRAWS.get(group, group), bounds), strict=True):
            trial["strengths"][group] = strength
    return trials


def run_tuning(plan: Plan, folder: Path, runner: Runner) -> None:
    """Tune every arm; ``folder/tuning.json`` gets dials, epochs and the trials that recall and structure choose."""
    space, names, search = plan.tuning, tuned_arms(plan), _Search(plan, runner)
    runs = len(names) * len(space.dials) * (space.trials + space.confirmed * (len(space.seeds) - 1))
    say(f"{runs} training runs plus the choice of a length: at least {runs * CELL_SECONDS / 3600:.1f} CPU hours")
    visibility, visibilities = search.visibility()
    search.chosen["dials"] = {"image": {"data.image_visibility": visibility}}
    say(f"dial image: visibility {visibility:g}; recall kept: {visibilities or 'not measured'}")
    search.chosen["epochs"], lengths = search.length(names)
    say(f"stage 2: {search.chosen['epochs']} epochs")
    trials = {(name, number): trial for name in names for number, trial in enumerate(draw_trials(plan, name))}
    scores = search.scores(trials, space.seeds[:1])
    ranked = sorted(trials, key=lambda key: -mean_score(scores[key], "r_mean"))
    best: list[Key] = []
    for name in names:
        best += sorted([key for key in ranked if key[0] == name][: space.confirmed])
    for key, further in search.scores({key: trials[key] for key in best}, space.seeds[1:]).items():
        scores[key] |= further
    search.chosen["arms"] = _choose(plan, trials, {key: scores[key] for key in best})
    tried = {name: [trials[key] | {"scores": scores[key]} for key in trials if key[0] == name] for name in names}
    tuned = {"chosen": search.chosen, "visibilities": visibilities, "lengths": lengths, "provenance": provenance()}
    write_json(folder / "tuning.json", {**tuned, "trials": tried})


def validation_cell(arms: Sequence[tuple[str, Settings]], device: str, root: str | None) -> list[dict[str, float]]:
    """Validation scores of arms, trained one after another; runs in its own process."""
    return [Study(settings, device=device, root=root).validation(name) for name, settings in arms]


@dataclass
class _Search:
    """Trials of a plan, given what has been chosen so far."""

    plan: Plan
    runner: Runner
    chosen: dict[str, Any] = field(default_factory=dict)

    def scores(
        self, trials: Mapping[Key, Trial], seeds: Sequence[int], label: str = "tuning", **overrides: Any
    ) -> dict[Key, Scores]:
        """Scores of every trial on the tuning dials and the given seeds."""
        cells = [(dial, seed) for seed in seeds for dial in self.plan.tuning.dials]
        items = []
        for dial, seed in cells:
            base = self.plan.settings(self.plan.tuning.dataset, dial, seed, self.chosen, **overrides)
            arms = [(name, replace(base, arms={name: ArmSettings(**trial)})) for (name, _), trial in trials.items()]
            items.append((arms,))
        scores: dict[Key, Scores] = {key: {} for key in trials}
        for (dial, seed), cell_scores in zip(cells, self.runner.run(validation_cell, items, label), strict=True):
            for key, score in zip(trials, cell_scores, strict=True):
                scores[key].setdefault(str(seed), {})[dial] = score
        return scores

    def visibility(self) -> tuple[float, dict[str, float]]:
        """Visibility of dial ``image``, and the share of recall that ``matching_longer`` keeps at each candidate."""
        space, visibilities = self.plan.tuning, [1.0, *self.plan.tuning.visibilities]
        if len(space.visibilities) == 1:  # nothing to choose from
            return space.visibilities[0], {}
        dials: list[dict[str, Any]] = [{"data.image_visibility": value} for value in visibilities]
        settings = [self.plan.settings(space.dataset, "none", space.seeds[0], self.chosen, **dial) for dial in dials]
        items = [([("matching_longer", dialled)],) for dialled in settings]
        recalls = [scores[0]["r_mean"] for scores in self.runner.run(validation_cell, items, "dial strength")]
        kept = {f"{value:g}": recall / recalls[0] for value, recall in zip(visibilities, recalls, strict=True)}
        low, high = space.kept
        for value in space.visibilities:
            if low <= kept[f"{value:g}"] <= high:
                return value, kept
        fault = f"no visibility of {list(space.visibilities)} keeps {low:.0%} to {high:.0%} of the recall"
        raise ValueError(f"{fault}: {kept}; add points to tuning.visibilities")

    def length(self, names: Sequence[str]) -> tuple[int, dict[str, dict[str, float]]]:
        """Epochs of stage 2, and validation r_mean by epochs and arm, at the middle of each range.

        The shortest length whose doubling gains less than ``plateau`` for every arm, over all tuning seeds; the longest
        if there is none. The first seed alone rules out a length whose doubling gains more on average over the arms.
        """
        space = self.plan.tuning
        if len(space.lengths) == 1:  # nothing to choose from
            return space.lengths[0], {}
        middle = {(name, 0): draw_trials(self.plan, name, middle=True)[0] for name in names}
        recalls: dict[str, dict[str, float]] = {}
        for length in space.lengths:
            for seeds in (space.seeds[:1], space.seeds):
                for epochs in (length, 2 * length):
                    scores = self.scores(middle, seeds, f"length {epochs}", **{"stage2.epochs": epochs})
                    recalls[str(epochs)] = {name: mean_score(scores[name, 0], "r_mean") for name in names}
                gains = [recalls[str(2 * length)][name] - recalls[str(length)][name] for name in names]
                if np.mean(gains) >= space.plateau:
                    break
            else:
                if max(gains) < space.plateau:
                    return length, recalls
        return space.lengths[-1], recalls


def _choose(plan: Plan, trials: Mapping[Key, Trial], confirmed: Mapping[Key, Scores]) -> dict[str, Any]:
    """The trials of each arm that recall and structure choose; structure among those near the best recall."""
    recall = {key: mean_score(scores, "r_mean") for key, scores in confirmed.items()}
    structure = {key: mean_score(scores, "structure") for key, scores in confirmed.items()}
    chosen = {}
    for name in dict.fromkeys(name for name, _ in confirmed):
        keys = [key for key in confirmed if key[0] == name]
        best = max(keys, key=recall.__getitem__)
        near = [key for key in keys if recall[key] >= recall[best] - plan.tuning.slack]
        by_structure = max(near, key=structure.__getitem__)
        chosen[name] = {"recall": trials[best], "structure": trials[by_structure], "r_mean": recall[best]}
    return chosen


def mean_score(scores: Scores, metric: str) -> float:
    """The mean of a validation score over seeds and dials."""
    return float(np.mean([score[metric] for dials in scores.values() for score in dials.values()]))
