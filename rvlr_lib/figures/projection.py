"""Embedding spaces in the plane: UMAP with a PCA control, comparable across spaces, and blocks of similarities."""

import hashlib
import importlib.metadata
import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from scipy.linalg import block_diag, orthogonal_procrustes

from rvlr_lib.disk import plain, read_json, sha256, write_json
from rvlr_lib.figures.charts import legend_below
from rvlr_lib.figures.style import MODALITY, Look, is_narrow, looks, new_figure, page_width, style
from rvlr_lib.tables import arm_label, shown

JOINT_EPOCHS, OWN_EPOCHS, OWN_RATE, NEIGHBOURS = 300, 100, 0.1, 15
THUMBNAIL, LABELS, BLOCK = 0.16, 6, 150  # inches; most labels with a colour of their own; most pictures in a block
PAIRS = {  # of similarity blocks: colour and line
    "picture and its caption": ("0.05", "-"),
    "picture and another's caption": ("0.5", "--"),
    "two pictures": (MODALITY["picture"], "-."),
    "two captions": (MODALITY["caption"], "-"),
}
Spaces = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Projection:
    """The same pictures, and one caption of each, in several spaces."""

    coords: dict[str, tuple[np.ndarray, np.ndarray]]  # space -> pictures, captions [n, 2] each: centred, one scale
    image_rows: np.ndarray  # [n] of the drawn pictures in the features
    text_rows: np.ndarray  # [n] of their captions
    trustworthiness: dict[str, dict[str, float]]  # space -> image, text, joint -> 0 to 1
    method: str  # how it was made

    @property
    def name(self) -> str:
        """``UMAP`` or ``PCA``."""
        return self.method.split(":")[0]

    def to_frame(self) -> pd.DataFrame:
        """One line per drawn point: method, space, modality, row, x, y."""
        frames = []
        for space, pair in self.coords.items():
            for modality, rows, xy in zip(MODALITY, (self.image_rows, self.text_rows), pair, strict=True):
                fixed = {"method": self.name, "space": space, "modality": modality}
                frames.append(pd.DataFrame(fixed | {"row": rows, "x": xy[:, 0], "y": xy[:, 1]}))
        return pd.concat(frames, ignore_index=True)


def project_spaces(
    spaces: Spaces, *, method: str = "umap", seed: int = 0, max_points: int = 2000, caption_image: Any = None
) -> Projection:
    """Draw several spaces so that an item may be compared with itself across them.

    ``umap`` is one joint fit of all spaces side by side (cosine, pictures and captions together), from which each space
    then moves along its own graph, slowly. ``pca`` is the linear control: two principal components of each space,
    turned onto the first by orthogonal Procrustes.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, E]``); where ``D`` and ``E`` differ, pictures
            and captions share no space and are taken as orthogonal.
        seed: of the drawn items and the layout; the same machine gives the same coordinates.
        max_points: most points per space, half of them pictures; the first caption of each is drawn.
        caption_image: ``[C]`` picture of each caption; without it caption i belongs to picture i. ValueError: unknown
            method; spaces with other row counts; a picture without a caption; fewer than 5 pictures; not finite.
    """
    if method not in ("umap", "pca"):
        raise ValueError(f"unknown projection {method!r}: valid are umap, pca")
    arrays = {name: (np.asarray(image), np.asarray(text)) for name, (image, text) in spaces.items()}
    sizes = {name: (len(image), len(text)) for name, (image, text) in arrays.items()}
    images, captions = next(iter(sizes.values()), (0, 0))
    n = min(images, max_points // 2)
    owners, first = np.unique(np.arange(captions) if caption_image is None else caption_image, return_index=True)
    if len(set(sizes.values())) != 1 or n < 5 or owners.tolist() != list(range(images)):
        needed = "the same pictures, 5 or more, and captions of each"
        raise ValueError(f"every space needs {needed}; got rows {sizes} and captions of {len(owners)} pictures")
    rows = np.sort(np.random.default_rng(seed).choice(images, n, replace=False))
    points = {name: _stack(name, image[rows], text[first[rows]]) for name, (image, text) in arrays.items()}
    if method == "pca":
        layout, told = _pca(points), f"PCA: two components of each of {len(points)} spaces, turned onto the first"
    else:
        k = min(NEIGHBOURS, 2 * n - 1)
        told = f"UMAP: joint fit of {len(points)} spaces, then each along its own graph; {k} neighbours, seed {seed}"
        layout = _umap(points, seed, k)
    trust = {name: _trust(points[name], xy) for name, xy in layout.items()}
    return Projection({name: (xy[:n], xy[n:]) for name, xy in layout.items()}, rows, first[rows], trust, told)


def cached_projection(root: Path | str, spaces: Spaces, **options: Any) -> Projection:
    """:func:`project_spaces`, kept below ``root/cache/projection`` by features, options, code and UMAP."""
    decisive = importlib.metadata.version("umap-learn"), sha256(Path(__file__)), plain(options)
    digest = hashlib.sha256(repr(decisive).encode())
    for name, pair in spaces.items():
        digest.update(name.encode() + b"".join(np.ascontiguousarray(features).tobytes() for features in pair))
    path = Path(root) / "cache" / "projection" / f"{digest.hexdigest()[:32]}.json"
    if not path.exists():
        # what numba compiles for UMAP: home may be read-only
        os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(root).absolute() / "cache" / "numba"))
        write_json(path, asdict(project_spaces(spaces, **options)))
    told = read_json(path)
    told["coords"] = {name: tuple(np.array(xy, np.float32) for xy in pair) for name, pair in told["coords"].items()}
    return Projection(**told | {rows: np.array(told[rows]) for rows in ("image_rows", "text_rows")})


