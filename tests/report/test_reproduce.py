"""The runner on small generated notebooks."""

import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import nbformat
import pytest
from joblib import cpu_count

from rvlr_lib import cli
from rvlr_lib.disk import claimed_folder, read_json, write_json
from rvlr_lib.report import reproduce as runner
from rvlr_lib.report.report import compare
from rvlr_lib.report.reproduce import load_profile, notebook_parameters

RUNNER = """import pathlib, signal, sys
from functools import partial
from rvlr_lib.cli import main
from rvlr_lib.report import reproduce as runner
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
runner.reproduce = partial(runner.reproduce, root=pathlib.Path(sys.argv[1]))
sys.exit(main(["reproduce", *sys.argv[2:]]))"""
GOOD = {"notebook": "01_good"}


@pytest.fixture
def command(checkout, monkeypatch, capsys):
    """Function (*arguments) -> exit code, stdout and stderr of ``rvlr reproduce``."""
    monkeypatch.setattr(runner, "reproduce", partial(runner.reproduce, root=checkout.folder))

    def run(*arguments):
        return cli.main(["reproduce", *map(str, arguments)]), *capsys.readouterr()

    return run


def test_a_complete_run_in_a_folder_with_braces_blanks_and_quotes(checkout):
    out, birds = checkout.folder / "exp{seed} o'b", checkout.collection("my {birds}.csv")
    words = [sys.executable, "-c", RUNNER, checkout.folder, "--profile", "good", "--out", out]
    words += ["-p", "seed", "2", "-p", "rate", "1e-3", "-p", "dataset", birds]
    locale = {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONCOERCECLOCALE": "0"}
    locale["PYTHONUTF8"] = "0" if sys.executable.isascii() else "1"
    done = subprocess.run(words, capture_output=True, env=os.environ | locale, umask=0o022)
    assert (done.returncode, done.stderr) == (0, b"")
    lines = done.stdout.decode().splitlines()
    assert len(lines) == 6  # the two runs became one
    assert "test 5/5" in lines[0]
    assert "about 0:02:30" in lines[2]
    assert lines[3] == "      01_good (my {birds}): matching: 3 steps"
    assert lines[4].startswith("[1/1] 01_good (my {birds}) done in ")
    for path in out.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path
    executed = nbformat.read(out / "my {birds}" / "01_good.ipynb", 4)
    executed.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {}}
    executed.cells[-1].outputs.append(nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}))
    page = runner.notebook_html(executed, "x", ["What it <shows>."])
    assert ('alt="What it &lt;shows&gt;."' in page, "unpkg" in page) == (True, False)
    runs = [runner.Run("02_b", "my birds", {}), runner.Run("02_b", "scenes", {})]
    linked = runner.notebook_links('href="02_b.ipynb" href="09_z.ipynb', "my birds", runs)
    assert linked == 'href="../my%20birds/02_b.html" href="../report.html'
    python, headless = executed.cells[-1].outputs[0].text.splitlines()[-2].rsplit(" ", 1)
    assert (python, headless) == (sys.executable, "1")
    page = (out / "my {birds}" / "01_good.html").read_text(encoding="utf-8")
    assert "A title — é" in page
    assert 'src="http' not in page
    parameters = read_json(out / "run.json")["runs"][0]["parameters"]
    assert parameters == {"seed": 2, "rate": 0.001, "dataset": str(birds)}
    report = (out / "report.md").read_text(encoding="utf-8")
    phrases = "1. Seed 2 is “good”.", "| rvlr | 32.0 |", "](my%20%7Bbirds%7D/01_good.html)", "rvlr report '"
    assert [phrase for phrase in phrases if phrase not in report] == []


def test_only_changed_notebooks_run_again(checkout, command):
    def kept():
        return [line for line in command("--profile", "good")[1].splitlines() if "kept" in line]

    out = checkout.folder / "runs" / "good"
    assert kept() == []
    first = read_json(out / "run.json")["runs"]
    assert "results/emoji_01_good.json" in first[1]["outputs"]
    assert len(kept()) == 2
    assert read_json(out / "run.json")["runs"] == first
    (out / "results" / "emoji_01_good.json").unlink()  # only the notebook that wrote it runs again
    assert ["scenes" in line for line in kept()] == [True]
    checkout.notebook("01_good", "1 / 0")
    assert kept() == []
    assert not list((out / "results").iterdir())  # no earlier result is taken for the failed one
    assert not [run for run in read_json(out / "run.json")["runs"] if "key" in run]


