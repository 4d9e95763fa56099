import pytest
import torch

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows

ROWS = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_unit_rows_equal_torch_and_leave_zero_alone():
    assert torch.allclose(unit_rows(ROWS), torch.nn.functional.normalize(ROWS))
    rows = ROWS.clone()
    rows[1] = 0
    unit = unit_rows(rows.requires_grad_())
    unit.sum().backward()
    assert unit[1].tolist() == [0, 0, 0]
    assert rows.grad.isfinite().all()
    assert rows.grad.abs().max() < 100
    assert unit_rows(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).flatten().tolist() == pytest.approx([0.6, 0.8] * 2)


def test_cosine_matrix_equals_torch_pair_by_pair_and_keeps_the_dtype():
    expected = torch.nn.functional.cosine_similarity(ROWS[:, None], ROWS[None, :4], dim=-1)
    assert torch.allclose(cosine_matrix(ROWS, ROWS[:4]), expected)
    assert torch.allclose(cosine_matrix(ROWS), cosine_matrix(ROWS, ROWS))
    assert {cosine_matrix(ROWS.to(dtype)).dtype for dtype in (torch.float32, torch.bfloat16)} == {
        torch.float32,
        torch.bfloat16,
    }


def test_off_diagonal_equals_the_loop():
    matrix = (ROWS @ ROWS.T)[:, [4, 2, 0, 1, 3]].T  # not contiguous
    assert off_diagonal(matrix).tolist() == [[matrix[i, j].item() for j in range(5) if j != i] for i in range(5)]
    assert off_diagonal(torch.ones(1, 1)).shape == (1, 0)
