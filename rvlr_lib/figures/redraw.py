"""Every figure again from what a run saved, in any width, without data set, model or feature.

A figure keeps the call that drew it (``style.Recipe``). Beside its CSV the call is saved as JSON: the
table itself stays in the CSV, pictures are embedded as PNG, maps with their coordinates.
"""

from __future__ import annotations

import base64
import dataclasses
import importlib
import io
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.figures.style import Recipe, Remembering, one_column, write_pictures
from rvlr_lib.study.saved import read_run, way_back

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

KNOWN = ("rvlr_lib.figures.panels.Query", "rvlr_lib.figures.panels.Hit", "rvlr_lib.figures.projection.Projection")
NARROW = "column"  # subfolder of the figures that are as wide as a column


def save_recipe(figure: Any, folder: Path | str, name: str, data: pd.DataFrame) -> Path | None:
    """Save what is needed to draw a figure again as ``<name>.json``; None where the figure does not say how it was.

    Args:
        figure: drawn by a function decorated with ``@style()``.
        folder: that of the figure's CSV.
        name: of its files.
        data: the table that was written as CSV; where it is an argument of the call, it is not saved twice.
    """
    path = Path(folder) / f"{name}.json"
    recipe: Recipe | None = getattr(figure, "recipe", None)
    if recipe is None:
        path.unlink(missing_ok=True)
        return None
    arguments = [encode(value, data) for value in recipe.arguments]
    options = {key: encode(value, data) for key, value in recipe.options.items()}
    write_json(path, {"function": recipe.function, "arguments": arguments, "options": options})
    return path


def redraw(path: Path | str) -> Figure:
    """Draw a saved figure again.

    Args:
        path: of its JSON; its CSV lies beside it.

    Raises:
        ValueError: one of the two is missing or damaged; names it.
    """
    path = Path(path)
    recipe = read_json(path)
    if not isinstance(recipe, dict) or set(recipe) != {"function", "arguments", "options"}:
        raise ValueError(f"{path} does not say how its figure was drawn: remove it and run again")
    module, _, function = str(recipe["function"]).rpartition(".")
    if module.partition(".")[0] != "rvlr_lib" or not function.startswith("plot_"):
        raise ValueError(f"{path} names {recipe['function']!r}, which is none of our plots: remove it and run again")
    draw = getattr(importlib.import_module(module), function, None)
    if draw is None:
        raise ValueError(f"{path} names {recipe['function']!r}, which this version does not have: run again")
    csv = path.with_suffix(".csv")
    if not csv.is_file():
        raise ValueError(f"{csv} is missing, from which its figure is drawn: run again")
    try:
        arguments = [decode(value, csv) for value in recipe["arguments"]]
        return draw(*arguments, **{key: decode(value, csv) for key, value in recipe["options"].items()})
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if isinstance(error, ValueError) and str(csv) in str(error):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise ValueError(f"{csv} or {path.name} was changed and cannot be drawn ({reason}): run again") from error


def redraw_run(folder: Path | str, select: Sequence[str] = ("*",), *, narrow: bool = False,
               say: Callable[[str], None] = print) -> list[Path]:  # fmt: skip
    """Draw figures of a run again, as PNG and PDF, in place.

    Args:
        folder: the run folder.
        select: patterns, of which a name must match one.
        narrow: also draw each as wide as a column of text, into the subfolder ``column``.
        say: takes a line for each figure.

    Returns:
        The PNG files written.

    Raises:
        ValueError: no such figure, listing those there are; or a figure without what it needs, naming the file.
    """
    record, figures = read_run(folder), Path(folder) / "figures"
    names = figure_names(folder, record)
    chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in select)]
    if not chosen:
        raise ValueError(f"no figure of {folder} matches {' '.join(select)}; there are: {', '.join(names) or 'none'}")
    written = []
    for name in chosen:
        path = figures / f"{name}.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing, so {name} cannot be drawn again: {way_back(record)} "
                             "with --overwrite makes it")  # fmt: skip
        written.append(write_pictures(redraw(path), figures, name)["png"])
        if narrow:
            with one_column():
                written.append(write_pictures(redraw(path), figures / NARROW, name)["png"])
        say(name)
    return written


def figure_names(folder: Path | str, record: Mapping[str, Any]) -> list[str]:
    """The names of a run's figures: those whose files are there, and those that its record says it drew."""
    written = (Path(path) for run in record["runs"] for path in run.get("outputs", ()))
    there = (path for suffix in ("csv", "json", "png") for path in (Path(folder) / "figures").glob(f"*.{suffix}"))
    return sorted({path.stem for path in written if path.parent.name == "figures"} | {path.stem for path in there})


def encode(value: Any, table: Any = None) -> Any:
    """A value as JSON that :func:`decode` turns back.

    Args:
        value: plain values, lists, mappings with text keys, arrays, pictures, tables, queries, maps.
        table: the one that lies in the CSV.

    Raises:
        ValueError: a value that cannot be saved.

    >>> decode(encode({"a": [1, None], "b": np.arange(2)}))
    {'a': [1, None], 'b': array([0, 1])}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if value is table and table is not None:
        return {"csv": True}
    if isinstance(value, Remembering):
        return {"pictures": {str(key): encode(item) for key, item in value.known.items()}}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): encode(item, table) for key, item in value.items()}}
    if isinstance(value, list | tuple):
        return [encode(item, table) for item in value]
    if isinstance(value, np.generic):
        return value.item()
    if dataclasses.is_dataclass(value):
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        if name in KNOWN:
            return {"object": name, "fields": fields}
    elif hasattr(value, "to_dict"):
        return {"table": value.to_dict(orient="split")}
    elif isinstance(value, np.ndarray) and not (value.dtype == np.uint8 and value.ndim == 3):
        return {"array": value.tolist(), "dtype": "str" if value.dtype.kind in "OU" else str(value.dtype)}
    elif isinstance(value, np.ndarray) or hasattr(value, "save"):
        return {"picture": _png(value)}
    raise ValueError(f"{type(value).__name__} cannot be saved with a figure: give plain values, arrays or tables")


def decode(value: Any, csv: Path | None = None) -> Any:
    """What :func:`encode` was given; tables of the CSV are read from it."""
    if isinstance(value, list):
        return [decode(item, csv) for item in value]
    if not isinstance(value, dict):
        return value
    if "csv" in value and csv is not None:
        return _read_csv(csv)
    if "pictures" in value:
        return {int(key): decode(item) for key, item in value["pictures"].items()}.__getitem__
    if "mapping" in value:
        return {key: decode(item, csv) for key, item in value["mapping"].items()}
    if "array" in value:
        return np.array(value["array"], dtype=value["dtype"])
    if "table" in value:
        import pandas as pd

        return pd.DataFrame(**value["table"])
    if "picture" in value:
        from PIL import Image

        return Image.open(io.BytesIO(base64.b64decode(value["picture"]))).convert("RGB")
    if value.get("object") in KNOWN:
        module, _, name = value["object"].rpartition(".")
        fields = {key: decode(item, csv) for key, item in value["fields"].items()}
        return getattr(importlib.import_module(module), name)(**fields)
    raise ValueError(f"a saved figure holds {list(value)}, which this version cannot read: run again")


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): the figure is drawn from it; run again") from error


def _png(picture: Any) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