def test_edited_files_cause_a_rerun_and_relative_paths_elsewhere_are_other_settings(checkout, command, monkeypatch):
    pages = lambda run, out, *_, **__: [write_json(out / name, {}) for name in runner._outputs(run, out)]  # noqa: E731
    monkeypatch.setattr(runner, "run_notebook", pages)
    monkeypatch.chdir(checkout.folder)
    checkout.profile("one", GOOD)
    words = "--profile one -p dataset mine.csv -p preset p.yaml".split()
    for path in (Path("p.yaml"), checkout.collection("mine.csv"), Path("0.png"), Path("p.yaml")):
        with path.open("a") as file:
            file.write("\n")
        assert [command(*words)[1].count("kept") for _ in range(2)] == [0, 1], path
    monkeypatch.chdir(shutil.copytree(checkout.folder, checkout.folder.parent / "b"))
    assert f"dataset was {checkout.folder}/mine.csv, is {Path.cwd()}/mine.csv" in command(*words)[2]


FAILING = [("raise KeyError('the reason')", 30, "KeyError: 'the reason'")]
FAILING += [("import time\ntime.sleep(8)", 1, "TimeoutError: longer than the 1 s")]
FAILING += [("import os\nos._exit(3)", 30, "DeadKernelError: the kernel died")]


@pytest.mark.parametrize(("cell", "limit", "reason"), FAILING)
def test_a_failing_notebook_prints_one_line_and_is_saved(checkout, command, cell, limit, reason):
    checkout.notebook("02_bad", "print('kept')", cell)
    checkout.profile("bad", {"notebook": "02_bad"}, cell_timeout_seconds=limit)
    saved = checkout.folder / "runs" / "bad" / "scenes" / "02_bad.ipynb"
    code, _, errors = command("--profile", "bad")
    assert errors.startswith(f"FAILED 02_bad (scenes), cell [4]: {reason}")
    assert (code, errors.count("\n")) == (1, 1)  # no noise from the kernel
    assert str(saved) in errors
    assert "kept" in str(nbformat.read(saved, 4).cells)
    assert not saved.with_suffix(".html").exists()
    assert not list(saved.parents[1].rglob(".*"))


def test_after_a_failure_running_notebooks_finish_and_no_others_start(checkout, command, monkeypatch):
    monkeypatch.setattr("joblib.cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    failed = checkout.folder / "runs" / "both" / "scenes" / "02_bad.ipynb"
    wait = f"import os, time\nwhile not os.path.exists({str(failed)!r}): time.sleep(0.1)\ntime.sleep(2)"
    checkout.notebook("01_good", f"{wait}\nassert os.environ['OMP_NUM_THREADS'] == '2'")
    checkout.notebook("03_later", "x = 1")
    names = ("02_bad", "01_good", "03_later")
    checkout.profile("both", *({"notebook": name} for name in names), at_once=2)
    code, output, errors = command("--profile", "both")
    assert (code, errors.count("FAILED 02_bad (scenes)"), "[2/3] 01_good (scenes) done" in output) == (1, 1, True)
    record = read_json(checkout.folder / "runs" / "both" / "run.json")
    assert [bool(run.get("outputs")) for run in record["runs"]] == [True, False, False]  # in the order of the notebooks


def test_an_interrupted_run_leaves_no_partial_files_and_can_be_continued(checkout, command):
    checkout.notebook("03_wait", "import time\ntime.sleep(60)")
    names = ("scenes", "emoji")[: cpu_count()]  # which run at the same time
    both = [{"notebook": "03_wait", "parameters": {"dataset": name}} for name in names]
    checkout.profile("wait", GOOD, *both, at_once=2)
    words, pipes = [sys.executable, "-c", RUNNER, checkout.folder, "--profile", "wait"], {"stdout": -1, "stderr": -1}
    process = subprocess.Popen(words, text=True, start_new_session=True, **pipes)
    out = checkout.folder / "runs" / "wait"
    partial_files, deadline = [out / name / ".partial-03_wait.ipynb" for name in names], time.monotonic() + 120
    while not all(file.is_file() and '"status": "running"' in file.read_text() for file in partial_files):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert "another process is writing into" in command("--profile", "wait")[2]
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "\nrvlr: interrupted; run the same command again to continue\n")
    files = sorted(str(path.relative_to(out)) for name in names for path in (out / name).iterdir())
    assert files == ["scenes/01_good.html", "scenes/01_good.ipynb"]
    assert not (out / "report.md").exists()
    checkout.notebook("03_wait", "x = 1")
    assert "kept" in command("--profile", "wait")[1].splitlines()[2]
    assert all("key" in run for run in read_json(out / "run.json")["runs"])


