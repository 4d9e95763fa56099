import json
import shutil
import subprocess

import pandas as pd
import pytest

from rvlr_lib import cli
from rvlr_lib.disk import write_json
from rvlr_lib.figures.charts import new_figure
from rvlr_lib.report import publish
from rvlr_lib.report.output import RunOutput


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "run"
    runs = [
        {"notebook": "03_retrieval_results", "dataset": "scenes", "parameters": {"train_size": 128}, "seconds": 1.5},
        {
            "notebook": "04_common_space_umap",
            "dataset": "mine",
            "parameters": {"seed": 1, "dataset": "mine.csv", "image_root": "pics"},
        },
    ]
    record = {"profile": "smoke", "description": "tiny", "command": "rvlr reproduce --profile smoke", "runs": runs,
              "provenance": {"commit": "abc", "platform": "Linux", "versions": {"torch": "2.15.0"}}}  # fmt: skip
    write_json(folder / "run.json", record)
    output = RunOutput("03_retrieval_results", "scenes", folder)
    frame = pd.DataFrame(
        {"r_mean": [32.04, None], "a_b%&": [1.0, 2.0], "effect": ["−1.5 …", "≥ 2 →"]},
        index=pd.Index(["rvlr", "x_y"], name="variant"),
    )
    output.table(frame, "retrieval")
    output.keep("rvlr", {"r_mean": 32.0, "i2i/NDCG@10": 60.0})
    output.keep("matching_longer", {"r_mean": 40.0, "i2i/NDCG@10": 50.0})
    output.keep("intra", {"r_mean": 10.0, "i2i/NDCG@10": 61.0})
    output.figure(new_figure(2, 1), "results", frame)
    output.save()
    return folder


def test_report_says_it_all(run, tmp_path):
    path = publish.write_report(run)
    text, page = path.read_text(), path.with_suffix(".html").read_text()
    for heading in ("Results", "Figures", "Claims", "What did not hold in this run", "Data card", "Settings",
                    "Notebooks", "Environment", "Commands"):  # fmt: skip
        assert f"## {heading}\n" in text
        assert page.count(f">{heading}<") == 2  # in the contents and as a heading
    assert "| rvlr | 32.04 | 1.00 |" in text
    assert "RVLR is not above `matching_longer` in r_mean (32.0 against 40.0)." in text
    assert "RVLR is not above `intra` in i2i/NDCG@10 (60.0 against 61.0)." in text
    assert "**Not finished**: 04_common_space_umap (mine)" in text
    assert "| scenes | train_size | 128 | notebooks 03 |" in text
    assert "preset scenes" in text
    assert "### mine\n\nA collection of your own: `rvlr data check mine.csv --image-root pics --decode`" in text
    assert "rvlr figures" in text
    assert 'src="data:image/png;base64,' in page
    assert 'src="http' not in page
    assert 'src="figures' not in page
    assert {path.suffix for path in (run / "tables").iterdir()} == {".csv", ".tex", ".md"}


def test_claims_are_those_of_the_study(tmp_path):
    assert "rvlr report --claims" in publish.claims_part(tmp_path)
    page = tmp_path / "data" / "reference" / "study" / "claims.md"
    page.parent.mkdir(parents=True)
    page.write_text(
        "# Claims\n\n## Primary claims\n\n| a |\n\n## What did not hold\n\n- b\n\n## Other differences\n\nc\n"
    )
    assert publish.claims_part(tmp_path).endswith("| a |\n\n### What did not hold\n\n- b")


def test_nothing_below_its_rivals():
    found = {"x": {"metrics": {"rvlr | r_mean": 3.0, "intra | r_mean": 2.0}}}
    assert publish.did_not_hold(found) == ["In this run RVLR is above its rivals wherever both were measured."]


def test_damage_is_named(run, tmp_path, capsys):
    (run / "figures" / "scenes_results.png").unlink()
    with pytest.raises(ValueError, match=r"scenes_results\.png is missing: `rvlr figures"):
        publish.write_report(run)
    (run / "results" / "scenes_03_retrieval_results.json").write_text("{")
    assert cli.main(["report", str(run)]) == 2
    assert "scenes_03_retrieval_results.json cannot be read" in capsys.readouterr().err
    (run / "results" / "scenes_03_retrieval_results.json").unlink()
    record = json.loads((run / "run.json").read_text())
    record["runs"][0]["outputs"] = ["results/scenes_03_retrieval_results.json"]
    write_json(run / "run.json", record)
    with pytest.raises(ValueError, match=r"scenes_03_retrieval_results\.json is missing, though"):
        publish.write_report(run)
    assert cli.main(["report"]) == 2
    assert "run folder" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path / "none")]) == 2


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no LaTeX here")
def test_latex_tables_compile(run, tmp_path):
    tables = publish.write_tables(run)
    body = "\n\n".join(rf"\input{{{path}}}" for path in tables)
    (tmp_path / "all.tex").write_text(
        rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{body}\end{{document}}"
    )
    done = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"], cwd=tmp_path,
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:]
