"""Run folders: what a notebook leaves in one, and how it is read back."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import data_name, default_root, provenance

HEADLESS = "RVLR_HEADLESS"  # set in the environment of the kernels that `rvlr reproduce` starts
INTERACTIVE = "lab"  # run folder of notebooks that run in JupyterLab or by papermill alone
ARM_PARAMETERS = {"arm", "arms", "variants", "baseline"}
WIDTHS = ("both", "page", "column")
RECORD_KEYS = {"profile", "description", "runs", "command", "provenance"}


@dataclass
class RunOutput:
    """Collect the output of one notebook on one data set.

    Attributes:
        notebook: its name, such as ``02_training``.
        dataset: its data set.
        folder: the run folder, the notebook's ``output_dir``; empty means ``runs/lab``.
        figure_width: ``page``, ``column`` or ``both``, of figures that are given as functions; of both the page's is
            shown and the other goes to the subfolder ``column``.
        settings: what decided the numbers; shown in the report.
    """

    notebook: str
    dataset: str
    folder: Path | str = ""
    figure_width: str = "both"
    settings: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: dict[str, Any] = field(default_factory=dict)
    figures: dict[str, str] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.folder = Path(self.folder) if self.folder else default_root() / INTERACTIVE
        self.dataset = data_name(self.dataset)
        if (self.folder / "run.json").is_file() and HEADLESS not in os.environ:
            raise ValueError(
                f"{self.folder} is a run of `rvlr reproduce`: choose another output_dir, or leave it empty"
            )

    def figure(self, figure: Any, name: str, data: Any, caption: str = "") -> Any:
        """Save a figure as PNG and PDF with the CSV it was drawn from, and hand it back to be shown.

        Args:
            figure: the figure, or a function without arguments that draws it, called once for each width.
            name: of its files, after the data set's.
            data: the table that was drawn.
            caption: one or two sentences for the report; also the alternative text.
        """
        from rvlr_lib.figures.style import one_column, save_figure

        place, stem = Path(self.folder) / "figures", f"{self.dataset}_{name}"
        self.figures[stem] = caption or name.replace("_", " ")
        shown = figure
        if callable(figure):
            if self.figure_width != "page":
                with one_column():
                    shown = figure()
            if self.figure_width == "both":
                save_figure(shown, place / "column", stem, data)
            if self.figure_width != "column":
                shown = figure()
        save_figure(shown, place, stem, data)
        return shown

    def table(self, frame: Any, name: str) -> Any:
        """Keep a DataFrame as a table of the report, and hand it back to be shown; the first is the main one."""
        named = any(level is not None for level in frame.index.names)
        self.tables[name] = (frame.reset_index() if named else frame).to_dict(orient="records")
        return frame

    def keep(self, row: str, metrics: Mapping[str, float]) -> None:
        """Keep the numbers of one row; ``reproduce --check`` compares them."""
        self.metrics |= {f"{row} | {key}": value for key, value in metrics.items()}

    def say(self, sentence: str) -> None:
        """Print a sentence of the result and keep it for the report's summary; the most important one first."""
        self.sentences.append(sentence)
        print(sentence)

    def save(self) -> Path:
        """Write ``results/<dataset>_<notebook>.json``; without it the notebook has not finished."""
        path = Path(self.folder) / "results" / f"{self.dataset}_{self.notebook}.json"
        kept = ("notebook", "dataset", "metrics", "tables", "figures", "sentences", "settings")
        seconds = time.monotonic() - self.started
        origin = {"provenance": provenance() | {"seconds": seconds}}
        write_json(path, {name: getattr(self, name) for name in kept} | origin)
        print(f"{self.notebook} on {self.dataset}: {seconds:.0f} s, numbers in {path.name}")
        return path


