"""Two-dimensional maps of embedding spaces (UMAP, and PCA as a control), and blocks of similarities."""

import importlib.metadata
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from scipy.linalg import block_diag, orthogonal_procrustes

from rvlr_lib.disk import read_json, sha256, write_json
from rvlr_lib.figures.charts import legend_below
from rvlr_lib.figures.style import MODALITY, Look, is_narrow, looks, new_figure, page_width, style
from rvlr_lib.tables import arm_label, format_number

JOINT_EPOCHS, SPACE_EPOCHS, SPACE_RATE, NEIGHBOURS = 300, 100, 0.1, 15
THUMBNAIL, MAX_LABELS, BLOCK_SIZE = 0.16, 6, 150  # inches; labels with their own colour; pictures in a block
PAIRS = {  # colour and line of each density
    "picture and its caption": ("0.05", "-"),
    "picture and another caption": ("0.5", "--"),
    "two pictures": (MODALITY["picture"], "-."),
    "two captions": (MODALITY["caption"], "-"),
}
Spaces = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Projection:
    """Coordinates of the same pictures, and of one caption of each, in several spaces."""

    coords: dict[str, tuple[np.ndarray, np.ndarray]]  # space -> (pictures, captions), [n, 2] each, centred, one scale
    image_rows: np.ndarray  # [n] rows of the drawn pictures in the features
    text_rows: np.ndarray  # [n] rows of their captions
    trustworthiness: dict[str, dict[str, float]]  # space -> image, text, joint -> 0 to 1
    method: str  # name and description of the projection

    @property
    def name(self) -> str:
        """``UMAP`` or ``PCA``."""
        return self.method.split(":")[0]

    def to_frame(self) -> pd.DataFrame:
        """One row per drawn point: method, space, modality, row, x, y."""
        frames = []
        for space, pair in self.coords.items():
            for modality, rows, xy in zip(MODALITY, (self.image_rows, self.text_rows), pair, strict=True):
                fixed = {"method": self.name, "space": space, "modality": modality}
                frames.append(pd.DataFrame(fixed | {"row": rows, "x": xy[:, 0], "y": xy[:, 1]}))
        return pd.concat(frames, ignore_index=True)


