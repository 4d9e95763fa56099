"""The README's code runs as it says, and the rows and switches of FIDELITY.md agree with the settings."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch

from rvlr_lib.config import MethodSettings, load_settings
from tests.tiny import CONFIG

ROOT = Path(__file__).parents[1]
README, FIDELITY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "FIDELITY.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
ROWS = [[cell.strip() for cell in line.split(" | ")] for line in re.findall(r"^\|( \d.*)\|$", FIDELITY, re.MULTILINE)]
SWITCH = re.compile(r"`(\w+)`: (\S+) → ([^;\s]+)")
THE_SAME_IN_BOTH = {"weights", "relation_temperature", "learn_fusion_weight", "fusion_weight", "centred"}


def test_the_recipe_trains_an_open_clip_model():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 16
    open_clip.add_model_config(CONFIG)
    tiny = BLOCKS[0].replace('"ViT-B-32"', '"tiny_48"')
    assert tiny != BLOCKS[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 40000, (4, 32), generator=generator)
    teachers = (torch.randn(4, width, generator=generator) for width in (20, 30))
    scope = {"loader": [(torch.rand(4, 3, 48, 48, generator=generator), ids, *teachers)] * 2}
    exec(tiny, scope)
    assert torch.isfinite(scope["loss"])
    assert scope["terms"].student.requires_grad


def test_the_metrics_example_runs(capsys):
    generator = torch.Generator().manual_seed(0)
    scope = {"captions": ["A red circle!", "a red disc", "two blue stars"], "caption_image": np.array([0, 0, 1])}
    scope |= {f"{name}_features": torch.randn(n, 8, generator=generator) for name, n in (("image", 2), ("text", 3))}
    exec(BLOCKS[1], scope)
    assert len(capsys.readouterr().out.split()) == 3


def test_there_are_33_rows_in_order_and_every_switch_has_one():
    assert list(dict.fromkeys(int(re.match(r"\d+", row[0])[0]) for row in ROWS)) == list(range(1, 34))
    named = {name for row in ROWS for name, _, _ in SWITCH.findall(row[3])}
    assert named == {field.name for field in dataclasses.fields(MethodSettings)} - THE_SAME_IN_BOTH
    assert 'method="official"' in FIDELITY


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_names_its_switch_with_both_values_or_says_why_there_is_none(row):
    official, corrected = load_settings("official").method, load_settings("corrected").method
    found = SWITCH.findall(row[3])
    assert found or row[3].startswith("none: ")
    for name, theirs, ours in found:
        assert (theirs, ours) == (str(getattr(official, name)), str(getattr(corrected, name)))
