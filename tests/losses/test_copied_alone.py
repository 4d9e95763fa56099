"""``similarity.py``, ``losses/`` and ``metrics/`` work without the rest of the library and without heavy packages."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import rvlr_lib

HEAVY = "open_clip umap matplotlib pandas sklearn scipy numba torchvision seaborn rapidfuzz".split()


def test_copied_into_an_empty_package_they_import_and_pass_their_doctests(tmp_path):
    here, package = Path(rvlr_lib.__file__).parent, tmp_path / "rvlr_lib"
    for room in ("losses", "metrics"):
        shutil.copytree(here / room, package / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(here / "similarity.py", package)
    (package / "__init__.py").touch()
    absent = f"import sys\nsys.modules |= dict.fromkeys({HEAVY})  # importing them fails\n"
    (tmp_path / "conftest.py").write_text(absent + f"import rvlr_lib\nassert rvlr_lib.__path__ == [{str(package)!r}]\n")
    command = [sys.executable, "-m", "pytest", "--doctest-modules", "-q", "-p", "no:cacheprovider", "rvlr_lib"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
