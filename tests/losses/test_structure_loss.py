from functools import partial

import pytest
import torch
from torch.autograd import gradcheck

from rvlr_lib.losses import DISTANCES, mean_relation_loss, structure_distillation_loss
from tests.losses.slow_losses import slow_cosines, slow_structure

COSINE = [name for name in DISTANCES if not name.startswith("rkd")]
CASES = [(name, False) for name in DISTANCES] + [(name, True) for name in COSINE if name != "wasserstein"]
ALL = pytest.mark.parametrize(("distance", "centred"), CASES)
B = 9


def slow_mean_relation(student, image, text, *, fusion_weight, temperature):
    f, i, t = (slow_cosines(x) / temperature for x in (student, image, text))
    return (f - (fusion_weight * t + (1 - fusion_weight) * i).mean()).abs().mean()


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def views(draw):
    """Student, image teacher, text teacher and cost features of different widths."""
    return draw(B, 6), draw(B, 8), draw(B, 5), draw(B, 4)


def loss(views, distance, centred=False, fusion_weight=0.3, temperature=0.2, function=None, **options):
    *features, cost = views
    options |= {"fusion_weight": fusion_weight, "temperature": temperature, "distance": distance, "centred": centred}
    return (function or structure_distillation_loss)(*features, cost_features=cost, **options)


def value(*arguments, **options):
    return loss(*arguments, **options).student.item()


def mean_relation(views, fusion_weight=0.3, temperature=0.2, function=mean_relation_loss):
    return function(*views[:3], fusion_weight=fusion_weight, temperature=temperature)


@ALL
@pytest.mark.parametrize(("fusion_weight", "temperature"), [(0.3, 0.2), (0.0, 1.0), (1.4, 0.07), (-0.5, -0.3)])
def test_equals_the_slow_twin(views, distance, centred, fusion_weight, temperature):
    scalars = fusion_weight, temperature
    slow = [term.item() for term in loss(views, distance, centred, *scalars, slow_structure)]
    assert [term.item() for term in loss(views, distance, centred, *scalars)] == pytest.approx(slow, rel=1e-9)
    slow = mean_relation(views, *scalars, slow_mean_relation).item()
    assert mean_relation(views, *scalars).item() == pytest.approx(slow)
    student, *rest = (x.detach().clone() for x in views)
    for row in (student[5], 0):  # equal rows, and a zero row
        student[2] = row
        slow = loss((student, *rest), distance, centred, function=slow_structure)[0]
        assert value((student, *rest), distance, centred) == pytest.approx(slow.item())


@ALL
def test_several_spaces_share_one_target_and_are_averaged(views, distance, centred):
    spaces = [loss((x, *views[1:]), distance, centred) for x in (views[0], views[3])]
    both = loss(views, distance, centred, more_features=[views[3]])
    torch.testing.assert_close(tuple(both), ((spaces[0].student + spaces[1].student) / 2, *spaces[0][1:]))
    spaces = [mean_relation((x, *views[1:])) for x in (views[0], views[3])]
    more = partial(mean_relation_loss, more_features=[views[3]])
    torch.testing.assert_close(mean_relation(views, function=more), sum(spaces) / 2)


def test_gradients(views):
    inputs = *(x[:5].detach().requires_grad_() for x in views), scalar(0.3), scalar(0.4)
    for distance, centred in CASES:
        assert gradcheck(lambda *x, d=distance, c=centred: tuple(loss(x[:4], d, c, *x[4:])), inputs)
    assert gradcheck(lambda *x: mean_relation(x[:4], *x[4:]), inputs)


@ALL
def test_zero_at_the_target_invariant_to_row_lengths_and_except_for_running_sums_to_batch_order(
    views, distance, centred
):
    _, image, text, cost = views
    plain, zero = value(views, distance, centred), pytest.approx(0, abs=1e-12)
    assert [term.item() for term in loss((image, image, image, cost), distance, centred)] == [zero] * 3
    assert value((text, image, text, cost), distance, centred, fusion_weight=1.0) == zero
    assert "rkd" not in distance or value(views, distance, temperature=0.0) == plain
    for scale in (torch.linspace(0.1, 30, B, dtype=torch.float64)[:, None], 1e-200, 1e200):
        assert value([x * scale for x in views], distance, centred) == pytest.approx(plain)
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    shuffled = [x[order] for x in views]
    assert (abs(value(shuffled, distance, centred) - plain) > 1e-3) == (distance == "cumulative_l1")
    assert mean_relation(shuffled).item() == pytest.approx(mean_relation(views).item())


