"""Look at what is retrieved: queries for the picture panels, and a widget to choose or type them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.figures.panels import DialColumn, Hit, Query, plot_retrieval_panel

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from rvlr_lib.data.dataset import ImageTextDataset as Dataset

DIRECTIONS = {
    "i2t": "picture → captions",
    "t2i": "caption → pictures",
    "i2i": "picture → pictures",
    "t2t": "caption → captions",
    "i2it": "picture → both",
    "t2it": "caption → both",
}
TARGETS = {"i": "pictures", "t": "captions", "it": "both"}
UNIMODAL = ("teacher", "teachers")  # spaces of one modality each
Features = tuple[Any, Any]  # of pictures [I, D] and captions [C, D]
Methods = Mapping[str, Features]
Encoders = Mapping[str, Callable[[Any], Any]]  # from words or a picture to a feature [D]


def make_query(
    dataset: Dataset, methods: Methods, direction: str, row: int, *, k: int = 5, relevance: Any = None, title: str = ""
) -> Query:
    """The ``k`` best items of each method for one query, by cosine; the query itself is never among them.

    Args:
        dataset: one gallery, of the ``I`` pictures and ``C`` captions that the features are of.
        methods: name -> (image features ``[I, D]``, text features ``[C, D]``); ``teachers`` have no common space and are
            left out across modalities.
        direction: ``i2t``, ``t2i``, ``i2i`` or ``t2t``; ``i2it`` and ``t2it`` for both kinds in one list.
        row: of the query, among the pictures or the captions.
        k: how many.
        relevance: graded: ``caption_to_image [C, I]``, perhaps ``image_to_image``, ``text_to_text``. Across modalities
            an item is right if it belongs to the query; within one if it is among the ``k`` most relevant. Without
            relevance captions of the same picture are right, and of pictures nobody can say.
        title: above the query.

    Raises:
        ValueError: unknown direction; a row that is not there; features of other counts; no method for the direction.
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
    owner = np.asarray(dataset.caption_image)
    grades = {kind: _grades(dataset, f"{source}2{kind}", row, relevance) for kind in targets}
    right = {kind: _right(dataset, f"{source}2{kind}", row, grades[kind], k) for kind in targets}
    other = ("t", int(dataset.captions_of(row)[0])) if source == "i" else ("i", int(owner[row]))
    results, ranks = {}, {}
    for name, pair in chosen.items():
        features = _features(dataset, name, pair)
        ranked = _ranked(features, features[source][row], targets, without=(source, row))
        results[name] = [_hit(dataset, kind, i, right[kind], grades[kind]) for kind, i in ranked[:k]]
        if source != targets:
            own = {other} if source == "t" else {("t", int(c)) for c in dataset.captions_of(row)}
            ranks[name] = 1 + next(place for place, item in enumerate(ranked) if item in own)
    truth = _item(dataset, *other) if source != targets else None
    return Query(_item(dataset, source, row), results, _name(dataset, source, row), truth, ranks, title)


