"""The evaluation contract as obvious loops over Python floats: one query, one list, one sort at a time."""

import math

import numpy as np


def slow_recall(scores, is_positive, k):
    """100 or 0: is any positive among the first k, positives behind negatives of the same score?"""
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


class SlowWorld:
    """Cosines, relevance and the first caption of each image, by name as in the contract."""

    def __init__(self, z, w, caption_image, R, scores_i2t=None, scores_t2i=None):
        self.z, self.w = ([row / np.linalg.norm(row) for row in x] for x in (z, w))
        self.owner, self.R = list(caption_image), R
        self.I, self.C = len(z), len(w)
        self.q = [self.owner.index(i) for i in range(self.I)]
        self.i2t = np.array([[a @ b for b in self.w] for a in self.z]) if scores_i2t is None else scores_i2t
        self.t2i = np.array([[b @ a for a in self.z] for b in self.w]) if scores_t2i is None else scores_t2i

    def recalls(self, ks):
        """Per-query recall of both directions."""
        result = {}
        for k in ks:
            result[f"i2t/R@{k}"] = [
                slow_recall(self.i2t[i], [owner == i for owner in self.owner], k) for i in range(self.I)
            ]
            result[f"t2i/R@{k}"] = [
                slow_recall(self.t2i[c], [j == self.owner[c] for j in range(self.I)], k) for c in range(self.C)
            ]
        return result

    def official_lists(self, i):
        """Name -> [(score, relevance)] of one query image."""
        z, w, R, q = self.z, self.w, self.R, self.q
        images, captions = range(self.I), range(self.C)
        return {
            "i2i": [(0.0, 0.0) if j == i else (z[i] @ z[j], R[q[i], j]) for j in images],
            "t2t": [(0.0, 0.0) if c == q[i] else (w[q[i]] @ w[c], R[c, i]) for c in captions],
            "i2it": [(z[i] @ z[j], R[q[i], j]) for j in images] + [(self.i2t[i, c], R[c, i]) for c in captions],
            "t2it": [(w[q[i]] @ w[c], R[c, i]) for c in captions] + [(self.t2i[q[j], i], R[q[j], i]) for j in images],
        }

    def corrected_lists(self, i, image_relevance=None, text_relevance=None, mixed_t2it="direct", mixed_scores="cosine"):
        z, w, R, q, owner = self.z, self.w, self.R, self.q, self.owner
        captions = range(self.C)

        def mean(a, b):  # relevance of image b over the captions of image a
            return np.mean([R[c, b] for c in captions if owner[c] == a])

        def graded(j):
            return (mean(i, j) + mean(j, i)) / 2 if image_relevance is None else image_relevance[i, j]

        def texts(c):
            return R[c, i] if text_relevance is None else text_relevance[q[i], c]

        def cell(j):  # caption and image whose score and relevance stand for image j
            return (q[i], j) if mixed_t2it == "direct" else (q[j], i)

        def i2t(a, c):
            return self.i2t[a, c] if mixed_scores == "matching" else z[a] @ w[c]

        def t2i(c, a):
            return self.t2i[c, a] if mixed_scores == "matching" else w[c] @ z[a]

        others, rest = [j for j in range(self.I) if j != i], [c for c in captions if c != q[i]]
        text_list = [(w[q[i]] @ w[c], texts(c)) for c in rest]
        image_list = [(z[i] @ z[j], graded(j)) for j in others]
        return {
            "i2i": image_list,
            "t2t": text_list,
            "t2t_no_siblings": [(w[q[i]] @ w[c], texts(c)) for c in captions if owner[c] != i],
            "i2it": image_list + [(i2t(i, c), R[c, i]) for c in captions],
            "t2it": text_list + [(t2i(*cell(j)), R[cell(j)]) for j in range(self.I)],
        }


def slow_evaluation(world, protocol, ks_recall=(1, 5, 10), ks_ndcg=(10, 20, 50), **known):
    """Every per-query value, then every mean over the defined ones."""
    per_query = world.recalls(ks_recall)
    for i in range(world.I):
        lists = world.official_lists(i) if protocol == "official" else world.corrected_lists(i, **known)
        for name, candidates in lists.items():
            for k in ks_ndcg:
                value, floor = slow_ndcg(*zip(*candidates, strict=True), k) if candidates else (0.0, math.nan)
                per_query.setdefault(f"{name}/NDCG@{k}", []).append(value)
                if protocol == "corrected":
                    above = 100 * (value - floor) / (100 - floor) if floor < 100 - 1e-9 else math.nan
                    per_query.setdefault(f"{name}/NDCG@{k}/above_floor", []).append(above)
    means = {key: float(np.nanmean(values)) for key, values in per_query.items()}
    for direction in ("i2t", "t2i"):
        means[f"{direction}/R@mean"] = np.mean([means[f"{direction}/R@{k}"] for k in ks_recall])
    means["r_mean"] = (means["i2t/R@mean"] + means["t2i/R@mean"]) / 2
    return per_query, means
