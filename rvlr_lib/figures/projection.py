"""Embedding spaces in the plane: UMAP with a PCA control, comparable across spaces, and blocks of similarities."""

import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.figures.style import MODALITY, is_narrow, looks, new_figure, page_width, style
from rvlr_lib.tables import arm_label, shown

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

JOINT_EPOCHS, OWN_EPOCHS, OWN_RATE, NEIGHBOURS = 300, 100, 0.1, 15
THUMBNAIL, LABELS = 0.16, 6  # inches; most labels with a colour of their own
Spaces = Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, eq=False)
class Projection:
    """The same pictures and captions in several spaces.

    Attributes:
        coords: space -> (pictures ``[n, 2]``, captions ``[m, 2]``), centred, on one scale for all spaces.
        image_rows: rows ``[n]`` of the drawn pictures in the features.
        text_rows: rows ``[m]`` of the drawn captions in the features.
        pairs: ``[p, 2]`` drawn picture and drawn caption that belong together (positions in ``coords``).
        trustworthiness: space -> ``{"image", "text", "joint"}`` -> 0 to 1.
        method: how it was made.
    """

    coords: dict[str, tuple[np.ndarray, np.ndarray]]
    image_rows: np.ndarray
    text_rows: np.ndarray
    pairs: np.ndarray
    trustworthiness: dict[str, dict[str, float]]
    method: str

    @property
    def name(self) -> str:
        """``UMAP`` or ``PCA``."""
        return self.method.split(":")[0]

    def to_frame(self) -> "pd.DataFrame":
        """One line per drawn point: method, space, modality, row, x, y."""
        import pandas as pd

        frames = []
        for space, pair in self.coords.items():
            for modality, rows, xy in zip(MODALITY, (self.image_rows, self.text_rows), pair, strict=True):
                fixed = {"method": self.name, "space": space, "modality": modality}
                frames.append(pd.DataFrame(fixed | {"row": rows, "x": xy[:, 0], "y": xy[:, 1]}))
        return pd.concat(frames, ignore_index=True)


