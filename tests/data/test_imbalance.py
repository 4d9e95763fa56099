import numpy as np
import pytest
from PIL import Image

from rvlr_lib.data import bayes_ceiling, load_dataset, mentioned_share, rouge_l_relevance, shown_share
from rvlr_lib.data.dial import FAULTS, ImbalanceSpec, degrade, drop_words, mismatch_index
from rvlr_lib.evaluation.evaluate import relevances


def scenes(split="val", size=40, **dial):
    return load_dataset("scenes", split=split, size=size, imbalance=ImbalanceSpec(**dial))


def emoji(limit, **dial):
    return load_dataset("emoji", split="val", limit=limit, imbalance=ImbalanceSpec(**dial))


def test_the_dial_is_exact_over_many_scenes():
    dataset = scenes("train", 3_000, text_detail=0.5, image_visibility=0.5)
    assert mentioned_share(dataset) == pytest.approx(0.5, abs=0.01)
    views = dataset.scene
    objects = [(facts.objects[:, :, 0] >= 0).sum() for facts in (views.image, views.scene)]
    assert objects[0] / objects[1] == pytest.approx(0.5, abs=0.01)
    assert views.covered.mean() / 9 == pytest.approx(0.5, abs=0.002)
    assert shown_share(dataset) > 0.5  # the background is hidden only if every tile is


def test_hidden_objects_leave_no_trace():
    """Covered tiles are flat, and a picture has colour only if it shows an object."""
    dataset = scenes(size=80, image_visibility=0.5)
    shown = (dataset.scene.image.objects[:, :, 0] >= 0).any(1)
    assert (~shown).sum() > 5
    for row in range(80):
        pixels = np.asarray(dataset.image(row)).astype(int)
        flat = (pixels == 104).all(axis=2)
        assert flat.sum() >= 256 * dataset.scene.covered[row] * 0.8  # neighbours extend into a tile by 1 or 2 pixels
        assert (pixels.max(axis=2) - pixels.min(axis=2) > 40).any() == shown[row]


@pytest.mark.parametrize(("visibility", "r_mean", "within"), [(0.3, 79.39, 0.02), (0.0, 100 * 16 / 3 / 80, 6)])
def test_the_ceiling_of_covered_pictures(visibility, r_mean, within):
    options = {"galleries": 1, "gallery_size": 80, "imbalance": ImbalanceSpec(image_visibility=visibility)}
    assert bayes_ceiling(load_dataset("scenes", split="test", **options))["r_mean"] == pytest.approx(r_mean, abs=within)


def test_words_are_dropped_by_chance_and_one_stays():
    captions = [f"a{i} b{i} c{i} d{i}" for i in range(4000)]
    half, fewer = drop_words(captions, 0.5, seed=1), drop_words(captions, 0.2, seed=1)
    assert drop_words(captions, 1.0) == captions
    share = sum(len(c.split()) for c in half) / 16_000
    assert share == pytest.approx(0.5 + 0.5**4 / 4, abs=0.01)  # one word stays of a caption that would lose all
    for caption, more, less in zip(captions, half, fewer, strict=True):
        assert less
        assert set(less.split()) <= set(more.split())
        words = iter(caption.split())
        assert all(word in words for word in more.split())  # in order


def test_words_of_real_captions_drop_and_relevance_stays():
    complete, half = emoji(60), emoji(60, text_detail=0.5)
    assert half.full_captions == complete.captions != half.captions
    assert half.info["text_detail"] == 0.5
    expected = [complete.captions[c] for i in (3, 1) for c in complete.captions_of(i)]
    assert half.subset([3, 1]).full_captions == expected
    relevance = relevances(half)["rouge_l"].caption_to_image
    np.testing.assert_array_equal(relevance, rouge_l_relevance(complete.captions, complete.caption_image))
    assert half.fingerprint != complete.fingerprint


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_stronger_at_lower_visibility_and_repeatable(fault):
    picture = emoji(5).image(2)

    def distance(visibility):
        bad = degrade(picture, visibility, fault, np.random.default_rng(0))
        assert (bad.size, bad.mode) == (picture.size, "RGB")
        return np.abs(np.asarray(bad, dtype=float) - np.asarray(picture, dtype=float)).mean()

    assert distance(0.0) > distance(0.3) > distance(0.7) > 0
    one, same = (emoji(5, image_visibility=0.5, image_fault=fault) for _ in range(2))
    assert one.image(4) == same.image(4)
    assert (one.pixels([4], 48) == same.pixels([4], 48)).all()