UNFIT = [({"output_dir": "x"}, "unknown parameter 'output_dir'; valid: arms"), ({"seed": "one"}, '"seed": .*one')]
UNFIT += [({"device": "cuda:99"}, "device 'cuda:99' is not available: .*valid: auto, cpu")]
UNFIT += [({"dataset": name}, f"{name} is missing") for name in ("no/such.csv", "nope")]
UNFIT += [({"dataset": "bad.csv"}, "bad.csv has columns a"), ({"dataset": ""}, '"dataset": is empty')]
UNFIT += [({"preset": name}, f"unknown preset '{name}'") for name in ("nope.yaml", "nope")]
UNFIT += [({"preset": "bad.yaml"}, "bad.yaml: seed is -1")]


@pytest.mark.parametrize(("parameters", "reason"), UNFIT)
def test_parameters_are_checked_before_anything_is_written(checkout, parameters, reason, monkeypatch, refuses):
    monkeypatch.chdir(checkout.folder)
    Path("bad.csv").write_text("a,b\n1,2\n")
    Path("bad.yaml").write_text("seed: -1")
    refuses(reason, runner.reproduce, "good", root=checkout.folder, parameters=parameters)
    assert not (checkout.folder / "runs").exists()


SEDE, SEED = GOOD | {"parameters": {"sede": 1}}, GOOD | {"parameters": {"seed": 2}}
ODD = [("unknown parameter 'sede'; valid: arms", [SEDE], {})]  # reason, runs, other keys
ODD += [("unknown parameter 'sede'", [GOOD], {"parameters": {"sede": 1}}), ("write the same files", [GOOD, SEED], {})]
BOTH = {"01_good": "a/b.csv", "02_bad": "c/b.csv"}
MINE = [{"notebook": book, "parameters": {"dataset": name}} for book, name in BOTH.items()]
ODD += [("'b' of c/b.csv is taken", MINE, {})]
ODD += [("'report.html' of ", [GOOD], {"parameters": {"dataset": "report.html.x"}})]
ODD += [("unknown notebook '09_gone'; valid: 01_good, 02_bad", [{"notebook": "09_gone"}], {})]
ODD += [("not a valid profile: .*at_once.* 0 is not", [GOOD], {"at_once": 0})]
ODD += [("not a valid profile: 'notebook'", [{}], {}), ("unknown notebook '.1.'", [{"notebook": [1]}], {})]
ODD += [("valid profile: 'int'", *odd) for odd in (([GOOD], {"parameters": 5}), ([GOOD | {"parameters": 5}], {}))]
ODD += [(f"valid profile: .*{key}", [GOOD], {key: "x"}) for key in ("a", "expected_seconds", "cell_timeout_seconds")]


@pytest.mark.parametrize(("reason", "runs", "more"), ODD)
def test_an_invalid_profile_is_refused(checkout, reason, runs, more, refuses):
    checkout.profile("odd", *runs, **more)
    refuses(reason, load_profile, "odd", root=checkout.folder)


def test_precedence_of_parameters_and_which_notebooks_get_them(checkout, refuses):
    checkout.notebook("03_other", "1", parameters='size: int = 1\noutput_dir: str = ""')
    checkout.profile("mixed", {"notebook": "03_other"}, SEED, parameters={"seed": 1, "rate": 1, "size": 7})
    path = str(checkout.folder / "notebooks" / "profiles" / "mixed.yaml")
    _, _, (other, good) = load_profile(path, {"rate": "2e-1"}, root=checkout.folder)
    assert (other.dataset, other.parameters) == ("all", {"size": 7})
    assert good.parameters == {"seed": 2, "rate": 0.2}
    assert load_profile("mixed", {"seed": 3}, root=checkout.folder)[2][1].parameters["seed"] == 3
    for parameters in ("x = 1", ""):
        book = checkout.notebook("04", parameters=parameters)
        refuses("04.ipynb: it needs a cell tagged 'parameters'", notebook_parameters, book)


