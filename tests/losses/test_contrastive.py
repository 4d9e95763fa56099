import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck

from rvlr_lib import losses

IDS = torch.tensor([0, 1, 0, 2, 1, 0, 3])
CYCLIC = {losses.cross_modal_cyclic_loss: True, losses.in_modal_cyclic_loss: False}
PLAIN = [losses.pair_alignment_loss, *CYCLIC]


def slow_contrast(rows, columns, temperature, ids):
    """CE(S): mean over rows i of −mean of log softmax over the columns of the same image."""
    total = 0
    for i in range(len(rows)):
        log_softmax = torch.log_softmax(torch.stack([rows[i] @ column for column in columns]) / temperature, dim=0)
        total = total - log_softmax[ids == ids[i]].mean()
    return total / len(rows)


def slow_cyclic(images, texts, across):
    z, w = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    count, total = len(z), 0
    for i in range(count):
        for j in range(count):
            total = total + (z[i] @ w[j] - z[j] @ w[i] if across else z[i] @ z[j] - w[i] @ w[j]) ** 2
    return total / count


def contrast(student, teacher, ids=IDS):
    return losses.representation_distillation_loss(student, teacher, 0.1, ids)


@pytest.fixture
def pair(draw):
    """Unit rows of seven items in two modalities."""
    return draw(7, 5, unit=True), draw(7, 5, unit=True)


@pytest.mark.parametrize("temperature", [0.07, 1.3, -0.5])
@pytest.mark.parametrize("ids", [None, IDS, torch.zeros(7)], ids=["all differ", "some equal", "one image"])
def test_contrast_equals_the_loops(pair, ids, temperature):
    images = torch.arange(7) if ids is None else ids
    forward, backward = (slow_contrast(*rows, temperature, images).item() for rows in (pair, pair[::-1]))
    assert losses.representation_distillation_loss(*pair, temperature, ids).item() == pytest.approx(forward)
    both = pytest.approx((forward + backward) / 2)
    assert losses.representation_distillation_loss(*pair, temperature, ids, bidirectional=True).item() == both
    assert losses.image_text_contrastive_loss(*pair, temperature, ids).item() == both
    assert losses.intra_modal_contrastive_loss(*pair, temperature, ids).item() == both
    loop = sum(((a - b) ** 2).sum() for a, b in zip(*pair, strict=True)) / 7
    assert losses.pair_alignment_loss(*pair).item() == pytest.approx(loop.item())


@pytest.mark.parametrize("loss", CYCLIC)
def test_cyclic_terms_equal_the_loops(draw, loss):
    images, texts = draw(6, 4), draw(6, 4 if CYCLIC[loss] else 9)
    assert loss(images, texts).item() == pytest.approx(slow_cyclic(images, texts, CYCLIC[loss]).item())
    assert loss(images, 3 * images).item() == pytest.approx(0, abs=1e-12)


def test_gradients(draw):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for ids, both in ((None, False), (IDS, True)):
        assert gradcheck(losses.representation_distillation_loss, (draw(7, 4), draw(7, 4), temperature, ids, both))
    for loss in PLAIN:
        assert gradcheck(loss, (draw(5, 3), draw(5, 3)))


def test_the_type_of_ids_does_not_matter(pair):
    for ids in (IDS.tolist(), IDS.numpy(), IDS.double(), IDS.to(torch.uint8), [f"image {i}" for i in IDS]):
        assert contrast(*pair, ids).item() == contrast(*pair).item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_works_in_the_dtype_of_its_input(pair, dtype):
    a, b = (x.detach() for x in pair)
    for loss in (*PLAIN, contrast):
        value, exact = loss(a.to(dtype), b.to(dtype)), loss(a, b).item()
        assert value.dtype == dtype
        assert value.item() == pytest.approx(exact, rel=0.1)
        assert loss(a.float(), b).item() == pytest.approx(exact, rel=1e-5)  # two dtypes
        assert loss(a.tolist(), b.numpy()).item() == pytest.approx(exact, rel=1e-5)
    assert losses.image_text_contrastive_loss(a, b, np.float32(0.1)).item() > 0
    assert contrast(a * torch.nan, b).isnan()
