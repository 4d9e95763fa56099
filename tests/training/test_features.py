import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rvlr_lib.data import load_dataset
from rvlr_lib.data.dataset import ArraySource
from rvlr_lib.models import HeadStudent, TowerStudent, encode_text_tokens, tokenize
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
            features_, tokens, mask = encode_text_tokens(towers.text.eval(), ids, tokens=True)
            torch.testing.assert_close(found.texts[row], features_[0], atol=1e-5, rtol=1e-4)
            length = mask.shape[1]
            torch.testing.assert_close(found.text_tokens[row, :length].float(), tokens[0], atol=1e-2, rtol=1e-2)
            assert found.text_mask[row].sum() == length
    assert not torch.equal(found.images[0], found.images[1])
    assert not torch.equal(found.images[1], found.images[2])
    rows = found.image_rows(torch.tensor([4, 2]), view=1)
    assert torch.equal(rows.features, found.images[1, [4, 2]])
    assert read_features(stored / "images", stored / "texts", "train", tokens=False).text_mask is None


def test_each_distinct_caption_is_encoded_once(towers, scenes, tmp_path, monkeypatch):
    encoded = []
    monkeypatch.setattr(
        features,
        "encode_text_tokens",
        lambda text, ids, **options: encoded.extend(ids) or encode_text_tokens(text, ids, **options),
    )
    captions = [*scenes.captions[:5], *scenes.captions[:5]]
    doubled = dataclasses.replace(scenes.subset([0, 1]), captions=captions, scene=None)
    encode_captions(towers, doubled, tmp_path)
    assert len(encoded) == len(set(captions)) + 1  # the probe
    rows = load_file(tmp_path / "train.safetensors")["texts"]
    assert torch.equal(rows[:5], rows[5:])


def test_a_file_of_the_same_is_kept_and_of_anything_else_made_anew(towers, scenes, stored, monkeypatch):
    path = stored / "images" / "train.safetensors"
    first = path.stat().st_ino
    encode_images(towers, scenes, stored / "images", views=3, tokens=True, seed=5)
    assert path.stat().st_ino == first
    for changes in ({"views": 2}, {"views": 3, "seed": 6}, {"views": 3, "flip": False}):
        encode_images(towers, scenes, stored / "images", **{"tokens": True, "seed": 5} | changes)
        assert path.stat().st_ino != first
        first = path.stat().st_ino
    path.write_bytes(path.read_bytes()[:1000])  # damaged
    with pytest.raises(ValueError, match="cannot be read"):
        read_features(stored / "images", stored / "texts", "train")
    encode_images(towers, scenes, stored / "images")
    assert read_features(stored / "images", stored / "texts", "train").image_tokens is None


def test_an_interrupted_encoding_leaves_nothing_half(towers, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "PICTURES", 4)
    calls = []

    def stop(self, rows, size):
        calls.append(rows)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, rows, size)

    original = ArraySource.pixels
    monkeypatch.setattr(type(scenes.source), "pixels", stop)
    with pytest.raises(KeyboardInterrupt):
        encode_images(towers, scenes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_the_work(towers, scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    with pytest.raises(ValueError, match=r"need 0\.0 GB in .*, where 0\.0 GB are free.*fewer views"):
        encode_images(towers, scenes, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_captions_beyond_the_context_are_counted_once(scenes, tmp_path, capsys):
    towers = tiny_towers(1, context_length=8)
    encode_captions(towers, scenes, tmp_path, tokens=True)
    said = capsys.readouterr().out
    assert said.count("captions are longer than 8 tokens and are cut") == 1
    assert load_file(tmp_path / "train.safetensors")["mask"].shape == (70, 8)
    encode_captions(towers, scenes, tmp_path, tokens=True)
    assert capsys.readouterr().out == ""


def test_common_features_of_towers_and_heads(towers, scenes, stored):
    student = TowerStudent(towers)
    images, texts = encode(student, scenes)
    with torch.inference_mode():
        alone = student.encode_text(tokenize(towers.tokenizer, scenes.captions[7:8])).features
    torch.testing.assert_close(texts[7], alone[0], atol=1e-5, rtol=1e-4)
    cached = read_features(stored / "images", stored / "texts", "train")
    torch.testing.assert_close(images, unit_rows(cached.images[0]), atol=1e-5, rtol=1e-4)
    heads = HeadStudent(torch.eye(96, 96), torch.eye(96, 96))
    found = encode(heads, cached)
    torch.testing.assert_close(found[0], images, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found[1], texts, atol=1e-5, rtol=1e-4)
    for wrong, data in ((student, cached), (heads, scenes)):
        with pytest.raises(ValueError, match=f"{type(wrong).__name__} cannot encode {type(data).__name__}"):
            encode(wrong, data)


def test_two_processes_write_the_bits_of_one(tmp_path):
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        started = [
            subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "features_ranks.py"), str(rank), str(count), str(folder)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            for rank in range(count)
        ]
        assert [process.wait(timeout=300) for process in started] == [0] * count
    for part in ("images", "texts"):
        one, two = ((tmp_path / count / part / "train.safetensors").read_bytes() for count in "12")
        assert one == two
    wanted = torch.load(tmp_path / "1" / "common-0.pt")
    for rank in (0, 1):
        found = torch.load(tmp_path / "2" / f"common-{rank}.pt")
        assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
