from collections import Counter
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise, permutations, product
from math import comb

import numpy as np
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer

from rvlr_lib.data import augment, bayes_ceiling, clean_caption, load_dataset, scenes, told_share, truth


def load(split="val", size=40, **options):
    if split == "test":
        return load_dataset("scenes", split=split, **options)
    return load_dataset("scenes", split=split, size=size, **options)


# Generation


def test_scenes_are_deterministic_and_streams_independent():
    same, again, seeded, other = load(), load(), load(seed=1), load("train")
    assert same.fingerprint() == again.fingerprint()
    prints = {d.fingerprint() for d in (same, seeded, other)}
    assert len(prints) == 3
    for changed in (seeded, other):
        assert (same.scene.scene.background == changed.scene.scene.background).mean() < 0.4


def test_fewer_scenes_are_the_first_of_more():
    assert load(size=12).fingerprint() == load(size=40).subset(range(12)).fingerprint()


def test_pictures_do_not_depend_on_detail():
    rich, poor = load(text_detail=1.0), load(text_detail=0.2)
    assert np.array_equal(rich.source.array, poor.source.array)
    assert np.array_equal(rich.scene.scene.objects, poor.scene.scene.objects)
    assert rich.captions != poor.captions


def test_sizes_of_the_splits():
    assert len(load_dataset("scenes", split="train")) == 4000
    assert len(load_dataset("scenes", split="val")) == 500
    test = load("test", galleries=3, gallery_size=20)
    assert [len(g) for g in test.gallery_sets()] == [20, 20, 20]
    assert load("test", galleries=1, gallery_size=20).fingerprint() == test.gallery_sets()[0].fingerprint()


def test_factors_are_drawn_evenly():
    facts = load(size=4000).scene.scene
    number = (facts.objects[:, :, 0] >= 0).sum(1)
    assert ((facts.objects[:, 1:] >= 0) <= (facts.objects[:, :-1] >= 0)).all()  # objects come first, absent ones last
    for values, kinds in (
        (number - 1, 4),
        (facts.background, 8),
        *((facts.objects[:, :, k][facts.objects[:, :, k] >= 0], kinds) for k, kinds in enumerate((8, 8, 2))),
    ):
        counts = np.bincount(values, minlength=kinds)
        assert len(counts) == kinds
        assert np.abs(counts - len(values) / kinds).max() < 5 * (len(values) / kinds) ** 0.5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_detail": 1.2}, "text_detail=1.2"),
        ({"text_detail": float("nan")}, "text_detail=nan"),
        ({"size": 0}, "size=0"),
        ({"seed": -1}, "seed=-1"),
        ({"split": "test", "galleries": 0}, "galleries=0"),
    ],
)
def test_unlawful_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load(**options)
    with pytest.raises(ValueError, match="size=3 is for train and val"):
        load_dataset("scenes", split="test", size=3)


# Pictures


def test_a_picture_shows_the_colours_of_its_objects_and_no_others():
    dataset = load(size=300)
    fills = np.array(scenes._COLOURS)
    assert min(np.linalg.norm(a - b) for k, a in enumerate(fills) for b in fills[:k]) > 60
    for i in range(300):
        pixels = dataset.source.array[i].reshape(-1, 1, 3).astype(int)
        seen = (np.abs(pixels - fills).max(2) <= 3).sum(0)
        shown = {c for c in dataset.scene.scene.objects[i, :, 1].tolist() if c >= 0}
        assert {c for c in range(8) if seen[c] >= 4} == shown


def test_shapes_are_mirror_images_of_themselves_and_distinct():
    sprites = scenes._sprites()
    np.testing.assert_allclose(sprites, sprites[..., ::-1, :], atol=1e-3)
    alpha = sprites[:, 0, :, :, :, 3]
    for size in range(2):
        for a in range(8):
            for b in range(a):
                apart = np.abs(sprites[a, 0, size] - sprites[b, 0, size]).sum((0, 1))
                assert apart[3] > 0.12 * alpha[:, size].sum((1, 2)).mean()


def test_large_stays_larger_than_small_under_crops():
    area = scenes._sprites()[:, 0, :, :, :, 3].sum((2, 3))
    assert (area[:, 1] > 1.5 * area[:, 0] / 0.7).all()