def ensure_numba_cache(root: Path | str) -> Path | None:
    """Keep numba's cache below ``root``, else in a temporary folder, where neither site-packages nor home are writable.

    Call it before work begins: :func:`project_spaces` needs numba. Returns the folder; None where nothing was changed.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return None
    spec = importlib.util.find_spec("umap")
    own = [Path(folder) / "__pycache__" for folder in (spec.submodule_search_locations or [] if spec else [])]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "numba"
    if any(map(_writable, [*own, home])):
        return None
    below = Path(root).absolute() / "cache" / "numba"
    folder = below if _writable(below) else Path(tempfile.mkdtemp(prefix="numba-"))
    os.environ["NUMBA_CACHE_DIR"] = str(folder)
    if "numba" in sys.modules:
        sys.modules["numba"].config.reload_config()
    return folder


def project_spaces(
    spaces: Spaces, *, method: str = "umap", seed: int = 0, max_points: int = 2000, caption_image: Any = None
) -> Projection:
    """Draw several spaces so that an item may be compared with itself across them.

    ``umap`` is one joint fit, the layout of the mean of all spaces' fuzzy neighbour graphs (cosine, pictures and
    captions together), from which each space then moves along its own graph, slowly. ``pca`` is the linear control:
    two principal components of each space, turned onto the first by orthogonal Procrustes.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, E]``); unit-normalised here. Where ``D`` and
            ``E`` differ, pictures and captions share no space and are taken as orthogonal.
        method: ``umap`` or ``pca``.
        seed: of the drawn items and the layout; the same machine gives the same coordinates.
        max_points: most points per space, half of them pictures.
        caption_image: ``[C]`` picture of each caption; the first caption of each drawn picture is then drawn. Without
            it rows belong together if there are as many captions as pictures, else captions are drawn freely.

    Raises:
        ValueError: unknown method; spaces with other row counts; fewer than 5 pictures or captions; not finite.
    """
    if method not in ("umap", "pca"):
        raise ValueError(f"unknown projection {method!r}: valid are umap, pca")
    arrays = {name: (np.asarray(image), np.asarray(text)) for name, (image, text) in spaces.items()}
    sizes = {name: (len(image), len(text)) for name, (image, text) in arrays.items()}
    counts = next(iter(sizes.values()), (0, 0))
    if len(set(sizes.values())) != 1 or min(*counts, max_points // 2) < 5:
        raise ValueError(f"every space needs the same pictures and captions, 5 or more of each; got rows {sizes}")
    rng = np.random.default_rng(seed)
    images = np.sort(rng.choice(counts[0], min(counts[0], max_points // 2), replace=False))
    if caption_image is None and counts[0] == counts[1]:
        caption_image = np.arange(counts[1])
    if caption_image is None:
        texts = np.sort(rng.choice(counts[1], min(counts[1], max_points // 2), replace=False))
        pairs = np.empty((0, 2), dtype=np.int64)
    else:
        owners, first = np.unique(caption_image, return_index=True)
        texts = first[np.isin(owners, images)]
        pairs = np.stack([np.searchsorted(images, np.asarray(caption_image)[texts]), np.arange(len(texts))], axis=1)
    points = {name: _stack(name, image[images], text[texts]) for name, (image, text) in arrays.items()}
    k = min(NEIGHBOURS, len(images) + len(texts) - 1)
    layout = _pca(points) if method == "pca" else _umap(points, seed, k)
    told = f"UMAP: joint fit of {len(points)} spaces, then each along its own graph; {k} neighbours, seed {seed}"
    if method == "pca":
        told = f"PCA: two components of each of {len(points)} spaces, turned onto the first"
    n = len(images)
    trust = {name: _trust(points[name], xy, n) for name, xy in layout.items()}
    return Projection({name: (xy[:n], xy[n:]) for name, xy in layout.items()}, images, texts, pairs, trust, told)


def cached_projection(root: Path | str, spaces: Spaces, **options: Any) -> Projection:
    """:func:`project_spaces`, kept below ``root/cache/projection`` for its features, options and version of UMAP."""
    version = importlib.metadata.version("umap-learn")
    plain = {key: value.tolist() if hasattr(value, "tolist") else value for key, value in options.items()}
    digest = hashlib.sha256(repr((version, JOINT_EPOCHS, OWN_EPOCHS, OWN_RATE, sorted(plain.items()))).encode())
    for name, pair in spaces.items():
        digest.update(name.encode() + b"".join(np.ascontiguousarray(part).tobytes() for part in pair))
    path = Path(root) / "cache" / "projection" / f"{digest.hexdigest()[:32]}.json"
    if not path.exists():
        ensure_numba_cache(root)
        write_json(path, asdict(project_spaces(spaces, **options)))
    told = read_json(path)
    coords = {name: tuple(np.array(xy, dtype=np.float32) for xy in two) for name, two in told.pop("coords").items()}
    rows = {key: np.array(told.pop(key), dtype=np.int64) for key in ("image_rows", "text_rows", "pairs")}
    rows["pairs"] = rows["pairs"].reshape(-1, 2)
    return Projection(coords=coords, **rows, **told)  # type: ignore[arg-type]


def plot_embedding(
    *projections: Projection, labels: Any = None, caption_image: Any = None, thumbnail: Any = None, thumbnails: int = 8
) -> "Figure":
    """The same points in several spaces: circles are pictures, triangles captions, faint lines join pairs.

    Args:
        projections: a row of panels each, with limits of their own.
        labels: ``[I]`` of all pictures, drawn as colour; without labels colour is the modality.
        caption_image: ``[C]`` picture of each caption, needed for the labels of captions.
        thumbnail: picture of a row, such as ``dataset.image``.
        thumbnails: how many pictures stand beside their points, in free places.
    """
    from matplotlib.collections import LineCollection
    from matplotlib.lines import Line2D

    panels = [(projection, space) for projection in projections for space in projection.coords]
    spaces = len(projections[0].coords)
    across = min(len(panels), 3 if spaces in (5, 6) else min(spaces, 4))
    if is_narrow():
        across = min(len(panels), 2)
        panels = panels if len(projections) == 1 else sorted(panels, key=lambda p: list(p[0].coords).index(p[1]))
    width = page_width()
    side, rows = width / max(across, 2), -(-len(panels) // across)
    colors, groups = _groups(projections[0], labels, caption_image)
    with style():
        figure = new_figure(width if across > 1 else side, rows * (side + 0.4) + 0.4)
        grid = figure.subplots(rows, across, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        for axes, (projection, space) in zip(grid.flat, panels, strict=False):
            reach = 1.08 * max(float(np.abs(xy).max()) for pair in projection.coords.values() for xy in pair)
            pair, trust = projection.coords[space], projection.trustworthiness[space]
            lines = np.stack([pair[0][projection.pairs[:, 0]], pair[1][projection.pairs[:, 1]]], axis=1)
            axes.add_collection(LineCollection(list(lines), colors="0.5", alpha=0.15, linewidths=0.4, rasterized=True))
            for xy, marker, own in zip(pair, "o^", groups, strict=True):
                shades = [colors[name] for name in own]
                axes.scatter(*xy.T, s=6, c=shades, marker=marker, alpha=0.7, linewidths=0, rasterized=True)
            axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], box_aspect=1)
            axes.spines[:].set_visible(True)
            if thumbnail is not None:
                _thumbnails(axes, pair, projection.image_rows, thumbnail, thumbnails, reach, side - 0.15)
            axes.set_xlabel(f"trustworthiness {shown(100 * trust['joint'])}")
            axes.set_title(f"{arm_label(space)}, {projection.name}")
        entries = [("picture", "o"), ("caption", "^"), *((name, "s") for name in colors if name not in MODALITY)]
        marks = [Line2D([], [], linestyle="", marker=mark, color=colors.get(name, "0.3")) for name, mark in entries]
        names = [name for name, _ in entries]
        columns = int(figure.get_figwidth() / (0.5 + 0.062 * max(map(len, names))))
        figure.legend(marks, names, loc="outside lower center", ncols=max(1, columns), columnspacing=1)
    return figure


def plot_similarity_blocks(
    spaces: Spaces, *, order: Any = None, caption_image: Any = None, most: int = 150
) -> "Figure":
    """Per space the cosines of pictures, then captions (blocks II, IT, TI, TT), beside their densities.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, D]``) of one width.
        order: picture rows, sorted by true factors; default as they are.
        caption_image: ``[C]``; the first caption of each picture is drawn. Without it row i belongs to row i.
        most: pictures drawn, evenly taken from ``order``.

    Raises:
        ValueError: pictures and captions of a space have other widths.
    """
    import seaborn

    cosines = {}
    for name, (image, text) in spaces.items():
        if np.shape(image)[1] != np.shape(text)[1]:
            widths = f"pictures have {np.shape(image)[1]} columns, captions {np.shape(text)[1]}"
            raise ValueError(f"{name!r} is no common space: {widths}")
        rows = np.arange(len(image)) if order is None else np.asarray(order)
        rows = rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]
        own = rows if caption_image is None else np.unique(caption_image, return_index=True)[1][rows]
        both = _stack(name, np.asarray(image)[rows], np.asarray(text)[own])
        cosines[name] = both @ both.T
    n, least = len(rows), min(0.0, min(float(np.percentile(matrix, 0.5)) for matrix in cosines.values()))
    apart = ~np.eye(n, dtype=bool)
    series = {
        "picture and its caption": (lambda c: np.diag(c[:n, n:]), "0.05", "-"),
        "picture and another's caption": (lambda c: c[:n, n:][apart], "0.5", "--"),
        "two pictures": (lambda c: c[:n, :n][apart], MODALITY["picture"], "-."),
        "two captions": (lambda c: c[n:, n:][apart], MODALITY["caption"], "-"),
    }
    narrow, count, width = is_narrow(), len(spaces), page_width()
    with style():
        side = width / (2 if narrow else max(count, 2))
        figure = new_figure(width, count * (side + 0.1) + 1.2 if narrow else 1.7 * side + 0.6)
        shape, ratios = ((count, 2), None) if narrow else ((2, count), (1, 0.6))
        grid = figure.subplots(*shape, squeeze=False, height_ratios=ratios)
        for (name, matrix), (blocks, density) in zip(cosines.items(), grid if narrow else grid.T, strict=True):
            drawn = blocks.imshow(matrix, cmap="cividis", vmin=least, vmax=1, rasterized=True)
            for edge in (blocks.axhline, blocks.axvline):
                edge(n - 0.5, color="white", linewidth=1)
            blocks.set_xticks([n / 2, 1.5 * n], ["pictures", "captions"])
            blocks.set_yticks([n / 2, 1.5 * n], ["pictures", "captions"], rotation=90, va="center")
            blocks.grid(visible=False)
            blocks.set_title(arm_label(name))
            for label, (take, color, line) in series.items():
                values = take(matrix)[:: max(1, n * n // 3000)] if "its" not in label else take(matrix)
                options = {"color": color, "linestyle": line, "linewidth": 1.2, "label": label}
                seaborn.kdeplot(x=values, ax=density, warn_singular=False, **options)
            density.set(xlabel="cosine", ylabel="density", yticks=[], xlim=(least - 0.1, 1.05))
        place = {"location": "bottom", "shrink": 0.8} if narrow else {"shrink": 0.8}
        figure.colorbar(drawn, ax=list(grid[:, 0] if narrow else grid[0]), label="cosine", **place)
        handles, labels = density.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=1 if narrow else 4, columnspacing=1)
    return figure


def _groups(projection: Projection, labels: Any, caption_image: Any) -> tuple[dict[str, Any], list]:
    """The colour of each label, and the label of each drawn picture and caption; the modality where there are none."""
    rows = projection.image_rows, projection.text_rows
    if labels is None:
        return dict(MODALITY), [[name] * len(own) for name, own in zip(MODALITY, rows, strict=True)]
    names = np.asarray(labels).astype(str)
    owner = np.arange(len(names)) if caption_image is None else np.asarray(caption_image)
    own = [names[rows[0]], names[owner[rows[1]]]]
    found, counts = np.unique(np.concatenate(own), return_counts=True)
    kept = [str(name) for name in found[np.argsort(-counts, kind="stable")]]
    kept = kept if len(kept) <= LABELS + 1 else kept[:LABELS]  # "other" is never a single label
    colors = {name: look.color for name, look in looks(sorted(kept)).items()}
    groups = [[name if name in colors else "other" for name in part] for part in own]
    return colors | ({"other": "0.8"} if len(found) > len(kept) else {}), groups


def _thumbnails(axes: "Axes", pair: Any, rows: Any, picture: Callable, count: int, reach: float, side: float) -> None:
    """Pictures far from each other, each in the nearest free place, with a line to its point: nothing is hidden."""
    from matplotlib.offsetbox import AnnotationBbox, OffsetImage

    cells = max(4, int(side / (1.25 * THUMBNAIL)))
    edges = np.linspace(-reach, reach, cells + 1)
    x, y = np.concatenate(pair).T
    taken = np.histogram2d(x, y, bins=(edges, edges))[0]
    middles = (edges[1:] + edges[:-1]) / 2
    places = np.stack(np.meshgrid(middles, middles, indexing="ij"), axis=-1)
    chosen = [int(np.linalg.norm(pair[0], axis=1).argmin())][:count]
    while 0 < len(chosen) < min(count, len(rows)):
        near = np.min([np.linalg.norm(pair[0] - pair[0][i], axis=1) for i in chosen], axis=0)
        chosen.append(int(near.argmax()))
    for i in chosen:
        far = np.linalg.norm(places - pair[0][i], axis=-1) + 4 * reach * np.minimum(taken, 99)
        cell = np.unravel_index(int(far.argmin()), far.shape)
        taken[cell] += 99
        array = np.asarray(picture(int(rows[i])))
        box = OffsetImage(array, zoom=THUMBNAIL * 72 / max(array.shape[:2]))
        look: dict[str, Any] = {"bboxprops": {"linewidth": 0.4, "edgecolor": "0.3"}, "pad": 0.05}
        line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.3"}
        point, place = tuple(pair[0][i]), tuple(places[cell])
        axes.add_artist(AnnotationBbox(box, point, xybox=place, arrowprops=line, **look))


def _stack(name: str, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Unit rows of both modalities, one above the other; widths that differ get columns of their own."""
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise ValueError(f"features of {name!r} are not finite")
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (image, text))
    if image.shape[1] != text.shape[1]:
        widths = image.shape[1], text.shape[1]
        image, text = np.pad(image, ((0, 0), (0, widths[1]))), np.pad(text, ((0, 0), (widths[0], 0)))
    return np.concatenate([image, text]).astype(np.float32)


