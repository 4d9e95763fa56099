"""The shipped notebooks: their form, and one execution of all of them with the smoke profile."""

import ast
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rvlr_lib.config import ARMS, switches
from rvlr_lib.disk import read_json
from rvlr_lib.report.reproduce import PATH_PARAMETERS, load_profile, notebook_parameters
from rvlr_lib.study.plan import load_plan

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMON_PARAMETERS = set("dataset image_root preset model pretrained device seed output_dir figure_width".split())
MEASURED = re.compile(r"\d\.\d|\d\s?%|\d (points|seeds|s\b)")  # a number that only a code cell may state
PROFILES = sorted(path.stem for path in (ROOT / "notebooks" / "profiles").glob("*.yaml"))
notebooks = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == kind]


@notebooks
def test_parameters(path):
    kinds, defaults = notebook_parameters(path)
    assert set(kinds) >= COMMON_PARAMETERS
    assert defaults["output_dir"] == ""
    assert set(defaults.get("arms", [])) <= set(ARMS)
    assert {name for name in kinds if name.endswith("_results")} <= set(PATH_PARAMETERS)  # so that edits cause a rerun
    assert all("  # " in line for line in cells(path)[0]["source"] if not line.startswith("arms:")), "no comment"


@notebooks
def test_form(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["metadata"]["kernelspec"]["name"] == "python3"
    assert "widgets" not in content["metadata"]
    assert not [cell for cell in cells(path) if cell["outputs"] or cell["execution_count"]]
    sources = ["".join(line for line in cell["source"] if not line.startswith("%")) for cell in cells(path)]
    assert "check_parameters(globals())" in sources[1]
    assert f'RunOutput("{path.stem}", dataset, output_dir, figure_width)' in sources[1]
    assert sources[-1] == "path = output.save()"
    nodes = [node for source in sources for node in ast.walk(ast.parse(source))]
    assert not [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
    assert sum(isinstance(node, ast.Lambda) for node in nodes) <= 1
    figures = [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "output.figure"]
    assert figures
    assert all(len(call.args) == 4 for call in figures)  # the last is a caption
    for cell in cells(path, "markdown"):
        text = re.sub(r"@\d+|`[^`]*`|\]\([^)]*\)", "", "".join(cell["source"]))
        assert not MEASURED.search(text), text


def test_names_used_by_notebooks_exist():
    assert len(NOTEBOOKS) >= 5
    assert {"smoke", "quick", "own", "gpu"} <= set(PROFILES)
    text = {path.stem: "".join("".join(cell["source"]) for cell in cells(path)) for path in NOTEBOOKS}
    leads = re.findall(r'claims\.lead\(plan, results, "([^"]+)"\)', text["01_imbalance_analysis"])
    plan = load_plan()
    assert leads
    assert all(any(name.startswith(lead) for name in plan.claims) for lead in leads)
    patterns = notebook_parameters(ROOT / "notebooks" / "05_ablation.ipynb")[1]["switches"]
    assert all(any(part in name for name in switches()) for part in patterns)


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_name_known_notebooks_and_parameters(profile):
    _, settings, runs = load_profile(profile)
    named = {run.notebook for run in runs}
    assert named == {path.stem for path in NOTEBOOKS} if profile in {"smoke", "quick"} else named
    kinds = [notebook_parameters(path)[0] for path in NOTEBOOKS]
    assert all(any(name in kind for kind in kinds) for name in settings["parameters"])


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
        assert not re.search('src="http|step/s', (folder / f"{name}.html").read_text())
        result = read_json(out / "results" / f"{run['dataset']}_{name}.json")
        assert all(result[part] for part in ("sentences", "settings", "metrics"))
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in result["metrics"].values())
    figures = {path.stem for path in (out / "figures").glob("*.png")}
    assert figures
    report = (out / "report.md").read_text()
    assert all(f"figures/{name}.png" in report for name in figures)
    assert not list(out.rglob(".*"))
    done = subprocess.run([*command[:3], "explore", str(out)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "data:image/webp" in (out / "explore.html").read_text()
