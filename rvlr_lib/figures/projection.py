"""Several embedding spaces in the plane, comparable with each other: UMAP and a PCA control."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.study.cache import cached

if TYPE_CHECKING:
    import pandas as pd

JOINT_EPOCHS, OWN_EPOCHS, OWN_RATE = 300, 100, 0.1


@dataclass(frozen=True, eq=False)
class Projection:
    """The same pictures and captions in several spaces.

    Attributes:
        coords: space -> (pictures ``[n, 2]``, captions ``[m, 2]``), centred, on one scale for all spaces.
        image_rows: rows ``[n]`` of the drawn pictures in the features.
        text_rows: rows ``[m]`` of the drawn captions in the features.
        trustworthiness: space -> ``{"image", "text", "joint"}`` -> 0 to 1; 1: all neighbours in the plane are
            neighbours in the space.
        method: how it was made, to print beside the figure.
    """

    coords: dict[str, tuple[np.ndarray, np.ndarray]]
    image_rows: np.ndarray
    text_rows: np.ndarray
    trustworthiness: dict[str, dict[str, float]]
    method: str

    @property
    def name(self) -> str:
        """``UMAP`` or ``PCA``."""
        return self.method.split(":")[0]

    def to_frame(
        self, image_labels: Sequence[Any] | None = None, text_labels: Sequence[Any] | None = None
    ) -> pd.DataFrame:
        """One line per drawn point; labels, where given, are those of all pictures ``[I]`` and captions ``[C]``."""
        import pandas as pd

        frames = []
        for space, pair in self.coords.items():
            trust = self.trustworthiness[space]
            for modality, rows, labels, xy in (
                ("image", self.image_rows, image_labels, pair[0]),
                ("text", self.text_rows, text_labels, pair[1]),
            ):
                frame = pd.DataFrame({"row": rows, "x": xy[:, 0], "y": xy[:, 1]})
                frame["label"] = None if labels is None else np.asarray(labels)[rows]
                fixed = {"method": self.name, "space": space, "modality": modality}
                frames.append(frame.assign(**fixed, trustworthiness=trust[modality], joint=trust["joint"]))
        return pd.concat(frames, ignore_index=True)


def project_spaces(
    spaces: Mapping[str, tuple[Any, Any]],
    *,
    method: str = "umap",
    seed: int = 0,
    max_points: int = 2000,
    n_neighbors: int = 15,
    caption_image: np.ndarray | None = None,
) -> Projection:
    """Draw several spaces so that an item may be compared with itself across them.

    ``"umap"`` is one joint fit, the layout of the mean of all spaces' fuzzy neighbour graphs (cosine, pictures and
    captions together), from which each space then moves along its own graph, slowly. Distances between two spaces are
    never taken. ``"pca"`` is the linear control: two principal components of each space, on one scale, turned onto the
    first space by orthogonal Procrustes.

    Args:
        spaces: name -> (image features ``[I, D]``, text features ``[C, E]``), arrays or CPU tensors of any length of
            rows; they are unit-normalised here. Where ``D`` and ``E`` differ, pictures and captions share no space and
            are taken as orthogonal.
        method: ``"umap"`` or ``"pca"``.
        seed: draws the items and the layout; the same machine gives the same coordinates.
        max_points: most points per space, half of them pictures.
        n_neighbors: neighbourhood of the graphs and of the trustworthiness.
        caption_image: ``[C]`` image row of each caption; the first caption of each drawn picture is then drawn.
            Without it rows belong together if there are as many captions as pictures, else captions are drawn freely.

    Returns:
        The same items in every space, with trustworthiness (Venna and Kaski 2001, cosine).

    Raises:
        ValueError: unknown method; no space; spaces with other row counts; fewer than 5 pictures or captions; features
            that are not finite.
    """
    if method not in ("umap", "pca"):
        raise ValueError(f"unknown projection {method!r}: valid are umap, pca")
    arrays = {name: (np.asarray(image), np.asarray(text)) for name, (image, text) in spaces.items()}
    sizes = {name: (len(image), len(text)) for name, (image, text) in arrays.items()}
    counts = next(iter(sizes.values()), (0, 0))
    if len(set(sizes.values())) != 1 or min(*counts, max_points // 2) < 5:
        raise ValueError(f"every space needs the same pictures and captions, 5 or more of each; got rows {sizes}")
    images, texts = _draw_rows(*counts, max_points // 2, seed, caption_image)
    points = {name: _stack(name, image[images], text[texts]) for name, (image, text) in arrays.items()}
    k = min(n_neighbors, len(images) + len(texts) - 1)
    layout = _pca(points) if method == "pca" else _umap(points, seed, k)
    n, count = len(images), len(points)
    return Projection(
        coords={name: (xy[:n], xy[n:]) for name, xy in layout.items()},
        image_rows=images,
        text_rows=texts,
        trustworthiness={name: _trust(points[name], xy, n, n_neighbors) for name, xy in layout.items()},
        method=f"PCA: two components of each of {count} spaces, turned onto the first by orthogonal Procrustes"
        if method == "pca"
        else f"UMAP: one joint fit of {count} spaces, from which each moved to its own; {k} neighbours, seed {seed}",
    )


def cached_projection(root: Path, spaces: Mapping[str, tuple[Any, Any]], **options: Any) -> Projection:
    """:func:`project_spaces` through the cache of a run: a map is drawn once for its features and options.

    Args:
        root: of all runs.
        spaces: as for :func:`project_spaces`.
        options: its keyword arguments.
    """
    digest = hashlib.sha256(repr(sorted(options.items())).encode())
    for name, pair in spaces.items():
        digest.update(name.encode() + b"".join(np.ascontiguousarray(part).tobytes() for part in pair))

    def compute(folder: Path) -> None:
        found = project_spaces(spaces, **options)
        arrays = {"image_rows": found.image_rows, "text_rows": found.text_rows}
        for number, (image, text) in enumerate(found.coords.values()):
            arrays |= {f"{number}.image": image, f"{number}.text": text}
        np.savez(folder / "map.npz", **arrays)  # type: ignore[arg-type]
        write_json(folder / "map.json", {"trustworthiness": found.trustworthiness, "method": found.method})

    folder = cached(root, "projection", {"digest": digest.hexdigest()}, "rvlr_lib.figures.projection", compute)
    told = read_json(folder / "map.json")
    with np.load(folder / "map.npz", allow_pickle=False) as arrays:
        coords = {name: (arrays[f"{i}.image"], arrays[f"{i}.text"]) for i, name in enumerate(spaces)}
        return Projection(coords, arrays["image_rows"], arrays["text_rows"], told["trustworthiness"], told["method"])


def _draw_rows(
    images: int, texts: int, most: int, seed: int, caption_image: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.choice(images, min(images, most), replace=False))
    if caption_image is not None:
        owners, first = np.unique(caption_image, return_index=True)
        return rows, first[np.isin(owners, rows)]
    return rows, rows if texts == images else np.sort(rng.choice(texts, min(texts, most), replace=False))


def _stack(name: str, image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Unit rows of both modalities, one above the other; widths that differ get columns of their own."""
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        raise ValueError(f"features of {name!r} are not finite")
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True).clip(1e-12) for x in (image, text))
    if image.shape[1] != text.shape[1]:
        widths = image.shape[1], text.shape[1]
        image, text = np.pad(image, ((0, 0), (0, widths[1]))), np.pad(text, ((0, 0), (widths[0], 0)))
    return np.concatenate([image, text]).astype(np.float32)


