"""Look at what is retrieved: the best items of each method for a query, as a figure or as a widget."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.figures.panels import Hit, Query, plot_retrieval_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rvlr_lib.data.dataset import ImageTextDataset

DIRECTIONS = {
    "i2t": "picture → captions",
    "t2i": "caption → pictures",
    "i2i": "picture → pictures",
    "t2t": "caption → captions",
    "i2it": "picture → pictures and captions",
    "t2it": "caption → pictures and captions",
}
TARGETS = {"it": "pictures and captions", "i": "pictures", "t": "captions"}
UNIMODAL = ("teacher", "teachers")
CONTROL = "26em"  # width of a menu with long words
Features = tuple[Any, Any]


def make_query(
    dataset: ImageTextDataset,
    methods: Mapping[str, Features],
    direction: str,
    row: int,
    *,
    k: int = 5,
    relevance: Any = None,
    unimodal: Collection[str] = UNIMODAL,
) -> Query:
    """The ``k`` best items of each method for one query, by cosine; the query itself is never among them.

    Args:
        dataset: one gallery, of the ``I`` pictures and ``C`` captions that the features are of.
        methods: name -> (image features ``[I, D]``, text features ``[C, D]``), arrays or CPU tensors.
        direction: ``i2t``, ``t2i``, ``i2i`` or ``t2t``; ``i2it`` and ``t2it`` for both kinds in one list.
        row: of the query, among the pictures or the captions.
        k: how many.
        relevance: a ``Relevance`` of the evaluation or a scene's truth. Across modalities an item is right if it
            belongs to the query. Within one it is right if it is among the ``k`` most relevant (of them, only what is
            relevant at all); without relevance captions of the same picture are right, and of pictures nobody can say.
        unimodal: methods without a common space, left out wherever another modality is looked for.

    Raises:
        ValueError: unknown direction; a row that is not there; features of other counts; no method for the direction.
    """
    if direction not in DIRECTIONS:
        raise ValueError(f"unknown direction {direction!r}: valid are {', '.join(DIRECTIONS)}")
    counts = {"i": len(dataset), "t": len(dataset.captions)}
    source, targets = direction[0], direction[2:]
    if not 0 <= row < counts[source]:
        raise ValueError(f"row {row} of {direction} is not there: rows are 0 to {counts[source] - 1}")
    chosen = {name: pair for name, pair in methods.items() if source == targets or name.lower() not in unimodal}
    if not chosen:
        raise ValueError(f"none of {', '.join(methods) or 'no methods'} has a common space, which {direction} needs")
    grades, right = {}, {}
    for target in targets:
        way = f"{source}2{target}"
        grades[target] = _grades(dataset, way, row, relevance)
        right[target] = _right(dataset, way, row, grades[target], k)
    results = {}
    for name, pair in chosen.items():
        features = _features(dataset, name, pair)
        best = _best(features, features[source][row], targets, k, without=(source, row))
        results[name] = [_hit(dataset, kind, i, right[kind], grades[kind]) for kind, i in best]
    return Query(_item(dataset, source, row), results, _name(dataset, source, row))


def typed_query(
    dataset: ImageTextDataset,
    methods: Mapping[str, Features],
    encoders: Mapping[str, Callable[[Any], Any]],
    item: Any,
    *,
    targets: str = "it",
    k: int = 5,
) -> Query:
    """The ``k`` best items of each method for words or a picture of one's own, by cosine.

    Nobody can say what is right, so nothing is marked.

    Args:
        dataset: the gallery, as for :func:`make_query`.
        methods: name -> features of the gallery.
        encoders: name -> a function from words or a picture to a feature ``[D]``
            (:func:`rvlr_lib.study.queries.query_encoder`); a method without one is left out.
        item: words, or a picture (PIL).
        targets: ``i`` for pictures, ``t`` for captions, ``it`` for both in one list.
        k: how many.

    Raises:
        ValueError: no words, unknown targets, or no method with an encoder.
    """
    if isinstance(item, str) and not item.strip():
        raise ValueError("the query is empty: type some words, or choose a picture")
    if targets not in TARGETS:
        raise ValueError(f"unknown targets {targets!r}: valid are {', '.join(TARGETS)}")
    chosen = {name: pair for name, pair in methods.items() if name in encoders}
    if not chosen:
        raise ValueError(f"none of {', '.join(methods) or 'no methods'} has an encoder for a query of one's own")
    results = {}
    for name, pair in chosen.items():
        features = _features(dataset, name, pair)
        vector = _unit(np.asarray(encoders[name](item)).reshape(1, -1))[0]
        results[name] = [_hit(dataset, kind, i, None, None) for kind, i in _best(features, vector, targets, k)]
    return Query(item, results, item if isinstance(item, str) else "own picture")


def worst_rows(dataset: ImageTextDataset, features: Features, direction: str, count: int = 3) -> list[int]:
    """The queries of ``i2t`` or ``t2i`` whose own item ranks last: for a gallery of failures."""
    if direction not in ("i2t", "t2i"):
        raise ValueError(f"failures are known for i2t and t2i, not for {direction!r}")
    images, texts = map(_unit, features)
    owner = np.asarray(dataset.caption_image)
    own = owner[None, :] == np.arange(len(images))[:, None]
    scores = images @ texts.T
    if direction == "t2i":
        scores, own = scores.T, own.T
    best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
    return [int(row) for row in np.argsort(-(scores > best).sum(axis=1), kind="stable")[:count]]


def query_browser(
    dataset: ImageTextDataset,
    methods: Mapping[str, Features],
    *,
    direction: str = "t2i",
    rows: Sequence[int] = (0,),
    k: int = 5,
    relevance: Any = None,
    unimodal: Collection[str] = UNIMODAL,
    encoders: Mapping[str, Callable[[Any], Any]] | None = None,
    interactive: bool | None = None,
) -> Any:
    """Choose a query, type one or bring a picture, and see the best items of every method; else the static figure.

    Args:
        dataset: as for :func:`make_query`, like the arguments not named here.
        methods: name -> features.
        direction: to begin with.
        rows: queries of the static figure; the widget begins with the first.
        k: how many items.
        relevance: graded relevance.
        unimodal: methods without a common space.
        encoders: as for :func:`typed_query`; without them queries are those of the data set.
        interactive: a widget (True) or a figure (False). None: a widget in a notebook that a Jupyter server opened,
            else a figure; ``RVLR_HEADLESS`` in the environment means a figure.

    Returns:
        An ipywidgets box, or a Figure.
    """

    def known(direction: str, *rows: int) -> Figure:
        queries = [make_query(dataset, methods, direction, row, k=k, relevance=relevance, unimodal=unimodal)
                   for row in rows]  # fmt: skip
        return plot_retrieval_panel(queries)

    if not _has_reader(interactive):
        return known(direction, *rows)

    import ipywidgets as widgets

    counts = {"i": len(dataset), "t": len(dataset.captions)}
    which = widgets.Dropdown(options=[(text, key) for key, text in DIRECTIONS.items()], value=direction,
                             description="direction", layout=widgets.Layout(width=CONTROL))  # fmt: skip
    query = widgets.IntSlider(rows[0], 0, counts[direction[0]] - 1, description="query", continuous_update=False)
    picture = widgets.Image(format="png", layout=widgets.Layout(max_width="1000px"))
    said = widgets.HTML()

    def show(figure: Figure) -> None:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=140)
        picture.value, said.value = buffer.getvalue(), ""

    def choose(_: Any = None) -> None:
        query.max = counts[which.value[0]] - 1  # a value beyond it falls back to it
        show(known(which.value, query.value))

    for control in (which, query):
        control.observe(choose, names="value")
    choose()
    rows_of_controls = [widgets.HBox([which, query])]
    if encoders:
        rows_of_controls.append(_own_query(dataset, methods, encoders, k, show, said))
    return widgets.VBox([*rows_of_controls, said, picture] if encoders else [*rows_of_controls, picture])


def play(draw: Callable[..., Figure], *, interactive: bool | None = None, **choices: Sequence[Any]) -> Any:
    """A figure with a menu for each of its settings; without a reader, the figure of the first choices.

    Args:
        draw: takes one value of each choice by name and returns a figure.
        interactive: as for :func:`query_browser`.
        choices: name -> what may be chosen, the first to begin with.

    Raises:
        ValueError: a menu without choices.
    """
    empty = [name for name, values in choices.items() if not values]
    if empty:
        raise ValueError(f"there is nothing to choose for {', '.join(empty)}")
    if not _has_reader(interactive):
        return draw(**{name: values[0] for name, values in choices.items()})
    import ipywidgets as widgets

    menus = {name: widgets.Dropdown(options=list(values), description=name.replace("_", " "),
                                     style={"description_width": "initial"})
             for name, values in choices.items()}  # fmt: skip
    picture = widgets.Image(format="png", layout=widgets.Layout(max_width="1000px"))

    def show(_: Any = None) -> None:
        buffer = io.BytesIO()
        draw(**{name: menu.value for name, menu in menus.items()}).savefig(buffer, format="png", dpi=140)
        picture.value = buffer.getvalue()

    for menu in menus.values():
        menu.observe(show, names="value")
    show()
    return widgets.VBox([widgets.HBox(list(menus.values())), picture])


def dial_examples(pictures: ImageTextDataset, name: str, dial: Any, count: int = 5) -> list[tuple[Any, str]]:
    """The first pictures of a data set at a dial point, each with its first caption.

    Args:
        pictures: its test pictures, nothing taken.
        name: of the data set, from which scenes are drawn anew, so that their truth is kept.
        dial: a :class:`rvlr_lib.data.ImbalanceSpec`.
        count: how many.
    """
    from rvlr_lib.data import impose, load_dataset

    if pictures.scene is None:
        part = impose(pictures.subset(range(count)), dial)
    else:
        part = load_dataset(name, split="test", imbalance=dial).subset(range(count))
    return [(part.image(row), part.captions[part.captions_of(row)[0]]) for row in range(count)]


def _has_reader(interactive: bool | None) -> bool:
    if interactive is None:
        return "JPY_SESSION_NAME" in os.environ and "RVLR_HEADLESS" not in os.environ
    return interactive


def _own_query(
    dataset: ImageTextDataset,
    methods: Mapping[str, Features],
    encoders: Mapping[str, Callable[[Any], Any]],
    k: int,
    show: Callable[[Figure], None],
    said: Any,
) -> Any:
    """The controls of a query of one's own: words, a picture, and what to look for."""
    import ipywidgets as widgets
    from PIL import Image, UnidentifiedImageError

    words = widgets.Text(description="or type", placeholder="words, then Enter", continuous_update=False,
                         layout=widgets.Layout(width=CONTROL))  # fmt: skip
    own = widgets.FileUpload(accept="image/*", multiple=False, description="own picture")
    wanted = widgets.Dropdown(options=[(text, key) for key, text in TARGETS.items()], value="it", description="find")
    asked: list[Any] = []

    def ask(item: Any) -> None:
        asked[:] = [item]
        try:
            show(plot_retrieval_panel([typed_query(dataset, methods, encoders, item, targets=wanted.value, k=k)]))
        except ValueError as error:
            said.value = escape(str(error))

    def bring(change: Any) -> None:
        for file in change["new"]:
            try:
                ask(Image.open(io.BytesIO(file["content"])).convert("RGB"))
            except (UnidentifiedImageError, OSError):
                said.value = f"{escape(file['name'])} is no picture that can be read: bring a PNG or JPEG"

    words.observe(lambda change: ask(change["new"]), names="value")
    own.observe(bring, names="value")
    wanted.observe(lambda _: ask(asked[0]) if asked else None, names="value")
    return widgets.HBox([words, own, wanted])


