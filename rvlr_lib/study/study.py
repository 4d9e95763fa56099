"""A study: data set, teachers and variants to results, every stage cached."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from rvlr_lib.config import VARIANTS, Settings, as_dict, data_presets, load_settings, variant_weights
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.evaluation import evaluate as evaluation
from rvlr_lib.evaluation.rerank import matching_scores
from rvlr_lib.models.fusion import FusionEncoder
from rvlr_lib.models.student import Student
from rvlr_lib.models.teachers import orthogonal_maps
from rvlr_lib.models.towers import Towers, tokenize
from rvlr_lib.provenance import data_name, default_root, provenance
from rvlr_lib.study import sources
from rvlr_lib.study.cache import cache_folder, cached
from rvlr_lib.study.inputs import data_parts, read_split
from rvlr_lib.study.plan import Plan, Stage
from rvlr_lib.training import stages
from rvlr_lib.training.checkpoint import checkpoints_in, load_tensors, load_weights, save_tensors
from rvlr_lib.training.loop import Fitted, choose_device
from rvlr_lib.training.processes import Execution, is_main
from rvlr_lib.training.stages import Features, derived_seed

REFERENCES = ("floor", "teachers", "ceiling", "start")


@dataclass(frozen=True)
class Result:
    """One row of a table.

    Attributes:
        record: data set, variant, seed, ``metrics`` under the headline relevance, ``metrics_by_relevance``,
            ``structure`` and ``provenance``.
        features: of the test pictures and captions, None for floor and ceiling.
        folder: of the trained weights and logs, None where nothing was trained.
    """

    record: dict[str, Any]
    features: Features | None = None
    folder: Path | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """Retrieval figures under the headline relevance, in percent."""
        return self.record["metrics"]

    @property
    def structure(self) -> dict[str, float]:
        """Structure figures of the test split."""
        return self.record["structure"]


class Study:
    """All stages of one setting and seed; each is computed when first asked for and read from the cache afterwards.

    Args:
        settings: decides every number.
        device: ``auto``, ``cpu`` or ``cuda``.
        root: of runs and cache; default :func:`rvlr_lib.study.cache.default_root`.
        execution: how to train; ``checkpoints`` is the folder of all stages' checkpoints. By default there are none.

    Over several processes (``torchrun``), all of them call the same methods and share ``root``.
    """

    def __init__(
        self, settings: Settings, *, device: str = "auto", root: Path | None = None, execution: Execution | None = None
    ) -> None:
        self.settings, self.plan = settings, Plan(settings)
        self.device = choose_device(device)
        self.root = Path(root) if root else default_root()
        self.execution = execution or Execution()

    # ---- data -------------------------------------------------------------------------------------------------------

    def dataset(self, split: str) -> ImageTextDataset:
        """The ``train``, ``val`` or ``test`` split, as the towers read it."""
        return self._frozen.datasets[split] if self.settings.model.freeze_towers else self.pictures(split)

    def pictures(self, split: str) -> ImageTextDataset:
        """The same with pictures, where the towers read cached features."""
        return read_split(self.settings.data, split)

    @cached_property
    def towers(self) -> Towers:
        """Fresh towers of the student's architecture, or heads on the features of frozen ones."""
        model, seed = self.settings.model, derived_seed(self.settings.seed, "towers")
        return self._frozen.towers if model.freeze_towers else sources.fresh_towers(model, seed)

    @cached_property
    def _frozen(self) -> sources.Frozen:
        return sources.Frozen(self, {"model": self.plan.tower_parts(), "data": data_parts(self.settings.data, "both")})

    # ---- teachers ---------------------------------------------------------------------------------------------------

    def teacher_folder(self, modality: str, kind: str = "trained") -> Path:
        """The folder of a teacher: weights, log and the features of every split.

        Args:
            modality: ``image`` or ``text``.
            kind: ``trained`` (or taken from where the settings say), ``half`` or ``quarter`` (of the epochs, at least
                one), or ``untrained``: random weights that are not those the student starts from.
        """
        stage = self.plan.teacher(modality, kind)
        make = partial(sources.make_teacher, self, modality, stage.train, stage.parts["teacher"], stage.seed,
                       trained=kind != "untrained")  # fmt: skip
        return self._folder(stage, make)

    @cache  # noqa: B019
    def teacher_features(self, split: str, kind: str = "trained") -> Features:
        """Frozen features of a split: pictures by the image teacher, captions by the text teacher."""
        folders = [self.teacher_folder(modality, kind) for modality in ("image", "text")]
        images, texts = (load_tensors(folder / f"{split}.safetensors")["features"] for folder in folders)
        return sources.same_width((images, texts))

    # ---- students ---------------------------------------------------------------------------------------------------

    def student_folder(self, variant: str) -> Path:
        """The folder of a trained variant: weights, log and test features."""
        settings, spec, weights = self.settings, VARIANTS[variant], variant_weights(self.settings, variant)
        stage = self.plan.student(variant)

        def compute(folder: Path, execution: Execution) -> None:
            student = self.start_student()
            if spec.stage == 2:
                _load_part(student, self.student_folder("matching"), "student.")
            teachers = self._distillation_features(spec.teacher) if self.plan.distils(variant) else None
            split = "val" if settings.method.selection == "val" else "test"
            selection = self.dataset(split).gallery_sets()[0]
            fitted = stages.train_student(student, self.towers, self.dataset("train"), selection, settings, stage.train,
                                          weights, teachers, seed=stage.seed, device=self.device,
                                          log_path=folder / "log.jsonl", label=variant,
                                          execution=execution)  # fmt: skip
            self.write_fit(folder, fitted)
            save_tensors(folder / "weights.safetensors", fitted.state)
            images, texts = stages.encode_with_student(student, self.dataset("test"), self.towers, self.device)
            save_tensors(folder / "test.safetensors", {"images": images, "texts": texts})

        for needed in self.plan.stages(variant)[:-1]:
            if needed.name == "student":
                self.student_folder(needed.label)
        return self._folder(stage, compute)

    def start_student(self) -> Student:
        """A student before any training: on the teachers' towers, or on random (or pretrained) ones."""
        model = self.settings.model
        student = Student(self.towers, fusion_layers=model.fusion_layers, temperature=model.temperature,
                          seed=derived_seed(self.settings.seed, "fusion"))  # fmt: skip
        if self.plan.starts_on_teachers:
            for modality, tower in (("image", student.visual), ("text", student.text)):
                _load_part(tower, self.teacher_folder(modality), "tower.")
        return student

    def trained_student(self, variant: str) -> Student:
        """A trained variant's student, on the device, in evaluation mode."""
        student = self.start_student()
        _load_part(student, self.student_folder(variant), "student.")
        return student.to(self.device).eval()

    def test_features(self, name: str) -> Features:
        """Test features of a variant, of ``teachers``, or of the ``start``."""
        if name == "teachers":
            return self.teacher_features("test")
        if name == "frozen":
            train = self.dataset("train")
            images, texts = self.teacher_features("train")
            maps = orthogonal_maps(images[torch.as_tensor(train.caption_image)], texts)
            images, texts = self.teacher_features("test")
            return images @ maps[0], texts @ maps[1]
        if name == "start":
            if self.plan.starts_on_teachers:
                return self.teacher_features("test")
            return stages.encode_with_student(self.start_student(), self.dataset("test"), self.towers, self.device)
        tensors = load_tensors(self.student_folder(name) / "test.safetensors")
        return tensors["images"], tensors["texts"]

    # ---- results ----------------------------------------------------------------------------------------------------

    def result(self, name: str) -> Result:
        """The evaluated result of a variant or of a reference row: ``floor``, ``teachers``, ``ceiling``, ``start``.

        Raises:
            ValueError: unknown name.
        """
        if name not in VARIANTS and name not in REFERENCES:
            raise ValueError(f"unknown variant {name!r}: valid are {', '.join((*VARIANTS, *REFERENCES))}")
        trained = name in VARIANTS and VARIANTS[name].stage > 0
        folder = self.student_folder(name) if trained else None
        parts: dict[str, Any] = {"name": name if folder is None else "student",
                                 "data": data_parts(self.settings.data, "both"),
                                 "rerank_top_k": self.settings.rerank_top_k, "mixed": self._mixed}  # fmt: skip
        if folder is not None:
            parts["student"] = folder.name
        if name == "floor":
            parts |= {"seed": self.settings.seed, "towers": self.plan.tower_parts()}
        if name == "start":
            parts["model"] = as_dict(self.settings.model)
        if name not in ("floor", "ceiling"):
            parts["teachers"] = [self.plan.teacher(modality).key for modality in ("image", "text")]

        def compute(target: Path) -> None:
            write_json(target / "result.json", self._evaluate(name, folder))

        cell = cached(self.root, "result", parts, "rvlr_lib.evaluation.evaluate", compute)
        record = {"dataset": data_name(self.settings.data.name), "variant": name, "seed": self.settings.seed,
                  **read_json(cell / "result.json")}  # fmt: skip
        record["provenance"]["settings"] = as_dict(self.settings)
        features = None if name in ("floor", "ceiling") else self.test_features(name)
        return Result(record, features, folder)

    def training_log(self, name: str) -> list[dict[str, Any]]:
        """The log of a variant, or of a teacher as ``image teacher`` or ``text teacher``."""
        modality = name.removesuffix(" teacher")
        folder = self.teacher_folder(modality) if modality in ("image", "text") else self.student_folder(name)
        lines = (folder / "log.jsonl").read_text().splitlines()
        return [{"variant": name, **json.loads(line)} for line in lines]

    def _evaluate(self, name: str, folder: Path | None) -> dict[str, Any]:
        dataset = self.dataset("test")
        info = provenance() | {"device": str(self.device), "data": dataset.fingerprint(), "data_info": dataset.info,
                               "preprocessing": self.towers.preprocessing(),
                               "rouge": "coco" if dataset.scene is None else None}  # fmt: skip
        if name == "floor":
            width = self.towers.embed_dim
            reports = evaluation.noise_floor(dataset, width, derived_seed(self.settings.seed, "floor"), self.device)
        elif name == "ceiling":
            reports = {"latent": evaluation.ceiling(dataset)}
        else:
            features, method = self.test_features(name), self.settings.method
            references = {"teacher": self.teacher_features("test")}
            if not self.plan.starts_on_teachers:
                references["start"] = self.test_features("start")
            found = evaluation.evaluate(
                features, dataset, references=references, matching=self._matching_scores(name, features, dataset),
                official=folder is not None, common_space=name != "teachers", mixed_t2it=method.mixed_t2it,
                mixed_scores=method.mixed_scores, device=self.device,
            )  # fmt: skip
            training = {} if folder is None else {"training": read_json(folder / "fit.json")}
            return {**found, "provenance": info, **training}
        return {"metrics": next(iter(reports.values())), "metrics_by_relevance": reports, "structure": {},
                "provenance": info}  # fmt: skip

    def _matching_scores(
        self, name: str, features: Features, dataset: ImageTextDataset
    ) -> tuple[Tensor, Tensor] | None:
        """Scores of the matching head, where there is a trained one and one gallery."""
        top_k, trained = self.settings.rerank_top_k, name in VARIANTS and VARIANTS[name].stage > 0
        if not (top_k and trained and dataset.galleries is None and variant_weights(self.settings, name).matching):
            return None
        return matching_scores(*self.fusion_inputs(name), features, top_k, device=self.device)

    @torch.inference_mode()
    def fusion_inputs(self, name: str) -> tuple[FusionEncoder, Tensor, Tensor, Tensor]:
        """A trained variant's fusion encoder, and the tokens of the test pictures and captions it scores."""
        student, data = self.trained_student(name), self.dataset("test")
        assert student.fusion is not None
        images: list[Any] = [
            student.encode_image(data.pixels(rows, self.towers.image_size).to(self.device) / 255, tokens=True).tokens
            for rows in torch.arange(len(data)).split(64)
        ]
        texts: list[Any] = [
            student.encode_text(ids.to(self.device), tokens=True)
            for ids in tokenize(self.towers.tokenizer, data.captions).split(512)
        ]
        longest = max(part.mask.shape[1] for part in texts)
        padded = [torch.nn.functional.pad(x.tokens, (0, 0, 0, longest - x.tokens.shape[1])).cpu() for x in texts]
        masks = [torch.nn.functional.pad(x.mask, (0, longest - x.mask.shape[1])).cpu() for x in texts]
        return student.fusion, torch.cat([part.cpu() for part in images]), torch.cat(padded), torch.cat(masks)

    # ---- cache and checkpoints --------------------------------------------------------------------------------------

    def folder_of(self, stage: Stage) -> Path:
        """The folder of a stage of :attr:`plan`, trained if it is not there."""
        if stage.name == "student":
            return self.student_folder(stage.label)
        return self.teacher_folder(stage.name.removeprefix("teacher-"), stage.kind)

    def is_there(self, stage: Stage) -> bool:
        """Whether a stage is trained already."""
        return (cache_folder(self.root, stage.name, stage.key) / "parts.json").is_file()

    def checkpoints(self, stage: Stage) -> Path | None:
        """Where a stage's checkpoints are while it trains; None where none are wanted."""
        folder = self.execution.checkpoints
        return None if folder is None else folder / f"{stage.name}-{stage.key}"

    def _folder(self, stage: Stage, compute: Callable[..., None]) -> Path:
        """The stage's folder, computed if it is not there; its checkpoints go when it is whole."""
        kept = self.checkpoints(stage)
        execution = dataclasses.replace(self.execution, checkpoints=kept)
        if kept is not None and execution.resume != "no" and not checkpoints_in(kept):
            execution = dataclasses.replace(execution, resume="last")  # a name is meant for the interrupted stage
        folder = cached(self.root, stage.name, stage.parts, stage.module, partial(compute, execution=execution))
        if kept is not None and is_main():
            shutil.rmtree(kept, ignore_errors=True)
        return folder

    @property
    def _mixed(self) -> list[str]:
        return [self.settings.method.mixed_t2it, self.settings.method.mixed_scores]

    def _distillation_features(self, kind: str) -> Features:
        if kind == "oracle":
            return stages.oracle_teacher(self.dataset("train"))
        if kind != "shuffled":
            return self.teacher_features("train", kind)
        features = self.teacher_features("train")
        caption_image = torch.as_tensor(self.dataset("train").caption_image)
        return stages.shuffle_teacher(features, caption_image, derived_seed(self.settings.seed, "shuffled"))

    @staticmethod
    def write_fit(folder: Path, fitted: Fitted) -> None:
        """Keep how a training went beside its weights."""
        summary = dataclasses.asdict(fitted)
        summary.pop("state")
        write_json(folder / "fit.json", summary)


