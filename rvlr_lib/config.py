"""Settings: frozen dataclasses, YAML presets, the arms of the study as configuration alone, and its ablation.

Order of precedence: dataclass default < preset of the data set < size preset < preset of the method < overrides.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from rvlr_lib.disk import read_yaml
from rvlr_lib.losses.distances import DISTANCES
from rvlr_lib.losses.weights import LossWeights

PRESETS = Path(__file__).parent / "presets"
SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "arms")  # presets by name
TEMPERATURES = ("temperature", "relation_temperature")
LEAST: dict[str, float] = {"data.seed": -1, "batch_size": 2, "fusion_weight": -(2.0**32)}
LEAST |= dict.fromkeys("epochs width views log_every".split(), 1) | dict.fromkeys(TEMPERATURES, 1e-6)  # others: 0
MOST = dict.fromkeys("warmup text_detail image_visibility mismatch_rate crop_scale".split(), 1.0) | {"betas": 0.999999}
TOO_LARGE = 2**32  # for any number; numpy takes no such seed


@dataclass(frozen=True)
class DataSettings:
    """Which pairs, and how many. Sizes of 0 mean all there are."""

    name: str = "scenes"
    image_root: str | None = None
    text_detail: float = 1.0  # the dial, see rvlr_lib.data.ImbalanceSpec: chance that a factor or word is told
    image_visibility: float = 1.0  # what is left of each picture
    image_fault: Literal["occlusion", "blur", "noise", "darkness", "low_resolution"] = "occlusion"
    mismatch_rate: float = 0.0  # share of wrong pairs in training
    dial_splits: Literal["all", "train", "test"] = "all"  # train: and validation
    train_size: int = 0
    val_size: int = 0
    galleries: int = 0  # scenes: test galleries
    gallery_size: int = 0
    seed: int = -1  # of the scenes' world and of the dial's draws; -1: the study's seed
    rows: Literal["images", "captions"] = "images"  # one row per image with a sampled caption, or one per caption
    max_bad_pictures: int = 0  # own pictures: missing or damaged ones that a split may lose
    keep_flagged: bool = False  # own pictures: captions that their makers flagged as rejected or canned


@dataclass(frozen=True)
class ModelSettings:
    """The student's towers and what is trained on them."""

    name: str = "effnet_minilm"
    pretrained: str | None = None
    image_weights: str | None = None  # of a timm image tower alone: a file, or "timm" for its own tag
    text_weights: str | None = None  # of a Hugging Face text tower alone: a local folder
    text_layers: int = 0  # of a Hugging Face text tower: only its first layers; 0 keeps all
    context_length: int = 0  # tokens of a caption; 0 is the model's own
    image_size: int = 0  # pixels; 0 is the model's own
    freeze_towers: bool = True  # train heads on cached features; False trains the whole towers
    width: int = 256  # of the common space, for heads
    precision: Literal["float32", "bfloat16"] = "float32"  # of encoding by frozen towers
    views: int = 3  # cached views of a training picture: one plain, the others augmented
    image_teacher: str = "towers"  # where a teacher comes from, see rvlr_lib.models.teachers
    text_teacher: str = "towers"
    fusion_layers: int = 0  # 0 leaves the fusion encoder and the matching loss out
    temperature: float = 0.07


@dataclass(frozen=True)
class TrainSettings:
    """One optimisation: AdamW, linear warm-up then linear decay, gradients clipped."""

    epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1  # share of the steps
    clip_norm: float = 1.0  # 0 leaves gradients as they are
    tower_lr_multiplier: float = 1.0  # of the towers' bodies; their projections and all that is new take the whole rate
    crop_scale: tuple[float, float] = (0.7, 1.0)
    flip: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA
    log_every: int = 5  # steps


@dataclass(frozen=True)
class MethodSettings:
    """The switches of the method, each with its row of the defect table (FIDELITY.md)."""

    weights: LossWeights = field(default_factory=LossWeights)  # an arm takes those that its terms name
    teacher_terms: bool = False  # row 1: D(I,E) and D(T,E) enter the sum; with mae they cancel inside (0, 1)
    learn_relation_temperature: bool = False  # row 2: a learnable one only ever grows
    relation_temperature: float = 0.07
    fusion_weight_form: Literal["sigmoid", "free"] = "sigmoid"  # row 3
    learn_fusion_weight: bool = True
    fusion_weight: float = 0.5
    distance: str = "mae"  # rows 4 and 5: any of rvlr_lib.losses.DISTANCES
    cost_gradient: bool = False  # row 5: wasserstein sends gradient through its cost, which collapsing captions lower
    structure_target: Literal["common", "fusion"] = "common"  # row 6: the common space, or the fusion encoder's token
    structure_teacher: Literal["fused", "own"] = "fused"  # row 6: one target for both, or each modality's own teacher
    centred: bool = False  # relations minus their mean, so that the loss cannot act on the mean cosine alone
    baseline: Literal["matching_longer", "matching"] = "matching_longer"  # row 7: of stage 2; equal compute, or less
    selection: Literal["val", "test"] = "val"  # row 8: the split that chooses the best epoch
    mixed_t2it: Literal["direct", "transposed"] = "direct"  # row 11: scores of pictures in T2IT
    mixed_scores: Literal["cosine", "matching"] = "cosine"  # row 12: for all, or matching logits beside cosines
    representation_bidirectional: bool = True  # row 24: both directions, or the student's rows only
    representation_temperature: Literal["own", "shared"] = "own"  # row 24: or that of the contrastive loss
    head_init: Literal["ridge", "random"] = "ridge"  # row 24b: teacher heads start as a regression onto the student


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


