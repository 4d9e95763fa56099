from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from rvlr_lib.data import (
    ImbalanceSpec,
    bayes_ceiling,
    impose,
    load_dataset,
    mismatch_index,
    rouge_l_relevance,
    shown_share,
    told_share,
)
from rvlr_lib.data import truth as truths
from rvlr_lib.data.dial import FAULTS, degrade, drop_words


def scenes(split="val", size=40, **dial):
    return load_dataset("scenes", split=split, size=size, imbalance=ImbalanceSpec(**dial))


def test_the_dial_is_exact_over_ten_thousand_scenes():
    dataset = scenes("train", 10_000, text_detail=0.5, image_visibility=0.5)
    assert told_share(dataset) == pytest.approx(0.5, abs=0.01)
    views = dataset.scene
    objects = [(facts.objects[:, :, 0] >= 0).sum() for facts in (views.image, views.scene)]
    assert objects[0] / objects[1] == pytest.approx(0.5, abs=0.01)
    assert views.covered.mean() / 9 == pytest.approx(0.5, abs=0.002)
    assert shown_share(dataset) > 0.5  # the background is hidden only where every tile is
    assert shown_share(scenes()) == told_share(scenes()) == 1


def test_what_is_hidden_is_not_to_be_seen():
    """Covered tiles are flat, and a picture has colour only where it shows an object."""
    dataset = scenes(size=80, image_visibility=0.5)
    bare = 0
    for row in range(80):
        pixels = np.asarray(dataset.image(row)).astype(int)
        flat = (pixels == 104).all(axis=2)
        assert flat.sum() >= 256 * dataset.scene.covered[row] * 0.8  # neighbours reach over by one or two pixels
        coloured = (pixels.max(axis=2) - pixels.min(axis=2)) > 40
        shown = dataset.scene.image.objects[row, :, 0] >= 0
        assert coloured.any() == shown.any()
        bare += not shown.any()
    assert bare > 5


def test_likelihood_of_covered_pictures_is_the_mean_over_what_may_be_hidden():
    """Every number of objects, cell and kind that fits the picture, weighed by its chance, one by one."""
    dataset = load_dataset("scenes", split="val", size=30, text_detail=0.4, image_visibility=0.6, seed=3)
    views = dataset.scene
    visible = (views.image.objects[:, :, 0] >= 0).sum(1)
    rows = np.flatnonzero(visible >= 3)[:2]  # so at most one object is hidden: 128 kinds
    assert len(rows) == 2
    fast = truths.caption_likelihood(views)
    kinds = np.array([(s, c, z) for s in range(8) for c in range(8) for z in range(2)], dtype=np.int8)
    for row in rows:
        seen, covered = views.image.objects[row], int(views.covered[row])
        base = np.concatenate([seen[seen[:, 0] >= 0], seen[seen[:, 0] < 0]])
        background = views.image.background[row]
        one_more = np.repeat(base[None], len(kinds), 0)
        if visible[row] < 4:
            one_more[:, visible[row]] = kinds
        scene = truths.Facts(np.concatenate([base[None], one_more]), np.full(1 + len(kinds), background, np.int8))
        whole = replace(views, scene=scene, image=scene, covered=np.zeros(1 + len(kinds), int))
        likelihood = truths.caption_likelihood(whole)
        # chance that n objects on random cells of nine leave so many visible: count the placements
        chance = []
        for n in (visible[row], visible[row] + 1):
            if n > 4:
                chance.append(0.0)
                continue
            draws = np.random.default_rng(int(n)).random((200_000, 9)).argsort(1)[:, :n]
            chance.append(((draws >= covered).sum(1) == visible[row]).mean())
        weights = np.array(chance) / sum(chance)
        expected = weights[0] * likelihood[:, 0] + weights[1] * likelihood[:, 1:].mean(1)
        np.testing.assert_allclose(fast[:, row], expected, rtol=0.02, atol=1e-12)


def test_the_ceiling_falls_with_either_modality():
    def ceiling(**dial):
        sizes = {"galleries": 1, "gallery_size": 80}
        return bayes_ceiling(load_dataset("scenes", split="test", imbalance=ImbalanceSpec(**dial), **sizes))["r_mean"]

    assert ceiling() > ceiling(image_visibility=0.6) > ceiling(image_visibility=0.3)
    assert ceiling() > ceiling(text_detail=0.6) > ceiling(text_detail=0.6, image_visibility=0.6)
    assert ceiling(image_visibility=0.0) == pytest.approx(100 * np.mean([1, 5, 10]) / 80, abs=6)


def test_words_are_dropped_by_chance_and_one_stays():
    captions = [f"a{i} b{i} c{i} d{i}" for i in range(4000)]
    half = drop_words(captions, 0.5, seed=1)
    share = sum(len(c.split()) for c in half) / 16_000
    kept_by_force = 4000 * 0.5**4 / 16_000
    assert share == pytest.approx(0.5 + kept_by_force, abs=0.01)
    assert all(caption for caption in half)
    for caption, left in zip(captions, half, strict=True):
        words = iter(caption.split())
        assert all(word in words for word in left.split())  # in order
    fewer = drop_words(captions, 0.2, seed=1)
    assert all(set(a.split()) <= set(b.split()) for a, b in zip(fewer, half, strict=True))
    assert drop_words(captions[7:8], 1.0) == captions[7:8]
    assert drop_words(["word"], 0.0) == ["word"]


