"""Run folders: what a notebook writes into one, and how it is read back."""

import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rvlr_lib.disk import read_json, read_yaml, to_json_types, unsafe_names, write_json
from rvlr_lib.provenance import PACKAGE, data_name, default_root, provenance, real_path
from rvlr_lib.tables import MarkdownTable, index_as_columns, plain_message, refuse_unknown, to_markdown

OPENING = ("dataset", "image_root", "preset", "model", "pretrained")  # notebook parameters that go to open_study
HEADLESS = "RVLR_HEADLESS"  # environment variable of the kernels that `rvlr reproduce` starts


@dataclass
class RunOutput:
    """Collect the output of one notebook on one data set.

    Attributes:
        folder: the run folder, the notebook's ``output_dir``; empty means ``runs/lab``.
        figure_width: ``page``, ``column``, or ``both``, which shows the page version and saves the other in the
            subfolder ``column``.
        settings: the settings behind the numbers, listed in the report.
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

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.folder = Path(self.folder) if self.folder else default_root() / "lab"
        self.source, self.dataset = str(real_path(self.dataset)), data_name(self.dataset)
        self.path = self.folder / "results" / f"{self.dataset}_{self.notebook}.json"
        if (self.folder / "run.json").is_file() and HEADLESS not in os.environ:
            raise ValueError(f"{self.folder} is a run of `rvlr reproduce`: choose another output_dir")
        earlier = read_json(self.path).get("source", "") if self.path.is_file() else ""
        if earlier != self.source and os.path.exists(earlier):
            fault = f"{self.path} holds results of {earlier}, not of {self.source}"
            raise ValueError(f"{fault}: choose another output_dir, or remove the file")

    def figure(self, draw: Callable[[], Any], name: str, data: Any, caption: str) -> Any:
        """Draw a figure in each width, save it as PNG and PDF with its ``data`` as CSV, and return it as an image."""
        from IPython.display import Image

        from rvlr_lib.figures.style import one_column, save_figure

        folder, stem = Path(self.folder) / "figures", f"{self.dataset}_{name}"
        self.figures[stem] = caption
        both = self.figure_width == "both"
        for width in ("column", "page") if both else (self.figure_width,):
            with one_column() if width == "column" else nullcontext():
                figure = draw()
            save_figure(figure, folder / "column" if both and width == "column" else folder, stem, data)
        return Image(filename=folder / f"{stem}.png", width=round(100 * figure.get_figwidth()))  # pixels

    def table(self, frame: Any, name: str) -> MarkdownTable:
        """Store a DataFrame for the report, and return it as the report shows it; the first table is the main one."""
        self.tables[name] = index_as_columns(frame).to_dict(orient="records")
        return MarkdownTable(to_markdown(frame))

    def keep(self, row: str, metrics: Mapping[str, float]) -> None:
        """Store the numbers of one row, which ``reproduce --check`` compares."""
        self.metrics |= {f"{row} | {key}": value for key, value in metrics.items()}

    def say(self, sentence: str) -> None:
        """Print a sentence on the results and store it for the report's summary; say the most important one first."""
        self.sentences.append(sentence)
        print(sentence)

    def save(self) -> Path:
        """Write ``results/<dataset>_<notebook>.json``, which marks the notebook as finished."""
        record = {name: value for name, value in asdict(self).items() if name not in ("folder", "figure_width")}
        seconds = time.monotonic() - self.started
        write_json(self.path, record | {"source": self.source, "provenance": provenance() | {"seconds": seconds}})
        print(f"{self.notebook} on {self.dataset}: {seconds:.0f} s, numbers in {self.path.name}")
        return self.path


def check_parameters(namespace: dict[str, Any]) -> None:
    """Check a notebook's parameters against their annotations; its first cell calls ``check_parameters(globals())``.

    Plain papermill accepts misspelt parameters and wrong types: with this check, it fails before any work is done.
    """
    kinds = dict(namespace.get("__annotations__", {}))
    injected = "\n".join(cell for cell in namespace.get("In", ()) if cell.startswith("# Parameters"))
    names = dict.fromkeys([*kinds, *re.findall(r"^(\w+) = ", injected, re.MULTILINE)])
    namespace |= fit_parameters(kinds, {name: namespace[name] for name in names})