@dataclass(frozen=True)
class ArmSettings:
    """What tuning chose for an arm."""

    learning_rate: float = 0.0  # 0: that of the stage
    strengths: Mapping[str, float] = field(default_factory=dict)  # group of STRENGTHS -> its own; others: the method's


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, except the device."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    stage1: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=30))
    stage2: TrainSettings = field(default_factory=TrainSettings)
    arms: Mapping[str, ArmSettings] = field(default_factory=dict)
    rerank_top_k: int = 0  # matching re-ranking of that many candidates; 0 leaves it out
    seed: int = 0

    @property
    def world_seed(self) -> int:
        """Seed of the data: of the scenes' world, of the words and covers that the dial draws."""
        return self.seed if self.data.seed < 0 else self.data.seed


# A strength scales a group of terms that belong together; where a group has several, these are their shares.
STRENGTHS: dict[str, dict[str, float]] = {
    "structure": {"structure": 1.0},
    "representation": {"image_representation": 1.0, "text_representation": 2.0},
    "intra": {"image_intra": 1.0, "text_intra": 2.0},
    "anchor": {"anchor": 1.0},
    "alignment": {"alignment": 1.0},
    "mean_relation": {"mean_relation": 1.0},
    "cyclic": {"cross_modal_cyclic": 1.0, "in_modal_cyclic": 1.0},
}


@dataclass(frozen=True)
class Arm:
    """One arm of the study, from ``presets/arms.yaml``."""

    stage: Literal[1, 2]  # 2 goes on from the best epoch of ``matching``
    description: str
    groups: Sequence[str] = ()  # of STRENGTHS, added to the terms of ``base``
    base: Sequence[str] = ("contrastive", "alignment", "matching")  # of every arm; matching needs the fusion encoder
    teacher: str = ""  # of both modalities, a name of rvlr_lib.models.teachers; empty: those of the settings
    shuffled: bool = False  # the structure term hears the teachers of other pictures
    method: Mapping[str, Any] = field(default_factory=dict)  # switches of its own
    strengths: Mapping[str, float] = field(default_factory=dict)  # fixed ones, where nothing is tuned
    look: Sequence[str] = ()  # colour, marker and line in figures
    takes: str = ""  # the arm whose tuned learning rate and strengths it takes; empty: it is tuned on its own


ARMS = {name: Arm(**values) for name, values in yaml.safe_load((PRESETS / "arms.yaml").read_text("utf-8")).items()}


def arm(name: str) -> Arm:
    """The arm of a name; ValueError for an unknown one, naming the valid ones."""
    if name not in ARMS:
        raise ValueError(f"unknown arm {name!r}: valid are {', '.join(ARMS)}")
    return ARMS[name]


def arm_weights(settings: Settings, name: str) -> LossWeights:
    """The loss weights of an arm: those of its terms, 0 elsewhere.

    The matching loss needs the fusion encoder; the teacher terms need their switch and the structure term, and take
    the published weights.

    >>> arm_weights(Settings(), "structure").structure, arm_weights(Settings(), "matching_longer").structure
    (2.0, 0.0)
    """
    chosen, base = arm(name), dataclasses.asdict(settings.method.weights)
    kept = set(chosen.base) - (set() if settings.model.fusion_layers else {"matching"})
    weights = {term: base[term] if term in kept else 0.0 for term in base}
    source = chosen.takes or name
    strengths = settings.arms[source].strengths if source in settings.arms else chosen.strengths
    for group in chosen.groups:
        for term, share in STRENGTHS[group].items():
            weights[term] = strengths[group] * share if group in strengths else base[term] or share
    if settings.method.teacher_terms and weights["structure"]:
        weights |= {term: base[term] for term in ("image_teacher_structure", "text_teacher_structure")}
    return LossWeights(**weights)


