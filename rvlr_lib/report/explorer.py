"""The explorer: one self-contained, interactive HTML page of the common space of a run."""

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.data.scenes import BACKGROUND_WORDS, COLOUR_WORDS, SHAPE_WORDS
from rvlr_lib.disk import write_text
from rvlr_lib.evaluation.evaluate import galleries
from rvlr_lib.figures.projection import Projection, cached_projection
from rvlr_lib.provenance import default_root
from rvlr_lib.report.output import OPENING, read_run, rerun_command
from rvlr_lib.report.report import templates
from rvlr_lib.similarity import cosine_matrix
from rvlr_lib.study.study import open_study
from rvlr_lib.tables import arm_label

UNIMODAL = "teachers"  # the space in which pictures and captions cannot be compared
NEIGHBOURS = 10


def write_explorer(run: Path | str, out: Path | str | None = None) -> Path:
    """Write the page of all data sets of a run from cached stages, by default as its ``explore.html``; return the path.

    If a data set cannot be shown, the reason is printed and appears on the page. ValueError: there is no run, or no
    data set has the stages it needs; the message names the command that makes them.
    """
    record, shown, missing = read_run(run), {}, {}
    parent = Path(run).resolve().parent
    root = parent if (parent / "cache" / "result").is_dir() else default_root()
    for dataset in dict.fromkeys(entry["dataset"] for entry in record["runs"]):
        try:
            shown[dataset] = explorer_points(record, dataset, root)
        except ValueError as error:
            missing[dataset] = str(error)
            print(f"{dataset} is left out: {error}")
    if not shown:
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in missing.items()))
    path = Path(out) if out else Path(run) / "explore.html"
    write_text(path, explorer_page(shown, f"The common space of the run {record['profile']}", missing))
    return path


def explorer_points(record: Mapping[str, Any], dataset: str, root: Path) -> dict[str, Any]:
    """The points of one data set of a run; ValueError names the command that makes a stage that is not cached."""
    parameters: dict[str, Any] = {"dataset": dataset}
    for entry in (entry for entry in record["runs"] if entry["dataset"] == dataset):
        paths = record.get("settings", {}).get(f"{entry['notebook']} ({dataset})", {})  # absolute
        parameters |= entry["parameters"] | {key: paths[key] for key in ("dataset", "image_root") if key in paths}
    options = {name: parameters[name] for name in (*OPENING, "seed") if parameters.get(name)}
    missing = f"the trained stages of {dataset} are missing, {rerun_command(record)} makes them"
    study = open_study(options.pop("dataset"), device="cpu", root=root, missing=missing, **options)
    baseline = parameters.get("baseline") or study.settings.method.baseline
    arms = {UNIMODAL: UNIMODAL, "baseline": baseline, "RVLR": "rvlr"}
    test = study.dataset("test")
    gallery = test.gallery_sets[0]
    spaces = {label: galleries(study.test_features(arm), test)[0][1] for label, arm in arms.items()}
    options = {"method": "umap", "seed": study.settings.seed, "max_points": parameters.get("max_points", 1000)}
    layout = cached_projection(root, spaces, caption_image=gallery.caption_image, **options)
    return collect_points(gallery, spaces, layout, baseline=baseline)


