"""Obvious twins of the losses in NumPy: SciPy and scikit-learn where they have the formula, else a loop."""

import numpy as np
import torch
from scipy.spatial.distance import pdist
from scipy.special import huber, log_softmax, softmax
from scipy.stats import entropy, wasserstein_distance
from sklearn.metrics import log_loss
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.preprocessing import normalize


def plain(*tensors):
    return [x.detach().numpy() for x in tensors]


def slow_contrast(rows, columns, temperature, ids):
    """CE(S): mean over i of −(1 / number of the same image) Σ log softmax over those columns."""
    rows, columns, ids = plain(rows, columns, ids)
    logs = [log_softmax([row @ column / temperature for column in columns]) for row in rows]
    return -np.mean([own[ids == one].mean() for own, one in zip(logs, ids, strict=True)])


def slow_cyclic(images, texts, across):
    z, w = map(normalize, plain(images, texts))
    total = 0
    for i in range(len(z)):
        for j in range(len(z)):
            total += (z[i] @ w[j] - z[j] @ w[i] if across else z[i] @ z[j] - w[i] @ w[j]) ** 2
    return total / len(z)


def slow_hard_negatives(similarity, temperature, ids, generator):
    """One multinomial draw for each text, then one for each image."""
    draws = []
    for scores in (similarity.T, similarity):
        chosen = []
        for i in range(len(scores)):
            weights = torch.softmax(scores[i] / temperature, dim=0) + 1e-5
            weights[ids == ids[i]] = 0
            chosen.append(torch.multinomial(weights, 1, generator=generator))
        draws.append(torch.cat(chosen))
    return tuple(draws)


def slow_matching(positive_logits, negative_logits):
    logits = np.concatenate(plain(positive_logits, negative_logits))
    return log_loss(np.arange(len(logits)) < len(positive_logits), softmax(logits, axis=1))


def entries(matrix):
    """Off-diagonal entries, a row each."""
    return matrix[~np.eye(len(matrix), dtype=bool)].reshape(len(matrix), -1)


def slow_relations(features, distance, temperature, centred):
    if distance == "rkd_distance":
        lengths = pdist(normalize(features))
        return lengths / lengths.mean()
    if distance == "rkd_angle":  # at every row between all others
        rows = normalize(features)
        return np.array([entries(cosine_similarity(np.delete(rows, j, axis=0) - rows[j])) for j in range(len(rows))])
    cosines = entries(cosine_similarity(features)) / temperature
    return cosines - cosines.mean() if centred else cosines


COMPARE = {
    "mae": lambda x, e: abs(x - e).mean(),
    "mse": lambda x, e: ((x - e) ** 2).mean(),
    "cumulative_l1": lambda x, e: abs(x.cumsum() - e.cumsum()).mean(),
    "row_kl": lambda x, e: entropy(softmax(e, axis=1), softmax(x, axis=1), axis=1).mean(),
    **dict.fromkeys(("rkd_distance", "rkd_angle"), lambda x, e: huber(1, x - e).mean()),
}


def slow_structure(student, image, text, *, fusion_weight, temperature, distance, cost_features=None, centred=False):
    """Three scalars: kd, kdi, kdt."""
    f, i, t = (slow_relations(x, distance, temperature, centred) for x in plain(student, image, text))
    e = fusion_weight * t + (1 - fusion_weight) * i
    if distance == "wasserstein":
        costs = entries(1 - cosine_similarity(*plain(cost_features)))
        rows = [wasserstein_distance(a * cost, b * cost, cost, cost) for a, b, cost in zip(f, e, costs, strict=True)]
        return [np.mean(rows), 0.0, 0.0]
    return [COMPARE[distance](x, e) for x in (f, i, t)]


def slow_mean_relation(student, image, text, *, fusion_weight, temperature):
    f, i, t = (slow_relations(x, "mae", temperature, False) for x in plain(student, image, text))
    return abs(f - (fusion_weight * t + (1 - fusion_weight) * i).mean()).mean()
