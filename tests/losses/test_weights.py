import pytest
import torch
from torch.autograd import gradcheck

from rvlr_lib.losses import FusionWeight, LossWeights, anchor_loss, weighted_sum


def test_defaults_are_the_official_weights():
    official = LossWeights()
    assert official == LossWeights(1, 2, 1, 2, 2, 1, 1)
    terms = {name: torch.tensor(10.0**power) for power, name in enumerate(LossWeights.__dataclass_fields__)}
    assert weighted_sum(terms, official).item() == 1122121


def test_gradient_reaches_each_term_with_its_weight():
    terms = {name: torch.tensor(1.0, requires_grad=True) for name in ("matching", "structure", "anchor")}
    weighted_sum(terms, LossWeights(structure=0.5, anchor=3)).backward()
    assert [term.grad.item() for term in terms.values()] == [2, 0.5, 3]


def test_terms_of_two_dtypes_add_up():
    terms = {"contrastive": torch.tensor(3.0), "matching": torch.tensor(1.0, dtype=torch.bfloat16)}
    assert weighted_sum(terms, LossWeights()).item() == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_term_that_is_not_finite_is_named(value):
    terms = {"contrastive": torch.tensor(1.0), "text_intra": torch.tensor(value)}
    with pytest.raises(FloatingPointError, match=f"text_intra = {value}") as error:
        weighted_sum(terms, LossWeights())
    assert "contrastive" not in str(error.value)


@pytest.mark.parametrize("terms", [{}, {"kd": torch.tensor(1.0)}])
def test_an_unknown_or_missing_term_lists_the_valid_ones(terms):
    with pytest.raises(ValueError, match="contrastive, matching, image_representation"):
        weighted_sum(terms, LossWeights())


def test_anchor_is_the_squared_way_from_the_start(draw):
    weights, start = [draw(3, 2), draw(1, 4)], [draw(3, 2), draw(1, 4)]
    loop = sum(
        (a - b) ** 2 for x, y in zip(weights, start, strict=True) for a, b in zip(x.view(-1), y.view(-1), strict=True)
    )
    assert anchor_loss(iter(weights), start).item() == pytest.approx(loop.item())
    assert anchor_loss(weights, weights).item() == 0
    assert gradcheck(lambda *x: anchor_loss(x, start), weights)
    anchor_loss(weights, start).backward()
    assert [x.grad for x in start] == [None, None]
    for wrong, message in ((start[:1], "2 and 1"), (start[::-1], r"\(3, 2\) and \(1, 4\)")):
        with pytest.raises(ValueError, match=message):
            anchor_loss(weights, wrong)


@pytest.mark.parametrize("form", ["sigmoid", "free"])
def test_a_learnable_fusion_weight_starts_where_told_and_moves(form):
    weight = FusionWeight(0.3, form)
    assert weight().item() == pytest.approx(0.3)
    weight().backward()
    torch.optim.SGD(weight.parameters(), lr=100.0).step()
    assert weight().item() < 0.3
    assert (weight().item() < 0) == (form == "free")


@pytest.mark.parametrize("initial", [0.0, 0.5, 1.0, 1.7])
def test_a_fixed_fusion_weight_stays(initial):
    weight = FusionWeight(initial, learnable=False)
    assert weight().item() == pytest.approx(initial)
    assert not weight().requires_grad
    assert weight.state_dict()


def test_refuses():
    with pytest.raises(ValueError, match="valid: sigmoid, free"):
        FusionWeight(form="relu")
    with pytest.raises(ValueError, match=r"inside \(0, 1\)"):
        FusionWeight(1.0)
