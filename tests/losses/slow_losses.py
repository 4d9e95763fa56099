"""Slow obvious twins of the losses, written from the formulas with a loop wherever the formula has an index."""

import math

import torch
import torch.nn.functional as F


def slow_contrast(rows, columns, temperature, ids):
    """CE(S): mean over i of −(1 / number of the same image) Σ log softmax over those columns."""
    total = 0
    for i in range(len(rows)):
        chances = torch.log_softmax(torch.stack([rows[i] @ column for column in columns]) / temperature, dim=0)
        total = total - chances[ids == ids[i]].mean()
    return total / len(rows)


def slow_cyclic(images, texts, across):
    z, w = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    count, total = len(z), 0
    for i in range(count):
        for j in range(count):
            total = total + (z[i] @ w[j] - z[j] @ w[i] if across else z[i] @ z[j] - w[i] @ w[j]) ** 2
    return total / count


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
    right = positive_logits.tolist() + [(b, a) for a, b in negative_logits.tolist()]  # the right class second
    return sum(math.log(math.exp(a) + math.exp(b)) - b for a, b in right) / len(right)


def slow_cosines(features, temperature):
    rows = F.normalize(features, dim=-1)
    return rows @ rows.T / temperature


def entries(matrix):
    """Off-diagonal entries row by row, as one vector."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]


def slow_row_kl(x, e):
    total = 0
    for i in range(len(x)):
        others = [j for j in range(len(x)) if j != i]
        p, q = torch.softmax(e[i, others], 0), torch.softmax(x[i, others], 0)
        total = total + (p * (p / q).log()).sum()
    return total / len(x)


def slow_wasserstein_1d(u, v, weights):
    """Area between two distribution functions: two sorts, two searches."""
    u_sorted, u_order = u.sort()
    v_sorted, v_order = v.sort()
    points = torch.cat([u, v]).sort().values
    zero = weights.new_zeros(1)
    u_cdf = torch.cat([zero, weights[u_order].cumsum(0)])[torch.searchsorted(u_sorted, points[:-1], right=True)]
    v_cdf = torch.cat([zero, weights[v_order].cumsum(0)])[torch.searchsorted(v_sorted, points[:-1], right=True)]
    return ((u_cdf - v_cdf).abs() * points.diff()).sum() / weights.sum()


def slow_wasserstein(x, e, cost_features):
    keep = 1 - torch.eye(len(x), dtype=x.dtype, device=x.device)
    delta = (1 - slow_cosines(cost_features, 1)) * keep
    u, v = e * keep * delta, x * keep * delta
    return torch.stack([slow_wasserstein_1d(u[i], v[i], delta[i]) for i in range(len(x))]).mean()


def slow_distance_relations(features):
    x = F.normalize(features, dim=-1)
    count = len(x)
    psi = {(i, j): (x[i] - x[j]).norm() for i in range(count) for j in range(count) if i != j}
    mean = sum(psi.values()) / len(psi)
    return {pair: value / mean for pair, value in psi.items()}


def slow_angle_relations(features):
    x = F.normalize(features, dim=-1)
    triples = [(i, j, k) for i in range(len(x)) for j in range(len(x)) for k in range(len(x)) if len({i, j, k}) == 3]
    return {(i, j, k): F.normalize(x[i] - x[j], dim=0) @ F.normalize(x[k] - x[j], dim=0) for i, j, k in triples}


def slow_huber(difference):
    size = abs(difference)
    return 0.5 * size**2 if size < 1 else size - 0.5


SLOW = {
    "mae": lambda x, e: (entries(x) - entries(e)).abs().mean(),
    "mse": lambda x, e: (entries(x) - entries(e)).pow(2).mean(),
    "cumulative_l1": lambda x, e: (torch.cumsum(entries(x), 0) - torch.cumsum(entries(e), 0)).abs().mean(),
    "row_kl": slow_row_kl,
}


def slow_structure(student, image, text, *, fusion_weight, temperature, distance, cost_features=None, centred=False):
    """Three scalars: kd, kdi, kdt."""
    if distance.startswith("rkd"):
        relations_of = slow_distance_relations if distance == "rkd_distance" else slow_angle_relations
        f, i, t = relations_of(student), relations_of(image), relations_of(text)
        e = {key: fusion_weight * t[key] + (1 - fusion_weight) * i[key] for key in f}
        return [sum(slow_huber(x[key] - e[key]) for key in e) / len(e) for x in (f, i, t)]
    f, i, t = (slow_cosines(x, temperature) for x in (student, image, text))
    if centred:
        f, i, t = (x - entries(x).mean() for x in (f, i, t))
    e = fusion_weight * t + (1 - fusion_weight) * i
    if distance == "wasserstein":
        return [slow_wasserstein(f, e, cost_features), torch.tensor(0.0), torch.tensor(0.0)]
    return [SLOW[distance](x, e) for x in (f, i, t)]


def slow_mean_relation(student, image, text, *, fusion_weight, temperature):
    f, i, t = (entries(slow_cosines(x, temperature)) for x in (student, image, text))
    return (f - (fusion_weight * t + (1 - fusion_weight) * i).mean()).abs().mean()
