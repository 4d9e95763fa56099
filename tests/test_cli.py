import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from rvlr_lib import cli

NAMES = ["reproduce", "study", "train", "audit", "explore", "report", "table", "data", "config"]


def python(script, **environment):
    """Run a script in its own process."""
    return subprocess.run([sys.executable, "-c", script], capture_output=True, env=os.environ | environment)


def test_help_lists_the_commands_without_torch_and_each_command_has_its_own(capsys):
    check = "assert not {'torch', 'numpy', 'papermill', 'nbconvert', 'IPython'} & set(sys.modules)"
    run = python(f"import sys, rvlr_lib.cli as c\ntry: c.main(['--help'])\nfinally: {check}")
    assert (run.returncode, run.stderr) == (0, b"")
    assert all(f"    {name} " in run.stdout.decode() for name in NAMES)
    assert {option.partition("=")[0] for option in " ".join(cli.COMMANDS.values()).split()} == set(cli.OPTIONS)
    for name in NAMES:
        with pytest.raises(SystemExit, match="0"):
            cli.main([name, "--help"])
        assert f"usage: rvlr {name}" in capsys.readouterr().out


WRONG = ["nonsense", "reproduce --prof smoke", "reproduce -p seed", "data", "data heal x", "train --save-every x"]
WRONG += ["train --save_every 0", "train --timeout 0", "study --jobs 0", "data check x --max-bad-pictures x"]
WRONG += ["train --out o\udce9"]


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_exits_with_2(argv, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(argv.split())
    assert re.fullmatch("rvlr: (?!--check).*; `rvlr.* --help` lists the options\n", capsys.readouterr().err)


BAD = {"reproduce --profile huge": "unknown profile 'huge'; valid: ", "audit --captions x": "give --image-features"}
BAD |= {"report none --claims": "give either a run", "report": "give either a run"}
BAD |= {"audit --dataset scenes --captions x": "give --image-features", "train -s a @x": "-s a '@x' is not YAML"}
BAD |= {"study --seal --regime-map": "give one of tune, seal and regime_map"}
BAD |= {"study --tune --seal": "give one of tune, seal and regime_map"}
BAD |= {"audit --image-features a --text-features b --captions c --model d": "features are given: omit --model"}
BAD |= {"reproduce -p dataset my.csv": "write the same files (for a data set of your own: --profile own)"}
BAD |= {"reproduce -p study_results /no": "'study_results' is '/no', which is not a folder"}
BAD |= {"reproduce -p model no": "unknown model 'no'", "audit --dataset no": "is unknown"}
BAD |= {"audit --dataset emoji --model no": "unknown model 'no'"}
BAD |= {"reproduce -p switches ['no']": "'no' is part of none of: corrected"}
BAD |= {"explore none": "none holds no run: run.json is missing; `rvlr reproduce` makes one"}
BAD |= {"train --device tpu": "device 'tpu' is not available: Expected"}
BAD |= {"reproduce -p arms a,b": "a list is written as [a, b]", "config own -s seed [1": "-s seed '[1' is not YAML"}
BAD |= {"config flickr30k -s stage1.epoch 3": "unknown option 'stage1.epoch'; valid: epochs"}


@pytest.mark.parametrize("argv", BAD)
def test_bad_input_is_one_line_and_exit_code_2(argv, capsys, monkeypatch, refuses):
    assert cli.main(argv.split()) == 2
    output, errors = capsys.readouterr()
    assert errors.startswith("rvlr: ")
    assert BAD[argv] in errors
    assert (errors.count("\n"), output) == (1, "")
    monkeypatch.setenv("RVLR_DEBUG", "1")
    refuses(re.escape(BAD[argv]), cli.main, argv.split())


def test_config_prints_what_presets_resolve_to(capsys):
    assert cli.main(["config", "flickr30k", "official", "-s", "stage1.epochs", "3", "-s", "model.pretrained", "x"]) == 0
    settings = yaml.safe_load(capsys.readouterr().out)
    assert (settings["stage1"]["epochs"], settings["model"]["pretrained"], settings["seed"]) == (3, "x", 0)
    assert settings["method"]["structure_target"] == "fusion"


def test_options_are_passed_on_and_a_collection_that_would_spoil_a_result_exits_with_1(monkeypatch, tmp_path):
    (tmp_path / "b.csv").write_text("image,caption\na.jpg,a dog\n")
    assert cli.main(["data", "check", str(tmp_path / "b.csv"), "--max-bad-pictures", "1"]) == 1
    passed = {}
    stand_in = lambda *_, **options: passed.update(options) or SimpleNamespace(spoiled=True)  # noqa: E731
    monkeypatch.setattr("rvlr_lib.data.check.check", stand_in)
    monkeypatch.setattr("rvlr_lib.study.sweep.run_study", stand_in)
    assert cli.main("data check b.csv --decode".split()) == 1
    assert cli.main("study --tune --jobs 2".split()) == 0
    expected = {"full": True, "keep_flagged": None, "tune": True, "jobs": 2}
    assert passed.items() >= expected.items()


ENDS = [("return None", 0, ""), ("raise ValueError('no')", 2, "no"), ("raise RuntimeError('lost')", 1, "Error: lost")]
ENDS += [("raise FloatingPointError('the loss is nan')", 1, "the loss is nan. Checkpoints are kept; a smaller learn")]
ENDS += [("raise KeyboardInterrupt", 130, "interrupted; run the same command again")]


@pytest.mark.parametrize(("environment", "printed"), [({}, b"noise\n"), ({"WORLD_SIZE": "2", "RANK": "1"}, b"")])
@pytest.mark.parametrize(("body", "code", "message"), ENDS)
def test_a_command_exits_with_its_code_and_other_ranks_print_nothing(body, code, message, environment, printed):
    script = (
        f"import sys, types\nfrom rvlr_lib import cli\ndef train(**options):\n    print('noise')\n    {body}\n"
        f"sys.modules['rvlr_lib.study.study'] = types.SimpleNamespace(train=train, Study=0, open_study=0)\n"
        "sys.exit(cli.main(['train']))"
    )
    done = python(script, **environment)
    assert (done.returncode, done.stdout) == (code, printed)
    assert message in done.stderr.decode()


@pytest.mark.parametrize("locale", [{}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}])
def test_output_and_file_names_are_utf8_under_any_locale(tmp_path, locale):
    (tmp_path / "ほ").mkdir()
    setup = "import os, sys\nfrom rvlr_lib import cli\nsys.argv[1:] = ['explore', *os.listdir(os.environ['PLACE'])]"
    done = python(f"{setup}\ncli.main()", PYTHONIOENCODING="latin-1", PLACE=str(tmp_path), **locale)
    assert "rvlr: ほ holds no run" in done.stderr.decode("utf-8")


def test_a_closed_pipe_is_not_bad_input():
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "rvlr_lib", "config", "own"], stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
