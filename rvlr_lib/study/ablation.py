"""Each switch of the method, one at a time, from the ``corrected`` preset."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rvlr_lib.config import Settings, as_dict, load_settings
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.evaluation.evaluate import retrieval_metrics
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.losses import DISTANCES
from rvlr_lib.study.cache import cached
from rvlr_lib.study.study import Study

OFFICIAL_RATE_SUM = 1.04  # sum of the official learning rates on Flickr30K: how far Adam can carry a scalar


MIXED = ("i2it/NDCG@10", "t2it/NDCG@10")
METRICS = ("r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10", "t2it/NDCG@10")


@dataclass(frozen=True)
class Switch:
    """One change of the settings: its group in the figure, its row in FIDELITY.md (0: none), and what it sets."""

    group: str
    row: int
    overrides: dict[str, Any]


def switches() -> dict[str, Switch]:
    """All changes of training, by name; what turns a switch to ``official`` is read off that preset."""
    official = load_settings("official").method
    found = {
        name: Switch("switch", row, {f"method.{name}": getattr(official, name)})
        for name, row in (
            ("teacher_terms", 1),
            ("learn_relation_temperature", 2),
            ("fusion_weight_form", 3),
            ("structure_target", 6),
            ("representation_bidirectional", 24),
            ("representation_temperature", 24),
        )
    }
    found["cost_gradient"] = Switch("switch", 5, {"method.distance": "wasserstein", "method.cost_gradient": True})
    found["own teachers"] = Switch("structure teacher", 6, {"method.structure_teacher": "own"})
    for weight in (0.0, 0.5, 1.0):
        fixed = {"method.fusion_weight": weight, "method.learn_fusion_weight": False}
        found[f"fusion weight {weight:g}"] = Switch("fusion weight", 3, fixed)
    rows = {"cumulative_l1": 4, "row_kl": 4, "wasserstein": 5}
    for distance in DISTANCES:
        if distance != "mae":
            found[distance] = Switch("distance", rows.get(distance, 0), {"method.distance": distance})
    return found


def drift_multiplier(settings: Settings, steps: int) -> float:
    """Learning-rate multiplier that gives the scalars the official sum of learning rates in a run of ``steps``.

    Warm-up and decay are linear, so the mean rate is about half the peak.
    """
    return OFFICIAL_RATE_SUM / (settings.stage2.learning_rate * steps / 2)


def evaluation_switches(studies: Mapping[int, Study], variants: Sequence[str]) -> list[dict[str, Any]]:
    """The evaluation's switches turned to ``official`` one at a time, on the same embeddings.

    Args:
        studies: seed -> study.
        variants: whose embeddings to look at.

    Returns:
        Dicts with ``switch`` (``corrected`` is the reference), ``variant``, ``metric``, ``seed`` and ``value``; T2T is
        that without siblings, and with them where row 16 is official.
    """
    rows: list[dict[str, Any]] = []
    for seed, study in studies.items():
        for variant in variants:
            for name, report in _switched_reports(study, variant).items():
                for metric, value in report.items():
                    rows.append({"switch": name, "variant": variant, "metric": metric, "seed": seed, "value": value})
    return rows


def _switched_reports(study: Study, variant: str) -> dict[str, dict[str, float]]:
    """Per switch, the metrics that it can move; cached, as matching scores take a while."""
    settings, folder = study.settings, study.student_folder(variant)
    matching = bool(settings.model.fusion_layers and settings.rerank_top_k and settings.data.name != "scenes")

    def compute(target: Path) -> None:
        features, dataset = study.test_features(variant), study.dataset("test")
        scores = None
        if matching:
            scores = matching_scores(
                *study.fusion_inputs(variant), features, settings.rerank_top_k, device=study.device
            )
        lists: dict[str, dict[str, Any]] = {
            "corrected": {},
            "row 11: t2it transposed": {"mixed_t2it": "transposed"},
            **({"row 12: matching scores": {"mixed_scores": "matching"}} if matching else {}),
        }
        reports = {
            name: next(iter(retrieval_metrics(features, dataset, matching=scores, **switch).values()))
            for name, switch in lists.items()
        }
        found = {name: {key: report[key] for key in MIXED} for name, report in reports.items()}
        found["corrected"]["t2t/NDCG@10"] = reports["corrected"]["t2t_no_siblings/NDCG@10"]
        found["row 16: siblings in"] = {"t2t/NDCG@10": reports["corrected"]["t2t/NDCG@10"]}
        write_json(target / "reports.json", found)

    parts = {"student": folder.name, "top_k": settings.rerank_top_k, "data": as_dict(settings.data)}
    return read_json(cached(study.root, "switches", parts, "rvlr_lib.evaluation.evaluate", compute) / "reports.json")


def training_switches(
    studies: Mapping[int, Study], changed: Callable[[int, dict[str, Any]], Study], metrics: Sequence[str] = METRICS
) -> list[dict[str, Any]]:
    """``rvlr`` under each change of training, beside the unchanged one.

    Args:
        studies: seed -> study of the reference.
        changed: the study of a seed with changed settings; without changes the reference.
        metrics: wanted.

    Returns:
        Dicts with ``switch``, ``group``, ``metric``, ``seed`` and ``value``. A change that needs the fusion encoder is
        left out, and says so, where there is none.
    """
    rows: list[dict[str, Any]] = []
    for seed, study in studies.items():
        changes = {"corrected": Switch("reference", 0, {}), **switches()}
        if not study.settings.model.fusion_layers:
            print("structure_target is left out: it needs the fusion encoder (fusion_layers >= 1)")
            changes.pop("structure_target")
        for name, switch in changes.items():
            found = changed(seed, switch.overrides).result("rvlr").metrics
            rows += [
                {"switch": name, "group": switch.group, "metric": metric, "seed": seed, "value": found[metric]}
                for metric in metrics
            ]
    return rows


def differences(rows: Sequence[dict[str, Any]], reference: str) -> list[dict[str, Any]]:
    """Per switch and metric, the difference to the reference on the same seeds, with a t-interval where there are two.

    Args:
        rows: dicts with ``switch``, ``group``, ``seed``, ``metric`` and ``value``.
        reference: the switch that the others are compared with.

    Returns:
        Dicts with ``switch``, ``group``, ``metric``, ``difference``, ``low``, ``high`` (NaN below two seeds),
        ``seeds`` and ``reading``: ``higher``, ``lower``, or ``not decided`` where the interval holds 0 or seeds are
        under five.
    """
    from scipy.stats import t

    base = {(row["metric"], row["seed"]): row["value"] for row in rows if row["switch"] == reference}
    found = []
    for switch, group in dict.fromkeys((row["switch"], row["group"]) for row in rows if row["switch"] != reference):
        for metric in dict.fromkeys(row["metric"] for row in rows):
            gains = np.array(
                [
                    row["value"] - base[metric, row["seed"]]
                    for row in rows
                    if (row["switch"], row["metric"]) == (switch, metric) and (metric, row["seed"]) in base
                ]
            )
            if not len(gains):
                continue
            count, mean = len(gains), float(gains.mean())
            half = t.ppf(0.975, count - 1) * gains.std(ddof=1) / np.sqrt(count) if count > 1 else float("nan")
            decided = count >= 5 and abs(mean) > half
            reading = ("higher" if mean > 0 else "lower") if decided else "not decided"
            found.append({"switch": switch, "group": group, "metric": metric, "difference": mean, "low": mean - half,
                          "high": mean + half, "seeds": count, "reading": reading})  # fmt: skip
    return found
