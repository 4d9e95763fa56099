"""Inspect retrieval results: queries for the picture panels, and a widget to choose or type them."""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image

from rvlr_lib.data import clean_caption, mentioned_share, shown_share
from rvlr_lib.data.dataset import ImageTextDataset as Dataset
from rvlr_lib.data.pictures import READABLE
from rvlr_lib.figures.panels import Hit, Query, plot_retrieval_panel
from rvlr_lib.figures.projection import Spaces, unit

TARGETS = {"i": "pictures", "t": "captions", "it": "both"}
DIRECTIONS = {"i2t": "picture → captions", "t2i": "caption → pictures", "i2i": "picture → pictures"}
DIRECTIONS |= {"t2t": "caption → captions", "i2it": "picture → both", "t2it": "caption → both"}
SHOW = {"manual": False, "auto_display": True}  # makes ``interactive`` display the figure that its function returns
Features = tuple[Any, Any]  # pictures [I, D], captions [C, D]
Encoders = Mapping[str, Callable]  # method -> function from a text or a picture to a feature [D]


def make_query(
    dataset: Dataset, methods: Spaces, direction: str, row: int, *, relevance: Any, k: int = 5, title: str = ""
) -> Query:
    """Retrieve the ``k`` best items of each method for one query, by cosine, without the query itself.

    Across modalities an item is right if it matches the query, within one if it is among the ``k`` most relevant.

    Args:
        dataset: one gallery, with the ``I`` pictures and ``C`` captions of the features.
        methods: name -> (image features ``[I, D]``, text features ``[C, D]``).
        direction, row: a key of ``DIRECTIONS``, and the query's row among the pictures or the captions.
        relevance: graded ``caption_to_image [C, I]``; ``image_to_image [I, I]``, ``text_to_text [C, C]`` may be None.
    """
    source, targets = direction[0], direction[2:]
    grades = {kind: _grades(dataset, relevance, source, kind, row) for kind in targets}
    match_kind, match_rows = ("t", dataset.captions_of(row)) if source == "i" else ("i", dataset.caption_image[[row]])
    matches = {(match_kind, int(i)) for i in match_rows}
    right, results, ranks = matches, {}, {}
    if source in targets:
        threshold = np.sort(np.delete(grades[source], row))[-k:][0]  # ties with the k-th are right too
        relevant = np.flatnonzero((grades[source] >= threshold) & (grades[source] > 0))
        right = matches | {(source, i) for i in relevant.tolist()}
    for name, pair in methods.items():
        features = _features(pair)
        ranked = [item for item in _ranked(features, features[source][row], targets) if item != (source, row)]
        results[name] = [_hit(dataset, *item, item in right, float(grades[item[0]][item[1]])) for item in ranked[:k]]
        if source != targets:
            ranks[name] = next(rank for rank, item in enumerate(ranked, start=1) if item in matches)
    query, truth = _hit(dataset, source, row), _hit(dataset, match_kind, int(match_rows[0])).item
    return Query(query.item, results, query.name, truth if source != targets else None, ranks, title)


def typed_query(
    dataset: Dataset, methods: Spaces, encoders: Encoders, item: Any, *, targets: str = "i", k: int = 5
) -> Query:
    """Retrieve the ``k`` best items for a text or PIL picture; the title names words that are in no caption.

    ``encoders`` has one for each method; ``targets`` is a key of ``TARGETS``, where ``it`` ranks both in one list.
    """
    words = item if isinstance(item, str) else ""
    results = {}
    for name, pair in methods.items():
        features = _features(pair)
        vector = unit(np.asarray(encoders[name](item), np.float32).reshape(1, -1))[0]
        results[name] = [_hit(dataset, kind, row) for kind, row in _ranked(features, vector, targets)[:k]]
    unknown = sorted(set(clean_caption(words).split()) - set(" ".join(dataset.captions).split()))
    note = f"in no caption: {', '.join(unknown)}; unreliable results" if unknown else ""
    return Query(item, results, words or "uploaded picture", title=note)


def example_rows(dataset: Dataset, features: Features, direction: str = "t2i", k: int = 5) -> dict[str, int]:
    """Return query rows of a hit (rank 1), a near miss (smallest rank from 2 to ``k``) and a failure (largest rank)."""
    pair, matches = _features(features), dataset.caption_image[:, None] == np.arange(len(dataset))
    matches, scores = matches.T if direction == "i2t" else matches, pair[direction[0]] @ pair[direction[2]].T
    ranks = 1 + (scores > np.where(matches, scores, -np.inf).max(axis=1, keepdims=True)).sum(axis=1)
    kinds = {"a hit": (ranks == 1, -ranks), "a near miss": ((ranks > 1) & (ranks <= k), -ranks)}
    kinds["a failure"] = (ranks > k, ranks)
    return {name: int(np.where(fits, order, -np.inf).argmax()) for name, (fits, order) in kinds.items() if fits.any()}


def neighbour_query(dataset: Dataset, spaces: Mapping[str, Any], row: int, *, k: int = 5) -> Query:
    """Find a picture's ``k`` neighbours in each space; in later spaces those of the first space count as right."""
    reference, results = list[int](), dict[str, list[Hit]]()
    for name, features in spaces.items():
        neighbours = _neighbours(features, row, k)
        results[name] = [_hit(dataset, "i", i, i in reference if results else None) for i in neighbours]
        reference = reference or neighbours
    return Query(dataset.image(row), results, dataset.image_ids[row], kind="item")


