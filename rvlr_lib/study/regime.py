"""The regime map: how strong the structure loss must be, with which teacher, at which dial point, to help at all."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.config import ArmSettings, arm
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import provenance
from rvlr_lib.study.plan import Plan, read_chosen
from rvlr_lib.study.runner import Runner
from rvlr_lib.study.study import Study

if TYPE_CHECKING:
    import pandas as pd


def run_map(plan: Plan, folder: Path, runner: Runner, seeds: Sequence[int]) -> None:
    """Compute the seeds that ``folder/map`` lacks, ``seed-<n>.json`` each."""
    chosen = read_chosen(folder)
    todo = [seed for seed in seeds if not _file(folder, seed).is_file()]
    items = [(plan, chosen, dial, seed) for seed in todo for dial in plan.regime_map.dials]
    found: dict[int, dict[str, Any]] = {seed: {} for seed in todo}
    for number, cells in runner.stream(map_cell, items, "map"):
        dial, seed = items[number][2:]
        found[seed][dial] = cells
        if len(found[seed]) == len(plan.regime_map.dials):
            cells = {dial: found[seed][dial] for dial in plan.regime_map.dials}
            write_json(_file(folder, seed), {"seed": seed, "provenance": provenance(), "cells": cells})


def map_cell(
    plan: Plan, chosen: Mapping[str, Any], dial: str, seed: int, device: str, root: str | None
) -> dict[str, Any]:
    """Validation scores by teacher and gradient ratio at one dial point and seed; ``0`` is ``matching_longer``."""
    base = plan.settings(plan.regime_map.dataset, dial, seed, chosen)
    rate = arm_rate = base.arms["matching_longer"].learning_rate

    def study(name: str, strength: float) -> Study:
        group = arm(arm(name).takes or name).groups[0]
        own = ArmSettings(arm_rate, {group: strength})
        settings = dataclasses.replace(base, arms={**base.arms, arm(name).takes or name: own})
        return Study(settings, device=device, root=Path(root) if root else None)

    found: dict[str, Any] = {
        "0": Study(base, device=device, root=Path(root) if root else None).validation("matching_longer")
    }
    for label, name in plan.regime_map.teachers.items():
        norms = study(name, 1.0).first_gradients(name)
        term = "mean_relation" if name == "mean_relation" else "structure"
        unit = norms[term] / norms["contrastive"]  # at strength 1
        for ratio in plan.regime_map.ratios:
            strength = float(f"{ratio / unit:.4g}")
            found[f"{label}|{ratio:g}"] = study(name, strength).validation(name) | {"strength": strength}
    return found | {"learning_rate": rate}


def map_frame(folder: Path) -> "pd.DataFrame":
    """The map, tidy: ``dial, teacher, ratio, seed, metric, value``; values are differences to ``matching_longer``."""
    import pandas as pd

    rows = []
    for path in sorted((folder / "map").glob("seed-*.json")):
        record = read_json(path)
        for dial, cells in record["cells"].items():
            for name, scores in cells.items():
                if "|" not in name:
                    continue
                teacher, ratio = name.split("|")
                rows += [
                    {
                        "dial": dial,
                        "teacher": teacher,
                        "ratio": float(ratio),
                        "seed": record["seed"],
                        "metric": metric,
                        "value": scores[metric] - cells["0"][metric],
                    }
                    for metric in ("r_mean", "structure")
                ]
    return pd.DataFrame(rows, columns=["dial", "teacher", "ratio", "seed", "metric", "value"])


def _file(folder: Path, seed: int) -> Path:
    return folder / "map" / f"seed-{seed}.json"
