"""Equal tuning for every trained arm, on worlds that no verdict sees: dial, length, learning rates, strengths."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rvlr_lib.config import ARMS, PRESETS, ArmSettings, Settings, arm
from rvlr_lib.disk import read_yaml, write_json, write_text
from rvlr_lib.provenance import provenance
from rvlr_lib.study.plan import BY_STRUCTURE, Plan, reference_folder
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.study import Study
from rvlr_lib.training.batches import derived_seed

Trial = dict[str, Any]  # learning_rate, strengths
Key = tuple[str, int]  # an arm and the number of its trial
Scores = dict[str, dict[str, dict[str, float]]]  # seed -> dial -> r_mean and structure, on validation
PULL = {"mean_relation": "structure"}  # groups that share their draws, so that their trials are pairs


def tuned_arms(plan: Plan) -> list[str]:
    """The arms that are tuned on their own, in the plan's order."""
    every = [*(name for part in plan.sets.values() for name in part.arms), *plan.regime_map.teachers.values()]
    names = dict.fromkeys(name.removesuffix(BY_STRUCTURE) for name in every)
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


def tune(plan: Plan, folder: Path, runner: Runner) -> None:
    """Tune everything and write ``folder/tuning.json``; what is in the cache already is not trained again.

    ``chosen`` in it holds dials, epochs and arms: by recall and by structure, and whether zero strength did as well.
    """
    space, names, search = plan.tuning, tuned_arms(plan), _Search(plan, runner)
    strength, visibilities = search.strength()
    search.chosen["dials"] = {"image": {"data.image_visibility": strength}}
    runner.say(f"dial image: visibility {strength:g}; recall kept: {visibilities or 'not measured'}")
    search.chosen["epochs"], lengths = search.length(names)
    runner.say(f"stage 2: {search.chosen['epochs']} epochs")
    trials = {(name, number): trial for name in names for number, trial in enumerate(draw_trials(plan, name))}
    scores = search.scores(trials, space.seeds[:1])
    best = [key for name in names for key in _best(scores, name, space.confirmed)]
    for key, more in search.scores({key: trials[key] for key in best}, space.seeds[1:]).items():
        scores[key] |= more
    search.chosen["arms"] = _choose(plan, trials, {key: scores[key] for key in best})
    tried: dict[str, list[Trial]] = {name: [] for name in names}
    for key, trial in trials.items():
        tried[key[0]].append({**trial, "scores": scores[key]})
    tuned = {"chosen": search.chosen, "visibilities": visibilities, "lengths": lengths, "provenance": provenance()}
    write_json(folder / "tuning.json", {**tuned, "trials": tried})
    if folder == reference_folder():  # what every other run takes
        arms = read_yaml(PRESETS / "tuned.yaml")["arms"]  # those of other plans stay
        arms |= {name: found["recall"] for name, found in search.chosen["arms"].items()}
        head = "# Learning rates and strengths that tuning chose; written by `rvlr study --tune`.\n"
        write_text(PRESETS / "tuned.yaml", head + yaml.safe_dump({"arms": arms}, sort_keys=False))


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
            items.append(([(name, dataclasses.replace(base, arms=own)) for name, own in arms],))
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
                    found[str(epochs)] = {name: _mean(own, "r_mean") for (name, _), own in scores.items()}
                gains = [found[str(2 * length)][name] - found[str(length)][name] for name in names]
                if np.mean(gains) >= space.plateau:
                    break
            else:
                if max(gains) < space.plateau:
                    return length, found
        return space.lengths[-1], found


def _best(scores: Mapping[Key, Scores], name: str, count: int) -> list[Key]:
    own = [key for key in scores if key[0] == name]
    return sorted(sorted(own, key=lambda key: -_mean(scores[key], "r_mean"))[:count])


def _choose(plan: Plan, trials: Mapping[Key, Trial], confirmed: Mapping[Key, Scores]) -> dict[str, Any]:
    """The chosen trial of each arm by recall and by structure, and whether no strength at all did as well."""
    recall = {key: _mean(scores, "r_mean") for key, scores in confirmed.items()}
    structure = {key: _mean(scores, "structure") for key, scores in confirmed.items()}
    zero = max(value for (name, _), value in recall.items() if name == "matching_longer")
    found = {}
    for name in dict.fromkeys(name for name, _ in confirmed):
        own = [key for key in confirmed if key[0] == name]
        top = max(own, key=recall.__getitem__)
        near = [key for key in own if recall[key] >= recall[top] - plan.tuning.slack]
        found[name] = {
            "recall": trials[top],
            "structure": trials[max(near, key=structure.__getitem__)],
            "r_mean": recall[top],
            "off": bool(arm(name).groups) and zero >= recall[top],
        }
    return found


def _mean(scores: Scores, metric: str) -> float:
    """Mean over seeds and dials."""
    return float(np.mean([found[metric] for dials in scores.values() for found in dials.values()]))
