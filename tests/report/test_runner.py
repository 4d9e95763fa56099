"""The papermill runner on small notebooks made here."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import rvlr_lib.report.reproduce
from rvlr_lib import cli
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.report.profiles import Parameter, load_profile, notebook_parameters, typed
from rvlr_lib.report.report import compare, update_reference
from rvlr_lib.report.reproduce import NotebookError, clock, reproduce

PARAMETERS = 'dataset: str = "scenes"\nseed: int = 0\nrate: float = 0.1\ndevice: str = "auto"\noutput_dir: str = ""'
WRITE = """import json, os, pathlib, sys
out = pathlib.Path(output_dir)
(out / "results").mkdir(exist_ok=True)
metrics = {"rvlr | r_mean": 30.0 + seed, "loss": rate}
result = {"metrics": metrics, "tables": {"main": [{"model": "rvlr", "r_mean": 30.0 + seed}]}}
(out / "results" / f"{dataset}_01_good.json").write_text(json.dumps(result))
print(sys.executable, os.environ["RVLR_HEADLESS"])"""


def notebook(root: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> None:
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = new_notebook(
        cells=[new_markdown_cell("# A title"), tagged, *map(new_code_cell, cells)], metadata={"kernelspec": kernel}
    )
    nbformat.write(content, root / "notebooks" / f"{name}.ipynb")


def profile(root: Path, name: str, *runs: dict, **changed: object) -> None:
    content = {"description": "a try", "expected_seconds": 150, "cell_timeout_seconds": 30, "parameters": {}}
    (root / "notebooks" / "profiles" / f"{name}.yaml").write_text(json.dumps({**content, "runs": runs, **changed}))


@pytest.fixture
def root(tmp_path, monkeypatch):
    (tmp_path / "notebooks" / "profiles").mkdir(parents=True)
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path / "runs"))
    notebook(tmp_path, "01_good", WRITE)
    notebook(tmp_path, "02_bad", "kept = 1\nprint('kept')", "raise KeyError('the reason')")
    profile(tmp_path, "good", {"notebook": "01_good"}, {"notebook": "01_good", "parameters": {"dataset": "emoji"}})
    profile(tmp_path, "bad", {"notebook": "02_bad"})
    return tmp_path


def test_a_whole_run(root, monkeypatch):
    hostile = root / "share" / "kernels" / "python3"  # a python3 kernel of some other environment
    hostile.mkdir(parents=True)
    kernel = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    (hostile / "kernel.json").write_text(json.dumps(kernel))
    monkeypatch.setenv("JUPYTER_PATH", str(hostile.parents[1]))
    said = []
    assert reproduce("good", parameters={"seed": "2", "rate": "1e-3"}, root=root, say=said.append) == []
    out = root / "runs" / "good"
    assert "about 2 min 30 s" in said[1]
    assert [line for line in said if "[2/2] 01_good (emoji)" in line]
    assert len(said) == 7
    executed = nbformat.read(out / "emoji" / "01_good.ipynb", 4)
    assert f"{sys.executable} 1" in executed.cells[-1].outputs[0].text
    page = (out / "scenes" / "01_good.html").read_text()
    assert "A title" in page
    assert 'src="http' not in page
    record = read_json(out / "run.json")
    assert record["finished"]
    assert [run["parameters"] for run in record["runs"]] == [
        {"seed": 2, "rate": 0.001}, {"dataset": "emoji", "seed": 2, "rate": 0.001}]  # fmt: skip
    assert all(run["seconds"] > 0 for run in record["runs"])
    report = (out / "report.md").read_text()
    assert "| rvlr | 32.0 |" in report
    assert "not the scores of the paper" in report
    assert f"| torch | {record['provenance']['versions']['torch']} |" in report
    assert not list(out.rglob(".*"))


def test_what_did_not_change_is_kept_and_what_did_runs_again(root):
    out = root / "runs" / "good"
    reproduce("good", root=root, say=lambda line: None)
    first = read_json(out / "run.json")["runs"]
    stamp = (out / "scenes" / "01_good.ipynb").stat().st_mtime_ns

    said = []
    reproduce("good", root=root, say=said.append)
    assert sum("kept" in line for line in said) == 2
    assert (out / "scenes" / "01_good.ipynb").stat().st_mtime_ns == stamp
    assert read_json(out / "run.json")["runs"] == first
    assert "results/emoji_01_good.json" in first[1]["outputs"]

    (out / "results" / "emoji_01_good.json").unlink()  # only the notebook that wrote it runs again
    said = []
    reproduce("good", root=root, say=said.append)
    assert [("scenes" in line) for line in said if "kept" in line] == [True]
    assert (out / "results" / "emoji_01_good.json").is_file()

    notebook(root, "01_good", WRITE + "\nmetrics")  # an edited notebook, then --overwrite
    for options in ({}, {"overwrite": True}):
        said = []
        reproduce("good", root=root, say=said.append, **options)
        assert not [line for line in said if "kept" in line]


def test_a_failing_cell(root):
    page = root / "runs" / "bad" / "scenes" / "02_bad.html"
    page.parent.mkdir(parents=True)
    page.write_text("of an earlier run")
    with pytest.raises(NotebookError) as failure:
        reproduce("bad", root=root, say=lambda line: None)
    first, second = str(failure.value).splitlines()
    assert first == "02_bad (scenes), cell [4]: KeyError: 'the reason'"
    kept = page.with_suffix(".ipynb")
    assert second.endswith(str(kept))
    assert "kept" in kept.read_text()
    assert not page.exists()
    assert not read_json(root / "runs" / "bad" / "run.json")["finished"]
    assert not list((root / "runs").rglob(".*"))


@pytest.mark.parametrize(("cell", "told"), [
    ("import time\ntime.sleep(8)", "TimeoutError: longer than the 1 s"),
    ("import os\nos._exit(3)", "DeadKernelError: the kernel died"),
])  # fmt: skip
def test_a_stuck_cell_and_a_dead_kernel(root, cell, told, capfd):
    notebook(root, "03_stuck", "x = 1", cell)
    profile(root, "stuck", {"notebook": "03_stuck"}, cell_timeout_seconds=1)
    with pytest.raises(NotebookError, match=rf"03_stuck \(scenes\), cell \[4\]: {told}"):
        reproduce("stuck", root=root, say=lambda line: None)
    assert (root / "runs" / "stuck" / "scenes" / "03_stuck.ipynb").is_file()
    assert capfd.readouterr().err == ""  # no noise from the kernel


def test_the_heartbeat_names_the_cell_and_its_last_line(root, monkeypatch):
    monkeypatch.setattr(rvlr_lib.report.reproduce, "HEARTBEAT_SECONDS", 0.3)
    notebook(root, "03_slow", "import time\nprint('epoch 1\\nepoch 2', flush=True)\ntime.sleep(1.2)")
    profile(root, "slow", {"notebook": "03_slow"})
    said = []
    reproduce("slow", root=root, say=said.append)
    assert [line for line in said if line.endswith("cell [3]  epoch 2")]


def test_an_interrupt_leaves_nothing_half_written_and_the_run_goes_on(root):
    notebook(root, "03_wait", "import time\ntime.sleep(60)")
    profile(root, "wait", {"notebook": "01_good"}, {"notebook": "03_wait"})
    code = f"""import functools, pathlib, signal, sys, rvlr_lib.report.reproduce as n
