"""A finished run, read back: its record, its results, and the studies whose stages lie in the cache."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.disk import read_json
from rvlr_lib.provenance import default_root

if TYPE_CHECKING:
    from rvlr_lib.study.study import Study

RECORD_KEYS = {"profile", "description", "runs", "command", "provenance"}


def read_run(folder: Path | str) -> dict[str, Any]:
    """The record of a run, ``run.json``.

    Raises:
        ValueError: the folder holds no run, or its record was damaged; names the file and the command that makes one.
    """
    path = Path(folder) / "run.json"
    if not path.is_file():
        raise ValueError(f"{folder} holds no run: there is no run.json in it; `rvlr reproduce` makes one")
    record = read_json(path)
    missing = sorted(RECORD_KEYS - set(record)) if isinstance(record, dict) else ["its keys"]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}: {way_back(record)} writes it again")
    for run in record["runs"]:
        if not {"notebook", "dataset", "parameters"} <= set(run):
            raise ValueError(f"{path} names a notebook without data set or parameters: {way_back(record)} repairs it")
    return record


def read_results(folder: Path | str) -> dict[str, dict[str, Any]]:
    """The result JSON of each notebook of a run, in the order they ran, by ``<dataset>_<notebook>``.

    A notebook that has not finished has none and is left out.

    Raises:
        ValueError: the folder holds no run, or a result was damaged or removed; names the file.
    """
    if not (Path(folder) / "run.json").is_file():
        read_run(folder)
    found = {}
    for run in read_json(Path(folder) / "run.json")["runs"]:
        name = f"{run['dataset']}_{run['notebook']}"
        path = Path(folder) / "results" / f"{name}.json"
        if not path.is_file() and f"results/{path.name}" in run.get("outputs", ()):
            raise ValueError(f"{path} is missing, though its notebook had finished: `rvlr reproduce` makes it again")
        if not path.is_file():
            continue
        found[name] = read_json(path)
        missing = {"metrics", "tables"} - set(found[name])
        if missing:
            raise ValueError(f"{path} lacks {', '.join(sorted(missing))}: remove it and run again")
    return found


def way_back(record: Any) -> str:
    """The command that makes a run again, in backquotes; what is there is kept."""
    profile = record.get("profile", "quick") if isinstance(record, dict) else "quick"
    return f"`rvlr reproduce --profile {profile}`"


def run_root(folder: Path | str) -> Path:
    """Where the cache of a run lies: beside its folder, else where all runs are."""
    beside = Path(folder).resolve().parent
    return beside if (beside / "cache").is_dir() else default_root()


def run_parameters(record: dict[str, Any], dataset: str) -> dict[str, Any]:
    """Parameters of the notebooks of a run on one data set; where notebooks differ the last one's."""
    found: dict[str, Any] = {}
    for run in record["runs"]:
        if run["dataset"] == dataset:
            found |= run["parameters"]
    return found


def run_study(folder: Path | str, record: dict[str, Any], dataset: str) -> Study:
    """The study that a run's notebooks opened on a data set, with the run's cache."""
    from rvlr_lib.study.study import OVERRIDES, open_study

    parameters = run_parameters(record, dataset)
    chosen = {name: value for name, value in parameters.items() if name in OVERRIDES}
    options = {"preset": parameters.get("preset", ""), "device": "cpu", "root": run_root(folder)}
    return open_study(parameters.get("dataset", dataset), **options, **chosen)
