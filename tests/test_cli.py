import subprocess
import sys

import pytest
import yaml

from rvlr_lib import cli
from rvlr_lib.disk import write_json


def test_help_lists_the_commands_without_torch():
    code = "import sys, rvlr_lib.cli as c\ntry: c.main(['--help'])\nfinally: assert 'torch' not in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr == ""
    assert all(name in run.stdout for name in cli.COMMANDS)


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["reproduce", "--prof", "smoke"], ["reproduce", "-p", "seed"]])
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: rvlr" in capsys.readouterr().err


def test_debug_shows_where_bad_input_came_from(monkeypatch):
    monkeypatch.setenv("RVLR_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown profile"):
        cli.main(["reproduce", "--profile", "huge"])


def test_table_prints_and_inserts(tmp_path, capsys):
    run, readme = tmp_path / "run", tmp_path / "README.md"
    write_json(run / "run.json", {"runs": [{"dataset": "scenes", "notebook": "03"}]})
    records = [{"model": "rvlr", "r_mean": 12.345}, {"model": "floor|", "r_mean": None}]
    write_json(run / "results" / "scenes_03.json", {"metrics": {}, "tables": {"main": records, "more": records}})
    table = "| model | r_mean |\n| --- | ---: |\n| rvlr | 12.3 |\n| floor\\| | – |"
    assert cli.main(["table", "--run", str(run), "--select", "*/main"]) == 0
    assert capsys.readouterr().out == f"**scenes_03/main**\n\n{table}\n"

    readme.write_text("a\n<!-- results:begin -->\nold\n<!-- results:end -->\nb\n")
    for _ in range(2):  # again changes nothing
        assert cli.main(["table", "--run", str(run), "--select", "*/main", "--insert", str(readme)]) == 0
        text = readme.read_text()
        assert text == f"a\n<!-- results:begin -->\n**scenes_03/main**\n\n{table}\n<!-- results:end -->\nb\n"
    readme.write_text("no markers")
    assert cli.main(["table", "--run", str(run), "--insert", str(readme)]) == 2
    assert readme.read_text() == "no markers"
    assert cli.main(["table", "--run", str(run), "--select", "x"]) == 2
    assert "there are: scenes_03/main, scenes_03/more" in capsys.readouterr().err
    assert cli.main(["table", "--run", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_config_prints_what_presets_resolve_to(capsys):
    assert cli.main(["config", "flickr30k", "official", "-s", "stage1.epochs", "3", "-s", "model.pretrained", "x"]) == 0
    text = capsys.readouterr().out
    settings = yaml.safe_load(text)
    assert (settings["stage1"]["epochs"], settings["stage2"]["epochs"], settings["seed"]) == (3, 10, 0)
    assert settings["model"]["pretrained"] == "x"
    assert settings["method"]["structure_target"] == "fusion"
    assert cli.main(["config", "flickr30k", "-s", "stage1.epoch", "3"]) == 2
    assert "unknown setting 'stage1.epoch'" in capsys.readouterr().err
