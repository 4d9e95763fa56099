import pytest
import torch
from torch.autograd import gradcheck

from rvlr_lib.losses import FusionWeight, LossWeights, anchor_loss


def test_defaults_are_the_official_weights_and_anchor_is_the_squared_way_from_the_start(draw):
    assert LossWeights() == LossWeights(1, 2, 1, 2, 2, 1, 1)
    weights, start = [draw(3, 2), draw(1, 4)], [draw(3, 2), draw(1, 4)]
    loop = sum(((a - b) ** 2).sum().item() for a, b in zip(weights, start, strict=True))
    assert anchor_loss(iter(weights), start).item() == pytest.approx(loop)
    assert anchor_loss(weights, weights).item() == 0
    assert gradcheck(lambda *x: anchor_loss(x, start), weights)
    anchor_loss(weights, start).backward()
    assert [x.grad for x in start] == [None, None]


@pytest.mark.parametrize("form", ["sigmoid", "free"])
def test_a_learnable_fusion_weight_starts_where_told_and_moves_and_a_fixed_one_stays(form):
    weight = FusionWeight(0.3, form)
    assert weight().item() == pytest.approx(0.3)
    weight().backward()
    torch.optim.SGD(weight.parameters(), lr=100.0).step()
    assert weight().item() < 0.3
    assert (weight().item() < 0) == (form == "free")
    fixed = FusionWeight(1.7, form, learnable=False)
    assert fixed().item() == pytest.approx(1.7)
    assert not fixed().requires_grad
    assert fixed.state_dict()
