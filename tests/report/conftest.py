"""Small notebooks and profiles in a temporary checkout."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from PIL import Image

PARAMETERS = """dataset: str = "scenes"  # a data set
preset: str = "quick"
seed: int = 0
rate: float = 0.1
arms: list = ["rvlr"]
device: str = "auto"
output_dir: str = \"\""""
WRITE = """import os, sys
import pandas as pd
from rvlr_lib.report.output import RunOutput, check_parameters
check_parameters(globals())
output = RunOutput("01_good", dataset, output_dir)
output.keep("rvlr", {"r_mean": 30.0 + seed, "loss": rate})
output.table(pd.DataFrame({"model": ["rvlr"], "r_mean": [30.0 + seed]}), "main")
output.say(f"Seed {seed} is “good”.")
output.save()
print(sys.executable, os.environ["RVLR_HEADLESS"])
print("stage matching: 3 steps")"""


class Checkout:
    """A folder with notebooks and profiles."""

    def __init__(self, folder):
        self.folder = folder
        (folder / "notebooks" / "profiles").mkdir(parents=True)

    def notebook(self, name, *cells, parameters=PARAMETERS):
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
        all_cells = [new_markdown_cell("# A title — é"), tagged, *map(new_code_cell, cells)]
        path = self.folder / "notebooks" / f"{name}.ipynb"
        nbformat.write(new_notebook(cells=all_cells, metadata=metadata), path)
        return path

    def collection(self, name):
        """Fifteen pictures and a CSV of their captions."""
        for i in range(15):
            Image.new("RGB", (8, 8), (16 * i, 0, 0)).save(self.folder / f"{i}.png")
        rows = [f"{i}.png,a dog {i},{('train', 'val', 'test')[i % 3]}" for i in range(15)]
        (self.folder / name).write_text("\n".join(["image,caption,split", *rows]))
        return self.folder / name

    def profile(self, name, *runs, **changes):
        content = {"description": "a try", "expected_seconds": 150, "cell_timeout_seconds": 30, "parameters": None}
        text = json.dumps({**content, "runs": runs, **changes})
        (self.folder / "notebooks" / "profiles" / f"{name}.yaml").write_text(text)


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path / "runs"))
    checkout = Checkout(tmp_path)
    checkout.notebook("01_good", WRITE)
    checkout.notebook("02_bad", "kept = 1\nprint('kept')", "raise KeyError('the reason')")
    checkout.profile("good", {"notebook": "01_good"}, {"notebook": "01_good", "parameters": {"dataset": "emoji"}})
    checkout.profile("bad", {"notebook": "02_bad"})
    return checkout
