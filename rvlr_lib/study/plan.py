"""The stages that a study trains, in order, and what decides the outcome of each: nothing here computes one."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rvlr_lib.config import VARIANTS, Settings, TrainSettings, as_dict, variant_weights
from rvlr_lib.study import sources
from rvlr_lib.study.cache import stage_key
from rvlr_lib.study.inputs import data_parts
from rvlr_lib.training.stages import derived_seed

STAGE_MODULE = "rvlr_lib.training.stages"
TEACHER_SHARES = {"half": 0.5, "quarter": 0.25}


@dataclass(frozen=True)
class Stage:
    """One training and its place in the cache.

    Attributes:
        name: first part of its folder, such as ``teacher-image``.
        label: for people.
        parts: all settings that decide its outcome.
        module: whose source, with all it imports, does so too.
        train: its optimisation; no epochs where nothing is trained.
        rows: what a row of its batches is.
        seed: of the stage.
        kind: of a teacher.
    """

    name: str
    label: str
    parts: dict[str, Any]
    module: str
    train: TrainSettings
    rows: str
    seed: int
    kind: str = "trained"

    @cached_property
    def key(self) -> str:
        """Name of its folder in the cache."""
        return stage_key(self.parts, self.module)


class Plan:
    """The stages of some settings.

    Args:
        settings: decide every number.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def teacher(self, modality: str, kind: str = "trained") -> Stage:
        """A teacher; arguments as of :meth:`rvlr_lib.study.study.Study.teacher_folder`."""
        settings, spec = self.settings.teacher, getattr(self.settings.model, f"{modality}_teacher")
        seed, trained = derived_seed(self.settings.seed, "teacher", modality), kind != "untrained"
        if kind in TEACHER_SHARES:
            settings = dataclasses.replace(settings, epochs=max(1, round(settings.epochs * TEACHER_SHARES[kind])))
        if not trained or self.settings.model.freeze_towers:
            settings = TrainSettings(epochs=0)
        if not trained:
            seed, spec = derived_seed(self.settings.seed, "untrained", modality), "train"
        parts = {"modality": modality, "seed": seed, "train": as_dict(settings),
                 "data": data_parts(self.settings.data, modality), "model": self.tower_parts(),
                 "teacher": spec}  # fmt: skip
        if spec.startswith("arrays:"):
            parts["modified"] = sources.stamp(spec)
        module = STAGE_MODULE if spec == "train" else "rvlr_lib.models.pretrained"
        label = f"{modality} teacher" if kind == "trained" else f"{modality} teacher ({kind})"
        settings = settings if spec == "train" else TrainSettings(epochs=0)
        return Stage(f"teacher-{modality}", label, parts, module, settings, "images", seed, kind)

    def student(self, variant: str) -> Stage:
        """A trained variant."""
        settings, spec, weights = self.settings, VARIANTS[variant], variant_weights(self.settings, variant)
        train = settings.stage1 if spec.stage == 1 else settings.stage2
        # stage 2 shares one seed: the same batches in the same order for every variant
        seed = derived_seed(settings.seed, f"stage{spec.stage}")
        parts: dict[str, Any] = {
            "seed": seed,
            "train": as_dict(train),
            "data": data_parts(settings.data, "both"),
            "rows": settings.data.rows,
            "model": as_dict(settings.model),
            "weights": as_dict(weights),
            "selection": settings.method.selection,
        }
        if self.starts_on_teachers:
            parts["towers"] = [self.teacher(modality).key for modality in ("image", "text")]
        if spec.stage == 2:
            parts["start"] = self.student("matching").key
        if self.distils(variant):
            parts["method"] = _training_switches(settings)
            of_teacher = spec.teacher not in ("shuffled", "oracle")
            keys = (self.teacher(m, spec.teacher if of_teacher else "trained").key for m in ("image", "text"))
            parts["teacher"] = [spec.teacher, *(keys if spec.teacher != "oracle" else ())]
        return Stage("student", variant, parts, STAGE_MODULE, train, settings.data.rows, seed)

    def stages(self, variant: str) -> list[Stage]:
        """All stages behind the result of a variant, in the order of their training."""
        kinds = ["trained"]
        if self.distils(variant) and VARIANTS[variant].teacher not in ("trained", "shuffled", "oracle"):
            kinds.append(VARIANTS[variant].teacher)
        found = [self.teacher(modality, kind) for kind in kinds for modality in ("image", "text")]
        if VARIANTS[variant].stage == 2:
            found.append(self.student("matching"))
        return [*found, self.student(variant)]

    def distils(self, variant: str) -> bool:
        """Whether a variant looks at teacher features in training."""
        weights = variant_weights(self.settings, variant)
        return bool(weights.structure or weights.image_representation or weights.text_representation)

    def tower_parts(self) -> dict[str, Any]:
        """What decides the towers at the start."""
        model = self.settings.model
        others = ("init", "image_teacher", "text_teacher", "fusion_layers", "temperature")  # act on what stands on them
        parts = {name: value for name, value in as_dict(model).items() if name not in others}
        return parts | {"seed": derived_seed(self.settings.seed, "towers")}

    @property
    def starts_on_teachers(self) -> bool:
        """Whether students start on the towers of the teachers."""
        model = self.settings.model
        return model.init == "teacher" and {model.image_teacher, model.text_teacher} == {"train"}


def _training_switches(settings: Settings) -> dict[str, Any]:
    """The method's switches that act in training, so that an evaluation switch retrains nothing."""
    switches = as_dict(settings.method)
    for name in ("weights", "baseline", "selection", "mixed_t2it", "mixed_scores", "siblings"):
        switches.pop(name)
    return switches