def _components(x: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    xy = PCA(2, svd_solver="full").fit_transform(x.astype(np.float64))
    return xy / max(float(np.sqrt((xy**2).mean())), 1e-12)


def _pca(points: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    from scipy.linalg import orthogonal_procrustes

    layout = {name: _components(x) for name, x in points.items()}
    first = next(iter(layout.values()))
    return {name: xy @ orthogonal_procrustes(xy, first)[0] for name, xy in layout.items()}


def _umap(points: Mapping[str, np.ndarray], seed: int, k: int) -> dict[str, np.ndarray]:
    """UMAP's own graph and layout functions; AlignedUMAP takes three times as long for no more trustworthiness."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sklearn.neighbors import NearestNeighbors
        from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

        state, graphs = np.random.RandomState(seed), []
        for x in points.values():
            distances, indices = NearestNeighbors(n_neighbors=k, metric="cosine").fit(x).kneighbors(x)
            graphs.append(fuzzy_simplicial_set(x, k, state, "cosine", knn_indices=indices, knn_dists=distances)[0])
        a, b = find_ab_params(spread=1.0, min_dist=0.1)

        fixed = {"n_components": 2, "gamma": 1.0, "negative_sample_rate": 5, "metric": "cosine", "metric_kwds": {}}
        plain = {"densmap": False, "densmap_kwds": {}, "output_dens": False, "parallel": False, "a": a, "b": b}

        def move(graph: Any, start: np.ndarray, rate: float, epochs: int) -> np.ndarray:
            given = {"initial_alpha": rate, "n_epochs": epochs, "random_state": np.random.RandomState(seed)}
            return simplicial_set_embedding(start, graph.tocoo(), init=start, **given, **fixed, **plain)[0]

        start = 5 * _components(np.concatenate(list(points.values()), axis=1))
        joint = move(sum(graphs) / len(graphs), start.astype(np.float32), 1.0, JOINT_EPOCHS)
        layouts = [move(graph, joint, OWN_RATE, OWN_EPOCHS) for graph in graphs]
    layouts = [xy - xy.mean(axis=0) for xy in layouts]
    return dict(zip(points, np.stack(layouts) / np.sqrt(np.mean(np.square(layouts))), strict=True))


def _trust(x: np.ndarray, xy: np.ndarray, images: int) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    def part(rows: slice) -> float:
        k = min(NEIGHBOURS, (len(x[rows]) - 1) // 2)
        return float(trustworthiness(x[rows], xy[rows], n_neighbors=k, metric="cosine"))

    return {"image": part(slice(images)), "text": part(slice(images, None)), "joint": part(slice(None))}


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False
