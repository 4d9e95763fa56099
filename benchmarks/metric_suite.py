"""Six recalls and twelve NDCG of the official protocol, against one query at a time as the official code does.

The twin asks query by query and cut-off by cut-off, and looks through the whole relevance matrix each time whether it
holds anything (row 32 of FIDELITY.md). The second line leaves that look out. Both sides are timed in float32 and
compared in float64, in which no rounding changes an order, on some queries.
"""

import time

import numpy as np

from benchmarks._harness import (
    Options,
    PeakMemory,
    Row,
    alternate,
    duration,
    in_child,
    largest_difference,
    limit_row,
    rounded,
    speed_row,
)
from rvlr_lib.metrics import evaluate_retrieval

KS = (10, 20, 50)


def world(images: int, width: int = 256):
    """Unit features in float64, five captions a picture, relevance in float32."""
    rng = np.random.default_rng(0)
    z, w = (rng.normal(size=(count, width)) for count in (images, 5 * images))
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, w))
    return z, w, np.repeat(np.arange(images), 5), rng.random((5 * images, images), dtype=np.float32)


def slow_ndcg(scores, relevance, k: int) -> float:
    """Percent: linear gain, 1 / log2(rank + 1)."""
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = relevance[np.argsort(scores)[::-1][:k]].astype(np.float64)
    ideal = np.sort(relevance)[::-1][:k].astype(np.float64)
    return 100 * (gains @ discounts[: len(gains)]) / (ideal @ discounts[: len(ideal)])


def graded_list(name: str, i: int, z, w, q, R, cross):
    """Scores and relevance of one query's list under the official protocol; ``cross [I, C]`` cosines."""
    if name == "i2i":
        scores, graded = z @ z[i], R[q[i]].copy()
        scores[i] = graded[i] = 0
    elif name == "t2t":
        scores, graded = w @ w[q[i]], R[:, i].copy()
        scores[q[i]] = graded[q[i]] = 0
    elif name == "i2it":
        scores, graded = np.concatenate([z @ z[i], cross[i]]), np.concatenate([R[q[i]], R[:, i]])
    else:
        scores, graded = np.concatenate([w @ w[q[i]], cross[i, q]]), np.concatenate([R[:, i], R[q, i]])
    return scores, graded


def slow_suite(inputs, cross, images, captions, look: bool = True) -> dict[str, list[float]]:
    """Every value of some query images and query captions; ``cross [I, C]``: the cosines of all."""
    z, w, owner, R = inputs
    q = 5 * np.arange(len(z))
    found: dict[str, list[float]] = {}
    for i in images:
        order = np.argsort(cross[i])[::-1]
        rank = min(np.flatnonzero(order == c)[0] for c in np.flatnonzero(owner == i))
        for k in (1, 5, 10):
            found.setdefault(f"i2t/R@{k}", []).append(100.0 * (rank < k))
    for c in captions:
        rank = np.flatnonzero(np.argsort(cross[:, c])[::-1] == owner[c])[0]
        for k in (1, 5, 10):
            found.setdefault(f"t2i/R@{k}", []).append(100.0 * (rank < k))
    for name in ("i2i", "t2t", "i2it", "t2it"):
        for k in KS:
            for i in images:
                if look and not R.any():
                    continue
                found.setdefault(f"{name}/NDCG@{k}", []).append(slow_ndcg(*graded_list(name, i, z, w, q, R, cross), k))
    return found


def comparison(images: int, sampled: int, repeats: int, at_least: float, look: bool = True) -> Row:
    """One line; the twin answers ``sampled`` of the queries and is taken to need as long for each of the others."""
    exact = world(images)
    inputs = [part.astype(np.float32) if part.dtype == np.float64 else part for part in exact]
    every = max(1, images // sampled)
    asked, told = np.arange(0, images, every), np.arange(0, 5 * images, every)
    few, fewer = asked[:20], told[:100]
    slow = slow_suite(exact, exact[0] @ exact[1].T, few, fewer)
    found = evaluate_retrieval(*exact, protocol="official", per_query=True)
    ours = {key: found[key][fewer if key.startswith("t2i/") else few] for key in slow}
    difference = largest_difference(ours, {key: np.array(values) for key, values in slow.items()})
    begin = time.perf_counter()
    cross = inputs[0] @ inputs[1].T
    shared = time.perf_counter() - begin  # the one part that does not grow with the queries
    timing = alternate(
        lambda: evaluate_retrieval(*inputs, protocol="official"),
        lambda: slow_suite(inputs, cross, asked, told, look),
        repeats,
        warm_up=False,
    )
    theirs = shared + timing.theirs * images / len(asked)
    part = "" if len(asked) == images else f", extrapolated from {len(asked)} of {images:,} queries"
    return speed_row(
        f"metric suite, {images:,} × {5 * images:,}",
        f"one query at a time{' as the official code does' if look else ', without the repeated look'}{part}",
        theirs / timing.ours,
        at_least if look else None,
        equal=(difference, 1e-9),
        notes=f"{duration(timing.ours)} and {duration(theirs)}",
        seconds=[timing.ours, theirs],
    )


def rows(options: Options) -> list[Row]:
    """Flickr30k's size in full, COCO's with a sample of the twin's queries, and COCO's memory."""
    small, sampled = options.pick((30, 30), (300, 100), (1000, 1000))
    large, few = options.pick((60, 6), (1000, 10), (5000, 10))
    repeats = options.pick(1, 1, 3)
    memory = in_child(whole_suite, large)
    note = f"all lists in {duration(memory['s'])}, {rounded(memory['inputs_gb'])} GB of it are the inputs"
    return [
        comparison(small, sampled, repeats, 30),
        comparison(small, max(10, sampled // 5), repeats, 30, look=False),
        comparison(large, few, options.pick(1, 1, 2), 100),
        limit_row(f"the same, {large:,} × {5 * large:,}, memory", {"GB": 4}, memory, note),
    ]


def whole_suite(images: int) -> dict[str, float]:
    """Seconds and peak memory of the corrected protocol, which has the most lists."""
    inputs = [part.astype(np.float32) if part.dtype == np.float64 else part for part in world(images)]
    used = sum(part.nbytes for part in inputs) / 1e9
    begin = time.perf_counter()
    with PeakMemory() as peak:
        evaluate_retrieval(*inputs)
    return {"s": time.perf_counter() - begin, "GB": peak.gb + used, "inputs_gb": used}
