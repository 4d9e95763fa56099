"""Settings: frozen dataclasses, YAML presets, and the variants of the study as configuration alone.

Order of precedence: dataclass default < preset of the data set < preset of the protocol < overrides.
"""

import dataclasses
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from rvlr_lib.losses.weights import LossWeights

PRESETS = Path(__file__).parent / "presets"


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
    seed: int = 0  # of the data, not of the training
    rows: Literal["images", "captions"] = "images"  # one row per image with a sampled caption, or one per caption
    max_bad_pictures: int = 0  # own pictures: missing or damaged ones that a split may lose


@dataclass(frozen=True)
class ModelSettings:
    """The student's towers and what stands on them."""

    name: str = "tiny"
    pretrained: str | None = None
    image_weights: str | None = None  # of a timm image tower alone: a file, or "timm" for its own tag
    text_weights: str | None = None  # of a Hugging Face text tower alone: a local folder
    text_layers: int = 0  # of a Hugging Face text tower: only its first layers; 0 keeps all
    context_length: int = 0  # tokens of a caption; 0 is the model's own
    init: Literal["teacher", "scratch"] = "teacher"
    freeze_towers: bool = False  # train a linear head on cached features of each tower, and nothing else
    image_teacher: str = "train"  # where a teacher comes from, see rvlr_lib.models.pretrained
    text_teacher: str = "train"
    fusion_layers: int = 0  # 0 leaves the fusion encoder and the matching loss out
    temperature: float = 0.07


@dataclass(frozen=True)
class TrainSettings:
    """One optimisation: AdamW, linear warm-up then linear decay, gradients clipped."""

    epochs: int = 10
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    warmup: float = 0.1  # share of the steps
    clip_norm: float = 1.0  # 0 leaves gradients as they are
    tower_lr_multiplier: float = 1.0  # of the towers' bodies; their projections and all that is new take the whole rate
    scalar_lr_multiplier: float = 1.0  # of the relation temperature and the fusion weight
    crop_scale: tuple[float, float] = (0.7, 1.0)
    flip: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA
    log_every: int = 5  # steps


@dataclass(frozen=True)
class MethodSettings:
    """The switches of the method. Each names the row of the defect table (FIDELITY.md) that it turns.

    Attributes:
        teacher_terms: row 1, whether D(I,E) and D(T,E) enter the sum; with ``mae`` they cancel inside (0, 1).
        learn_relation_temperature: row 2, a learnable relation temperature only ever grows.
        fusion_weight_form: row 3, ``free`` scalar or ``sigmoid``.
        distance: rows 4 and 5, any of :data:`rvlr_lib.losses.DISTANCES`.
        centred: whether relations are compared without their own means.
        head_init: row 24b, teacher heads start at a ``ridge`` regression or at ``random``.
        cost_gradient: row 5, whether ``wasserstein`` sends gradient through its cost, which collapsing captions lower.
        structure_target: row 6, geometry of the ``common`` space, or the ``fusion`` encoder's first token.
        structure_teacher: row 6, both targets are the ``fused`` relations, or each modality its ``own`` teacher's.
        baseline: row 7, what stage 2 is compared with: ``matching_longer`` (equal compute) or ``matching``.
        selection: row 8, the split that chooses the best epoch.
        mixed_t2it: row 11, ``direct`` or ``transposed`` scores of pictures in T2IT.
        mixed_scores: row 12, ``cosine`` for all, or ``matching`` logits beside cosines.
        siblings: row 16, whether the headline T2T leaves out captions of the query's own picture.
        representation_bidirectional: row 24, both directions or the student's rows only.
        representation_temperature: row 24, ``own`` (fixed) or ``shared`` with the contrastive loss.
    """

    # the official weights; the control's own losses weigh as much as the representation losses they stand in for
    weights: LossWeights = field(default_factory=lambda: LossWeights(image_intra=1.0, text_intra=2.0))
    teacher_terms: bool = False
    learn_relation_temperature: bool = False
    relation_temperature: float = 0.07
    fusion_weight_form: Literal["sigmoid", "free"] = "sigmoid"
    learn_fusion_weight: bool = True
    fusion_weight: float = 0.5
    distance: str = "mae"
    centred: bool = False
    head_init: Literal["ridge", "random"] = "ridge"
    cost_gradient: bool = False
    structure_target: Literal["common", "fusion"] = "common"
    structure_teacher: Literal["fused", "own"] = "fused"
    baseline: Literal["matching_longer", "matching"] = "matching_longer"
    selection: Literal["val", "test"] = "val"
    mixed_t2it: Literal["direct", "transposed"] = "direct"
    mixed_scores: Literal["cosine", "matching"] = "cosine"
    siblings: Literal["out", "in"] = "out"
    representation_bidirectional: bool = True
    representation_temperature: Literal["own", "shared"] = "own"


