import json
import shutil

import pytest

from rvlr_lib.study import cache as caching
from rvlr_lib.study.cache import Cache, Stage, source_hash


def make_number(folder, *, value):
    (folder / "number.json").write_text(json.dumps(value))


def fail(folder, **_):
    (folder / "half").write_text("")
    raise RuntimeError("power cut")


def stage(value=1, maker=make_number, needs=(), counted=()):
    def arguments():
        counted.append(value)
        return {"value": value}

    return Stage("numbers", {"value": value}, maker, arguments, needs)


def test_a_stage_is_made_once_after_those_it_needs(tmp_path, refuses):
    counted = []
    second = stage(2, needs=(stage(1, counted=counted),), counted=counted)
    refuses("is not there: run the study first", Cache(tmp_path, "run the study first").folder, second)
    folder = Cache(tmp_path).folder(second)
    assert Cache(tmp_path, "nothing may be computed").folder(second) == folder
    assert counted == [1, 2]
    assert json.loads((folder / "number.json").read_text()) == 2
    assert json.loads((folder / "parts.json").read_text()) == {"value": 2}


def test_the_key_holds_settings_needs_and_source(monkeypatch):
    keys = {stage(1).key, stage(2).key, stage(1, needs=(stage(3),)).key}
    monkeypatch.setattr(caching, "source_hash", lambda module: "other")
    assert len(keys | {stage(1).key}) == 4


def test_an_interrupted_stage_leaves_nothing_behind(tmp_path):
    broken = stage(maker=fail, counted=[])
    with pytest.raises(RuntimeError, match="power cut"):
        Cache(tmp_path).folder(broken)
    assert not Cache(tmp_path).has(broken)
    assert not list((tmp_path / "cache" / "numbers").glob("*"))


@pytest.mark.parametrize(
    ("module", "within", "without"),
    [
        ("rvlr_lib.training.stages", "rvlr_lib/losses/structure.py", "rvlr_lib/figures/charts.py"),
        ("rvlr_lib.study.results", "rvlr_lib/metrics/protocol.py", "rvlr_lib/training/loop.py"),
        ("rvlr_lib.training.stages", "rvlr_lib/training/stages.py", "rvlr_lib/data/own.py"),
    ],
)
def test_edits_that_matter_change_the_key_and_others_do_not(module, within, without, tmp_path, monkeypatch):
    shutil.copytree(caching.PACKAGE, tmp_path / "rvlr_lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(caching, "PACKAGE", tmp_path / "rvlr_lib")
    before = source_hash.__wrapped__(module)
    for path, changes in ((without, False), (within, True)):
        file = tmp_path / path
        file.write_text(file.read_text() + "\n# a comment\n")
        assert source_hash.__wrapped__(module) == before
        file.write_text(file.read_text() + "\nEDITED = 1\n")
        assert (source_hash.__wrapped__(module) != before) == changes
