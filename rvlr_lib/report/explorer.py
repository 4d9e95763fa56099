"""The common space to walk in: one HTML page of a run, complete without server or network."""

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
from rvlr_lib.report.report import templates

if TYPE_CHECKING:
    from rvlr_lib.data.dataset import ImageTextDataset

    Features = tuple[Any, Any]

UNIMODAL = "teachers"  # the space where pictures and captions do not compare
NEIGHBOURS = 10
PARAMETERS = ("preset", "image_root", "model", "pretrained", "seed")  # of a notebook, that open_study takes


def write_explorer(
    run: Path | str, out: Path | str | None = None, *, points: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Write the page of a run with all its data sets, ``explore.html`` of the run if not given, from cached stages.

    Args:
        points: most pictures and captions together; 0: as many as the notebook of the map drew, whose map is reused.
        say: takes a line for each data set that cannot be shown; the page says it as well.

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
    """The points of one data set of a run; a ValueError names the command that makes a stage which is not cached."""
    from rvlr_lib.figures.projection import cached_projection
    from rvlr_lib.study.study import open_study

    given: dict[str, Any] = {}
    for entry in record["runs"]:
        given |= entry["parameters"] if entry["dataset"] == dataset else {}
    root = run.resolve().parent if (run.resolve().parent / "cache").is_dir() else default_root()
    chosen = {name: given[name] for name in PARAMETERS if given.get(name)}
    missing = f"the trained stages of {dataset} are missing, {rerun_command(record)} makes them"
    study = open_study(given.get("dataset", dataset), device="cpu", root=root, missing=missing, **chosen)
    baseline = given.get("baseline") or study.settings.method.baseline
    arms = {UNIMODAL: UNIMODAL, "baseline": baseline, "RVLR": "rvlr"}
    most = most or given.get("max_points") or 1000
    gallery, spaces = first_galleries(
        study.dataset("test"), {label: study.test_features(arm) for label, arm in arms.items()}, most
    )
    options = {"method": "umap", "seed": study.settings.seed, "max_points": most}
    layout = cached_projection(root, spaces, caption_image=gallery.caption_image, **options)
    return collect_points(gallery, spaces, layout, baseline=baseline)


def first_galleries(
    test: "ImageTextDataset", features: "Mapping[str, Features]", most: int
) -> "tuple[ImageTextDataset, Mapping[str, Features]]":
    """The first gallery, or the first few where one has fewer than ``most / 2`` pictures, with its features."""
    if test.galleries is None:
        return test, features
    numbers, counts = np.unique(test.galleries, return_counts=True)
    wanted = int(np.searchsorted(counts.cumsum(), most // 2)) + 1
    rows = np.flatnonzero(np.isin(test.galleries, numbers[:wanted]))
    captions = np.concatenate([test.captions_of(int(row)) for row in rows])
    return test.subset(rows), {label: (pair[0][rows], pair[1][captions]) for label, pair in features.items()}


def collect_points(
    gallery: "ImageTextDataset", spaces: "Mapping[str, Features]", layout: Any, *, baseline: str = "baseline"
) -> dict[str, Any]:
    """What the page knows of ``n`` pictures and one caption of each: point i is a picture, point n + i its caption.

    Returns:
        Plain values: ``captions`` and ``pictures`` (data URIs) ``[n]``; ``xy``, space -> ``[4n]``; ``near``, space ->
        kind -> ``[2n · width]`` points, nearest first, -1 where there is no common space; ``truth``, for each point of
        scenes the points of its modality that are as near as its truly ``width`` nearest; ``groups``, kind -> ``[n]``.
    """
    rows = np.asarray(layout.image_rows)
    texts = np.array([gallery.captions_of(int(row))[0] for row in rows])
    width, truth = min(NEIGHBOURS, len(rows) - 1), []
    if gallery.scene is not None:
        known = gallery.scene.truth("latent")
        for first, square in (
            (0, known.image_to_image[np.ix_(rows, rows)]),
            (len(rows), known.text_to_text[np.ix_(texts, texts)]),
        ):
            scores = _without_self(square)
            least = np.partition(scores, -width, axis=1)[:, -width]
            truth += [(np.flatnonzero(row >= limit) + first).tolist() for row, limit in zip(scores, least, strict=True)]
    trust = ", ".join(f"{name} {each['joint']:.2f}" for name, each in layout.trustworthiness.items())
    return {
        "name": gallery.name,
        "width": width,
        "unimodal": UNIMODAL,
        "captions": [[gallery.captions[c] for c in gallery.captions_of(int(row))] for row in rows],
        "pictures": [_data_uri(gallery.image(int(row))) for row in rows],
        "xy": {label: np.round(np.concatenate(pair), 3).flatten().tolist() for label, pair in layout.coords.items()},
        "near": {
            name: _near(images[rows], captions[texts], width, name) for name, (images, captions) in spaces.items()
        },
        "truth": truth,
        "groups": picture_groups(gallery.subset(rows)),
        "notes": [
            f"{len(rows)} test pictures of {gallery.name} and one caption of each; the baseline is {baseline}. "
            "Neighbours and hits are among these points, in the full space and not on the map.",
            f"{layout.method}. Trustworthiness: {trust} (1: no false neighbours). Sizes of clusters and distances "
            "between them mean nothing. The two teachers never met: how pictures lie to captions there means nothing.",
        ],
    }


def picture_groups(gallery: "ImageTextDataset") -> dict[str, list[str]]:
    """What is known of each picture and may colour it: the factors of scenes, else the category."""
    from rvlr_lib.data.scenes import BACKGROUND_WORDS, COLOUR_WORDS, SHAPE_WORDS

    if gallery.scene is not None:
        facts = gallery.scene.scene
        return {
            "background": [BACKGROUND_WORDS[kind][0] for kind in facts.background],
            "number of objects": [str(number) for number in (facts.objects[:, :, 0] >= 0).sum(axis=1)],
            "shape of the first object": [SHAPE_WORDS[kind][0] for kind in facts.objects[:, 0, 0]],
            "colour of the first object": [COLOUR_WORDS[kind][0] for kind in facts.objects[:, 0, 1]],
        }
    parts = [category.split("/") for category in gallery.categories or ()]
    return {"category": [part[0] for part in parts], "subcategory": [part[-1] for part in parts]} if parts else {}


def explorer_page(parts: Mapping[str, Any], title: str, missing: Mapping[str, str]) -> str:
    """The page as HTML: data set -> its points of :func:`collect_points`, and data set -> why it is not shown."""
    environment = templates()
    code = environment.loader.get_source(environment, "explorer.js")[0]
    data = json.dumps(parts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return environment.get_template("explorer.html.j2").render(title=title, data=data, code=code, missing=missing)


def _near(images: Any, texts: Any, width: int, space: str) -> dict[str, list[int]]:
    """The nearest pictures and captions of every point as points, best first, the point itself left out."""
    units = [np.asarray(x, np.float32) / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (images, texts)]
    found: dict[str, list[int]] = {}
    for candidates, kind in enumerate(("pictures", "captions")):
        rows = [np.full((len(images), width), -1)] * 2
        for queries in (0, 1) if space != UNIMODAL else (candidates,):
            scores = units[queries] @ units[candidates].T
            scores = _without_self(scores) if queries == candidates else scores
            rows[queries] = np.argsort(-scores, axis=1, kind="stable")[:, :width] + candidates * len(images)
        found[kind] = np.concatenate(rows).flatten().tolist()
    return found


def _without_self(square: Any) -> np.ndarray:
    scores = np.array(square, dtype=float)
    np.fill_diagonal(scores, -np.inf)
    return scores


def _data_uri(picture: Any) -> str:
    buffer, small = io.BytesIO(), picture.copy()
    small.thumbnail((64, 64))
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