@dataclass(frozen=True)
class Settings:
    """Everything that decides a result, except the device."""

    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    method: MethodSettings = field(default_factory=MethodSettings)
    teacher: TrainSettings = field(default_factory=TrainSettings)
    stage1: TrainSettings = field(default_factory=TrainSettings)
    stage2: TrainSettings = field(default_factory=TrainSettings)
    rerank_top_k: int = 0  # matching re-ranking of that many candidates; 0 leaves it out
    seed: int = 0


@dataclass(frozen=True)
class Variant:
    """One arm of the study: where it starts, which losses carry weight, which teacher it hears.

    ``terms`` names the loss weights that stay; all others are 0 for this variant.
    """

    stage: Literal[0, 1, 2]
    terms: tuple[str, ...]
    teacher: Literal["trained", "half", "quarter", "untrained", "shuffled", "oracle"] = "trained"
    description: str = ""


MATCHING = ("contrastive", "alignment", "matching")  # alignment has no weight unless it is asked for
REPRESENTATION = ("image_representation", "text_representation")
STRUCTURE = ("structure", "image_teacher_structure", "text_teacher_structure")
DISTILLATION = REPRESENTATION + STRUCTURE
VARIANTS: dict[str, Variant] = {
    "contrastive": Variant(1, ("contrastive",), description="stage 1 with the contrastive loss alone"),
    "matching": Variant(1, MATCHING, description="stage 1: contrastive and matching losses"),
    "matching_longer": Variant(2, MATCHING, description="stage 2 without distillation: equal compute"),
    "representation": Variant(2, MATCHING + REPRESENTATION, description="stage 2 with the representation losses"),
    "structure": Variant(2, MATCHING + STRUCTURE, description="stage 2 with the structure-aware loss"),
    "rvlr": Variant(2, MATCHING + DISTILLATION, description="stage 2 with both distillation losses: the method"),
    "intra": Variant(
        2, (*MATCHING, "image_intra", "text_intra"), description="control: the teachers' own losses, no teacher"
    ),
    "shuffled": Variant(2, MATCHING + DISTILLATION, "shuffled", "control: teacher rows permuted across pictures"),
    "untrained_teacher": Variant(2, MATCHING + DISTILLATION, "untrained", "control: teachers never trained"),
    "rvlr_half": Variant(2, MATCHING + DISTILLATION, "half", "rvlr, its teachers trained for half the epochs"),
    "rvlr_quarter": Variant(2, MATCHING + DISTILLATION, "quarter", "rvlr, its teachers trained for a quarter"),
    "rvlr_oracle": Variant(2, MATCHING + DISTILLATION, "oracle", "rvlr, its teachers' relations are the truth"),
    "frozen": Variant(0, (), description="control: the teachers rotated into one space, nothing trained"),
}


