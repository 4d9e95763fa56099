"""The cells of a study, computed over processes or a cluster: independent, cached, written as they finish."""

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
Key = tuple[str, int]  # an arm and the number of its trial
Scores = dict[str, dict[str, dict[str, float]]]  # seed -> dial -> r_mean and structure, on validation
PULL = {"mean_relation": "structure"}  # groups that share their draws, so that their trials are pairs
CELL_SECONDS = 15  # of a CPU core: heads at the sizes of the study, as its cells took on average
KEPT = ("r_mean", "i2t/R@1", "t2i/R@1", "i2t/R@10", "t2i/R@10")


def run_study(profile: str = "study", *, seeds: str = "", sets: str = "", results: str = "", **own: Any) -> None:
    """The command ``rvlr study``: compute the confirmation seeds that ``results`` lacks, or tune, seal, draw the map.

    ``own``: ``tune``, ``seal`` or ``regime_map``, and options of :class:`rvlr_lib.study.runner.Runner`. ValueError: the
    plan is not valid, not tuned, or was changed since it was sealed.
    """
    plan, folder = load_plan(profile), Path(results) if results else reference_folder(profile)
    tune, seal, regime_map = (own.pop(name, False) for name in ("tune", "seal", "regime_map"))
    if tune + seal + regime_map > 1 or (seeds and (tune or seal)) or (sets and (tune or seal or regime_map)):
        told = "seeds go with regime_map or none of them, sets with none"
        raise ValueError(f"give one of tune, seal and regime_map; {told}")
    runner = Runner(**own)
    if tune and (folder / "seal.json").is_file():
        raise ValueError(f"{folder} holds a sealed study, whose tuning stays: give another folder with --results")
    if tune:
        run_tuning(plan, folder, runner)
    elif seal:
        say(f"sealed: {write_seal(plan, folder, time.strftime('%Y-%m-%d'))['sha256']}")
    elif regime_map:
        if not plan.regime_map.seeds:
            raise ValueError(f"the plan of {profile} has no regime_map")
        run_map(plan, folder, runner, parse_seeds(seeds) or list(plan.regime_map.seeds))
    else:
        confirm(plan, folder, runner, sets.split(",") if sets else list(plan.sets), parse_seeds(seeds))


def confirm(plan: Plan, folder: Path, runner: Runner, sets: Sequence[str], seeds: Sequence[int]) -> None:
    """Compute the sealed seeds that ``folder`` lacks, ``<data set>/seed-<n>.json`` each, written as they finish."""
    sealed, chosen = check_seal(plan, folder, adding=True), read_chosen(folder)
    if unknown := [name for name in sets if name not in plan.sets]:
        raise ValueError(f"unknown data set {unknown[0]!r}: the plan has {', '.join(plan.sets)}")
    todo = []
    for name in sets:
        part = plan.sets[name]
        if beyond := [seed for seed in seeds if seed >= part.seeds]:
            raise ValueError(f"seed {beyond[0]} of {name} is not planned: 0 to {part.seeds - 1} are")
        for seed in seeds or range(part.seeds):
            path = folder / name / f"seed-{seed}.json"
            record = {"seed": seed, "dataset": name, "sealed": sealed, "cells": {}}
            there = _read(path, sealed)["cells"] if path.is_file() else {}
            for dial in part.dials:
                arms = [arm for arm in part.arms if f"{arm}|{dial}" not in there]
                cells = {f"{arm}|{dial}": plan.settings(name, dial, seed, chosen, arm) for arm in arms}
                todo += [(path, record, part, cells)] if cells else []
    count = sum(len(cells) for *_, cells in todo)
    say(f"{count} cells to compute, about {count * CELL_SECONDS / 3600:.1f} CPU hours (whole towers: 7 ×)")
    for number, cells in runner.stream(compute_cells, [(cells,) for *_, cells in todo], "cells"):
        path, record, part, _ = todo[number]  # its file is read again: another process may have added cells
        record = _read(path, sealed) if path.is_file() else record | {"provenance": provenance()}
        cells = record["cells"] | cells
        write_json(path, record | {"cells": {cell: cells[cell] for cell in part.cells() if cell in cells}})


