"""Each switch of the method, one at a time, from the ``corrected`` preset."""

from collections.abc import Mapping
from typing import Any

from rvlr_lib.config import load_settings
from rvlr_lib.losses import DISTANCES

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

    Without a ``fusion`` encoder the changes that need one are left out.
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
        found[f"text share {weight:g}"] = {"method.fusion_weight": weight, "method.learn_fusion_weight": False}
    return found
