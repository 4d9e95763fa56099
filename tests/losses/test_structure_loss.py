import pytest
import torch
from scipy.stats import wasserstein_distance
from slow_losses import slow_structure
from torch.autograd import gradcheck

from rvlr_lib.losses import DISTANCES, structure_distillation_loss
from rvlr_lib.similarity import cosine_matrix

ALL = pytest.mark.parametrize("distance", DISTANCES)
COSINE = [name for name in DISTANCES if not name.startswith("rkd")]
B = 9


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def views(draw):
    """Student, image teacher, text teacher and cost features of unlike widths."""
    return draw(B, 6), draw(B, 8), draw(B, 5), draw(B, 4)


def loss(views, distance, fusion_weight=0.3, temperature=0.2):
    *three, cost = views
    return structure_distillation_loss(
        *three, fusion_weight=fusion_weight, temperature=temperature, distance=distance, cost_features=cost
    )


@ALL
@pytest.mark.parametrize(("fusion_weight", "temperature"), [(0.3, 0.2), (0.0, 1.0), (1.4, 0.07), (-0.5, -0.3)])
def test_equals_the_slow_twin(views, distance, fusion_weight, temperature):
    *three, cost = views
    slow = slow_structure(
        *three, fusion_weight=fusion_weight, temperature=temperature, distance=distance, cost_features=cost
    )
    fast = loss(views, distance, fusion_weight, temperature)
    assert [term.item() for term in fast] == pytest.approx([term.item() for term in slow], rel=1e-9)


@ALL
@pytest.mark.parametrize("row", ["zero", "equal to another"])
def test_equals_the_slow_twin_where_a_row_of_the_student_is_poor(views, distance, row):
    student, image, text, cost = (x.detach().clone() for x in views)
    student[2] = student[5] if row == "equal to another" else 0
    slow = slow_structure(
        student, image, text, fusion_weight=0.3, temperature=0.2, distance=distance, cost_features=cost
    )
    assert loss((student, image, text, cost), distance).student.item() == pytest.approx(slow[0].item(), rel=1e-9)


@ALL
def test_gradients(views, distance):
    def terms(student, image, text, cost, weight, temperature):
        return tuple(loss((student, image, text, cost), distance, weight, temperature))

    few = (x[:5].detach().requires_grad_() for x in views)
    assert gradcheck(terms, (*few, scalar(0.3), scalar(0.4)))


@ALL
def test_teacher_equals_student_gives_zero(views, distance):
    student, _, _, cost = views
    terms = loss((student, student, student, cost), distance)
    assert [term.item() for term in terms] == pytest.approx([0, 0, 0], abs=1e-12)


@ALL
def test_the_weight_is_the_share_of_the_text_teacher(views, distance):
    _, image, text, cost = views
    assert loss((text, image, text, cost), distance, fusion_weight=1.0).student.item() == pytest.approx(0, abs=1e-12)
    assert loss((image, image, text, cost), distance, fusion_weight=0).student.item() == pytest.approx(0, abs=1e-12)
    if distance != "wasserstein":
        assert loss(views, distance, fusion_weight=1.0).text_teacher.item() == pytest.approx(0, abs=1e-12)
        assert loss(views, distance, fusion_weight=1.0).image_teacher > 0.01


@ALL
def test_lengths_of_rows_do_not_count(views, distance):
    scaled = [x * torch.linspace(0.1, 30, B, dtype=torch.float64)[:, None] for x in views]
    assert loss(scaled, distance).student.item() == pytest.approx(loss(views, distance).student.item())


@ALL
def test_batch_order_counts_for_the_running_sums_alone(views, distance):
    order = torch.randperm(B, generator=torch.Generator().manual_seed(3))
    gap = loss([x[order] for x in views], distance).student - loss(views, distance).student
    assert (abs(gap.item()) > 1e-3) == (distance == "cumulative_l1")


@ALL
def test_frozen_teachers_get_no_gradient(views, distance):
    student, image, text, cost = views
    terms = loss((student, image.detach(), text.detach(), cost), distance)
    terms.student.backward()
    assert student.grad.abs().sum() > 0
    assert image.grad is None
    assert text.grad is None
    assert (cost.grad is not None) == (distance == "wasserstein")
    assert not terms.image_teacher.requires_grad