def compute_cells(cells: Mapping[str, Settings], device: str, root: str | None) -> dict[str, Any]:
    """Small records of cells such as ``rvlr|text``, one after another; runs in a process of its own."""
    found = {}
    for cell, settings in cells.items():
        begun = time.process_time()
        record = Study(settings, device=device, root=root).result(arm_of(cell))
        metrics = {}
        for number, (relevance, report) in enumerate(record["metrics_by_relevance"].items()):
            recalls = KEPT if number == 0 else ()  # they are the same under every relevance
            kept = {key: value for key, value in report.items() if "/NDCG@10" in key or key in recalls}
            metrics[relevance] = _rounded(kept, 3)
        found[cell] = {
            "metrics": metrics,
            "structure": _rounded(record["structure"], 4),
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
    found: dict[int, dict[str, Any]] = {seed: dict.fromkeys(dials) for seed in seeds}
    for number, cells in runner.stream(map_cell, [(plan, chosen, *item) for item in todo], "map"):
        dial, seed = todo[number]
        found[seed][dial] = cells
        if all(found[seed].values()):
            write_json(files[seed], {"seed": seed, "provenance": provenance(), "cells": found[seed]})


def map_cell(
    plan: Plan, chosen: Mapping[str, Any], dial: str, seed: int, device: str, root: str | None
) -> dict[str, Any]:
    """Validation scores by teacher and gradient ratio at one dial point and seed; ``0`` is ``matching_longer``."""
    base = plan.settings(plan.regime_map.dataset, dial, seed, chosen)
    rate = base.arms["matching_longer"].learning_rate

    def study(**arms: ArmSettings) -> Study:
        return Study(replace(base, arms={**base.arms, **arms}), device=device, root=root)

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


def warm(wanted: Sequence[tuple[Any, ...]], *, jobs: int = 0) -> None:
    """Fill the cache with results, one thread for each process, so that numbers do not depend on their number.

    ``wanted``: a study, its arms and references such as ``start``, and any number of curves each: a function for
    :func:`rvlr_lib.study.comparisons.gather`, its arms and its options. ``jobs``: processes; 0: as many as PyTorch has
    threads, at most four; on a GPU one.
    """
    todo = []
    for study, names, *curves in wanted:
        if not all(map(study.cache.has, _wanted_stages(study, names, curves))):
            todo.append((study.settings, names, curves, str(study.device), str(study.cache.root)))
    on_gpu, label = any(device != "cpu" for *_, device, _ in todo), "stage seeds and dial settings"
    jobs = 1 if on_gpu else min(jobs or min(torch.get_num_threads(), 4), len(todo))
    if jobs > 1:
        Runner(jobs).run(_warm_cell, todo, label)
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
    for part in text.split(",") if text else ():
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        own = range(int(found[1]), int(found[2] or found[1]) + 1) if found else ()
        if not own:
            raise ValueError(f"seeds {text!r}: expected something like 0-4 or 0,3,7")
        seeds += own
    return seeds


def _rounded(values: Mapping[str, float | None], digits: int) -> dict[str, float | None]:
    """None stays: a figure that is not defined."""
    return {key: None if value is None else round(value, digits) for key, value in values.items()}


def tuned_arms(plan: Plan) -> list[str]:
    """The arms that are tuned on their own, in the plan's order."""
    every = [*(name for part in plan.sets.values() for name in part.arms), *plan.regime_map.teachers.values()]
    names = dict.fromkeys(map(arm_of, every))
    return [name for name in names if name in ARMS and arm(name).stage == 2 and not arm(name).takes]


def draw_trials(plan: Plan, name: str, *, middle: bool = False) -> list[Trial]:
    """The random trials of an arm, or the one in the ``middle`` of its log-uniform ranges.

    All arms share the learning rates, arms of one group of terms its quantiles.
    """
    space = plan.tuning

    def drawn(purpose: str, bounds: Sequence[float]) -> list[float]:
        draws = np.random.default_rng(derived_seed(0, "trials", purpose))
        quantiles = np.array([0.5]) if middle else draws.random(space.trials)
        low, high = np.log(bounds[0]), np.log(bounds[1])
        return [float(f"{value:.3g}") for value in np.exp(low + quantiles * (high - low))]

    rates = drawn("learning_rate", space.learning_rate)
    trials: list[Trial] = [{"learning_rate": rate, "strengths": {}} for rate in rates]
    for group in arm(name).groups:
        bounds = space.strengths.get(f"{name}.{group}") or space.strengths[group]
        for trial, strength in zip(trials, drawn(PULL.get(group, group), bounds), strict=True):
            trial["strengths"][group] = strength
    return trials


def run_tuning(plan: Plan, folder: Path, runner: Runner) -> None:
    """Tune everything and write ``folder/tuning.json``; what is in the cache already is not trained again.

    ``chosen`` in it holds dials, epochs and arms: by recall and by structure.
    """
    space, names, search = plan.tuning, tuned_arms(plan), _Search(plan, runner)
    runs = len(names) * len(space.dials) * (space.trials + space.confirmed * (len(space.seeds) - 1))
    say(f"{runs} trainings and the choice of a length: {runs * CELL_SECONDS / 3600:.1f} CPU hours and more")
    strength, visibilities = search.strength()
    search.chosen["dials"] = {"image": {"data.image_visibility": strength}}
    say(f"dial image: visibility {strength:g}; recall kept: {visibilities or 'not measured'}")
    search.chosen["epochs"], lengths = search.length(names)
    say(f"stage 2: {search.chosen['epochs']} epochs")
    trials = {(name, number): trial for name in names for number, trial in enumerate(draw_trials(plan, name))}
    scores = search.scores(trials, space.seeds[:1])
    ranked = sorted(trials, key=lambda key: -mean_score(scores[key], "r_mean"))
    best = [key for name in names for key in sorted([own for own in ranked if own[0] == name][: space.confirmed])]
    for key, more in search.scores({key: trials[key] for key in best}, space.seeds[1:]).items():
        scores[key] |= more
    search.chosen["arms"] = _choose(plan, trials, {key: scores[key] for key in best})
    tried = {name: [trials[key] | {"scores": scores[key]} for key in trials if key[0] == name] for name in names}
    tuned = {"chosen": search.chosen, "visibilities": visibilities, "lengths": lengths, "provenance": provenance()}
    write_json(folder / "tuning.json", {**tuned, "trials": tried})


def validation_cell(arms: Sequence[tuple[str, Settings]], device: str, root: str | None) -> list[dict[str, float]]:
    """Validation scores of trained arms, one after another; runs in a process of its own."""
    return [Study(settings, device=device, root=root).validation(name) for name, settings in arms]


@dataclass
class _Search:
    """Trials of a plan, under what is chosen so far."""

    plan: Plan
    runner: Runner
    chosen: dict[str, Any] = field(default_factory=dict)

    def scores(
        self, trials: Mapping[Key, Trial], seeds: Sequence[int], label: str = "tuning", **overrides: Any
    ) -> dict[Key, Scores]:
        """Scores of every trial on the tuning dials and some seeds."""
        cells = [(dial, seed) for seed in seeds for dial in self.plan.tuning.dials]
        items = []
        for dial, seed in cells:
            base = self.plan.settings(self.plan.tuning.dataset, dial, seed, self.chosen, **overrides)
            arms = [(name, {name: ArmSettings(**trial)}) for (name, _), trial in trials.items()]
            items.append(([(name, replace(base, arms=own)) for name, own in arms],))
        found: dict[Key, Scores] = {key: {} for key in trials}
        for (dial, seed), scores in zip(cells, self.runner.run(validation_cell, items, label), strict=True):
            for key, score in zip(trials, scores, strict=True):
                found[key].setdefault(str(seed), {})[dial] = score
        return found

    def strength(self) -> tuple[float, dict[str, float]]:
        """Visibility of ``image``, and the share of its recall that ``matching_longer`` keeps at each of several."""
        space, strengths = self.plan.tuning, [1.0, *self.plan.tuning.visibilities]
        if len(space.visibilities) == 1:  # nothing to choose from
            return space.visibilities[0], {}
        dials: list[dict[str, Any]] = [{"data.image_visibility": own} for own in strengths]
        settings = [self.plan.settings(space.dataset, "none", space.seeds[0], self.chosen, **dial) for dial in dials]
        items = [([("matching_longer", own)],) for own in settings]
        recalls = [scores[0]["r_mean"] for scores in self.runner.run(validation_cell, items, "dial strength")]
        kept = {f"{own:g}": recall / recalls[0] for own, recall in zip(strengths, recalls, strict=True)}
        low, high = space.kept
        for value in space.visibilities:
            if low <= kept[f"{value:g}"] <= high:
                return value, kept
        fault = f"no visibility of {list(space.visibilities)} keeps {low:.0%} to {high:.0%} of the recall"
        raise ValueError(f"{fault}: {kept}; add points to tuning.visibilities")

    def length(self, names: Sequence[str]) -> tuple[int, dict[str, dict[str, float]]]:
        """Epochs of stage 2, and validation r_mean by epochs and arm, at the middle of each range.

        The shortest length whose doubling adds less than ``plateau`` for every arm, over all tuning seeds; one whose
        doubling adds more on average over the arms on the first seed is passed over at once. If none is flat, the
        longest.
        """
        space = self.plan.tuning
        if len(space.lengths) == 1:  # nothing to choose from
            return space.lengths[0], {}
        middle = {(name, 0): draw_trials(self.plan, name, middle=True)[0] for name in names}
        found: dict[str, dict[str, float]] = {}
        for length in space.lengths:
            for seeds in (space.seeds[:1], space.seeds):
                for epochs in (length, 2 * length):
                    scores = self.scores(middle, seeds, f"length {epochs}", **{"stage2.epochs": epochs})
                    found[str(epochs)] = {name: mean_score(own, "r_mean") for (name, _), own in scores.items()}
                gains = [found[str(2 * length)][name] - found[str(length)][name] for name in names]
                if np.mean(gains) >= space.plateau:
                    break
            else:
                if max(gains) < space.plateau:
                    return length, found
        return space.lengths[-1], found


def _choose(plan: Plan, trials: Mapping[Key, Trial], confirmed: Mapping[Key, Scores]) -> dict[str, Any]:
    """The chosen trial of each arm, by recall and by structure."""
    recall = {key: mean_score(scores, "r_mean") for key, scores in confirmed.items()}
    structure = {key: mean_score(scores, "structure") for key, scores in confirmed.items()}
    found = {}
    for name in dict.fromkeys(name for name, _ in confirmed):
        own = [key for key in confirmed if key[0] == name]
        top = max(own, key=recall.__getitem__)
        near = [key for key in own if recall[key] >= recall[top] - plan.tuning.slack]
        shaped = trials[max(near, key=structure.__getitem__)]
        found[name] = {"recall": trials[top], "structure": shaped, "r_mean": recall[top]}
    return found


def mean_score(scores: Scores, metric: str) -> float:
    """Mean over seeds and dials."""
    return float(np.mean([found[metric] for dials in scores.values() for found in dials.values()]))
