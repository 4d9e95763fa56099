"""The benchmarks run, compare what they time, and write what they say; no seconds are asserted."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ is no part of the installed library

from benchmarks import run  # noqa: E402
from benchmarks._harness import (  # noqa: E402
    Options,
    PeakMemory,
    Row,
    alternate,
    in_child,
    load,
    machine,
    slug,
    speed_row,
    table,
)

TINY = Options("tiny")
SLOW = {"notebook_overhead", "rouge_l", "metric_suite", "losses"}  # they start processes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in run.NAMES]
)
def test_every_benchmark_runs_and_its_sides_agree(name):
    rows = load(name).rows(TINY)
    assert rows
    for row in rows:
        assert row.equal, row
        assert row.what
        assert row.goal
        assert row.measured
        if row.measured == "not measured":
            assert name == "search"
            assert importlib.util.find_spec("faiss") is None
        elif "ratio" in row.values:
            assert row.values["ratio"] > 0
    json.dumps([dataclasses.asdict(row) for row in rows])


def test_every_script_is_run():
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - {"__init__", "_harness", "run"}
    assert scripts - {"relevance_floors", "reduced_weights", "gpu"} == set(run.NAMES)  # these time nothing, or one GPU


def test_sides_run_in_turn():
    order = []
    timing = alternate(lambda: order.append("ours"), lambda: order.append("theirs"), 3)
    assert order == ["theirs", "ours"] * 4  # a warm-up of each
    assert timing.ratio > 0


def test_a_missed_goal_and_a_difference_are_said():
    fast, slow = speed_row("a", "b", 5.0, 3), speed_row("a", "b", 2.0, 3)
    wrong = speed_row("a", "b", 5.0, 3, equal=(0.1, 1e-5))
    assert (fast.met, slow.met, wrong.met) == (True, False, False)
    assert [row.without_goal().met for row in (fast, slow, wrong)] == [None, None, False]
    assert "| yes |" in table([fast])
    assert "**missed**" in table([slow])
    assert "**missed**" in table([wrong])
    assert "differ by 1e-01" in wrong.notes


def test_memory_is_that_of_the_block():
    bytearray(400_000_000)  # before it does not count
    with PeakMemory() as peak:
        bytearray(b"x" * 100_000_000)
    assert peak.gb == pytest.approx(0.2, abs=0.03)  # the text and its copy


def test_memory_of_a_child_is_its_own():
    held = bytearray(b"x" * 300_000_000)
    assert in_child(load("metric_suite").whole_suite, 5)["GB"] < 0.1 < len(held) / 1e9


def test_table_and_record_are_written_and_name_no_host(tmp_path):
    import platform

    page = tmp_path / "PERFORMANCE.md"
    page.write_text("before\n<!-- benchmarks:begin -->\nold\n<!-- benchmarks:end -->\nafter\n")
    rows = [Row("what", "against", "3×", "4×", True)]
    described = machine()
    _, target = run.write(described, Options(), rows, page, tmp_path / "results")
    assert target.name == f"{slug(described)}.json"
    text = page.read_text()
    assert text.startswith("before")
    assert text.endswith("after\n")
    assert "old" not in text
    assert table(rows) in text
    record = json.loads(target.read_text())
    assert record["rows"][0]["measured"] == "4×"
    assert {"cpu", "cores", "ram_gb", "python", "torch", "threads", "gpu"} <= record["machine"].keys()
    assert platform.node() not in target.read_text() + text


def test_the_command_runs_some_and_writes_nothing_below_full_size(capsys, monkeypatch):
    before = (ROOT / "PERFORMANCE.md").read_text()
    monkeypatch.setattr(run, "write", None)
    assert run.main(["--tiny", "--only", "hard_negatives"]) == 0
    assert "a loop over the samples" in capsys.readouterr().out
    assert (ROOT / "PERFORMANCE.md").read_text() == before
    with pytest.raises(SystemExit, match="2"):
        run.main(["--captions", "absent.json"])
    assert "absent.json is not there" in capsys.readouterr().err


def test_a_difference_fails_at_any_size(monkeypatch, capsys):
    wrong = speed_row("a", "b", 5.0, 3, equal=(0.1, 1e-5))
    monkeypatch.setattr(run, "load", lambda name: type("Fake", (), {"rows": staticmethod(lambda options: [wrong])}))
    assert run.main(["--tiny", "--only", "search"]) == 1