def typed_query(
    dataset: Dataset, methods: Methods, encoders: Encoders, item: Any, *, targets: str = "i", k: int = 5
) -> Query:
    """The ``k`` best items for words or a picture of one's own; words unlike anything in the captions are told.

    Args:
        dataset: the gallery, as for :func:`make_query`.
        methods: name -> features of the gallery; those without an encoder are left out.
        encoders: name -> a function from words or a picture to a feature ``[D]``.
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
    if not methods.keys() & encoders.keys():
        raise ValueError(f"none of {', '.join(methods) or 'no methods'} has an encoder for a query of one's own")
    results, strange = {}, []
    for name in (name for name in methods if name in encoders):
        features = _features(dataset, name, methods[name])
        vector = _unit(np.asarray(encoders[name](item)).reshape(1, -1))[0]
        results[name] = [_hit(dataset, kind, i, None, None) for kind, i in _ranked(features, vector, targets)[:k]]
        sample = features["t"][:: max(1, len(features["t"]) // 500)]
        nearest = (sample @ sample.T - 2 * np.eye(len(sample))).max(axis=1)
        if isinstance(item, str) and (features["t"] @ vector).max() < np.quantile(nearest, 0.01):
            strange.append(name)
    words = sorted(set(item.lower().split()) - set(" ".join(dataset.captions).split())) if isinstance(item, str) else []
    notes = [f"in no caption here: {', '.join(words)}"] if words else []
    notes += ["unlike any caption here: do not trust the list"] if strange else []
    return Query(item, results, item if isinstance(item, str) else "own picture", title="; ".join(notes))


def example_rows(dataset: Dataset, features: Features, direction: str = "t2i", k: int = 5) -> dict[str, int]:
    """Rows of a hit (rank 1), a near miss (just behind the first) and a failure (the worst rank) of one method.

    Raises:
        ValueError: a direction within one modality.
    """
    if direction not in ("i2t", "t2i"):
        raise ValueError(f"hits and failures are known for i2t and t2i, not for {direction!r}")
    pair = _features(dataset, "these", features)
    scores = pair[direction[0]] @ pair[direction[2]].T
    owner = np.asarray(dataset.caption_image)
    own = owner[:, None] == np.arange(len(dataset))
    own = own.T if direction == "i2t" else own
    ranks = 1 + (scores > np.where(own, scores, -np.inf).max(axis=1, keepdims=True)).sum(axis=1)
    near = np.where(ranks > 1, ranks, len(ranks) * 9)
    found = {"a hit": int((ranks == 1).argmax()), "a near miss": int(near.argmin()), "a failure": int(ranks.argmax())}
    wanted = {"a hit": ranks == 1, "a near miss": (ranks > 1) & (ranks <= k), "a failure": ranks > k}
    return {name: row for name, row in found.items() if wanted[name].any()}


def neighbour_query(
    dataset: Dataset, spaces: Mapping[str, Any], row: int, *, modality: str = "picture", k: int = 5
) -> Query:
    """An item with its ``k`` neighbours in each space; those of the first space count as right in the others."""
    kind = "i" if modality == "picture" else "t"
    found = {name: _neighbours(features, row, k) for name, features in spaces.items()}
    first = next(iter(found.values()))
    results = {}
    for name, rows in found.items():
        kept = [None if rows is first else i in first for i in rows]
        results[name] = [
            Hit(_item(dataset, kind, i), _name(dataset, kind, i), k) for i, k in zip(rows, kept, strict=True)
        ]
    return Query(_item(dataset, kind, row), results, _name(dataset, kind, row), kind="item")


def dial_column(
    title: str,
    dataset: Dataset,
    spaces: Mapping,
    truth: Any,
    row: int,
    *,
    k: int = 5,
    pictures: Any = None,
    shares: Any = None,
) -> DialColumn:
    """One picture at one dial setting, with its neighbours by truth and in each space.

    Args:
        title: of the dial setting.
        dataset: as the dial leaves it.
        spaces: name -> image features ``[I, D]`` at this setting.
        truth: ``[I, I]`` true similarity; a neighbour is kept if it is as similar as the ``k``-th true one.
        row: the picture.
        k: neighbours.
        pictures: whole pictures by row for the neighbours; default the data set's own.
        shares: of ``picture`` and ``caption``, 0 to 1; default what the scene's picture shows and its captions tell.
    """
    from rvlr_lib.data import shown_share, told_share

    one = dataset.subset([row])
    shares = shares or {"picture": shown_share(one), "caption": told_share(one)}
    draw, similar = pictures or dataset.image, np.asarray(truth, dtype=np.float64)[row].copy()
    similar[row] = -np.inf
    nearest = np.argsort(-similar, kind="stable")[:k]
    rows = {"truth": [Hit(draw(int(i)), dataset.image_ids[i]) for i in nearest]}
    for name, features in spaces.items():
        rows[name] = [
            Hit(draw(i), dataset.image_ids[i], bool(similar[i] >= similar[nearest[-1]] - 1e-6))
            for i in _neighbours(features, row, k)
        ]
    return DialColumn(title, dataset.image(row), dataset.captions[dataset.captions_of(row)[0]], shares, rows)


def query_browser(
    dataset: Dataset,
    methods: Methods,
    *,
    direction: str = "t2i",
    rows: Sequence[int] = (0,),
    encoders: Encoders | None = None,
    interactive: bool | None = None,
    **options: Any,
) -> Any:
    """Choose a query or type one and see the best items of every method; without a reader the figure of ``rows``.

    Args:
        dataset: as for :func:`make_query`, like ``options``.
        methods: name -> features.
        direction: to begin with.
        rows: queries of the static figure; the widget begins with the first.
        encoders: as for :func:`typed_query`; without them queries are those of the data set.
        interactive: a widget (True) or a figure (False); None: see :func:`has_reader`.
        options: ``k``, ``relevance`` of :func:`make_query`.
    """

    def known(direction: str, *rows: int) -> Figure:
        queries = [make_query(dataset, methods, direction, row, **options) for row in rows]
        return plot_retrieval_panel(queries)

    if not has_reader(interactive):
        return known(direction, *rows)
    import ipywidgets as widgets

    counts = {"i": len(dataset), "t": len(dataset.captions)}
    wide = widgets.Layout(width="44em")
    which = widgets.Dropdown(options=[(text, key) for key, text in DIRECTIONS.items()], value=direction)
    query = widgets.IntSlider(rows[0], 0, counts[direction[0]] - 1, continuous_update=False, layout=wide)
    words = widgets.Text(placeholder="words of your own, then Enter", continuous_update=False, layout=wide)
    find = widgets.Dropdown(options=[(text, key) for key, text in TARGETS.items()])

    def changed(_: Any) -> None:  # before the figure is drawn: every query within reach, no words of another direction
        last = counts[which.value[0]] - 1
        words.value, query.value, query.max = "", min(query.value, last), last

    def draw(direction: str, query: int, words: str = "", find: str = "i") -> Figure:
        if not words.strip():
            return known(direction, min(query, counts[direction[0]] - 1))
        return plot_retrieval_panel(
            [typed_query(dataset, methods, encoders or {}, words, targets=find, k=options.get("k", 5))]
        )

    which.observe(changed, names="value")
    own = {"words": words, "find": find} if encoders else {}
    return widgets.interactive(draw, SHOW, direction=which, query=query, **own)


SHOW = {"manual": False, "auto_display": True}  # an interactive shows the figure that its function returns


def play(draw: Callable[..., Figure], *, interactive: bool | None = None, **choices: Sequence[Any]) -> Any:
    """A figure with a menu for each setting; without a reader the figure of the first choices.

    Args:
        draw: takes one value of each choice by name.
        interactive: as for :func:`query_browser`.
        choices: name -> values, the first to begin with.

    Raises:
        ValueError: a menu without choices.
    """
    empty = [name for name, values in choices.items() if not len(values)]
    if empty:
        raise ValueError(f"there is nothing to choose for {', '.join(empty)}")
    if not has_reader(interactive):
        return draw(**{name: values[0] for name, values in choices.items()})
    import ipywidgets as widgets

    look = {"description_width": "initial"}
    menus = {
        name: widgets.Dropdown(options=list(values), description=name.replace("_", " "), style=look)
        for name, values in choices.items()
    }
    return widgets.interactive(draw, SHOW, **menus)


def has_reader(interactive: bool | None = None) -> bool:
    """Whether widgets are wanted: as told, else in a notebook of a Jupyter server unless ``RVLR_HEADLESS`` is set."""
    if interactive is not None:
        return interactive
    return "JPY_SESSION_NAME" in os.environ and "RVLR_HEADLESS" not in os.environ


def _features(dataset: Dataset, name: str, pair: Features) -> dict[str, np.ndarray]:
    """Unit rows of the pictures (``i``) and the captions (``t``), as many as the data set has."""
    features = {key: _unit(values) for key, values in zip("it", pair, strict=True)}
    counts, found = [len(dataset), len(dataset.captions)], [len(rows) for rows in features.values()]
    if found != counts:
        raise ValueError(f"{name} has features of {found} pictures and captions, the data set {counts}")
    return features


def _ranked(features: Mapping[str, Any], vector: np.ndarray, targets: str, without: Any = None) -> list:
    """Kind and row of every item by falling cosine, all target kinds in one list, the query itself left out."""
    items = [(kind, row) for kind in targets for row in range(len(features[kind]))]
    order = np.argsort(-np.concatenate([features[kind] @ vector for kind in targets]), kind="stable")
    return [items[i] for i in order if items[i] != without]


def _neighbours(features: Any, row: int, k: int) -> list[int]:
    unit = _unit(features)
    order = np.argsort(-(unit @ unit[row]), kind="stable")
    return [int(i) for i in order if i != row][:k]


def _hit(dataset: Dataset, kind: str, row: int, right: Any, grades: Any) -> Hit:
    return Hit(
        _item(dataset, kind, row),
        _name(dataset, kind, row),
        None if right is None else bool(right[row]),
        None if grades is None else float(grades[row]),
    )


def _unit(features: Any) -> np.ndarray:
    array = np.asarray(features, dtype=np.float32)
    return array / np.linalg.norm(array, axis=1, keepdims=True).clip(1e-12)


def _item(dataset: Dataset, kind: str, row: int) -> Any:
    return dataset.image(int(row)) if kind == "i" else dataset.captions[row]


def _name(dataset: Dataset, kind: str, row: int) -> str:
    return dataset.image_ids[row] if kind == "i" else dataset.captions[row]


def _grades(dataset: Dataset, direction: str, row: int, relevance: Any) -> np.ndarray | None:
    """Relevance of every candidate, derived where it is not known as the corrected protocol derives it."""
    if relevance is None:
        return None
    across, owner = np.asarray(relevance.caption_to_image), np.asarray(dataset.caption_image)
    if direction in ("i2t", "t2i"):
        return across[:, row] if direction == "i2t" else across[row]
    known = relevance.text_to_text if direction == "t2t" else relevance.image_to_image
    if known is not None:
        return np.asarray(known)[row]
    if direction == "t2t":
        return across[:, owner[row]]
    return (across[owner == row].mean(axis=0) + np.bincount(owner, across[:, row]) / np.bincount(owner)) / 2


def _right(dataset: Dataset, direction: str, row: int, grades: Any, k: int) -> np.ndarray | None:
    owner = np.asarray(dataset.caption_image)
    if direction in ("i2t", "t2i"):
        return owner == row if direction == "i2t" else np.arange(len(dataset)) == owner[row]
    if grades is None:
        return owner == owner[row] if direction == "t2t" else None
    others = np.delete(grades, row)
    return (grades >= np.sort(others)[-min(k, len(others))]) & (grades > 0)
