"""NDCG of random embeddings on the official graded lists, for a file of captions.

ROUGE-L rewards any two captions for their common words, so a random ranking already has a high NDCG. The file is a JSON
list of ``{"image": name, "caption": [text, ...]}`` with five captions per image (others are ignored), like the official
test files. Each cell is ``random embeddings / exact expectation of a random ranking``. The reference values below were
computed with one random ranking per query, for COCO on 300 sampled queries: expect differences of half a point.
"""

import argparse
import json
import time

import numpy as np
import torch

from rvlr_lib.data.relevance import VARIANTS, clean_caption, rouge_l_relevance
from rvlr_lib.metrics import evaluate_retrieval, ndcg_and_floor

KS = (10, 20, 50)
LISTS = ("i2i, random", "t2t, random", "t2t, siblings first, rest random", "i2it, self first, rest random")
REFERENCE = {
    "flickr30k": ((51.5, 54.0, 58.2), (27.5, 31.5, 37.4), (81.7, 72.1, 63.7), (44.2, 44.0, 45.2)),
    "vizwiz": ((50.0, 52.4, 56.8), (28.1, 32.2, 38.1), (80.7, 71.2, 63.2), (44.8, 44.2, 45.3)),
    "coco": ((42.1, 44.1, 47.2), (27.8, 30.4, 35.0), (77.3, 66.1, 57.2), (44.3, 42.2, 41.9)),
}


def floors(relevance: np.ndarray, owner: np.ndarray, width: int, seed: int) -> list[list[float]]:
    """NDCG of the four lists at each cutoff, from random embeddings."""
    generator = torch.Generator().manual_seed(seed)
    images, captions, noise = (
        torch.randn(n, width, generator=generator) for n in (relevance.shape[1], *[len(owner)] * 2)
    )
    random = evaluate_retrieval(images, captions, owner, relevance, protocol="official", ks_ndcg=KS)
    siblings = images[owner] + 1e-3 * noise  # captions of an image are nearly equal
    grouped = evaluate_retrieval(images, siblings, owner, relevance, protocol="official", ks_ndcg=KS)
    return [
        [result[f"{name}/NDCG@{k}"] for k in KS]
        for result, name in ((random, "i2i"), (random, "t2t"), (grouped, "t2t"), (random, "i2it"))
    ]


def expectations(relevance: np.ndarray, owner: np.ndarray) -> list[list[float]]:
    """The exact expectations for the first two lists, excluding the query."""
    first = np.unique(owner, return_index=True)[1]
    rows = []
    for graded, queries in ((relevance[first], np.arange(len(first))), (relevance.T, first)):
        values: dict[int, list[np.ndarray]] = {k: [] for k in KS}
        for begin in range(0, len(graded), 250):
            block = slice(begin, begin + 250)
            exclude = np.arange(graded.shape[1]) == queries[block, None]
            scores = np.random.default_rng(0).random(exclude.shape)  # arbitrary: the floor ignores them
            for k, (_, floor) in ndcg_and_floor(scores, graded[block], KS, exclude).items():
                values[k].append(np.nan_to_num(floor))  # 0 if nothing is relevant
        rows.append([float(np.concatenate(blocks).mean()) for blocks in values.values()])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions", help="JSON list of {image, caption: [..]}")
    parser.add_argument("--reference", choices=REFERENCE, help="reference values to print below ours")
    parser.add_argument("--variant", choices=VARIANTS, default="coco", help="definition of ROUGE-L (default coco)")
    parser.add_argument("--width", type=int, default=256, help="width of the random embeddings (default 256)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    with open(args.captions, encoding="utf-8") as file:
        records = json.load(file)
    texts = [clean_caption(text) for record in records for text in record["caption"][:5]]
    owner = np.repeat(np.arange(len(records)), [len(record["caption"][:5]) for record in records])
    begin = time.perf_counter()
    relevance = rouge_l_relevance(texts, owner, variant=args.variant)
    spent = time.perf_counter() - begin
    print(
        f"{len(records)} images, {len(texts)} captions; ROUGE-L ({args.variant}) of {len(texts) ** 2 / 1e6:.0f} "
        f"million pairs in {spent:.1f} s, {1e9 * spent / len(texts) ** 2:.0f} ns per pair"
    )
    measured, expected = floors(relevance, owner, args.width, args.seed), expectations(relevance, owner)
    print(f"{'NDCG, official protocol':34}" + "".join(f"{f'@{k}':>15}" for k in KS))
    for n, name in enumerate(LISTS):
        cells = [f"{x:.1f}" for x in measured[n]]
        if n < len(expected):
            cells = [f"{cell} / {x:.1f}" for cell, x in zip(cells, expected[n], strict=True)]
        print(f"{name:34}" + "".join(f"{cell:>15}" for cell in cells))
        if args.reference:
            print(f"{'  reference':34}" + "".join(f"{x:>15.1f}" for x in REFERENCE[args.reference][n]))


if __name__ == "__main__":
    main()
