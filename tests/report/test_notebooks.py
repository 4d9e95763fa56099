"""The notebooks that we ship: their form, and all of them executed once with the smoke profile."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from rvlr_lib.disk import read_json
from rvlr_lib.report.reproduce import load_profile, notebook_parameters

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MINIMUM = 5
EVERY_NOTEBOOK_HAS = {"dataset", "image_root", "model", "pretrained", "device", "seed", "output_dir"}
MATHJAX = "https://cdnjs.cloudflare.com/ajax/libs/mathjax"  # where a notebook has formulas
PROFILES = sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def test_none_is_lost():
    assert len(NOTEBOOKS) >= MINIMUM
    assert {"smoke", "quick"} <= set(PROFILES)


@notebooks
def test_parameters(path):
    kinds, defaults = notebook_parameters(path)
    assert set(kinds) >= EVERY_NOTEBOOK_HAS
    assert defaults["output_dir"] == ""


@notebooks
def test_committed_without_outputs_and_for_any_python3(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert not [cell for cell in code_cells(path) if cell["outputs"] or cell["execution_count"]]
    assert "widgets" not in content["metadata"]


@notebooks
def test_only_imports_calls_and_shows(path):
    for cell in code_cells(path):
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)], source


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_known_notebooks_and_parameters(profile):
    named = {run.notebook for run in load_profile(profile)[1]}
    assert named == {path.stem for path in NOTEBOOKS} if profile in {"smoke", "quick"} else named


@pytest.mark.slow
def test_smoke_runs_every_notebook(tmp_path):
    command = [sys.executable, "-m", "rvlr_lib", "reproduce", "--profile", "smoke", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    out = tmp_path / "run"
    runs = read_json(out / "run.json")["runs"]
    assert {run["notebook"] for run in runs} == {path.stem for path in NOTEBOOKS}
    for run in runs:
        folder, name = out / run["dataset"], run["notebook"]
        assert (folder / f"{name}.ipynb").stat().st_size > 0
        assert 'src="http' not in (folder / f"{name}.html").read_text().replace(f'src="{MATHJAX}', "")
        result = read_json(out / "results" / f"{run['dataset']}_{name}.json")
        assert result["metrics"]
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in result["metrics"].values())
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures
    assert figures == {path.stem for path in (out / "figures").glob("*.pdf")}
    assert figures == {path.stem for path in (out / "figures").glob("*.csv")}
    report = (out / "report.md").read_text()
    assert all(f"figures/{name}.png" in report for name in figures)
    assert not list(out.rglob(".*"))
