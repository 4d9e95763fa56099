"""Six recalls and twelve NDCG of the official protocol, against one query at a time as in the official code.

The slow twin goes query by query and cutoff by cutoff, and scans the entire relevance matrix for a non-zero entry each
time (row 32 of FIDELITY.md); the second row leaves that scan out. Both sides are timed in float32 and compared on some
queries in float64, where rounding changes no ranking.
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
    """Unit features in float64, five captions per picture, and relevance in float32."""
    rng = np.random.default_rng(0)
    z, w = (rng.normal(size=(count, width)) for count in (images, 5 * images))
    z, w = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (z, w))
    return z, w, np.repeat(np.arange(images), 5), rng.random((5 * images, images), dtype=np.float32)


def slow_ndcg(scores, relevance, k: int) -> float:
    """NDCG in percent, with linear gain and discount 1 / log2(rank + 1)."""
    discounts = 1 / np.log2(np.arange(2, k + 2))
    gains = relevance[np.argsort(scores)[::-1][:k]].astype(np.float64)
    ideal = np.sort(relevance)[::-1][:k].astype(np.float64)
    return 100 * (gains @ discounts[: len(gains)]) / (ideal @ discounts[: len(ideal)])


def graded_list(name: str, i: int, z, w, q, R, cross):
    """Scores and relevance of the list of one query under the official protocol; ``cross [I, C]``: cosines."""
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
    """Every metric for some query images and query captions; ``cross [I, C]``: all cosines."""
    z, w, owner, R = inputs
    q = 5 * np.arange(len(z))
    values: dict[str, list[float]] = {}
    for i in images:
        order = np.argsort(cross[i])[::-1]
        rank = min(np.flatnonzero(order == c)[0] for c in np.flatnonzero(owner == i))
        for k in (1, 5, 10):
            values.setdefault(f"i2t/R@{k}", []).append(100.0 * (rank < k))
    for c in captions:
        rank = np.flatnonzero(np.argsort(cross[:, c])[::-1] == owner[c])[0]
        for k in (1, 5, 10):
            values.setdefault(f"t2i/R@{k}", []).append(100.0 * (rank < k))
    for name in ("i2i", "t2t", "i2it", "t2it"):
        for k in KS:
            for i in images:
                if look and not R.any():
                    continue
                values.setdefault(f"{name}/NDCG@{k}", []).append(slow_ndcg(*graded_list(name, i, z, w, q, R, cross), k))
    return values


def comparison(images: int, sampled: int, repeats: int, at_least: float, look: bool = True) -> Row:
    """One row; the twin answers ``sampled`` queries, from which its time for all is extrapolated."""
    exact = world(images)
    inputs = [array.astype(np.float32) if array.dtype == np.float64 else array for array in exact]
    stride = max(1, images // sampled)
    image_queries, text_queries = np.arange(0, images, stride), np.arange(0, 5 * images, stride)
    compared = image_queries[:20], text_queries[:100]
    slow = slow_suite(exact, exact[0] @ exact[1].T, *compared)
    metrics = evaluate_retrieval(*exact, protocol="official", per_query=True)
    ours = {key: metrics[key][compared[key.startswith("t2i/")]] for key in slow}
    difference = largest_difference(ours, {key: np.array(values) for key, values in slow.items()})
    begin = time.perf_counter()
    cross = inputs[0] @ inputs[1].T
    shared = time.perf_counter() - begin  # does not grow with the number of queries
    timing = alternate(
        lambda: evaluate_retrieval(*inputs, protocol="official"),
        lambda: slow_suite(inputs, cross, image_queries, text_queries, look),
        repeats,
        warm_up=False,
    )
    count = len(image_queries)
    theirs = shared + timing.theirs * images / count
    extrapolated = "" if count == images else f", extrapolated from {count} of {images:,} queries"
    return speed_row(
        f"metric suite, {images:,} × {5 * images:,}",
        f"one query at a time{' as the official code does' if look else ', without the repeated look'}{extrapolated}",
        theirs / timing.ours,
        at_least if look else None,
        equal=(difference, 1e-9),
        notes=f"{duration(timing.ours)} and {duration(theirs)}",
        seconds=[timing.ours, theirs],
    )


def rows(options: Options) -> list[Row]:
    """The full size of Flickr30k, that of COCO with a sample of the twin's queries, and the memory at that size."""
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
    inputs = [array.astype(np.float32) if array.dtype == np.float64 else array for array in world(images)]
    used = sum(array.nbytes for array in inputs) / 1e9
    begin = time.perf_counter()
    with PeakMemory() as peak:
        evaluate_retrieval(*inputs)
    return {"s": time.perf_counter() - begin, "GB": peak.gb + used, "inputs_gb": used}
