import pytest
import torch

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows


def test_unit_rows_of_any_length_and_a_zero_row_stays_with_a_small_gradient():
    zero = torch.zeros(1, 3, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert not unit_rows(zero).any()
    assert zero.grad.abs().max() < 100  # torch's is 1e12 times as large
    assert unit_rows(torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])).flatten().tolist() == pytest.approx([0.6, 0.8] * 2)


def test_cosine_matrix_equals_torch_pair_by_pair_and_off_diagonal_the_loop():
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.cosine_similarity(rows[:, None], rows[None, :4], dim=-1)
    torch.testing.assert_close(cosine_matrix(rows, rows[:4]), expected)
    matrix = torch.arange(25).view(5, 5).T  # not contiguous
    assert off_diagonal(matrix).tolist() == [[matrix[i, j].item() for j in range(5) if j != i] for i in range(5)]
    assert off_diagonal(torch.ones(1, 1)).shape == (1, 0)
