"""The benchmarks run, their sides agree, and they write what they report; no times are asserted."""

import argparse
import dataclasses
import json
import platform
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from benchmarks import gpu, run
from benchmarks._harness import Options, Row, insert_between, load, machine, speed_row, table

ROOT = Path(__file__).parents[1]
TINY = Options("tiny")
SLOW = {"notebook_overhead", "rouge_l", "metric_suite", "losses"}  # slow: they start processes
WRONG = speed_row("a", "b", 5.0, 3, equal=(0.1, 1e-5))


@pytest.mark.parametrize("name", [pytest.param(x, marks=pytest.mark.slow) if x in SLOW else x for x in run.NAMES])
def test_every_benchmark_runs_and_its_sides_agree(name):
    rows = load(name).rows(TINY)
    assert rows
    for row in rows:
        assert all((row.equal, row.what, row.goal)), row
        assert row.values.get("ratio", 1) > 0
        assert row.measured != "not measured" or name == "search"  # where there is no faiss
    json.dumps([dataclasses.asdict(row) for row in rows])


def test_every_benchmark_is_listed():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "_harness", "run"}
    assert scripts - {"relevance_floors", "reduced_weights", "gpu"} == set(run.NAMES)  # these time nothing, or a GPU


@pytest.mark.slow
def test_the_gpu_script_rehearses_on_the_cpu(tmp_path):
    parts = "heads,losses,evaluation,whole_towers,vit,reranking,resume,study"
    words = "-m benchmarks.gpu --tiny --parts".split()
    subprocess.run([sys.executable, *words, parts, "--out", tmp_path / "gpu.json"], cwd=ROOT, check=True)
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert "failed" not in json.dumps(record)
    assert set(parts.split(",")) < record.keys()
    assert record["resume"]["equal_weights"]


def test_rows_of_the_gpu_script_survive_a_failure_and_the_time_limit(tmp_path, monkeypatch):
    def slow(_bench):
        yield {"first": 1.0}
        time.sleep(60)

    def faulty(_bench):
        yield {"first": 2.0}
        raise RuntimeError("no kernel")

    monkeypatch.setattr(gpu.Bench, "training", Mock(side_effect=torch.OutOfMemoryError("no memory")))
    monkeypatch.setattr(gpu, "forget", int)  # may take longer than the time limit
    monkeypatch.setattr(gpu.Bench, "vit_compiled", slow)
    monkeypatch.setattr(gpu.Bench, "losses", faulty)
    record, weights = {}, dict.fromkeys(("image_weights", "text_weights"))
    for minutes, parts in ((9, ["losses", "vit"]), (0.02, ["vit_compiled", "heads"])):
        options = argparse.Namespace(tiny=True, out=tmp_path / "gpu.json", minutes=minutes, parts=parts, **weights)
        record |= gpu.Bench(options).run() and json.loads(options.out.read_text())
    assert record["losses"] == {"first": 2.0, "failed": "RuntimeError: no kernel"}
    assert record["vit"]["full, batch 4"] == {"failed": "OutOfMemoryError: no memory"}
    assert record["vit_compiled"] == {"first": 1.0, "failed": "TimeIsOver: the time limit was reached"}
    assert "heads" not in record


def test_table_and_record_are_written_and_name_no_host(tmp_path, refuses):
    page = tmp_path / "PERFORMANCE.md"
    page.write_text("before\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nafter\n")
    rows = [Row("what", "against", "3×", "4×", True)]
    _, target = run.write(machine(), Options(), rows, page, tmp_path / "results")
    text, record = page.read_text(), json.loads(target.read_text())
    assert table(rows) in text
    assert "old" not in text
    assert record["rows"][0]["measured"] == "4×"
    assert {"cpu", "cores", "ram_gb", "python", "torch", "threads", "gpu"} <= record["machine"].keys()
    assert platform.node() not in target.read_text() + text
    refuses("must hold the lines <!-- gpu:begin -->", insert_between, page, "gpu", "new")


def test_smaller_sizes_write_nothing_and_differences_fail(capsys, monkeypatch):
    monkeypatch.setattr(run, "write", None)
    assert run.main(["--tiny", "--only", "hard_negatives"]) == 0
    assert "a loop over the samples" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        run.main(["--captions", "absent.json"])
    assert "absent.json is missing" in capsys.readouterr().err
    monkeypatch.setattr(run, "load", lambda name: type("Fake", (), {"rows": staticmethod(lambda options: [WRONG])}))
    assert run.main(["--tiny", "--only", "search"]) == 1
