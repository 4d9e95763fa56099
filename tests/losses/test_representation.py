import pytest
import torch
from slow_losses import slow_contrast
from torch.autograd import gradcheck

from rvlr_lib.losses import representation_distillation_loss

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
UNIQUE = torch.arange(7)


@pytest.mark.parametrize("temperature", [0.07, 1.3, -0.5])
@pytest.mark.parametrize("ids", [None, IDS])
def test_equals_the_loops(draw, ids, temperature):
    student, teacher = draw(7, 5, unit=True), draw(7, 5, unit=True)
    known = UNIQUE if ids is None else ids
    there = slow_contrast(student, teacher, temperature, known)
    back = slow_contrast(teacher, student, temperature, known)
    assert representation_distillation_loss(student, teacher, temperature, ids).item() == pytest.approx(there.item())
    both = representation_distillation_loss(student, teacher, temperature, ids, bidirectional=True)
    assert both.item() == pytest.approx((there + back).item() / 2)


def test_gradients(draw):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for two_ways in (False, True):
        assert gradcheck(
            lambda s, t, tau, way=two_ways: representation_distillation_loss(s, t, tau, IDS, way),
            (draw(7, 4), draw(7, 4), temperature),
        )


def test_frozen_teacher_gets_no_gradient_and_a_trainable_projection_does(draw):
    student, teacher = draw(4, 3), draw(4, 3)
    representation_distillation_loss(student, teacher.detach(), 0.1).backward()
    assert student.grad is not None
    assert teacher.grad is None
    representation_distillation_loss(student, teacher, 0.1).backward()
    assert teacher.grad is not None


def test_rows_may_stand_in_any_order(draw):
    student, teacher, order = draw(7, 5), draw(7, 5), torch.tensor([3, 1, 6, 0, 5, 2, 4])
    plain = representation_distillation_loss(student, teacher, 0.1, IDS)
    moved = representation_distillation_loss(student[order], teacher[order], 0.1, IDS[order])
    assert moved.item() == pytest.approx(plain.item())


def test_works_in_the_dtype_of_its_input():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        rows = torch.eye(4, dtype=dtype)
        assert representation_distillation_loss(rows, rows, torch.tensor(0.1), [0, 0, 1, 2]).dtype == dtype


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "ids", "message"),
    [
        ((4, 3), (5, 3), 0.1, None, r"\(4, 3\).*\(5, 3\)"),
        ((4, 3), (4, 2), 0.1, None, r"\(4, 3\).*\(4, 2\)"),
        ((4,), (4,), 0.1, None, "matrices"),
        ((1, 3), (1, 3), 0.1, None, "at least 2 rows"),
        ((4, 3), (4, 3), 0, None, "temperature must not be zero"),
        ((4, 3), (4, 3), torch.tensor(0.0), None, "temperature must not be zero"),
        ((4, 3), (4, 3), torch.ones(4), None, "0-d"),
        ((4, 3), (4, 3), 0.1, torch.arange(3), r"\(3,\)"),
    ],
)
def test_refuses(student, teacher, temperature, ids, message):
    with pytest.raises(ValueError, match=message):
        representation_distillation_loss(torch.ones(student), torch.ones(teacher), temperature, ids)


def test_defined_values_of_poor_input():
    rows = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    uniform = torch.log_softmax(rows @ rows.T / 0.1, dim=1).mean()
    one_image = representation_distillation_loss(rows, rows, 0.1, torch.zeros(4))
    assert one_image.item() == pytest.approx(-uniform.item(), rel=1e-6)
    zeros = torch.zeros(4, 3)
    assert representation_distillation_loss(zeros, zeros, 0.1).item() == pytest.approx(torch.log(torch.tensor(4.0)))
    assert representation_distillation_loss(rows * torch.nan, rows, 0.1).isnan()