def variant_weights(settings: Settings, variant: str) -> LossWeights:
    """The loss weights of a variant: those of the settings where its terms name them, 0 elsewhere.

    The matching loss needs the fusion encoder and the teacher terms their switch; without them their weight is 0.

    Raises:
        ValueError: unknown variant.
    """
    if variant not in VARIANTS:
        raise ValueError(f"unknown variant {variant!r}: valid are {', '.join(VARIANTS)}")
    kept = set(VARIANTS[variant].terms)
    if not settings.model.fusion_layers:
        kept -= {"matching"}
    if not settings.method.teacher_terms:
        kept -= {"image_teacher_structure", "text_teacher_structure"}
    weights = dataclasses.asdict(settings.method.weights)
    return LossWeights(**{name: weight if name in kept else 0.0 for name, weight in weights.items()})


def headline_metrics(method: MethodSettings) -> tuple[str, ...]:
    """The metrics of the tables; T2T with siblings where the switch of row 16 says so."""
    text = "t2t" if method.siblings == "in" else "t2t_no_siblings"
    graded = tuple(f"{name}/NDCG@10" for name in ("i2i", text, "i2it", "t2it"))
    return ("i2t/R@1", "i2t/R@10", "t2i/R@1", "t2i/R@10", "r_mean", *graded)


def data_presets() -> list[str]:
    """Presets that belong to a data set by name."""
    return [name for name in available_presets() if name not in ("corrected", "official", "own", "frozen")]


def available_presets() -> list[str]:
    """Names of the YAML presets that ship with the library."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_settings(*presets: str, overrides: Mapping[str, Any] | None = None) -> Settings:
    """Resolve settings.

    Args:
        presets: names of shipped presets (``scenes``, ``emoji``, ``corrected``, ``official``) or YAML files, later
            ones win.
        overrides: dotted keys, such as ``{"stage1.epochs": 3}``; a value of None leaves the preset's.

    Raises:
        ValueError: unknown preset, key or value, naming the valid ones.

    Example:
        >>> load_settings("scenes", overrides={"stage1.epochs": 3}).stage1.epochs
        3
    """
    import yaml

    settings = Settings()
    for preset in presets:
        path = Path(preset) if preset.endswith((".yaml", ".yml")) else PRESETS / f"{preset}.yaml"
        if not path.is_file():
            raise ValueError(f"unknown preset {preset!r}: valid are {', '.join(available_presets())}, or a YAML file")
        settings = _merge(settings, yaml.safe_load(path.read_text()) or {}, str(path.name))
    for key, value in (overrides or {}).items():
        if value is None:
            continue
        nested: Any = value
        for part in reversed(key.split(".")):
            nested = {part: nested}
        settings = _merge(settings, nested, "overrides")
    return settings


def as_dict(settings: Any) -> dict[str, Any]:
    """Settings as nested plain values, for JSON and cache keys."""
    return dataclasses.asdict(settings)


def _merge(settings: Any, values: Mapping[str, Any], where: str, path: str = "") -> Any:
    """Replace fields of a nested frozen dataclass, refusing what it does not know."""
    hints = get_type_hints(type(settings))
    changes: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{path}{key}"
        if key not in hints:
            raise ValueError(f"{where}: unknown setting {name!r}: valid are {', '.join(hints)}")
        current = getattr(settings, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {name} is {value!r}, expected settings under it")
            changes[key] = _merge(current, value, where, f"{name}.")
        else:
            changes[key] = _checked(value, hints[key], f"{where}: {name}")
    return dataclasses.replace(settings, **changes)


def _checked(value: Any, hint: Any, name: str) -> Any:
    """Convert a plain value to the hinted type, or say what was expected."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name} is {value!r}: valid are {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(get_args(hint)):
            raise ValueError(f"{name} is {value!r}, expected {len(get_args(hint))} numbers")
        return tuple(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is float and isinstance(value, str):  # YAML takes 1e-4 for text, as it wants 1.0e-4
        with suppress(ValueError):
            return float(value)
    kinds = tuple(kind for kind in (get_args(hint) or (hint,)))
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        raise ValueError(f"{name} is {value!r}, expected {getattr(hint, '__name__', hint)}")
    return value
