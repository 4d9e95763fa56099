import shutil

import pytest

from rvlr_lib.study import cache as caching
from rvlr_lib.study.cache import Cache, Stage, source_hash


def fail(folder):
    (folder / "half").write_text("")
    raise RuntimeError("power cut")


def stage(value=1, needs=()):
    return Stage("numbers", {"value": value}, fail, dict, needs)


def test_the_key_holds_settings_needs_and_source(monkeypatch):
    keys = {stage(1).key, stage(2).key, stage(1, needs=(stage(3),)).key}
    monkeypatch.setattr(caching, "source_hash", lambda module: "other")
    assert len(keys | {stage(1).key}) == 4


def test_an_interrupted_stage_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        Cache(tmp_path).folder(stage())
    assert not Cache(tmp_path).has(stage())
    assert not list((tmp_path / "cache" / "numbers").glob("*"))


# a module, a file that its key covers and one that it does not
EDITS = ["training.stages losses/structure figures/charts", "study.results metrics/protocol training/loop"]
EDITS += ["training.stages training/stages data/own", "training.features models/teachers losses/structure"]


@pytest.mark.parametrize("edits", EDITS)
def test_edits_that_matter_change_the_key_and_others_do_not(edits, tmp_path, monkeypatch):
    module, within, without = edits.split()
    shutil.copytree(caching.PACKAGE, tmp_path / "rvlr_lib", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(caching, "PACKAGE", tmp_path / "rvlr_lib")
    before = source_hash.__wrapped__(f"rvlr_lib.{module}")
    for path, changes in ((without, False), (within, True)):
        file = tmp_path / "rvlr_lib" / f"{path}.py"
        file.write_text(file.read_text() + "\n# a comment\n")
        assert source_hash.__wrapped__(f"rvlr_lib.{module}") == before
        file.write_text(file.read_text() + "\nEDITED = 1\n")
        assert (source_hash.__wrapped__(f"rvlr_lib.{module}") != before) == changes
