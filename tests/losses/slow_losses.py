"""Slow, obvious twins of the structure loss and the draws; benchmarks/structure_loss.py measures against them."""

from itertools import permutations

import torch
import torch.nn.functional as F


def slow_hard_negatives(similarity, temperature, ids, generator):
    """One multinomial draw for each text, then one for each image."""
    draws = []
    for scores in (similarity.T, similarity):
        rows = []
        for i in range(len(scores)):
            weights = torch.softmax(scores[i] / temperature, dim=0) + 1e-5
            weights[ids == ids[i]] = 0
            rows.append(torch.multinomial(weights, 1, generator=generator))
        draws.append(torch.cat(rows))
    return tuple(draws)


def slow_cosines(features):
    """Off-diagonal entries ``[B, B - 1]``."""
    rows = F.normalize(features, dim=-1)
    return (rows @ rows.T)[~torch.eye(len(rows), dtype=torch.bool, device=rows.device)].view(len(rows), -1)


def slow_distances(features):
    distances = F.pdist(F.normalize(features, dim=-1))
    return distances / distances.mean()


def slow_angles(features):
    x = F.normalize(features, dim=-1)
    triples = permutations(range(len(x)), 3)
    return torch.stack([F.normalize(x[i] - x[j], dim=0) @ F.normalize(x[k] - x[j], dim=0) for i, j, k in triples])


def slow_wasserstein_1d(u, v, weights):
    """Area between two distribution functions, by two sorts and two searches."""
    points, zero = torch.cat([u, v]).sort().values, weights.new_zeros(1)
    (u, u_order), (v, v_order) = u.sort(), v.sort()
    u_cdf = torch.cat([zero, weights[u_order].cumsum(0)])[torch.searchsorted(u, points[:-1], right=True)]
    v_cdf = torch.cat([zero, weights[v_order].cumsum(0)])[torch.searchsorted(v, points[:-1], right=True)]
    return ((u_cdf - v_cdf).abs() * points.diff()).sum() / weights.sum()


RKD = {"rkd_distance": slow_distances, "rkd_angle": slow_angles}
SLOW = {
    "mae": lambda x, e: (x - e).abs().mean(),
    "mse": lambda x, e: (x - e).pow(2).mean(),
    "cumulative_l1": lambda x, e: (x.flatten().cumsum(0) - e.flatten().cumsum(0)).abs().mean(),
    "row_kl": lambda x, e: F.kl_div(x.log_softmax(1), e.softmax(1), reduction="batchmean"),
    **dict.fromkeys(RKD, F.huber_loss),
}


def slow_structure(student, image, text, *, fusion_weight, temperature, distance, cost_features=None, centred=False):
    """Three scalars: kd, kdi, kdt."""
    f, i, t = (RKD[distance](x) if distance in RKD else slow_cosines(x) / temperature for x in (student, image, text))
    if centred:
        f, i, t = (x - x.mean() for x in (f, i, t))
    e = fusion_weight * t + (1 - fusion_weight) * i
    if distance == "wasserstein":
        cost = 1 - slow_cosines(cost_features)
        rows = zip(e * cost, f * cost, cost, strict=True)
        return [torch.stack([slow_wasserstein_1d(*row) for row in rows]).mean(), torch.tensor(0.0), torch.tensor(0.0)]
    return [SLOW[distance](x, e) for x in (f, i, t)]
