import pytest
import torch


@pytest.fixture
def draw():
    """Function (count, width, unit) -> seeded float64 features that require a gradient."""
    generator = torch.Generator().manual_seed(0)

    def rows(count: int, width: int, unit: bool = False):
        x = torch.randn(count, width, generator=generator, dtype=torch.float64)
        return (torch.nn.functional.normalize(x) if unit else x).requires_grad_()

    return rows
