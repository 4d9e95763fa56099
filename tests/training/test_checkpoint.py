"""Checkpoints: resumed trainings are the uninterrupted ones, and whatever breaks is loud and leaves the older whole."""

import ctypes
import dataclasses
import os
import resource
import shutil
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from rvlr_lib import cli
from rvlr_lib.config import TrainSettings, load_settings, variant_weights
from rvlr_lib.data.dataset import ArraySource, ImageTextDataset
from rvlr_lib.losses import LossWeights
from rvlr_lib.models import Student, build_towers
from rvlr_lib.training import checkpoint as checkpoints
from rvlr_lib.training import loop as training
from rvlr_lib.training.checkpoint import Checkpoint, checkpoints_in, find_checkpoint, read_checkpoint, write_checkpoint
from rvlr_lib.training.loop import BatchSource, fit
from rvlr_lib.training.objectives import StudentObjective
from rvlr_lib.training.processes import Execution

CPU = torch.device("cpu")
SETTINGS = TrainSettings(epochs=5, batch_size=8, log_every=1)  # 4 steps an epoch, 20 in all


class PowerCut(Exception):
    """What ends a training in these tests."""


@pytest.fixture(scope="module")
def towers():
    return build_towers("tiny")


@pytest.fixture(scope="module")
def pairs():
    pictures = np.random.default_rng(0).integers(0, 256, (32, 48, 48, 3), dtype=np.uint8)
    captions = [f"picture {row} {'again ' * (row % 3)}" for row in range(32)]
    return ImageTextDataset("toy", "train", [str(i) for i in range(32)], captions, np.arange(32), ArraySource(pictures))


@pytest.fixture(scope="module")
def train(pairs, towers, tmp_path_factory):
    """Function: a control with second views, token dropout and hard negatives, so that every generator is drawn from.

    ``stop_before``: the step that a power cut prevents; ``change``: what happens to the training before a step.
    """
    settings = load_settings("scenes", overrides={"model.fusion_layers": 1})
    weights = dataclasses.replace(variant_weights(settings, "intra"), matching=1.0)
    step, nowhere = training.Training.train_step, tmp_path_factory.mktemp("logs") / "log.jsonl"

    def run(folder=None, *, stop_before=-1, change=None, log=nowhere):
        objective = StudentObjective(Student(towers, fusion_layers=1), weights, settings.method, None, 96, seed=0)
        source = BatchSource(pairs, towers.tokenizer, 48, SETTINGS, "images", seed=0)

        def train_step(self, inputs):
            if self.step == stop_before:
                raise PowerCut
            if change:
                change(self)
            return step(self, inputs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training.Training, "train_step", train_step)
            return fit(objective, weights, source, SETTINGS, seed=0, device=CPU, log_path=log, label="toy",
                       validate=lambda: {"score": float(objective.student.log_temperature.detach())},
                       execution=Execution(checkpoints=folder, save_every=5))  # fmt: skip

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    """An uninterrupted training of 20 steps, and its log."""
    log = tmp_path_factory.mktemp("whole") / "log.jsonl"
    return train(log=log), log.read_text()


@pytest.fixture(scope="module")
def broken_off(train, tmp_path_factory):
    """Checkpoints of a training that was broken off after 12 steps; copy them before use."""
    folder = tmp_path_factory.mktemp("broken_off") / "checkpoints"
    with pytest.raises(PowerCut):
        train(folder, stop_before=12)
    return folder


@pytest.fixture
def interrupted(broken_off, tmp_path):
    """A copy of them."""
    return Path(shutil.copytree(broken_off, tmp_path / "checkpoints"))


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_ten_steps_and_ten_more_are_twenty(train, whole, interrupted, tmp_path):
    assert [path.name for path in checkpoints_in(interrupted)] == ["step-000005", "step-000010"]
    assert read_checkpoint(interrupted / "step-000010").record["position"] == 2  # inside an epoch
    resumed, (once, log) = train(interrupted, log=tmp_path / "log.jsonl"), whole
    assert same(once.state, resumed.state)
    assert (once.best_epoch, once.best_score, once.history) == (
        resumed.best_epoch, resumed.best_score, resumed.history,
    )  # fmt: skip
    assert (tmp_path / "log.jsonl").read_text() == log
    assert not list(interrupted.glob(".*"))


class Drift(torch.nn.Module):
    """Weights that fall with every step."""

    two_views = False

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def generators(self, device):
        return {}

    def forward(self, inputs, precision):
        return {"contrastive": self.weight.sum()}

    def scalars(self):
        return {}


