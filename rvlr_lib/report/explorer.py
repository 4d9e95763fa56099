"""The common space to walk in: one HTML page of a run, complete without server or network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.disk import write_text
from rvlr_lib.provenance import default_root
from rvlr_lib.report.output import read_run, rerun_command

if TYPE_CHECKING:
    from rvlr_lib.data.dataset import ImageTextDataset
    from rvlr_lib.figures.projection import Projection

    Features = tuple[Any, Any]

SPACES = {"teachers": "teachers", "baseline": "", "RVLR": "rvlr"}  # "": the baseline of the method
UNIMODAL = "teachers"
POINTS, NEIGHBOURS = 1000, 10
PARAMETERS = ("preset", "image_root", "model", "pretrained", "seed")  # of a notebook, that open_study takes


def write_explorer(
    run: Path | str, out: Path | str | None = None, *, points: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Write the page of a run with all its data sets, from cached stages only.

    Args:
        run: the run folder.
        out: the page, ``explore.html`` of the run if not given.
        points: most pictures and captions together; 0: as many as the notebook of the map drew, whose map is reused.
        say: takes a line for each data set that cannot be shown; the page says it as well.

    Returns:
        Its path.

    Raises:
        ValueError: no run; or none of its data sets has the stages that are needed, naming the command that makes them.
    """
    record, found, missing = read_run(run), {}, {}
    if points < 0 or 0 < points < 10:
        raise ValueError(f"--points {points}: at least 10 are needed, 5 pictures and 5 captions")
    for dataset in dict.fromkeys(entry["dataset"] for entry in record["runs"]):
        try:
            found[dataset] = explorer_points(Path(run), record, dataset, points)
        except ValueError as error:
            missing[dataset] = str(error)
            say(f"{dataset} is left out: {error}")
    if not found:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    path = Path(out) if out else Path(run) / "explore.html"
    write_text(path, explorer_page(found, f"The common space of the run {record['profile']}", missing))
    return path


def explorer_points(run: Path, record: Mapping[str, Any], dataset: str, most: int = 0) -> dict[str, Any]:
    """The points of one data set of a run, without any training.

    Raises:
        ValueError: a stage is not in the cache, naming the command that makes it.
    """
    from rvlr_lib.figures.projection import cached_projection
    from rvlr_lib.study.study import open_study

    given: dict[str, Any] = {}
    for entry in record["runs"]:
        given |= entry["parameters"] if entry["dataset"] == dataset else {}
    root = run.resolve().parent if (run.resolve().parent / "cache").is_dir() else default_root()
    chosen = {name: given[name] for name in PARAMETERS if given.get(name)}
    missing = f"the trained stages of {dataset} are missing, {rerun_command(record)} makes them"
    study = open_study(given.get("dataset", dataset), device="cpu", root=root, missing=missing, **chosen)
    arms = SPACES | {"baseline": given.get("baseline") or study.settings.method.baseline}
    features = {label: study.test_features(arm) for label, arm in arms.items()}
    most = most or given.get("max_points") or POINTS
    gallery, spaces = first_galleries(study.dataset("test"), features, most)
    options = {"method": "umap", "seed": study.settings.seed, "max_points": most}
    layout = cached_projection(root, spaces, caption_image=gallery.caption_image, **options)
    return collect_points(gallery, spaces, layout, baseline=arms["baseline"])


