import math

import pytest
import torch
from torch.autograd import gradcheck

from rvlr_lib.losses import FusionWeight, LossWeights, anchor_loss, image_text_matching_loss, sample_hard_negatives
from tests.losses.slow_losses import slow_hard_negatives

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3, 4])


def slow_matching(positive_logits, negative_logits):
    logits = positive_logits.tolist() + [(b, a) for a, b in negative_logits.tolist()]  # true class second
    return sum(math.log(math.exp(a) + math.exp(b)) - b for a, b in logits) / len(logits)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("ids", [None, IDS])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("extra", [0, 100], ids=["spread", "all mass on the same image"])
def test_draws_equal_one_call_per_row_and_never_show_the_same_image(ids, dtype, extra):
    images, wide = torch.arange(8) if ids is None else ids, torch.promote_types(dtype, torch.float32)
    similarity = torch.randn(8, 8, generator=seeded(), dtype=dtype) + extra * (images[:, None] == images)
    for seed in range(20):
        fast = sample_hard_negatives(similarity, 0.3, ids, seeded(seed))
        slow = slow_hard_negatives(similarity.to(wide), 0.3, images, seeded(seed))
        assert [x.tolist() for x in fast] == [x.tolist() for x in slow]


def test_matching_equals_the_loop_and_has_its_gradient(draw):
    positive, negative = draw(4, 2), draw(8, 2)
    assert image_text_matching_loss(positive, negative).item() == pytest.approx(slow_matching(positive, negative))
    assert gradcheck(image_text_matching_loss, (positive, negative))
    assert image_text_matching_loss(positive.bfloat16(), negative.bfloat16()).dtype == torch.bfloat16
    right, wrong = torch.tensor([[-9.0, 9.0]] * 2), torch.tensor([[9.0, -9.0]] * 4)  # class 1: matched
    assert image_text_matching_loss(right, wrong.double()) < 1e-6
    assert image_text_matching_loss(wrong[:2].tolist(), torch.cat([right, right])) > 10


def test_default_weights_are_the_official_ones_and_the_anchor_is_the_squared_distance_from_the_start(draw):
    assert LossWeights() == LossWeights(1, 2, 1, 2, 2, 1, 1)
    weights, start = [draw(3, 2), draw(1, 4)], [draw(3, 2), draw(1, 4)]
    loop = sum(((a - b) ** 2).sum().item() for a, b in zip(weights, start, strict=True))
    assert anchor_loss(iter(weights), start).item() == pytest.approx(loop)
    assert anchor_loss(weights, weights).item() == 0
    assert gradcheck(lambda *x: anchor_loss(x, start), weights)
    anchor_loss(weights, start).backward()
    assert [x.grad for x in start] == [None, None]


@pytest.mark.parametrize("form", ["sigmoid", "free"])
def test_a_learnable_fusion_weight_moves_from_its_initial_value_and_a_fixed_one_stays(form):
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
