"""What notebooks ask of studies: metrics of several in one frame, cached curves around arms, free queries."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rvlr_lib.config import ARMS
from rvlr_lib.data import clean_caption
from rvlr_lib.data.dataset import SPLITS, ArraySource, ImageTextDataset
from rvlr_lib.data.dial import FAULTS
from rvlr_lib.disk import load_tensors, read_json, write_json
from rvlr_lib.evaluation import baselines
from rvlr_lib.evaluation.evaluate import headline_metrics
from rvlr_lib.models import CachedRows
from rvlr_lib.study.cache import Stage
from rvlr_lib.study.results import STRUCTURE, validation_scores
from rvlr_lib.study.study import Study
from rvlr_lib.training.features import Features, encode, encode_frozen
from rvlr_lib.training.loop import cross_modal_recall

Studies = Mapping[str, Sequence[Study]]  # dial setting -> the studies of its seeds
OF_CEILING = "recall (% of the ceiling)"


def study_frame(studies: Studies, arms: Iterable[str]) -> pd.DataFrame:
    """Retrieval and structure metrics: ``dataset, dial, arm, seed, metric, value``.

    ``structure`` is the mean of ``i2i`` and ``t2t_no_siblings`` NDCG@10 above the floor.
    """
    rows = []
    for dial, study, name in [(dial, study, name) for dial, runs in studies.items() for study in runs for name in arms]:
        record = study.result(name)
        values = {**record["structure"], **record["metrics"]}
        if all(key in values for key in STRUCTURE):
            parts = [values[key] for key in STRUCTURE]  # None if not defined
            values["structure"] = None if None in parts else sum(parts) / len(parts)
        cell = {"dataset": record["dataset"], "dial": dial, "arm": name, "seed": study.settings.seed}
        rows += [{**cell, "metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])


def defined_structure(frame: pd.DataFrame) -> str:
    """The metric ``structure``, or neighbours shared with the teacher where all candidates are equally relevant."""
    defined = frame.loc[frame["metric"] == "structure", "value"].notna().any()
    return "structure" if defined else "image/overlap_teacher"


def share_of_ceiling(frame: pd.DataFrame, references: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """The frame with ``r_mean`` in percent of the Bayes ceiling at the same dial setting and seed, after its new name.

    ``references`` holds the arm ``ceiling``; without it (no known truth), name and frame stay as they are.
    """
    rows = references[(references["arm"] == "ceiling") & (references["metric"] == "r_mean")]
    if rows.empty:
        return "r_mean", frame
    ceilings = rows.set_index(["dial", "seed"])["value"].rename("ceiling")
    joined = frame.join(ceilings, on=["dial", "seed"])
    recall = joined["metric"] == "r_mean"
    joined.loc[recall, "value"] *= 100 / joined.loc[recall, "ceiling"]
    joined.loc[recall, "metric"] = OF_CEILING
    return OF_CEILING, joined.drop(columns="ceiling")


def gather(
    compute: Callable[..., pd.DataFrame], studies: Studies, arms: str | Sequence[str], **options: Any
) -> pd.DataFrame:
    """Frames of ``compute(study, arms, **options)``, a function of this module, joined with dial and seed; cached."""
    frames = []
    for dial, study in [(dial, study) for dial, runs in studies.items() for study in runs]:
        folder = study.cache.folder(curve_stage(study, compute, arms, options))
        frames.append(pd.DataFrame(read_json(folder / "frame.json")).assign(dial=dial, seed=study.settings.seed))
    return pd.concat(frames, ignore_index=True)


def curve_stage(study: Study, compute: Callable[..., Any], arms: str | Sequence[str], options: dict[str, Any]) -> Stage:
    """The stage of one study's frame in :func:`gather`."""
    sources = [study.result_stage(name) for name in ([arms] if isinstance(arms, str) else arms)]
    parts = {"made by": compute.__name__, "of": [stage.key for stage in sources], "options": options}

    def write(folder: Path) -> None:
        write_json(folder / "frame.json", compute(study, arms, **options).to_dict(orient="records"))

    return Stage("curves", parts, write, dict, tuple(need for stage in sources for need in stage.needs))


