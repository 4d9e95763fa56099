"""The README's code and commands are what it says."""

import re
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)


def test_the_recipe_trains_an_open_clip_model():
    recipe = BLOCKS[0]
    assert len([line for line in recipe.splitlines() if line]) <= 16
    import open_clip

    open_clip.add_model_config(ROOT / "tests" / "models" / "tiny_48.json")
    tiny = recipe.replace('"ViT-B-32"', '"tiny_48"')
    assert tiny != recipe
    generator = torch.Generator().manual_seed(0)
    batch = (
        torch.rand(4, 3, 48, 48, generator=generator),
        torch.randint(1, 40000, (4, 32), generator=generator),
        torch.randn(4, 20, generator=generator),
        torch.randn(4, 30, generator=generator),
    )
    scope = {"loader": [batch, batch]}
    exec(tiny, scope)
    assert torch.isfinite(scope["loss"])
    assert scope["terms"].student.requires_grad


def test_the_metrics_example_runs(capsys):
    generator = torch.Generator().manual_seed(0)
    scope = {
        "captions": ["A red circle!", "a red disc", "two blue stars"],
        "caption_image": np.array([0, 0, 1]),
        "image_features": torch.randn(2, 8, generator=generator),
        "text_features": torch.randn(3, 8, generator=generator),
    }
    exec(BLOCKS[1], scope)
    assert len(capsys.readouterr().out.split()) == 3


def test_links_lead_to_files():
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert len(targets) >= 8
    assert not [target for target in targets if not (ROOT / target).exists()]
