"""``similarity.py``, ``losses/`` and ``metrics/`` work without the rest of the library."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rvlr_lib

HEAVY = "open_clip umap matplotlib pandas sklearn scipy numba torchvision seaborn rapidfuzz".split()


def test_copied_into_an_empty_package_they_import_and_pass_their_doctests(tmp_path):
    here, package = Path(rvlr_lib.__file__).parent, tmp_path / "rvlr_lib"
    package.mkdir()
    init = package / "__init__.py"
    init.touch()
    shutil.copy(here / "similarity.py", package)
    for room in ("losses", "metrics"):
        shutil.copytree(here / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "conftest.py").write_text(f"import rvlr_lib\n\nassert rvlr_lib.__file__ == {str(init)!r}\n")
    command = [sys.executable, "-m", "pytest", "--doctest-modules", "-q", "-p", "no:cacheprovider", "rvlr_lib"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


def test_they_load_nothing_heavy():
    code = f"import sys, rvlr_lib.losses, rvlr_lib.metrics; print([m for m in {HEAVY} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
