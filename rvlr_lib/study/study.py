"""A study: one setting and seed as a small graph of cached stages, features → stage 1 → stage 2 → result."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from rvlr_lib import config
from rvlr_lib.config import Settings
from rvlr_lib.data import NAMES, PUBLISHED_SETS
from rvlr_lib.data.dataset import SPLITS, ImageTextDataset
from rvlr_lib.disk import atomic_path, claimed_folder, load_tensors, read_json, write_json
from rvlr_lib.models import HeadStudent, Student, Towers, TowerStudent, build_towers, save_student
from rvlr_lib.provenance import data_name, default_root, provenance
from rvlr_lib.similarity import principal_directions, unit_rows
from rvlr_lib.study import results
from rvlr_lib.study.cache import Cache, Stage, data_parts, named_files, read_split
from rvlr_lib.study.plan import REFERENCES
from rvlr_lib.training import features, stages
from rvlr_lib.training.batches import FeatureBatches, PixelBatches, derived_seed
from rvlr_lib.training.features import Features, FeatureSet, encode, encode_frozen, encode_tokens, read_features
from rvlr_lib.training.loop import Execution, choose_device
from rvlr_lib.training.objectives import gradient_shares
from rvlr_lib.training.processes import is_main, process_group

MODALITIES = ("image", "text")
# what `rvlr train` writes, and what --overwrite removes
FILES = "weights.safetensors val.safetensors test.safetensors log.jsonl fit.json parts.json result.json student".split()
TOWER_SETTINGS = ("pretrained", "image_weights", "text_weights", "text_layers", "context_length", "image_size")
EVALUATION_SWITCHES = ("weights", "baseline", "selection", "mixed_t2it", "mixed_scores")
TAUGHT = ("image_representation", "text_representation", "structure", "mean_relation")  # terms that need teachers


class Result(dict[str, Any]):
    """The record of an arm or of a reference row."""

    @property
    def metrics(self) -> dict[str, float]:
        """Retrieval metrics under the headline relevance, in percent."""
        return self["metrics"]


class Study:
    """All stages of one setting and seed; each is computed on first use and read from the cache afterwards.

    ``root`` holds runs and cache (:func:`rvlr_lib.provenance.default_root` if not given). ``execution`` says how to
    train; its ``checkpoints`` is the folder for those of all stages. With ``missing`` nothing is computed: a missing
    stage raises a ValueError that ends with this text. Under torchrun all processes call the same methods and share
    ``root``.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        device: str = "auto",
        root: Path | str | None = None,
        execution: Execution | None = None,
        missing: str = "",
    ) -> None:
        self.settings, self.device = settings, choose_device(device)
        self.cache = Cache(Path(root) if root else default_root(), missing)
        self.execution = execution or Execution()

    def dataset(self, split: str) -> ImageTextDataset:
        """The ``train``, ``val`` or ``test`` split."""
        return read_split(self.settings, split)

    @cached_property
    def towers(self) -> Towers:
        """The pretrained towers that the settings name."""
        model = self.settings.model
        options = {name: getattr(model, name) for name in TOWER_SETTINGS}
        return build_towers(model.name, seed=derived_seed(self.settings.seed, "towers"), **options)

    def features(self, split: str) -> FeatureSet:
        """The frozen towers' cached features of a split, memory-mapped."""
        return read_features(*self._feature_folders, split)

    @cached_property
    def _feature_folders(self) -> tuple[Path, Path]:
        images, texts = (self.cache.folder(self._feature_stage(modality)) for modality in MODALITIES)
        return images, texts

    def teacher_features(self, split: str, spec: str = "") -> Features:
        """The teachers' unit rows of a split: pictures ``[I, W]`` and captions ``[C, W']``.

        ``spec`` names both teachers, see :mod:`rvlr_lib.models.teachers`; by default those of the settings.
        """

        def stored(stage: Stage) -> Tensor:
            return load_tensors(self.cache.folder(stage) / f"{split}.safetensors")["features"]

        images, texts = self._teacher_stages(spec)
        image_rows = stored(images) if images else unit_rows(self.features(split).images[0])
        text_rows = stored(texts) if texts else unit_rows(self.features(split).texts)
        return image_rows, text_rows

    def student_folder(self, name: str) -> Path:
        """The folder of a trained arm: weights, log, training record, validation and test features."""
        stage = self._student_stage(name)
        folder = self.cache.folder(stage)
        if checkpoints := self._checkpoints(stage):  # of no use once the stage is finished
            shutil.rmtree(checkpoints, ignore_errors=True)
        return folder

    def student(self, name: str) -> Student:
        """The student of a trained arm, or of the ``start``, on the device and in evaluation mode."""
        student = self._fresh_student()
        if name != "start":
            student.load_state_dict(load_tensors(self.student_folder(name) / "weights.safetensors"))
        return student.to(self.device).eval()

    def test_features(self, name: str) -> Features:
        """Test features of an arm, of ``teachers``, or of the ``start``."""
        if name == "teachers":
            return self.teacher_features("test")
        return self._start_features if name == "start" else stages.stored_features(self.student_folder(name), "test")

    @cached_property
    def _start_features(self) -> Features:
        return encode(self._fresh_student(), self.inputs("test"), self.device)

    def training_log(self, name: str) -> list[dict[str, Any]]:
        """The log of an arm: one dict for each logged step or epoch."""
        lines = (self.student_folder(name) / "log.jsonl").read_text(encoding="utf-8").splitlines()
        return [{"arm": name, **json.loads(line)} for line in lines]

    def validation(self, name: str) -> dict[str, float]:
        """Validation scores of an arm, see :func:`rvlr_lib.study.results.validation_scores`."""
        features = stages.stored_features(self.student_folder(name), "val")
        return results.validation_scores(features, self.dataset("val"), self.device)

    def first_gradients(self, name: str) -> dict[str, float]:
        """Gradient norm of each weighted term, on the first batch of an arm's training."""
        arguments = self._student_stage(name).arguments()
        objective = stages.build_objective(**arguments["arm"], device=self.device).to(self.device)
        batches = arguments["batches"].take(two_views=objective.two_views, tokens=objective.tokens)
        return gradient_shares(objective, next(batches))

    def result(self, name: str) -> Result:
        """The test result of an arm or of a reference row: ``floor``, ``ceiling``, ``teachers`` or ``start``."""
        stored = read_json(self.cache.folder(self.result_stage(name)) / "result.json")
        stored["provenance"]["settings"] = asdict(self.settings)
        return Result(dataset=data_name(self.settings.data.name), arm=name, seed=self.settings.seed, **stored)

    def _feature_stage(self, modality: str) -> Stage:
        """The features of one modality in all splits; training pictures in several views."""
        model, optim, data = self.settings.model, self.settings.stage1, data_parts(self.settings, modality)
        options: dict[str, Any] = {"tokens": bool(model.fusion_layers), "precision": model.precision}
        parts = {name: getattr(model, name) for name in ("name", *TOWER_SETTINGS)} | options | {"data": data}
        parts |= self._model_files()
        if modality == "image":
            parts |= {"views": model.views, "crop": optim.crop_scale, "flip": optim.flip}
            # pictures that do not depend on the seed get the same views under every seed
            options |= {"views": model.views, "optim": optim, "seed": data.get("seed", 0)}
        options |= {"modality": modality}
        name = f"{modality}-features"
        return Stage(name, parts, encode_frozen, lambda: {**self._data(), "towers": self.towers, **options})

    def _model_files(self) -> dict[str, list[str]]:
        """SHA-256 of the weight files that the settings name; empty if they name none."""
        model = self.settings.model
        text = model.text_weights and f"local-dir:{model.text_weights}"
        digests = named_files(model.name if ":" in model.name else "", model.pretrained, model.image_weights, text)
        return {"files": digests} if digests else {}

    def _teacher_stages(self, spec: str) -> list[Stage | None]:
        """Stages of the image and the text teacher; ``lite2`` replaces the image teacher only."""
        model = self.settings.model
        text_spec = model.text_teacher if spec in ("", "lite2") else spec
        return [self._teacher_stage("image", spec or model.image_teacher), self._teacher_stage("text", text_spec)]

    def _teacher_stage(self, modality: str, spec: str) -> Stage | None:
        """None if the teacher is the student's own frozen tower, whose features are cached already."""
        if spec == "towers" and self.settings.model.freeze_towers:
            return None
        data = data_parts(self.settings, "both" if spec == "oracle" else modality)
        teacher = {"modality": modality, "spec": spec}
        parts = {"data": data, "file": "".join(named_files(spec) if ":" in spec else ()), **teacher}
        return Stage("teacher", parts, features.make_teacher, lambda: {**self._data(), **teacher})

    def _student_stage(self, name: str) -> Stage:
        """The training of an arm; arms of stage 2 start from ``matching`` and share their batches."""
        settings, arm = self.settings, config.arm(name)
        optim, weights = config.arm_training(settings, name), config.arm_weights(settings, name)
        method = replace(settings.method, **arm.method)  # with the arm's own switches
        seed = derived_seed(settings.seed, f"stage{arm.stage}")
        start = self._student_stage("matching") if arm.stage == 2 else None
        needs = [start, *map(self._feature_stage, MODALITIES if settings.model.freeze_towers else ())]
        parts = {
            "seed": seed,
            "optim": asdict(optim),
            "data": data_parts(settings, "both"),
            "rows": settings.data.rows,
            "model": {key: value for key, value in asdict(settings.model).items() if not key.endswith("_teacher")},
            "weights": asdict(weights),
            "selection": method.selection,
        } | self._model_files()
        taught = any(getattr(weights, term) for term in TAUGHT)
        if taught:
            teachers = self._teacher_stages(arm.teacher)
            needs = [*teachers, *needs]  # a wrong teacher fails before any training
            parts["teacher"] = [stage and stage.key for stage in teachers]
            parts["method"] = {key: value for key, value in asdict(method).items() if key not in EVALUATION_SWITCHES}
            parts["shuffled"] = arm.shuffled

        def arguments() -> dict[str, Any]:
            return {
                "arm": {
                    "teachers": self.teacher_features("train", arm.teacher) if taught else None,
                    "student": self.student("matching") if start else self._fresh_student(),
                    "splits": {split: (self.dataset(split), self.inputs(split)) for split in SPLITS},
                    "weights": weights,
                    "method": method,
                    "shuffled": arm.shuffled,
                    "seed": seed,
                },
                "batches": self._batches(optim, seed),
                "selection": method.selection,
                "label": name,
                "execution": replace(self.execution, checkpoints=self._checkpoints(stage)),
            }

        stage = Stage(f"stage{arm.stage}", parts, stages.train_arm, arguments, tuple(filter(None, needs)))
        return stage

    def result_stage(self, name: str) -> Stage:
        """The evaluation of an arm or of a reference row; its key changes with everything that decides the numbers."""
        settings, method = self.settings, self.settings.method
        parts = {"name": name, "data": data_parts(settings, "both"), "seed": settings.seed}

        def common() -> dict[str, Any]:
            device = f"{self.device}{'' if features.fast_bfloat16(self.device) else ' without bfloat16'}"
            return {"dataset": self.dataset("test"), "info": {**provenance(), "device": device}}

        if name in ("floor", "ceiling"):
            size = {"width": settings.model.width if name == "floor" else 0}
            seed = derived_seed(settings.seed, "floor")
            return Stage("result", parts | size, results.make_reference, lambda: {**common(), **size, "seed": seed})
        parts |= {"model": asdict(settings.model), "rerank_top_k": settings.rerank_top_k, **self._model_files()}
        parts["mixed"] = [method.mixed_t2it, method.mixed_scores]
        trained = None if name in REFERENCES else self._student_stage(name)

        def arguments() -> dict[str, Any]:
            inputs = {**common(), "features": self.test_features(name), "device": self.device}
            inputs |= {"mixed_t2it": method.mixed_t2it, "mixed_scores": method.mixed_scores}
            inputs |= {"common_space": name != "teachers", "references": {"teacher": self.teacher_features("test")}}
            if trained:
                inputs["references"]["start"] = self.test_features("start")
                inputs["training"] = read_json(self.cache.path(trained) / "fit.json")
                if settings.rerank_top_k and config.arm_weights(settings, name).matching:
                    student = self.student(name)
                    tokens = encode_tokens(student, self.inputs("test"), self.device)
                    inputs["rerank"] = student.fusion, tokens, settings.rerank_top_k
            return inputs

        return Stage("result", parts, results.make_result, arguments, (trained,) if trained else ())

    def _fresh_student(self) -> Student:
        """The untrained student, whose geometry is that of its towers."""
        model, seed = self.settings.model, derived_seed(self.settings.seed, "student")
        common: dict[str, Any] = {"fusion_layers": model.fusion_layers, "temperature": model.temperature, "seed": seed}
        if not model.freeze_towers:
            return TowerStudent(self.towers, **common)
        train = self.features("train")
        images, texts = train.image_tokens, train.text_tokens
        widths = None if images is None or texts is None else (images.shape[-1], texts.shape[-1])
        return HeadStudent(*_directions(*self._feature_folders, model.width), token_widths=widths, **common)

    def _batches(self, optim: Any, seed: int) -> FeatureBatches | PixelBatches:
        train, rows = self.dataset("train"), self.settings.data.rows
        if self.settings.model.freeze_towers:
            return FeatureBatches(self.features("train"), train.caption_image, optim, rows, seed, self.device)
        for split in SPLITS:
            features.report_cut_captions(self.towers, self.dataset(split))
        return PixelBatches(train, self.towers, optim, rows, seed, self.device)

    def inputs(self, split: str) -> ImageTextDataset | FeatureSet:
        """What a student encodes of a split: cached features, or the data set itself for whole towers."""
        return self.features(split) if self.settings.model.freeze_towers else self.dataset(split)

    def _data(self) -> dict[str, Any]:
        return {"splits": {split: self.dataset(split) for split in SPLITS}, "device": self.device}

    def _checkpoints(self, stage: Stage) -> Path | None:
        folder = self.execution.checkpoints
        return None if folder is None else folder / f"{stage.name}-{stage.key}"


