import math

import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from rvlr_lib import losses
from tests.losses.slow_losses import slow_contrast, slow_cyclic

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
ORDER = torch.tensor([3, 1, 6, 0, 5, 2, 4])
CYCLIC = {losses.cross_modal_cyclic_loss: True, losses.in_modal_cyclic_loss: False}
PLAIN = [losses.pair_alignment_loss, *CYCLIC]


def contrast(student, teacher, ids=IDS, both=False):
    return losses.representation_distillation_loss(student, teacher, 0.1, ids, both)


@pytest.fixture
def pair(draw):
    """Unit rows of seven items from two sides."""
    return draw(7, 5, unit=True), draw(7, 5, unit=True)


@pytest.mark.parametrize("temperature", [0.07, 1.3, -0.5])
@pytest.mark.parametrize("ids", [None, IDS])
def test_contrast_equals_the_loops(pair, ids, temperature):
    known = torch.arange(7) if ids is None else ids
    there, back = (slow_contrast(*rows, temperature, known).item() for rows in (pair, pair[::-1]))
    assert losses.representation_distillation_loss(*pair, temperature, ids).item() == pytest.approx(there)
    both = pytest.approx((there + back) / 2)
    assert losses.representation_distillation_loss(*pair, temperature, ids, bidirectional=True).item() == both
    assert losses.image_text_contrastive_loss(*pair, temperature, ids).item() == both
    assert losses.intra_modal_contrastive_loss(*pair, temperature, ids).item() == both
    loop = sum(((a - b) ** 2).sum() for a, b in zip(*pair, strict=True)) / 7
    assert losses.pair_alignment_loss(*pair).item() == pytest.approx(loop.item())


@pytest.mark.parametrize("loss", CYCLIC)
def test_cyclic_terms_equal_the_loops_and_vanish_where_they_should(draw, loss):
    images, texts = draw(6, 4), draw(6, 4)
    assert loss(images, texts).item() == pytest.approx(slow_cyclic(images, texts, CYCLIC[loss]).item())
    assert loss(images, 3 * images).item() == pytest.approx(0, abs=1e-12)
    assert loss(5 * images, texts).item() == pytest.approx(loss(images, texts).item())
    turned, _ = torch.linalg.qr(draw(4, 4).detach())
    assert (loss(images, images @ turned).item() < 1e-12) == (loss is losses.in_modal_cyclic_loss)
    assert losses.in_modal_cyclic_loss(images, draw(6, 9)) > 0


def test_gradients(draw):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for ids, both in ((None, False), (IDS, True)):
        assert gradcheck(losses.representation_distillation_loss, (draw(7, 4), draw(7, 4), temperature, ids, both))
    for loss in PLAIN:
        assert gradcheck(loss, (draw(5, 3), draw(5, 3)))


def test_order_of_rows_and_kind_of_ids_do_not_count(pair):
    a, b = pair
    for loss in PLAIN:
        assert loss(a[ORDER], b[ORDER]).item() == pytest.approx(loss(a, b).item())
    for both in (True, False):
        moved = contrast(a[ORDER], b[ORDER], IDS[ORDER], both)
        assert moved.item() == pytest.approx(contrast(a, b, IDS, both).item())
    for ids in (IDS.tolist(), IDS.numpy(), IDS.double(), IDS.to(torch.uint8), [f"image {i}" for i in IDS]):
        assert contrast(a, b, ids).item() == contrast(a, b).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_works_in_the_dtype_of_its_input(pair, dtype):
    a, b = (x.detach() for x in pair)
    for loss in (*PLAIN, contrast):
        found, exact = loss(a.to(dtype), b.to(dtype)), loss(a, b).item()
        assert found.dtype == dtype
        assert found.item() == pytest.approx(exact, rel=0.1)
        assert loss(a.float(), b).item() == pytest.approx(exact, rel=1e-5)  # two dtypes
        assert loss(a.tolist(), b.numpy()).item() == pytest.approx(exact, rel=1e-5)
    assert losses.image_text_contrastive_loss(a, b, np.float32(0.1)).item() > 0


def test_defined_values_of_poor_input():
    rows = torch.nn.functional.normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(1)))
    uniform = torch.log_softmax(rows @ rows.T / 0.1, dim=1).mean()
    assert contrast(rows, rows, torch.zeros(4)).item() == pytest.approx(-uniform.item(), rel=1e-6)  # one image
    zeros = torch.zeros(4, 3)
    assert contrast(zeros, zeros, None).item() == pytest.approx(math.log(4))
    assert contrast(rows * torch.nan, rows, None).isnan()
