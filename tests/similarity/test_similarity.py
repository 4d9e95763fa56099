import pytest
import torch

from rvlr_lib.similarity import cosine_matrix, off_diagonal, unit_rows


@pytest.fixture
def rows():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_unit_rows_equal_torch_and_leave_zero_alone(rows):
    assert torch.allclose(unit_rows(rows), torch.nn.functional.normalize(rows))
    rows[1] = 0
    rows.requires_grad_()
    unit = unit_rows(rows)
    unit.sum().backward()
    assert unit[1].tolist() == [0, 0, 0]
    assert rows.grad.isfinite().all()
    assert rows.grad.abs().max() < 100


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtype_is_kept(rows, dtype):
    assert cosine_matrix(rows.to(dtype)).dtype == dtype


def test_cosine_matrix_equals_torch_pair_by_pair(rows):
    other = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.nn.functional.cosine_similarity(rows[:, None], other[None], dim=-1)
    assert torch.allclose(cosine_matrix(rows, other), expected)
    assert torch.allclose(cosine_matrix(rows), cosine_matrix(rows, rows))


def test_off_diagonal_equals_the_loop(rows):
    matrix = (rows @ rows.T)[:, [4, 2, 0, 1, 3]].T  # not contiguous
    loop = [[matrix[i, j].item() for j in range(5) if j != i] for i in range(5)]
    assert off_diagonal(matrix).tolist() == loop
    assert off_diagonal(torch.ones(1, 1)).shape == (1, 0)
