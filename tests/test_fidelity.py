"""FIDELITY.md is kept by hand; its rows and switches agree with the settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from rvlr_lib.config import MethodSettings, load_settings

TEXT = (Path(__file__).parents[1] / "FIDELITY.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")] for line in TEXT.splitlines() if re.match(r"\| \d", line)
]
SWITCH = re.compile(r"`(\w+)`: (\S+) → ([^;\s]+)")
FIELDS = {field.name for field in dataclasses.fields(MethodSettings)}
NOT_SWITCHES = {"weights", "relation_temperature", "learn_fusion_weight", "fusion_weight", "centred"}  # the same in both presets


def test_there_are_33_rows_in_order():
    assert list(dict.fromkeys(int(re.match(r"\d+", row[0])[0]) for row in ROWS)) == list(range(1, 34))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_its_switch_with_both_values_or_says_why_there_is_none(row):
    official, corrected = load_settings("official").method, load_settings("corrected").method
    found = SWITCH.findall(row[3])
    assert found or row[3].startswith("none: ")
    for name, theirs, ours in found:
        assert name in FIELDS
        assert (theirs, ours) == (str(getattr(official, name)), str(getattr(corrected, name)))


def test_every_switch_has_a_row():
    named = {name for row in ROWS for name, _, _ in SWITCH.findall(row[3])}
    assert named == FIELDS - NOT_SWITCHES


def test_the_official_recipe_names_switches_that_exist():
    assert 'method="official"' in TEXT