def project_spaces(
    spaces: Spaces, *, caption_image: Any, method: str = "umap", seed: int = 0, max_points: int = 2000
) -> Projection:
    """Project several spaces to the plane so that an item's position can be compared across them.

    ``umap`` fits all spaces jointly, on concatenated features (cosine, pictures and captions together), then refines
    each on its own graph at a low rate. ``pca`` is the linear control: two principal components of each space, aligned
    to those of the first by orthogonal Procrustes. ValueError: fewer than 5 pictures, or one without a caption.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, E]``); where ``D`` and ``E`` differ, pictures
            and captions share no space and are taken as orthogonal.
        caption_image: ``[C]`` picture of each caption.
        seed: of the sampled items and the layout; reproducible on the same machine.
        max_points: limit per space, half of it pictures; the first caption of each picture is drawn.
    """
    arrays = {name: (np.asarray(image), np.asarray(text)) for name, (image, text) in spaces.items()}
    first = np.unique(caption_image, return_index=True)[1]
    n = min(len(first), max_points // 2)
    if n < 5 or {len(image) for image, _ in arrays.values()} != {len(first)}:
        raise ValueError(f"a map needs 5 or more pictures, each with a caption; {n} have one")
    rows = np.sort(np.random.default_rng(seed).choice(len(first), n, replace=False))
    points = {name: _stack(image[rows], text[first[rows]]) for name, (image, text) in arrays.items()}
    if method == "pca":
        layout, description = _pca(points), f"PCA: two components of each of {len(points)} spaces, aligned to the first"
    else:
        k = min(NEIGHBOURS, 2 * n - 1)
        fit = f"joint fit of {len(points)} spaces, each then refined on its own graph"
        layout, description = _umap(points, seed, k), f"UMAP: {fit}; {k} neighbours, seed {seed}"
    trust = {name: _trustworthiness(points[name], xy) for name, xy in layout.items()}
    return Projection({name: (xy[:n], xy[n:]) for name, xy in layout.items()}, rows, first[rows], trust, description)


def cached_projection(root: Path | str, spaces: Spaces, **options: Any) -> Projection:
    """Cached :func:`project_spaces` in ``root/cache/projection``, keyed by features, options, code and UMAP version."""
    arrays = [(name, *map(np.asarray, pair)) for name, pair in spaces.items()]
    key = joblib.hash([importlib.metadata.version("umap-learn"), sha256(Path(__file__)), options, arrays])
    path = Path(root) / "cache" / "projection" / f"{key}.json"
    if not path.exists():  # numba caches below the home folder, which may be read-only
        os.environ["NUMBA_CACHE_DIR"] = os.environ.get("NUMBA_CACHE_DIR") or str(Path(root, "cache/numba").absolute())
        write_json(path, asdict(project_spaces(spaces, **options)))
    fields = read_json(path)
    fields["coords"] = {name: tuple(np.array(xy, np.float32) for xy in pair) for name, pair in fields["coords"].items()}
    return Projection(**fields | {key: np.array(fields[key]) for key in ("image_rows", "text_rows")})


@style()
def plot_embedding(
    projection: Projection, *, labels: Any = None, thumbnail: Callable | None = None, thumbnails: int = 8
) -> Figure:
    """Plot the same points in several spaces: circles are pictures, triangles captions, faint lines join pairs.

    Colour shows the modality, or the ``labels [I]`` of pictures. ``thumbnail`` returns the picture of a row, such as
    ``dataset.image``; ``thumbnails`` of them are placed around the points.
    """
    count = len(projection.coords)
    across = min(count, 2 if is_narrow() else 3 if count in (5, 6) else 4)
    side, rows = page_width() / max(across, 2), -(-count // across)
    colors, groups = _groups(projection, labels)
    figure = new_figure(side * across, rows * (side + 0.4) + 0.4)
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    extent = max(float(np.abs(pair).max()) for pair in projection.coords.values())
    for axes, (space, pair) in zip(grid, projection.coords.items(), strict=False):
        lines = list(np.stack(pair, axis=1))
        axes.add_collection(LineCollection(lines, colors="0.5", alpha=0.15, linewidths=0.4, rasterized=True))
        for xy, marker, names in zip(pair, "o^", groups, strict=True):
            shades = [colors[name] for name in names]
            axes.scatter(*xy.T, s=6, c=shades, marker=marker, alpha=0.7, linewidths=0, rasterized=True)
        limit = 1.08 * extent
        if thumbnail is not None and thumbnails:
            limit = extent / (1 - 3.4 * THUMBNAIL / side)  # a margin for thumbnails
            _add_thumbnails(axes, pair[0], projection.image_rows, thumbnail, thumbnails, (extent + limit) / 2)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(True)
        axes.set_xlabel(f"trustworthiness {format_number(100 * projection.trustworthiness[space]['joint'])}")
        axes.set_title(f"{arm_label(space)}, {projection.name}")
    series = {name: Look(colors.get(name, "0.3"), marker, "") for name, marker in zip(MODALITY, "o^", strict=True)}
    legend_below(figure, "", series | {name: Look(colors[name], "s", "") for name in colors if name not in MODALITY})
    return figure


@style()
def plot_similarity_blocks(spaces: Spaces, *, caption_image: Any, order: Any = None) -> Figure:
    """Plot per space the cosines of pictures, then captions (blocks II, IT, TI, TT), and their densities.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, D]``).
        caption_image: ``[C]`` picture of each caption; the first of each picture is drawn.
        order: picture rows in the order to draw, such as by true factors, sampled evenly; default: as stored.
    """
    cosines = {}
    for name, (image, text) in spaces.items():
        rows = np.arange(len(image)) if order is None else np.asarray(order)
        rows = rows[np.linspace(0, len(rows) - 1, min(BLOCK_SIZE, len(rows))).astype(int)]
        captions = np.unique(caption_image, return_index=True)[1][rows]
        points = _stack(np.asarray(image)[rows], np.asarray(text)[captions])
        cosines[name] = points @ points.T
    n, least = len(rows), min(0.0, *(float(np.percentile(matrix, 0.5)) for matrix in cosines.values()))
    off_diagonal = ~np.eye(n, dtype=bool)
    narrow, count, side = is_narrow(), len(spaces), page_width() / (2 if is_narrow() else max(len(spaces), 2))
    figure = new_figure(page_width(), count * (side + 0.1) + 0.65 if narrow else 1.7 * side + 0.4)
    shape, ratios = ((count, 2), None) if narrow else ((2, count), (1, 0.6))
    grid = figure.subplots(*shape, squeeze=False, height_ratios=ratios)
    grid = grid if narrow else grid.T
    for (name, matrix), (blocks, density) in zip(cosines.items(), grid, strict=True):
        heatmap = blocks.imshow(matrix, cmap="cividis", vmin=least, vmax=1, rasterized=True)
        blocks.axhline(n - 0.5, color="white", linewidth=1)
        blocks.axvline(n - 0.5, color="white", linewidth=1)
        blocks.set_xticks([n / 2, 1.5 * n], ["pictures", "captions"])
        blocks.set_yticks([n / 2, 1.5 * n], ["pictures", "captions"], rotation=90, va="center")
        blocks.grid(visible=False)
        blocks.set_title(arm_label(name))
        across = matrix[:n, n:]
        samples = np.diag(across), *(block[off_diagonal] for block in (across, matrix[:n, :n], matrix[n:, n:]))
        for values, (label, (color, line)) in zip(samples, PAIRS.items(), strict=True):
            options = {"color": color, "linestyle": line, "linewidth": 1.2, "label": label}
            seaborn.kdeplot(x=values[:: max(1, len(values) // 3000)], ax=density, warn_singular=False, **options)
        density.set(xlabel="cosine", ylabel="density", yticks=[], xlim=(least - 0.1, 1.05))
    figure.colorbar(heatmap, ax=list(grid[:, 0]), label="cosine", shrink=0.8, location="bottom" if narrow else "right")
    legend_below(figure)
    return figure


def _groups(projection: Projection, labels: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """Colour of each label, and the labels of the drawn pictures and captions; without labels, their modality."""
    if labels is None:
        return dict(MODALITY), [[name] * len(projection.image_rows) for name in MODALITY]
    names = np.asarray(labels).astype(str)[projection.image_rows].tolist()
    kept = [name for name, _ in Counter(sorted(names)).most_common()]
    kept = kept if len(kept) <= MAX_LABELS + 1 else kept[:MAX_LABELS]  # "other" never stands for a single label
    colors = {name: look.color for name, look in looks(sorted(kept)).items()}
    names = [name if name in colors else "other" for name in names]
    return colors | ({"other": "0.8"} if "other" in names else {}), [names, names]


def _add_thumbnails(axes: Axes, xy: np.ndarray, rows: Any, picture: Callable, count: int, edge: float) -> None:
    """Place ``count`` pictures, sampled by angle, on a square of half-width ``edge``, each with a line to its point."""
    by_angle = np.argsort(np.arctan2(xy[:, 1], xy[:, 0]))
    for number, i in enumerate(by_angle[np.linspace(0, len(by_angle), count, endpoint=False).astype(int)]):
        angle = np.pi * (2 * number / count - 1)
        direction = np.array([np.cos(angle), np.sin(angle)])
        position = edge * direction / np.abs(direction).max()
        array = np.asarray(picture(int(rows[i])))
        box = OffsetImage(array, zoom=THUMBNAIL * 72 / max(array.shape[:2]))
        look: dict[str, Any] = {"bboxprops": {"linewidth": 0.4, "edgecolor": "0.3"}, "pad": 0.05}
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.3"}
        axes.add_artist(AnnotationBbox(box, xy[i], xybox=position, arrowprops=line, **look))


def unit(features: Any) -> np.ndarray:
    """Scale rows to unit length; zero rows stay zero."""
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12))


def _stack(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Stack the unit rows of pictures above those of captions; unequal widths get separate columns."""
    pair = unit(image), unit(text)
    return (np.concatenate(pair) if image.shape[1] == text.shape[1] else block_diag(*pair)).astype(np.float32)


def _pca(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from sklearn.decomposition import PCA

    components = {name: PCA(2, svd_solver="full").fit_transform(x.astype(np.float64)) for name, x in points.items()}
    layouts = {name: xy / max(float(np.sqrt((xy**2).mean())), 1e-12) for name, xy in components.items()}
    first = next(iter(layouts.values()))
    return {name: xy @ orthogonal_procrustes(xy, first)[0] for name, xy in layouts.items()}


def _umap(points: Mapping[str, np.ndarray], seed: int, k: int) -> dict[str, np.ndarray]:
    """Fit all spaces jointly, then refine each; AlignedUMAP takes three times as long and is no more trustworthy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        fixed: dict[str, Any] = {"n_neighbors": k, "metric": "cosine", "random_state": seed, "n_jobs": 1}
        joint = UMAP(**fixed, init="pca", n_epochs=JOINT_EPOCHS).fit_transform(np.hstack(list(points.values())))
        refine = UMAP(**fixed, init=joint, n_epochs=SPACE_EPOCHS, learning_rate=SPACE_RATE).fit_transform
        layouts = [xy - xy.mean(axis=0) for xy in map(refine, points.values())]
    return dict(zip(points, np.stack(layouts) / np.sqrt(np.mean(np.square(layouts))), strict=True))


def _trustworthiness(x: np.ndarray, xy: np.ndarray) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    n, scores = len(x) // 2, {}
    for name, rows in {"image": slice(n), "text": slice(n, None), "joint": slice(None)}.items():
        k = min(NEIGHBOURS, (len(x[rows]) - 1) // 2)
        scores[name] = float(trustworthiness(x[rows], xy[rows], n_neighbors=k, metric="cosine"))
    return scores