@pytest.mark.parametrize("distance", COSINE)
def test_the_relation_temperature_is_only_ever_pushed_up(distance, draw):
    for _ in range(20):
        temperature = scalar(0.3)
        views = draw(B, 6), draw(B, 8), draw(B, 5), draw(B, 4)
        loss(views, distance, temperature=temperature).student.backward()
        assert temperature.grad < 0  # a descent step raises it


def test_teacher_terms_keep_the_fusion_weight_inside_0_to_1_under_mae_and_pull_it_to_one_half_under_mse(views):
    def slope(distance, share):
        weight = scalar(share)
        terms = loss(views, distance, fusion_weight=weight)
        (terms.image_teacher + terms.text_teacher).backward()
        return weight.grad.item()

    zero = pytest.approx(0, abs=1e-12)
    assert [slope("mae", share) for share in (0.05, 0.3, 0.5, 0.85)] == [zero] * 4
    assert slope("mae", 1.2) == pytest.approx(-slope("mae", -0.2))
    assert slope("mae", 1.2) > 0.1
    assert slope("mse", 0.3) < 0 < slope("mse", 0.7)
    assert slope("mse", 0.5) == zero


@ALL
@pytest.mark.parametrize("case", ["zero", "equal", "collapsed", "nearly collapsed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_rows_have_a_finite_value_and_gradient(views, distance, centred, case, dtype):
    views = [x.detach().to(dtype) for x in views]
    for x in views:
        row = x[0] * (0 if case == "zero" else 1)
        x[2 if case in ("zero", "equal") else slice(None)] = row.clone()
        if case == "nearly collapsed":
            x += 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        x.requires_grad_()
    term = loss(views, distance, centred).student
    term.backward()
    assert term.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in views)


def test_rkd_distance_is_exact_for_equal_and_near_rows(draw):
    """The Gram form must not mistake rounding for distance: equal rows are at 0, near ones at their distance."""
    relations_of = DISTANCES["rkd_distance"][0]
    rows = draw(40, 64).detach().float()
    assert relations_of(rows[:1].expand(40, 64)).abs().max() == 0
    many = draw(150, 300).detach().float()
    assert (relations_of(torch.cat([many, 3 * many])).diagonal(150) == 0).all()  # equal except for rounding
    rows[8] = rows[3] + 0.05 * rows[9]
    for near in (rows, 1 + 1e-4 * rows):  # all rows nearly equal, as after a collapse
        exact = torch.nn.functional.normalize(near.double())
        exact = (exact[:, None] - exact[None]).norm(dim=-1)
        assert relations_of(near).numpy() == pytest.approx((exact * 40 * 39 / exact.sum()).numpy(), abs=5e-3)


@ALL
def test_dtypes(views, distance, centred):
    student, image, text, cost = views
    exact = value(views, distance, centred)
    mixed = student.float(), image.detach().numpy(), text.tolist(), cost.float()
    single = [x.float() for x in views], torch.float32
    for features, dtype in (single, (mixed, torch.float64), ([x.half() for x in views], torch.float16)):
        term = loss(features, distance, centred, fusion_weight=torch.tensor(0.3)).student
        assert term.dtype == dtype
        assert term.item() == pytest.approx(exact, rel=0.05 if dtype == torch.float16 else 1e-4)
    half = torch.tensor(0.07, dtype=torch.float16)  # must not lower the precision
    expected = value(views, distance, centred, temperature=float(half))
    assert value(views, distance, centred, temperature=half) == pytest.approx(expected, rel=1e-9)
    assert loss((student * torch.nan, image, text, cost), distance, centred).student.isnan()


def test_half_precision_of_a_large_batch_does_not_overflow(draw):
    rows = draw(800, 3).detach().half()
    assert loss((rows, rows[:, :2], rows[:, 1:], rows), "mae", temperature=0.01).student.isfinite()