@pytest.mark.parametrize(("writes", "left"), [([], ["made_by.json", "old"]), (["new"], ["made_by.json", "new"])])
def test_what_is_overwritten_stays_until_something_new_is_there(tmp_path, writes, left, refuses):
    @claimed_folder(tmp_path, {"a": 2}, overwrite=True, owned=lambda _: ["old"])
    def overwrite():
        for name in writes:
            (tmp_path / name).touch()
        raise ValueError("no")

    for folder in ("old", ".replaced/old/x"):  # the latter was left by a killed process
        (tmp_path / folder).mkdir(parents=True)
    write_json(tmp_path / "made_by.json", {"a": 1})
    refuses("no", overwrite)
    assert (read_json(tmp_path / "made_by.json")["a"], sorted(os.listdir(tmp_path))) == (1 + len(writes), left)


def test_output_of_other_settings_is_never_replaced_silently(checkout, command, monkeypatch):
    monkeypatch.setattr(runner, "run_notebook", lambda *args, **options: None)
    out = checkout.folder / "runs" / "good"
    assert command("--profile", "good", "-p", "seed", "1")[0] == 0
    (out / "results").mkdir()
    before = (out / "run.json").read_text()
    code, _, errors = command("--profile", "good", "-p", "seed", "2")
    assert code == 2
    assert "01_good (scenes), seed was 1, is 2" in errors
    assert "--overwrite" in errors
    assert (out / "run.json").read_text() == before
    assert "profile was good, is bad" in command("--profile", "bad", "--out", out)[2]
    (out / "mine.txt").write_text("mine")
    assert command("--profile", "good", "--overwrite")[0] == 0
    assert not (out / "results").exists()
    assert (out / "mine.txt").exists()
    (out / "run.json").write_text((out / "run.json").read_text().replace('"dataset": "scenes"', '"dataset": ".."', 1))
    assert "'..', which lies elsewhere: choose another folder" in command("--profile", "good", "--overwrite")[2]
    (out / "run.json").unlink()
    assert "contains other files (mine.txt" in command("--profile", "good", "--overwrite")[2]
    code, _, errors = command("--profile", "good", "--out", "/proc/none")  # which is read-only
    assert (code, errors.count("\n")) == (2, 1)
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10**7}))
    assert "only 0.0 GB are free" in command("--profile", "good")[2]


def test_check_lists_what_moved(checkout, command):
    path = checkout.folder / "data" / "reference" / "short.json"
    path.parent.mkdir(parents=True)
    checkout.profile("short", GOOD)
    short, name = ("--profile", "short"), "scenes_01_good"
    assert "short.json is missing: --update-reference writes it" in command(*short, "--check")[2]
    assert not (checkout.folder / "runs").exists()
    assert command(*short, "--update-reference")[0] == 0
    reference = read_json(path)
    assert reference["metrics"] == {name: {"rvlr | r_mean": 30.0, "rvlr | loss": 0.1}}
    assert reference["tolerance"] == {"default": 3.0, "patterns": {}}
    reference["tolerance"]["patterns"] = {"*loss*": 0.05}
    reference["metrics"][name] |= {"rvlr | r_mean": 33.5, "gone": 1.0}
    write_json(path, reference)
    code, output, _ = command(*short, "--check")
    moved = f"{name}: rvlr | r_mean: 33.5 -> 30 (moved -3.5, allowed 3)", f"{name}: gone: missing, the reference has 1"
    assert (code, output.splitlines()[-3:]) == (1, ["2 numbers moved:", *moved])
    out = checkout.folder / "runs" / "short"
    reference["metrics"][name] = {"rvlr | r_mean": 32.9, "rvlr | loss": 0.16}
    assert compare(out, reference) == [f"{name}: rvlr | loss: 0.16 -> 0.1 (moved -0.06, allowed 0.05)"]
    reference["metrics"][name] = {"rvlr | r_mean": None}
    assert len(compare(out, reference)) == 2  # one was null, one is new
    write_json(path, reference)
    assert command(*short, "--update-reference", "--check")[0] == 1
    assert read_json(path)["tolerance"]["patterns"] == {"*loss*": 0.05}
    assert compare(out, read_json(path)) == []
