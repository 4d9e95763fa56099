"""The evaluation as plain loops over Python floats: one query, one list, one sort at a time."""

import math
from collections import defaultdict

import numpy as np


def slow_recall(scores, is_positive, k):
    """100 or 0: is any positive among the first k, with positives behind negatives of the same score?"""
    order = sorted(range(len(scores)), key=lambda g: (-scores[g], is_positive[g]))
    return 100.0 if any(is_positive[g] for g in order[:k]) else 0.0


def slow_dcg(gains, k):
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains[:k], start=1))


def slow_ndcg(scores, relevance, k):
    """Percent and floor of one list without ties."""
    order = sorted(range(len(scores)), key=lambda g: -scores[g])
    ideal = slow_dcg(sorted(relevance, reverse=True), k)
    if ideal == 0:
        return 0.0, math.nan
    floor = sum(relevance) / len(relevance) * slow_dcg([1.0] * len(relevance), k) / ideal
    return 100 * slow_dcg([relevance[g] for g in order], k) / ideal, 100 * floor


def slow_evaluation(z, w, owner, R, *, protocol="corrected", mixed_t2it="direct", mixed_scores="cosine", **known):
    """Every per-query value, and every mean over the defined ones; arguments as for ``evaluate_retrieval``."""
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, w))
    images, captions, owner = range(len(z)), range(len(w)), list(owner)
    q, official = [owner.index(i) for i in images], protocol == "official"
    i2t, t2i = known.get("scores_i2t", z @ w.T), known.get("scores_t2i", w @ z.T)
    image_relevance, text_relevance = known.get("image_relevance"), known.get("text_relevance")
    mixed = (i2t, t2i) if official or mixed_scores == "matching" else (z @ w.T, w @ z.T)
    per_query = defaultdict(list)
    for k in (1, 5, 10):
        per_query[f"i2t/R@{k}"] = [slow_recall(i2t[i], [image == i for image in owner], k) for i in images]
        per_query[f"t2i/R@{k}"] = [slow_recall(t2i[c], [j == owner[c] for j in images], k) for c in captions]

    def mean(a, b):  # relevance of image b over the captions of image a
        return np.mean([R[c, b] for c in captions if owner[c] == a])

    def of_images(i, j):
        if official:
            return R[q[i], j]
        return (mean(i, j) + mean(j, i)) / 2 if image_relevance is None else image_relevance[i, j]

    for i in images:
        cells = [(q[j], i) if official or mixed_t2it == "transposed" else (q[i], j) for j in images]
        to_images = [(z[i] @ z[j], of_images(i, j)) for j in images]
        text_gains = R[:, i] if official or text_relevance is None else text_relevance[q[i]]
        to_texts = [(w[q[i]] @ w[c], text_gains[c]) for c in captions]
        i2i, t2t = to_images.copy(), to_texts.copy()
        if official:
            i2i[i], t2t[q[i]] = (0.0, 0.0), (0.0, 0.0)
        else:
            del i2i[i], t2t[q[i]]
            to_images, to_texts = i2i, t2t
        lists = {"i2i": i2i, "t2t": t2t, "t2it": to_texts + [(mixed[1][cell], R[cell]) for cell in cells]}
        lists["i2it"] = to_images + [(mixed[0][i, c], R[c, i]) for c in captions]
        if not official:
            lists["t2t_no_siblings"] = [(w[q[i]] @ w[c], text_gains[c]) for c in captions if owner[c] != i]
        for name, candidates in lists.items():
            for k in (10, 20, 50):
                value, floor = slow_ndcg(*zip(*candidates, strict=True), k)
                per_query[f"{name}/NDCG@{k}"].append(value)
                if not official:
                    above = 100 * (value - floor) / (100 - floor) if floor < 100 - 1e-9 else math.nan
                    per_query[f"{name}/NDCG@{k}/above_floor"].append(above)
    means = {key: float(np.nanmean(values)) for key, values in per_query.items()}
    for direction in ("i2t", "t2i"):
        means[f"{direction}/R@mean"] = np.mean([means[f"{direction}/R@{k}"] for k in (1, 5, 10)])
    means["r_mean"] = (means["i2t/R@mean"] + means["t2i/R@mean"]) / 2
    return per_query, means
