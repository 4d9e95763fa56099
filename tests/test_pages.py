"""The code of the README runs, and the rows and switches of FIDELITY.md agree with the settings."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import open_clip
import torch

from rvlr_lib.config import MethodSettings, load_settings
from tests.tiny import CONFIG

ROOT = Path(__file__).parents[1]
README, FIDELITY = ((ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "FIDELITY.md"))
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
ROWS = re.findall(r"^\| (\d+).* \| (.*) \|$", FIDELITY, re.MULTILINE)  # number and last cell
SWITCH = re.compile(r"`(\w+)`: (\S+) → ([^;\s]+)")
SAME_IN_BOTH = {"weights", "relation_temperature", "learn_fusion_weight", "fusion_weight", "centred"}


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


def test_fidelity_has_33_rows_in_order_and_both_values_of_every_switch():
    assert list(dict.fromkeys(int(number) for number, _ in ROWS)) == list(range(1, 34))
    official, corrected = load_settings("official").method, load_settings("corrected").method
    assert all(SWITCH.search(row) or row.startswith("none: ") for _, row in ROWS)
    listed = {switch for _, row in ROWS for switch in SWITCH.findall(row)}
    names = {field.name for field in dataclasses.fields(MethodSettings)} - SAME_IN_BOTH
    assert listed == {(name, str(getattr(official, name)), str(getattr(corrected, name))) for name in names}
