"""The common space to walk in: one HTML page of a run, whole without server or network.

The page is built on bokeh, whose documents keep their data, widgets and library in one file; a plain plot library has
no widgets without a server. ``explorer.js`` beside this file is all that we add: it moves the points from one space to
the next and fills the panel beside the map.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.study.cache import only_cached
from rvlr_lib.study.saved import read_run, run_parameters, run_root, run_study, way_back
from rvlr_lib.tables import replacing

if TYPE_CHECKING:
    from rvlr_lib.data.dataset import ImageTextDataset
    from rvlr_lib.figures.projection import Projection

    Features = tuple[Any, Any]

SPACES = {"teachers": "teachers", "baseline": "", "RVLR": "rvlr"}  # "": the baseline of the method
UNIMODAL = "teachers"
POINTS, NEIGHBOURS, HIT_RANK = 1000, 10, 10
KINDS, OTHER = 8, "other"  # most groups with a colour of their own
GREY = "#c8c8c8"
NOTEBOOK = "04_common_space_umap"


@dataclass(frozen=True, eq=False)
class Points:
    """What the page knows of ``n`` pictures and one caption of each: point i is a picture, point n + i its caption.

    Attributes:
        dataset: its name.
        captions: all captions of each picture, the drawn one first, ``[n]``.
        pictures: each as a data URI, ``[n]``.
        coords: space -> ``[2n, 2]``.
        groups: name of a truth factor or of the category -> label of each picture, ``[n]``.
        hits: space -> whether the partner is among the first ten, ``[2n]``; None where there is no common space.
        overlaps: reference -> space -> percent of the ten neighbours shared with the reference, ``[2n]``.
        neighbours: space -> (nearest pictures ``[2n, k]``, nearest captions ``[2n, k]``) as points, itself left out;
            -1 where there is no common space.
        notes: what to say below the map.
    """

    dataset: str
    captions: list[list[str]]
    pictures: list[str]
    coords: dict[str, np.ndarray]
    groups: dict[str, list[str]]
    hits: dict[str, np.ndarray | None]
    overlaps: dict[str, dict[str, np.ndarray]]
    neighbours: dict[str, tuple[np.ndarray, np.ndarray]]
    notes: list[str]


def write_explorer(
    run: Path | str, out: Path | str | None = None, *, points: int = 0, say: Callable[[str], None] = print
) -> Path:
    """Write the page of a run: a tab for each of its data sets, from cached stages only.

    Args:
        run: the run folder.
        out: the page, ``explore.html`` of the run if not given.
        points: most pictures and captions together; 0: as many as notebook 04 drew, whose map is then used again.
        say: takes a line for each data set that cannot be shown; the page says it as well.

    Returns:
        Its path.

    Raises:
        ValueError: no run; or none of its data sets has the stages that are needed, naming the command that makes them.
    """
    record = read_run(run)
    if points < 0 or 0 < points < 10:
        raise ValueError(f"--points {points}: at least 10 are needed, 5 pictures and 5 captions")
    found: dict[str, Points | str] = {}
    for dataset in dict.fromkeys(entry["dataset"] for entry in record["runs"]):
        try:
            found[dataset] = explorer_points(Path(run), record, dataset, points)
        except ValueError as error:
            found[dataset] = str(error)
    if not any(isinstance(part, Points) for part in found.values()):
        raise ValueError("; ".join(f"{name}: {reason}" for name, reason in found.items()))
    for name, reason in found.items():
        if isinstance(reason, str):
            say(f"{name} is left out: {reason}")
    path = Path(out) if out else Path(run) / "explore.html"
    with replacing(path) as partial:
        partial.write_text(explorer_page(found, f"{record['profile']}: the common space"), encoding="utf-8")
    return path


def explorer_points(run: Path, record: Mapping[str, Any], dataset: str, most: int = 0) -> Points:
    """The points of one data set of a run, without any training.

    Raises:
        ValueError: a stage is not in the cache, naming the command that makes it.
    """
    from rvlr_lib.figures.projection import cached_projection

    parameters = run_parameters(dict(record), dataset)
    study = run_study(run, dict(record), dataset)
    names = SPACES | {"baseline": parameters.get("baseline") or study.settings.method.baseline}
    with only_cached(f"the trained stages of {dataset} are missing, {way_back(record)} makes them"):
        features = {label: study.test_features(name) for label, name in names.items()}
    most = most or parameters.get("max_points") or POINTS
    gallery, spaces = enough_galleries(study.dataset("test"), features, most)
    options = {"method": "umap", "seed": study.settings.seed, "max_points": most}
    layout = cached_projection(run_root(run), spaces, caption_image=gallery.caption_image, **options)
    return collect_points(gallery, spaces, layout, baseline=names["baseline"])


def enough_galleries(
    test: ImageTextDataset, features: Mapping[str, Features], most: int
) -> tuple[ImageTextDataset, dict[str, Features]]:
    """The first gallery, or the first few where one has fewer than ``most / 2`` pictures, with its features."""
    from rvlr_lib.evaluation.evaluate import galleries

    if test.galleries is None:
        return test, dict(features)
    numbers, counts = np.unique(test.galleries, return_counts=True)
    wanted = int(np.searchsorted(counts.cumsum(), most // 2)) + 1
    if wanted == 1:  # as notebook 04 does, so that its map is found in the cache
        parts = {label: galleries(pair, test)[0] for label, pair in features.items()}
        return next(iter(parts.values()))[0], {label: pair for label, (_, pair) in parts.items()}
    rows = np.flatnonzero(np.isin(test.galleries, numbers[:wanted]))
    captions = np.concatenate([test.captions_of(int(row)) for row in rows])
    return test.subset(rows), {label: (pair[0][rows], pair[1][captions]) for label, pair in features.items()}


def collect_points(
    gallery: ImageTextDataset, spaces: Mapping[str, Features], layout: Projection, *, baseline: str = "baseline"
) -> Points:
    """Neighbours, hits and overlaps of the drawn items, all among the drawn items."""
    rows, count = layout.image_rows, len(layout.image_rows)
    texts = np.array([gallery.captions_of(int(row))[0] for row in rows])
    unit = {label: (_unit(images)[rows], _unit(captions)[texts]) for label, (images, captions) in spaces.items()}
    k = min(NEIGHBOURS, count - 1)
    squares = {"the teachers": tuple(part @ part.T for part in unit[UNIMODAL])}
    if gallery.scene is not None:
        truth = gallery.scene.truth("latent")
        squares["the truth"] = truth.image_to_image[np.ix_(rows, rows)], truth.text_to_text[np.ix_(texts, texts)]
    return Points(
        dataset=gallery.name,
        captions=[[gallery.captions[c] for c in gallery.captions_of(row)] for row in rows],
        pictures=[_data_uri(gallery.image(int(row))) for row in rows],
        coords={label: np.concatenate(pair) for label, pair in layout.coords.items()},
        groups=picture_groups(gallery.subset(rows)),
        hits={label: None if label == UNIMODAL else _hits(*pair) for label, pair in unit.items()},
        overlaps={
            reference: {label: _overlap(pair, square, k) for label, pair in unit.items()}
            for reference, square in squares.items()
        },
        neighbours={label: _neighbours(*pair, k, across=label != UNIMODAL) for label, pair in unit.items()},
        notes=[
            f"{count} test pictures of {gallery.name} and one caption of each; the baseline is {baseline}. "
            "Neighbours, hits and overlaps are among these points, in the full space and not on the map.",
            f"{layout.method}. Trustworthiness: "
            + ", ".join(f"{name} {trust['joint']:.2f}" for name, trust in layout.trustworthiness.items())
            + " (1: no false neighbours). Sizes of clusters and distances between them mean nothing.",
            "The two teachers never met: how pictures lie to captions there means nothing, and they have no hits.",
        ],
    )


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
    if gallery.categories is not None:
        return {"category": [category.split("/")[0] for category in gallery.categories],
                "subcategory": [category.split("/")[-1] for category in gallery.categories]}  # fmt: skip
    return {}


def explorer_page(parts: Mapping[str, Points | str], title: str) -> str:
    """The page as HTML: a tab for each data set; a text stands in place of one whose points are not there."""
    from bokeh.document import Document
    from bokeh.embed import file_html
    from bokeh.events import DocumentReady
    from bokeh.models import Div, TabPanel, Tabs
    from bokeh.resources import INLINE

    from rvlr_lib.report.explorer_view import view

    document, shown = Document(), {}
    for name, part in parts.items():
        if isinstance(part, Points):
            shown[name], glue = view(part)
            document.js_on_event(DocumentReady, glue)
        else:
            shown[name] = Div(text=escape(part), width=900)
    tabs = Tabs(tabs=[TabPanel(child=child, title=name) for name, child in shown.items()])
    document.add_root(tabs if len(shown) > 1 else next(iter(shown.values())))
    return file_html(document, INLINE, title)


def _unit(features: Any) -> np.ndarray:
    array = np.asarray(features, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True).clip(1e-12)


def _overlap(features: Features, squares: Features, k: int) -> np.ndarray:
    """Percent of each item's nearest neighbours, within its modality, that are its nearest by given similarities."""
    from rvlr_lib.metrics import knn_overlap

    return np.concatenate([knn_overlap(mine, similarity_b=square, k=k, per_query=True)
                           for mine, square in zip(features, squares, strict=True)])  # fmt: skip


