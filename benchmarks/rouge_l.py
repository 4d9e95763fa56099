"""ROUGE-L relevance: speed against ``rouge_score``, and time and memory for the 625 million pairs of COCO."""

import json
import time
from pathlib import Path

import numpy as np

from benchmarks._harness import Options, PeakMemory, Row, alternate, duration, in_child, limit_row, rounded, speed_row
from rvlr_lib.data import clean_caption, load_dataset, rouge_l_relevance


def captions(path: Path | None, images: int) -> tuple[list[str], np.ndarray, str]:
    """Cleaned captions (at most five per picture), the picture of each, and their source in words.

    Raises:
        ValueError: the file holds too few pictures.
    """
    if path is None:
        scenes = load_dataset("scenes", split="train", size=images)
        return scenes.captions, scenes.caption_image, "generated captions"
    records = json.loads(Path(path).read_text(encoding="utf-8"))[:images]
    if len(records) < images:
        raise ValueError(f"{path} holds {len(records)} pictures, {images} are needed")
    texts = [clean_caption(text) for record in records for text in record["caption"][:5]]
    return texts, np.repeat(np.arange(images), [len(record["caption"][:5]) for record in records]), "real captions"


def rows(options: Options) -> list[Row]:
    """Speed against ``rouge_score``, and the limits at the size of COCO."""
    from rouge_score.rouge_scorer import RougeScorer

    images, sampled = options.pick(20, 200, 1000), options.pick(50, 1000, 2000)
    texts, owner, source = captions(options.captions, images)
    pairs = np.random.default_rng(0).integers(0, len(texts), (sampled, 2))
    scorer = RougeScorer(["rougeL"])
    timing = alternate(
        lambda: rouge_l_relevance(texts, owner),
        lambda: [scorer.score(texts[a], texts[b])["rougeL"].fmeasure for a, b in pairs],
        options.repeats,
    )
    ours, theirs = timing.ours / len(texts) ** 2, timing.theirs / sampled
    # with the definition of rouge_score, on some cells, whose references are all scored
    cells = pairs[: options.pick(5, 20, 50)]
    best = [
        max(scorer.score(texts[r], texts[a])["rougeL"].fmeasure for r in np.flatnonzero(owner == owner[b]))
        for a, b in cells
    ]
    relevance = rouge_l_relevance(texts, owner, variant="rouge_score")[cells[:, 0], owner[cells[:, 1]]]
    speed = speed_row(
        f"ROUGE-L, {len(texts):,} × {len(texts):,} {source}",
        f"`rouge_score` on {sampled:,} pairs, per pair",
        theirs / ours,
        1500,
        equal=(float(np.abs(relevance - best).max()), 1e-6),
        notes=f"{duration(ours)} and {duration(theirs)} a pair",
        captions=source,
    )
    path = None if options.captions is None else str(options.captions)
    count = options.pick(50, 1000, 5000)
    coco = in_child(whole_gallery, path, count)
    note = f"{source}; the result alone is {rounded(coco['result_gb'])} GB"
    return [speed, limit_row(f"COCO's relevance, {5 * count:,} × {count:,}", {"s": 60, "GB": 1}, coco, note)]


def whole_gallery(path: str | None, images: int) -> dict[str, float]:
    """Seconds and peak memory of one relevance matrix."""
    texts, owner, _ = captions(Path(path) if path else None, images)
    rouge_l_relevance(texts[:10], owner[:10])
    begin = time.perf_counter()
    with PeakMemory() as peak:
        relevance = rouge_l_relevance(texts, owner)
    return {"s": time.perf_counter() - begin, "GB": peak.gb, "result_gb": relevance.nbytes / 1e9}
