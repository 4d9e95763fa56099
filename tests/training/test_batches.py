import threading

import pytest
import torch

from rvlr_lib.data.dataset import augment
from rvlr_lib.training.batches import derived_seed
from rvlr_lib.training.processes import prefetch
from tests.training.conftest import OWNER, assert_equal, make_batches, make_cached, make_pairs


@pytest.fixture(params=["features", "pixels"])
def make(request, towers):
    """Function (options) -> batches of features, or of pixels."""
    return lambda **options: make_batches(towers if request.param == "pixels" else None, **options)


@pytest.mark.parametrize("rows", ["images", "captions"])
def test_an_epoch_has_every_row_once_with_a_caption_of_its_picture(make, rows):
    batches, count = make(rows=rows), {"images": 32, "captions": 48}[rows]
    for epoch in (list(batches.take()), list(batches.take()), list(make(rows=rows, batch_size=100).take())):
        images, captions = torch.cat([i.image_rows for i in epoch]), torch.cat([i.caption_rows for i in epoch])
        assert sorted((images if rows == "images" else captions).tolist()) == list(range(count))
        assert torch.equal(OWNER[captions], images)
    assert len(epoch) == 1  # a set smaller than a batch


def test_epochs_differ_seeds_repeat_and_second_views_change_nothing_else(make):
    plain, double = make(), make()
    single_views, two_views = list(plain.take()), list(double.take(two_views=True))
    for one, two in zip(single_views, two_views, strict=True):
        assert_equal(one[:4], two[:4])
        with pytest.raises(AssertionError):
            assert_equal(one.images, two.second_images)
    assert not torch.equal(single_views[0].image_rows, next(plain.take()).image_rows)


def test_a_resume_needs_only_the_position_inside_an_epoch(make):
    uninterrupted, interrupted, resumed = make(), make(), make()
    expected = [*uninterrupted.take(two_views=True), *uninterrupted.take(two_views=True)][6:]
    list(interrupted.take(two_views=True))
    iterator = interrupted.take(two_views=True)
    next(iterator), next(iterator)
    assert (interrupted.epoch, interrupted.position) == (1, 2)
    resumed.epoch, resumed.position = 1, 2
    rest = list(resumed.take(two_views=True))
    assert len(rest) == 2
    assert_equal(rest, expected)


@pytest.mark.parametrize("views", [1, 2, 3, 5])
def test_two_views_of_a_picture_are_two_different_cached_ones(views):
    features, seen, batches = make_cached(views), set(), make_batches(views=views)
    for inputs in [i for _ in range(6) for i in batches.take(two_views=True)]:
        cached = features.images[:, inputs.image_rows]
        matches = [(cached == view.features).all(dim=2) for view in (inputs.images, inputs.second_images)]
        for pair in torch.stack(matches).unbind(2):  # [2, views] of one row
            seen.add(tuple(int(match.int().argmax()) if match.any() else None for match in pair))
    pairs = {(i, j) for i in range(1, views) for j in range(1, views) if i != j}
    assert seen == ({(0, None)} if views == 1 else {(1, 0)} if views == 2 else pairs)


def test_a_second_caption_is_another_one_or_the_same_with_features_dropped():
    texts, counts = make_cached().texts, torch.bincount(OWNER)
    inputs = next(make_batches().take(two_views=True))
    dropped, columns = 0, (inputs.image_rows, inputs.caption_rows, inputs.second_texts.features)
    for picture, caption, second in zip(*columns, strict=True):
        if counts[picture] == 2:
            other = next(c for c in (picture == OWNER).nonzero().flatten() if c != caption)
            assert torch.equal(second, texts[other])
        else:
            kept = second != 0
            torch.testing.assert_close(second[kept] * 0.9, texts[caption][kept])
            dropped += int((~kept).sum())
    assert dropped


def test_tokens_come_on_request_cut_to_the_longest_caption_of_the_batch():
    features = make_cached()
    assert next(make_batches().take()).images.tokens is None
    for inputs in make_batches().take(tokens=True):
        length = int(features.text_mask[inputs.caption_rows].sum(dim=1).max())
        assert torch.equal(inputs.images.tokens, features.image_tokens[inputs.image_rows])
        assert torch.equal(inputs.texts.tokens, features.text_tokens[inputs.caption_rows, :length])
        assert torch.equal(inputs.texts.mask, features.text_mask[inputs.caption_rows, :length])


def test_pixels_are_augmented_pictures_with_their_token_ids(towers):
    batches = make_batches(towers)
    inputs = next(batches.take())
    generator = torch.Generator().manual_seed(derived_seed(0, "first views", 0, 0))
    torch.testing.assert_close(inputs.images, augment(make_pairs().pixels(inputs.image_rows, 48), generator))
    length = inputs.texts.shape[1]
    assert torch.equal(inputs.texts, batches.token_ids[inputs.caption_rows, :length])
    assert not batches.token_ids[inputs.caption_rows, length:].any()
    assert inputs.texts[:, -1].any()


def test_the_next_batch_is_read_while_this_one_is_used():
    started = [threading.Event() for _ in range(3)]

    def read(number):
        started[number].set()
        return 1 / (2 - number)

    reader = prefetch(range(3), read)
    for number in range(2):
        assert next(reader) == 1 / (2 - number)
        assert started[number + 1].wait(timeout=60)
    with pytest.raises(ZeroDivisionError):
        next(reader)
