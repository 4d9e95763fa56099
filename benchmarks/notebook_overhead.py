"""Overhead of running a notebook: our runner, within the process, against the papermill command."""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

from benchmarks._harness import Options, Row, alternate, speed_row
from rvlr_lib.report.reproduce import Run, run_notebook

SOURCE = {
    "cells": [
        {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "source": ["number: int = 1"],
         "outputs": [], "execution_count": None},
        {"cell_type": "code", "id": "b", "metadata": {}, "source": ["print(number)"],
         "outputs": [], "execution_count": None},
    ],
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
                 "language_info": {"name": "python"}},
    "nbformat": 4, "nbformat_minor": 5,
}  # fmt: skip


def rows(options: Options) -> list[Row]:
    """A notebook that prints a number; ours also writes its HTML."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "notebooks").mkdir()
        source = folder / "notebooks" / "trivial.ipynb"
        source.write_text(json.dumps(SOURCE))
        command = [sys.executable, "-m", "papermill", str(source), str(folder / "theirs.ipynb"), "-p", "number", "2"]

        def ours() -> str:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                path = run_notebook(Run("trivial", "all", {"number": 2}), folder, 60, root=folder)
            return printed(path)

        def theirs() -> str:
            subprocess.run([*command, "-k", "python3", "--no-progress-bar"], check=True, capture_output=True)
            return printed(folder / "theirs.ipynb")

        timing = alternate(ours, theirs, options.pick(1, 3, 5))
    if not timing.our_result == timing.their_result == "2\n":
        raise RuntimeError(f"the notebook printed {timing.our_result!r} and {timing.their_result!r}, not 2")
    return [
        speed_row(
            "papermill overhead per notebook",
            "the papermill command",
            timing.ratio,
            2,
            notes=f"{timing.ours:.2f} s with its HTML, and {timing.theirs:.2f} s",
        )
    ]


def printed(path: Path) -> str:
    """The text that a notebook wrote to stdout."""
    cells = json.loads(path.read_text())["cells"]
    outputs = [output for cell in cells for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    return "".join("".join(output["text"]) for output in outputs)