def test_words_of_real_captions_drop_and_relevance_stays():
    whole = load_dataset("emoji", split="val", limit=60)
    half = load_dataset("emoji", split="val", limit=60, imbalance=ImbalanceSpec(text_detail=0.5))
    assert half.whole_captions == whole.captions
    assert half.captions != whole.captions
    assert half.info["text_detail"] == 0.5
    part = half.subset([3, 1])
    assert part.whole_captions == [whole.captions[c] for i in (3, 1) for c in whole.captions_of(i)]
    from rvlr_lib.evaluation.evaluate import relevances

    found = relevances(half)["rouge_l"].caption_to_image
    np.testing.assert_array_equal(found, rouge_l_relevance(whole.captions, whole.caption_image))
    assert half.fingerprint() != whole.fingerprint()


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_degrade_more_the_less_is_visible_and_are_repeatable(fault):
    picture = load_dataset("emoji", split="val", limit=5).image(2)

    def distance(visibility):
        bad = degrade(picture, visibility, fault, np.random.default_rng(0))
        assert bad.size == picture.size
        assert bad.mode == "RGB"
        return np.abs(np.asarray(bad, dtype=float) - np.asarray(picture, dtype=float)).mean()

    assert distance(0.0) > distance(0.3) > distance(0.7) > 0
    dial = ImbalanceSpec(image_visibility=0.5, image_fault=fault)
    sets = [load_dataset("emoji", split="val", limit=5, imbalance=dial) for _ in range(2)]
    assert np.array_equal(np.asarray(sets[0].image(4)), np.asarray(sets[1].image(4)))
    assert (sets[0].pixels([4], 48) == sets[1].pixels([4], 48)).all()


def test_occlusion_leaves_the_stated_share():
    shares = []
    for seed in range(200):
        bad = degrade(Image.new("RGB", (64, 48), "white"), 0.3, "occlusion", np.random.default_rng(seed))
        shares.append((np.asarray(bad)[:, :, 0] == 255).mean())
    assert np.mean(shares) == pytest.approx(0.3, abs=0.002)


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
    assert told_share(mixed) == told_share(plain) == 1
    assert mixed.info["mismatch_rate"] == 0.2
    half = mixed.subset([5, 2])
    np.testing.assert_allclose(
        half.scene.truth("latent").caption_to_image,
        latent[np.concatenate([mixed.captions_of(5), mixed.captions_of(2)])][:, [5, 2]],
        rtol=1e-6,
    )
    assert scenes("val", mismatch_rate=0.2).captions == scenes("val").captions  # training pairs only


def test_the_dial_acts_per_split():
    dial = ImbalanceSpec(text_detail=0.3, image_visibility=0.4, splits=("train",))
    assert told_share(load_dataset("scenes", split="train", size=50, imbalance=dial)) < 0.5
    assert told_share(load_dataset("scenes", split="val", size=50, imbalance=dial)) == 1
    blurred = ImbalanceSpec(text_detail=0.5, image_visibility=0.5, image_fault="blur")
    dataset = load_dataset("scenes", split="val", size=20, imbalance=blurred)
    assert shown_share(dataset) == 1  # blur hides nothing for certain
    assert not np.array_equal(np.asarray(dataset.image(0)), np.asarray(scenes(size=20).image(0)))
    assert told_share(dataset) < 0.6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_detail": 1.2}, "text_detail=1.2 lies outside 0 to 1"),
        ({"image_visibility": -0.1}, "image_visibility=-0.1 lies outside"),
        ({"mismatch_rate": 2}, "mismatch_rate=2 lies outside"),
        ({"image_fault": "rain"}, "'rain' is unknown; choose one of: occlusion, blur"),
        ({"splits": ("dev",)}, "not 'dev'"),
    ],
)
def test_unlawful_dials(values, message):
    with pytest.raises(ValueError, match=message):
        ImbalanceSpec(**values)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="moves 1 of 10 captions, of which 1 belong to one picture"):
        mismatch_index(np.arange(10), 0.1)
    with pytest.raises(ValueError, match="raise the rate or take more pictures"):
        mismatch_index(np.array([0, 0, 0, 1]), 1.0)
    with pytest.raises(ValueError, match="moves 0 of 10 captions"):
        mismatch_index(np.arange(10), 0.01)
    with pytest.raises(ValueError, match="lies outside 0 to 1"):
        mismatch_index(np.arange(10), 1.5)
    with pytest.raises(ValueError, match="drop factors where they are drawn"):
        impose(scenes(), ImbalanceSpec(text_detail=0.5))
    with pytest.raises(ValueError, match="text_detail is given twice"):
        load_dataset("scenes", split="val", text_detail=0.5, imbalance=ImbalanceSpec())
    with pytest.raises(ValueError, match="image_visibility=2 is no share"):
        load_dataset("scenes", split="val", image_visibility=2)
