"""The common space to walk in: one HTML page of a run, complete without server or network."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
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
POINTS, NEIGHBOURS, HIT_RANK = 1000, 10, 10
KINDS = 7  # most groups with a colour of their own
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#8A7A00")  # Okabe and Ito
GREY = "#c8c8c8"
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
    from rvlr_lib.study.cache import only_cached
    from rvlr_lib.study.study import open_study

    given: dict[str, Any] = {}
    for entry in record["runs"]:
        given |= entry["parameters"] if entry["dataset"] == dataset else {}
    root = run.resolve().parent if (run.resolve().parent / "cache").is_dir() else default_root()
    chosen = {name: given[name] for name in PARAMETERS if given.get(name)}
    study = open_study(given.get("dataset", dataset), device="cpu", root=root, **chosen)
    arms = SPACES | {"baseline": given.get("baseline") or study.settings.method.baseline}
    with only_cached(f"the trained stages of {dataset} are missing, {rerun_command(record)} makes them"):
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
    """What the page knows of ``n`` pictures and one caption of each: point i is a picture, n + i its caption.

    Returns:
        Plain values: ``captions`` and ``pictures`` (data URIs) ``[n]``; ``xy``, space -> ``[4n]``; ``near``, space ->
        kind -> ``[2n · width]`` points, nearest first, -1 where there is no common space; ``groups``, kind ->
        ``[n]``; ``moved``, percent of the neighbours that differ between baseline and RVLR, ``[2n]``; ``modes``, ways
        to colour the points; ``notes``.
    """
    from rvlr_lib.metrics import knn_overlap, recall_at_k

    rows = np.asarray(layout.image_rows)
    texts = np.array([gallery.captions_of(int(row))[0] for row in rows])
    unit = {label: (_unit(pair[0])[rows], _unit(pair[1])[texts]) for label, pair in spaces.items()}
    count = len(rows)
    k = min(NEIGHBOURS, count - 1)
    own, drawn = np.arange(count), set(layout.text_rows.tolist())
    if not drawn.issuperset(texts.tolist()):
        raise ValueError("the map must hold the first caption of each of its pictures")
    hits = {
        label: None
        if label == UNIMODAL
        else np.concatenate(
            [
                recall_at_k(scores, own, (HIT_RANK,), per_query=True)[HIT_RANK] > 0
                for scores in (images @ captions.T, captions @ images.T)
            ]
        )
        for label, (images, captions) in unit.items()
    }
    squares = {"the teachers": tuple(part @ part.T for part in unit[UNIMODAL])}
    if gallery.scene is not None:
        truth = gallery.scene.truth("latent")
        squares["the truth"] = truth.image_to_image[np.ix_(rows, rows)], truth.text_to_text[np.ix_(texts, texts)]

    def shared(pair: Features, square: Features) -> np.ndarray:
        return np.concatenate(
            [
                knn_overlap(mine, similarity_b=other, k=k, per_query=True)
                for mine, other in zip(pair, square, strict=True)
            ]
        )

    moved = 100 - shared(unit["RVLR"], tuple(part @ part.T for part in unit["baseline"]))
    shares = {
        f"neighbours shared with {reference}": {label: shared(pair, square) for label, pair in unit.items()}
        for reference, square in squares.items()
    }
    groups = picture_groups(gallery.subset(rows))
    trust = ", ".join(f"{name} {each['joint']:.2f}" for name, each in layout.trustworthiness.items())
    return {
        "name": gallery.name,
        "width": k,
        "groups": groups,
        "unimodal": UNIMODAL,
        "captions": [[gallery.captions[c] for c in gallery.captions_of(int(row))] for row in rows],
        "pictures": [_data_uri(gallery.image(int(row))) for row in rows],
        "xy": {label: np.round(np.concatenate(pair), 3).flatten().tolist() for label, pair in layout.coords.items()},
        "near": {label: _neighbours(*pair, k, across=label != UNIMODAL) for label, pair in unit.items()},
        "moved": np.rint(moved).astype(int).tolist(),
        "modes": _modes(groups, hits, shares | {"moved": dict.fromkeys(unit, moved)}, count),
        "notes": [
            f"{count} test pictures of {gallery.name} and one caption of each; the baseline is {baseline}. Neighbours, "
            "hits and overlaps are among these points, in the full space and not on the map.",
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


def _neighbours(images: np.ndarray, texts: np.ndarray, k: int, *, across: bool) -> dict[str, list[int]]:
    """The nearest pictures and captions of every point as points, best first, the point itself left out."""
    count, found = len(images), {}
    for kind, candidates, first in (("pictures", images, 0), ("captions", texts, count)):
        rows = []
        for queries in (images, texts):
            scores = queries @ candidates.T
            if queries is candidates:
                np.fill_diagonal(scores, -np.inf)
            nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k] + first
            rows.append(nearest if across or queries is candidates else np.full((count, k), -1))
        found[kind] = np.concatenate(rows).flatten().tolist()
    return found


def _modes(
    groups: Mapping[str, Sequence[str]],
    hits: Mapping[str, np.ndarray | None],
    shares: Mapping[str, Mapping[str, np.ndarray]],
    count: int,
) -> dict[str, dict[str, Any]]:
    """Ways to colour the points: a code a point and space, the colour and the name of each code."""
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    def mode(codes: Mapping[str, np.ndarray], palette: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
        return {
            "codes": {label: list(map(int, each)) for label, each in codes.items()},
            "palette": palette,
            "names": names,
        }

    modes = {"modality": mode(dict.fromkeys(hits, np.repeat([0, 1], count)), PALETTE[:2], ["picture", "caption"])}
    for kind, labels in groups.items():
        kept = sorted(label for label, _ in Counter(labels).most_common(KINDS))
        rest = set(labels) - set(kept)
        kept += sorted(rest) if len(rest) == 1 else ["other"] * bool(rest)  # no colour for "other" that is one class
        codes = np.tile([kept.index(label) if label in kept else len(kept) - 1 for label in labels], 2)
        modes[kind] = mode(dict.fromkeys(hits, codes), [*PALETTE, GREY][: len(kept)], kept)
    found = {label: np.full(2 * count, 2) if hit is None else 1 - hit.astype(int) for label, hit in hits.items()}
    names = [f"hit: partner among the first {HIT_RANK}", "miss", "no common space"]
    modes["hit or miss"] = mode(found, [*PALETTE[:2], GREY], names)
    for title, values in shares.items():
        tenths = {label: np.rint(each / 10).astype(int) for label, each in values.items()}
        top = max(1, int(np.percentile(np.concatenate([t for label, t in tenths.items() if label != UNIMODAL]), 98)))
        names = [f"{10 * step} %" for step in range(top)] + [f"{10 * top} %" + (" or more" if top < 10 else "")]
        colours = [to_hex(colormaps["cividis"](step / top)) for step in range(top + 1)]
        modes[title] = mode({label: each.clip(max=top) for label, each in tenths.items()}, colours, names)
    return modes


def _data_uri(picture: Any, size: int = 64) -> str:
    small = picture.copy()
    small.thumbnail((size, size))
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
