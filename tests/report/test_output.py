import pandas as pd
import papermill
import pytest

from rvlr_lib.disk import own_folder, read_json, write_json
from rvlr_lib.figures.style import is_narrow, new_figure
from rvlr_lib.report.output import RunOutput, check_parameters, fit_parameters, read_results, read_run


def test_a_notebook_leaves_figures_tables_sentences_and_one_result(tmp_path, capsys):
    output = RunOutput("02_training", "some/mine.json", tmp_path, settings={"seed": 1})
    frame = pd.DataFrame({"r_mean": [1.0, float("nan")]}, index=pd.Index(["rvlr", "floor"], name="arm"))
    figure, widths = new_figure(1, 1), []
    assert output.table(frame, "main") is frame
    assert output.figure(figure, "curve", frame, "A curve.") is figure
    output.figure(lambda: widths.append(is_narrow()) or new_figure(1, 1), "both", frame)
    output.keep("rvlr", {"r_mean": 1.0})
    output.say("RVLR is above.")
    assert output.save() == tmp_path / "results" / "mine_02_training.json"
    found = read_json(tmp_path / "results" / "mine_02_training.json")
    assert set(found.pop("provenance")) == {"commit", "versions", "platform", "seconds"}
    assert found == {
        "notebook": "02_training",
        "dataset": "mine",
        "settings": {"seed": 1},
        "metrics": {"rvlr | r_mean": 1.0},
        "tables": {"main": [{"arm": "rvlr", "r_mean": 1.0}, {"arm": "floor", "r_mean": None}]},
        "figures": {"mine_curve": "A curve.", "mine_both": "both"},
        "sentences": ["RVLR is above."],
    }
    assert "RVLR is above.\n" in capsys.readouterr().out
    output.figure_width = "column"
    output.figure(lambda: widths.append(is_narrow()) or new_figure(1, 1), "narrow", frame)
    assert widths == [True, False, True]
    written = {path.relative_to(tmp_path / "figures").as_posix() for path in (tmp_path / "figures").rglob("*.*")}
    names = ("mine_curve", "mine_both", "column/mine_both", "mine_narrow")
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "csv")}


def test_interactive_output_leaves_a_finished_run_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    monkeypatch.delenv("RVLR_HEADLESS", raising=False)
    assert RunOutput("02", "scenes").folder == tmp_path / "lab"
    write_json(tmp_path / "quick" / "run.json", {})
    with pytest.raises(ValueError, match="quick is a run of `rvlr reproduce`"):
        RunOutput("02", "scenes", tmp_path / "quick")
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    RunOutput("02", "scenes", tmp_path / "quick")


KINDS = {"n": int, "rate": float, "on": bool, "name": str, "dials": list[float], "maybe": int | None}
KINDS |= {"variants": list[str], "baseline": str, "figure_width": str}
FIT = [("n", "3", 3), ("rate", 2, 2.0), ("rate", "1e-3", 0.001), ("on", "true", True), ("name", "3", "3")]
FIT += [("dials", "[0.6, 1]", [0.6, 1.0]), ("maybe", None, None), ("maybe", "null", None), ("baseline", "", "")]
FIT += [("variants", "['rvlr']", ["rvlr"])]
UNFIT = [
    ("n", "a", "must be int, not 'a'"),
    ("n", 2.5, "must be int"),
    ("n", True, "must be int"),
    ("n", None, "not None"),
    ("rate", "half", "must be float"),
    ("on", 1, "must be bool"),
    ("name", 3, "must be str"),
    ("variants", "rvlr", r"must be list\[str\], not 'rvlr'"),
    ("variants", ["foo"], "unknown 'foo'; valid: .*rvlr"),
    ("baseline", "foo", "unknown 'foo'"),
    ("figure_width", "wide", "valid: both, page, column"),
    ("sede", 1, "unknown parameter 'sede'; valid: baseline, dials"),
]


@pytest.mark.parametrize(("name", "value", "expected"), FIT)
def test_values_take_the_type_of_the_annotation(name, value, expected):
    result = fit_parameters(KINDS, {name: value})[name]
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(("name", "value", "described"), UNFIT)
def test_unfit_values_are_refused(name, value, described):
    with pytest.raises(ValueError, match=described):
        fit_parameters(KINDS, {name: value})


def test_plain_papermill_fails_in_the_first_cell(checkout):
    check = "from rvlr_lib.report.output import check_parameters\ncheck_parameters(globals())"
    path = checkout.notebook("03_check", check, "assert seed == 2 and type(rate) is float")
    target = checkout.folder / "out.ipynb"
    papermill.execute_notebook(path, target, {"seed": "2", "rate": 1}, progress_bar=False)
    for given, described in (({"device": None}, "parameter 'device' must be str"), ({"sede": 1}, "unknown parameter")):
        with pytest.raises(papermill.PapermillExecutionError, match=described) as failure:
            papermill.execute_notebook(path, target, given, progress_bar=False)
        assert failure.value.ename == "ValueError"
    space = {"__annotations__": {"seed": int}, "seed": "4", "In": ["", "# Parameters\nseed = '4'\n"]}
    check_parameters(space)
    assert space["seed"] == 4


def test_reading_a_run_names_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="holds no run.*`rvlr reproduce` makes one"):
        read_run(tmp_path)
    run = {"notebook": "03", "dataset": "mine", "parameters": {}, "outputs": ["results/mine_03.json"]}
    record = {"profile": "x", "description": "", "runs": [run], "command": "", "provenance": {}}
    for bad, what in (({"runs": []}, "command"), (record | {"runs": [{"notebook": "03"}]}, "dataset"), ([], ".*")):
        write_json(tmp_path / "run.json", bad)
        with pytest.raises(ValueError, match=rf"run.json lacks '?{what}'?.*: `rvlr reproduce"):
            read_run(tmp_path)
    write_json(tmp_path / "run.json", record)
    with pytest.raises(ValueError, match=r"mine_03.json is missing, though"):
        read_results(tmp_path)
    write_json(tmp_path / "results" / "mine_03.json", {"metrics": {}})
    with pytest.raises(ValueError, match="lacks metrics or tables"):
        read_results(tmp_path)


def test_a_folder_belongs_to_one_process_and_one_setting(tmp_path):
    with own_folder(tmp_path / "a", {"seed": 1}) as earlier:
        assert earlier == {}
        with pytest.raises(ValueError, match="another process is writing"), own_folder(tmp_path / "a", {"seed": 1}):
            pass
    with own_folder(tmp_path / "a", {"seed": 1}) as earlier:
        assert earlier == {"seed": 1}
    with pytest.raises(ValueError, match="seed was 1, is 2"), own_folder(tmp_path / "a", {"seed": 2}):
        pass
    assert read_json(tmp_path / "a" / "made_by.json") == {"seed": 1}
    with own_folder(tmp_path / "a", {"seed": 2}, overwrite=True):
        pass
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"holds other things \(thesis.tex\)"), own_folder(tmp_path / "b", {}):
        pass