@pytest.mark.parametrize("distance", COSINE)
def test_the_relation_temperature_is_only_ever_pushed_up(distance, draw):
    for _ in range(20):
        temperature = scalar(0.3)
        views = draw(B, 6), draw(B, 8), draw(B, 5), draw(B, 4)
        loss(views, distance, temperature=temperature).student.backward()
        assert temperature.grad < 0  # a descent step raises it


def test_the_two_teacher_terms_fence_the_fusion_weight_under_mae_and_pull_it_to_one_half_under_mse(views):
    def slope(distance, value):
        weight = scalar(value)
        terms = loss(views, distance, fusion_weight=weight)
        (terms.image_teacher + terms.text_teacher).backward()
        return weight.grad.item()

    for value in (0.05, 0.3, 0.5, 0.85):
        assert slope("mae", value) == pytest.approx(0, abs=1e-12)
    assert slope("mae", 1.2) == pytest.approx(-slope("mae", -0.2))
    assert slope("mae", 1.2) > 0.1
    assert slope("mse", 0.3) < 0 < slope("mse", 0.7)
    assert slope("mse", 0.5) == pytest.approx(0, abs=1e-12)


def test_wasserstein_equals_scipy_row_by_row(views):
    student, image, text, cost = (x.detach() for x in views)
    f, i, t = (cosine_matrix(x) / 0.2 for x in (student, image, text))
    delta = 1 - cosine_matrix(cost)
    u, v = (0.3 * t + 0.7 * i) * delta, f * delta
    for matrix in (u, v, delta):
        matrix.fill_diagonal_(0)
    rows = [wasserstein_distance(u[k], v[k], delta[k], delta[k]) for k in range(B)]
    terms = loss(views, "wasserstein")
    assert terms.student.item() == pytest.approx(sum(rows) / B, rel=1e-9)
    assert (terms.image_teacher.item(), terms.text_teacher.item()) == (0, 0)


def test_other_distances_ignore_the_cost_and_rkd_the_temperature(views):
    *three, _ = views
    for distance in set(DISTANCES) - {"wasserstein"}:
        bare = structure_distillation_loss(*three, fusion_weight=0.3, temperature=0.2, distance=distance)
        assert bare.student.item() == loss(views, distance).student.item()
    for distance in ("rkd_distance", "rkd_angle"):
        assert loss(views, distance, temperature=5.0).student.item() == loss(views, distance).student.item()


@ALL
def test_a_zero_row_has_a_finite_value_and_gradient(views, distance):
    student, *others = views
    student = student.detach().clone()
    student[2] = 0
    student.requires_grad_()
    term = loss((student, *others), distance).student
    term.backward()
    assert term.isfinite()
    assert student.grad.isfinite().all()


@ALL
@pytest.mark.parametrize("which", ["twins", "collapsed"])
def test_equal_rows_have_a_finite_value_and_gradient(views, distance, which):
    views = [x.detach().clone() for x in views]
    for x in views:
        x[1 if which == "twins" else slice(None)] = x[0].clone()
    views = [x.requires_grad_() for x in views]
    term = loss(views, distance).student
    term.backward()
    assert term.isfinite()
    assert all(x.grad is None or x.grad.isfinite().all() for x in views)


@ALL
def test_nan_stays_nan(views, distance):
    student, *others = views
    student = student.detach().clone()
    student[2, 1] = torch.nan
    assert loss((student, *others), distance).student.isnan()


@ALL
def test_works_in_float32_close_to_float64(views, distance):
    small = loss([x.float() for x in views], distance, fusion_weight=torch.tensor(0.3)).student
    assert small.dtype == torch.float32
    assert small.item() == pytest.approx(loss(views, distance).student.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distance": "kl"}, "unknown distance 'kl'; valid: mae, mse, cumulative_l1"),
        ({"distance": "wasserstein"}, "needs cost_features"),
        ({"distance": "wasserstein", "cost_features": torch.ones(3, 2)}, r"\(4, 2\).*\(3, 2\)"),
        ({"temperature": 0.0}, "zero"),
        ({"rows": (4, 4, 5)}, r"\(4, 2\).*\(5, 2\)"),
        ({"rows": (1, 1, 1)}, "at least 2 rows"),
        ({"rows": (2, 2, 2), "distance": "rkd_angle"}, "at least 3 rows"),
    ],
)
def test_refuses(change, message):
    rows = change.pop("rows", (4, 4, 4))
    with pytest.raises(ValueError, match=message):
        structure_distillation_loss(
            *(torch.ones(count, 2) for count in rows), **{"fusion_weight": 0.5, "temperature": 0.1, **change}
        )
