"""Look at what is retrieved: queries for the picture panels, and a widget to choose or type them."""

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from typing import Any

import ipywidgets as widgets
import numpy as np
from PIL import Image

from rvlr_lib.data import clean_caption, shown_share, told_share
from rvlr_lib.data.dataset import ImageTextDataset as Dataset
from rvlr_lib.data.pictures import FORMATS
from rvlr_lib.figures.panels import Hit, Query, plot_retrieval_panel
from rvlr_lib.figures.projection import Spaces, unit

TARGETS = {"i": "pictures", "t": "captions", "it": "both"}
DIRECTIONS = {"i2t": "picture → captions", "t2i": "caption → pictures", "i2i": "picture → pictures"}
DIRECTIONS |= {"t2t": "caption → captions", "i2it": "picture → both", "t2it": "caption → both"}
UNIMODAL = ("teacher", "teachers")  # spaces of one modality each
SHOW = {"manual": False, "auto_display": True}  # an interactive shows the figure that its function returns
Features = tuple[Any, Any]  # of pictures [I, D] and captions [C, D]
Encoders = Mapping[str, Callable]  # of words or a picture, to a feature [D]


def make_query(
    dataset: Dataset, methods: Spaces, direction: str, row: int, *, relevance: Any, k: int = 5, title: str = ""
) -> Query:
    """The ``k`` best items of each method for one query, by cosine; the query itself is never among them.

    Across modalities an item is right if it belongs to the query, within one if it is among the ``k`` most relevant.

    Args:
        dataset: one gallery, of the ``I`` pictures and ``C`` captions that the features are of.
        methods: name -> (image features ``[I, D]``, text features ``[C, D]``); ``teachers`` have no common space.
        direction, row: a key of ``DIRECTIONS``, and the query's row among the pictures or the captions.
        relevance: graded: ``caption_to_image [C, I]``, perhaps ``image_to_image [I, I]``, ``text_to_text [C, C]``.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}: valid are {', '.join(DIRECTIONS)}")
    source, targets = direction[0], direction[2:]
    count = len(dataset) if source == "i" else len(dataset.captions)
    if not 0 <= row < count:
        raise ValueError(f"row {row} of {direction} is not there: rows are 0 to {count - 1}")
    chosen = {name: pair for name, pair in methods.items() if source == targets or name.lower() not in UNIMODAL}
    if not chosen:
        raise ValueError(f"none of {', '.join(methods) or 'no methods'} has a common space, which {direction} needs")
    grades = {kind: _grades(dataset, relevance, source, kind, row) for kind in targets}
    other, belongs = ("t", dataset.captions_of(row)) if source == "i" else ("i", dataset.caption_image[[row]])
    own = {(other, int(item)) for item in belongs}
    right, results, ranks = own, {}, {}
    if source in targets:
        least = np.sort(np.delete(grades[source], row))[-k:][0]  # of the k most relevant, and those as relevant
        near = np.flatnonzero((grades[source] >= least) & (grades[source] > 0))
        right = own | {(source, i) for i in near.tolist()}
    for name, pair in chosen.items():
        features = _features(dataset, name, pair)
        ranked = [item for item in _ranked(features, features[source][row], targets) if item != (source, row)]
        results[name] = [_hit(dataset, *item, item in right, float(grades[item[0]][item[1]])) for item in ranked[:k]]
        if source != targets:
            ranks[name] = 1 + next(place for place, item in enumerate(ranked) if item in own)
    query, truth = _hit(dataset, source, row), _hit(dataset, other, int(belongs[0])).item
    return Query(query.item, results, query.name, truth if source != targets else None, ranks, title)


def typed_query(
    dataset: Dataset, methods: Spaces, encoders: Encoders, item: Any, *, targets: str = "i", k: int = 5
) -> Query:
    """The ``k`` best items for words or a picture (PIL) of one's own; words unlike anything in the captions are told.

    Methods without an encoder are left out; ``targets`` is a key of ``TARGETS``, of which ``it`` makes one list.
    """
    words = item if isinstance(item, str) else ""
    if item == words and not words.strip():
        raise ValueError("the query is empty: type some words, or choose a picture")
    if targets not in TARGETS:
        raise ValueError(f"unknown targets {targets!r}: valid are {', '.join(TARGETS)}")
    if not methods.keys() & encoders.keys():
        raise ValueError(f"none of {', '.join(methods) or 'no methods'} has an encoder for a query of one's own")
    results, strange = {}, False
    for name in (name for name in methods if name in encoders):
        features = _features(dataset, name, methods[name])
        vector = unit(np.asarray(encoders[name](item), np.float32).reshape(1, -1))[0]
        results[name] = [_hit(dataset, *found) for found in _ranked(features, vector, targets)[:k]]
        sample = features["t"][:: max(1, len(features["t"]) // 500)]
        nearest = (sample @ sample.T - 2 * np.eye(len(sample))).max(axis=1)
        strange |= bool(words) and (features["t"] @ vector).max() < np.quantile(nearest, 0.01)
    unknown = sorted(set(clean_caption(words).split()) - set(" ".join(dataset.captions).split()))
    notes = [f"in no caption here: {', '.join(unknown)}"] if unknown else []
    notes += ["unlike any caption here: do not trust the list"] if strange else []
    return Query(item, results, words or "own picture", title="; ".join(notes))


def example_rows(dataset: Dataset, features: Features, direction: str = "t2i", k: int = 5) -> dict[str, int]:
    """Rows of a hit (rank 1), a near miss (just behind the first) and a failure (the worst rank), i2t or t2i."""
    if direction not in ("i2t", "t2i"):
        raise ValueError(f"hits and failures are known for i2t and t2i, not for {direction!r}")
    pair, own = _features(dataset, "these", features), dataset.caption_image[:, None] == np.arange(len(dataset))
    scores, own = pair[direction[0]] @ pair[direction[2]].T, own.T if direction == "i2t" else own
    ranks = 1 + (scores > np.where(own, scores, -np.inf).max(axis=1, keepdims=True)).sum(axis=1)
    wanted = {"a hit": (ranks == 1, -ranks), "a near miss": ((ranks > 1) & (ranks <= k), -ranks)}
    wanted["a failure"] = (ranks > k, ranks)
    return {name: int(np.where(fits, good, -np.inf).argmax()) for name, (fits, good) in wanted.items() if fits.any()}


def neighbour_query(dataset: Dataset, spaces: Mapping[str, Any], row: int, *, k: int = 5) -> Query:
    """A picture with its ``k`` neighbours in each space; those of the first space count as right in the others."""
    first, results = list[int](), dict[str, list[Hit]]()
    for name, features in spaces.items():
        rows = _neighbours(features, row, k)
        results[name] = [_hit(dataset, "i", i, i in first if results else None) for i in rows]
        first = first or rows
    return Query(dataset.image(row), results, dataset.image_ids[row], kind="item")


def dial_query(
    title: str, dataset: Dataset, spaces: Mapping[str, Any], truth: Any, row: int, *, whole: Dataset, k: int = 5
) -> Query:
    """One picture (``row``) at one dial setting, with its ``k`` neighbours by truth and in each space.

    ``dataset`` is as the dial leaves it, ``whole`` with nothing taken; ``spaces``: name -> image features ``[I, D]``.
    By ``truth``, similarities ``[I, I]``, a neighbour is kept if it is as similar as the ``k``-th true one.
    """
    similar = np.array(truth[row], dtype=np.float64)
    similar[row] = -np.inf
    nearest = np.argsort(-similar, kind="stable")[:k]
    kept = similar >= similar[nearest[-1]] - 1e-6
    rows = {"truth": [_hit(whole, "i", int(i)) for i in nearest]}
    for name, features in spaces.items():
        rows[name] = [_hit(whole, "i", i, bool(kept[i])) for i in _neighbours(features, row, k)]
    one = dataset.subset([row])
    shares = {"picture": shown_share(one), "caption": told_share(one)}
    return Query(one.image(0), rows, one.image_ids[0], one.captions[0], title=title, shares=shares)


def query_browser(
    dataset: Dataset, methods: Spaces, encoders: Encoders, *, relevance: Any, row: int = 0, k: int = 5
) -> widgets.interactive:
    """Choose a query (at first the caption ``row``), type one or bring a picture, and see the best of every method.

    Arguments are those of :func:`make_query` and :func:`typed_query`.
    """
    counts = {"i": len(dataset), "t": len(dataset.captions)}
    wide = widgets.Layout(width="44em")
    which = widgets.Dropdown(options=[(text, key) for key, text in DIRECTIONS.items()], value="t2i")
    query = widgets.IntSlider(row, 0, counts["t"] - 1, continuous_update=False, layout=wide)
    words = widgets.Text(placeholder="words of your own, then Enter", continuous_update=False, layout=wide)
    picture = widgets.FileUpload(accept="image/*", multiple=False, description="own picture")
    find = widgets.Dropdown(options=[(text, key) for key, text in TARGETS.items()])

    def changed(change: Any) -> None:  # before anything is drawn: every query within reach, no words left over
        last = counts[which.value[0]] - 1
        query.value, query.max = min(query.value, last), last
        words.value, picture.value = "", ()

    def draw(direction: str, query: int, words: str, picture: Sequence[Any], find: str) -> Any:
        try:
            if words.strip() or picture:
                item = words if words.strip() else _opened(picture[0])
                asked = typed_query(dataset, methods, encoders, item, targets=find, k=k)
            else:
                asked = make_query(dataset, methods, direction, query, relevance=relevance, k=k)
        except ValueError as error:
            return widgets.HTML(escape(str(error)))
        return plot_retrieval_panel([asked])

    which.observe(changed, names="value")
    query.observe(changed, names="value")
    return widgets.interactive(draw, SHOW, direction=which, query=query, words=words, picture=picture, find=find)


def has_reader() -> bool:
    """Whether widgets are wanted: in a notebook of a Jupyter server unless ``RVLR_HEADLESS`` is set."""
    return "JPY_SESSION_NAME" in os.environ and "RVLR_HEADLESS" not in os.environ


def _opened(file: Mapping[str, Any]) -> Image.Image:
    try:
        return Image.open(io.BytesIO(file["content"]), formats=FORMATS).convert("RGB")
    except Exception as error:  # decoders of damaged files raise whatever they please
        raise ValueError(f"{file['name']} is no picture that can be read: bring a PNG or JPEG") from error


def _features(dataset: Dataset, name: str, pair: Features) -> dict[str, np.ndarray]:
    """Unit rows of the pictures (``i``) and the captions (``t``), as many as the data set has."""
    features = {key: unit(np.asarray(values, np.float32)) for key, values in zip("it", pair, strict=True)}
    counts, found = [len(dataset), len(dataset.captions)], [len(rows) for rows in features.values()]
    if found != counts:
        raise ValueError(f"{name} has features of {found} pictures and captions, the data set {counts}")
    return features


def _ranked(features: Mapping[str, Any], vector: np.ndarray, targets: Iterable[str]) -> list[tuple[str, int]]:
    """Kind and row of every item by falling cosine, all target kinds in one list."""
    items = [(kind, row) for kind in targets for row in range(len(features[kind]))]
    return [items[i] for i in np.argsort(-np.concatenate([features[kind] @ vector for kind in targets]), kind="stable")]


def _neighbours(features: Any, row: int, k: int) -> list[int]:
    rows = unit(np.asarray(features, np.float32))
    return [i for _, i in _ranked({"i": rows}, rows[row], "i") if i != row][:k]


def _hit(dataset: Dataset, kind: str, row: int, hit: bool | None = None, relevance: float | None = None) -> Hit:
    item = dataset.image(row) if kind == "i" else dataset.captions[row]
    return Hit(item, dataset.image_ids[row] if kind == "i" else dataset.captions[row], hit, relevance)


def _grades(dataset: Dataset, relevance: Any, source: str, kind: str, row: int) -> np.ndarray:
    """Relevance of every item of a kind, within a modality derived where unknown as the corrected protocol does."""
    owner, known = dataset.caption_image, np.asarray(relevance.caption_to_image)  # [C], [C, I]
    if source != kind:
        return known[row] if source == "t" else known[:, row]
    square = relevance.image_to_image if kind == "i" else relevance.text_to_text
    if square is not None:
        return np.asarray(square)[row]
    if kind == "t":
        return known[:, owner[row]]
    return (known[owner == row].mean(axis=0) + np.bincount(owner, known[:, row]) / np.bincount(owner)) / 2
