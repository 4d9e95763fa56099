"""The same gradients and log from any number of processes, and what is left where one of them dies."""

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
            run_ranks(count, HERE / "ranks.py", "gradients", file)
        return load_file(file), json.loads(file.with_suffix(".json").read_text())

    return compute


@pytest.mark.parametrize("count", [2, 3])
def test_every_parameter_gets_the_gradient_of_a_single_process(gradients, count):
    (single, single_log), (several, several_log) = gradients(1), gradients(count)
    assert single.keys() == several.keys()
    assert {name.split("/")[0] for name in single} == set(single_log)
    assert {"loss/matching", "loss/structure", "loss/image_representation"} <= set(single_log["heads, fusion"])
    for name, gradient in single.items():
        assert gradient.dtype == torch.float64
        error = (several[name] - gradient).norm() / gradient.norm().clamp(min=1e-9)  # keys' biases have only noise
        assert error < 1e-6, f"{name}: {error}"
    for name, record in single_log.items():
        assert several_log[name] == pytest.approx(record, rel=1e-6), name


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_dead_or_silent_process_ends_the_job_and_keeps_the_checkpoint(tmp_path, start_ranks, signal):
    first, second = start_ranks(2, HERE / "ranks.py", "train", tmp_path, signal)
    try:
        _, errors = first.communicate(timeout=120)
    finally:
        second.kill()
        first.kill()
    second.communicate()
    assert first.returncode == 1, errors
    assert [path.name for path in (tmp_path / "checkpoints").glob("step-*")] == ["step-000002"]


def test_a_training_of_two_processes_goes_on_in_one(tmp_path, start_ranks, run_ranks):
    """Broken off before step 3 with two processes, then finished by one: nearly the same as one alone."""
    states = []
    for name in ("broken off", "alone"):
        if name == "broken off":
            for rank in start_ranks(2, HERE / "ranks.py", "train", tmp_path / name, "SIGKILL"):
                rank.communicate(timeout=120)
        output = run_ranks(1, HERE / "ranks.py", "train", tmp_path / name)
        assert ("toy: going on from step 2 of 8" in output) == (name == "broken off")
        states.append(load_file(tmp_path / name / "state.safetensors"))
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], atol=1e-4, rtol=1e-3, msg=name)