def _scaled(xy: np.ndarray) -> np.ndarray:
    xy = xy - xy.mean(axis=0)
    return xy / max(float(np.sqrt((xy**2).mean())), 1e-12)


def _components(x: np.ndarray) -> np.ndarray:
    from sklearn.decomposition import PCA

    return _scaled(PCA(2, svd_solver="full").fit_transform(x.astype(np.float64)))


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

        def move(graph: Any, start: np.ndarray, rate: float, epochs: int) -> np.ndarray:
            return simplicial_set_embedding(
                start, graph.tocoo(), n_components=2, initial_alpha=rate, a=a, b=b, gamma=1.0, negative_sample_rate=5,
                n_epochs=epochs, init=start, random_state=np.random.RandomState(seed), metric="cosine",
                metric_kwds={}, densmap=False, densmap_kwds={}, output_dens=False, parallel=False,
            )[0]  # fmt: skip

        start = 5 * _components(np.concatenate(list(points.values()), axis=1))
        joint = move(sum(graphs) / len(graphs), start.astype(np.float32), 1.0, JOINT_EPOCHS)
        layouts = [move(graph, joint, OWN_RATE, OWN_EPOCHS) for graph in graphs]
    layouts = [xy - xy.mean(axis=0) for xy in layouts]
    return dict(zip(points, np.stack(layouts) / np.sqrt(np.mean(np.square(layouts))), strict=True))


def _trust(x: np.ndarray, xy: np.ndarray, images: int, n_neighbors: int) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    def part(rows: slice) -> float:
        k = min(n_neighbors, (len(x[rows]) - 1) // 2)
        return float(trustworthiness(x[rows], xy[rows], n_neighbors=k, metric="cosine"))

    return {"image": part(slice(images)), "text": part(slice(images, None)), "joint": part(slice(None))}
