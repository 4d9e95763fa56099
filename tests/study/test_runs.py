import json

import pytest

from rvlr_lib.provenance import provenance
from rvlr_lib.study import cache as runs


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A tiny library of two modules, and a fresh hash each time."""
    package = tmp_path / "rvlr_lib"
    package.mkdir()
    (package / "a.py").write_text('"""Docs."""\nfrom rvlr_lib.b import f\n\nX = f(1)\n')
    (package / "b.py").write_text('def f(x):\n    """Double."""\n    return 2 * x\n')
    (package / "c.py").write_text("Y = 1\n")
    monkeypatch.setattr(runs, "PACKAGE", package)

    def digest():
        runs.source_hash.cache_clear()
        return runs.source_hash("rvlr_lib.a")

    yield package, digest
    runs.source_hash.cache_clear()


def test_comments_docstrings_and_other_modules_keep_the_key(library):
    package, digest = library
    before = digest()
    (package / "b.py").write_text('def f(x):\n    """Twice."""\n    # why\n    return 2 * x\n')
    (package / "c.py").write_text("Y = 2\n")
    assert digest() == before


def test_edited_code_changes_the_key_even_through_an_import(library):
    package, digest = library
    before = digest()
    (package / "b.py").write_text('def f(x):\n    """Double."""\n    return 3 * x\n')
    assert digest() != before


def test_a_stage_is_computed_once_and_again_for_other_settings(tmp_path):
    calls = []

    def compute(folder):
        calls.append(folder)
        (folder / "x").write_text("whole")

    first = runs.cached(tmp_path, "stage", {"a": 1}, "rvlr_lib.similarity", compute)
    assert runs.cached(tmp_path, "stage", {"a": 1}, "rvlr_lib.similarity", compute) == first
    assert (first / "x").read_text() == "whole"
    assert runs.cached(tmp_path, "stage", {"a": 2}, "rvlr_lib.similarity", compute) != first
    assert len(calls) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_stage_leaves_nothing(tmp_path, error):
    def compute(folder):
        (folder / "x").write_text("half")
        raise error

    with pytest.raises(error):
        runs.cached(tmp_path, "stage", {}, "rvlr_lib.similarity", compute)
    assert list((tmp_path / "cache" / "stage").iterdir()) == []


def test_json_has_no_nan_and_is_written_whole(tmp_path):
    path = tmp_path / "folder" / "x.json"
    runs.write_json(path, {"a": float("nan"), "b": [1, float("inf")], "c": path})
    assert json.loads(path.read_text()) == {"a": None, "b": [1, None], "c": str(path)}
    with pytest.raises(TypeError):
        runs.write_json(path, {"a": object()})
    assert runs.read_json(path)["b"] == [1, None]
    assert [item.name for item in path.parent.iterdir()] == ["x.json"]


def test_a_damaged_json_is_named(tmp_path):
    path = tmp_path / "x.json"
    path.write_text('{"a": 1')
    with pytest.raises(ValueError, match=r"x\.json"):
        runs.read_json(path)


def test_provenance_names_versions_and_commit():
    found = provenance()
    assert found["versions"]["torch"] != "absent"
    assert found["commit"]
