"""Errors for bad options, arrays and parts; those for users' files are in test_readers.py and test_user.py."""

import numpy as np
import pytest

from rvlr_lib.data import ImbalanceSpec, apply_imbalance, bayes_ceiling, load_dataset, mismatch_index, rouge_l_relevance
from rvlr_lib.data.relevance import clean_caption, embedding_relevance
from tests.data.test_pairs import make_dataset

AB = ["a", "b"]


def scenes(split="val", **options):
    return load_dataset("scenes", split=split, **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ImbalanceSpec(text_detail=1.2), "text_detail=1.2 lies outside 0 to 1"),
        (lambda: ImbalanceSpec(image_fault="rain"), "'rain'; valid: occlusion, blur"),
        (lambda: ImbalanceSpec(splits=("dev",)), "the dial: unknown split 'dev'"),
        (lambda: mismatch_index(np.arange(10), 1.5), "lies outside 0 to 1"),
        (lambda: mismatch_index(np.arange(10), 0.01), "moves 0 of 10 captions"),
        (lambda: mismatch_index(range(10), 0.1), "moves 1 of 10 captions, of which 1 belong to one picture"),
        (lambda: mismatch_index(np.array([0, 0, 0, 1]), 1.0), "raise the rate or take more pictures"),
        (lambda: apply_imbalance(scenes(), ImbalanceSpec(text_detail=0.5)), "drop factors as they are drawn"),
        (lambda: scenes(text_detail=0.5, imbalance=ImbalanceSpec()), "given twice"),
        (lambda: scenes(text_detail=float("nan")), "text_detail=nan"),
        (lambda: scenes(image_visibility=2), "image_visibility=2 lies outside 0 to 1"),
        (lambda: scenes(size=0), "size=0"),
        (lambda: scenes(seed=-1), "seed=-1"),
        (lambda: scenes("test", galleries=0), "galleries=0"),
        (lambda: scenes("test", size=3), "size=3 is for train and val"),
        (lambda: scenes("train", image_root="photos"), "image_root='photos'"),
        (lambda: scenes("train", detail=1), "scenes: unknown option 'detail'; valid: text_detail, image_vis"),
        (lambda: load_dataset("flickr", split="train"), "'flickr' is unknown; valid: clipart, emoji, scenes"),
        (lambda: load_dataset("a.json", split="val"), "a.json is missing; give an annotation file"),
        (lambda: load_dataset("emoji", split="dev"), "unknown split 'dev'; valid: train, val, test"),
        (lambda: load_dataset("emoji", split="val", limit=0), "limit=0"),
        (lambda: bayes_ceiling(scenes("test", galleries=2, gallery_size=5)), r"gallery_sets"),
        (lambda: bayes_ceiling(load_dataset("emoji", split="test", limit=3)), "emoji has no known factors"),
        (lambda: make_dataset(image_ids=["a", "b", "c", "b", "d"]), "duplicate image id 'b'"),
        (lambda: make_dataset(image_ids=AB), "2 image ids for 5 pictures"),
        (lambda: make_dataset(captions=["only one"]), r"caption_image has shape \(12,\) .*expected row numbers \(1,\)"),
        (lambda: make_dataset(caption_image=np.repeat(np.arange(6), 2)), r"toy/train: .*numbers 0 to 4, got \[5, 5\]"),
        (lambda: make_dataset(caption_image=np.zeros(12, dtype=np.int64)), "'picture1' has no caption"),
        (lambda: make_dataset().subset([]), "empty"),
        (lambda: rouge_l_relevance(AB, [0, 1], variant="f"), "unknown variant 'f'; valid: coco, rouge_score, mean_f1"),
        (lambda: rouge_l_relevance(AB, [0]), r"caption_image has shape \(1,\) of torch.int64, expected row numbers"),
        (lambda: rouge_l_relevance([], []), r"captions are \[\]: give a list"),
        (lambda: rouge_l_relevance("ab", [0, 1]), "captions are ab: give a list"),
        (lambda: rouge_l_relevance(["a", None], [0, 1]), r"captions are \['a', None\]: give a list of strings"),
        (lambda: clean_caption(None), "a caption is None"),
        (lambda: rouge_l_relevance(AB, [False, True]), "of torch.bool, expected row numbers"),
        (lambda: rouge_l_relevance(AB, [0, 1], chunk_size=-1), "chunk_size=-1 must be a whole number, 1 or more"),
        (lambda: rouge_l_relevance(AB, [0, 1], num_images=2.5), "num_images=2.5 must be a whole"),
        (lambda: make_dataset().pixels([0.5], 8), r"rows must be whole row numbers 0 to 4, got \[0.5\]"),
        (lambda: rouge_l_relevance(AB, [0, 2], num_images=2), "row numbers 0 to 1"),
        (lambda: embedding_relevance(np.ones((3, 2)), [0, 1]), r"\(2,\).*\(3,\)"),
        (lambda: embedding_relevance(np.eye(2) * [1, 0], [0, 1]), "row 1 is zero"),
        (lambda: embedding_relevance(np.eye(2) * [np.nan, 1], [0, 1]), "2 rows are not finite, row 0 first"),
    ],
)
def test_bad_input_is_named(call, message, refuses):
    refuses(message, call)
