import numpy as np
import pytest
from PIL import Image

from rvlr_lib.data import bayes_ceiling, load_dataset, rouge_l_relevance, shown_share, told_share
from rvlr_lib.data.dial import FAULTS, ImbalanceSpec, degrade, drop_words, mismatch_index
from rvlr_lib.evaluation.evaluate import relevances


def scenes(split="val", size=40, **dial):
    return load_dataset("scenes", split=split, size=size, imbalance=ImbalanceSpec(**dial))


def emoji(limit, **dial):
    return load_dataset("emoji", split="val", limit=limit, imbalance=ImbalanceSpec(**dial))


def test_the_dial_is_exact_over_many_scenes():
    dataset = scenes("train", 3_000, text_detail=0.5, image_visibility=0.5)
    assert told_share(dataset) == pytest.approx(0.5, abs=0.01)
    views = dataset.scene
    objects = [(facts.objects[:, :, 0] >= 0).sum() for facts in (views.image, views.scene)]
    assert objects[0] / objects[1] == pytest.approx(0.5, abs=0.01)
    assert views.covered.mean() / 9 == pytest.approx(0.5, abs=0.002)
    assert shown_share(dataset) > 0.5  # the background is hidden only where every tile is


def test_what_is_hidden_is_not_to_be_seen():
    """Covered tiles are flat, and a picture has colour only where it shows an object."""
    dataset = scenes(size=80, image_visibility=0.5)
    shown = (dataset.scene.image.objects[:, :, 0] >= 0).any(1)
    assert (~shown).sum() > 5
    for row in range(80):
        pixels = np.asarray(dataset.image(row)).astype(int)
        flat = (pixels == 104).all(axis=2)
        assert flat.sum() >= 256 * dataset.scene.covered[row] * 0.8  # neighbours reach over by one or two pixels
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
    assert share == pytest.approx(0.5 + 0.5**4 / 4, abs=0.01)  # of a caption that would lose all, one word stays
    for caption, more, less in zip(captions, half, fewer, strict=True):
        assert less
        assert set(less.split()) <= set(more.split())
        words = iter(caption.split())
        assert all(word in words for word in more.split())  # in order


def test_words_of_real_captions_drop_and_relevance_stays():
    whole, half = emoji(60), emoji(60, text_detail=0.5)
    assert half.whole_captions == whole.captions != half.captions
    assert half.info["text_detail"] == 0.5
    part = half.subset([3, 1])
    assert part.whole_captions == [whole.captions[c] for i in (3, 1) for c in whole.captions_of(i)]
    found = relevances(half)["rouge_l"].caption_to_image
    np.testing.assert_array_equal(found, rouge_l_relevance(whole.captions, whole.caption_image))
    assert half.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_degrade_more_the_less_is_visible_and_are_repeatable(fault):
    picture = emoji(5).image(2)

    def distance(visibility):
        bad = degrade(picture, visibility, fault, np.random.default_rng(0))
        assert (bad.size, bad.mode) == (picture.size, "RGB")
        return np.abs(np.asarray(bad, dtype=float) - np.asarray(picture, dtype=float)).mean()

    assert distance(0.0) > distance(0.3) > distance(0.7) > 0
    one, same = (emoji(5, image_visibility=0.5, image_fault=fault) for _ in range(2))
    assert one.image(4) == same.image(4)
    assert (one.pixels([4], 48) == same.pixels([4], 48)).all()


def test_occlusion_leaves_the_stated_share():
    white = Image.new("RGB", (64, 48), "white")
    pictures = [degrade(white, 0.3, "occlusion", np.random.default_rng(seed)) for seed in range(200)]
    assert (np.stack(pictures) == 255).mean() == pytest.approx(0.3, abs=0.002)


def test_a_seed_draws_words_and_covers_anew():
    one, same, other = (emoji(40, text_detail=0.5, image_visibility=0.5, seed=seed) for seed in (0, 0, 1))
    assert one.captions == same.captions != other.captions
    assert one.fingerprint() == same.fingerprint()
    assert [one.image(row) for row in range(40)] != [other.image(row) for row in range(40)]
    dials = {"seed": 1}, {"image_visibility": 0.6}, {"image_fault": "noise"}  # of pictures alone, each is other data
    assert len({emoji(5, **{"image_visibility": 0.5} | dial).fingerprint() for dial in ({}, *dials)}) == 4


def test_whole_captions_move_with_mixed_pairs():
    mixed = load_dataset("emoji", split="train", limit=60, imbalance=ImbalanceSpec(text_detail=0.5, mismatch_rate=0.5))
    told = zip(mixed.captions, mixed.whole_captions, strict=True)
    assert all(set(words.split()) <= set(whole.split()) for words, whole in told)


@pytest.mark.parametrize("rate", [0.2, 0.5, 1.0])
def test_mismatch_moves_exactly_its_share_and_no_pair_keeps_its_own(rate):
    caption_image = np.repeat(np.arange(200), np.arange(200) % 5 + 1)
    index = mismatch_index(caption_image, rate, seed=4)
    moved = index != np.arange(len(index))
    assert moved.sum() == round(rate * len(index))
    assert sorted(index) == list(range(len(index)))  # every caption stands somewhere, once
    assert (caption_image[index] != caption_image)[moved].all()
    np.testing.assert_array_equal(index, mismatch_index(caption_image, rate, seed=4))
    assert (index != mismatch_index(caption_image, rate, seed=5)).any()
    assert (mismatch_index(caption_image, 0.0) == np.arange(len(index))).all()


def test_mismatched_scenes_carry_their_facts_with_them():
    plain, mixed = scenes("train"), scenes("train", mismatch_rate=0.2, seed=7)
    index = mismatch_index(plain.caption_image, 0.2, seed=7)
    assert mixed.captions == [plain.captions[c] for c in index]
    np.testing.assert_array_equal(mixed.caption_image, plain.caption_image)
    latent = mixed.scene.truth("latent").caption_to_image
    np.testing.assert_allclose(latent, plain.scene.truth("latent").caption_to_image[index], rtol=1e-6)
    assert told_share(mixed) == 1
    assert mixed.info["mismatch_rate"] == 0.2
    rows = np.concatenate([mixed.captions_of(5), mixed.captions_of(2)])
    half = mixed.subset([5, 2]).scene.truth("latent").caption_to_image
    np.testing.assert_allclose(half, latent[rows][:, [5, 2]], rtol=1e-6)
    assert scenes("val", mismatch_rate=0.2).captions == scenes("val").captions  # training pairs only


def test_the_dial_acts_per_split():
    dial = {"text_detail": 0.3, "image_visibility": 0.4, "splits": ("train",)}
    assert told_share(scenes("train", **dial)) < 0.5
    assert told_share(scenes("val", **dial)) == shown_share(scenes("val", **dial)) == 1
    blurred = scenes(text_detail=0.5, image_visibility=0.5, image_fault="blur")
    assert shown_share(blurred) == 1  # blur hides nothing for certain
    assert blurred.image(0) != scenes().image(0)
    assert told_share(blurred) < 0.6