def collect_points(
    gallery: ImageTextDataset, spaces: Mapping[str, tuple[Tensor, Tensor]], layout: Projection, *, baseline: str
) -> dict[str, Any]:
    """The page's data on ``n`` pictures and one caption of each: point i is a picture, point n + i its caption.

    Plain values: ``captions`` and ``pictures`` (data URIs) ``[n]``; ``xy``, space -> ``[4n]``; ``near``, space -> kind
    -> ``[2n · width]`` points, nearest first, -1 without a common space; ``truth``, for each point of scenes, its true
    ``width`` nearest neighbours of the same modality, with ties; ``groups``, kind -> ``[n]``.
    """
    rows, texts = layout.image_rows, layout.text_rows
    width = min(NEIGHBOURS, len(rows) - 1)
    trust = ", ".join(f"{name} {scores['joint']:.2f}" for name, scores in layout.trustworthiness.items())
    return {
        "width": width,
        "unimodal": UNIMODAL,
        "captions": [[gallery.captions[c] for c in gallery.captions_of(int(row))] for row in rows],
        "pictures": [_data_uri(gallery.image(int(row))) for row in rows],
        "xy": {label: np.round(np.concatenate(pair), 3).flatten().tolist() for label, pair in layout.coords.items()},
        "near": {key: nearest(x[rows], y[texts], width, shared=key != UNIMODAL) for key, (x, y) in spaces.items()},
        "truth": true_neighbours(gallery.scene.truth("latent"), rows, texts, width) if gallery.scene else [],
        "groups": picture_groups(gallery.subset(rows)),
        "notes": [
            f"{len(rows)} test pictures of {gallery.name}, one caption of each. The baseline is {arm_label(baseline)}. "
            "Neighbours and hits are computed among these points in the full space, not on the map.",
            f"{layout.method}. Trustworthiness: {trust} (1: no false neighbours). Sizes of clusters and distances "
            "between them mean nothing. The two teachers share no space: their pictures and captions are not aligned.",
        ],
    }


def nearest(images: Tensor, texts: Tensor, width: int, *, shared: bool) -> dict[str, list[int]]:
    """The nearest pictures and captions of every point, excluding itself, as point numbers, nearest first."""
    n, points = len(images), torch.cat([images, texts]) if shared else torch.block_diag(images, texts)
    cosines = cosine_matrix(points).fill_diagonal_(-torch.inf)
    near = {"pictures": cosines[:, :n].topk(width).indices, "captions": cosines[:, n:].topk(width).indices + n}
    if not shared:
        near["pictures"][n:] = near["captions"][:n] = -1
    return {kind: indices.flatten().tolist() for kind, indices in near.items()}


def true_neighbours(truth: Any, rows: np.ndarray, texts: np.ndarray, width: int) -> list[list[int]]:
    """For each point, the ``width`` nearest points of its modality by the truth of scenes, with ties."""
    neighbours = []
    squares = truth.image_to_image[np.ix_(rows, rows)], truth.text_to_text[np.ix_(texts, texts)]
    for first, square in zip((0, len(rows)), squares, strict=True):
        scores = torch.as_tensor(square).double().fill_diagonal_(-torch.inf)
        near = scores >= scores.topk(width).values[:, -1:]
        neighbours += [(row.nonzero().flatten() + first).tolist() for row in near]
    return neighbours


def picture_groups(gallery: ImageTextDataset) -> dict[str, list[str]]:
    """The labels by which pictures can be coloured: the factors of scenes, else the categories."""
    if gallery.scene is not None:
        factors = gallery.scene.scene
        return {
            "background": [BACKGROUND_WORDS[kind][0] for kind in factors.background],
            "number of objects": [str(number) for number in (factors.objects[:, :, 0] >= 0).sum(axis=1)],
            "shape of the first object": [SHAPE_WORDS[kind][0] for kind in factors.objects[:, 0, 0]],
            "colour of the first object": [COLOUR_WORDS[kind][0] for kind in factors.objects[:, 0, 1]],
        }
    paths = [category.split("/") for category in gallery.categories or ()]
    return {"category": [path[0] for path in paths], "subcategory": [path[-1] for path in paths]} if paths else {}


def explorer_page(points: Mapping[str, Any], title: str, missing: Mapping[str, str]) -> str:
    """The HTML page, from the :func:`collect_points` of each data set, and the reasons why others are missing."""
    data = json.dumps(points, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return templates().get_template("explorer.html.j2").render(title=title, data=data, missing=missing)


def _data_uri(picture: Any) -> str:
    buffer, small = io.BytesIO(), picture.copy()
    small.thumbnail((64, 64))
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