def _hits(images: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Whether each picture finds its caption, and each caption its picture, among the first ten."""
    from rvlr_lib.metrics import recall_at_k

    own = np.arange(len(images))
    ways = (images @ texts.T, texts @ images.T)
    return np.concatenate([recall_at_k(scores, own, (HIT_RANK,), per_query=True)[HIT_RANK] > 0 for scores in ways])


def _neighbours(images: np.ndarray, texts: np.ndarray, k: int, *, across: bool) -> tuple[np.ndarray, np.ndarray]:
    """The nearest pictures and captions of every point, best first."""
    count = len(images)

    def nearest(queries: np.ndarray, candidates: np.ndarray, itself: bool) -> np.ndarray:
        if not itself and not across:
            return np.full((count, k), -1)
        scores = queries @ candidates.T
        if itself:
            np.fill_diagonal(scores, -np.inf)
        return np.argsort(-scores, axis=1, kind="stable")[:, :k]

    to_images = np.concatenate([nearest(images, images, True), nearest(texts, images, False)])
    to_texts = np.concatenate([nearest(images, texts, False), nearest(texts, texts, True)])
    return to_images, np.where(to_texts >= 0, to_texts + count, -1)


def _data_uri(picture: Any, size: int = 64) -> str:
    small = picture.copy()
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
