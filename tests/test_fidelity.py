"""FIDELITY.md is kept by hand; its rows and switches agree with the settings."""

import dataclasses
import re
from pathlib import Path

import pytest

from rvlr_lib.config import MethodSettings, load_settings

TEXT = (Path(__file__).parents[1] / "FIDELITY.md").read_text(encoding="utf-8")
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in re.findall(r"^\|( \d.*)\|$", TEXT, re.MULTILINE)]
SWITCH = re.compile(r"`(\w+)`: (\S+) → ([^;\s]+)")
THE_SAME_IN_BOTH = {"weights", "relation_temperature", "learn_fusion_weight", "fusion_weight", "centred"}


def test_there_are_33_rows_in_order_and_every_switch_has_one():
    assert list(dict.fromkeys(int(re.match(r"\d+", row[0])[0]) for row in ROWS)) == list(range(1, 34))
    named = {name for row in ROWS for name, _, _ in SWITCH.findall(row[3])}
    assert named == {field.name for field in dataclasses.fields(MethodSettings)} - THE_SAME_IN_BOTH
    assert 'method="official"' in TEXT


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_its_switch_with_both_values_or_says_why_there_is_none(row):
    official, corrected = load_settings("official").method, load_settings("corrected").method
    found = SWITCH.findall(row[3])
    assert found or row[3].startswith("none: ")
    for name, theirs, ours in found:
        assert (theirs, ours) == (str(getattr(official, name)), str(getattr(corrected, name)))
