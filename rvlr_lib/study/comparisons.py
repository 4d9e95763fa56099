"""What notebooks compare: figures of several studies in one frame, and curves around trained arms, cached."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rvlr_lib.config import ARMS
from rvlr_lib.data.dial import FAULTS
from rvlr_lib.disk import load_tensors, read_json, write_json
from rvlr_lib.evaluation import baselines, curves
from rvlr_lib.evaluation.evaluate import Features
from rvlr_lib.models import CachedRows, HeadStudent
from rvlr_lib.study.cache import Stage
from rvlr_lib.study.queries import tower_encoders
from rvlr_lib.study.results import STRUCTURE, validation_scores
from rvlr_lib.study.study import Study
from rvlr_lib.training.loop import cross_modal_recall

if TYPE_CHECKING:
    import pandas as pd

    from rvlr_lib.data.dataset import ImageTextDataset

Studies = Mapping[str, Sequence[Study]]  # dial setting -> the studies of its seeds
OF_CEILING = "recall (% of the ceiling)"
KEPT_STRUCTURE = "structure"  # mean of the two single-modal figures above their floor


def study_frame(studies: Studies, arms: Iterable[str]) -> "pd.DataFrame":
    """Retrieval and structure figures: ``dataset, dial, arm, seed, metric, value``.

    ``structure`` is the mean of ``i2i`` and ``t2t_no_siblings`` NDCG@10 above the floor.
    """
    import pandas as pd

    rows = []
    for dial, own in studies.items():
        for study in own:
            for name in arms:
                record = study.record(name)
                values = {**record["structure"], **record["metrics"]}
                if all(key in values for key in STRUCTURE):
                    values[KEPT_STRUCTURE] = sum(values[key] for key in STRUCTURE) / len(STRUCTURE)
                at = {"dataset": record["dataset"], "dial": dial, "arm": name, "seed": study.settings.seed}
                rows += [{**at, "metric": metric, "value": value} for metric, value in values.items()]
    return pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])


def share_of_ceiling(frame: "pd.DataFrame", known: "pd.DataFrame") -> tuple[str, "pd.DataFrame"]:
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


def gather(compute: Callable[..., "pd.DataFrame"], studies: Studies, *given: Any, **options: Any) -> "pd.DataFrame":
    """``compute(study, *given, **options)`` of every study in one frame with its dial; each is kept in the cache.

    ``compute`` is a function of this module, its second argument the arm or the arms that it looks at.
    """
    import pandas as pd

    frames = []
    for dial, own in studies.items():
        for study in own:
            arms = [given[0]] if isinstance(given[0], str) else given[0]
            needs = [study._student_stage(name) for name in arms if name in ARMS]
            parts = {"made by": compute.__name__, "given": given, "options": options, "seed": study.settings.seed}
            make = partial(compute, study, *given, **options)
            stage = Stage("curves", parts, write_frame, partial(dict, make=make), tuple(needs))
            records = read_json(study.cache.folder(stage) / "frame.json")
            frames.append(pd.DataFrame(records).assign(dial=dial, seed=study.settings.seed))
    return pd.concat(frames, ignore_index=True)


def write_frame(folder: Path, *, make: Callable[[], "pd.DataFrame"]) -> None:
    """The maker of the stage ``curves``."""
    write_json(folder / "frame.json", make().to_dict(orient="records"))


def interpolated(study: Study, path: Sequence[str], *, steps: int = 10) -> "pd.DataFrame":
    """``r_mean`` and ``structure`` of the models between two arms, in so many steps: columns path, alpha."""
    import pandas as pd

    states = [load_tensors(study.student_folder(name) / "weights.safetensors") for name in path]
    student, split = study.student(path[0]), study._split("test")

    def measure(state: dict[str, torch.Tensor]) -> dict[str, float]:
        student.load_state_dict(state)
        return validation_scores(split.encode(student, study.device), split.dataset)

    label, rows = " → ".join(path), []
    for alpha in [step / steps for step in range(steps + 1)]:
        found = measure(baselines.interpolate_weights(states[0], states[1], alpha))
        rows.append(curves.tidy(found, split.dataset, path=label, alpha=alpha))
    return pd.concat(rows, ignore_index=True)


def without_training(study: Study, arm: str) -> "pd.DataFrame":
    """The features of an arm as given and under each training-free peer, parameters chosen on validation."""
    student = study.student(arm)
    known = {part: study._split(part) for part in ("train", "val", "test")}
    pairs = {part: (split.encode(student, study.device), split.dataset) for part, split in known.items()}
    splits = pairs["train"], pairs["val"]
    return baselines.training_free(*pairs["test"], splits=splits, seed=study.settings.seed)


def mixed(study: Study, arms: Sequence[str], *, shares: Sequence[float] = curves.STEPS) -> "pd.DataFrame":
    """Corpora of pictures and captions, see :func:`rvlr_lib.evaluation.curves.mix_ratio_curve`."""
    return _each_arm(study, arms, curves.mix_ratio_curve, shares=shares)


def documents(study: Study, arms: Sequence[str]) -> "pd.DataFrame":
    """Documents of a picture and a caption, see :func:`rvlr_lib.evaluation.curves.document_recall`."""
    return _each_arm(study, arms, curves.document_recall)


def perturbed(
    study: Study, arms: Sequence[str], *, kinds: Sequence[str], strengths: Sequence[float], most: int = 300
) -> "pd.DataFrame":
    """Recall of queries changed by :func:`rvlr_lib.evaluation.curves.perturb` among the first ``most`` test pictures
    as they are; the towers see each change once for all arms.
    """
    import pandas as pd

    gallery = study.dataset("test").gallery_sets()[0]
    few = gallery.subset(list(range(min(most, len(gallery)))))
    students = {name: study.student(name) for name in arms}
    towers = tower_encoders(study, "teachers") if isinstance(students[arms[0]], HeadStudent) else None
    clean = {name: _encoded(study, student, few, towers) for name, student in students.items()}
    frames = []
    for kind in kinds:
        side = 0 if kind in FAULTS else 1
        for strength in strengths:
            changed = curves.perturb(few, kind, strength, study.settings.seed) if strength else few
            rows = _tower_rows(study, changed, towers, side) if towers and strength else None
            for name, student in students.items():
                pair = list(clean[name])
                if strength:
                    pair[side] = _head(student, rows, side) if rows else _encoded(study, student, changed, None)[side]
                found = cross_modal_recall(pair[0], pair[1], torch.as_tensor(few.caption_image))
                known = {key: value for key, value in found.items() if key.startswith(("i2t/", "t2i/")[side])}
                frames.append(curves.tidy(known, few, arm=name, perturbation=kind, strength=strength))
    return pd.concat(frames, ignore_index=True)


def _each_arm(study: Study, arms: Sequence[str], curve: Callable[..., Any], **options: Any) -> "pd.DataFrame":
    import pandas as pd

    test = study.dataset("test")
    return pd.concat([curve(study.test_features(name), test, arm=name, **options) for name in arms], ignore_index=True)


def _encoded(study: Study, student: Any, dataset: "ImageTextDataset", towers: Any) -> Features:
    if towers is None:
        from rvlr_lib.training.features import encode

        return encode(student, dataset, study.device)
    found = [_head(student, _tower_rows(study, dataset, towers, side), side) for side in (0, 1)]
    return found[0], found[1]


@torch.inference_mode()
def _head(student: Any, rows: CachedRows, side: int) -> torch.Tensor:
    encode = (student.encode_image, student.encode_text)[side]
    return encode(rows).features.float().cpu()


@torch.inference_mode()
def _tower_rows(study: Study, dataset: "ImageTextDataset", towers: Any, side: int) -> CachedRows:
    """Unit rows of the frozen towers: of the pictures (0) or the captions (1)."""
    from rvlr_lib.models import tokenize

    if side:
        ids = tokenize(study.towers.tokenizer, dataset.captions)
        parts = [towers[1](part.to(study.device)) for part in ids.split(256)]
    else:
        size, rows = study.towers.image_size, torch.arange(len(dataset)).split(64)
        parts = [towers[0](dataset.pixels(part, size).to(study.device).float() / 255) for part in rows]
    return CachedRows(torch.cat(parts).float())
