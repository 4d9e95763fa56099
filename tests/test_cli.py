import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rvlr_lib import cli

NAMES = ["reproduce", "study", "train", "audit", "explore", "report", "table", "data", "config"]


def test_help_lists_the_commands_without_torch():
    check = "assert not {'torch', 'numpy'} & set(sys.modules)"
    code = f"import sys, rvlr_lib.cli as c\ntry: c.main(['--help'])\nfinally: {check}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert [command.__name__ for command in cli.COMMANDS] == NAMES
    assert all(f"    {name} " in run.stdout for name in NAMES)
    used = {option.partition("=")[0] for options in cli.COMMANDS.values() for option in options.split()}
    assert used == set(cli.OPTIONS)


@pytest.mark.parametrize("command", cli.COMMANDS, ids=NAMES)
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command.__name__, "--help"])
    assert stop.value.code == 0
    assert command.__doc__.split()[0] in capsys.readouterr().out


WRONG = [
    "",
    "nonsense",
    "reproduce --prof smoke",
    "data",
    "data heal x",
    "train --save-every x",
    "train --resume step-3",
]


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(argv.split())
    assert stop.value.code == 2
    assert "usage: rvlr" in capsys.readouterr().err


BAD = {
    "reproduce -p seed": "'seed': a name and its value are needed",
    "reproduce -p =seed": "'=seed': a name and its value are needed",
    "reproduce --profile huge": "unknown profile 'huge'; valid: ",
    "study --jobs 0": "--jobs 0",
    "train --save_every 0": "--save-every 0",
    "report none --claims": "say what to report",
    "report": "say what to report",
    "audit": "give --image-features",
    "audit --dataset scenes --captions x": "give --image-features",
    "explore none": "none holds no run",
    "table --run none": "none holds no run",
    "config flickr30k -s stage1.epoch 3": "does not accept option 'stage1.epoch': valid are epochs",
}


@pytest.mark.parametrize("argv", BAD)
def test_bad_input_is_one_line_and_exit_code_2(argv, capsys, monkeypatch):
    assert cli.main(argv.split()) == 2
    told = capsys.readouterr()
    assert told.err.startswith("rvlr: ")
    assert BAD[argv] in told.err
    assert (told.err.count("\n"), told.out) == (1, "")
    monkeypatch.setenv("RVLR_DEBUG", "1")
    with pytest.raises(ValueError, match=re.escape(BAD[argv])):
        cli.main(argv.split())


def test_config_prints_what_presets_resolve_to(capsys):
    assert cli.main(["config", "flickr30k", "official", "-s", "stage1.epochs", "3", "-s", "model.pretrained=x"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["stage1"]["epochs"], settings["model"]["pretrained"], settings["seed"]) == (3, "x", 0)
    assert settings["method"]["structure_target"] == "fusion"


@pytest.fixture
def given(monkeypatch):
    """Function (module, function, what it does) -> the options that the command hands on to it."""

    def stand_in(module, name, does=lambda: None):
        options = {}
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{name: lambda **own: options.update(own) or does()}))
        return options

    return stand_in


def test_train_hands_its_options_on(given, capsys):
    options = given("rvlr_lib.study.train", "train")
    words = "--dataset in/birds.csv --arm matching --save_every 3 --compile --out x -s stage1.epochs 2 -s rate=0.1"
    assert cli.main(["train", *words.split()]) == 0
    wanted = {"dataset": "in/birds.csv", "arm": "matching", "preset": "", "method": "corrected", "image_root": None}
    wanted |= {"seed": 0, "device": "auto", "out": Path("x"), "overwrite": False, "root": None, "resume": "last"}
    wanted |= {"save_every": 3, "compile": True, "gradient_checkpointing": False, "timeout": 1800.0}
    assert options == wanted | {"overrides": {"stage1.epochs": 2, "rate": 0.1}}

    def diverge():
        raise FloatingPointError("matching, step 3: the loss is nan")

    given("rvlr_lib.study.train", "train", diverge)
    assert cli.main(["train"]) == 1
    assert "step 3: the loss is nan. Checkpoints stay; a smaller learning_rate" in capsys.readouterr().err


def test_study_hands_its_options_on(given):
    options = given("rvlr_lib.study.sweep", "run_study")
    assert cli.main("study --tune --seeds 0-3 --jobs 2 --sets scenes".split()) == 0
    assert options.pop("say") is cli.say
    wanted = {"profile": "study", "tune": True, "seal": False, "regime_map": False, "sets": "scenes", "seeds": "0-3"}
    assert options == wanted | {"jobs": 2, "scheduler": "", "results": "", "device": "auto", "root": None}


@pytest.mark.parametrize(
    ("does", "code", "told"),
    [
        ("return None", 0, ""),
        ("raise ValueError('no')", 2, "rvlr, process 1: no"),
        ("raise KeyboardInterrupt", 130, ""),
        ("raise RuntimeError('lost')", 1, "RuntimeError: lost\nrvlr, process 1: stopped. If another process died"),
    ],
)
def test_one_process_among_several_ends_with_its_code_and_without_output(does, code, told):
    script = (
        f"import sys, types\nfrom rvlr_lib import cli\ndef train(**options):\n    print('noise')\n    {does}\n"
        f"sys.modules['rvlr_lib.study.train'] = types.SimpleNamespace(train=train)\ncli.main(['train'])"
    )
    environment = os.environ | {"WORLD_SIZE": "2", "RANK": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert told in done.stderr


def test_data_check_hands_its_options_on(monkeypatch, capsys):
    from rvlr_lib.data import check

    class Report:
        spoiled, status = False, 0

        def __str__(self):
            return "42 pictures — ready"

    given = []
    monkeypatch.setattr(check, "check", lambda *args, **options: given.append((args, options)) or Report())
    assert cli.main("data check birds.csv --model none --image-root pics --max-bad-pictures 2".split()) == 0
    options = {"full": False, "image_root": "pics", "max_bad_pictures": 2, "keep_flagged": None}
    assert given == [(("birds.csv",), options | {"image_column": None, "caption_column": None})]
    assert capsys.readouterr().out.startswith("42 pictures — ready\nheaders only")
    Report.spoiled, Report.status = True, 1
    assert cli.main("data check birds.csv --model none".split()) == 1


def test_output_is_utf8_under_any_locale():
    script = "from rvlr_lib import cli\ncli.main(['explore', 'ほ'])"
    environment = os.environ | {"PYTHONIOENCODING": "latin-1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment)
    assert re.search("ほ holds no run", done.stderr.decode("utf-8"))
