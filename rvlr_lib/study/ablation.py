"""Each switch of the method, one at a time, from the ``corrected`` preset."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rvlr_lib.config import load_settings
from rvlr_lib.losses import DISTANCES
from rvlr_lib.study.study import Study

if TYPE_CHECKING:
    import pandas as pd

METRICS = ("r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10", "t2it/NDCG@10")
ROWS = {  # switch -> row of FIDELITY.md; its official value is read off the preset
    "teacher_terms": "1",
    "learn_relation_temperature": "2",
    "fusion_weight_form": "3",
    "structure_target": "6",
    "mixed_t2it": "11",
    "mixed_scores": "12",
    "representation_bidirectional": "24",
    "representation_temperature": "24",
    "head_init": "24b",
}


def switches(fusion: bool = True) -> dict[str, Mapping[str, Any]]:
    """Name of each change and the settings it sets; ``corrected`` changes nothing.

    Args:
        fusion: whether there is a fusion encoder; changes that need one are left out without it.
    """
    official = load_settings("official").method
    found: dict[str, Mapping[str, Any]] = {"corrected": {}}
    for name, row in ROWS.items():
        if fusion or name not in ("structure_target", "mixed_scores"):
            found[f"row {row}: {name}"] = {f"method.{name}": getattr(official, name)}
    found["row 5: cost_gradient"] = {"method.distance": "wasserstein", "method.cost_gradient": True}
    found["row 6: own teachers"] = {"method.structure_teacher": "own"}
    found |= {f"distance {name}": {"method.distance": name} for name in DISTANCES if name not in ("mae", "rkd_angle")}
    for weight in (0.0, 0.5, 1.0):
        fixed = {"method.fusion_weight": weight, "method.learn_fusion_weight": False}
        found[f"text share {weight:g}"] = fixed
    return found


def switch_frame(
    study: Callable[[int, Mapping[str, Any]], Study],
    seeds: Sequence[int],
    *,
    arm: str = "rvlr",
    names: Sequence[str] = (),
    metrics: Sequence[str] = METRICS,
) -> "pd.DataFrame":
    """An arm under each change: tidy ``dataset, dial, arm, seed, metric, value``, the change standing for the arm.

    Args:
        study: gives the study of a seed under changed settings; a change of the evaluation retrains nothing.
        seeds: to look at.
        arm: that is changed.
        names: of changes; empty: all of :func:`switches`.
        metrics: wanted.
    """
    import pandas as pd

    rows = []
    for seed in seeds:
        fusion = bool(study(seed, {}).settings.model.fusion_layers)
        for name, overrides in switches(fusion).items():
            if names and name not in (*names, "corrected"):
                continue
            record = study(seed, overrides).record(arm)
            rows += [
                {
                    "dataset": record["dataset"],
                    "dial": "none",
                    "arm": name,
                    "seed": seed,
                    "metric": metric,
                    "value": record["metrics"][metric],
                }
                for metric in metrics
            ]
    return pd.DataFrame(rows)