def _load_part(module: Module, folder: Path, prefix: str) -> None:
    """Load the weights of a stage whose names begin with ``prefix``."""
    path = folder / "weights.safetensors"
    found = {name.removeprefix(prefix): value for name, value in load_tensors(path).items() if name.startswith(prefix)}
    load_weights(module, found, str(path))


OVERRIDES = {
    "image_root": "data.image_root",
    "text_detail": "data.text_detail",
    "image_visibility": "data.image_visibility",
    "image_fault": "data.image_fault",
    "mismatch_rate": "data.mismatch_rate",
    "train_size": "data.train_size",
    "val_size": "data.val_size",
    "galleries": "data.galleries",
    "gallery_size": "data.gallery_size",
    "model": "model.name",
    "pretrained": "model.pretrained",
    "init": "model.init",
    "fusion_layers": "model.fusion_layers",
    "teacher_epochs": "teacher.epochs",
    "stage1_epochs": "stage1.epochs",
    "stage2_epochs": "stage2.epochs",
    "rerank_top_k": "rerank_top_k",
    "seed": "seed",
}


def open_study(
    dataset: str, *, method: str = "corrected", preset: str = "", device: str = "auto", root: Path | None = None,
    execution: Execution | None = None, **overrides: Any,
) -> Study:  # fmt: skip
    """A study of a data set by name, with the presets of the data set and of the method.

    Args:
        dataset: ``scenes``, ``emoji``, or a file that :func:`rvlr_lib.data.load_dataset` reads.
        method: preset of the method's switches: ``corrected`` or ``official``.
        preset: a shipped preset or a YAML file on top of the data set's own, such as ``frozen``.
        device: to compute on.
        root: of runs and cache.
        execution: how to train, see :class:`rvlr_lib.training.processes.Execution`.
        overrides: short names (``train_size``, ``stage1_epochs``, …, those of :data:`OVERRIDES`) or dotted settings
            (``**{"method.distance": "mse"}``) and their values; None, -1 and "" leave the preset's.

    Raises:
        ValueError: an override that is unknown, naming the valid ones.
    """
    unknown = {name for name in overrides if "." not in name} - set(OVERRIDES)
    if unknown:
        raise ValueError(f"unknown override {sorted(unknown)}: valid are {', '.join(OVERRIDES)}")
    presets = [dataset if dataset in data_presets() else "own", *([preset] if preset else [])]
    chosen = {OVERRIDES.get(name, name): value for name, value in overrides.items() if value not in (None, -1, "")}
    settings = load_settings(*presets, method, overrides={"data.name": dataset, **chosen})
    return Study(settings, device=device, root=root, execution=execution)