from rvlr_lib.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
n.reproduce = functools.partial(n.reproduce, root=pathlib.Path({str(root)!r}))
sys.exit(main(["reproduce", "--profile", "wait"]))"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               start_new_session=True)  # fmt: skip
    out = root / "runs" / "wait"
    partial = out / "scenes" / ".partial-03_wait.ipynb"
    deadline = time.monotonic() + 60
    while not (partial.is_file() and '"status": "running"' in partial.read_text()) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert errors == "\nrvlr: interrupted; the same command goes on from here\n"
    assert sorted(path.name for path in (out / "scenes").iterdir()) == ["01_good.html", "01_good.ipynb"]
    assert not (out / "report.md").exists()
    notebook(root, "03_wait", "x = 1")
    reproduce("wait", root=root, say=lambda line: None)
    assert read_json(out / "run.json")["finished"]


def test_unknown_names_are_refused_and_the_valid_ones_listed(root):
    with pytest.raises(ValueError, match="unknown profile 'huge'; valid: bad, good"):
        load_profile("huge", root=root)
    with pytest.raises(ValueError, match="unknown parameter 'sede'; valid: dataset, device, rate, seed"):
        load_profile("good", {"sede": 1}, root=root)
    with pytest.raises(ValueError, match="unknown parameter 'output_dir'"):
        load_profile("good", {"output_dir": "x"}, root=root)
    profile(root, "odd", {"notebook": "01_good", "parameters": {"sede": 1}})
    with pytest.raises(ValueError, match="unknown parameter of 01_good 'sede'; valid: dataset"):
        load_profile("odd", root=root)
    profile(root, "odd", {"notebook": "01_good"}, parameters={"sede": 1})
    with pytest.raises(ValueError, match="unknown parameter 'sede'"):
        load_profile("odd", root=root)
    profile(root, "odd", {"notebook": "09_gone"})
    with pytest.raises(ValueError, match="unknown notebook '09_gone'; valid: 01_good, 02_bad"):
        load_profile("odd", root=root)
    profile(root, "odd", {"notebook": "01_good"}, timeout=3)
    with pytest.raises(ValueError, match=r"unknown key .*'timeout'; valid: cell_timeout_seconds"):
        load_profile("odd", root=root)