def test_textures_are_told_apart_under_crops_and_flips():
    """Nearest neighbour by amplitude spectra, which do not care about phase, over random crops and flips."""
    dataset = load(size=800)
    bare = replace(dataset, source=type(dataset.source)(textures_alone(800)))
    views = augment(bare.pixels(range(800), 48), torch.Generator().manual_seed(0))[:, 0].numpy()
    spectra = np.abs(np.fft.fft2(views - views.mean((1, 2), keepdims=True)))
    features = np.log1p(spectra + spectra[:, :, -np.arange(48)]).reshape(800, -1)
    kinds = np.arange(800) % 8
    nearest = kinds[torch.cdist(torch.tensor(features[400:]), torch.tensor(features[:400])).argmin(1).numpy()]
    assert (nearest == kinds[400:]).mean() > 0.98


def textures_alone(count):
    rng, textures = np.random.default_rng(0), scenes._textures()
    corners = rng.integers(0, 16, (count, 2))
    grey = [textures[i % 8, y : y + 48, x : x + 48] for i, (y, x) in enumerate(corners)]
    return np.repeat(np.stack(grey)[..., None], 3, axis=3).astype(np.uint8)


# Captions


def read_caption(caption):
    """The facts of a caption from its words alone, by a dictionary of its own making."""
    words = {w: ("shape", k) for k, ws in enumerate(scenes.SHAPE_WORDS) for w in ws}
    words |= {w: ("colour", k) for k, ws in enumerate(scenes.COLOUR_WORDS) for w in ws}
    words |= {w: ("size", k) for k, ws in enumerate(scenes.SIZE_WORDS) for w in ws}
    words |= {w: ("background", k) for k, ws in enumerate(scenes.BACKGROUND_WORDS) for w in ws}
    objects, background, current = [], -1, {}
    for word in caption.split():
        kind, value = words.get(word, ("", -1))
        if kind == "background":
            background = value
        elif kind in ("size", "colour"):
            current[kind] = value
        elif kind == "shape" or word in scenes.THING_WORDS:
            objects.append([value, current.get("colour", -1), current.get("size", -1)])
            current = {}
    return objects, background


@pytest.mark.parametrize("detail", [0.0, 0.3, 0.6, 1.0])
def test_captions_say_exactly_the_told_facts(detail):
    dataset = load(size=200, text_detail=detail)
    told = dataset.scene.text
    for caption, objects, background in zip(dataset.captions, told.objects, told.background, strict=True):
        assert read_caption(caption) == ([o for o in objects.tolist() if max(o) >= 0], background)


@pytest.mark.parametrize("detail", [0.0, 0.3, 0.6, 1.0])
def test_told_facts_are_true_and_each_object_is_told_once(detail):
    dataset = load(size=100, text_detail=detail)
    views = dataset.scene
    for c, i in enumerate(dataset.caption_image):
        mentions = [m for m in views.text.objects[c].tolist() if max(m) >= 0]
        objects = [o for o in views.scene.objects[i].tolist() if o[0] >= 0]
        assert 1 <= len(mentions) <= len(objects)
        assert any(all(fits(m, o) for m, o in zip(mentions, p, strict=False)) for p in permutations(objects))
        assert views.text.background[c] in (-1, views.scene.background[i])
        if detail == 1:
            assert sorted(mentions) == sorted(objects)
            assert views.text.background[c] >= 0
        if detail == 0:
            assert mentions == [[mentions[0][0], -1, -1]]
            assert views.forced[c]


def fits(mention, scene_object):
    return all(told in (-1, true) for told, true in zip(mention, scene_object, strict=True))


def test_details_are_nested():
    poor, rich = load(size=200, text_detail=0.3).scene, load(size=200, text_detail=0.6).scene
    assert ((poor.text.background < 0) | (poor.text.background == rich.text.background)).all()
    assert (rich.forced <= poor.forced).all()
    for few, more in zip(poor.text.objects[~poor.forced], rich.text.objects[~poor.forced], strict=True):
        rest = iter(more.tolist())
        assert all(any(fits(m, o) for o in rest) for m in few.tolist() if max(m) >= 0)  # in the same order


