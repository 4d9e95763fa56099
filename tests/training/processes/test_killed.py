import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_killed_at_twenty_random_moments_the_last_checkpoint_always_loads(tmp_path, run_ranks):
    steps = json.loads(run_ranks(1, Path(__file__).parent / "killed.py", tmp_path).splitlines()[-1])
    assert len(steps) == 20
    assert steps == sorted(set(steps))
