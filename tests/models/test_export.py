import shutil

import open_clip
import pytest
import torch

from rvlr_lib.models import CachedRows, HeadStudent, TowerStudent, build_towers, load_student, save_student
from tests.tiny import tiny_towers


@pytest.mark.parametrize("name", ["tiny_48", "effnet_minilm"])
def test_open_clip_reads_the_same_features_and_temperature(tmp_path, name):
    towers = tiny_towers(seed=1) if name == "tiny_48" else build_towers(name, seed=1, text_layers=2, image_size=64)
    student = TowerStudent(towers, temperature=0.05, fusion_layers=1).eval()
    save_student(student, towers, tmp_path / "clip")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'clip'}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{tmp_path / 'clip'}")
    size, moved = towers.image_size, tmp_path / "moved"
    assert tokenizer.context_length == towers.tokenizer.context_length
    assert f"Resize(size=({size}, {size}), interpolation=bicubic" in str(preprocess)
    pixels = torch.rand(2, 3, size, size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (towers.mean, towers.std))
    ids = tokenizer(["a red cat", "dog"])
    shutil.move(tmp_path / "clip", moved)
    with torch.no_grad():
        model.eval()
        images, texts = student.encode_image(pixels).features, student.encode_text(ids).features
        torch.testing.assert_close(model.encode_image((pixels - mean) / std, normalize=True), images)
        torch.testing.assert_close(model.encode_text(ids, normalize=True), texts)
        torch.testing.assert_close(1 / model.logit_scale.exp(), student.temperature)
        again = load_student(moved)
        assert torch.equal(again.tokenizer(["a red cat", "dog"]), ids)
        torch.testing.assert_close(again.encode_image(pixels).features, images)
        torch.testing.assert_close(again.temperature, student.temperature)
        assert save_student(again, build_towers(f"local-dir:{moved}"), moved) == moved  # in place
        torch.testing.assert_close(load_student(moved).encode_text(ids).features, texts)


@pytest.mark.parametrize("layers", [0, 2])
def test_heads_survive_a_round_trip(tmp_path, layers, refuses):
    widths = (40, 24) if layers else None
    student = HeadStudent(torch.randn(40, 16), torch.randn(24, 16), token_widths=widths, fusion_layers=layers)
    torch.nn.init.normal_(student.text_head.last.weight)
    save_student(student.eval(), tiny_towers(), tmp_path / "heads")
    again = load_student(tmp_path / "heads")
    assert isinstance(again, HeadStudent)
    rows = CachedRows(torch.randn(3, 24), torch.randn(3, 5, 24), torch.ones(3, 5, dtype=torch.bool))
    torch.testing.assert_close(again.encode_text(rows).features, student.encode_text(rows).features)
    if layers:
        pairs = torch.randn(3, 9, 40), rows.tokens, rows.mask
        torch.testing.assert_close(again.fusion(*pairs), student.fusion(*pairs))
    refuses("holds no student: open_clip_config.json and", load_student, tmp_path)
    refuses("is not empty and holds no student", save_student, student, tiny_towers(), tmp_path / "heads" / "..")
    save_student(student, tiny_towers(), tmp_path / "heads")
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]