def test_told_share_is_the_detail():
    for detail in (0.5, 0.2):
        dataset = load(size=10_000, text_detail=detail)
        assert abs(told_share(dataset) - detail) < 0.01
        views = dataset.scene
        forced = (views.text.objects[views.forced] >= 0).sum((1, 2))
        assert (forced == 1).all()
        n = (views.scene.objects[:, :, 0] >= 0).sum(1)
        assert abs(views.forced.mean() - ((1 - detail) ** (3 * n)).mean()) < 0.01
    assert told_share(load(text_detail=1.0)) == 1
    assert told_share(load(text_detail=0.0)) == 0


def test_every_object_is_forced_and_mentioned_first_equally_often():
    views = load(size=2000, text_detail=0.0, seed=3).scene
    four = views.scene.objects[views.caption_image][:, :, 0]
    four_objects = (four >= 0).all(1) & (np.sort(four, 1)[:, 1:] != np.sort(four, 1)[:, :-1]).all(1)
    chosen = Counter((four[four_objects] == views.text.objects[four_objects, :1, 0]).argmax(1).tolist())
    views = load(size=2000, text_detail=1.0, seed=3).scene
    first = Counter((four[four_objects] == views.text.objects[four_objects, :1, 0]).argmax(1).tolist())
    for counts in (chosen, first):
        assert all(abs(counts[k] - four_objects.sum() / 4) < 5 * (four_objects.sum() / 4) ** 0.5 for k in range(4))


def test_words_are_few_clean_and_fit_the_tokenizer():
    captions = load("train", size=4000, text_detail=1.0).captions + load("train", size=4000).captions
    assert all(caption == clean_caption(caption) for caption in captions[::7])
    words = {word for caption in captions for word in caption.split()}
    assert 60 <= len(words) <= 120
    tokenizer = SimpleTokenizer()
    tokens = {word: len(tokenizer.encode(word)) for word in words}
    assert max(sum(tokens[word] for word in caption.split()) for caption in captions) <= 28
    assert not any(f" a {vowel}" in f" {caption}" for caption in captions for vowel in "aeiou")


# Truth


def slow_counts(objects, background):
    counts = Counter()
    for shape, colour, size in objects:
        counts["shape", shape] += 0.5 * (shape >= 0)
        counts["colour", colour] += 0.5 * (colour >= 0)
        counts["size", size] += 0.5 * (size >= 0)
        counts["pair", shape, colour] += shape >= 0 and colour >= 0
    counts["background", background] += background >= 0
    return counts


def slow_cosine(a, b):
    norms = [sum(v * v for v in x.values()) ** 0.5 for x in (a, b)]
    return sum(v * b[k] for k, v in a.items()) / (norms[0] * norms[1])


@pytest.mark.parametrize("kind", ["latent", "shown"])
@pytest.mark.parametrize("detail", [0.3, 1.0])
def test_truth_against_counting(kind, detail):
    dataset = load(size=6, text_detail=detail)
    views, result = dataset.scene, dataset.scene.truth(kind)
    images = [slow_counts(o.tolist(), b) for o, b in zip(views.scene.objects, views.scene.background, strict=True)]
    texts = [slow_counts(o.tolist(), b) for o, b in zip(views.text.objects, views.text.background, strict=True)]
    if kind == "latent":
        texts = [images[i] for i in dataset.caption_image]
    for matrix, rows, columns in (
        (result.caption_to_image, texts, images),
        (result.image_to_image, images, images),
        (result.text_to_text, texts, texts),
    ):
        assert matrix.dtype == np.float32
        np.testing.assert_allclose(matrix, [[slow_cosine(a, b) for b in columns] for a in rows], atol=1e-6)


def test_truth_by_hand():
    facts = truth.Facts(np.full((3, 4, 3), -1, np.int8), np.array([5, 5, -1], np.int8))
    facts.objects[0, 0], facts.objects[1, 0], facts.objects[2, 0] = (1, 2, 0), (1, 3, 0), (1, -1, -1)
    views = truth.SceneViews(facts, facts, facts, np.arange(3), np.zeros(3, bool), 0.5)
    long = (1 + 1 + 3 / 4) ** 0.5
    expected = [[1, (1 + 2 / 4) / long**2, (1 / 4) / (long * 0.5)]]
    np.testing.assert_allclose(views.truth("shown").image_to_image[:1], expected, atol=1e-6)
    blank = truth.SceneViews(facts, replace(facts, objects=facts.objects * 0 - 1), facts, np.arange(3), None, 0.5)
    assert blank.truth("shown").image_to_image[2].tolist() == [0, 0, 0]


