import re

import pandas as pd
import papermill
import pytest

from rvlr_lib.disk import read_json, write_json, write_text
from rvlr_lib.figures.style import is_narrow, new_figure
from rvlr_lib.report.output import RunOutput, check_parameters, fit_parameters, read_results


def test_a_notebook_writes_figures_tables_sentences_and_one_result(tmp_path):
    output = RunOutput("02_training", "some/mine.json", tmp_path, settings={"seed": 1})
    frame = pd.DataFrame({"r_mean": [1.0, float("nan")]}, index=pd.Index(["rvlr", "floor"], name="arm"))
    widths = []
    table = output.table(frame.assign(what=["a<b", "−1.00 to +2.50"]), "main")
    assert repr(table).splitlines()[2:] == ["| RVLR | 1.0 | a<b |", "| floor | – | −1.00 to +2.50 |"]
    cells = re.findall("<td([^>]*)>(.*?)</td>", table._repr_html_())
    assert [text for _, text in cells] == ["RVLR", "1.0", "a&lt;b", "floor", "–", "−1.00&nbsp;to&nbsp;+2.50"]
    assert ["right" in style for style, _ in cells[:3]] == [False, True, False]
    output.table(frame, "main")
    for output.figure_width in ("both", "page", "column"):
        output.figure(lambda: widths.append(is_narrow()) or new_figure(1, 1), output.figure_width, frame, "A curve.")
    assert widths == [True, False, False, True]
    output.keep("rvlr", {"r_mean": 1.0})
    output.say("RVLR is above.")
    assert output.save() == tmp_path / "results" / "mine_02_training.json"
    record = read_json(tmp_path / "results" / "mine_02_training.json")
    assert set(record.pop("provenance")) == {"commit", "versions", "platform", "seconds"}
    expected = {"notebook": "02_training", "dataset": "mine", "settings": {"seed": 1}, "sentences": ["RVLR is above."]}
    expected |= {"tables": {"main": [{"arm": "rvlr", "r_mean": 1.0}, {"arm": "floor", "r_mean": None}]}}
    expected |= {"figures": dict.fromkeys(("mine_both", "mine_page", "mine_column"), "A curve.")}
    assert record == expected | {"source": "some/mine.json", "metrics": {"rvlr | r_mean": 1.0}}
    written = {path.relative_to(tmp_path / "figures").as_posix() for path in (tmp_path / "figures").rglob("*.*")}
    names = ("mine_both", "column/mine_both", "mine_page", "mine_column")
    assert written == {f"{name}.{suffix}" for name in names for suffix in ("png", "pdf", "csv")}


def test_results_of_a_headless_run_and_of_another_file_are_kept(tmp_path, monkeypatch, refuses):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    assert RunOutput("02", "scenes").folder == tmp_path / "lab"
    write_json(tmp_path / "quick" / "run.json", {})
    refuses("quick is a run of `rvlr reproduce`", RunOutput, "02", "scenes", tmp_path / "quick")
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    RunOutput("02", "scenes", tmp_path / "quick")
    one, two = (tmp_path / name / "mine.csv" for name in ("one", "two"))
    write_text(one, "")
    for path in (one, one):
        RunOutput("02", str(path), tmp_path).save()
    refuses("mine_02.json holds results of", RunOutput, "02", str(two), tmp_path)
    one.rename(tmp_path / "moved.csv")
    RunOutput("02", str(two), tmp_path)


KINDS = {"n": int, "rate": float, "on": bool, "dials": list, "arms": list, "seeds": int, "seed": int, "k": int}
KINDS |= {"shares": list, "text_detail": float, "projections": list}
KINDS |= dict.fromkeys(("name", "baseline", "figure_width"), str)
FIT = [("n", "3", 3), ("rate", 2, 2.0), ("rate", "1e-3", 0.001), ("on", "true", True), ("name", "3", "3")]
FIT += [("shares", "[0, 1]", [0.0, 1.0]), ("text_detail", "0.5", 0.5), ("dials", "[0.6, 1]", [0.6, 1])]
FIT += [("baseline", "", ""), ("arms", "['rvlr']", ["rvlr"])]
UNFIT = [("n", "a", "int.*a"), ("n", True, "int"), ("n", None, "'n' needs a value"), ("arms", "rvlr", "list.*rvlr")]
UNFIT += [("arms", ["foo"], "'rvlr'.*foo"), ("baseline", "foo", "'rvlr'"), ("figure_width", "wide", "one of")]
UNFIT += [("sede", 1, "unknown parameter 'sede'; valid: arms, baseline"), ("seeds", 0, ">0"), ("arms", [], "least")]
UNFIT += [("shares", [5], "<=1"), ("text_detail", -1, "not >=0"), ("projections", ["tsne"], "'pca'"), ("k", 0, ">0")]
UNFIT += [("seed", 2**32, "less than 2.32"), ("seed", -1, ">=0")]


@pytest.mark.parametrize(("name", "value", "expected"), FIT)
def test_values_get_the_annotated_type(name, value, expected):
    result = fit_parameters(KINDS, {name: value})[name]
    assert (result, type(result)) == (expected, type(expected))


@pytest.mark.parametrize(("name", "value", "message"), UNFIT)
def test_unfit_values_are_refused(name, value, message, refuses):
    refuses(f"^[^\n]*{name}[^\n]*{message}|{message}", fit_parameters, KINDS, {name: value})


def test_plain_papermill_fails_in_the_first_cell(checkout):
    check = "from rvlr_lib.report.output import check_parameters\ncheck_parameters(globals())\n"
    path = checkout.notebook("03_check", check)
    with pytest.raises(papermill.PapermillExecutionError, match="ValueError: unknown parameter 'sede'"):
        papermill.execute_notebook(path, checkout.folder / "out.ipynb", {"sede": 1}, progress_bar=False)
    namespace = {"__annotations__": {"seed": int, "rate": float}, "seed": "4", "rate": 1}
    check_parameters(namespace)
    assert (namespace["seed"], type(namespace["rate"])) == (4, float)


def test_reading_results_names_what_is_wrong(tmp_path, refuses):
    record = {"profile": "x", "description": "", "command": "", "provenance": {}}
    run = {"notebook": "03", "dataset": "mine", "parameters": {}, "outputs": ["results/mine_03.json"]}
    for part in ({"dataset": ".."}, {"notebook": "../a"}, {"dataset": "/a"}):
        write_json(tmp_path / "run.json", record | {"runs": [run | part]})
        refuses("which is not a file name", read_results, tmp_path)
    write_json(tmp_path / "run.json", record | {"runs": [run]})
    refuses(r"mine_03.json is missing, though", read_results, tmp_path)
    (tmp_path / "results").mkdir()
    for damaged in ([], 5, {}):
        write_json(tmp_path / "results" / "mine_03.json", damaged)
        refuses(r"mine_03.json is not the result of a notebook", read_results, tmp_path)