def fit_parameters(kinds: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """``parameters`` converted to their types (``kinds``: name -> type); strings are parsed.

    ValueError: an unknown name, arm or width (lists the valid ones), or a value of the wrong type or out of range.

    >>> fit_parameters({"epochs": int, "rates": list}, {"epochs": "3", "rates": "[1, 1e-3]"})
    {'epochs': 3, 'rates': [1, 0.001]}
    """
    from jsonargparse import ArgumentError, ArgumentParser
    from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, NotEmptyStr, PositiveInt

    arms = read_yaml(PACKAGE / "presets" / "arms.yaml")  # rvlr_lib.config would import torch
    arm: Any = Literal[("", *arms)]
    choices = {"arm": arm, "baseline": arm, "arms": list[arm], "figure_width": Literal["both", "page", "column"]}
    choices |= {"dataset": NotEmptyStr, "projections": list[Literal["umap", "pca"]]}
    choices |= dict.fromkeys(("text_detail", "image_visibility"), ClosedUnitInterval)
    choices |= dict.fromkeys(("shares", "strengths"), list[ClosedUnitInterval])
    choices |= dict.fromkeys(("seeds", "k", "max_points", "perturbed_pictures", "rerank_top_k", "steps"), PositiveInt)
    at_least_0 = ("seed", "fusion_epochs", "fusion_layers", "fusion_seeds", "jobs", "thumbnails")
    choices |= dict.fromkeys(at_least_0, NonNegativeInt)
    refuse_unknown(sorted(parameters), sorted(kinds), "unknown parameter")
    if missing := [name for name, value in parameters.items() if value is None]:
        raise ValueError(f"parameter '{missing[0]}' needs a value")
    parser = ArgumentParser(exit_on_error=False)
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=choices.get(name, kind))
    try:
        values: dict[str, Any] = to_json_types(vars(parser.parse_object(dict(parameters), defaults=False)))
    except ArgumentError as error:
        way_out = "; a list is written as [a, b]" if "class 'list'" in str(error) else ""
        raise ValueError(plain_message(error).replace("Parser key", "parameter") + way_out) from None
    if values.get("seed", 0) >= 2**32:
        raise ValueError(f"parameter 'seed' is {values['seed']}, expected less than 2^32")
    for name in ("arms", "projections"):
        if values.get(name) == []:
            raise ValueError(f"parameter '{name}' is [], expected at least one")
    return values


def read_run(folder: Path | str) -> dict[str, Any]:
    """Read the ``run.json`` of a folder; ValueError names it if it is missing or damaged, and the way out."""
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: run.json is missing; `rvlr reproduce` makes one")
    record = read_json(path)
    valid = _has(record, "command", "description", "profile", "provenance", "runs") and isinstance(record["runs"], list)
    if not valid or not all(_has(run, "notebook", "dataset", "parameters") for run in record["runs"]):
        raise ValueError(f"{path} is not the record of a run: `rvlr reproduce` writes it again")
    _check_names(path, (run[key] for run in record["runs"] for key in ("notebook", "dataset")))
    return record


def _check_names(path: Path, names: Iterable[str]) -> None:
    if outside := unsafe_names(names):
        raise ValueError(f"{path} names {outside[0]!r}, which is not a file name: is this a run of yours?")


def _has(record: Any, *keys: str) -> bool:
    return isinstance(record, dict) and record.keys() >= set(keys)


def read_results(folder: Path | str) -> dict[str, dict[str, Any]]:
    """Read the results of a run's notebooks by ``<dataset>_<notebook>``, in the order of ``run.json``.

    Unfinished notebooks are left out; ValueError names a result that was damaged or removed.
    """
    results = {}
    for run in read_run(folder)["runs"]:
        name = f"{run['dataset']}_{run['notebook']}"
        path = Path(folder) / "results" / f"{name}.json"
        if path.is_file():
            result = results[name] = read_json(path)
            if not _has(result, "metrics", "tables", "figures", "sentences", "settings", "notebook", "dataset"):
                raise ValueError(f"{path} is not the result of a notebook: remove it and run `rvlr reproduce` again")
            _check_names(path, [*result["tables"], *result["figures"]])
        elif f"results/{path.name}" in run.get("outputs", ()):
            raise ValueError(f"{path} is missing, though its notebook has finished: `rvlr reproduce` makes it again")
    return results


def rerun_command(record: Mapping[str, Any]) -> str:
    """The command that repeats a run, in backquotes, without options that replace or compare results."""
    command = re.sub(" --(overwrite|check|update-reference)(?= |$)|`", "", record["command"])
    return f"`{command if command.startswith('rvlr ') else 'rvlr reproduce --profile ' + record['profile']}`"