@style()
def plot_embedding(
    projection: Projection, *, labels: Any = None, thumbnail: Callable | None = None, thumbnails: int = 8
) -> Figure:
    """The same points in several spaces: circles are pictures, triangles captions, faint lines join pairs.

    Colour is the modality, or the ``labels [I]`` of pictures. ``thumbnail`` gives the picture of a row, such as
    ``dataset.image``; as many as ``thumbnails`` stand around the points.
    """
    count = len(projection.coords)
    across = min(count, 2 if is_narrow() else 3 if count in (5, 6) else 4)
    side, rows = page_width() / max(across, 2), -(-count // across)
    colors, groups = _groups(projection, labels)
    figure = new_figure(side * across, rows * (side + 0.4) + 0.4)
    grid = figure.subplots(rows, across, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.remove()
    most = max(float(np.abs(pair).max()) for pair in projection.coords.values())
    for axes, (space, pair) in zip(grid, projection.coords.items(), strict=False):
        lines = list(np.stack(pair, axis=1))
        axes.add_collection(LineCollection(lines, colors="0.5", alpha=0.15, linewidths=0.4, rasterized=True))
        for xy, marker, own in zip(pair, "o^", groups, strict=True):
            shades = [colors[name] for name in own]
            axes.scatter(*xy.T, s=6, c=shades, marker=marker, alpha=0.7, linewidths=0, rasterized=True)
        reach = 1.08 * most
        if thumbnail is not None and thumbnails:
            reach = most / (1 - 3.4 * THUMBNAIL / side)  # a margin for them
            _thumbnails(axes, pair[0], projection.image_rows, thumbnail, thumbnails, (most + reach) / 2)
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], box_aspect=1)
        axes.spines[:].set_visible(True)
        axes.set_xlabel(f"trustworthiness {shown(100 * projection.trustworthiness[space]['joint'])}")
        axes.set_title(f"{arm_label(space)}, {projection.name}")
    series = {name: Look(colors.get(name, "0.3"), mark, "") for name, mark in zip(MODALITY, "o^", strict=True)}
    legend_below(figure, "", series | {name: Look(colors[name], "s", "") for name in colors if name not in MODALITY})
    return figure


