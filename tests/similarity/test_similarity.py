import pytest
import torch

from rvlr_lib.similarity import unit_rows

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_unit_rows_and_their_gradient_equal_those_of_torch_and_a_zero_row_stays_zero():
    rows = torch.cat([ROWS, torch.eye(3), torch.zeros(1, 3)]).requires_grad_()
    weights = torch.arange(27.0, dtype=rows.dtype).view(9, 3)
    ours, theirs = unit_rows(rows), torch.nn.functional.normalize(rows)
    gradient, expected = (torch.autograd.grad((weights * unit).sum(), rows)[0] for unit in (ours, theirs))
    assert torch.allclose(ours, theirs)
    assert torch.allclose(gradient[:-1], expected[:-1])
    for dtype in (torch.float32, torch.float64):  # bit for bit: official numbers depend on near-ties
        assert unit_rows(ours.detach().to(dtype)).equal(torch.nn.functional.normalize(ours.detach().to(dtype)))
    assert gradient[-1].abs().max() < 100  # torch's is 1e12 times as large
    assert unit_rows(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).flatten().tolist() == pytest.approx([0.6, 0.8] * 2)
