"""Settings as frozen dataclasses, YAML presets, and the arms and ablation switches of the study as configuration.

Order of precedence: dataclass default < preset of the data set < size preset < preset of the method < overrides.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache, reduce
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from rvlr_lib.disk import read_yaml
from rvlr_lib.losses.distances import DISTANCES
from rvlr_lib.losses.weights import LossWeights
from rvlr_lib.tables import plain_message, refuse_unknown

PRESETS = Path(__file__).parent / "presets"
SHIPPED = sorted(path.stem for path in PRESETS.glob("*.yaml") if path.stem != "arms")  # presets by name
TEMPERATURES = ("temperature", "relation_temperature")
LOWER: dict[str, float] = {"data.seed": -1, "batch_size": 2, "fusion_weight": -(2.0**32)}  # 0 for all others
LOWER |= dict.fromkeys("epochs width views log_every".split(), 1) | dict.fromkeys(TEMPERATURES, 1e-6)
UPPER = dict.fromkeys("warmup text_detail image_visibility mismatch_rate crop_scale".split(), 1.0) | {"betas": 0.999999}
LARGEST = 2**32 - 1  # maximum for all others: the largest seed that numpy accepts


@dataclass(frozen=True)
class DataSettings:
    """Which image-text pairs, and how many; a size of 0 means all."""

    name: str = "scenes"
    image_root: str | None = None
    text_detail: float = 1.0  # the dial, see rvlr_lib.data.ImbalanceSpec: probability that a factor or word is kept
    image_visibility: float = 1.0  # how much of each picture stays visible
    image_fault: Literal["occlusion", "blur", "noise", "darkness", "low_resolution"] = "occlusion"
    mismatch_rate: float = 0.0  # share of mismatched pairs in training
    dial_splits: Literal["all", "train", "test"] = "all"  # train includes validation
    train_size: int = 0
    val_size: int = 0
    galleries: int = 0  # scenes: number of test galleries
    gallery_size: int = 0
    seed: int = -1  # for the scenes' world and the dial's draws; -1: the study's seed
    rows: Literal["images", "captions"] = "images"  # one per picture with a drawn caption, or one per caption
    max_bad_pictures: int = 0  # own pictures: missing or damaged ones allowed per split
    keep_flagged: bool = False  # own pictures: use captions that their annotators flagged as rejected or canned


@dataclass(frozen=True)
class ModelSettings:
    """The student's towers and what is trained on top of them."""

    name: str = "effnet_minilm"
    pretrained: str | None = None
    image_weights: str | None = None  # for a timm image tower only: a file, or "timm" for timm's own tag
    text_weights: str | None = None  # for a Hugging Face text tower only: a local folder
    text_layers: int = 0  # of a Hugging Face text tower, how many of the first layers to keep; 0: all
    context_length: int = 0  # tokens per caption; 0: as the model has it
    image_size: int = 0  # pixels; 0: as the model has it
    freeze_towers: bool = True  # True: train heads on cached features; False: train whole towers
    width: int = 256  # dimension of the common space of heads
    precision: Literal["float32", "bfloat16"] = "float32"  # for encoding with frozen towers
    views: int = 3  # cached views of a training picture: one plain, the others augmented
    image_teacher: str = "towers"  # source of the teacher's features, see rvlr_lib.models.teachers
    text_teacher: str = "towers"
    fusion_layers: int = 0  # 0: neither fusion encoder nor matching loss
    temperature: float = 0.07


@dataclass(frozen=True)
class TrainSettings:
    """One optimisation: AdamW, linear warm-up, then linear decay, with gradient clipping."""

    epochs: int = 15
    batch_size: int = 256
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1  # share of the steps
    clip_norm: float = 1.0  # 0: no clipping
    tower_lr_multiplier: float = 1.0  # for the towers' bodies; their projections and all new layers use the full rate
    crop_scale: tuple[float, float] = (0.7, 1.0)
    flip: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA
    log_every: int = 5  # steps


@dataclass(frozen=True)
class MethodSettings:
    """The switches of the method, each with its row of the defect table (FIDELITY.md)."""

    weights: LossWeights = field(default_factory=LossWeights)  # an arm uses those of its terms
    teacher_terms: bool = False  # row 1: add D(I,E) and D(T,E); with mae they cancel for shares inside (0, 1)
    learn_relation_temperature: bool = False  # row 2: a learnable one can only grow
    relation_temperature: float = 0.07
    fusion_weight_form: Literal["sigmoid", "free"] = "sigmoid"  # row 3
    learn_fusion_weight: bool = True
    fusion_weight: float = 0.5
    distance: str = "mae"  # rows 4 and 5: any of rvlr_lib.losses.DISTANCES
    cost_gradient: bool = False  # row 5: wasserstein's cost has a gradient, and collapsing captions lower it
    structure_target: Literal["common", "fusion"] = "common"  # row 6: the common space, or the fusion encoder's token
    structure_teacher: Literal["fused", "own"] = "fused"  # row 6: one target for both, or each modality's own teacher
    centred: bool = False  # subtract the mean relation, so that the loss cannot act on the mean cosine alone
    baseline: Literal["matching_longer", "matching"] = "matching_longer"  # row 7: for stage 2; equal compute, or less
    selection: Literal["val", "test"] = "val"  # row 8: the split that selects the best epoch
    mixed_t2it: Literal["direct", "transposed"] = "direct"  # row 11: scores of pictures in T2IT
    mixed_scores: Literal["cosine", "matching"] = "cosine"  # row 12: all cosines, or matching logits mixed with cosines
    representation_bidirectional: bool = True  # row 24: both directions, or the student's rows only
    representation_temperature: Literal["own", "shared"] = "own"  # row 24: its own, or that of the contrastive loss
    head_init: Literal["ridge", "random"] = "ridge"  # row 24b: teacher heads start as a regression onto the student


