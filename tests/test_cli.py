import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

import rvlr_lib.study
from rvlr_lib import cli

COMMANDS = ["reproduce", "study", "train", "audit", "explore", "report", "table", "data check", "config"]


def test_help_lists_the_commands_without_torch():
    check = "assert not {'torch', 'numpy'} & set(sys.modules)"
    code = f"import sys, rvlr_lib.cli as c\ntry: c.main(['--help'])\nfinally: {check}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert list(cli.COMMANDS) == COMMANDS
    assert all(f"    {name.split()[0]} " in run.stdout for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_every_option_a_use(name, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*name.split(), "--help"])
    assert stop.value.code == 0
    assert cli.COMMANDS[name][0].__doc__.split()[0] in capsys.readouterr().out
    used = {option.partition("=")[0] for _, options in cli.COMMANDS.values() for option in options.split()}
    assert used == set(cli.OPTIONS)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["nonsense"],
        ["reproduce", "--prof", "smoke"],
        ["explore"],
        ["data"],
        ["train", "--save-every", "x"],
        ["train", "--resume", "step-3"],
        ["figures", "runs/quick"],
    ],
)
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage: rvlr" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "reason"),
    [
        (["reproduce", "-p", "seed"], "'seed': a name and its value are needed"),
        (["reproduce", "--profile", "huge"], "unknown profile 'huge'; valid: "),
        (["study", "--jobs", "0"], "--jobs 0"),
        (["train", "--save_every", "0"], "--save-every 0"),
        (["report", "none", "--claims"], "say what to report"),
        (["audit"], "give --image-features"),
        (["audit", "--dataset", "scenes", "--captions", "x"], "give --image-features"),
        (["explore", "none"], "none holds no run"),
        (["table", "--run", "none"], "none holds no run"),
        (["config", "flickr30k", "-s", "stage1.epoch", "3"], "unknown setting 'stage1.epoch'"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, reason, capsys):
    assert cli.main(argv) == 2
    told = capsys.readouterr()
    assert told.err.startswith("rvlr: ")
    assert reason in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_debug_shows_where_bad_input_came_from(monkeypatch):
    monkeypatch.setenv("RVLR_DEBUG", "1")
    with pytest.raises(ValueError, match="unknown profile"):
        cli.main(["reproduce", "--profile", "huge"])


def test_config_prints_what_presets_resolve_to(capsys):
    assert cli.main(["config", "flickr30k", "official", "-s", "stage1.epochs", "3", "-s", "model.pretrained=x"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["stage1"]["epochs"], settings["model"]["pretrained"], settings["seed"]) == (3, "x", 0)
    assert settings["method"]["structure_target"] == "fusion"


def stand_in(monkeypatch, name, **functions):
    """Put a module of these functions in the place of one of the study's."""
    module = SimpleNamespace(**functions)
    monkeypatch.setitem(sys.modules, f"rvlr_lib.study.{name}", module)
    monkeypatch.setattr(rvlr_lib.study, name, module, raising=False)


@pytest.fixture
def train(monkeypatch):
    """The options that ``rvlr train`` hands on; ``train.does`` is what the training then does."""
    given = {}

    def trained(**options):
        given.update(options)
        return trained.does()

    trained.does, trained.given = lambda: None, given
    stand_in(monkeypatch, "study", train=trained)
    return trained


def test_train_hands_its_options_on(train, capsys):
    words = "--dataset in/birds.csv --arm matching --save_every 3 --compile --out x -s stage1.epochs 2 -s rate=0.1"
    assert cli.main(["train", *words.split()]) == 0
    assert train.given == {
        "dataset": "in/birds.csv",
        "arm": "matching",
        "preset": "",
        "method": "corrected",
        "image_root": None,
        "seed": 0,
        "device": "auto",
        "out": Path("x"),
        "overwrite": False,
        "root": None,
        "resume": "last",
        "save_every": 3,
        "compile": True,
        "gradient_checkpointing": False,
        "timeout": 1800.0,
        "overrides": {"stage1.epochs": 2, "rate": 0.1},
    }

    def diverge():
        raise FloatingPointError("matching, step 3: the loss is nan")

    train.does = diverge
    assert cli.main(["train"]) == 1
    assert "step 3: the loss is nan. Checkpoints stay; a smaller learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        ("return 0", 0, ""),
        ("raise ValueError('no')", 2, "rvlr, process 1: no"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise RuntimeError('lost')", 1, "RuntimeError: lost\nrvlr, process 1: stopped. If another process died"),
    ],
)
def test_one_process_among_several_ends_with_its_code_and_without_output(does, code, told):
    script = (
        f"import sys, types, rvlr_lib.study\nfrom rvlr_lib import cli\n"
        f"def train(**options):\n    print('noise')\n    {does}\n"
        f"rvlr_lib.study.study = types.SimpleNamespace(train=train)\ncli.main(['train'])"
    )
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr


def test_study_hands_its_options_on(monkeypatch):
    given = {}
    stand_in(monkeypatch, "sweep", run_study=lambda **options: given.update(options))
    assert cli.main("study --tune --seeds 0-3 --jobs 2 -s stage1.epochs 2 -s a=b".split()) == 0
    assert given == {
        "profile": "study",
        "tune": True,
        "seeds": "0-3",
        "jobs": 2,
        "scheduler": "",
        "results": "",
        "device": "auto",
        "set": ["stage1.epochs=2", "a=b"],
    }


def test_data_check_hands_its_options_on(monkeypatch, capsys):
    given = []

    class Report:
        spoiled, status = False, 0

        def __str__(self):
            return "42 pictures — ready"

    checks = importlib.import_module("rvlr_lib.data.check")
    monkeypatch.setattr(checks, "check", lambda *args, **options: given.append((args, options)) or Report())
    assert cli.main("data check birds.csv --model none --image-root pics --max-bad-pictures 2".split()) == 0
    options = {
        "full": False,
        "image_root": "pics",
        "max_bad_pictures": 2,
        "image_column": None,
        "caption_column": None,
        "keep_flagged": None,
    }
    assert given == [(("birds.csv",), options)]
    assert capsys.readouterr().out.startswith("42 pictures — ready\nheaders only")
    Report.spoiled, Report.status = True, 1
    assert cli.main("data check birds.csv --model none".split()) == 1


def test_output_is_utf8_under_any_locale(tmp_path):
    script = "from rvlr_lib import cli\ncli.main(['explore', 'ほ'])"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert re.search("ほ holds no run", done.stderr.decode("utf-8"))
