import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from rvlr_lib import cli
from rvlr_lib.data import ImbalanceSpec, load_dataset
from rvlr_lib.evaluation import audit as audits


def gallery(**dial):
    return load_dataset("scenes", split="test", galleries=1, gallery_size=150, imbalance=ImbalanceSpec(**dial))


def shown(dataset):
    """Features that hold exactly what each view shows."""
    views = dataset.scene
    return torch.from_numpy(views.image.counts()), torch.from_numpy(views.text.counts())


def test_predictability_against_closed_cases():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 6))
    assert audits.predictability(x, x @ generator.normal(size=(6, 3)) + 5) == pytest.approx(1, abs=1e-3)
    assert audits.predictability(x, generator.normal(size=(400, 3))) == pytest.approx(0, abs=0.03)
    noisy = x + generator.normal(size=x.shape)  # half of the variance is noise
    assert audits.predictability(x, noisy) == pytest.approx(0.5, abs=0.06)
    assert audits.predictability(noisy, x) == pytest.approx(0.5, abs=0.06)
    assert audits.predictability(x, np.ones((400, 2))) == 0
    held_out = generator.normal(size=(60, 59))  # as many columns as rows: in-sample fit would be perfect
    assert audits.predictability(held_out, generator.normal(size=(60, 2))) < 0.3


def test_the_index_follows_the_dial():
    sets = {"none": gallery(), "text": gallery(text_detail=0.5), "image": gallery(image_visibility=0.5)}
    exact = {name: audits.imbalance_report(data, *shown(data)) for name, data in sets.items()}
    assert exact["none"].index == 0
    assert exact["text"].index == pytest.approx(1 / 3, abs=0.03)
    assert exact["image"].index < -0.2
    assert exact["none"].image_probe == pytest.approx(1, abs=0.02)
    assert exact["text"].image_probe > 0.95 > 0.6 > exact["text"].text_probe
    assert exact["image"].text_probe > 0.95 > 0.7 > exact["image"].image_probe
    assert all(report.index_from == "exact shares of factors" for report in exact.values())


def test_the_index_from_predictability_has_the_right_sign():
    """The factors are put out of sight; the text dial is seen well, the image dial barely, as the docstring says."""
    found = {}
    for name, data in {"none": gallery(), "text": gallery(text_detail=0.5)}.items():
        report = audits.imbalance_report(replace(data, scene=None), *shown(data))
        assert report.index_from == "predictability"
        assert report.image_shown is report.text_probe is None
        found[name] = report.index
    assert abs(found["none"]) < 0.03
    assert found["text"] > 0.15


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
    noisy = images + torch.randn(400, 6, generator=generator)  # now a picture tells half of what captions could say
    report = audits.imbalance_report(replace(dataset, scene=None), noisy, texts)
    assert report.image_to_text == pytest.approx(0.25, abs=0.06)
    assert report.index == pytest.approx((0.5 - 0.25) / (0.5 + 0.25), abs=0.12)


def test_index_laws():
    assert audits.imbalance_index(0.3, 0.7) == -audits.imbalance_index(0.7, 0.3)
    assert audits.imbalance_index(0.5, 0) == 1
    assert audits.imbalance_index(0, 0) == 0
    with pytest.raises(ValueError, match="not negative"):
        audits.imbalance_index(-0.1, 0.5)


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
    return ["audit", "--image-features", str(paths[0]), "--text-features", str(paths[1]), "--captions", str(paths[2]),
            "--out", str(out)]  # fmt: skip


def test_audit_of_arrays(files, tmp_path, capsys):
    paths, dataset = files
    assert cli.main(arguments(paths, tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "| i2t/R@1 |" in printed
    assert "modality_gap" in printed
    found = json.loads((tmp_path / "out" / "audit.json").read_text())
    assert found["data"] == {"name": "mine", "split": "test", "pictures": 60, "captions": len(dataset.captions)}
    assert found["retrieval"]["rouge_l"]["i2t/R@1"] > 80 > 20 > found["floor"]["rouge_l"]["i2t/R@1"]
    assert found["imbalance"]["index_from"] == "predictability"
    assert found["structure"]["image against text/overlap"] > 30
    assert {"retrieval.png", "retrieval.pdf", "gap.png", "gap.csv", "audit.tex"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    images, texts = (torch.from_numpy(np.load(path)) for path in paths[:2])
    own = audits.audit(dataset, images, texts)
    assert found["retrieval"]["rouge_l"]["r_mean"] == pytest.approx(own["retrieval"]["rouge_l"]["r_mean"])
    scaled = audits.audit(dataset, 3 * images, texts)
    assert scaled["structure"] == pytest.approx(own["structure"], rel=1e-5)


def test_audit_of_a_model(tmp_path, capsys):
    assert cli.main(["audit", "--dataset", "emoji", "--split", "val", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert "has random weights" in capsys.readouterr().out
    assert json.loads((tmp_path / "audit.json").read_text())["data"]["name"] == "emoji"


def test_bad_input_is_named(files, tmp_path, capsys):
    paths, dataset = files
    assert cli.main(["audit", "--image-features", str(paths[0])]) == 2
    assert "or --dataset" in capsys.readouterr().err
    np.save(tmp_path / "few.npy", np.zeros((7, 16), dtype=np.float32))
    assert cli.main(arguments([tmp_path / "few.npy", *paths[1:]], tmp_path / "o")) == 2
    assert f"60 pictures and {len(dataset.captions)} captions, but there are 7 rows" in capsys.readouterr().err
    np.save(tmp_path / "object.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert cli.main(arguments([tmp_path / "object.npy", *paths[1:]], tmp_path / "o")) == 2
    assert "object.npy is no array of numbers" in capsys.readouterr().err
    paths[2].write_text('[["a"], 3]')
    assert cli.main(arguments(paths, tmp_path / "o")) == 2
    assert "entry 1 is no caption" in capsys.readouterr().err
    images, texts = (torch.from_numpy(np.load(path)) for path in paths[:2])
    images[3, 2] = torch.nan
    with pytest.raises(ValueError, match="image features hold 1 rows that are not finite"):
        audits.audit(dataset, images, texts)
    with pytest.raises(ValueError, match="do not fit 60 pictures"):
        audits.audit(dataset, images[:5], texts)
    few = dataset.subset(range(10))
    with pytest.raises(ValueError, match="10 pictures are too few"):
        audits.audit(few, torch.ones(10, 4), torch.ones(len(few.captions), 4))