class Steps:
    """Batches without content."""

    steps_per_epoch, batch_rows, generators = 4, 1, {}

    def epoch(self, number, device, *, position, **_):
        yield from range(position, 4)


def test_the_best_weights_from_before_an_interruption_are_kept(tmp_path):
    def run(folder, scores):
        objective, scores = Drift(), iter(scores)
        return fit(objective, LossWeights(), Steps(), SETTINGS, seed=0, device=CPU, log_path=tmp_path / "log.jsonl",
                   label="drift", validate=lambda: {"score": next(scores)},
                   execution=Execution(checkpoints=folder, save_every=3))  # fmt: skip

    whole = run(None, [1.0, 3.0, 2.0, 0.0, 2.5])
    with pytest.raises(StopIteration):
        run(tmp_path / "c", [1.0, 3.0, 2.0])
    resumed = run(tmp_path / "c", [0.0, 2.5])
    assert (resumed.best_epoch, resumed.best_score) == (whole.best_epoch, whole.best_score) == (1, 3.0)
    assert same(whole.state, resumed.state)


@pytest.mark.parametrize("left_out", ["random/cpu", "generators/negatives", "views/first", "views/second"])
def test_a_resume_without_one_random_state_is_another_training(train, whole, interrupted, monkeypatch, left_out):
    def forget(*arguments):
        found = find_checkpoint(*arguments)
        state = found.tensors["resume"][left_out]
        found.tensors["resume"][left_out] = torch.Generator().manual_seed(5).get_state().reshape(state.shape)
        return found

    monkeypatch.setattr(training, "find_checkpoint", forget)
    assert not same(whole[0].state, train(interrupted).state)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: {"a": torch.randn(500, generator=generator)} for name in ("weights", "resume", "best")}


@pytest.fixture
def two(tmp_path):
    """A folder with checkpoints of steps 100 and 120."""
    for step in (100, 120):
        write_checkpoint(tmp_path / "c", Checkpoint(tensors(step), {"step": step}, "log\n"))
    return tmp_path / "c"


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, lambda p: p.write_bytes(p.read_bytes()[:-3]), lambda p: p.unlink()])
@pytest.mark.parametrize("name", ["weights.safetensors", "resume.safetensors", "best.safetensors", "resume.json",
                                  "log.jsonl", "manifest.json"])  # fmt: skip
def test_damage_is_named_with_the_way_out(two, harm, name):
    harm(two / "step-000120" / name)
    with pytest.raises(ValueError, match=r"step-000120/.*step-000100 is whole: --resume step-000100 goes on") as error:
        find_checkpoint(two, "last")
    assert name in str(error.value) or name == "manifest.json"
    found = find_checkpoint(two, "step-000100")
    assert found.record == {"step": 100}
    assert same(found.tensors["best"], tensors(100)["best"])
    assert [path.name for path in checkpoints_in(two)] == ["step-000100"]  # another future begins here
    harm(two / "step-000100" / name)
    with pytest.raises(ValueError, match="--resume no starts this training anew"):
        find_checkpoint(two, "last")


def test_which_checkpoint(two, tmp_path):
    assert find_checkpoint(two, "last").record == {"step": 120}
    with pytest.raises(ValueError, match="no checkpoint 'step-7': there are step-000100, step-000120"):
        find_checkpoint(two, "step-7")
    write_checkpoint(two, Checkpoint(tensors(), {"step": 1_000_000}))
    assert [path.name for path in checkpoints_in(two)] == ["step-000120", "step-1000000"]
    assert find_checkpoint(two, "no") is None
    assert not two.exists()
    assert find_checkpoint(tmp_path / "nothing", "last") is None


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_numbers_that_are_not_finite_are_neither_written_nor_read(two, number, monkeypatch):
    bad = tensors()
    bad["resume"]["a"][7] = number
    with pytest.raises(FloatingPointError, match="resume: a is not finite"):
        write_checkpoint(two, Checkpoint(bad, {"step": 140}))
    assert find_checkpoint(two, "last").record == {"step": 120}
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_check_finite", lambda *_: None)
        write_checkpoint(two, Checkpoint(bad, {"step": 140}))
    with pytest.raises(ValueError, match=r"step-000140/resume.safetensors: a is not finite.*step-000120 is whole"):
        find_checkpoint(two, "last")