@style()
def plot_similarity_blocks(spaces: Spaces, *, order: Any = None, caption_image: Any = None) -> Figure:
    """Per space the cosines of pictures, then captions (blocks II, IT, TI, TT), beside their densities.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, D]``) of one width, else a ValueError.
        order: picture rows, sorted by true factors, of which some are drawn, evenly taken; default as they are.
        caption_image: ``[C]``; the first caption of each picture is drawn. Without it row i belongs to row i.
    """
    cosines = {}
    for name, (image, text) in spaces.items():
        if np.shape(image)[1] != np.shape(text)[1]:
            widths = f"pictures have {np.shape(image)[1]} columns, captions {np.shape(text)[1]}"
            raise ValueError(f"{name!r} is no common space: {widths}")
        rows = np.arange(len(image)) if order is None else np.asarray(order)
        rows = rows[np.linspace(0, len(rows) - 1, min(BLOCK, len(rows))).astype(int)]
        own = rows if caption_image is None else np.unique(caption_image, return_index=True)[1][rows]
        both = _stack(name, np.asarray(image)[rows], np.asarray(text)[own])
        cosines[name] = both @ both.T
    n, least = len(rows), min(0.0, *(float(np.percentile(matrix, 0.5)) for matrix in cosines.values()))
    apart = ~np.eye(n, dtype=bool)
    narrow, count, side = is_narrow(), len(spaces), page_width() / (2 if is_narrow() else max(len(spaces), 2))
    figure = new_figure(page_width(), count * (side + 0.1) + 0.65 if narrow else 1.7 * side + 0.4)
    shape, ratios = ((count, 2), None) if narrow else ((2, count), (1, 0.6))
    grid = figure.subplots(*shape, squeeze=False, height_ratios=ratios)
    grid = grid if narrow else grid.T
    for (name, matrix), (blocks, density) in zip(cosines.items(), grid, strict=True):
        drawn = blocks.imshow(matrix, cmap="cividis", vmin=least, vmax=1, rasterized=True)
        blocks.axhline(n - 0.5, color="white", linewidth=1)
        blocks.axvline(n - 0.5, color="white", linewidth=1)
        blocks.set_xticks([n / 2, 1.5 * n], ["pictures", "captions"])
        blocks.set_yticks([n / 2, 1.5 * n], ["pictures", "captions"], rotation=90, va="center")
        blocks.grid(visible=False)
        blocks.set_title(arm_label(name))
        across = matrix[:n, n:]
        parts = np.diag(across), across[apart], matrix[:n, :n][apart], matrix[n:, n:][apart]
        for values, (label, (color, line)) in zip(parts, PAIRS.items(), strict=True):
            options = {"color": color, "linestyle": line, "linewidth": 1.2, "label": label}
            seaborn.kdeplot(x=values[:: max(1, len(values) // 3000)], ax=density, warn_singular=False, **options)
        density.set(xlabel="cosine", ylabel="density", yticks=[], xlim=(least - 0.1, 1.05))
    figure.colorbar(drawn, ax=list(grid[:, 0]), label="cosine", shrink=0.8, location="bottom" if narrow else "right")
    legend_below(figure)
    return figure


def _groups(projection: Projection, labels: Any) -> tuple[dict[str, Any], list[list[str]]]:
    """The colour of each label, and the label of each drawn picture and caption; the modality where there are none."""
    if labels is None:
        return dict(MODALITY), [[name] * len(projection.image_rows) for name in MODALITY]
    names = np.asarray(labels).astype(str)[projection.image_rows].tolist()
    kept = [name for name, _ in Counter(sorted(names)).most_common()]
    kept = kept if len(kept) <= LABELS + 1 else kept[:LABELS]  # "other" is never a single label
    colors = {name: look.color for name, look in looks(sorted(kept)).items()}
    group = [name if name in colors else "other" for name in names]
    return colors | ({"other": "0.8"} if "other" in group else {}), [group, group]


def _thumbnails(axes: Axes, xy: np.ndarray, rows: Any, picture: Callable, count: int, edge: float) -> None:
    """Pictures of all directions stand on a square around the points, each with a line to its own."""
    turn = np.argsort(np.arctan2(xy[:, 1], xy[:, 0]))
    for place, i in enumerate(turn[np.linspace(0, len(turn), count, endpoint=False).astype(int)]):
        angle = np.pi * (2 * place / count - 1)
        way = np.array([np.cos(angle), np.sin(angle)])
        array = np.asarray(picture(int(rows[i])))
        box = OffsetImage(array, zoom=THUMBNAIL * 72 / max(array.shape[:2]))
        look: dict[str, Any] = {"bboxprops": {"linewidth": 0.4, "edgecolor": "0.3"}, "pad": 0.05}
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.3"}
        axes.add_artist(AnnotationBbox(box, xy[i], xybox=edge * way / np.abs(way).max(), arrowprops=line, **look))


def unit(features: Any) -> np.ndarray:
    """Rows of length 1; a zero row stays zero."""
    return np.asarray(features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12))


def _stack(name: str, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Unit rows of both modalities, one above the other; widths that differ get columns of their own."""
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise ValueError(f"features of {name!r} are not finite")
    both = unit(image), unit(text)
    return (np.concatenate(both) if image.shape[1] == text.shape[1] else block_diag(*both)).astype(np.float32)


def _pca(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from sklearn.decomposition import PCA

    flat = {name: PCA(2, svd_solver="full").fit_transform(x.astype(np.float64)) for name, x in points.items()}
    layout = {name: xy / max(float(np.sqrt((xy**2).mean())), 1e-12) for name, xy in flat.items()}
    first = next(iter(layout.values()))
    return {name: xy @ orthogonal_procrustes(xy, first)[0] for name, xy in layout.items()}


def _umap(points: Mapping[str, np.ndarray], seed: int, k: int) -> dict[str, np.ndarray]:
    """One fit of all spaces, then each from there; AlignedUMAP takes three times as long and is trusted no more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        fixed: dict[str, Any] = {"n_neighbors": k, "metric": "cosine", "random_state": seed, "n_jobs": 1}
        joint = UMAP(**fixed, init="pca", n_epochs=JOINT_EPOCHS).fit_transform(np.hstack(list(points.values())))
        own = UMAP(**fixed, init=joint, n_epochs=OWN_EPOCHS, learning_rate=OWN_RATE)
        layouts = [xy - xy.mean(axis=0) for xy in map(own.fit_transform, points.values())]
    return dict(zip(points, np.stack(layouts) / np.sqrt(np.mean(np.square(layouts))), strict=True))


def _trust(x: np.ndarray, xy: np.ndarray) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    n, found = len(x) // 2, {}
    for name, rows in {"image": slice(n), "text": slice(n, None), "joint": slice(None)}.items():
        k = min(NEIGHBOURS, (len(x[rows]) - 1) // 2)
        found[name] = float(trustworthiness(x[rows], xy[rows], n_neighbors=k, metric="cosine"))
    return found
