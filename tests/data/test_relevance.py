import unicodedata

import numpy as np
import pytest
from emoji import EMOJI_DATA
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics.pairwise import cosine_similarity

from rvlr_lib.data.relevance import clean_caption, embedding_relevance, rouge_l_relevance

WORDS = sorted({word for data in EMOJI_DATA.values() for word in clean_caption(data["en"]).split()})
SCORER = RougeScorer(["rougeL"])
SPELLING = ["एक लड़का खेल रहा है", "குழந்தை", "คน", "ക്ഷ", "שָׁלוֹם", "كَتَبَ", "می‌خواهم", "ක්‍ෂ"]  # marks and joiners


def captions(count, seed=0):
    """Captions of 1 to 13 words from a vocabulary small enough for overlaps of every length."""
    rng, words = np.random.default_rng(seed), [word for word in WORDS if word.isascii()][:: len(WORDS) // 12]
    return [" ".join(rng.choice(words, rng.integers(1, 14))) for _ in range(count)]


def rouge_score(candidate, reference):
    return SCORER.score(reference, candidate)["rougeL"]


def slow_coco(candidate, references, beta=1.2):
    """The COCO scorer's formula: best precision and best recall, taken independently."""
    scores = [rouge_score(candidate, reference) for reference in references]
    precision, recall = max(score.precision for score in scores), max(score.recall for score in scores)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if precision else 0.0


@pytest.mark.parametrize(
    ("variant", "slow"),
    [
        ("coco", slow_coco),
        ("rouge_score", lambda text, references: max(rouge_score(text, r).fmeasure for r in references)),
        ("mean_f1", lambda text, references: np.mean([rouge_score(text, r).fmeasure for r in references])),
    ],
)
def test_variants_equal_the_loops_for_any_number_and_order_of_captions(variant, slow):
    texts, rng = captions(60), np.random.default_rng(0)
    owner = rng.permutation(np.concatenate([np.arange(15), rng.integers(0, 15, 45)]))
    references = [[texts[c] for c in range(60) if owner[c] == i] for i in range(15)]
    relevance = rouge_l_relevance(texts, owner, variant=variant)
    assert relevance.dtype == np.float32
    expected = np.array([[slow(text, group) for group in references] for text in texts])
    assert relevance == pytest.approx(expected, abs=1e-7)
    if variant == "rouge_score":  # to the bit
        assert np.array_equal(relevance, expected.astype(np.float32))
    assert variant == "mean_f1" or (relevance[np.arange(60), owner] == 1).all()
    for numbers in (owner.astype(np.uint8), owner.astype(float)):
        assert np.array_equal(relevance, rouge_l_relevance(texts, numbers, variant=variant, chunk_size=7))


def test_long_captions_and_images_or_captions_without_words():
    long = " ".join(str(n) for n in range(700))
    relevance = rouge_l_relevance([long, f"{long} x", ""], [0, 1, 2], num_images=5, variant="rouge_score")
    assert relevance[0, 1] == pytest.approx(2 * 700 / 1401)
    assert relevance.shape == (3, 5)
    assert not relevance[:, 2:].any()
    assert not relevance[2].any()


def test_vocabulary_beyond_one_unicode_plane():
    texts = [" ".join(f"w{n}" for n in range(begin, begin + 1000)) for begin in range(0, 100_000, 1000)]
    assert np.array_equal(rouge_l_relevance(texts, np.arange(100)), np.eye(100, dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("A man's  T-shirt, No_2!", "a man s t shirt no 2"),
        ("\tZwei Männer—im CAFÉ\n", "zwei männer im café"),
        ("Ещё ОДИН кот №7", "ещё один кот 7"),
        ("<person> & 🐈 ...", "person"),
        ("Ångström 한국어 が Việt", "ångström 한국어 が việt"),
        ("क्\u200d\u200dष a\u200d\u200db c\u200d", "क्\u200d\u200dष a\u200d\u200db c"),
        ("Donau\u00addampf\u00adschiff", "donaudampfschiff"),
        ("a red ❤️ 👨‍👩‍👧 and a dog", "a red and a dog"),  # emoji's joiners and selectors are not words
        *((word, word) for word in SPELLING),
    ],
)
def test_clean_caption(text, clean):
    clean = unicodedata.normalize("NFC", clean)
    assert {clean_caption(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")} == {clean}
    assert clean_caption(clean) == clean


def test_clean_caption_keeps_letters_marks_and_digits_of_every_script():
    for code in range(0x80, 0x11000):
        character = unicodedata.normalize("NFC", chr(code).lower()) if not 0xD800 <= code < 0xE000 else " "
        kept, kind = clean_caption(f"a {chr(code)} b"), {unicodedata.category(part)[0] for part in character}
        word = clean_caption(f"x{chr(code)}x")
        if kind <= {"L", "M", "N"} and len(character) == 1:
            assert word == unicodedata.normalize("NFC", f"x{character}x"), hex(code)
            assert kept == ("a b" if kind == {"M"} else f"a {character} b"), hex(code)
        elif not kind & {"L", "M", "N"} and code not in (0xAD, 0x200C, 0x200D):
            assert word == "x x", hex(code)


def test_embedding_relevance_is_the_best_cosine_with_captions_of_the_image():
    rng = np.random.default_rng(0)
    features, owner = rng.normal(size=(40, 6)), rng.permutation(np.arange(40) % 13)
    relevance = embedding_relevance(features, owner, 15)
    best = [[max([0.0, *cosines[owner == i]]) for i in range(15)] for cosines in cosine_similarity(features)]
    assert relevance == pytest.approx(np.array(best), abs=1e-6)
    np.testing.assert_array_equal(relevance[np.arange(40), owner], 1)
