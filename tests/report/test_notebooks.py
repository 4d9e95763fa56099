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
EVERY_NOTEBOOK_HAS = {"dataset", "image_root", "model", "pretrained", "device", "seed", "output_dir"}
MATHJAX = "https://cdnjs.cloudflare.com/ajax/libs/mathjax"  # where a notebook has formulas
PROFILES = sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))


def test_none_is_lost():
    assert len(NOTEBOOKS) >= 5
    assert {"smoke", "quick"} <= set(PROFILES)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    """Known parameters, no outputs, for any python3, and no definitions: it only imports, calls and shows."""
    kinds, defaults = notebook_parameters(path)
    assert set(kinds) >= EVERY_NOTEBOOK_HAS
    assert defaults["output_dir"] == ""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"]
    for cell in (cell for cell in content["cells"] if cell["cell_type"] == "code"):
        assert not cell["outputs"]
        assert cell["execution_count"] is None
        source = "".join(line for line in cell["source"] if not line.startswith("%"))
        definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        assert not [node for node in ast.walk(ast.parse(source)) if isinstance(node, definitions)], source


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_known_notebooks_and_parameters(profile):
    named = {run.notebook for run in load_profile(profile)[2]}
    assert named == {path.stem for path in NOTEBOOKS} if profile in {"smoke", "quick"} else named


@pytest.mark.slow
def test_smoke_runs_every_notebook(tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "rvlr_lib", "reproduce", "--profile", "smoke", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    runs = read_json(out / "run.json")["runs"]
    assert {run["notebook"] for run in runs} == {path.stem for path in NOTEBOOKS}
    for run in runs:
        page, name = out / run["dataset"] / f"{run['notebook']}.html", f"{run['dataset']}_{run['notebook']}"
        assert page.with_suffix(".ipynb").stat().st_size > 0
        assert 'src="http' not in page.read_text().replace(f'src="{MATHJAX}', "")
        metrics = read_json(out / "results" / f"{name}.json")["metrics"]
        assert metrics
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in metrics.values())
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures
    assert all(figures == {path.stem for path in (out / "figures").glob(f"*.{kind}")} for kind in ("pdf", "csv"))
    assert all(f"figures/{name}.png" in (out / "report.md").read_text() for name in figures)
    assert not list(out.rglob(".*"))