def interpolated(study: Study, path: Sequence[str], *, steps: int = 10) -> pd.DataFrame:
    """``r_mean`` and ``structure`` along the weights interpolated between two arms; columns ``path``, ``alpha``."""
    frames, test = [], study.dataset("test")
    for alpha, features in _between(study, path, "test", np.arange(steps + 1) / steps):
        scores = validation_scores(features, test, study.device)
        frames.append(baselines.tidy(scores, test, path=" → ".join(path), alpha=alpha))
    return pd.concat(frames, ignore_index=True)


def _between(
    study: Study, path: Sequence[str], split: str, alphas: Iterable[float]
) -> Iterator[tuple[float, Features]]:
    """Features of a split under weights interpolated between two arms."""
    start, end = (load_tensors(study.student_folder(name) / "weights.safetensors") for name in path)
    student = study.student(path[0])
    for alpha in alphas:
        student.load_state_dict(baselines.interpolate_weights(start, end, alpha))
        yield alpha, encode(student, study.inputs(split), study.device)


def above_path(frame: pd.DataFrame, paths: pd.DataFrame, arm: str, x: str, y: str) -> pd.Series:
    """How far an arm lies above interpolated weights in ``y`` where they have the same ``x``, by dial and seed.

    ``paths``: one path of :func:`interpolated`, taken as straight between its models. Its highest point at that ``x``
    counts; NaN if it has none.
    """
    at, tidy = ["dial", "seed"], {"columns": "metric", "values": "value", "sort": False}
    arm_points = frame[frame["arm"] == arm].pivot_table(index=at, **tidy).reindex(columns=[x, y])
    wide = paths.pivot_table(index=[*at, "alpha"], **tidy).reindex(columns=[x, y]).sort_index(level="alpha")
    lines = {key: line.to_numpy() for key, line in wide.groupby(at)}
    gaps = []
    for key, (arm_x, arm_y) in arm_points.iterrows():
        segments = [np.array(sorted(map(tuple, ends))).T for ends in pairwise(lines[key])]  # [x, y] × [left, right]
        heights = [np.interp(arm_x, *segment) for segment in segments if segment[0, 0] <= arm_x <= segment[0, 1]]
        gaps.append(arm_y - max(heights, default=np.nan))
    return pd.Series(gaps, arm_points.index, dtype=float)


def without_training(study: Study, arm: str) -> pd.DataFrame:
    """An arm's features as given and under each training-free baseline, with parameters chosen on validation.

    For an arm of stage 2 the last one interpolates weights between the end of stage 1 and the arm, by ``r_mean``.
    """
    student, device = study.student(arm), study.device
    train, val, test = ((encode(student, study.inputs(name), device), study.dataset(name)) for name in SPLITS)
    frame = baselines.training_free(*test, splits=(train, val), seed=study.settings.seed, device=device)
    if ARMS[arm].stage == 1:
        return frame
    interpolate, recall = partial(_between, study, ("matching", arm)), dict[float, float]()
    for alpha, features in interpolate("val", baselines.STEPS):
        recall[alpha] = headline_metrics(features, val[1], ks_ndcg=(), device=device)["r_mean"]
    ((best, features),) = interpolate("test", [max(recall, key=recall.__getitem__)])
    row = {"arm": "weights_interpolated", "parameters": f"alpha {best:g}"}
    metrics = headline_metrics(features, test[1], device=device)
    return pd.concat([frame, baselines.tidy(metrics, test[1], **row)], ignore_index=True)


def mixed(study: Study, arms: Sequence[str], *, shares: Sequence[float] = baselines.STEPS) -> pd.DataFrame:
    """Mixed corpora of pictures and captions, see :func:`rvlr_lib.evaluation.baselines.mix_ratio_curve`."""
    return _each_arm(study, arms, baselines.mix_ratio_curve, shares=shares)


