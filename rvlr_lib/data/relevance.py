"""Graded relevance of images to captions by wording (ROUGE-L of cleaned captions), category or sentence embedding."""

import re
import sys
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from rvlr_lib.similarity import finite_rows, row_numbers, unit_rows
from rvlr_lib.tables import refuse_unknown

VARIANTS = ("coco", "rouge_score", "mean_f1")


def clean_caption(text: str) -> str:
    """Lower-case NFC text with everything but letters, digits and marks of any script replaced by single spaces.

    Zero-width joiners and non-joiners are kept inside a word and after a mark, where they are part of the spelling;
    soft hyphens are deleted. A mark on its own is not a word. ValueError if ``text`` is not a string.

    >>> clean_caption("A man's  T-shirt, No_2!")
    'a man s t shirt no 2'
    """
    if not isinstance(text, str):
        raise ValueError(f"a caption is {text!r}, expected a string")
    if text.isascii():
        return re.sub(r"[\W_]+", " ", text.lower()).strip()
    plain = unicodedata.normalize("NFC", text.replace("\u00ad", ""))
    return " ".join(_words().findall(unicodedata.normalize("NFC", plain.lower())))


@lru_cache(maxsize=1)
def _words() -> re.Pattern[str]:
    """Pattern of a word: a letter or digit, then letters, digits, marks, and joiners inside a word or after a mark."""
    marks = "".join(mark for mark in map(chr, range(0x300, sys.maxunicode)) if unicodedata.category(mark)[0] == "M")
    return re.compile(rf"[^\W_](?:[^\W_]|[{marks}]|(?<=[{marks}])[\u200c\u200d]|[\u200c\u200d]+(?=[^\W_]))*")


def rouge_l_relevance(
    captions: Sequence[str],
    caption_image: Sequence[int] | np.ndarray,
    *,
    variant: str = "coco",
    num_images: int | None = None,
    chunk_size: int | None = None,
) -> np.ndarray:
    """ROUGE-L of every caption against the captions of every image, including itself.

    ``P = L / words of the caption``, ``R = L / words of the reference``, ``L`` the longest common subsequence of words.
    Returns float32 ``[C, I]`` in 0 to 1, computed in float64; 0 for an image or a caption without words. With the first
    two variants a caption scores exactly 1 at its own image. ValueError for an unknown variant, no captions, mismatched
    lengths and image rows out of range.

    Args:
        captions: ``[C]`` cleaned texts, split on spaces.
        caption_image: ``[C]`` image row of each caption.
        variant: ``"coco"``: ``2.44 P R / (R + 1.44 P)`` of best P and best R, taken independently as by the COCO scorer
            (and TERN's public script). ``"rouge_score"``: best ``F1`` over references. ``"mean_f1"``: mean ``F1``.
        num_images: ``I``; default: highest image row + 1.
        chunk_size: captions scored at once; affects memory, not results. Default: about a million pairs.

    >>> rouge_l_relevance(["a red cat", "one cat", "a red dog"], [0, 0, 1]).round(2)
    array([[1.  , 0.67],
           [1.  , 0.  ],
           [0.67, 1.  ]], dtype=float32)
    """
    refuse_unknown([variant], VARIANTS, "unknown variant")
    if isinstance(captions, str) or not len(captions) or not all(isinstance(text, str) for text in captions):
        raise ValueError(f"captions are {str(captions)[:60]}: give a list of strings")
    for name, number in {"chunk_size": chunk_size, "num_images": num_images}.items():
        if number is not None and not (isinstance(number, int | np.integer) and number >= 1):
            raise ValueError(f"{name}={number!r} must be a whole number, 1 or more, or None")
    result, order, present, starts = _by_image(len(captions), caption_image, num_images)
    words: dict[str, str] = {}  # one character per word, which RapidFuzz compares fastest
    sentences = ["".join(words.setdefault(word, chr(len(words))) for word in text.split()) for text in captions]
    references = [sentences[i] for i in order]
    lengths = np.array([max(len(sentence), 1) for sentence in sentences])
    counter, step = np.uint8 if lengths.max() < 256 else np.int32, chunk_size or max(1, 1_000_000 // len(captions))
    for begin in range(0, len(captions), step):
        rows = slice(begin, begin + step)
        common = cdist(sentences[rows], references, scorer=LCSseq.similarity, dtype=counter)
        precision, recall = common / lengths[rows, None], common / lengths[order]
        if variant == "coco":
            precision, recall = (np.maximum.reduceat(x, starts, axis=1) for x in (precision, recall))
            score = _f_score(precision, recall, 1.44)
        else:
            reduce = np.maximum if variant == "rouge_score" else np.add
            score = reduce.reduceat(_f_score(precision, recall, 1.0), starts, axis=1)
        result[rows, present] = score / np.diff(starts, append=len(captions)) if variant == "mean_f1" else score
    return result


def _by_image(count: int, caption_image: Any, num_images: int | None) -> tuple[np.ndarray, ...]:
    """Zeros, float32 [C, I]; caption rows sorted by image; images with captions, and where each one's rows begin."""
    owner = row_numbers("caption_image", caption_image, count, 2**31 if num_images is None else num_images).numpy()
    images = int(owner.max()) + 1 if num_images is None else num_images
    order = np.argsort(owner, kind="stable")
    return np.zeros((count, images), np.float32), order, *np.unique(owner[order], return_index=True)


def _f_score(precision: np.ndarray, recall: np.ndarray, beta_squared: float) -> np.ndarray:
    """``(1 + β²) P R / (R + β² P)``, 0 where P and R are 0."""
    denominator = recall + beta_squared * precision
    return (1 + beta_squared) * precision * recall / np.where(denominator > 0, denominator, 1)


def category_relevance(categories: Sequence[str], caption_image: Sequence[int] | np.ndarray) -> np.ndarray:
    """float32 ``[C, I]``: 1 if the caption's own image is of the same category as the image, else 0; ignores wording.

    >>> category_relevance(["animal", "food", "animal"], [0, 1]).tolist()
    [[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    names = np.asarray(categories)
    owner = row_numbers("caption_image", caption_image, len(caption_image), len(names)).numpy()
    return (names[owner][:, None] == names).astype(np.float32)


def embedding_relevance(
    caption_features: np.ndarray, caption_image: Sequence[int] | np.ndarray, num_images: int | None = None
) -> np.ndarray:
    """Best cosine of every caption with the captions of every image: similarity of meaning to a sentence encoder.

    ``caption_features`` are ``[C, E]`` from any encoder, normalised to unit length here; other arguments as for
    :func:`rouge_l_relevance`. Returns float32 ``[C, I]`` in 0 to 1, exactly 1 at a caption's own image; negative
    cosines and images without captions count as 0. ValueError for mismatched shapes, image rows out of range, and
    feature rows that are zero or not finite.
    """
    features = unit_rows(finite_rows("caption_features", caption_features).double()).numpy()
    if len(bad := np.flatnonzero(~features.any(axis=1))):
        raise ValueError(f"caption_features: row {bad[0]} is zero")
    result, order, present, starts = _by_image(len(features), caption_image, num_images)
    for begin in range(0, len(features), 1000):
        rows = slice(begin, begin + 1000)
        cosines = features[rows] @ features[order].T
        result[rows, present] = np.maximum.reduceat(cosines, starts, axis=1).clip(0, 1)
    return result
