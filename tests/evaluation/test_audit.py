"""Audits: predictability and the index against closed cases, files of features, training-free rows."""

import json
from dataclasses import replace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from rvlr_lib import cli
from rvlr_lib.data import ImbalanceSpec, load_dataset
from rvlr_lib.evaluation import audit as audits
from rvlr_lib.evaluation.baselines import training_free
from rvlr_lib.evaluation.evaluate import retrieval_metrics
from rvlr_lib.evaluation.own import read_array
from rvlr_lib.similarity import unit_rows
from tests.tiny import CONFIG


def gallery(**dial):
    return load_dataset("scenes", split="test", galleries=1, gallery_size=150, imbalance=ImbalanceSpec(**dial))


def shown(dataset):
    """Features that hold exactly what each view shows."""
    views = dataset.scene
    return torch.from_numpy(views.image.counts()), torch.from_numpy(views.text.counts())


def test_predictability_against_scikit_learn():
    """Ridge with its strength by leave-one-out inside five shuffled folds, also with more columns than rows."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict

    generator = np.random.default_rng(0)
    for rows, width in ((203, 6), (60, 90)):
        x = generator.normal(size=(rows, width))
        y = x @ generator.normal(size=(width, 3)) + 4 * generator.normal(size=(rows, 3)) + 5
        model = RidgeCV(alphas=audits.ALPHAS * rows * x.var(axis=0).mean())
        predicted = cross_val_predict(model, x, y, cv=KFold(5, shuffle=True, random_state=0))
        slow = 1 - np.square(y - predicted).sum() / np.square(y - y.mean(axis=0)).sum()
        assert audits.predictability(x, y) == pytest.approx(slow, abs=1e-6)
    assert audits.predictability(x, generator.normal(size=(60, 2))) == 0
    assert audits.predictability(x, np.ones((60, 2))) == 0


def test_the_index_follows_the_dial():
    sets = {"none": gallery(), "text": gallery(text_detail=0.5), "image": gallery(image_visibility=0.5)}
    exact = {name: audits.imbalance_report(data, *shown(data)) for name, data in sets.items()}
    assert exact["none"].index == 0
    assert exact["text"].index == pytest.approx(1 / 3, abs=0.03)
    assert exact["image"].index < -0.2
    assert exact["text"].image_probe > 0.95 > 0.6 > exact["text"].text_probe
    assert exact["image"].text_probe > 0.95 > 0.7 > exact["image"].image_probe
    unknown = {n: audits.imbalance_report(replace(d, scene=None), *shown(d)) for n, d in sets.items()}
    assert unknown["text"].index_from == "predictability"
    assert unknown["text"].image_shown is unknown["text"].text_probe is None
    assert abs(unknown["none"].index) < 0.03 < 0.15 < unknown["text"].index


def test_the_share_of_pictures_is_corrected_for_captions_that_tell_unreliably():
    """Captions are picture plus noise of the same size: a picture holds all they tell, they half of it."""
    dataset = load_dataset("scenes", split="test", galleries=1, gallery_size=400)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(400, 6, generator=generator)
    texts = images[dataset.caption_image] + torch.randn(2000, 6, generator=generator)
    report = audits.imbalance_report(replace(dataset, scene=None), images, texts)
    assert report.image_to_text == pytest.approx(0.5, abs=0.06)
    assert report.text_to_text == pytest.approx(0.25, abs=0.06)
    assert report.index == pytest.approx((1 - 0.5) / (1 + 0.5), abs=0.06)


def test_index_laws():
    assert audits.imbalance_index(0.3, 0.7) == -audits.imbalance_index(0.7, 0.3)
    assert audits.imbalance_index(0.5, 0) == 1
    assert audits.imbalance_index(0, 0) == 0
    with pytest.raises(ValueError, match="not negative"):
        audits.imbalance_index(-0.1, 0.5)


def test_training_free_rows_choose_on_validation_and_undo_an_offset():
    """Both modalities are noise around the same points, one of them moved: centring brings them together."""
    dataset = load_dataset("emoji", split="train", limit=200)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(200, 12, generator=generator)
    texts = images[dataset.caption_image] + 0.5 * torch.randn(len(dataset.captions), 12, generator=generator)
    texts += 6 * torch.eye(12)[0]
    pair = unit_rows(images), unit_rows(texts)
    split = (pair, dataset)
    found = training_free(pair, dataset, train=split, validation=split, arms_seed=3)
    table = found.pivot_table("value", "arm", "metric")
    assert table.loc["centred", "r_mean"] > table.loc["as given", "r_mean"] + 10
    assert table.loc["as given", "r_mean"] == pytest.approx(retrieval_metrics(*split)["rouge_l"]["r_mean"])
    assert table.loc["nnn", "r_mean"] > table.loc["as given", "r_mean"]  # chosen on the same data
    assert np.isnan(table.loc["nnn", "i2i/NDCG@10"])
    single = ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10"]
    assert table.loc["spectral_cut", single].mean() >= table.loc["as given", single].mean() - 1e-9
    assert set(found["arms_seed"]) == {3}
    assert found.loc[found["arm"] == "nnn", "parameters"].iloc[0].startswith("weight ")
    parts = training_free(pair, dataset)  # its own three parts
    assert set(parts["arm"]) == set(found["arm"])
    assert parts["value"].notna().all()


@pytest.fixture
def files(tmp_path):
    """Arrays and captions of 60 emoji, one of them with its captions under ``caption``."""
    dataset = load_dataset("emoji", split="val", limit=60)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 16, generator=generator)
    texts = images[dataset.caption_image] + 0.3 * torch.randn(len(dataset.captions), 16, generator=generator)
    paths = [tmp_path / name for name in ("images.npy", "texts.npy", "mine.json")]
    np.save(paths[0], images.numpy())
    np.save(paths[1], texts.numpy())
    captions = [[dataset.captions[c] for c in dataset.captions_of(i)] for i in range(60)]
    paths[2].write_text(json.dumps([{"caption": captions[0]}, *captions[1:]]))
    return paths, dataset


def arguments(paths, out):
    return [
        "audit",
        "--image-features",
        str(paths[0]),
        "--text-features",
        str(paths[1]),
        "--captions",
        str(paths[2]),
        "--device",
        "cpu",
        "--out",
        str(out),
    ]


def test_audit_of_arrays(files, tmp_path, capsys):
    paths, dataset = files
    assert cli.main(arguments(paths, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "| i2t/R@1 |" in printed
    assert "| spectral_cut |" in printed
    assert "modality_gap" in printed
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["data"] == {"name": "mine", "split": "test", "pictures": 60, "captions": len(dataset.captions)}
    assert found["retrieval"]["rouge_l"]["i2t/R@1"] > 80 > 20 > found["floor"]["rouge_l"]["i2t/R@1"]
    assert found["imbalance"]["index_from"] == "predictability"
    assert found["structure"]["image against text/overlap"] > 30
    assert {"audit.md", "retrieval.csv", "peers.csv"} <= {path.name for path in (tmp_path / "out").iterdir()}
    images, texts = (torch.from_numpy(np.load(path)) for path in paths[:2])
    own, scaled = (audits.audit(scale * images, texts, dataset) for scale in (1, 3))
    assert found["retrieval"]["rouge_l"]["r_mean"] == pytest.approx(own["retrieval"]["rouge_l"]["r_mean"])
    assert scaled["structure"] == pytest.approx(own["structure"], rel=1e-5)


def test_audit_of_a_model(tmp_path, capsys):
    open_clip.add_model_config(CONFIG)
    asked = ["--dataset", "emoji", "--split", "val", "--model", "tiny_48", "--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["audit", *asked]) == 0
    assert "has random weights" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["data"]["name"] == "emoji"


def test_every_format_with_one_array_is_read(tmp_path):
    rows = torch.randn(5, 3)
    np.savez(tmp_path / "a.npz", rows.numpy().astype(">f8"))
    torch.save(rows.bfloat16(), tmp_path / "b.pt")
    torch.save({"features": rows.requires_grad_()}, tmp_path / "c.pth")
    save_file({"x": rows.detach().half()}, tmp_path / "d.safetensors")
    for name in ("a.npz", "b.pt", "c.pth", "d.safetensors"):
        found = read_array(tmp_path / name)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, rows.detach(), atol=0.02, rtol=0.02)


def broken_files(folder):
    """Name -> what the message says of it."""
    rows = np.ones((5, 3), dtype=np.float32)
    np.save(folder / "whole.npy", rows)
    np.savez(folder / "whole.npz", rows)
    torch.save(torch.ones(5, 3), folder / "whole.pt")
    save_file({"x": torch.ones(5, 3)}, folder / "whole.safetensors")
    said = {}
    for suffix in ("npy", "npz", "pt", "safetensors"):
        content = (folder / f"whole.{suffix}").read_bytes()
        for name, part in (("empty", b""), ("cut", content[: len(content) // 2]), ("text", b"1,2\n3,4\n")):
            (folder / f"{name}.{suffix}").write_bytes(part)
            said[f"{name}.{suffix}"] = "is no array of numbers"
        said[f"missing.{suffix}"] = "is no array of numbers"
    (folder / "huge.npy").write_bytes(content_of_a_huge_array(folder / "whole.npy"))
    (folder / "folder.npy").mkdir()
    np.save(folder / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    torch.save(torch.nn.Linear(2, 2), folder / "module.pt")
    np.save(folder / "words.npy", np.array([["a", "b"]]))
    said |= dict.fromkeys(["huge.npy", "folder.npy", "object.npy", "module.pt", "words.npy"], "is no array of numbers")
    np.save(folder / "ints.npy", rows.astype(np.int64))
    np.save(folder / "flat.npy", rows[0])
    np.save(folder / "none.npy", rows[:0])
    np.savez(folder / "two.npz", a=rows, b=rows)
    torch.save([torch.ones(5, 3)], folder / "list.pt")
    np.save(folder / "nan.npy", rows / np.array([1, 0, 1], dtype=np.float32))
    (folder / "rows.csv").write_text("1,2")
    return said | {
        "ints.npy": "holds torch.int64 [5, 3], expected floating-point rows",
        "flat.npy": "holds torch.float32 [3], expected",
        "none.npy": "holds torch.float32 [0, 3], expected",
        "two.npz": "holds 2 arrays (a, b)",
        "list.pt": "holds list, expected",
        "nan.npy": "5 rows are not finite, row 0 first",
        "rows.csv": "give one of .npy, .npz",
    }


def content_of_a_huge_array(path):
    return path.read_bytes().replace(b"(5, 3)", b"(5000000000000, 3)").replace(b" " * 13 + b"\n", b"\n")


@pytest.mark.filterwarnings("ignore")
def test_every_broken_file_is_one_line_that_names_it(tmp_path):
    for name, words in broken_files(tmp_path).items():
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            read_array(tmp_path / name)
        message = str(caught.value)
        assert name in message, name
        assert words in message, (name, message)
        assert "\n" not in message, name


def test_bad_input_is_named(files, tmp_path, capsys):
    paths, dataset = files
    assert cli.main(["audit", "--image-features", str(paths[0])]) == 2
    assert "or --dataset" in capsys.readouterr().err
    np.save(tmp_path / "few.npy", np.zeros((7, 16), dtype=np.float32))
    assert cli.main(arguments([tmp_path / "few.npy", *paths[1:]], tmp_path / "o")) == 2
    assert f"60 pictures and {len(dataset.captions)} captions, but there are 7 rows" in capsys.readouterr().err
    for content, said in (
        ('[["a"], 3]', "entry 1 is no caption"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"a": 1}', "holds no list"),
        ('["?!"]', "captions, but there are"),
    ):
        paths[2].write_text(content)
        assert cli.main(arguments(paths, tmp_path / "o")) == 2
        assert said in capsys.readouterr().err
    images, texts = (torch.from_numpy(np.load(path)) for path in paths[:2])
    with pytest.raises(ValueError, match=r"\(60, 9\) and text features .* share no space"):
        audits.audit(images[:, :9], texts, dataset)
    images[3, 2] = torch.nan
    with pytest.raises(ValueError, match="image features hold 1 rows that are not finite"):
        audits.audit(images, texts, dataset)
    with pytest.raises(ValueError, match="do not fit 60 pictures"):
        audits.audit(images[:5], texts, dataset)
    few = dataset.subset(range(10))
    with pytest.raises(ValueError, match="10 pictures are too few"):
        audits.audit(torch.ones(10, 4), torch.ones(len(few.captions), 4), few)