def documents(study: Study, arms: Sequence[str]) -> pd.DataFrame:
    """Documents of a picture and a caption, see :func:`rvlr_lib.evaluation.baselines.document_recall`."""
    return _each_arm(study, arms, baselines.document_recall)


def perturbed(
    study: Study, arms: Sequence[str], *, kinds: Sequence[str], strengths: Sequence[float], most: int = 300
) -> pd.DataFrame:
    """Recall of perturbed queries among the first ``most`` test pictures, see ``baselines.perturb``.

    Columns ``dataset, arm, perturbation, strength, metric, value``.
    """
    gallery = study.dataset("test").gallery_sets[0]
    clean = gallery.subset(list(range(min(most, len(gallery)))))
    students, owner = {name: study.student(name) for name in arms}, torch.as_tensor(clean.caption_image)
    features = [new_features(study, students, clean, side) for side in (0, 1)]
    frames = []
    for kind in kinds:
        side, direction = (0, "i2t/") if kind in FAULTS else (1, "t2i/")
        for strength in strengths:
            sides = list(features)
            if strength:
                perturbed_set = baselines.perturb(clean, kind, strength, study.settings.seed)
                sides[side] = new_features(study, students, perturbed_set, side)
            for name in arms:
                recalls = cross_modal_recall(sides[0][name], sides[1][name], owner)
                recalls = {key: value for key, value in recalls.items() if key.startswith(direction)}
                frames.append(baselines.tidy(recalls, clean, arm=name, perturbation=kind, strength=strength))
    return pd.concat(frames, ignore_index=True)


def _each_arm(study: Study, arms: Sequence[str], curve: Callable[..., Any], **options: Any) -> pd.DataFrame:
    test = study.dataset("test")
    return pd.concat([curve(study.test_features(name), test, arm=name, **options) for name in arms], ignore_index=True)


def query_encoder(study: Study, name: str) -> Callable[[Any], np.ndarray]:
    """A function from words or a picture to a unit row ``[D]`` in the space of an arm or of the ``start``.

    Words are cleaned like captions, pictures (PIL) resized like those of the data set; ``ValueError`` for anything
    else, and for words without a letter or digit. The towers are loaded on the first call and kept.
    """
    student = cache(lambda: study.student(name))

    def encode_query(item: Any) -> np.ndarray:
        words, picture = "none", np.zeros((1, 1, 1, 3), np.uint8)
        if isinstance(item, str):
            words = clean_caption(item)
            if not words:
                raise ValueError(f"{item!r} holds no word: type letters or digits")
        elif hasattr(item, "convert"):
            picture = np.asarray(item.convert("RGB"))[None]
        else:
            raise ValueError(f"a query is words or a picture (PIL), not {type(item).__name__}")
        pair = ImageTextDataset("query", "test", ["query"], [words], np.zeros(1, np.int64), ArraySource(picture))
        return new_features(study, {name: student()}, pair, int(isinstance(item, str)))[name][0].numpy()

    return encode_query


@torch.no_grad()
def new_features(study: Study, students: Mapping[str, Any], dataset: ImageTextDataset, side: int) -> dict[str, Tensor]:
    """Features of new pictures (side 0) or captions (1) under each student; frozen towers encode them once."""
    model = study.settings.model
    if not model.freeze_towers:
        return {name: encode(student, dataset, study.device)[side] for name, student in students.items()}
    options: dict[str, Any] = {"towers": study.towers, "splits": {"few": dataset}, "device": study.device}
    options |= {"modality": ("image", "text")[side], "precision": model.precision, "tokens": False}
    with TemporaryDirectory() as scratch:
        encode_frozen(Path(scratch), **options)
        rows = torch.from_numpy(np.load(Path(scratch) / "few" / "features.npy"))
    inputs = CachedRows((rows if side else rows[:, 0]).to(study.device))
    heads = {name: (student.encode_image, student.encode_text)[side] for name, student in students.items()}
    return {name: head(inputs).features.float().cpu() for name, head in heads.items()}
