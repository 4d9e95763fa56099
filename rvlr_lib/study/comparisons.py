"""What notebooks ask of studies: figures of several in one frame, cached curves around arms, queries of one's own."""

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
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
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
    """Retrieval and structure figures: ``dataset, dial, arm, seed, metric, value``.

    ``structure`` is the mean of ``i2i`` and ``t2t_no_siblings`` NDCG@10 above the floor.
    """
    rows = []
    for dial, study, name in [(dial, study, name) for dial, own in studies.items() for study in own for name in arms]:
        record = study.result(name)
        values = {**record["structure"], **record["metrics"]}
        if all(key in values for key in STRUCTURE):
            parts = [values[key] for key in STRUCTURE]  # None where it is not defined
            values["structure"] = None if None in parts else sum(parts) / len(parts)
        at = {"dataset": record["dataset"], "dial": dial, "arm": name, "seed": study.settings.seed}
        rows += [{**at, "metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])


def defined_structure(frame: pd.DataFrame) -> str:
    """The metric ``structure`` of a frame, or neighbours kept where relevance differs between no candidates."""
    known = frame.loc[frame["metric"] == "structure", "value"].notna().any()
    return "structure" if known else "image/overlap_teacher"


def share_of_ceiling(frame: pd.DataFrame, known: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """``r_mean`` in percent of the Bayes ceiling of the same dial setting and seed: the metric's name, and the frame.

    ``known`` holds the arm ``ceiling``; where it does not (no known truth), the metric stays ``r_mean``.
    """
    rows = known[(known["arm"] == "ceiling") & (known["metric"] == "r_mean")]
    if rows.empty:
        return "r_mean", frame
    ceilings = rows.set_index(["dial", "seed"])["value"].rename("ceiling")
    joined = frame.join(ceilings, on=["dial", "seed"])
    at = joined["metric"] == "r_mean"
    joined.loc[at, "value"] *= 100 / joined.loc[at, "ceiling"]
    joined.loc[at, "metric"] = OF_CEILING
    return OF_CEILING, joined.drop(columns="ceiling")


def gather(
    compute: Callable[..., pd.DataFrame], studies: Studies, arms: str | Sequence[str], **options: Any
) -> pd.DataFrame:
    """``compute(study, arms, **options)`` of every study in one frame with its dial; each is kept in the cache.

    ``compute`` is a function of this module.
    """
    frames = []
    for dial, study in [(dial, study) for dial, own in studies.items() for study in own]:
        folder = study.cache.folder(curve_stage(study, compute, arms, options))
        frames.append(pd.DataFrame(read_json(folder / "frame.json")).assign(dial=dial, seed=study.settings.seed))
    return pd.concat(frames, ignore_index=True)


def curve_stage(study: Study, compute: Callable[..., Any], arms: str | Sequence[str], options: dict[str, Any]) -> Stage:
    """The stage of what :func:`gather` reads of one study."""
    own = [study.result_stage(name) for name in ([arms] if isinstance(arms, str) else arms)]
    parts = {"made by": compute.__name__, "of": [stage.key for stage in own], "options": options}

    def write(folder: Path) -> None:
        write_json(folder / "frame.json", compute(study, arms, **options).to_dict(orient="records"))

    return Stage("curves", parts, write, dict, tuple(need for stage in own for need in stage.needs))


def interpolated(study: Study, path: Sequence[str], *, steps: int = 10) -> pd.DataFrame:
    """``r_mean`` and ``structure`` of the models between two arms, in so many steps: columns path, alpha."""
    frames, test = [], study.dataset("test")
    for alpha, features in _between(study, path, "test", np.arange(steps + 1) / steps):
        found = validation_scores(features, test, study.device)
        frames.append(baselines.tidy(found, test, path=" → ".join(path), alpha=alpha))
    return pd.concat(frames, ignore_index=True)


def _between(study: Study, path: Sequence[str], part: str, alphas: Iterable[float]) -> Iterator[tuple[float, Features]]:
    """Features of a split by the models between two arms."""
    start, end = (load_tensors(study.student_folder(name) / "weights.safetensors") for name in path)
    student = study.student(path[0])
    for alpha in alphas:
        student.load_state_dict(baselines.interpolate_weights(start, end, alpha))
        yield alpha, study.split(part).encode(student, study.device)


def above_path(frame: pd.DataFrame, paths: pd.DataFrame, arm: str, x: str, y: str) -> pd.Series:
    """How far an arm lies above interpolated weights in ``y`` where these have its ``x``, by dial and seed.

    ``paths``: one path of :func:`interpolated`, straight between its models; the highest point counts, NaN where none
    has that ``x``.
    """
    at, tidy = ["dial", "seed"], {"columns": "metric", "values": "value", "sort": False}
    own = frame[frame["arm"] == arm].pivot_table(index=at, **tidy).reindex(columns=[x, y])
    wide = paths.pivot_table(index=[*at, "alpha"], **tidy).reindex(columns=[x, y]).sort_index(level="alpha")
    lines = {key: line.to_numpy() for key, line in wide.groupby(at)}
    gaps = []
    for key, (here, height) in own.iterrows():
        pairs = [np.array(sorted(map(tuple, pair))).T for pair in pairwise(lines[key])]
        reached = [np.interp(here, *pair) for pair in pairs if pair[0, 0] <= here <= pair[0, 1]]
        gaps.append(height - max(reached, default=np.nan))
    return pd.Series(gaps, own.index, dtype=float)


def without_training(study: Study, arm: str) -> pd.DataFrame:
    """The features of an arm as given and under each training-free peer, parameters chosen on validation.

    For an arm of stage 2 the last peer are weights between the end of stage 1 and it, chosen by ``r_mean``.
    """
    student, device = study.student(arm), study.device
    known = {part: study.split(part) for part in ("train", "val", "test")}
    pairs = {part: (split.encode(student, device), split.dataset) for part, split in known.items()}
    splits, test = (pairs["train"], pairs["val"]), pairs["test"][1]
    frame = baselines.training_free(*pairs["test"], splits=splits, seed=study.settings.seed, device=device)
    if ARMS[arm].stage == 1:
        return frame
    models, recall = partial(_between, study, ("matching", arm)), dict[float, float]()
    for alpha, features in models("val", baselines.STEPS):
        recall[alpha] = headline_metrics(features, pairs["val"][1], ks_ndcg=(), device=device)["r_mean"]
    ((best, features),) = models("test", [max(recall, key=recall.__getitem__)])
    told = {"arm": "weights_interpolated", "parameters": f"alpha {best:g}"}
    found = baselines.tidy(headline_metrics(features, test, device=device), test, **told)
    return pd.concat([frame, found], ignore_index=True)


def mixed(study: Study, arms: Sequence[str], *, shares: Sequence[float] = baselines.STEPS) -> pd.DataFrame:
    """Corpora of pictures and captions, see :func:`rvlr_lib.evaluation.baselines.mix_ratio_curve`."""
    return _each_arm(study, arms, baselines.mix_ratio_curve, shares=shares)


def documents(study: Study, arms: Sequence[str]) -> pd.DataFrame:
    """Documents of a picture and a caption, see :func:`rvlr_lib.evaluation.baselines.document_recall`."""
    return _each_arm(study, arms, baselines.document_recall)


def perturbed(
    study: Study, arms: Sequence[str], *, kinds: Sequence[str], strengths: Sequence[float], most: int = 300
) -> pd.DataFrame:
    """Recall of changed queries among the first ``most`` test pictures, see ``baselines.perturb``.

    Columns ``dataset, arm, perturbation, strength, metric, value``.
    """
    gallery = study.dataset("test").gallery_sets()[0]
    few = gallery.subset(list(range(min(most, len(gallery)))))
    students, owner = {name: study.student(name) for name in arms}, torch.as_tensor(few.caption_image)
    clean = [new_features(study, students, few, side) for side in (0, 1)]
    frames = []
    for kind in kinds:
        side, metrics = (0, "i2t/") if kind in FAULTS else (1, "t2i/")
        for strength in strengths:
            sides = list(clean)
            if strength:
                changed = baselines.perturb(few, kind, strength, study.settings.seed)
                sides[side] = new_features(study, students, changed, side)
            for name in arms:
                found = cross_modal_recall(sides[0][name], sides[1][name], owner)
                known = {key: value for key, value in found.items() if key.startswith(metrics)}
                frames.append(baselines.tidy(known, few, arm=name, perturbation=kind, strength=strength))
    return pd.concat(frames, ignore_index=True)


def _each_arm(study: Study, arms: Sequence[str], curve: Callable[..., Any], **options: Any) -> pd.DataFrame:
    test = study.dataset("test")
    return pd.concat([curve(study.test_features(name), test, arm=name, **options) for name in arms], ignore_index=True)


def query_encoder(study: Study, name: str) -> Callable[[Any], np.ndarray]:
    """A function from words or a picture to a unit row ``[D]`` in the space of an arm or of the ``start``.

    It takes words (cleaned as captions are) or a picture (PIL, resized as the data set's are); ``ValueError`` for
    anything else, and for words without a letter or digit. The towers are loaded when it is first called, and kept.
    """
    student = cache(lambda: study.student(name))

    def encode_one(item: Any) -> np.ndarray:
        words, picture = "none", np.zeros((1, 1, 1, 3), np.uint8)
        if isinstance(item, str):
            words = clean_caption(item)
            if not words:
                raise ValueError(f"{item!r} holds no word: type letters or digits")
        elif hasattr(item, "convert"):
            picture = np.asarray(item.convert("RGB"))[None]
        else:
            raise ValueError(f"a query is words or a picture (PIL), not {type(item).__name__}")
        one = ImageTextDataset("query", "test", ["query"], [words], np.zeros(1, np.int64), ArraySource(picture))
        return new_features(study, {name: student()}, one, int(isinstance(item, str)))[name][0].numpy()

    return encode_one


@torch.no_grad()
def new_features(study: Study, students: Mapping[str, Any], dataset: ImageTextDataset, side: int) -> dict[str, Tensor]:
    """Features of new pictures (0) or captions (1) in each space; frozen towers see them once, as those of a study."""
    model = study.settings.model
    if not model.freeze_towers:
        return {name: encode(student, dataset, study.device)[side] for name, student in students.items()}
    options: dict[str, Any] = {"towers": study.towers, "splits": {"few": dataset}, "device": study.device}
    options |= {"modality": ("image", "text")[side], "precision": model.precision, "tokens": False}
    with TemporaryDirectory() as scratch:
        encode_frozen(Path(scratch), **options)
        rows = torch.from_numpy(np.load(Path(scratch) / "few" / "features.npy"))
    seen = CachedRows((rows if side else rows[:, 0]).to(study.device))
    heads = {name: (student.encode_image, student.encode_text)[side] for name, student in students.items()}
    return {name: head(seen).features.float().cpu() for name, head in heads.items()}