@contextmanager
def small_files(_):
    """Files may not grow beyond 1 kB, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def read_only(folder):
    """The folder cannot be written; root may write anywhere and becomes nobody for a while."""
    root = os.geteuid() == 0
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)


@contextmanager
def full_disk(folder):
    """A file system of 120 kB with the folder on it, where this process may mount one."""
    moved = folder.with_name("moved")
    folder.rename(moved)
    folder.mkdir()
    mount = ctypes.CDLL(None, use_errno=True)
    if mount.mount(b"none", str(folder).encode(), b"tmpfs", 0, b"size=120k"):
        folder.rmdir()
        moved.rename(folder)
        pytest.skip("no file system can be mounted here")
    try:
        shutil.copytree(moved, folder, dirs_exist_ok=True)
        yield
    finally:
        kept = folder.with_name("kept")
        shutil.copytree(folder, kept)
        mount.umount(str(folder).encode())
        folder.rmdir()
        kept.rename(folder)


@pytest.mark.parametrize("trouble", [small_files, read_only, full_disk])
def test_a_checkpoint_that_cannot_be_written_is_loud_and_the_older_ones_stay(two, trouble):
    big = {name: {"a": torch.ones(20_000)} for name in ("weights", "resume")}
    with trouble(two), pytest.raises(OSError, match=r"space|large|denied|Permission"):
        write_checkpoint(two, Checkpoint(big, {"step": 140}))
    assert sorted(path.name for path in two.iterdir()) == ["step-000100", "step-000120"]
    assert same(find_checkpoint(two, "last").tensors["weights"], tensors(120)["weights"])


def test_rvlr_train_exits_with_2_where_checkpoints_cannot_be_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    (tmp_path / "checkpoints").write_text("a file in the way")
    sizes = ["train_size", "val_size", "gallery_size", "stage1_epochs"]
    settings = [word for name in sizes for word in ("-s", name, "16")]
    argv = [
        "train",
        "--dataset",
        "scenes",
        "--variant",
        "contrastive",
        "--device",
        "cpu",
        "--save-every",
        "1",
        *settings,
    ]
    assert cli.main([*argv, "-s", "galleries", "1", "-s", "teacher.batch_size", "8"]) == 2
    assert str(tmp_path / "checkpoints") in capsys.readouterr().err


def poison(what):
    """A change of the objective at step 12: a loss, a gradient or a temperature that is no number."""

    def change(run):
        if run.step != 12:
            return
        student = run.objective.student
        if what == "loss":
            run.objective.register_forward_hook(lambda _m, _i, terms: terms | {"contrastive": terms["contrastive"] / 0})
        elif what == "gradient":
            next(student.visual.parameters()).register_hook(lambda gradient: gradient * float("nan"))
        else:
            student.log_temperature.data.fill_(float(what.split()[0]))

    return change


@pytest.mark.parametrize(
    ("what", "named"),
    [("loss", "contrastive = inf"), ("gradient", "gradient norm is nan"),
     ("nan as the temperature", "student.log_temperature = nan"),
     ("inf as the temperature", "student.log_temperature = inf")],
)  # fmt: skip
def test_training_stops_within_a_step_and_keeps_the_last_good_checkpoint(train, tmp_path, what, named):
    with pytest.raises(FloatingPointError, match=f"toy, step 12: .*{named}"):
        train(tmp_path / "c", change=poison(what))
    assert find_checkpoint(tmp_path / "c", "last").record["step"] == 10


def test_a_temperature_that_no_loss_shows_stops_training_too(train, tmp_path):
    def change(run):
        if run.step == 12:
            run.objective.register_parameter("relation_temperature", torch.nn.Parameter(torch.tensor(float("inf"))))

    with pytest.raises(FloatingPointError, match="step 12.*relation_temperature = inf"):
        train(tmp_path / "c", change=change)


def test_a_checkpoint_of_another_training_is_refused(train, interrupted):
    found = read_checkpoint(interrupted / "step-000010")
    found.record["steps"] = 40
    write_checkpoint(interrupted, found)
    with pytest.raises(ValueError, match="of a training of 40 steps, this one has 20: --resume no"):
        train(interrupted)
    found.record["steps"] = 20
    found.tensors["weights"].pop("student.log_temperature")
    write_checkpoint(interrupted, found)
    with pytest.raises(ValueError, match=r"(?s)step 10.*another architecture.*log_temperature"):
        train(interrupted)


def test_a_flipped_bit_in_a_finished_stage_is_found(tmp_path):
    from rvlr_lib.study.cache import cached

    def compute(folder):
        checkpoints.save_tensors(folder / "weights.safetensors", tensors()["weights"])

    folder = cached(tmp_path, "stage", {}, "rvlr_lib.similarity", compute)
    assert checkpoints.load_tensors(folder / "weights.safetensors")
    flip(folder / "weights.safetensors")
    with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
        checkpoints.load_tensors(folder / "weights.safetensors")
