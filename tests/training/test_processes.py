"""Any number of processes gives the same features, gradients and log; a training survives the death of one."""

import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from rvlr_lib.training.processes import gather_rows, local_rows, process_group
from tests.training import ranks
from tests.training.conftest import assert_equal


def run_ranks(count, *arguments, fault=""):
    """Run a function of ranks.py in a group of processes and return what they print; ``fault`` is an expected error."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", **address}
    command = [sys.executable, "-m", "tests.training.ranks", str(count), *map(str, arguments)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert bool(run.returncode) == bool(fault), run.stderr
    assert fault in run.stderr
    return run.stdout


def test_a_single_process_keeps_its_rows_and_uneven_shares_are_refused(monkeypatch, refuses):
    rows = torch.ones(3, 2)
    assert gather_rows(rows) is rows
    assert local_rows(7) == slice(0, 7)
    for batch, count in ((7, 3), (4, 4)):  # the second would leave single rows
        monkeypatch.setattr("rvlr_lib.training.processes.processes", lambda count=count: (1, count))
        refuses(f"a batch of {batch} rows .* set batch_size to a multiple of {count}", local_rows, batch)
    monkeypatch.setenv("WORLD_SIZE", "2")  # where a process would take another's GPU
    refuses("cuda:1: under torchrun give cuda", process_group(torch.device("cuda:1"), 1).__enter__)


def test_two_processes_write_the_bits_of_one(tmp_path):
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        run_ranks(count, "encode_set", tmp_path / str(count))
    for part in ("images/train/features", "images/train/tokens", "texts/train/features", "texts/train/mask"):
        one, two = ((tmp_path / count / "rank 0" / f"{part}.npy").read_bytes() for count in "12")
        assert one == two
    assert not list((tmp_path / "2" / "rank 1").rglob("*.npy"))
    common = [torch.load(tmp_path / name) for name in ("1/0.pt", "2/0.pt", "2/1.pt")]
    assert_equal(common, [common[0]] * 3)


@pytest.mark.slow
def test_every_parameter_gets_the_gradient_of_a_single_process(tmp_path):
    results = {}
    for count in (1, 2, 3):
        file = tmp_path / f"{count}.safetensors"
        run_ranks(count, "gradients", file) if count > 1 else ranks.gradients(file)
        results[count] = load_file(file), json.loads(file.with_suffix(".json").read_text())
    single, single_log = results.pop(1)
    assert {"loss/matching", "loss/structure", "loss/image_representation"} <= set(single_log["heads, fusion"])
    for count, (several, log) in results.items():
        torch.testing.assert_close(several.pop("official"), single["official"] / count)  # why ours differs
        assert single.keys() - {"official"} == several.keys()
        for name, gradient in several.items():
            assert gradient.dtype == torch.float64
            error = (single[name] - gradient).norm() / single[name].norm().clamp(min=1e-9)  # biases of keys: only noise
            assert error < 1e-6, f"{name}: {error}"
        for name, record in single_log.items():
            assert log[name] == pytest.approx(record, rel=1e-6), name


@pytest.mark.slow
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSTOP"])
def test_a_dead_or_silent_process_ends_the_job_and_a_single_one_can_resume(tmp_path, capsys, signal):
    run_ranks(2, "train", tmp_path / "interrupted", signal, fault="terminated with")
    assert [path.name for path in (tmp_path / "interrupted" / "checkpoints").glob("step-*")] == ["step-000002"]
    ranks.train(tmp_path / "interrupted")
    assert "toy: resuming from step 2 of 8" in capsys.readouterr().out
    ranks.train(tmp_path / "alone")
    states = [load_file(tmp_path / name / "state.safetensors") for name in ("interrupted", "alone")]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_the_last_checkpoint_always_loads(tmp_path):
    steps = json.loads(run_ranks(1, "kills", tmp_path).splitlines()[-1])
    assert len(steps) == 21
    assert steps == sorted(set(steps))
