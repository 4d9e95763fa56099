"""The README's code and commands are what it says."""

import re
from pathlib import Path

import numpy as np
import open_clip
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_recipe_trains_an_open_clip_model():
    assert len([line for line in BLOCKS[0].splitlines() if line]) <= 16
    open_clip.add_model_config(ROOT / "tests" / "models" / "tiny_48.json")
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
