import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rvlr_lib.training.gather import gather_rows


def test_a_single_process_keeps_its_rows():
    rows = torch.ones(3, 2)
    assert gather_rows(rows) is rows


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_two_processes_give_the_gradient_of_one_and_the_official_gather_half_of_it(tmp_path):
    script = Path(__file__).parent / "two_ranks.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, script, str(rank), tmp_path / "meeting"],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in (0, 1)
    ]
    try:
        first, _ = (rank.communicate(timeout=120) for rank in ranks)
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    report = json.loads(first[0])
    # Size of the encoder's gradient, size of the temperature's, cosine of the encoder's: against one process.
    assert report["ours"] == pytest.approx([1, 1, 1])
    assert report["official"] == pytest.approx([0.5, 1, 1])
