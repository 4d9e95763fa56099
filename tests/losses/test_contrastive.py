import math

import pytest
import torch
from slow_losses import slow_contrast
from torch.autograd import gradcheck

from rvlr_lib.losses import image_text_contrastive_loss, intra_modal_contrastive_loss

IDS = torch.tensor([4, 4, 1, 0, 1, 4])


@pytest.mark.parametrize("loss", [image_text_contrastive_loss, intra_modal_contrastive_loss])
@pytest.mark.parametrize("ids", [None, IDS])
def test_equals_the_loops_of_both_directions(draw, loss, ids):
    images, texts = draw(6, 4, unit=True), draw(6, 4, unit=True)
    known = torch.arange(6) if ids is None else ids
    both = slow_contrast(images, texts, 0.2, known) + slow_contrast(texts, images, 0.2, known)
    assert loss(images, texts, 0.2, ids).item() == pytest.approx(both.item() / 2)


def test_equals_torch_cross_entropy_where_every_row_is_its_own_image(draw):
    images, texts = draw(8, 4, unit=True), draw(8, 4, unit=True)
    logits = images @ texts.T / 0.1
    expected = sum(torch.nn.functional.cross_entropy(s, torch.arange(8)) for s in (logits, logits.T)) / 2
    assert image_text_contrastive_loss(images, texts, 0.1).item() == pytest.approx(expected.item())


def test_gradients(draw):
    temperature = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    for ids in (IDS, None):
        assert gradcheck(image_text_contrastive_loss, (draw(6, 3), draw(6, 3), temperature, ids))


def test_is_symmetric_and_blind_to_order(draw):
    images, texts, order = draw(6, 4), draw(6, 4), torch.tensor([5, 0, 3, 1, 4, 2])
    plain = image_text_contrastive_loss(images, texts, 0.1, IDS).item()
    assert image_text_contrastive_loss(texts, images, 0.1, IDS).item() == pytest.approx(plain)
    assert image_text_contrastive_loss(images[order], texts[order], 0.1, IDS[order]).item() == pytest.approx(plain)


def test_only_features_over_temperature_count(draw):
    images, texts = draw(6, 4), draw(6, 4)
    assert image_text_contrastive_loss(3 * images, texts, 0.3).item() == pytest.approx(
        image_text_contrastive_loss(images, texts, 0.1).item()
    )


def test_indistinguishable_rows_cost_the_logarithm_of_the_batch():
    same = torch.ones(5, 3) / math.sqrt(3)
    assert image_text_contrastive_loss(same, same, 0.07).item() == pytest.approx(math.log(5), rel=1e-6)


def test_a_batch_of_one_is_refused():
    with pytest.raises(ValueError, match="at least 2 rows"):
        image_text_contrastive_loss(torch.ones(1, 3), torch.ones(1, 3), 0.1)