@pytest.mark.parametrize(("argv", "told"), [
    (["--profile", "huge"], "unknown profile 'huge'; valid: bad, good"),
    (["-p", "sede", "1"], "unknown parameter 'sede'; valid: dataset, device, "),
    (["--device", "cuda:99"], "device 'cuda:99' is not there: "),
    (["-p", "seed", "one"], "parameter 'seed' must be int, not 'one'"),
])  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(root, argv, told, capsys, monkeypatch):
    monkeypatch.setattr(rvlr_lib.report.reproduce, "reproduce", functools.partial(reproduce, root=root))
    assert cli.main(["reproduce", "--profile", "good", *argv]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"rvlr: {told}")
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert not (root / "runs").exists()


def test_settings_win_in_order_and_reach_who_knows_them(root):
    notebook(root, "03_other", "1", parameters='size: int = 1\noutput_dir: str = ""')
    own = {"notebook": "01_good", "parameters": {"seed": 2}}
    profile(root, "mixed", {"notebook": "03_other"}, own, parameters={"seed": 1, "rate": 1, "size": 7})
    other, good = load_profile(str(root / "notebooks" / "profiles" / "mixed.yaml"), {"rate": "2e-1"}, root=root).runs
    assert (other.dataset, other.parameters) == ("all", {"size": 7})
    assert good.parameters == {"seed": 2, "rate": 0.2}
    assert load_profile("mixed", {"seed": 3}, root=root).runs[1].parameters["seed"] == 3
    assert len(load_profile("good", {"dataset": "emoji"}, root=root).runs) == 1  # the same twice is run once
    assert load_profile("good", {"dataset": "data/mine.json"}, root=root).runs[0].dataset == "mine"
    profile(root, "twice", own, {"notebook": "01_good"})
    with pytest.raises(ValueError, match="would write the same files"):
        load_profile("twice", root=root)


@pytest.mark.parametrize(("annotation", "default", "value", "expected"), [
    ("int", 1, "3", 3), ("float", 0.1, 2, 2.0), ("bool", False, "true", True), ("str", "a", "3", "3"),
    ("list[float]", [1.0], "[0.6, 1.0]", [0.6, 1.0]), ("str | None", None, "3", "3"), ("int | None", 4, "none", None),
])  # fmt: skip
def test_values_take_the_type_of_the_default(annotation, default, value, expected):
    result = typed(Parameter("x", annotation, default), value)
    assert result == expected
    assert type(result) is type(expected)


@pytest.mark.parametrize(("default", "value"), [(1, "a"), (1, 2.5), (1, True), (0.5, "half"), (False, 1), ("a", 3)])
def test_values_of_the_wrong_type_are_refused(default, value):
    with pytest.raises(ValueError, match="parameter 'x' must be"):
        typed(Parameter("x", type(default).__name__, default), value)