def test_shown_is_latent_where_everything_is_told():
    views = load(text_detail=1.0).scene
    for part in ("caption_to_image", "image_to_image", "text_to_text"):
        np.testing.assert_allclose(getattr(views.truth("shown"), part), getattr(views.truth("latent"), part), atol=1e-6)
    assert np.linalg.eigvalsh(views.truth("shown").text_to_text.astype(float)).min() > -1e-5
    with pytest.raises(ValueError, match="'seen' is unknown; choose 'latent'"):
        views.truth("seen")


# Bayes ceiling


def caption_outcomes(objects, background, detail):
    """Every (mentions in order, background) that the generator can tell of a scene, with its chance."""
    chances = Counter()
    factors = [value for scene_object in objects for value in scene_object] + [background]
    for told in product((False, True), repeat=len(factors)):
        chance = np.prod([detail if t else 1 - detail for t in told])
        shown = [value if t else -1 for t, value in zip(told, factors, strict=True)]
        named = [tuple(shown[k : k + 3]) for k in range(0, len(factors) - 1, 3)]
        named = [n for n in named if max(n) >= 0]
        choices = [named] if named else [[(o[0], -1, -1)] for o in objects]
        for choice in choices:
            orders = list(permutations(choice))
            for order in orders:
                chances[order, shown[-1]] += chance / len(choices) / len(orders)
    return chances


def facts_of(views, c):
    return tuple(tuple(m) for m in views.text.objects[c].tolist() if max(m) >= 0), views.text.background[c]


@pytest.mark.parametrize("detail", [0.0, 0.15, 0.6, 1.0])
def test_likelihood_against_enumeration(detail):
    dataset = load(size=60, text_detail=detail, seed=5)
    number = (dataset.scene.scene.objects[:, :, 0] >= 0).sum(1)
    few = np.concatenate([np.flatnonzero(number == n)[:keep] for n, keep in ((1, 6), (2, 6), (3, 3), (4, 1))])
    dataset = dataset.subset(few)
    views = dataset.scene
    outcomes = []
    for objects, background in zip(views.scene.objects, views.scene.background, strict=True):
        outcomes.append(caption_outcomes([tuple(o) for o in objects.tolist() if o[0] >= 0], background, detail))
        assert abs(sum(outcomes[-1].values()) - 1) < 1e-9
    expected = [[chances[facts_of(views, c)] for chances in outcomes] for c in range(len(dataset.captions))]
    np.testing.assert_allclose(truth.caption_likelihood(views), expected, rtol=1e-9, atol=1e-15)


def test_likelihood_with_equal_objects():
    """Two equal objects can be told in twice as many ways; the enumeration above seldom meets them."""
    objects = [(2, 3, 1), (2, 3, 1), (2, 4, 0)]
    scene = truth.Facts(np.full((1, 4, 3), -1, np.int8), np.array([6], np.int8))
    scene.objects[0, :3] = objects
    outcomes = caption_outcomes(objects, 6, 0.4)
    text = truth.Facts(np.full((len(outcomes), 4, 3), -1, np.int8), np.array([b for _, b in outcomes], np.int8))
    for c, (mentions, _) in enumerate(outcomes):
        text.objects[c, : len(mentions)] = mentions
    views = truth.SceneViews(scene, scene, text, np.zeros(len(outcomes), int), np.zeros(len(outcomes), bool), 0.4)
    likelihood = truth.caption_likelihood(views)[:, 0]
    np.testing.assert_allclose(likelihood, list(outcomes.values()), rtol=1e-9)
    assert abs(likelihood.sum() - 1) < 1e-9