def _features(dataset: ImageTextDataset, name: str, pair: Features) -> dict[str, np.ndarray]:
    """Unit rows of the pictures (``i``) and the captions (``t``), as many as the data set has."""
    counts = {"i": len(dataset), "t": len(dataset.captions)}
    features = {key: _unit(values) for key, values in zip("it", pair, strict=True)}
    if {key: len(values) for key, values in features.items()} != counts:
        raise ValueError(f"{name} has features of {[len(x) for x in features.values()]} pictures and captions, the "
                         f"data set {list(counts.values())}")  # fmt: skip
    return features


def _best(
    features: Mapping[str, np.ndarray], vector: np.ndarray, targets: str, k: int, without: tuple[str, int] | None = None
) -> list[tuple[str, int]]:
    """Kind and row of the items with the greatest cosine, of all target kinds in one list."""
    found = [(kind, row) for kind in targets for row in range(len(features[kind]))]
    scores = np.concatenate([features[kind] @ vector for kind in targets])
    if without in found:
        scores[found.index(without)] = -np.inf
    order = np.argsort(-scores, kind="stable")[: min(k, int(np.isfinite(scores).sum()))]
    return [found[i] for i in order]


def _hit(dataset: ImageTextDataset, kind: str, row: int, right: np.ndarray | None, grades: np.ndarray | None) -> Hit:
    return Hit(
        _item(dataset, kind, row),
        _name(dataset, kind, row),
        None if right is None else bool(right[row]),
        None if grades is None else float(grades[row]),
    )


