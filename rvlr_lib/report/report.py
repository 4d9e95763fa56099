"""What a run folder tells: its tables, and its numbers beside a reference."""

import math
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import provenance
from rvlr_lib.study.saved import read_results
from rvlr_lib.tables import DECIMALS, to_markdown

DEFAULT_TOLERANCE = 3.0  # absolute, in the unit of the number


def tables(folder: Path, select: str = "*") -> str:
    """The result tables of a run as Markdown.

    Args:
        folder: the run folder.
        select: pattern that ``<dataset>_<notebook>/<table>`` must match.

    Raises:
        ValueError: no table matches; lists those there are.
    """
    found = {
        f"{name}/{title}": each for name, one in read_results(folder).items() for title, each in one["tables"].items()
    }
    chosen = {name: records for name, records in found.items() if fnmatchcase(name, select)}
    if not chosen:
        raise ValueError(f"no table of {folder} matches '{select}'; there are: {', '.join(found) or 'none'}")
    return "\n\n".join(f"**{name}**\n\n{records_markdown(records)}" for name, records in chosen.items())


def compare(folder: Path, reference: Mapping[str, Any]) -> list[str]:
    """The numbers of a run that left the tolerances of a reference, one line each.

    Args:
        folder: the run folder.
        reference: content of ``data/reference/<profile>.json``. The first of its tolerance patterns that matches the
            name of a number holds, else the default; tolerances are absolute.

    Returns:
        Lines for numbers that moved, are missing, or are new.
    """
    tolerance = reference["tolerance"]
    now, then = _flat(_metrics(folder)), _flat(reference["metrics"])
    moved = [f"{name}: missing, the reference has {_number(then[name])}" for name in then if name not in now]
    moved += [f"{name}: new, {_number(now[name])}" for name in now if name not in then]
    for name in (name for name in then if name in now):
        patterns = (value for pattern, value in tolerance.get("patterns", {}).items() if fnmatchcase(name, pattern))
        allowed = next(patterns, tolerance["default"])
        old, new = (math.nan if value is None else value for value in (then[name], now[name]))
        if not (abs(new - old) <= allowed or (math.isnan(new) and math.isnan(old))):
            moved.append(f"{name}: {_number(old)} -> {_number(new)} (moved {new - old:+.4g}, allowed {allowed:g})")
    return moved


def update_reference(folder: Path, path: Path) -> Path:
    """Write the numbers of a run as a reference, with the tolerances that the file had.

    Returns:
        The path of the reference.
    """
    record = read_json(folder / "run.json")
    tolerance = read_json(path)["tolerance"] if path.is_file() else {"default": DEFAULT_TOLERANCE, "patterns": {}}
    settings = {key: record[key] for key in ("command", "runs", "profile_sha256")}
    origin = provenance() | {"cpu_cores": os.cpu_count()} | settings
    value = {"profile": record["profile"], "tolerance": tolerance, "provenance": origin, "metrics": _metrics(folder)}
    write_json(path, value)
    return path


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return {name: result["metrics"] for name, result in read_results(folder).items()}


def _flat(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{name}: {key}": value for name, values in metrics.items() for key, value in values.items()}


def _number(value: float | None) -> str:
    return "nothing" if value is None or math.isnan(value) else f"{value:.4g}"


def records_markdown(records: list[dict[str, Any]], decimals: int = DECIMALS) -> str:
    """Records, a dict each, as a Markdown table."""
    import pandas as pd

    return to_markdown(pd.DataFrame(records), decimals)


def kept_decimals(records: list[dict[str, Any]]) -> int:
    """One where all numbers of a table were rounded to one decimal, else two.

    >>> kept_decimals([{"r_mean": 31.2}]), kept_decimals([{"index": 0.253}])
    (1, 2)
    """
    numbers = (value for record in records for value in record.values() if isinstance(value, float))
    return 1 if all(math.isnan(value) or value == round(value, 1) for value in numbers) else 2