# switch -> row of FIDELITY.md; its official value is that of the preset
FIDELITY_ROWS = {"teacher_terms": "1", "learn_relation_temperature": "2", "fusion_weight_form": "3"}
FIDELITY_ROWS |= {"structure_target": "6", "mixed_t2it": "11", "mixed_scores": "12"}
FIDELITY_ROWS |= {"representation_bidirectional": "24", "representation_temperature": "24", "head_init": "24b"}


@dataclass(frozen=True)
class ArmSettings:
    """The tuned values of an arm."""

    learning_rate: float = 0.0  # 0: that of the stage
    strengths: Mapping[str, float] = field(default_factory=dict)  # by group of STRENGTHS; others: the method's weights


@dataclass(frozen=True)
class Settings:
    """Everything that determines a result, except the device."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    stage1: TrainSettings = field(default_factory=lambda: TrainSettings(epochs=30))
    stage2: TrainSettings = field(default_factory=TrainSettings)
    arms: Mapping[str, ArmSettings] = field(default_factory=dict)
    rerank_top_k: int = 0  # candidates re-ranked by the matching head; 0: none
    seed: int = 0

    @property
    def world_seed(self) -> int:
        """Seed of the data: of the scenes' world, and of the words and covers that the dial draws."""
        return self.seed if self.data.seed < 0 else self.data.seed


# A strength scales a group of loss terms; the numbers are the shares of its terms.
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

    stage: Literal[1, 2]  # 2 starts from the best epoch of ``matching``
    description: str
    groups: Sequence[str] = ()  # of STRENGTHS, added to the terms of ``base``
    base: Sequence[str] = ("contrastive", "alignment", "matching")  # matching needs the fusion encoder
    teacher: str = ""  # for both modalities, a name of rvlr_lib.models.teachers; empty: those of the settings
    shuffled: bool = False  # the structure term gets the teachers of other pictures
    method: Mapping[str, Any] = field(default_factory=dict)  # switches that it overrides
    strengths: Mapping[str, float] = field(default_factory=dict)  # fixed, if it is not tuned
    look: Sequence[str] = ()  # colour, marker and line style in figures
    takes: str = ""  # the arm whose tuned learning rate and strengths it uses; empty: its own


ARMS = {name: Arm(**values) for name, values in yaml.safe_load((PRESETS / "arms.yaml").read_text("utf-8")).items()}


def arm(name: str) -> Arm:
    """The arm of this name; ValueError lists the valid names."""
    refuse_unknown([name], ARMS, "unknown arm")
    return ARMS[name]


def arm_weights(settings: Settings, name: str) -> LossWeights:
    """The loss weights of an arm: 0 except for its terms.

    The matching loss needs the fusion encoder. The teacher terms need their switch and a structure term, and use the
    weights of the method.

    >>> arm_weights(Settings(), "structure").structure, arm_weights(Settings(), "matching_longer").structure
    (2.0, 0.0)
    """
    spec, defaults = arm(name), dataclasses.asdict(settings.method.weights)
    base = set(spec.base) - (set() if settings.model.fusion_layers else {"matching"})
    weights = {term: weight if term in base else 0.0 for term, weight in defaults.items()}
    source = spec.takes or name
    strengths = settings.arms[source].strengths if source in settings.arms else spec.strengths
    for group in spec.groups:
        for term, share in STRENGTHS[group].items():
            weights[term] = strengths[group] * share if group in strengths else defaults[term] or share
    if settings.method.teacher_terms and weights["structure"]:
        weights |= {term: defaults[term] for term in ("image_teacher_structure", "text_teacher_structure")}
    return LossWeights(**weights)


def arm_training(settings: Settings, name: str) -> TrainSettings:
    """The optimisation of an arm: that of its stage, in stage 2 with the tuned learning rate."""
    if arm(name).stage == 1:
        return settings.stage1
    tuned = settings.arms.get(arm(name).takes or name, ArmSettings())
    return dataclasses.replace(settings.stage2, learning_rate=tuned.learning_rate or settings.stage2.learning_rate)


