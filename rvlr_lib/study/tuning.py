"""Equal tuning for every trained arm, on worlds that no verdict sees: dial, length, learning rates, strengths."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rvlr_lib.config import ARMS, PRESETS, ArmSettings, arm
from rvlr_lib.disk import read_json, write_json, write_text
from rvlr_lib.provenance import provenance
from rvlr_lib.study.plan import BY_STRUCTURE, Plan, reference_folder
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.study import Study

Trial = dict[str, Any]  # learning_rate, strengths
Scores = dict[str, float]  # r_mean and structure, on validation
PULL = {"mean_relation": "structure"}  # groups that share their draws, so that their trials are pairs


def tuned_arms(plan: Plan) -> list[str]:
    """The arms that are tuned on their own, in the plan's order."""
    every = [*(name for part in plan.sets.values() for name in part.arms), *plan.regime_map.teachers.values()]
    names = dict.fromkeys(name.removesuffix(BY_STRUCTURE) for name in every)
    return [name for name in names if name in ARMS and arm(name).stage == 2 and not arm(name).takes]


def draw_trials(plan: Plan, name: str) -> list[Trial]:
    """The random trials of an arm: all arms share the learning rates, arms of one group of terms its quantiles."""
    space = plan.tuning
    rates = _log_uniform(space.learning_rate, _quantiles(space.trials, "learning_rate"))
    trials: list[Trial] = [{"learning_rate": rate, "strengths": {}} for rate in rates]
    for group in arm(name).groups:
        bounds = space.strengths.get(f"{name}.{group}") or space.strengths[group]
        for trial, strength in zip(
            trials, _log_uniform(bounds, _quantiles(space.trials, PULL.get(group, group))), strict=True
        ):
            trial["strengths"][group] = strength
    return trials


