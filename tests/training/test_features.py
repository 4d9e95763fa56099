import dataclasses
import sys

import pytest
import torch

from rvlr_lib import models
from rvlr_lib.config import TrainSettings
from rvlr_lib.data import load_dataset
from rvlr_lib.metrics import knn_overlap
from rvlr_lib.models import HeadStudent, TowerStudent, build_towers, encode_text_tokens
from rvlr_lib.training import features
from rvlr_lib.training.features import encode, encode_frozen, encode_tokens, read_features
from tests.tiny import tiny_towers
from tests.training.conftest import CPU


def store(folder, towers, dataset, *, views=3, seed=5, optim=None, **options):
    """Encode a data set; return its folders of pictures and captions."""
    folders = folder / "images", folder / "texts"
    options = {"tokens": True, "precision": "float32", "device": CPU} | options
    common = {"towers": towers, "splits": {dataset.split: dataset}, **options}
    encode_frozen(folders[0], modality="image", views=views, seed=seed, optim=optim or TrainSettings(), **common)
    encode_frozen(folders[1], modality="text", **common)
    return folders


@pytest.fixture(scope="module")
def scenes():
    return load_dataset("scenes", split="train", size=14)


@pytest.fixture(scope="module")
def stored(towers, scenes, tmp_path_factory):
    return read_features(*store(tmp_path_factory.mktemp("stored"), towers, scenes), "train")


def test_stored_features_equal_those_of_the_towers_one_by_one(towers, scenes, stored):
    assert (stored.images.shape, stored.texts.shape) == ((3, 14, 96), (70, 96))
    assert (stored.image_tokens.shape[:2], stored.image_tokens.dtype) == ((14, 36), torch.float16)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (towers.mean, towers.std))
    with torch.inference_mode():
        for row in (0, 13):
            pixels = (scenes.pixels([row], 48).float() / 255 - mean) / std
            torch.testing.assert_close(stored.images[0, row], towers.visual.eval()(pixels)[0], atol=1e-5, rtol=1e-4)
        for row in (3, 69):
            ids = towers.tokenizer([scenes.captions[row]])
            text, tokens, mask = encode_text_tokens(towers.text.eval(), ids, tokens=True)
            torch.testing.assert_close(stored.texts[row], text[0], atol=1e-5, rtol=1e-4)
            real_tokens = stored.text_tokens[row, stored.text_mask[row]].float()
            torch.testing.assert_close(real_tokens, tokens[mask], atol=1e-2, rtol=1e-2)


@pytest.mark.parametrize("change", [{"seed": 6}, {"optim": TrainSettings(flip=False)}, {"views": 2, "tokens": False}])
def test_settings_change_the_augmented_views_alone(towers, scenes, stored, change, tmp_path):
    changed = read_features(*store(tmp_path, towers, scenes, **change), "train")
    assert torch.equal(changed.images[0], stored.images[0])
    assert (len({view.sum().item() for view in stored.images}), len(changed.images)) == (3, change.get("views", 3))
    assert torch.equal(changed.images[1], stored.images[1]) == ("views" in change)
    assert (changed.text_mask is None) == ("tokens" in change)


def test_damaged_features_and_a_full_disk_are_named(towers, scenes, tmp_path, monkeypatch, refuses):
    folders = store(tmp_path, towers, scenes, views=1)
    file = folders[0] / "train" / "features.npy"
    file.write_bytes(file.read_bytes()[:1000])
    refuses(r"images/train cannot be read .*run again", read_features, *folders, "train")
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": 1000})())
    refuses(r"need 0\.0 GB in .*, where 0\.0 GB are free.*fewer views", store, tmp_path / "full", towers, scenes)
    largest = max(path.stat().st_size for path in (folders[0] / "train").glob("*.npy"))
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _path: type("Usage", (), {"free": largest + 1})())
    refuses("pictures: their tokens need", store, tmp_path / "both", towers, scenes, views=1)


def test_bfloat16_is_not_used_on_cpus_where_it_is_slow_and_a_line_says_so_once(monkeypatch, capsys):
    intel = {"cpu_name": "Intel Xeon", "amx_bf16": False}
    fast = [("AVX512", {}), ("AVX512_BF16", intel | {"cpu_name": "AMD EPYC"}), ("AVX512", intel | {"amx_bf16": True})]
    cases = [(fast[0], "auto"), *((cpu, "bfloat16") for cpu in (*fast, ("AVX512", intel), ("AVX2", {})))]
    for cpu, precision in cases:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda cpu=cpu: cpu[0])
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda cpu=cpu: cpu[1])
        features.say_once.cache_clear()
        for _ in range(2):
            with features.mixed_precision(CPU, precision):
                used = (torch.eye(2) @ torch.eye(2)).dtype == torch.bfloat16
                assert used == (cpu in fast and precision == "bfloat16")
        assert capsys.readouterr().out.count("bfloat16 is slow on this cpu: float32 is used") == (cpu not in fast)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert not features.fast_bfloat16(torch.device("cuda"))  # such as a T4


