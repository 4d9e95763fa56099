import dataclasses

import open_clip
import pytest
import torch

from rvlr_lib.models.export import save_open_clip
from rvlr_lib.models.student import Student
from rvlr_lib.models.towers import build_towers


def test_open_clip_reads_the_same_features_and_temperature(tmp_path):
    towers = build_towers("tiny", seed=1)
    student = Student(towers, temperature=0.05, fusion_layers=1).eval()
    save_open_clip(student, towers, tmp_path / "clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    assert tokenizer.context_length == towers.tokenizer.context_length
    assert "Resize(size=(48, 48), interpolation=bicubic" in str(preprocess)
    pixels = torch.rand(2, 3, 48, 48)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (towers.mean, towers.std))
    ids = tokenizer(["a red cat", "dog"])
    with torch.no_grad():
        model.eval()
        torch.testing.assert_close(
            model.encode_image((pixels - mean) / std, normalize=True), student.encode_image(pixels).features
        )
        torch.testing.assert_close(model.encode_text(ids, normalize=True), student.encode_text(ids).features)
        torch.testing.assert_close(1 / model.logit_scale.exp(), student.temperature)
        again = Student(build_towers(f"local-dir:{tmp_path / 'clip'}")).eval()
        torch.testing.assert_close(again.encode_image(pixels).features, student.encode_image(pixels).features)


def test_what_open_clip_cannot_hold_is_refused(tmp_path):
    towers = build_towers("tiny")
    elsewhere = dataclasses.replace(towers, name="local-dir:x")
    heads = dataclasses.replace(towers, visual=torch.nn.Linear(2, 2))
    for odd in (elsewhere, heads):
        with pytest.raises(ValueError, match="cannot be written as an open_clip folder"):
            save_open_clip(Student(odd), odd, tmp_path / "no")
    assert not (tmp_path / "no").exists()
