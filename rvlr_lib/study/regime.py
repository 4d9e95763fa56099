"""The regime map: how strong the structure loss must be, with which teacher, at which dial point, to help at all."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rvlr_lib.config import ArmSettings, arm
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import provenance
from rvlr_lib.study.plan import Plan, read_chosen
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.study import Study


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
        settings = dataclasses.replace(base, arms={**base.arms, **arms})
        return Study(settings, device=device, root=root)

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


def map_frame(folder: Path) -> pd.DataFrame:
    """The map, tidy: ``dial, teacher, ratio, seed, metric, value``; values are differences to ``matching_longer``."""
    rows = []
    for record in map(read_json, sorted((folder / "map").glob("seed-*.json"))):
        for dial, cells in record["cells"].items():
            for name in [name for name in cells if "|" in name]:
                teacher, ratio = name.split("|")
                for metric in ("r_mean", "structure"):
                    gain = cells[name][metric] - cells["0"][metric]
                    rows.append((dial, teacher, float(ratio), record["seed"], metric, gain))
    return pd.DataFrame(rows, columns=["dial", "teacher", "ratio", "seed", "metric", "value"])
