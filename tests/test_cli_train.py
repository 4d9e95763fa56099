"""``rvlr train`` in one process: what it says, what it leaves, and that an interruption changes nothing."""

import json

import pytest
import torch
from safetensors.torch import load_file

from rvlr_lib import cli
from rvlr_lib.models.student import Student
from rvlr_lib.models.towers import build_towers
from rvlr_lib.study.study import open_study
from rvlr_lib.training import loop as training
from rvlr_lib.training.stages import encode_with_student

SIZES = {"train_size": 32, "val_size": 16, "galleries": 1, "gallery_size": 16, "teacher_epochs": 1, "stage1_epochs": 4,
         "stage1.batch_size": 8}  # fmt: skip
TRAIN = ["train", "--dataset", "scenes", "--variant", "contrastive", "--device", "cpu", "--save-every", "3",
         *(word for item in SIZES.items() for word in ("-s", *map(str, item)))]  # fmt: skip


@pytest.fixture
def rvlr(tmp_path, monkeypatch, capsys):
    """Function (arguments, step before which to interrupt) -> exit code, what was printed, what was complained of."""
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    step = training.Training.train_step

    def run(*arguments, stop_before=-1):
        def train_step(self, inputs):
            if self.label == "contrastive" and self.step == stop_before:
                raise KeyboardInterrupt
            return step(self, inputs)

        monkeypatch.setattr(training.Training, "train_step", train_step)
        code = cli.main([*TRAIN, *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


def test_an_interrupted_training_goes_on_to_the_same_weights_and_notebooks_find_them(rvlr, tmp_path):
    assert rvlr(stop_before=11)[0] == 130
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert sorted(path.name for path in kept.iterdir()) == ["step-000006", "step-000009"]
    code, output, _ = rvlr()
    assert code == 0
    assert "contrastive: 4 epochs, 16 steps, interrupted: checkpoints step-000006, step-000009" in output
    assert "contrastive: going on from step 9 of 16" in output
    assert not kept.exists()
    folder = tmp_path / "train" / "scenes-contrastive"
    resumed, log = load_file(folder / "weights.safetensors"), (folder / "log.jsonl").read_text()
    result = json.loads((folder / "result.json").read_text())
    assert result["metrics"]["r_mean"] > 0
    assert result["provenance"]["execution"]["processes"] == 1
    assert len(result["provenance"]["data"]) == 64

    (tmp_path / "cache").rename(tmp_path / "first")
    assert rvlr("--out", tmp_path / "whole")[0] == 0
    whole = load_file(tmp_path / "whole" / "weights.safetensors")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "whole" / "log.jsonl").read_text() == log

    study = open_study("scenes", device="cpu", root=tmp_path, **SIZES)
    assert all(study.is_there(stage) for stage in study.plan.stages("contrastive"))
    assert study.result("contrastive").metrics == pytest.approx(result["metrics"])
    towers = build_towers(f"local-dir:{folder / 'open_clip'}")
    features, _ = encode_with_student(Student(towers), study.dataset("test"), towers, study.device)
    torch.testing.assert_close(features, study.test_features("contrastive")[0], atol=1e-5, rtol=1e-4)


def test_a_damaged_checkpoint_stops_it_and_the_older_one_takes_over(rvlr, tmp_path):
    rvlr(stop_before=11)
    (weights,) = (tmp_path / "checkpoints").glob("*/step-000009/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    code, _, errors = rvlr()
    assert code == 2
    assert f"{weights} is damaged" in errors
    assert "--resume step-000006 goes on from it" in errors
    code, _, errors = rvlr("--resume", "step-000003")
    assert code == 2
    assert "there are step-000006, step-000009, last and no" in errors
    code, output, _ = rvlr("--resume", "step-000006")
    assert code == 0
    assert "contrastive: going on from step 6 of 16" in output
    assert "going on" not in rvlr("--resume", "no")[1]


def test_wrong_arguments_are_refused_before_anything_is_trained(rvlr, tmp_path, monkeypatch):
    for arguments, named in [
        (("--variant", "frozen"), "valid are contrastive"),
        (("--save-every", 0), "save_every=0"),
        (("--timeout", 0), "--timeout 0"),
        (("-s", "stage1.epoch", 3), "stage1.epoch"),
        (("--resume", "step-000001"), "no such checkpoint"),
    ]:
        code, _, errors = rvlr(*arguments)
        assert code == 2
        assert named in errors
    (tmp_path / "file").touch()
    assert rvlr("--out", tmp_path / "file")[0] == 2
    assert not list((tmp_path / "cache").glob("teacher-*/*"))


def test_a_training_that_leaves_the_numbers_exits_with_1_and_keeps_its_checkpoints(rvlr, tmp_path):
    code, _, errors = rvlr("-s", "stage1.learning_rate", "1.0e+30", "-s", "stage1.clip_norm", 0)
    assert code == 1
    assert "rvlr: contrastive, step" in errors
    assert "smaller learning_rate" in errors
    assert not (tmp_path / "train" / "scenes-contrastive" / "result.json").exists()
