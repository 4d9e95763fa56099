import numpy as np
import pytest

from rvlr_lib.metrics import evaluate_folds, evaluate_retrieval


def gallery(images=30, captions=80, seed=0):
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.concatenate([np.arange(images), rng.integers(0, images, captions - images)]))
    z, w = rng.normal(size=(images, 6)), rng.normal(size=(captions, 6))
    known = {
        "scores_i2t": rng.normal(size=(images, captions)),
        "scores_t2i": rng.normal(size=(captions, images)),
        "image_relevance": rng.random((images, images)),
        "text_relevance": rng.random((captions, captions)),
    }
    return z, w, owner, rng.random((captions, images)), known


@pytest.mark.parametrize("protocol", ["corrected", "official"])
def test_folds_are_the_mean_of_galleries_cut_out_by_hand(protocol):
    z, w, owner, relevance, known = gallery()
    reports = []
    for begin in (0, 10, 20):
        images = list(range(begin, begin + 10))
        captions = [c for c in range(len(owner)) if owner[c] in images]
        sides = {"i": images, "t": captions}
        cut = {
            name: matrix[np.ix_(sides[a], sides[b])]
            for (name, matrix), (a, b) in zip(known.items(), ("it", "ti", "ii", "tt"), strict=True)
        }
        own = [images.index(owner[c]) for c in captions]
        cells = relevance[np.ix_(captions, images)]
        reports.append(evaluate_retrieval(z[images], w[captions], own, cells, protocol=protocol, **cut))
    found = evaluate_folds(z, w, owner, relevance, fold_size=10, protocol=protocol, **known)
    assert found == pytest.approx({key: np.mean([report[key] for report in reports]) for key in reports[0]})
    assert found["t2i/R@1"] != evaluate_retrieval(z, w, owner, relevance)["t2i/R@1"]


def test_one_fold_is_the_whole_gallery():
    z, w, owner, relevance, _ = gallery()
    assert evaluate_folds(z, w, owner, relevance, fold_size=30) == evaluate_retrieval(z, w, owner, relevance)


def test_what_does_not_fit_is_refused():
    z, w, owner, relevance, _ = gallery()
    with pytest.raises(ValueError, match="fold_size 8 does not divide 30 images"):
        evaluate_folds(z, w, owner, relevance, fold_size=8)
    with pytest.raises(ValueError, match="per_query"):
        evaluate_folds(z, w, owner, relevance, fold_size=10, per_query=True)
    with pytest.raises(ValueError, match="do not fit"):
        evaluate_folds(z, w, owner[1:], relevance, fold_size=10)
