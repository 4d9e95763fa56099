import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def start_ranks():
    """Function (count, script or module arguments) -> the started processes of one gloo group."""
    return _start_ranks


def _start_ranks(count, *command, **options):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
    }
    return [
        subprocess.Popen(
            [sys.executable, *map(str, command)],
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        for rank in range(count)
    ]


@pytest.fixture(scope="session")
def run_ranks():
    """Function (count, command) -> output of rank 0; fails with what a failing rank wrote."""

    def run(count, *command, **options):
        ranks = _start_ranks(count, *command, **options)
        try:
            outputs = [rank.communicate(timeout=300) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
        for rank, (_, errors) in zip(ranks, outputs, strict=True):
            assert rank.returncode == 0, errors
        return outputs[0][0]

    return run