def load_settings(*presets: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Settings from shipped presets (``scenes``, ``quick``, ``corrected``, …) or YAML files; later ones win.

    The section ``for: {NAME: …}`` of a preset applies to the data set NAME, ``for: {other: …}`` to those not named.
    ``overrides`` have dotted keys; None keeps the preset's value. ValueError names an unknown preset, key or value
    and the valid ones.

    >>> load_settings("scenes", overrides={"stage1.epochs": 3}).stage1.epochs
    3
    """
    values, overrides = dataclasses.asdict(Settings()), overrides or {}
    for preset in presets:
        path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
        if not path.is_file():
            raise ValueError(f"unknown preset {preset!r}; valid: {', '.join(SHIPPED)}, or a YAML file")
        content = read_yaml(path)
        sections = content.pop("for", None) or {}
        if not isinstance(sections, dict) or not all(isinstance(part, dict | None) for part in sections.values()):
            raise ValueError(f"{path.name}: for is {sections!r}, expected a mapping such as {{scenes: {{seed: 1}}}}")
        values = _merged(values, content, path.name)
        dataset = str(overrides.get("data.name") or values["data"]["name"])
        values = _merged(values, sections.get(dataset, sections.get("other")) or {}, f"{path.name}, for")
        _checked(values, path.name)
    for key, value in overrides.items():
        if value is not None:
            nested = reduce(lambda inner, part: {part: inner}, reversed(key.split(".")), value)
            values = _merged(values, nested, "overrides")
    return _checked(values, "overrides")


def switches(fusion: bool = True) -> dict[str, Mapping[str, Any]]:
    """The rows of the ablation: overrides by name, none for ``corrected``; two rows need the ``fusion`` encoder."""
    official = load_settings("official").method
    rows: dict[str, Mapping[str, Any]] = {"corrected": {}}
    for name, row in FIDELITY_ROWS.items():
        if fusion or name not in ("structure_target", "mixed_scores"):
            rows[f"row {row}: {name}"] = {f"method.{name}": getattr(official, name)}
    rows["row 5: cost_gradient"] = {"method.distance": "wasserstein", "method.cost_gradient": True}
    rows["row 6: own teachers"] = {"method.structure_teacher": "own"}
    rows |= {f"distance {name}": {"method.distance": name} for name in DISTANCES if name not in ("mae", "rkd_angle")}
    for weight in (0.0, 0.5, 1.0):
        rows[f"text share {weight:g}"] = {"method.fusion_weight": weight, "method.learn_fusion_weight": False}
    return rows


def parse_dataclass(kind: Any, values: Mapping[str, Any], where: str) -> Any:
    """A dataclass instance from nested plain values; ValueError names ``where`` and the wrong key or value."""
    from jsonargparse import ArgumentError

    parser, instances = _parser(kind)
    key = repr(values)  # most studies begin with the same presets
    try:
        if key not in instances:
            instances[key] = parser.instantiate(parser.parse_object({"value": deepcopy(values)})).value
        return instances[key]
    except (ArgumentError, TypeError, RecursionError) as error:
        text = re.sub(r"Parser key \"value\.?([\w.]*)\":\s*", r"\1: ", str(error)).replace("Group 'value'", "it")
        if unknown := re.search(r"option '([\w.]+)'", text):
            for part in unknown[1].split(".")[:-1]:
                kind = get_type_hints(kind).get(part, kind)
            text += f"; valid: {', '.join(item.name for item in dataclasses.fields(kind))}"
        raise ValueError(f"{where}: {plain_message(text)}") from error


@cache
def _parser(kind: Any) -> tuple[Any, dict[str, Any]]:
    """A parser for a dataclass, and a cache of the instances it made, by the ``repr`` of their values."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--value", type=kind)
    return parser, {}


def _checked(values: Mapping[str, Any], where: str) -> Settings:
    settings: Settings = parse_dataclass(Settings, values, where)
    for prefix in ("", "data.", "model.", "method.", "stage1.", "stage2."):
        section = getattr(settings, prefix[:-1], settings)
        for item in dataclasses.fields(section):
            value, low = getattr(section, item.name), LOWER.get(prefix + item.name, LOWER.get(item.name, 0))
            high = UPPER.get(item.name, LARGEST)
            numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, int | float)]
            if not all(low <= x <= high for x in numbers) or (value is None and item.default is not None):
                raise ValueError(f"{where}: {prefix}{item.name} is {value}, expected {low} to {high}")
    refuse_unknown([settings.method.distance], DISTANCES, f"{where}: method.distance is")
    for name, tuned in settings.arms.items():
        refuse_unknown(tuned.strengths, arm(name).groups, f"{where}: arms.{name}.strengths names")
        for what, value in {**tuned.strengths, "learning_rate": tuned.learning_rate}.items():
            if not 0 <= value <= LARGEST:
                raise ValueError(f"{where}: arms.{name}: {what} is {value}, expected 0 to {LARGEST}")
    return settings


def _merged(base: dict[str, Any], values: Mapping[str, Any], where: str, path: str = "") -> dict[str, Any]:
    """``base`` updated with ``values``, level by level."""
    merged = dict(base)
    for key, value in values.items():
        section = base.get(key)
        if isinstance(section, dict) and not isinstance(value, Mapping):
            raise ValueError(f"{where}: {path}{key} is {value!r}, expected settings under it")
        merged[key] = _merged(section, value, where, f"{path}{key}.") if isinstance(section, dict) else value
    return merged