def test_bfloat16_keeps_the_neighbours_of_pretrained_towers(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "fast_bfloat16", lambda _device: True)
    towers, emoji, spaces = build_towers(), load_dataset("emoji", split="test"), []
    for precision in ("float32", "bfloat16"):
        stored = read_features(*store(tmp_path / precision, towers, emoji, views=1, precision=precision), "test")
        spaces.append((stored.images[0], stored.texts))
    for plain, half in zip(*spaces, strict=True):
        assert 93 <= knn_overlap(plain, half, k=10) < 100


def test_distinct_captions_are_encoded_and_cut_ones_counted_once(scenes, tmp_path, monkeypatch, capsys):
    towers, encoded = tiny_towers(1, context_length=8), []
    recorded = lambda text, ids, **options: encoded.extend(ids) or encode_text_tokens(text, ids, **options)  # noqa: E731
    monkeypatch.setattr(models, "encode_text_tokens", recorded)
    unknown = lambda *args, count=models.count_tokens: [(length, True) for length, _ in count(*args)]  # noqa: E731
    monkeypatch.setattr(models, "count_tokens", unknown)
    features.say_once.cache_clear()
    doubled = dataclasses.replace(scenes.subset([0, 1]), captions=2 * scenes.captions[:5], scene=None)
    stored = read_features(*store(tmp_path, towers, doubled), "train")
    printed = capsys.readouterr().out
    assert printed.count("captions are longer than 8 tokens and are cut") == 1
    assert "train: 10 of 10 captions consist mostly of words that the text tower does not know" in printed
    assert torch.equal(stored.texts[:5], stored.texts[5:])
    assert (len(encoded), stored.text_mask.shape) == (len(set(doubled.captions)), (10, 8))
    encoded.clear(), store(tmp_path / "uncut", tiny_towers(1), doubled)
    assert len(encoded[0]) < tiny_towers(1).tokenizer.context_length  # no padding goes to the device


def test_what_does_not_fit_in_memory_is_encoded_in_parts(towers, scenes, stored, monkeypatch, tmp_path):
    student, halved, captions = TowerStudent(towers), [], len(set(scenes.captions))
    expected = encode(student, scenes)
    in_threes = lambda compute, rows: halved.append(rows) or compute(chunk_size=3)  # noqa: E731
    monkeypatch.setattr(features, "halve_until_it_fits", in_threes)
    torch.testing.assert_close(vars(read_features(*store(tmp_path, towers, scenes), "train")), vars(stored))
    torch.testing.assert_close(encode(student, scenes), expected)
    assert sum(halved) == 3 * 14 + captions + 14 + captions  # three views for the frozen towers, one for the student


def test_rows_are_halved_until_they_fit_outside_the_handler(monkeypatch):
    tried, printed = [], []

    def compute(chunk_size):
        tried.append(chunk_size)
        if chunk_size > 9:
            raise torch.OutOfMemoryError
        assert sys.exc_info() == (None, None, None)  # no open handler keeps tensors alive
        return "result"

    monkeypatch.setattr(features, "say_once", printed.append)
    assert features.halve_until_it_fits(compute, 40) == "result"
    assert printed == ["40 rows at once did not fit in memory, 5 did; the numbers are the same"]
    assert tried == [40, 20, 10, 5]
    assert features.halve_until_it_fits(lambda chunk_size: chunk_size, 0) == 1
    with pytest.raises(torch.OutOfMemoryError):
        features.halve_until_it_fits(lambda chunk_size: compute(10), 4)


def test_common_features_and_tokens_of_towers_and_heads(towers, scenes, stored):
    student, heads = TowerStudent(towers, fusion_layers=1), HeadStudent(torch.eye(96, 96), torch.eye(96, 96))
    images, texts = encode(student, scenes)
    torch.testing.assert_close(encode(heads, stored), (images, texts), atol=1e-5, rtol=1e-4)
    cached = encode_tokens(heads, stored, CPU)
    torch.testing.assert_close(encode_tokens(student, scenes, CPU), cached, atol=1e-2, rtol=1e-2)


def test_modules_can_be_trained_after_encoding(towers, scenes, stored, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *_: self._apply(torch.clone))  # as if moving to a GPU
    heads, student = HeadStudent(torch.eye(96), torch.eye(96)), TowerStudent(towers)
    encode(heads, stored), encode(student, scenes), encode_tokens(student, scenes, CPU)
    store(tmp_path, towers, scenes)
    for module in (heads, student, towers.visual, towers.text):
        assert not any(parameter.is_inference() for parameter in module.parameters())