def arm_training(settings: Settings, name: str) -> TrainSettings:
    """The optimisation of an arm: that of its stage, in stage 2 at the learning rate that tuning chose."""
    if arm(name).stage == 1:
        return settings.stage1
    chosen = settings.arms.get(arm(name).takes or name, ArmSettings())
    return dataclasses.replace(settings.stage2, learning_rate=chosen.learning_rate or settings.stage2.learning_rate)


def load_settings(*presets: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings of shipped presets (``scenes``, ``quick``, ``corrected``, …) or YAML files, later ones win.

    A preset's part ``for: {NAME: …}`` applies where the data set is NAME, ``for: {other: …}`` to all others.
    ``overrides`` have dotted keys; None leaves the preset's. ValueError for an unknown preset, key or value, naming the
    valid ones.

    >>> load_settings("scenes", overrides={"stage1.epochs": 3}).stage1.epochs
    3
    """
    values, overrides = dataclasses.asdict(Settings()), overrides or {}
    for preset in presets:
        path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
        if not path.is_file():
            raise ValueError(f"unknown preset {preset!r}: valid are {', '.join(SHIPPED)}, or a YAML file")
        found = read_yaml(path)
        own = found.pop("for", None) or {}
        if not isinstance(own, dict) or not all(isinstance(part, dict | None) for part in own.values()):
            raise ValueError(f"{path.name}: for is {own!r}, expected data sets with settings: {{scenes: {{seed: 1}}}}")
        values = _deep(values, found, path.name)
        name = str(overrides.get("data.name") or values["data"]["name"])
        values = _deep(values, own.get(name, own.get("other")) or {}, f"{path.name}, for")
        _checked(values, path.name)
    for key, value in overrides.items():  # a whole part keeps what was set in it before
        if value is not None:
            nested = reduce(lambda found, part: {part: found}, reversed(key.split(".")), value)
            values = _deep(values, nested, "overrides")
    return _checked(values, "overrides")


def switches(fusion: bool = True) -> dict[str, Mapping[str, Any]]:
    """Changes by name and the settings that each sets, ``corrected`` none; ``fusion``: is there a fusion encoder?"""
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


def parsed(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """An instance of a dataclass from nested plain values; ValueError names ``where``, a wrong key or value."""
    from jsonargparse import ArgumentError

    parser, known = _parser(kind)
    key = repr(values)  # most studies begin with the same presets
    try:
        if key not in known:
            known[key] = parser.instantiate(parser.parse_object({"value": values})).value
        return known[key]
    except (ArgumentError, TypeError, RecursionError) as error:
        text = re.sub(r"Parser key \"value\.?([\w.]*)\":\s*", r"\1: ", str(error)).replace("Group 'value'", "it")
        if unknown := re.search(r"option '([\w.]+)'", text):
            for part in unknown[1].split(".")[:-1]:
                kind = get_type_hints(kind).get(part, kind)
            text += f": valid are {', '.join(item.name for item in dataclasses.fields(kind))}"
        raise ValueError(f"{where}: {' '.join(text.split())}") from error


@cache
def _parser(kind: Any) -> tuple[Any, dict[str, Any]]:
    """A parser of a dataclass, and what it has found so far."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser, {}


def _checked(values: Mapping[str, Any], where: str) -> Settings:
    found: Settings = parsed(Settings, values, where)
    for place in ("", "data.", "model.", "method.", "stage1.", "stage2."):
        part = getattr(found, place[:-1], found)
        for item in dataclasses.fields(part):
            value, least = getattr(part, item.name), LEAST.get(place + item.name, LEAST.get(item.name, 0))
            most = MOST.get(item.name, TOO_LARGE - 1)
            several = value if isinstance(value, tuple) else (value,)
            numbers = [each for each in several if isinstance(each, int | float)]
            if not all(least <= each <= most for each in numbers) or (value is None and item.default is not None):
                raise ValueError(f"{where}: {place}{item.name} is {value}, expected {least} to {most}")
    if found.method.distance not in DISTANCES:
        raise ValueError(f"{where}: method.distance is {found.method.distance!r}: valid are {', '.join(DISTANCES)}")
    for name, chosen in found.arms.items():
        groups = arm(name).groups
        if wrong := [group for group in chosen.strengths if group not in groups]:
            valid = ", ".join(groups) or "none"
            raise ValueError(f"{where}: arms.{name}.strengths names {wrong[0]!r}: valid are {valid}")
    return found


def _deep(base: dict[str, Any], values: Mapping[str, Any], where: str, path: str = "") -> dict[str, Any]:
    """``base`` with ``values`` put over it, level by level."""
    both = dict(base)
    for key, value in values.items():
        below = base.get(key)
        if isinstance(below, dict) and not isinstance(value, Mapping):
            raise ValueError(f"{where}: {path}{key} is {value!r}, expected settings under it")
        both[key] = _deep(below, value, where, f"{path}{key}.") if isinstance(below, dict) else value
    return both
