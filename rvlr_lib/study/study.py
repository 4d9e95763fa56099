"""A study: one setting and seed as a small graph of cached stages, features → stage 1 → stage 2 → result."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rvlr_lib.config import (
    ARMS,
    Settings,
    arm,
    arm_method,
    arm_training,
    arm_weights,
    as_dict,
    data_presets,
    load_settings,
)
from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.disk import load_tensors, read_json, whole_file, write_json
from rvlr_lib.models import HeadStudent, Student, Towers, TowerStudent, build_towers, principal_directions
from rvlr_lib.provenance import data_name, default_root, provenance
from rvlr_lib.similarity import unit_rows
from rvlr_lib.study import results
from rvlr_lib.study.cache import Cache, Stage
from rvlr_lib.study.inputs import SPLITS, data_parts, read_split
from rvlr_lib.training import stages
from rvlr_lib.training.batches import FeatureBatches, PixelBatches, derived_seed
from rvlr_lib.training.features import FeatureSet, read_features
from rvlr_lib.training.loop import Execution, choose_device
from rvlr_lib.training.processes import is_main, process_group
from rvlr_lib.training.stages import Features, Split

REFERENCES = ("floor", "ceiling", "teachers", "start")


@dataclass(frozen=True)
class Result:
    """One row of a table.

    Attributes:
        record: data set, arm, seed, ``metrics`` under the headline relevance, ``metrics_by_relevance``,
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
        root: of runs and cache; default :func:`rvlr_lib.provenance.default_root`.
        execution: how to train; ``checkpoints`` is the folder of all stages' checkpoints. By default there are none.
        missing: where given, nothing is computed; ends the error that names what is missing.

    Over several processes (``torchrun``), all of them call the same methods and share ``root``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: str = "auto",
        root: Path | None = None,
        execution: Execution | None = None,
        missing: str = "",
    ) -> None:
        self.settings = settings
        self.device = choose_device(device)
        self.cache = Cache(Path(root) if root else default_root(), missing)
        self.execution = execution or Execution()

    # ---- data and features ------------------------------------------------------------------------------------------

    def dataset(self, split: str) -> ImageTextDataset:
        """The ``train``, ``val`` or ``test`` split."""
        return read_split(self.settings, split)

    @cached_property
    def towers(self) -> Towers:
        """The pretrained towers that the settings name."""
        model = self.settings.model
        return build_towers(
            model.name,
            model.pretrained,
            seed=derived_seed(self.settings.seed, "towers"),
            image_weights=model.image_weights,
            text_weights=model.text_weights,
            text_layers=model.text_layers,
            context_length=model.context_length,
            image_size=model.image_size,
        )

    def features(self, split: str) -> FeatureSet:
        """Cached features of a split, of frozen towers."""
        if split not in self._features:
            images, texts = (self.cache.folder(self._feature_stage(modality)) for modality in ("image", "text"))
            self._features[split] = read_features(images, texts, split)
        return self._features[split]

    @cached_property
    def _features(self) -> dict[str, FeatureSet]:
        return {}

    def _feature_stage(self, modality: str) -> Stage:
        """Features of all splits; pictures of the training split in several views."""
        settings, tokens = self.settings, bool(self.settings.model.fusion_layers)
        parts: dict[str, Any] = {
            "towers": self._tower_parts(),
            "data": data_parts(settings, modality),
            "tokens": tokens,
        }
        if modality == "image":
            parts |= {"views": settings.model.views, "crop": settings.stage1.crop_scale, "flip": settings.stage1.flip}

        def arguments() -> dict[str, Any]:
            common = {
                "precision": settings.model.precision,
                "towers": self.towers,
                "splits": {split: self.dataset(split) for split in SPLITS},
                "tokens": tokens,
                "device": self.device,
            }
            if modality == "text":
                return common
            seed = parts["data"].get("seed", 0)  # pictures that no seed decides have one set of views
            return common | {"views": settings.model.views, "optim": settings.stage1, "seed": seed}

        maker = stages.make_image_features if modality == "image" else stages.make_text_features
        return Stage(f"{modality}-features", parts, maker, arguments)

    def teacher_features(self, split: str, spec: str = "") -> Features:
        """Frozen unit rows of a split: of pictures ``[I, W]`` and of captions ``[C, W']``.

        Args:
            split: ``train``, ``val`` or ``test``.
            spec: of both teachers, see :mod:`rvlr_lib.models.pretrained`; default: those of the settings.
        """
        found = []
        for modality in ("image", "text"):
            own = self._teacher_spec(modality, spec)
            if own == "towers" and self.settings.model.freeze_towers:
                features = self.features(split)
                found.append(unit_rows((features.images[0] if modality == "image" else features.texts).float()))
            else:
                folder = self.cache.folder(self._teacher_stage(modality, own))
                found.append(load_tensors(folder / f"{split}.safetensors")["features"])
        return found[0], found[1]

    def _teacher_spec(self, modality: str, spec: str) -> str:
        if spec == "lite2" and modality == "text":
            return "towers"
        return spec or getattr(self.settings.model, f"{modality}_teacher")

    def _teacher_stage(self, modality: str, spec: str) -> Stage:
        parts: dict[str, Any] = {"modality": modality, "spec": spec, "data": data_parts(self.settings, modality)}
        if spec == "oracle":
            parts["data"] = data_parts(self.settings, "both")
        if spec.startswith("arrays:"):
            parts["modified"] = stages.stamp(Path(spec.split(":", 1)[1]))
        return Stage(
            "teacher",
            parts,
            stages.make_teacher,
            lambda: {
                "spec": spec,
                "modality": modality,
                "splits": {split: self.dataset(split) for split in SPLITS},
                "device": self.device,
            },
        )

    # ---- students ---------------------------------------------------------------------------------------------------

    def student_folder(self, name: str) -> Path:
        """The folder of a trained arm: weights, log, validation scores, validation and test features."""
        stage = self._student_stage(name)
        folder = self.cache.folder(stage)
        kept = self._checkpoints(stage)
        if kept is not None and kept.is_dir():
            shutil.rmtree(kept, ignore_errors=True)
        return folder

    def _student_stage(self, name: str) -> Stage:
        settings, chosen = self.settings, arm(name)
        optim, weights, method = arm_training(settings, name), arm_weights(settings, name), arm_method(settings, name)
        # stage 2 shares one seed: the same batches in the same order for every arm
        seed = derived_seed(settings.seed, f"stage{chosen.stage}")
        needs = [self._student_stage("matching")] if chosen.stage == 2 else []
        parts: dict[str, Any] = {
            "seed": seed,
            "optim": as_dict(optim),
            "data": data_parts(settings, "both"),
            "rows": settings.data.rows,
            "model": {key: value for key, value in as_dict(settings.model).items() if not key.endswith("_teacher")},
            "weights": as_dict(weights),
            "selection": method.selection,
        }
        if settings.model.freeze_towers:
            needs += [self._feature_stage(modality) for modality in ("image", "text")]
        if _distils(weights):
            parts["method"] = _training_switches(method)
            parts["teacher"] = [self._teacher_spec(modality, chosen.teacher) for modality in ("image", "text")]
            parts["shuffled"] = chosen.shuffled
            needs += [
                self._teacher_stage(modality, spec)
                for modality, spec in zip(("image", "text"), parts["teacher"], strict=True)
                if not (spec == "towers" and settings.model.freeze_towers)
            ]

        def arguments() -> dict[str, Any]:
            teachers = self.teacher_features("train", chosen.teacher) if _distils(weights) else None
            start = self.cache.path(needs[0]) if chosen.stage == 2 else None
            checkpoints = self._checkpoints(stage)
            return {
                "student": self._fresh_student(),
                "start": start,
                "batches": self._batches(optim, seed),
                "splits": {split: self._split(split) for split in SPLITS},
                "selection": "val" if method.selection == "val" else "test",
                "weights": weights,
                "method": method,
                "optim": optim,
                "teachers": teachers,
                "shuffled": chosen.shuffled,
                "seed": seed,
                "device": self.device,
                "label": name,
                "execution": dataclasses.replace(self.execution, checkpoints=checkpoints),
            }

        stage = Stage(f"stage{chosen.stage}", parts, stages.train_arm, arguments, tuple(needs))
        return stage

    def _fresh_student(self) -> Student:
        """A student before any training, whose geometry is that of its towers."""
        model, seed = self.settings.model, derived_seed(self.settings.seed, "student")
        if not model.freeze_towers:
            return TowerStudent(
                self.towers, fusion_layers=model.fusion_layers, temperature=model.temperature, seed=seed
            )
        train = self.features("train")
        directions = [principal_directions(rows, model.width) for rows in (train.images[0], train.texts)]
        widths = None
        if train.image_tokens is not None and train.text_tokens is not None:
            widths = train.image_tokens.shape[-1], train.text_tokens.shape[-1]
        return HeadStudent(
            *directions,
            token_widths=widths,
            fusion_layers=model.fusion_layers,
            temperature=model.temperature,
            seed=seed,
        )

    def _batches(self, optim: Any, seed: int) -> FeatureBatches | PixelBatches:
        train, rows = self.dataset("train"), self.settings.data.rows
        if self.settings.model.freeze_towers:
            return FeatureBatches(self.features("train"), train.caption_image, optim, rows, seed, self.device)
        return PixelBatches(train, self.towers, optim, rows, seed, self.device)

    def _split(self, split: str) -> Split:
        """A split as students are given it."""
        return Split(self.dataset(split), self.features(split) if self.settings.model.freeze_towers else None)

    def student(self, name: str) -> Student:
        """A trained arm's student, or that of the ``start``, on the device, in evaluation mode."""
        student = self._fresh_student()
        if name != "start":
            stages.load_part(student, self.student_folder(name) / "weights.safetensors")
        return student.to(self.device).eval()

    def test_features(self, name: str) -> Features:
        """Test features of an arm, of ``teachers``, or of the ``start``."""
        if name == "teachers":
            return self.teacher_features("test")
        if name == "start":
            return self._split("test").encode(self._fresh_student(), self.device)
        return stages.stored_features(self.student_folder(name), "test")

    def training_log(self, name: str) -> list[dict[str, Any]]:
        """The log of an arm, a dict each logged step or epoch."""
        lines = (self.student_folder(name) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [{"arm": name, **json.loads(line)} for line in lines]

    def validation(self, name: str) -> dict[str, float]:
        """Scores of an arm on validation: ``r_mean`` and ``structure``, mean above-floor NDCG@10 within a modality."""
        features = stages.stored_features(self.student_folder(name), "val")
        return results.validation_scores(features, self.dataset("val"))

    def first_gradients(self, name: str) -> dict[str, float]:
        """Norm of each weighted term's gradient at the first batch of an arm's stage."""
        stage = self._student_stage(name)
        for needed in stage.needs:
            self.cache.folder(needed)
        return stages.first_gradients(**stage.arguments())

    def _checkpoints(self, stage: Stage) -> Path | None:
        folder = self.execution.checkpoints
        return None if folder is None else folder / f"{stage.name}-{stage.key}"

    def _tower_parts(self) -> dict[str, Any]:
        names = (
            "name",
            "pretrained",
            "image_weights",
            "text_weights",
            "text_layers",
            "context_length",
            "image_size",
            "precision",
        )
        return {name: getattr(self.settings.model, name) for name in names}

    # ---- results ----------------------------------------------------------------------------------------------------

    def result(self, name: str) -> Result:
        """The evaluated result of an arm or of a reference row: ``floor``, ``ceiling``, ``teachers``, ``start``.

        Raises:
            ValueError: unknown name.
        """
        record = self.record(name)
        features = None if name in ("floor", "ceiling") else self.test_features(name)
        return Result(record, features, self.student_folder(name) if name in ARMS else None)

    def record(self, name: str) -> dict[str, Any]:
        """The record of a result, without its features; errors as of :meth:`result`."""
        if name not in ARMS and name not in REFERENCES:
            raise ValueError(f"unknown arm {name!r}: valid are {', '.join((*ARMS, *REFERENCES))}")
        record = {
            "dataset": data_name(self.settings.data.name),
            "arm": name,
            "seed": self.settings.seed,
            **read_json(self.cache.folder(self._result_stage(name)) / "result.json"),
        }
        record["provenance"]["settings"] = as_dict(self.settings)
        return record

    def has(self, name: str) -> bool:
        """Whether the result of an arm or reference row is in the cache."""
        return self.cache.has(self._result_stage(name))

    def _result_stage(self, name: str) -> Stage:
        settings, method = self.settings, self.settings.method
        trained = name in ARMS
        needs = [self._student_stage(name)] if trained else []
        parts: dict[str, Any] = {
            "name": "arm" if trained else name,
            "data": data_parts(settings, "both"),
            "rerank_top_k": settings.rerank_top_k,
            "mixed": [method.mixed_t2it, method.mixed_scores],
        }
        if name in ("start", "teachers"):
            parts |= {"model": as_dict(settings.model), "seed": settings.seed}
        if name == "floor":
            parts |= {"seed": settings.seed, "width": settings.model.width}

        info = {"device": str(self.device)}
        if name in ("floor", "ceiling"):
            return Stage(
                "result",
                parts,
                results.make_reference,
                lambda: {
                    "dataset": self.dataset("test"),
                    "info": provenance() | info,
                    "width": settings.model.width if name == "floor" else 0,
                    "seed": derived_seed(settings.seed, "floor"),
                },
            )

        def arguments() -> dict[str, Any]:
            references = {"teacher": self.teacher_features("test")}
            if name not in ("start", "teachers"):
                references["start"] = self.test_features("start")
            found: dict[str, Any] = {
                "features": self.test_features(name),
                "dataset": self.dataset("test"),
                "references": references,
                "method": method,
                "info": provenance() | info,
                "device": self.device,
                "common_space": name != "teachers",
            }
            if trained:
                found["training"] = read_json(self.cache.path(needs[0]) / "fit.json")
            if trained and settings.rerank_top_k and arm_weights(settings, name).matching:
                student = self.student(name)
                found |= {
                    "fusion": student.fusion,
                    "tokens": self._split("test").tokens(student, self.device),
                    "top_k": settings.rerank_top_k,
                }
            return found

        return Stage("result", parts, results.make_result, arguments, tuple(needs))


def _distils(weights: Any) -> bool:
    """Whether an arm looks at teacher features in training."""
    return any((weights.structure, weights.image_representation, weights.text_representation, weights.mean_relation))


def _training_switches(method: Any) -> dict[str, Any]:
    """The method's switches that act in training, so that an evaluation switch retrains nothing."""
    others = ("weights", "baseline", "selection", "mixed_t2it", "mixed_scores", "siblings")
    return {name: value for name, value in as_dict(method).items() if name not in others}


def open_study(
    name: str,
    *,
    preset: str = "quick",
    method: str = "corrected",
    device: str = "auto",
    root: Path | None = None,
    seed: int = 0,
    execution: Execution | None = None,
    missing: str = "",
    image_root: str | None = None,
    model: str = "",
    pretrained: str | None = None,
    **overrides: Any,
) -> Study:
    """A study of a data set by name.

    Args:
        name: ``scenes``, ``emoji``, ``clipart``, or a file that :func:`rvlr_lib.data.load_dataset` reads.
        preset: sizes (``smoke``, ``quick``, ``study``, ``own``, ``gpu``), or a YAML file of settings.
        method: preset of the method's switches: ``corrected`` or ``official``.
        device: to compute on.
        root: of runs and cache.
        seed: of everything, the scenes' world and the dial's draws among it.
        execution: how to train.
        missing: where given, nothing is computed, see :class:`Study`.
        image_root, model, pretrained: short for ``data.image_root``, ``model.name`` and ``model.pretrained``.
        overrides: settings and their values, dotted (``**{"data.text_detail": 0.5}``); None leaves the preset's.

    Raises:
        ValueError: an unknown preset or setting, naming the valid ones.
    """
    own = name if name in data_presets() else "own"
    named = {"data.image_root": image_root or None, "model.name": model or None, "model.pretrained": pretrained or None}
    presets = [own, "tuned", *([preset] if preset else []), method]
    settings = load_settings(*presets, overrides={"data.name": name, "seed": seed, **named, **overrides})
    return Study(settings, device=device, root=root, execution=execution, missing=missing)


def train(
    *,
    dataset: str,
    arm: str = "rvlr",
    preset: str = "",
    method: str = "corrected",
    image_root: str | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    root: Path | None = None,
    resume: str = "last",
    save_every: int = 500,
    compile: bool = False,
    gradient_checkpointing: bool = False,
    timeout: float = 1800.0,
    overrides: Mapping[str, Any] | None = None,
) -> None:
    """The command ``rvlr train``: one arm, in one process or as one of torchrun's; an interrupted training goes on.

    Args:
        dataset, preset, method, seed: as of :func:`open_study`.
        arm: to train and evaluate, after what it goes on from.
        image_root: folder of the pictures.
        device: to compute on; under torchrun each process takes the GPU of its local rank.
        out: folder of the weights, log and result; default below ``root``, named by data set, arm and seed.
        root: of runs, cache and checkpoints.
        resume, save_every, compile, gradient_checkpointing: see :class:`Execution`.
        timeout: seconds until a process gives up waiting for another one.
        overrides: dotted settings.

    Raises:
        ValueError: bad settings, or ``out`` holds a training of other settings.
    """
    place = Path(root) if root else default_root()
    with process_group(choose_device(device), timeout):
        checkpoints = Execution(compile, gradient_checkpointing, place / "checkpoints", save_every, resume)
        study = open_study(
            dataset,
            preset=preset or ("quick" if dataset in data_presets() else "own"),
            method=method,
            device=device,
            root=place,
            seed=seed,
            execution=checkpoints,
            image_root=image_root,
            **(overrides or {}),
        )
        stage = study._result_stage(arm)
        target = out or place / "train" / f"{data_name(dataset)}-{arm}-seed{seed}"
        kept = target / "train.json"
        if kept.is_file() and read_json(kept)["key"] != stage.key:
            raise ValueError(f"{target} holds a training of other settings or data: give another --out, or remove it")
        result = study.result(arm)
        if is_main() and result.folder is not None:
            for path in result.folder.iterdir():
                with whole_file(target / path.name) as temporary:
                    shutil.copyfile(path, temporary)
            write_json(target / "result.json", result.record)
            write_json(kept, {"key": stage.key, "settings": as_dict(study.settings)})
            print(f"r_mean {result.metrics['r_mean']:.1f}; weights, log and result in {target}")