def test_occlusion_leaves_the_stated_share_visible():
    white = Image.new("RGB", (64, 48), "white")
    pictures = [degrade(white, 0.3, "occlusion", np.random.default_rng(seed)) for seed in range(200)]
    assert (np.stack(pictures) == 255).mean() == pytest.approx(0.3, abs=0.002)


def test_another_seed_drops_other_words_and_covers_other_tiles():
    one, same, other = (emoji(40, text_detail=0.5, image_visibility=0.5, seed=seed) for seed in (0, 0, 1))
    assert one.captions == same.captions != other.captions
    assert one.fingerprint == same.fingerprint
    assert [one.image(row) for row in range(40)] != [other.image(row) for row in range(40)]
    dials = {"seed": 1}, {"image_visibility": 0.6}, {"image_fault": "noise"}  # each changes the pictures
    assert len({emoji(5, **{"image_visibility": 0.5} | dial).fingerprint for dial in ({}, *dials)}) == 4


def test_whole_captions_move_with_mixed_pairs():
    mixed = load_dataset("emoji", split="train", limit=60, imbalance=ImbalanceSpec(text_detail=0.5, mismatch_rate=0.5))
    pairs = zip(mixed.captions, mixed.full_captions, strict=True)
    assert all(set(kept.split()) <= set(complete.split()) for kept, complete in pairs)


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_mismatch_moves_exactly_its_share_and_every_moved_caption_changes_picture(rate):
    caption_image = np.repeat(np.arange(200), np.arange(200) % 5 + 1)
    index = mismatch_index(caption_image, rate, seed=4)
    moved = index != np.arange(len(index))
    assert moved.sum() == round(rate * len(index))
    assert sorted(index) == list(range(len(index)))  # every caption is used exactly once
    assert (caption_image[index] != caption_image)[moved].all()
    np.testing.assert_array_equal(index, mismatch_index(caption_image, rate, seed=4))
    assert (index != mismatch_index(caption_image, rate, seed=5)).any()
    assert (mismatch_index(caption_image, 0.0) == np.arange(len(index))).all()


def test_facts_of_scenes_move_with_their_captions():
    plain, mixed = scenes("train"), scenes("train", mismatch_rate=0.2, seed=7)
    index = mismatch_index(plain.caption_image, 0.2, seed=7)
    assert mixed.captions == [plain.captions[c] for c in index]
    np.testing.assert_array_equal(mixed.caption_image, plain.caption_image)
    latent = mixed.scene.truth("latent").caption_to_image
    np.testing.assert_allclose(latent, plain.scene.truth("latent").caption_to_image[index], rtol=1e-6)
    assert mentioned_share(mixed) == 1
    assert mixed.info["mismatch_rate"] == 0.2
    rows = np.concatenate([mixed.captions_of(5), mixed.captions_of(2)])
    subset = mixed.subset([5, 2]).scene.truth("latent").caption_to_image
    np.testing.assert_allclose(subset, latent[rows][:, [5, 2]], rtol=1e-6)
    assert scenes("val", mismatch_rate=0.2).captions == scenes("val").captions  # only training pairs are mixed


def test_the_dial_acts_per_split():
    dial = {"text_detail": 0.3, "image_visibility": 0.4, "splits": ("train",)}
    assert mentioned_share(scenes("train", **dial)) < 0.5
    assert mentioned_share(scenes("val", **dial)) == shown_share(scenes("val", **dial)) == 1
    blurred = scenes(text_detail=0.5, image_visibility=0.5, image_fault="blur")
    assert shown_share(blurred) == 1  # blur hides no factor with certainty
    assert blurred.image(0) != scenes().image(0)
    assert mentioned_share(blurred) < 0.6