def check_parameters(namespace: dict[str, Any]) -> None:
    """Check a notebook's parameters, in its first cell: ``check_parameters(globals())``.

    The annotations of the parameters cell are what is checked, so that papermill, which only warns of a parameter that
    is misspelt and of none of another type, fails before any work.

    Raises:
        ValueError: a parameter is unknown or unfit, listing what is valid.
    """
    kinds = dict(namespace.get("__annotations__", {}))
    injected = "\n".join(cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters"))
    names = dict.fromkeys([*kinds, *re.findall(r"^(\w+) = ", injected, re.MULTILINE)])
    namespace |= fit_parameters(kinds, {name: namespace[name] for name in names})


def fit_parameters(kinds: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters in their types; text, as a command line gives it, is read.

    Args:
        kinds: name -> type, of all parameters there are.
        given: name -> value.

    Raises:
        ValueError: an unknown name, a value of another type, or an arm or width that does not exist; lists the valid.

    >>> fit_parameters({"epochs": int, "rates": list[float]}, {"epochs": "3", "rates": "[1, 1e-3]"})
    {'epochs': 3, 'rates': [1.0, 0.001]}
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser, fitted = ArgumentParser(exit_on_error=False), {}
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind)
    for name, value in given.items():
        if name not in kinds:
            raise ValueError(f"unknown parameter '{name}'; valid: {', '.join(sorted(kinds)) or 'none'}")
        kind = str(kinds[name]) if get_args(kinds[name]) else kinds[name].__name__
        fits = value is not None or NoneType in get_args(kinds[name])
        with suppress(ArgumentError):
            fitted[name] = parser.parse_object({name: value})[name] if fits else None
        if not fits or name not in fitted:
            raise ValueError(f"parameter '{name}' must be {kind}, not {value!r}")
        _check_values(name, fitted[name])
    return fitted


def _check_values(name: str, value: Any) -> None:
    """Refuse arms and widths that do not exist; an empty text stands for the default."""
    from rvlr_lib.config import ARMS

    valid: Any = WIDTHS if name == "figure_width" else ()
    if name in ARM_PARAMETERS:
        valid = ARMS
    for item in value if isinstance(value, list) else [value]:
        if valid and item and item not in valid:
            raise ValueError(f"parameter '{name}': unknown '{item}'; valid: {', '.join(valid)}")


def read_run(folder: Path | str) -> dict[str, Any]:
    """Read the record of a run, ``run.json``.

    Raises:
        ValueError: the folder holds no run, or its record was damaged; names the file and the command that makes one.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no run.json in it; `rvlr reproduce` makes one")
    record = read_json(path)
    missing = sorted(RECORD_KEYS - set(record)) if isinstance(record, dict) else ["its keys"]
    whole = not missing and all({"notebook", "dataset", "parameters"} <= set(run) for run in record["runs"])
    if not whole:
        what = ", ".join(missing) or "notebook, dataset or parameters of a run"
        raise ValueError(f"{path} lacks {what}: {rerun_command(record)} writes it again")
    return record


def read_results(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Read the results of a run's notebooks by ``<dataset>_<notebook>``, in the order they ran.

    A notebook that has not finished has none and is left out.

    Raises:
        ValueError: the folder holds no run, or a result was damaged or removed; names the file.
    """
    found = {}
    for run in read_run(folder)["runs"]:
        name = f"{run['dataset']}_{run['notebook']}"
        path = Path(folder) / "results" / f"{name}.json"
        if path.is_file():
            found[name] = {"figures": {}, "sentences": [], "settings": {}, **read_json(path)}
            if not {"metrics", "tables"} <= set(found[name]):
                raise ValueError(f"{path} lacks metrics or tables: remove it and run again")
        elif f"results/{path.name}" in run.get("outputs", ()):
            raise ValueError(f"{path} is missing, though its notebook had finished: `rvlr reproduce` makes it again")
    return found


def rerun_command(record: Any) -> str:
    """The command that makes a run again, in backquotes; what is there is kept."""
    profile = record.get("profile", "quick") if isinstance(record, dict) else "quick"
    return f"`rvlr reproduce --profile {profile}`"