def _unit(features: Any) -> np.ndarray:
    array = np.asarray(features, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True).clip(1e-12)


def _item(dataset: ImageTextDataset, kind: str, row: int) -> Any:
    return dataset.image(int(row)) if kind == "i" else dataset.captions[row]


def _name(dataset: ImageTextDataset, kind: str, row: int) -> str:
    return dataset.image_ids[row] if kind == "i" else dataset.captions[row]


def _grades(dataset: ImageTextDataset, direction: str, row: int, relevance: Any) -> np.ndarray | None:
    """Relevance of every candidate, derived where it is not known as the corrected protocol derives it."""
    if relevance is None:
        return None
    across, owner = np.asarray(relevance.caption_to_image), np.asarray(dataset.caption_image)
    if direction == "i2t":
        return across[:, row]
    if direction == "t2i":
        return across[row]
    if direction == "t2t":
        return across[:, owner[row]] if relevance.text_to_text is None else np.asarray(relevance.text_to_text)[row]
    if relevance.image_to_image is not None:
        return np.asarray(relevance.image_to_image)[row]
    to, back = across[owner == row].mean(axis=0), np.bincount(owner, across[:, row]) / np.bincount(owner)
    return (to + back) / 2


def _right(dataset: ImageTextDataset, direction: str, row: int, grades: np.ndarray | None, k: int) -> np.ndarray | None:
    owner = np.asarray(dataset.caption_image)
    if direction == "i2t":
        return owner == row
    if direction == "t2i":
        return np.arange(len(dataset)) == owner[row]
    if grades is None:
        return owner == owner[row] if direction == "t2t" else None
    others = np.delete(grades, row)
    least = np.sort(others)[-min(k, len(others))]
    return (grades >= least) & (grades > 0)
