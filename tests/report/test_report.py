import re

import pandas as pd
import pytest

from rvlr_lib import cli
from rvlr_lib.disk import read_json, write_json, write_text
from rvlr_lib.figures.style import new_figure
from rvlr_lib.report import report
from rvlr_lib.report.output import RunOutput

NAME = "03_retrieval_results"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of two notebooks on data sets whose names need escaping; the second has not finished."""
    monkeypatch.setenv("RVLR_HEADLESS", "1")
    folder = tmp_path / "run {a} 'b'"
    runs = [
        {"notebook": NAME, "dataset": "my birds", "parameters": {"dataset": "in/my birds.csv"}, "seconds": 1.5},
        {"notebook": "04_common_space_umap", "dataset": "scenes", "parameters": {"seed": 1, "image_root": "my pics"}},
    ]
    origin = {"commit": "abc", "platform": "Linux", "versions": {"torch": "2.15.0"}}
    record = {"profile": "smoke", "description": "tiny <b>", "command": "rvlr reproduce", "runs": runs}
    write_json(folder / "run.json", record | {"provenance": origin})
    output = RunOutput(NAME, "in/my birds.csv", folder, "page", settings={"stage1": {"epochs": 3}})
    columns = {"r_mean": [32.04, None], "a_b%&": [1.0, 2.0], "effect": ["−1.5 …", "≥ 2 →"]}
    frame = pd.DataFrame(columns, index=pd.Index(["rvlr", "x_y"], name="arm"))
    output.table(frame, "retrieval")
    output.table(frame, "more")
    output.table(frame.head(0), "nothing")
    output.figure(lambda: new_figure(2, 1), "z first", frame, "Recall of *all* arms <higher is better>.")
    output.figure(lambda: new_figure(2, 1), "a_second", frame, "a second")
    for number in range(7):
        output.say(f"Sentence {number} about a_b.")
    output.save()
    return folder


def test_the_report(run, tmp_path):
    write_text(tmp_path / "data" / "README.md", "## my birds\nours, not those of a file\n## x\n")
    assert report.data_card({"dataset": "my birds", "parameters": {}}, tmp_path) == "ours, not those of a file"
    path = report.write_report(run, root=tmp_path)
    text, page = path.read_text(encoding="utf-8"), path.with_suffix(".html").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == ["Results", "Figures", "How it was made"]
    assert all(page.count(f">{heading}<") == 2 for heading in headings)  # in the sidebar and as a heading
    assert re.findall(r"^\d\. (.*)$", text, re.MULTILINE) == [rf"Sentence {n} about a\_b." for n in range(5)]
    assert re.search(r"^\| (rvlr|RVLR) \| 32\.0", text, re.MULTILINE)
    assert text.index("**retrieval**") < text.index("<summary>more</summary>") < text.index("z%20first.png")
    assert text.index("z%20first.png") < text.index("a_second.png")  # in the order of the notebook
    assert "nothing" not in text
    assert "\nTiny &lt;b&gt;.\n" in text
    phrases = r"**Not finished**: 04\_common\_space\_umap (scenes)", "rvlr data check 'in/my birds.csv'\n"
    phrases += ("rvlr data check scenes --image-root 'my pics'\n", '"epochs": 3', "In total 2 s.")
    assert [phrase for phrase in phrases if phrase not in text] == []
    plain = re.sub('<style>.*?</style>|base64,[^"]*', "", page, flags=re.DOTALL)
    assert "nan" not in plain.lower()
    assert "http" not in plain.replace("http-equiv", "")
    pictures = re.findall(r'<img src="data:image/png;base64,[^"]*" alt="([^"]*)"', page)
    assert pictures == ["Recall of *all* arms &lt;higher is better&gt;.", "a second"]
    links = re.findall(r'href="((?:tables|figures)/[^"]+)"', page)
    assert len(links) == 8
    assert all((run / link.replace("%20", " ")).is_file() for link in links)


def test_claims_and_settings_are_listed_once(run, tmp_path):
    page = "# Claims\n\n- a: −1.00 to +2.00\n\n## Companions\n\ntwice"
    write_text(tmp_path / "data" / "reference" / "study" / "claims.md", page)
    settings = {"seed": 1, "stage1": {"epochs": 4, "lr": 0.1}}
    path = run / "results" / f"my birds_{NAME}.json"
    first = read_json(path) | {"settings": settings}
    first |= {"tables": {"claims": [{"x": "twice"}], "ids": [{"x": "<img src=x>"}]}}
    write_json(path, first)
    other = {"settings": {"seed": 2, "stage1": {"epochs": 3, "lr": 0.1}}, "tables": {}, "figures": {}}
    write_json(run / "results" / "scenes_04_common_space_umap.json", first | other)
    text = report.write_report(run, root=tmp_path).read_text(encoding="utf-8")
    assert ("twice" in text, text.count('"lr"')) == (False, 1)
    assert text.count("Sentence 0") == 1  # of two runs of one notebook
    assert re.findall("^- scenes.*: (.*)$", text, re.MULTILINE) == ["`seed` 2", "`stage1.epochs` 3"]
    assert "<img src=x>" not in (run / "report.html").read_text(encoding="utf-8")
    assert "−1.00&nbsp;to&nbsp;+2.00" in (run / "report.html").read_text(encoding="utf-8")
    assert report.markdown_html("# I want to …").startswith('<h1 id="i-want-to-">')


def test_damage_is_named(run, capsys, refuses):
    (run / "figures" / "my birds_a_second.png").unlink()
    refuses(r"my birds_a_second\.png is missing: `rvlr reproduce` draws it again", report.write_report, run)
    (run / "results" / f"my birds_{NAME}.json").write_text("{")
    assert cli.main(["report", str(run)]) == 2
    assert f"my birds_{NAME}.json cannot be read" in capsys.readouterr().err


def test_tables_are_printed(run, capsys):
    report.write_report(run)
    name, table = f"my birds_{NAME}_retrieval", ["table", "--run", str(run), "--select"]
    begins = {"md": f"**{name}**\n\n| arm | r_mean |", "csv": "arm,r_mean,a_b%&,effect\nrvlr,32.04,"}
    for form, begin in (begins | {"tex": "\\begin{tabular}"}).items():
        assert cli.main([*table, "*_retrieval", "--format", form]) == 0
        assert capsys.readouterr().out.startswith(begin)
    assert cli.main([*table, "x"]) == 2
    assert f"there are: my birds_{NAME}_more, " in capsys.readouterr().err
