"""Exact nearest-neighbour search, as for shortlists, against the flat index of FAISS if it is installed."""

import torch

from benchmarks._harness import Options, Row, alternate, duration, skipped, speed_row
from rvlr_lib.evaluation.rerank import shortlist
from rvlr_lib.similarity import unit_rows


def rows(options: Options) -> list[Row]:
    """1,000 queries among 25,000 rows of width 256."""
    count, queries, k = options.pick((200, 20, 5), (25_000, 200, 10), (25_000, 1000, 10))
    what, against = f"exact search, {count:,} × 256, k = {k}", "FAISS flat, the same threads"
    try:
        import faiss
    except ImportError:
        return [skipped(what, against, "0.9×, same neighbours", "faiss is not installed: pip install faiss-cpu")]
    generator = torch.Generator().manual_seed(0)
    rows, query_rows = (unit_rows(torch.randn(n, 256, generator=generator)) for n in (count, queries))
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = faiss.IndexFlatIP(256)
    index.add(rows.numpy())
    timing = alternate(
        lambda: shortlist(query_rows, rows, k), lambda: index.search(query_rows.numpy(), k)[1], options.pick(1, 5, 9)
    )
    different = int((timing.our_result != torch.from_numpy(timing.their_result)).sum())
    return [
        speed_row(
            what,
            against,
            timing.ratio,
            0.9,
            equal=(different, 0),
            notes=f"{duration(timing.ours / queries)} and {duration(timing.theirs / queries)} a query",
        )
    ]
