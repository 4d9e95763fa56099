from dataclasses import replace

import numpy as np
import pytest
import torch

from rvlr_lib.data import ImageTextDataset, augment, load_dataset
from rvlr_lib.data.dataset import ArraySource

COUNTS = [3, 1, 2, 5, 1]


def make_dataset(counts=COUNTS, size=12, **changes):
    rng = np.random.default_rng(0)
    owner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    parts = {
        "name": "toy",
        "split": "train",
        "image_ids": [f"picture{i}" for i in range(len(counts))],
        "captions": [f"caption {c} of {i}" for c, i in enumerate(owner)],
        "caption_image": owner,
        "source": ArraySource(rng.integers(0, 256, (len(counts), size, size, 3), dtype=np.uint8)),
        "categories": [f"kind{i % 2}" for i in range(len(counts))],
        "galleries": np.arange(len(counts)) % 2,
    }
    return ImageTextDataset(**(parts | changes))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_captions_of_and_caption_ids():
    dataset = make_dataset()
    for i, count in enumerate(COUNTS):
        rows = dataset.captions_of(i)
        assert rows.tolist() == [c for c in range(12) if dataset.caption_image[c] == i]
        assert [dataset.caption_ids[c] for c in rows] == [f"picture{i}#{k}" for k in range(count)]


def test_subset_re_indexes_everything():
    dataset = make_dataset()
    part = dataset.subset([3, 0, 4]).subset([2, 0])
    assert part.image_ids == ["picture4", "picture3"]
    assert part.categories == ["kind0", "kind1"]
    assert part.galleries.tolist() == [0, 1]
    for i, row in enumerate([4, 3]):
        texts, expected = ([d.captions[c] for c in d.captions_of(k)] for d, k in ((part, i), (dataset, row)))
        assert texts == expected
        assert part.image(i) == dataset.image(row)
    assert torch.equal(part.pixels([0, 1], 7), dataset.pixels([4, 3], 7))
    scenes = load_dataset("scenes", split="val", size=9)
    part = scenes.subset([7, 2]).scene
    assert np.array_equal(part.scene.objects, scenes.scene.scene.objects[[7, 2]])
    assert np.array_equal(part.text.objects, scenes.scene.text.objects[[*range(35, 40), *range(10, 15)]])
    assert part.caption_image.tolist() == [0] * 5 + [1] * 5


def test_fingerprint_distinguishes_data():
    dataset = make_dataset()
    original = dataset.fingerprint
    assert original == make_dataset().fingerprint == replace(dataset, name="other", info={"x": 1}).fingerprint
    pixels = dataset.source.array.copy()
    pixels[2, 3, 4, 1] ^= 1
    captions = dataset.captions
    changes = [
        {"source": ArraySource(pixels)},
        {"captions": ["other", *captions[1:]]},
        {"captions": ["caption 0\0of 1", *captions[1:]]},
        {"image_ids": ["other", *dataset.image_ids[1:]]},
        {"caption_image": np.roll(dataset.caption_image, 1)},
        {"image_ids": [*dataset.image_ids[:-1], "picture4c"], "captions": [captions[0][1:], *captions[1:]]},
        {"categories": ["other", *dataset.categories[1:]]},
        {"galleries": None},
        {"full_captions": captions},
        {"scene": load_dataset("scenes", split="val", size=5).scene},
    ]
    assert len({original, *(make_dataset(**change).fingerprint for change in changes)}) == len(changes) + 1


def test_augment_keeps_the_full_picture_at_scale_one():
    pixels = make_dataset().pixels(range(5), 12)
    torch.testing.assert_close(augment(pixels, generator(), scale=(1, 1), flip=False), pixels / 255)
    flipped = augment(pixels.repeat(40, 1, 1, 1), generator(), scale=(1, 1))
    mirrored = [torch.allclose(a, b) for a, b in zip(flipped, (pixels / 255).flip(-1).repeat(40, 1, 1, 1), strict=True)]
    assert 70 < sum(mirrored) < 130


def test_augment_crops_the_stated_share():
    ramp = torch.arange(0, 240, 5, dtype=torch.uint8).expand(48, 48)
    pixels = torch.stack([ramp, ramp.T, torch.full((48, 48), 77, dtype=torch.uint8)]).expand(400, 3, 48, 48)
    views = augment(pixels, generator(), scale=(0.7, 0.9), flip=False)
    steps = views[:, :2].mul(255 / 5)  # source coordinates of each output pixel
    wide = (steps[:, 0, 24, 40] - steps[:, 0, 24, 8]) / 32
    tall = (steps[:, 1, 40, 24] - steps[:, 1, 8, 24]) / 32
    area, aspect = wide * tall, wide / tall
    assert 0.7 - 1e-3 <= area.min() < 0.71
    assert 0.89 < area.max() <= 0.9 + 1e-3
    assert 0.9 - 1e-3 <= aspect.min() < 0.92
    assert 1.08 < aspect.max() <= 1.1 + 1e-3
    assert views[:, 2].sub(77 / 255).abs().max() < 1e-6
    assert steps[:, 0, 24, 0].min() < 0.5
    assert steps[:, 0, 24, 47].max() > 46.5


def test_augment_follows_the_generator(refuses):
    pixels = make_dataset().pixels(range(5), 12)
    one, same, other = (augment(pixels, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    part = augment(pixels[1:4], generator(), part=(slice(1, 4), 5))
    torch.testing.assert_close(part, one[1:4])
    refuses(r"scale=\(0, 1\)", augment, pixels, generator(), scale=(0, 1))
    refuses(r"torch.float32 \[5, 3, 12, 12\]", augment, pixels / 255, generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_augment_on_a_gpu_agrees():
    pixels = make_dataset().pixels(range(5), 12)
    on_gpu = augment(pixels.cuda(), generator())
    torch.testing.assert_close(on_gpu.cpu(), augment(pixels, generator()), atol=1e-5, rtol=0)
    assert augment(pixels.cuda(), torch.Generator("cuda").manual_seed(0)).is_cuda
