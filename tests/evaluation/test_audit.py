"""Audits: predictability and the index against known cases, feature files, the command."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from rvlr_lib import cli
from rvlr_lib.data import ImbalanceSpec, load_dataset
from rvlr_lib.evaluation import audit as audits
from rvlr_lib.evaluation.evaluate import random_features
from tests.tiny import tiny_towers


def test_predictability_by_a_loop_over_folds_penalties_and_left_out_rows():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(30, 4))
    y = x @ generator.normal(size=(4, 2)) + 2 * generator.normal(size=(30, 2)) + 5
    order, unexplained = np.arange(30), 0.0
    np.random.RandomState(0).shuffle(order)

    def predict(seen, new, penalty):
        centred, mean = x[seen] - x[seen].mean(axis=0), y[seen].mean(axis=0)
        weights = np.linalg.solve(centred.T @ centred + penalty * np.eye(4), centred.T @ (y[seen] - mean))
        return (x[new] - x[seen].mean(axis=0)) @ weights + mean

    for held_out in np.array_split(order, 5):
        seen = np.setdiff1d(order, held_out)
        penalties = audits.ALPHAS * 30 * x.var(axis=0).mean()
        errors = [sum(np.square(y[r] - predict(np.setdiff1d(seen, r), r, p)).sum() for r in seen) for p in penalties]
        unexplained += np.square(y[held_out] - predict(seen, held_out, penalties[np.argmin(errors)])).sum()
    assert audits.predictability(x, y) == pytest.approx(1 - unexplained / np.square(y - y.mean(axis=0)).sum())
    assert audits.predictability(x, generator.normal(size=(30, 2))) == audits.predictability(x, np.ones((30, 2))) == 0


def test_the_index_follows_the_dial():
    dials = {"none": {}, "text": {"text_detail": 0.5}, "image": {"image_visibility": 0.5}}
    exact, unknown = {}, {}
    for name, dial in dials.items():
        dataset = load_dataset("scenes", split="test", galleries=1, gallery_size=150, imbalance=ImbalanceSpec(**dial))
        features = [torch.from_numpy(view.counts()) for view in (dataset.scene.image, dataset.scene.text)]
        exact[name] = audits.imbalance_report(dataset, *features)
        unknown[name] = audits.imbalance_report(replace(dataset, scene=None), *features)
    assert exact["none"].index == 0
    assert exact["text"].index == pytest.approx(1 / 3, abs=0.03)
    assert exact["image"].index < -0.2
    assert exact["text"].image_probe > 0.95 > 0.6 > exact["text"].text_probe
    assert exact["image"].text_probe > 0.95 > 0.7 > exact["image"].image_probe
    assert unknown["text"].index_from == "predictability"
    assert unknown["text"].image_shown is unknown["text"].text_probe is None
    assert abs(unknown["none"].index) < 0.03 < 0.15 < unknown["text"].index


def test_the_share_of_pictures_is_corrected_for_unreliable_captions():
    """Captions are picture plus equal noise: pictures predict all that siblings share, captions half of a picture."""
    dataset = load_dataset("scenes", split="test", galleries=1, gallery_size=400)
    images, noise = random_features(dataset, 6, 0)
    texts = images[dataset.caption_image] + noise
    report = audits.imbalance_report(replace(dataset, scene=None), images, texts)
    shares = report.image_to_text, report.text_to_text, report.index
    assert shares == pytest.approx((0.5, 0.25, (1 - 0.5) / (1 + 0.5)), abs=0.06)
    assert audits.imbalance_index(0.3, 0.7) == -audits.imbalance_index(0.7, 0.3)
    assert (audits.imbalance_index(0.5, 0), audits.imbalance_index(0, 0)) == (1, 0)


@pytest.fixture
def files(tmp_path):
    """Arrays and captions of 60 emoji; the first entry has its captions under ``caption``."""
    dataset = load_dataset("emoji", split="val", limit=60)
    images, noise = random_features(dataset, 16, 0)
    texts = images[dataset.caption_image] + 0.3 * noise
    paths = [tmp_path / name for name in ("images.npy", "texts.npy", "mine.json")]
    np.save(paths[0], images.double().numpy() * 1e-30)
    np.save(paths[1], texts.double().numpy() * 1e30)
    captions = [[dataset.captions[c] for c in dataset.captions_of(i)] for i in range(60)]
    paths[2].write_text(json.dumps([{"caption": captions[0]}, *captions[1:]]), encoding="utf-8-sig")
    return paths, dataset, images, texts


def command(paths, out):
    options = zip(("--image-features", "--text-features", "--captions"), map(str, paths), strict=True)
    return cli.main(["audit", *(x for option in options for x in option), "--device", "cpu", "--out", str(out)])


def test_audit_of_arrays(files, tmp_path, capsys, monkeypatch):
    paths, dataset, images, texts = files
    names = [path.name for path in paths]
    monkeypatch.chdir(tmp_path)
    assert command(names, tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "| i2t/R@1 |" in printed
    assert "modality gap" in printed
    result = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert result["data"] == {"name": "mine", "split": "test", "pictures": 60, "captions": len(dataset.captions)}
    assert result["retrieval"]["rouge_l"]["i2t/R@1"] > 80 > 20 > result["floor"]["rouge_l"]["i2t/R@1"]
    assert result["structure"]["image against text/overlap"] > 30
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*audits.FILES, "made_by.json"}  # nothing else
    assert {row["arm"] for row in result["baselines"]} == {"as given", "centred", "pca", "spectral_cut", "nnn"}
    monkeypatch.chdir(shutil.copytree(tmp_path, tmp_path / "b"))
    assert command(names, tmp_path / "out") == 2  # the same relative paths name other files here
    assert "made of was" in capsys.readouterr().err
    assert audits.audit(dataset, 3 * images, texts)["structure"] == pytest.approx(result["structure"], rel=1e-4)


def test_features_of_a_model_are_those_of_its_common_space(tmp_path, refuses):
    towers = tiny_towers(seed=3)
    message = "tiny_48 has random weights in its common space: give --model and --pretrained"
    refuses(message, audits.encode_with_model, "emoji", "tiny_48", None)
    weights = {f"visual.{name}": value for name, value in towers.visual.state_dict().items()}
    weights |= {f"text.{name}": value for name, value in towers.text.state_dict().items()}
    torch.save({**weights, "logit_scale": torch.tensor(1.0)}, tmp_path / "weights.pt")
    dataset, images, texts = audits.encode_with_model("emoji", "tiny_48", str(tmp_path / "weights.pt"), split="val")
    assert (len(images), len(texts)) == (len(dataset), len(dataset.captions))
    assert images.shape[1] == texts.shape[1] == towers.embed_dim


def test_every_format_with_one_array_is_read(tmp_path, capsys):
    rows = torch.randn(5, 3) * torch.tensor([[1.0], [0.0], [1.0], [1.0], [1.0]])
    np.savez(tmp_path / "a.npz", rows.numpy().astype(">f8"))
    torch.save(rows.bfloat16(), tmp_path / "b.pt")
    torch.save({"features": rows.clone().requires_grad_()}, tmp_path / "c.pth")
    save_file({"x": rows.half()}, tmp_path / "d.safetensors")
    for name in ("a.npz", "b.pt", "c.pth", "d.safetensors"):
        read = audits.read_array(tmp_path / name)
        assert read.dtype == torch.float32
        torch.testing.assert_close(read, rows, atol=0.02, rtol=0.02)
        assert "1 of 5 rows are all zero" in capsys.readouterr().out


ONES = np.ones((5, 3), dtype=np.float32)
NAN = ONES * np.array([1, np.nan, 1], dtype=np.float32)
NO_ARRAY, NO_ROWS = "is not an array of numbers", "must be rows [N, D] with at least one, got "
BROKEN = {  # file -> its content and the message; damaged bytes are in tests/test_fuzz.py
    "object.npy": (np.array([{}], dtype=object), NO_ARRAY),
    "words.npy": (np.array([["a", "b"]]), NO_ARRAY),
    "ints.npy": (ONES.astype(np.int64), "holds torch.int64 [5, 3], expected floating-point rows"),
    "none.npy": (ONES[:0], f"{NO_ROWS}(0, 3)"),
    "nan.npy": (NAN, "5 rows are not finite, row 0 first"),
    "module.pt": (torch.nn.Linear(2, 2), NO_ARRAY),  # a pickle
    "sparse.pt": (torch.eye(3).to_sparse(), f"{NO_ARRAY} (it must hold dense real numbers"),
    "meta.pt": (torch.eye(3).to("meta"), f"{NO_ROWS}(3, 3) of"),
    "tiny.npy": (ONES.astype(np.float64) * 1e-46, "row maxima from 1e-46 to 1e-46, outside float32"),
    "text.npy": ("a text", "it has another format, or holds objects that could run code"),
    "two.npz": ({"a": ONES, "b": ONES}, "holds 2 arrays (a, b)"),
    "missing.npy": (None, "is missing"),
    "rows.csv": (None, "give one of .npy, .npz"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BROKEN)
def test_every_broken_file_gives_one_line_that_names_it(tmp_path, name):
    content, message = BROKEN[name]
    if isinstance(content, np.ndarray):
        np.save(tmp_path / name, content)
    elif isinstance(content, dict):
        np.savez(tmp_path / name, **content)
    elif isinstance(content, str):
        (tmp_path / name).write_text(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        audits.read_array(tmp_path / name)
    assert (name in str(caught.value), "\n" in str(caught.value)) == (True, False)


def test_bad_input_is_named(files, tmp_path, capsys, refuses):
    paths, dataset, images, texts = files
    assert cli.main(["audit", "--dataset", "emoji", "--out", str(tmp_path / "o")]) == 2
    assert not (tmp_path / "o").exists()  # left free for the corrected command
    np.save(tmp_path / "few.npy", np.ones((7, 16), dtype=np.float32))
    assert command([tmp_path / "few.npy", *paths[1:]], tmp_path / "o") == 2
    assert f"60 pictures and {len(dataset.captions)} captions, but there are 7 rows" in capsys.readouterr().err
    np.save(tmp_path / "repeated.npy", images[[0, 0, *range(2, 60)]].numpy())
    audits.read_features(tmp_path / "repeated.npy", *paths[1:])
    assert "1 of 60 rows repeat another" in capsys.readouterr().out
    bad = {'[["a"], 3]': "a caption of 'entry 1' is 3", '[{"text": "b"}]': "a caption of 'entry 0' is {'text': 'b'}"}
    bad |= {"[" * 100_000: "is not valid JSON", '{"a": 1}': "is not a list", '["?!"]': "'?!' of 'entry 0' has no word"}
    bad |= {"[[]]": "has no word", '["a", "nan"]': "'nan' of 'entry 1' is a missing value"}
    for content, message in (bad | {"[\"['a', 'b']\"]": "1 pictures and 2 captions, but there are"}).items():
        paths[2].write_text(content)
        assert command(paths, tmp_path / "o") == 2
        assert message in capsys.readouterr().err
    refuses(r"\(60, 9\) and text features .* share no space", audits.audit, dataset, images[:, :9], texts)
    broken = images.index_fill(0, torch.tensor([3]), torch.nan)
    refuses("image features .* 1 rows are not finite, row 3 first", audits.audit, dataset, broken, texts)
    refuses("do not match 60 pictures", audits.audit, dataset, images[:5], texts)
    few = dataset.subset(range(10))
    features = torch.ones(10, 4), torch.ones(len(few.captions), 4)
    refuses("10 pictures are too few .*another --split", audits.audit, few, *features)
