"""Checkpoints: resumed trainings equal uninterrupted ones; every failure is an error and spares older checkpoints."""

import resource
import shutil
from pathlib import Path

import pytest
import torch

from rvlr_lib.training import loop
from rvlr_lib.training.checkpoint import checkpoints_in, last_checkpoint, read_checkpoint, write_checkpoint
from rvlr_lib.training.loop import Execution
from tests.training.conftest import assert_equal, make_objective, train

SCORES = [1.0, 3.0, 2.0, 0.0, 2.5]  # of the epochs; the best is before the interruption
STEP, CLOSE = loop.Training.train_step, loop.Training.close_epoch


class PowerCut(Exception):
    """Ends a training in these tests."""


def run(folder=None, *, before_step=lambda training: None, **options):
    """Train 20 steps, each after ``before_step``; second views, dropout and hard negatives use every generator."""

    def train_step(self, inputs):
        before_step(self)
        return STEP(self, inputs)

    objective = make_objective(matching=1, image_intra=1, text_intra=1, anchor=0.1, structure=1)
    options |= {"epochs": 5, "execution": Execution(checkpoints=folder, save_every=6)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Training, "train_step", train_step)
        patch.setattr(loop.Training, "close_epoch", lambda self, _: CLOSE(self, {"score": SCORES[self.epoch]}))
        return train(objective, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """An uninterrupted training of 20 steps, and its log."""
    log = tmp_path_factory.mktemp("uninterrupted") / "log.jsonl"
    return run(log=log), log.read_text()


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """Checkpoints of a training that was interrupted after 13 steps; copy them before use."""

    def power_cut(training):
        if training.step == 13:
            raise PowerCut

    folder = tmp_path_factory.mktemp("interrupted") / "checkpoints"
    with pytest.raises(PowerCut):
        run(folder, before_step=power_cut)
    return folder


@pytest.fixture
def interrupted(original, tmp_path):
    """A copy of the interrupted training's checkpoints."""
    return Path(shutil.copytree(original, tmp_path / "checkpoints"))


@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_training_equals_the_uninterrupted_one(uninterrupted, interrupted, tmp_path, capsys, damaged):
    assert [path.name for path in checkpoints_in(interrupted)] == ["step-000006", "step-000012"]
    assert read_checkpoint(interrupted / "step-000012")["epoch"] == 2  # of four steps, not yet validated
    if damaged:  # resumes from inside an epoch
        flip(interrupted / "step-000012" / "state.safetensors")
    resumed, (expected, log) = run(interrupted, log=tmp_path / "log.jsonl"), uninterrupted
    assert_equal(resumed.state, expected.state)
    assert (resumed.best_epoch, resumed.best_score, resumed.history) == (1, 3.0, expected.history)
    assert (tmp_path / "log.jsonl").read_text() == log
    assert not list(interrupted.glob(".*"))
    *skipped, last = capsys.readouterr().out.splitlines()
    assert f"resuming from step {6 if damaged else 12} of 20" in last
    assert [": resuming from step-000006" in line for line in skipped] == [True] * damaged


def test_resume_no_starts_over(interrupted, capsys, monkeypatch, refuses):
    with monkeypatch.context() as other:  # process without a checkpoint
        other.setattr(loop, "all_gather_objects", lambda value: [value, 0])
        refuses("processes find different checkpoints", run, interrupted)
    train(make_objective(fusion_layers=0), epochs=5, execution=Execution(checkpoints=interrupted, resume="no"))
    assert not interrupted.exists()
    assert "resuming" not in capsys.readouterr().out


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {"weights": {"a": torch.randn(500, generator=generator)}, "step": seed}


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 100 and 120."""
    for step in (100, 120):
        write_checkpoint(tmp_path / "c", step, tensors(step))
    return tmp_path / "c"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, lambda p: p.write_bytes(p.read_bytes()[:-3]), lambda p: p.unlink()])
@pytest.mark.parametrize("name", ["state.safetensors", "sha256"])
def test_damage_is_named_and_the_checkpoint_before_is_taken(two, damage, name, capsys, refuses):
    damage(two / "step-000120" / name)
    refuses("step-000120", read_checkpoint, two / "step-000120")
    assert last_checkpoint(two)[1]["step"] == 100
    assert capsys.readouterr().out.count("\n") == 1
    damage(two / "step-000100" / name)
    refuses(r"step-000120.*step-000100.*--resume no starts this training over", last_checkpoint, two)


def test_the_newest_two_stay(two):
    write_checkpoint(two, 1_000_000, tensors())
    assert [path.name for path in checkpoints_in(two)] == ["step-000120", "step-1000000"]
    (two / "step-000130.bak").mkdir()  # not a checkpoint
    write_checkpoint(two, 125, tensors())  # a training that fell back removes the later one
    assert [path.name for path in checkpoints_in(two)] == ["step-000120", "step-000125"]


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_not_written(two, number):
    bad = tensors()
    bad["weights"]["a"][7] = number
    with pytest.raises(FloatingPointError, match=r"shape \[500\] is not finite"):
        write_checkpoint(two, 140, bad)
    assert last_checkpoint(two)[1]["step"] == 120


def test_a_full_disk_is_an_error_and_older_checkpoints_stay(two):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # files may not grow beyond 1 kB
    try:
        with pytest.raises(OSError, match=r"space|large"):
            write_checkpoint(two, 140, {"a": torch.ones(40_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(path.name for path in two.iterdir()) == ["step-000100", "step-000120"]
    assert last_checkpoint(two)[1]["step"] == 120


def test_a_parameter_that_is_not_finite_is_not_saved_even_if_no_loss_uses_it(tmp_path):
    def poison(training):
        if training.step == 10:
            training.objective.register_parameter("other", torch.nn.Parameter(torch.tensor(float("nan"))))

    with pytest.raises(FloatingPointError, match="toy, step 10: not finite: other = nan"):
        run(tmp_path / "c", before_step=poison, log_every=100)
    assert last_checkpoint(tmp_path / "c")[1]["step"] == 6


def test_a_checkpoint_of_another_training_is_refused(interrupted, refuses):
    state = read_checkpoint(interrupted / "step-000012")
    write_checkpoint(interrupted, 12, state | {"fitted": state["fitted"] | {"steps": 40}})
    refuses("of a training of 40 steps, this one has 20: --resume no", run, interrupted)
    state["weights"].pop("student.log_temperature")
    write_checkpoint(interrupted, 12, state)
    refuses(r"(?s)step-000012.*another architecture.*log_temperature", run, interrupted)
