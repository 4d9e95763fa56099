"""Profiles: which notebooks run, in which order, with which parameters, every one of them checked before any runs.

A profile is a YAML file::

    description: one line
    expected_seconds: 150
    cell_timeout_seconds: 300
    parameters: {seed: 0}        # for every notebook that has such a parameter
    runs:                        # in order
      - {notebook: 02_training, parameters: {dataset: scenes}}
"""

import ast
import contextlib
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rvlr_lib.disk import read_json
from rvlr_lib.provenance import data_name

CHECKOUT = Path(__file__).parents[2]
PROFILE_KEYS = ("description", "expected_seconds", "cell_timeout_seconds", "parameters", "runs")
OTHER_KEYS = ("study",)  # read by rvlr_lib.study.sweep
RUNNER_SETS = {"output_dir"}  # parameters that nobody else may set


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's ``parameters`` cell."""

    name: str
    annotation: str
    default: Any


@dataclass(frozen=True)
class Run:
    """One notebook and the parameters that it is given."""

    notebook: str
    dataset: str  # names the folder; "all" where the notebook has no such parameter
    parameters: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.notebook} ({self.dataset})"


@dataclass(frozen=True)
class Profile:
    """A named list of runs, every parameter checked."""

    name: str
    description: str
    expected_seconds: float
    cell_timeout_seconds: int
    runs: tuple[Run, ...]
    sha256: str  # of the profile's text


def notebook_parameters(notebook: Path) -> dict[str, Parameter]:
    """Names, annotations and defaults in the cell tagged ``parameters``.

    Raises:
        ValueError: there is not exactly one such cell, or a default is not a plain value.
    """
    cells = [cell for cell in read_json(notebook)["cells"] if "parameters" in cell["metadata"].get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{notebook} has {len(cells)} cells tagged 'parameters', one is needed")
    found = {}
    for node in ast.parse("".join(cells[0]["source"])).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and node.value is not None:
            annotation = ast.unparse(node.annotation) if isinstance(node, ast.AnnAssign) else ""
            found[target.id] = Parameter(target.id, annotation, ast.literal_eval(node.value))
    return found


def typed(parameter: Parameter, value: Any) -> Any:
    """The value in the type of the parameter's default; text, as the command line gives it, is read.

    Raises:
        ValueError: it does not fit the type.

    >>> typed(Parameter("epochs", "int", 10), "3"), typed(Parameter("rate", "float", 0.1), "1e-3")
    (3, 0.001)
    """
    kind = type(parameter.default)
    result = value
    if isinstance(value, str) and kind is not str and "str" not in parameter.annotation:
        with contextlib.suppress(ValueError, SyntaxError):
            result = ast.literal_eval({"true": "True", "false": "False", "none": "None"}.get(value.lower(), value))
    if kind is float and type(result) is int:
        result = float(result)
    if parameter.default is None or (result is None and "None" in parameter.annotation) or type(result) is kind:
        return result
    raise ValueError(f"parameter '{parameter.name}' must be {kind.__name__}, not {value!r}")


def profile_names(root: Path = CHECKOUT) -> list[str]:
    """The profiles of the checkout."""
    return sorted(path.stem for path in (root / "notebooks" / "profiles").glob("*.yaml"))


def profile_path(profile: str, root: Path = CHECKOUT) -> Path:
    """The file of a profile, by name or by path.

    Raises:
        ValueError: there is none of that name; lists the valid ones.
    """
    path = Path(profile) if profile.endswith(".yaml") else root / "notebooks" / "profiles" / f"{profile}.yaml"
    if not path.is_file():
        raise ValueError(f"unknown profile '{profile}'; valid: {', '.join(profile_names(root)) or 'none here'}")
    return path


def load_profile(profile: str, parameters: Mapping[str, Any] | None = None, *, root: Path = CHECKOUT) -> Profile:
    """Read a profile and settle the parameters of each of its notebooks.

    Args:
        profile: name of a profile of the checkout, or a path that ends in ``.yaml``.
        parameters: they win over the profile's; each must be known to one of its notebooks.
        root: the checkout.

    Raises:
        ValueError: the profile, a notebook or a parameter is unknown (lists the valid ones), a value has the wrong
            type, or two runs would write the same files.
    """
    import yaml

    path = profile_path(profile, root)
    text = path.read_text()
    settings = yaml.safe_load(text)
    _only(settings, (*PROFILE_KEYS, *OTHER_KEYS), f"key in {path}:")
    _only(PROFILE_KEYS, settings, f"{path}: missing key")
    common, given = settings["parameters"], parameters or {}
    notebooks = {file.stem: file for file in (root / "notebooks").glob("*.ipynb")}
    _only((entry["notebook"] for entry in settings["runs"]), notebooks, "notebook")
    known = {entry["notebook"]: notebook_parameters(notebooks[entry["notebook"]]) for entry in settings["runs"]}
    _only([*common, *given], {name for valid in known.values() for name in valid} - RUNNER_SETS, "parameter")
    runs: list[Run] = []
    for entry in settings["runs"]:
        name, own = entry["notebook"], entry.get("parameters", {})
        valid = known[name]
        _only(own, set(valid) - RUNNER_SETS, f"parameter of {name}")
        merged = {key: typed(valid[key], value) for key, value in {**common, **own, **given}.items() if key in valid}
        dataset = data_name(merged.get("dataset", valid["dataset"].default)) if "dataset" in valid else "all"
        runs.append(Run(name, dataset, merged))
    runs = [run for number, run in enumerate(runs) if run not in runs[:number]]
    if len({str(run) for run in runs}) < len(runs):
        raise ValueError(f"{path}: two runs of one notebook on one data set would write the same files")
    return Profile(
        name=path.stem,
        description=settings["description"],
        expected_seconds=float(settings["expected_seconds"]),
        cell_timeout_seconds=int(settings["cell_timeout_seconds"]),
        runs=tuple(runs),
        sha256=hashlib.sha256(text.encode()).hexdigest(),
    )


def _only(names: Iterable[str], valid: Iterable[str], what: str) -> None:
    unknown = [name for name in names if name not in set(valid)]
    if unknown:
        raise ValueError(f"unknown {what} '{unknown[0]}'; valid: {', '.join(sorted(valid)) or 'none'}")
