import math

import numpy as np
import pytest
import torch
from slow_losses import slow_contrast, slow_cyclic
from torch.autograd import gradcheck

from rvlr_lib.losses import (
    cross_modal_cyclic_loss,
    image_text_contrastive_loss,
    in_modal_cyclic_loss,
    intra_modal_contrastive_loss,
    pair_alignment_loss,
    representation_distillation_loss,
)

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
ORDER = torch.tensor([3, 1, 6, 0, 5, 2, 4])
CYCLIC = {cross_modal_cyclic_loss: True, in_modal_cyclic_loss: False}
PLAIN = [pair_alignment_loss, *CYCLIC]


@pytest.mark.parametrize("temperature", [0.07, 1.3, -0.5])
@pytest.mark.parametrize("ids", [None, IDS])
def test_contrast_equals_the_loops(draw, ids, temperature):
    student, teacher = draw(7, 5, unit=True), draw(7, 5, unit=True)
    known = torch.arange(7) if ids is None else ids
    there, back = (slow_contrast(a, b, temperature, known).item() for a, b in ((student, teacher), (teacher, student)))
    loop = sum(((a - b) ** 2).sum() for a, b in zip(student, teacher, strict=True)) / 7
    assert pair_alignment_loss(student, teacher).item() == pytest.approx(loop.item())
    inputs = student, teacher, temperature, ids
    assert representation_distillation_loss(*inputs).item() == pytest.approx(there)
    both = pytest.approx((there + back) / 2)
    assert representation_distillation_loss(*inputs, bidirectional=True).item() == both
    assert image_text_contrastive_loss(*inputs).item() == both
    assert intra_modal_contrastive_loss(*inputs).item() == both


@pytest.mark.parametrize("loss", CYCLIC)
def test_cyclic_terms_equal_the_loops_and_vanish_where_they_should(draw, loss):
    images, texts = draw(6, 4), draw(6, 4)
    assert loss(images, texts).item() == pytest.approx(slow_cyclic(images, texts, CYCLIC[loss]).item())
    assert loss(images, 3 * images).item() == pytest.approx(0, abs=1e-12)
    assert loss(5 * images, texts).item() == pytest.approx(loss(images, texts).item())
    turned, _ = torch.linalg.qr(draw(4, 4).detach())
    assert (loss(images, images @ turned).item() < 1e-12) == (loss is in_modal_cyclic_loss)
    assert loss(images, texts).item() > 0.1
    assert in_modal_cyclic_loss(images, draw(6, 9)) > 0


def test_gradients(draw):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for ids, both in ((None, False), (IDS, True)):
        assert gradcheck(representation_distillation_loss, (draw(7, 4), draw(7, 4), temperature, ids, both))
    for loss in PLAIN:
        assert gradcheck(loss, (draw(5, 3), draw(5, 3)))


def test_order_of_rows_does_not_count(draw):
    a, b = draw(7, 5), draw(7, 5)
    for loss in PLAIN:
        assert loss(a[ORDER], b[ORDER]).item() == pytest.approx(loss(a, b).item())
    for both in (True, False):
        plain = representation_distillation_loss(a, b, 0.1, IDS, both)
        assert representation_distillation_loss(a[ORDER], b[ORDER], 0.1, IDS[ORDER], both).item() == pytest.approx(
            plain.item()
        )


def test_ids_of_any_kind(draw):
    a, b = draw(7, 5), draw(7, 5)
    expected = representation_distillation_loss(a, b, 0.1, IDS).item()
    for ids in (IDS.tolist(), IDS.numpy(), IDS.double(), IDS.to(torch.uint8), [f"image {i}" for i in IDS]):
        assert representation_distillation_loss(a, b, 0.1, ids).item() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_works_in_the_dtype_of_its_input(draw, dtype):
    a, b = draw(7, 5, unit=True).detach(), draw(7, 5, unit=True).detach()
    for loss in (*PLAIN, lambda x, y: representation_distillation_loss(x, y, torch.tensor(0.1), IDS)):
        found = loss(a.to(dtype), b.to(dtype))
        assert found.dtype == dtype
        assert found.item() == pytest.approx(loss(a, b).item(), rel=0.1)
        assert loss(a.float(), b).item() == pytest.approx(loss(a, b).item(), rel=1e-5)  # two dtypes
        assert loss(a.tolist(), b.numpy()).item() == pytest.approx(loss(a, b).item(), rel=1e-5)
        assert image_text_contrastive_loss(a, b, np.float32(0.1)).item() > 0


@pytest.mark.parametrize(
    ("student", "teacher", "temperature", "ids", "message"),
    [
        ((4, 3), (5, 3), 0.1, None, r"\(4, 3\).*\(5, 3\)"),
        ((4, 3), (4, 2), 0.1, None, r"\(4, 3\).*\(4, 2\)"),
        ((4,), (4,), 0.1, None, "matrices"),
        ((4, 0), (4, 0), 0.1, None, "matrices"),
        ((1, 3), (1, 3), 0.1, None, "B >= 2"),
        ((4, 3), (4, 3), 0, None, "temperature must not be zero"),
        ((4, 3), (4, 3), torch.tensor(0.0), None, "temperature must not be zero"),
        ((4, 3), (4, 3), torch.ones(4), None, "0-d"),
        ((4, 3), (4, 3), "warm", None, "temperature must be a number"),
        ((4, 3), (4, 3), 0.1, torch.arange(3), r"\(3,\)"),
        ((4, 3), (4, 3), 0.1, torch.zeros(4, 1), r"\(4, 1\)"),
    ],
)
def test_refuses(student, teacher, temperature, ids, message):
    with pytest.raises(ValueError, match=message):
        representation_distillation_loss(torch.ones(student), torch.ones(teacher), temperature, ids)
    if ids is None and isinstance(temperature, float):
        for loss in PLAIN[:2]:
            with pytest.raises(ValueError, match=message):
                loss(torch.ones(student), torch.ones(teacher))


def test_what_holds_no_numbers_is_refused_by_name():
    with pytest.raises(ValueError, match="student_features must hold numbers"):
        representation_distillation_loss([["a"], ["b"]], torch.ones(2, 1), 0.1)
    with pytest.raises(ValueError, match="student_features is no array"):
        representation_distillation_loss([[1.0], [1.0, 2.0]], torch.ones(2, 1), 0.1)


def test_defined_values_of_poor_input():
    rows = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    uniform = torch.log_softmax(rows @ rows.T / 0.1, dim=1).mean()
    one_image = representation_distillation_loss(rows, rows, 0.1, torch.zeros(4))
    assert one_image.item() == pytest.approx(-uniform.item(), rel=1e-6)
    zeros = torch.zeros(4, 3)
    assert representation_distillation_loss(zeros, zeros, 0.1).item() == pytest.approx(math.log(4))
    assert representation_distillation_loss(rows * torch.nan, rows, 0.1).isnan()