def test_notebook_parameters(root):
    found = notebook_parameters(root / "notebooks" / "01_good.ipynb")
    assert found["rate"] == Parameter("rate", "float", 0.1)
    content = new_notebook(cells=[new_code_cell("x = 1")])
    nbformat.write(content, root / "notebooks" / "04.ipynb")
    with pytest.raises(ValueError, match="0 cells tagged 'parameters'"):
        notebook_parameters(root / "notebooks" / "04.ipynb")


def test_a_folder_of_other_settings_is_never_overwritten_silently(root, capsys, monkeypatch):
    monkeypatch.setattr(rvlr_lib.report.reproduce, "run_notebook", lambda *args, **kwargs: None)
    monkeypatch.setattr(rvlr_lib.report.reproduce, "reproduce", functools.partial(reproduce, root=root))
    out = root / "runs" / "good"
    command = ["reproduce", "--profile", "good"]
    assert cli.main([*command, "-p", "seed", "1"]) == 0
    (out / "results").mkdir()
    before = (out / "run.json").read_text()
    assert cli.main([*command, "-p", "seed", "2"]) == 2
    told = capsys.readouterr().err
    assert "01_good (scenes): seed was 1, is 2" in told
    assert "--out" in told
    assert "--overwrite" in told
    assert (out / "run.json").read_text() == before
    assert cli.main([*command]) == 2
    assert "seed was 1, is the notebook's default" in capsys.readouterr().err
    assert cli.main(["reproduce", "--profile", "bad", "--out", str(out)]) == 2
    assert "profile was good, is bad" in capsys.readouterr().err
    (out / "mine.txt").write_text("mine")
    assert cli.main([*command, "--overwrite"]) == 0
    assert not (out / "results").exists()
    assert (out / "mine.txt").exists()
    (out / "run.json").unlink()
    assert cli.main([*command, "--overwrite"]) == 2
    assert "holds other things (mine.txt)" in capsys.readouterr().err


def test_check_lists_what_moved(root, capsys, monkeypatch):
    monkeypatch.setattr(rvlr_lib.report.reproduce, "reproduce", functools.partial(reproduce, root=root))
    path = root / "data" / "reference" / "short.json"
    path.parent.mkdir(parents=True)
    profile(root, "short", {"notebook": "01_good"})
    command = ["reproduce", "--profile", "short"]
    assert cli.main([*command, "--check"]) == 2
    assert "short.json to check against: --update-reference writes it" in capsys.readouterr().err
    assert not (root / "runs").exists()
    assert cli.main([*command, "--update-reference"]) == 0
    reference = read_json(path)
    assert reference["metrics"] == {"scenes_01_good": {"rvlr | r_mean": 30.0, "loss": 0.1}}
    assert reference["tolerance"] == {"default": 3.0, "patterns": {}}
    capsys.readouterr()

    reference["tolerance"]["patterns"] = {"*loss*": 0.05}
    reference["metrics"]["scenes_01_good"] |= {"rvlr | r_mean": 33.5, "gone": 1.0}
    write_json(path, reference)
    assert cli.main([*command, "--check"]) == 1
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "2 numbers moved:",
        "scenes_01_good: gone: missing, the reference has 1",
        "scenes_01_good: rvlr | r_mean: 33.5 -> 30 (moved -3.5, allowed 3)",
    ]
    out = root / "runs" / "short"
    reference["metrics"]["scenes_01_good"] = {"rvlr | r_mean": 32.9, "loss": 0.16}
    assert compare(out, reference) == ["scenes_01_good: loss: 0.16 -> 0.1 (moved -0.06, allowed 0.05)"]
    reference["metrics"]["scenes_01_good"] = {"rvlr | r_mean": None}
    assert len(compare(out, reference)) == 2  # a number that was none, a number that is new
    write_json(path, reference)
    update_reference(out, path)
    assert read_json(path)["tolerance"]["patterns"] == {"*loss*": 0.05}
    assert compare(out, read_json(path)) == []


def test_clock():
    assert clock(3600) == "60 min 00 s"