def first_galleries(
    test: ImageTextDataset, features: Mapping[str, Features], most: int
) -> tuple[ImageTextDataset, dict[str, Features]]:
    """The first gallery, or the first few where one has fewer than ``most / 2`` pictures, with its features."""
    if test.galleries is None:
        return test, dict(features)
    numbers, counts = np.unique(test.galleries, return_counts=True)
    wanted = int(np.searchsorted(counts.cumsum(), most // 2)) + 1
    rows = np.flatnonzero(np.isin(test.galleries, numbers[:wanted]))
    captions = np.concatenate([test.captions_of(int(row)) for row in rows])
    return test.subset(rows), {label: (pair[0][rows], pair[1][captions]) for label, pair in features.items()}


def collect_points(
    gallery: ImageTextDataset, spaces: Mapping[str, Features], layout: Projection, *, baseline: str = "baseline"
) -> dict[str, Any]:
    """What the page knows of ``n`` pictures and one caption of each: point i is a picture, point n + i its caption.

    Returns:
        Plain values: ``captions`` and ``pictures`` (data URIs) ``[n]``; ``xy``, space -> ``[4n]``; ``near``, space ->
        kind -> ``[2n · width]`` points, nearest first, -1 where there is no common space; ``truth``, for each point of
        scenes the points of its modality that are as near as its truly ``width`` nearest; ``groups``, kind -> ``[n]``.
    """
    rows = np.asarray(layout.image_rows)
    texts = np.array([gallery.captions_of(int(row))[0] for row in rows])
    unit = {label: (_unit(pair[0])[rows], _unit(pair[1])[texts]) for label, pair in spaces.items()}
    width = min(NEIGHBOURS, len(rows) - 1)
    truth: list[list[int]] = []
    if gallery.scene is not None:
        known = gallery.scene.truth("latent")
        squares = known.image_to_image[np.ix_(rows, rows)], known.text_to_text[np.ix_(texts, texts)]
        truth = [
            points for place, square in enumerate(squares) for points in _nearest(square, width, place * len(rows))
        ]
    trust = ", ".join(f"{name} {each['joint']:.2f}" for name, each in layout.trustworthiness.items())
    return {
        "name": gallery.name,
        "width": width,
        "unimodal": UNIMODAL,
        "captions": [[gallery.captions[c] for c in gallery.captions_of(int(row))] for row in rows],
        "pictures": [_data_uri(gallery.image(int(row))) for row in rows],
        "xy": {label: np.round(np.concatenate(pair), 3).flatten().tolist() for label, pair in layout.coords.items()},
        "near": {label: _neighbours(*pair, width, across=label != UNIMODAL) for label, pair in unit.items()},
        "truth": truth,
        "groups": picture_groups(gallery.subset(rows)),
        "notes": [
            f"{len(rows)} test pictures of {gallery.name} and one caption of each; the baseline is {baseline}. "
            "Neighbours and hits are among these points, in the full space and not on the map.",
            f"{layout.method}. Trustworthiness: {trust} (1: no false neighbours). Sizes of clusters and distances "
            "between them mean nothing. The two teachers never met: how pictures lie to captions there means nothing.",
        ],
    }


def picture_groups(gallery: ImageTextDataset) -> dict[str, list[str]]:
    """What is known of each picture and may colour it: the factors of scenes, else the category."""
    from rvlr_lib.data.scenes import BACKGROUND_WORDS, COLOUR_WORDS, SHAPE_WORDS

    if gallery.scene is not None:
        facts = gallery.scene.scene
        shape, colour = facts.objects[:, 0, 0], facts.objects[:, 0, 1]
        return {
            "background": [BACKGROUND_WORDS[kind][0] for kind in facts.background],
            "number of objects": [str(number) for number in (facts.objects[:, :, 0] >= 0).sum(axis=1)],
            "shape of the first object": [SHAPE_WORDS[kind][0] for kind in shape],
            "colour of the first object": [COLOUR_WORDS[kind][0] for kind in colour],
        }
    if gallery.categories is None:
        return {}
    parts = [category.split("/") for category in gallery.categories]
    return {"category": [part[0] for part in parts], "subcategory": [part[-1] for part in parts]}


def explorer_page(parts: Mapping[str, Any], title: str, missing: Mapping[str, str] | None = None) -> str:
    """The page as HTML.

    Args:
        parts: data set -> its points, from :func:`collect_points`.
        title: its heading.
        missing: data set -> why it is not shown.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("rvlr_lib.report"), autoescape=True)
    code = environment.loader.get_source(environment, "explorer.js")[0]  # type: ignore[union-attr]
    data = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("explorer.html.j2").render(title=title, data=data, code=code, missing=missing or {})


def _unit(features: Any) -> np.ndarray:
    array = np.asarray(features, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True).clip(1e-12)


def _neighbours(images: np.ndarray, texts: np.ndarray, width: int, *, across: bool) -> dict[str, list[int]]:
    """The nearest pictures and captions of every point as points, best first, the point itself left out."""
    count, found = len(images), {}
    for kind, candidates, first in (("pictures", images, 0), ("captions", texts, count)):
        rows = []
        for queries in (images, texts):
            scores = queries @ candidates.T
            if queries is candidates:
                np.fill_diagonal(scores, -np.inf)
            nearest = np.argsort(-scores, axis=1, kind="stable")[:, :width] + first
            rows.append(nearest if across or queries is candidates else np.full((count, width), -1))
        found[kind] = np.concatenate(rows).flatten().tolist()
    return found


def _nearest(square: np.ndarray, width: int, first: int) -> list[list[int]]:
    """For each row of similarities the points at least as near as its ``width``-th nearest, itself left out."""
    scores = np.array(square, dtype=float)
    np.fill_diagonal(scores, -np.inf)
    least = np.partition(scores, -width, axis=1)[:, -width]
    return [(np.flatnonzero(row >= limit) + first).tolist() for row, limit in zip(scores, least, strict=True)]


def _data_uri(picture: Any, size: int = 64) -> str:
    small = picture.copy()
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
