"""The same gradients, log and features from any number of processes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo"),
]


@pytest.fixture(scope="module")
def gradients(tmp_path_factory, run_ranks):
    """Function (number of processes) -> gradients and log records."""
    folder = tmp_path_factory.mktemp("gradients")

    def compute(count):
        file = folder / f"{count}.safetensors"
        if not file.exists():
            run_ranks(count, HERE / "gradients.py", file)
        return load_file(file), json.loads(file.with_suffix(".json").read_text())

    return compute


@pytest.mark.parametrize("count", [2, 3])
def test_every_parameter_gets_the_gradient_of_a_single_process(gradients, count):
    (single, single_log), (several, several_log) = gradients(1), gradients(count)
    assert single.keys() == several.keys()
    assert {name.split("/")[0] for name in single} == set(single_log)
    assert {"loss/matching", "loss/structure", "loss/image_representation"} <= set(single_log["rvlr, fusion"])
    for name, gradient in single.items():
        assert gradient.dtype == torch.float64
        error = (several[name] - gradient).norm() / gradient.norm().clamp(min=1e-9)  # keys' biases have only noise
        assert error < 1e-6, f"{name}: {error}"
    for name, record in single_log.items():
        assert several_log[name] == pytest.approx(record, rel=1e-6), name


@pytest.mark.parametrize("count", [2, 3])
def test_encoding_is_shared_without_an_item_twice_and_gives_the_same_bits(tmp_path, run_ranks, count):
    for processes in (1, count):
        (tmp_path / str(processes)).mkdir(exist_ok=True)
        run_ranks(processes, HERE / "encoding.py", tmp_path / str(processes))
    single, several = (load_file(tmp_path / str(n) / "features.safetensors") for n in (1, count))
    for name, value in single.items():
        assert torch.equal(several[name], value), name
        assert not name.endswith("seen") or (value == 1).all()
    assert {name: value.shape for name, value in single.items()} == {
        "uneven/images": (14, 96), "uneven/texts": (28, 96), "uneven/seen": (14,),
        "small/images": (2, 96), "small/texts": (4, 96), "small/seen": (2,),
    }  # fmt: skip
    kept = tmp_path / str(count) / "cache" / "stage"
    assert all((folder / "parts.json").is_file() for folder in kept.iterdir())


SIZES = {"train_size": 32, "val_size": 16, "galleries": 1, "gallery_size": 16, "teacher_epochs": 2, "stage1_epochs": 1,
         "stage2_epochs": 1, "teacher.batch_size": 8}  # fmt: skip
TRAIN = ["train", "--dataset", "scenes", "--variant", "contrastive", "--device", "cpu", "--save-every", "2",
         *(word for item in SIZES.items() for word in ("-s", *map(str, item)))]  # fmt: skip


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_dead_or_silent_process_ends_the_job_and_keeps_the_checkpoint(tmp_path, start_ranks, signal, monkeypatch):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    first, second = start_ranks(2, HERE / "dying.py", signal, *TRAIN, "--timeout", "10")
    try:
        _, errors = first.communicate(timeout=120)
    finally:
        second.kill()
        first.kill()
    second.communicate()
    assert first.returncode == 1, errors
    assert "the same command goes on from the last" in errors
    (kept,) = (tmp_path / "checkpoints").iterdir()
    assert [path.name for path in kept.glob("step-*")] == ["step-000002"]


def test_a_training_of_two_processes_goes_on_in_one(tmp_path, start_ranks, run_ranks, monkeypatch):
    """Broken off at step 3 with two processes, then finished by one: nearly the same as one alone."""
    metrics = []
    for name in ("broken off", "alone"):
        monkeypatch.setenv("RVLR_RUNS", str(tmp_path / name))
        if name == "broken off":
            for rank in start_ranks(2, HERE / "dying.py", "SIGKILL", *TRAIN):
                rank.communicate(timeout=120)
        output = run_ranks(1, "-m", "rvlr_lib", *TRAIN)
        assert ("image teacher: going on from step 2 of 8" in output) == (name == "broken off")
        metrics.append(json.loads((tmp_path / name / "train/scenes-contrastive/result.json").read_text())["metrics"])
    assert metrics[0] == pytest.approx(metrics[1], rel=0.02)