@lru_cache(maxsize=4)
def _directions(images: Path, texts: Path, width: int) -> list[Tensor]:
    """Initial directions of both heads; cached by folder, as folders are named by their content."""
    train = read_features(images, texts, "train")
    return [principal_directions(rows, width) for rows in (train.images[0], train.texts)]


def open_study(
    name: str,
    *,
    preset: str | None = None,
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
    """The study of a data set; other options are those of :class:`Study`, errors those of ``config.load_settings``.

    Args:
        name: one of ``rvlr_lib.data.NAMES``, or a file that :func:`rvlr_lib.data.load_dataset` reads.
        preset: sizes, such as ``smoke``, or a YAML file; None: ``quick``, or the official sizes of a published set.
        method: preset of the method's switches: ``corrected`` or ``official``.
        seed: of everything, including the scenes' world and the dial's draws.
        image_root, model, pretrained: short for ``data.image_root``, ``model.name`` and ``model.pretrained``.
        overrides: settings by dotted name (``**{"data.text_detail": 0.5}``); None keeps the preset's value.
    """
    if overrides.get("data.name", name) != name:
        raise ValueError(f"data.name is {overrides['data.name']!r}, but the data set is {name!r}: give one of the two")
    short = {"data.image_root": image_root or None, "model.name": model or None, "model.pretrained": pretrained or None}
    tuned, sizes = ("", "") if name in PUBLISHED_SETS else ("tuned", "quick")  # those have official settings
    presets = [name if name in NAMES else "own", *filter(None, (tuned, sizes if preset is None else preset)), method]
    settings = config.load_settings(*presets, overrides={"data.name": name, "seed": seed, **short, **overrides})
    return Study(settings, device=device, root=root, execution=execution, missing=missing)


def train(
    dataset: str, arm: str, preset: str, device: str, out: Path | None, overwrite: bool, root: Path | None, **rest: Any
) -> None:
    """Train and evaluate an arm, after the stages it needs; an interrupted training is resumed.

    ``rest``: ``timeout``, options of :class:`rvlr_lib.training.loop.Execution` and of :func:`open_study`. Weights, log,
    result and, for whole towers, ``student``, an open_clip model, go to ``out``, by default a folder under ``root``
    named after data set, arm and seed; ``overwrite`` replaces what other settings left there. Under torchrun each
    process takes the GPU of its local rank.
    """
    running = {name: rest.pop(name) for name in ("compile", "gradient_checkpointing", "save_every", "resume")}
    config.arm(arm)  # refuses an unknown arm before any work
    root, sizes = Path(root) if root else default_root(), preset or (None if dataset in NAMES else "own")
    with process_group(choose_device(device), rest.pop("timeout")):
        execution = Execution(checkpoints=root / "checkpoints", **running)
        study = open_study(dataset, preset=sizes, device=device, root=root, execution=execution, **rest)
        target = Path(out or root / "train" / f"{data_name(dataset)}-{arm}-seed{study.settings.seed}")
        data = replace(study.settings.data, name=data_name(dataset), image_root=None)  # wherever the files are
        identity: dict[str, Any] = {"key": study.result_stage(arm).key}
        identity["settings"] = asdict(replace(study.settings, data=data))
        identity["data"] = data_parts(study.settings, "both").get("fingerprint")
        claim = claimed_folder(target, identity, overwrite=overwrite, owned=lambda _: FILES)
        with claim if is_main() else nullcontext():
            result, folder, student = study.result(arm), study.student_folder(arm), study.student(arm)
            if is_main():
                for path in folder.iterdir():
                    with atomic_path(target / path.name) as temporary:
                        shutil.copyfile(path, temporary)
                write_json(target / "result.json", result)
                if isinstance(student, TowerStudent):  # for heads it would load their towers, which takes seconds
                    save_student(student, study.towers, target / "student")
                reached = f"r_mean {result.metrics['r_mean']:.1f} on {len(study.dataset('test')):,} test pictures"
                print(f"{reached}; weights, log and result in {target}")