def slow_recall(scores, positives, k):
    """Expected recall over all orders of ties, in fractions."""
    hits = []
    for row, own in zip(scores, positives, strict=True):
        every = permutations(range(len(row)))
        orders = [order for order in every if all(row[a] >= row[b] for a, b in pairwise(order))]
        hits.append(Fraction(sum(any(own[j] for j in p[:k]) for p in orders), len(orders)))
    return 100 * float(sum(hits) / len(hits))


def test_expected_recall_against_all_orders_of_ties():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (30, 6)) / 3
    positives = rng.random((30, 6)) < 0.4
    positives[:, 2] |= ~positives.any(1)
    fast = truth.expected_recall(scores, positives, range(1, 8))
    for k in range(1, 7):
        assert abs(fast[k] - slow_recall(scores, positives, k)) < 1e-9
    assert fast[7] == 100
    all_alike = truth.expected_recall(np.zeros((1, 20)), np.arange(20)[None] < 5, [3])
    assert abs(all_alike[3] - 100 * (1 - comb(15, 3) / comb(20, 3))) < 1e-9


@pytest.mark.parametrize("detail", [0.0, 0.2, 0.6])
def test_ceiling_against_brute_force(detail):
    """Enumerated chances, fractions for the posteriors' ties, all orders of ties."""
    whole = load(size=40, text_detail=detail, seed=2)
    number = (whole.scene.scene.objects[:, :, 0] >= 0).sum(1)
    dataset = whole.subset(np.flatnonzero(number <= 2)[:4])
    captions = np.array([c for i in range(4) for c in dataset.captions_of(i)[: 1 + i % 2]])
    owner = dataset.caption_image[captions]
    scene = dataset.scene.subset(np.arange(4), captions, owner)
    words = [dataset.captions[c] for c in captions]
    dataset = replace(dataset, captions=words, caption_image=owner, scene=scene)
    outcomes = [
        caption_outcomes([tuple(o) for o in objects.tolist() if o[0] >= 0], background, Fraction(detail))
        for objects, background in zip(scene.scene.objects, scene.scene.background, strict=True)
    ]
    likelihood = [[Fraction(chances[facts_of(scene, c)]) for chances in outcomes] for c in range(len(words))]
    posterior = np.array([[value / sum(row) for value in row] for row in likelihood], dtype=object)
    own = owner[:, None] == np.arange(4)
    ceiling = bayes_ceiling(dataset, ks=(1, 2, 3))
    for k in (1, 2, 3):
        assert abs(ceiling[f"t2i/R@{k}"] - slow_recall(likelihood, own, k)) < 1e-9
        assert abs(ceiling[f"i2t/R@{k}"] - slow_recall(posterior.T, own.T, k)) < 1e-9
    assert ceiling["t2i/R@mean"] == pytest.approx(np.mean([ceiling[f"t2i/R@{k}"] for k in (1, 2, 3)]))
    assert ceiling["r_mean"] == pytest.approx((ceiling["i2t/R@mean"] + ceiling["t2i/R@mean"]) / 2)


def test_chances_equal_by_arithmetic_are_ties():
    chances = np.random.default_rng(0).random((10_000, 1)) * 0.3 ** np.arange(30)
    thirds, tenths = chances / (chances + chances + chances), chances / np.repeat(chances[None], 10, 0).sum(0)
    assert len(np.unique(thirds)) + len(np.unique(tenths)) > 2
    assert len(np.unique(truth._rounded(thirds))) == len(np.unique(truth._rounded(tenths))) == 1
    assert np.allclose(truth._rounded(chances), chances, rtol=1e-11, atol=0)


def test_ceiling_falls_with_detail():
    galleries = [load("test", galleries=1, gallery_size=200, text_detail=d) for d in (1.0, 0.6, 0.3, 0.0)]
    means = [bayes_ceiling(g)["r_mean"] for g in galleries]
    assert means == sorted(means, reverse=True)
    assert means[0] > 98
    assert 10 < means[-1] < 30


def test_ceiling_needs_one_gallery_with_factors():
    with pytest.raises(ValueError, match=r"gallery_sets\(\)"):
        bayes_ceiling(load("test", galleries=2, gallery_size=5))
    with pytest.raises(ValueError, match="emoji has no known factors"):
        bayes_ceiling(load_dataset("emoji", split="test", limit=3))
