import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rvlr_lib import models
from rvlr_lib.data import load_dataset
from rvlr_lib.data.dataset import ArraySource
from rvlr_lib.models import HeadStudent, TowerStudent, build_towers, encode_text_tokens, tokenize
from rvlr_lib.similarity import unit_rows
from rvlr_lib.training import features
from rvlr_lib.training.features import encode, encode_captions, encode_images, read_features
from tests.tiny import tiny_towers

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def towers():
    return tiny_towers(1)


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", split="train", size=14)


@pytest.fixture
def stored(towers, scenes, tmp_path):
    encode_images(towers, scenes, tmp_path / "images", views=3, tokens=True, seed=5)
    encode_captions(towers, scenes, tmp_path / "texts", tokens=True)
    return tmp_path


def test_stored_features_are_those_of_the_towers_one_by_one(towers, scenes, stored):
    found = read_features(stored / "images", stored / "texts", "train")
    assert (found.images.shape, found.texts.shape) == ((3, 14, 96), (70, 96))
    assert (found.image_tokens.shape[:2], found.image_tokens.dtype) == ((14, 36), torch.float16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (towers.mean, towers.std))
    with torch.inference_mode():
        for row in (0, 13):
            pixels = (scenes.pixels([row], 48).float() / 255 - mean) / std
            torch.testing.assert_close(found.images[0, row], towers.visual.eval()(pixels)[0], atol=1e-5, rtol=1e-4)
        for row in (3, 69):
            ids = tokenize(towers.tokenizer, [scenes.captions[row]])
            alone, tokens, mask = encode_text_tokens(towers.text.eval(), ids, tokens=True)
            torch.testing.assert_close(found.texts[row], alone[0], atol=1e-5, rtol=1e-4)
            length = mask.shape[1]
            torch.testing.assert_close(found.text_tokens[row, :length].float(), tokens[0], atol=1e-2, rtol=1e-2)
            assert found.text_mask[row].sum() == length
    assert len({view.sum().item() for view in found.images}) == 3
    assert read_features(stored / "images", stored / "texts", "train", tokens=False).text_mask is None


def test_a_file_of_the_same_is_kept_and_of_anything_else_made_anew(towers, scenes, stored):
    path = stored / "images" / "train.safetensors"
    first = path.stat().st_ino
    encode_images(towers, scenes, stored / "images", views=3, tokens=True, seed=5)
    assert path.stat().st_ino == first
    changes = {"views": 2}, {"views": 3, "seed": 6}, {"views": 3, "flip": False}, {"views": 3, "precision": "bfloat16"}
    for change in changes:
        encode_images(towers, scenes, stored / "images", **{"tokens": True, "seed": 5} | change)
        assert path.stat().st_ino != first
        first = path.stat().st_ino
    path.write_bytes(path.read_bytes()[:1000])  # damaged
    with pytest.raises(ValueError, match="cannot be read"):
        read_features(stored / "images", stored / "texts", "train")
    encode_images(towers, scenes, stored / "images")
    assert read_features(stored / "images", stored / "texts", "train").image_tokens is None


def test_bfloat16_keeps_the_neighbours_of_pretrained_towers(tmp_path):
    towers, emoji, ten = build_towers(), load_dataset("emoji", split="test"), []
    for precision in ("float32", "bfloat16"):
        encode_images(towers, emoji, tmp_path / precision, precision=precision)
        encode_captions(towers, emoji, tmp_path / f"{precision}-texts", precision=precision)
        found = read_features(tmp_path / precision, tmp_path / f"{precision}-texts", "test")
        rows = [unit_rows(part) for part in (found.images[0], found.texts)]
        ten.append([(part @ part.T).fill_diagonal_(-1).topk(10).indices for part in rows])
    for plain, half in zip(*ten, strict=True):
        assert not torch.equal(plain, half)
        assert (plain[:, :, None] == half[:, None]).any(-1).float().mean() >= 0.93
    with pytest.raises(ValueError, match="precision 'half' is unknown"):
        encode_images(towers, emoji, tmp_path, precision="half")


def test_an_interrupted_encoding_and_a_full_disk_leave_nothing(towers, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"need 0\.0 GB in .*, where 0\.0 GB are free.*fewer views"):
        encode_images(towers, scenes, tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(features, "PICTURES", 4)
    calls, original = [], ArraySource.pixels

    def stop(self, rows, size):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, rows, size)

    monkeypatch.setattr(type(scenes.source), "pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_images(towers, scenes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_distinct_captions_are_encoded_and_cut_ones_counted_once(scenes, tmp_path, monkeypatch, capsys):
    towers, encoded = tiny_towers(1, context_length=8), []
    counted = lambda text, ids, **rest: encoded.extend(ids) or encode_text_tokens(text, ids, **rest)  # noqa: E731
    monkeypatch.setattr(models, "encode_text_tokens", counted)
    captions = [*scenes.captions[:5], *scenes.captions[:5]]
    doubled = dataclasses.replace(scenes.subset([0, 1]), captions=captions, scene=None)
    for said in (1, 0):
        encode_captions(towers, doubled, tmp_path, tokens=True)
        assert capsys.readouterr().out.count("captions are longer than 8 tokens and are cut") == said
    assert len(encoded) == len(set(captions)) + 1  # the probe
    rows = features._open(tmp_path / "train.safetensors")
    assert torch.equal(rows["texts"][:5], rows["texts"][5:])
    assert rows["mask"].shape == (10, 8)


def test_common_features_of_towers_and_heads(towers, scenes, stored):
    student = TowerStudent(towers)
    images, texts = encode(student, scenes)
    with torch.inference_mode():
        alone = student.encode_text(tokenize(towers.tokenizer, scenes.captions[7:8])).features
    torch.testing.assert_close(texts[7], alone[0], atol=1e-5, rtol=1e-4)
    cached = read_features(stored / "images", stored / "texts", "train")
    heads = HeadStudent(torch.eye(96, 96), torch.eye(96, 96))
    torch.testing.assert_close(encode(heads, cached), (images, texts), atol=1e-5, rtol=1e-4)
    for wrong, data in ((student, cached), (heads, scenes)):
        with pytest.raises(ValueError, match=f"{type(wrong).__name__} cannot encode {type(data).__name__}"):
            encode(wrong, data)


def test_two_processes_write_the_bits_of_one(tmp_path):
    script, environment = Path(__file__).parent / "features_ranks.py", {**os.environ, "PYTHONPATH": str(ROOT)}
    for count in ("1", "2"):
        (tmp_path / count).mkdir()
        commands = [[sys.executable, script, str(rank), count, tmp_path / count] for rank in range(int(count))]
        started = [subprocess.Popen(command, cwd=ROOT, env=environment) for command in commands]
        assert [process.wait(timeout=300) for process in started] == [0] * int(count)
    for part in ("images", "texts"):
        one, two = ((tmp_path / count / part / "train.safetensors").read_bytes() for count in "12")
        assert one == two
    common = [torch.load(tmp_path / name) for name in ("1/common-0.pt", "2/common-0.pt", "2/common-1.pt")]
    torch.testing.assert_close(common, [common[0]] * 3, rtol=0, atol=0)