def dial_query(
    title: str, dataset: Dataset, spaces: Mapping[str, Any], truth: Any, row: int, *, undegraded: Dataset, k: int = 5
) -> Query:
    """Find the ``k`` neighbours of the picture ``row`` at one dial setting, by truth and in each space.

    ``dataset`` is degraded by the dial, ``undegraded`` is not; ``spaces``: name -> image features ``[I, D]``. A
    neighbour is right if it is as similar as the ``k``-th true neighbour by ``truth``, the similarities ``[I, I]``.
    """
    similarity = np.array(truth[row], dtype=np.float64)
    similarity[row] = -np.inf
    nearest = np.argsort(-similarity, kind="stable")[:k]
    right = similarity >= similarity[nearest[-1]] - 1e-6
    results = {"truth": [_hit(undegraded, "i", int(i)) for i in nearest]}
    for name, features in spaces.items():
        results[name] = [_hit(undegraded, "i", i, bool(right[i])) for i in _neighbours(features, row, k)]
    item = dataset.subset([row])
    shares = {"picture": shown_share(item), "caption": mentioned_share(item)}
    return Query(item.image(0), results, item.image_ids[0], item.captions[0], title=title, shares=shares)


def query_browser(
    dataset: Dataset, methods: Spaces, encoders: Encoders, *, relevance: Any, row: int = 0, k: int = 5
) -> widgets.interactive:
    """Widget to choose a query (initially caption ``row``), type one or upload a picture; shows each method's results.

    Arguments are those of :func:`make_query` and :func:`typed_query`.
    """
    counts = {"i": len(dataset), "t": len(dataset.captions)}
    wide = widgets.Layout(width="44em")
    which = widgets.Dropdown(options=[(text, key) for key, text in DIRECTIONS.items()], value="t2i")
    query = widgets.IntSlider(row, 0, counts["t"] - 1, continuous_update=False, layout=wide)
    words = widgets.Text(placeholder="type a query and press Enter", continuous_update=False, layout=wide)
    picture = widgets.FileUpload(accept="image/*", multiple=False, description="upload picture")
    find = widgets.Dropdown(options=[(text, key) for key, text in TARGETS.items()])

    def reset(change: Any) -> None:  # before ``draw``: keep the row in range, clear words and picture
        last = counts[which.value[0]] - 1
        query.value, query.max = min(query.value, last), last
        words.value, picture.value = "", ()

    def draw(direction: str, query: int, words: str, picture: Sequence[Any], find: str) -> Any:
        try:
            if words.strip() or picture:
                item = words if words.strip() else _read_upload(picture[0])
                result = typed_query(dataset, methods, encoders, item, targets=find, k=k)
            else:
                result = make_query(dataset, methods, direction, query, relevance=relevance, k=k)
        except ValueError as error:
            return widgets.HTML(escape(str(error)))
        return plot_retrieval_panel([result])

    which.observe(reset, names="value")
    query.observe(reset, names="value")
    return widgets.interactive(draw, SHOW, direction=which, query=query, words=words, picture=picture, find=find)


def has_reader() -> bool:
    """Whether to show widgets: in a notebook on a Jupyter server, unless ``RVLR_HEADLESS`` is set."""
    return "JPY_SESSION_NAME" in os.environ and "RVLR_HEADLESS" not in os.environ


def _read_upload(file: Mapping[str, Any]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file["content"]), formats=READABLE).convert("RGB")
    except Exception as error:  # decoders raise all kinds of errors for damaged files
        raise ValueError(f"{file['name']} is not a readable picture: upload a PNG or JPEG") from error


def _features(pair: Features) -> dict[str, np.ndarray]:
    """Unit rows of the pictures (``i``) and captions (``t``)."""
    return {kind: unit(np.asarray(values, np.float32)) for kind, values in zip("it", pair, strict=True)}


def _ranked(features: Mapping[str, Any], vector: np.ndarray, targets: Iterable[str]) -> list[tuple[str, int]]:
    """Kind and row of every item by descending cosine, all target kinds in one list."""
    items = [(kind, row) for kind in targets for row in range(len(features[kind]))]
    return [items[i] for i in np.argsort(-np.concatenate([features[kind] @ vector for kind in targets]), kind="stable")]


def _neighbours(features: Any, row: int, k: int) -> list[int]:
    rows = unit(np.asarray(features, np.float32))
    return [i for _, i in _ranked({"i": rows}, rows[row], "i") if i != row][:k]


def _hit(dataset: Dataset, kind: str, row: int, hit: bool | None = None, relevance: float | None = None) -> Hit:
    item = dataset.image(row) if kind == "i" else dataset.captions[row]
    return Hit(item, dataset.image_ids[row] if kind == "i" else dataset.captions[row], hit, relevance)


def _grades(dataset: Dataset, relevance: Any, source: str, kind: str, row: int) -> np.ndarray:
    """Relevance of every item of a kind; within a modality, if missing, derived as in the corrected protocol."""
    owner, grades = dataset.caption_image, np.asarray(relevance.caption_to_image)  # [C], [C, I]
    if source != kind:
        return grades[row] if source == "t" else grades[:, row]
    within = relevance.image_to_image if kind == "i" else relevance.text_to_text
    if within is not None:
        return np.asarray(within)[row]
    if kind == "t":
        return grades[:, owner[row]]
    return (grades[owner == row].mean(axis=0) + np.bincount(owner, grades[:, row]) / np.bincount(owner)) / 2
