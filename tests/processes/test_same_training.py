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