def tune(plan: Plan, folder: Path, runner: Runner, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Tune everything and write ``folder/tuning.json``; what is in the cache already is not trained again.

    Returns:
        The content of the file: ``chosen`` (``dials``, ``epochs``, ``arms``: by recall and by structure, and whether
        zero strength did as well), ``trials``, ``lengths``, ``visibilities``.
    """
    space, names = plan.tuning, tuned_arms(plan)
    visibilities = _visibilities(plan, runner)
    strength = _dial_strength(plan, visibilities)
    chosen: dict[str, Any] = {"dials": {"image": {"data.image_visibility": strength}}}
    say(f"dial image: visibility {strength:g}; matching longer keeps {visibilities}")
    chosen["epochs"], lengths = _lengths(plan, chosen, names, runner)
    say(f"stage 2: {chosen['epochs']} epochs")
    trials = {name: draw_trials(plan, name) for name in names}
    first = [(name, number) for name in names for number in range(space.trials)]
    scores = _score(plan, chosen, trials, first, space.seeds[:1], runner)
    best = [(name, number) for name in names for number in _best(scores, name, space.trials, space.confirmed)]
    more = _score(plan, chosen, trials, best, space.seeds[1:], runner)
    for key, found in more.items():
        scores[key] |= found
    chosen["arms"] = _choose(plan, trials, scores, names, best)
    tuned = {
        "chosen": chosen,
        "visibilities": visibilities,
        "lengths": lengths,
        "provenance": provenance(),
        "trials": {
            name: [{**trial, "scores": scores.get((name, number), {})} for number, trial in enumerate(trials[name])]
            for name in names
        },
    }
    write_json(folder / "tuning.json", tuned)
    if folder == reference_folder():  # what every other run takes
        arms = {name: found["recall"] for name, found in chosen["arms"].items()}
        head = "# Learning rates and strengths that tuning chose; written by `rvlr study --tune`.\n"
        write_text(PRESETS / "tuned.yaml", head + yaml.safe_dump({"arms": arms}, sort_keys=False))
    return read_json(folder / "tuning.json")


def validation_cell(
    plan: Plan,
    chosen: Mapping[str, Any],
    dial: str,
    seed: int,
    jobs: Sequence[tuple[str, Trial]],
    overrides: Mapping[str, Any],
    device: str,
    root: str | None,
) -> list[Scores]:
    """Validation scores of several trained arms at one dial point and seed; runs in a process of its own."""
    base = plan.settings(plan.tuning.dataset, dial, seed, chosen, **overrides)
    found = []
    for name, trial in jobs:
        settings = dataclasses.replace(base, arms={name: ArmSettings(**trial)})
        found.append(Study(settings, device=device, root=Path(root) if root else None).validation(name))
    return found


def _score(
    plan: Plan,
    chosen: Mapping[str, Any],
    trials: Mapping[str, list[Trial]],
    wanted: Sequence[tuple[str, int]],
    seeds: Sequence[int],
    runner: Runner,
) -> dict[tuple[str, int], dict[str, dict[str, Scores]]]:
    """Scores of trials: (arm, number) -> seed -> dial -> scores."""
    jobs = [(name, trials[name][number]) for name, number in wanted]
    cells = [(dial, seed) for seed in seeds for dial in plan.tuning.dials]
    done = runner.run(validation_cell, [(plan, chosen, dial, seed, jobs, {}) for dial, seed in cells], "tuning")
    found: dict[tuple[str, int], dict[str, dict[str, Scores]]] = {key: {} for key in wanted}
    for (dial, seed), scores in zip(cells, done, strict=True):
        for key, score in zip(wanted, scores, strict=True):
            found[key].setdefault(str(seed), {})[dial] = score
    return found


def _visibilities(plan: Plan, runner: Runner) -> dict[str, float]:
    """Share of its recall that ``matching_longer`` keeps at each strength of the dial ``image``."""
    space = plan.tuning
    strengths = [1.0, *space.visibilities]
    items: list[tuple[Any, ...]] = [
        (plan, {}, "none", space.seeds[0], [("matching_longer", {})], {"data.image_visibility": value})
        for value in strengths
    ]
    recalls = [scores[0]["r_mean"] for scores in runner.run(validation_cell, items, "dial strength")]
    return {f"{value:g}": recall / recalls[0] for value, recall in zip(strengths, recalls, strict=True)}


def _dial_strength(plan: Plan, kept: Mapping[str, float]) -> float:
    low, high = plan.tuning.kept
    for value in plan.tuning.visibilities:
        if low <= kept[f"{value:g}"] <= high:
            return value
    raise ValueError(
        f"no visibility of {list(plan.tuning.visibilities)} keeps {low:.0%} to {high:.0%} of the recall: "
        f"{dict(kept)}; add points to tuning.visibilities"
    )


def _lengths(
    plan: Plan, chosen: Mapping[str, Any], names: Sequence[str], runner: Runner
) -> tuple[int, dict[str, dict[str, float]]]:
    """Epochs of stage 2, and validation r_mean by epochs and arm, at the middle of each range.

    The shortest length whose doubling adds less than ``plateau`` for every arm, over all tuning seeds; one whose
    doubling adds more on average over the arms on the first seed is passed over at once. If none is flat, the longest.
    """
    space = plan.tuning
    found: dict[str, dict[str, float]] = {}
    jobs = [(name, _middle(plan, name)) for name in names]

    def measure(length: int, seeds: Sequence[int]) -> dict[str, float]:
        cells = [(dial, seed) for seed in seeds for dial in space.dials]
        items = [(plan, chosen, dial, seed, jobs, {"stage2.epochs": length}) for dial, seed in cells]
        done = runner.run(validation_cell, items, f"length {length}")
        return {name: float(np.mean([cell[place]["r_mean"] for cell in done])) for place, name in enumerate(names)}

    for length in space.lengths:
        for seeds in (space.seeds[:1], space.seeds):
            short, double = measure(length, seeds), measure(2 * length, seeds)
            found |= {str(length): short, str(2 * length): double}
            gains = [double[name] - short[name] for name in names]
            if np.mean(gains) >= space.plateau:
                break
        else:
            if max(gains) < space.plateau:
                return length, found
    return space.lengths[-1], found


def _best(scores: Mapping[tuple[str, int], Any], name: str, trials: int, count: int) -> list[int]:
    order = sorted(range(trials), key=lambda number: -_mean(scores[name, number], "r_mean"))
    return sorted(order[:count])


def _choose(
    plan: Plan,
    trials: Mapping[str, list[Trial]],
    scores: Mapping[tuple[str, int], Any],
    names: Sequence[str],
    confirmed: Sequence[tuple[str, int]],
) -> dict[str, Any]:
    """The chosen trial of each arm by recall and by structure, and whether no strength at all did as well."""
    zero = max(_mean(scores[key], "r_mean") for key in confirmed if key[0] == "matching_longer")
    found = {}
    for name in names:
        own = [number for own, number in confirmed if own == name]
        recall = {number: _mean(scores[name, number], "r_mean") for number in own}
        top = max(own, key=recall.__getitem__)
        near = [number for number in own if recall[number] >= recall[top] - plan.tuning.slack]
        structured = max(near, key=lambda number: _mean(scores[name, number], "structure"))
        found[name] = {
            "recall": trials[name][top],
            "structure": trials[name][structured],
            "r_mean": recall[top],
            "off": bool(arm(name).groups) and zero >= recall[top],
        }
    return found


def _mean(scores: Mapping[str, Mapping[str, Scores]], metric: str) -> float:
    """Mean over seeds and dials."""
    return float(np.mean([found[metric] for dials in scores.values() for found in dials.values()]))


def _middle(plan: Plan, name: str) -> Trial:
    space = plan.tuning
    bounds = {group: space.strengths.get(f"{name}.{group}") or space.strengths[group] for group in arm(name).groups}
    return {
        "learning_rate": float(_log_uniform(space.learning_rate, np.array([0.5]))[0]),
        "strengths": {group: _log_uniform(own, np.array([0.5]))[0] for group, own in bounds.items()},
    }


def _quantiles(count: int, purpose: str) -> np.ndarray:
    from rvlr_lib.training.batches import derived_seed

    return np.random.default_rng(derived_seed(0, "trials", purpose)).random(count)


def _log_uniform(bounds: Sequence[float], quantiles: np.ndarray) -> list[float]:
    low, high = np.log(bounds[0]), np.log(bounds[1])
    return [float(f"{value:.3g}") for value in np.exp(low + quantiles * (high - low))]
