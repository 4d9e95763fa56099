import json

import pandas as pd

from rvlr_lib.figures.charts import new_figure
from rvlr_lib.report.output import RunOutput


def test_a_notebook_leaves_figures_tables_and_one_result(tmp_path):
    output = RunOutput("02_training", "some/mine.json", tmp_path)
    frame = pd.DataFrame({"r_mean": [1.0, float("nan")]}, index=pd.Index(["rvlr", "floor"], name="variant"))
    figure = new_figure(1, 1)
    assert output.table(frame, "main") is frame
    assert output.table(pd.DataFrame({"a": [1]}), "plain") is not None
    assert output.figure(figure, "curve", frame) is figure
    output.keep("rvlr", {"r_mean": 1.0})
    assert output.save() == tmp_path / "results" / "mine_02_training.json"
    found = json.loads((tmp_path / "results" / "mine_02_training.json").read_text())
    assert found["metrics"] == {"rvlr | r_mean": 1.0}
    assert found["tables"] == {
        "main": [{"variant": "rvlr", "r_mean": 1.0}, {"variant": "floor", "r_mean": None}],
        "plain": [{"a": 1}],
    }
    assert found["provenance"]["seconds"] >= 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"mine_curve.{s}" for s in ("png", "pdf", "csv")
    }
