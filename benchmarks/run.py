"""Run the benchmarks: one table of ratios on screen, in PERFORMANCE.md and, with the machine described, as JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._harness import ROOT, SIZES, Options, Row, as_json, load, machine, slug, table
from rvlr_lib.disk import write_text
from rvlr_lib.tables import insert_between

NAMES = ("rouge_l", "metric_suite", "hard_negatives", "reranking", "search", "notebook_overhead", "training_step",
         "losses", "structure_loss")  # fmt: skip
PAGE, RESULTS = ROOT / "PERFORMANCE.md", ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status 1 where a goal was missed (or, at a smaller size, results differ), 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"some of: {', '.join(NAMES)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help="smaller sizes, some minutes")
    size.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="show that everything runs")
    parser.add_argument("--captions", type=Path, help="JSON list of {image, caption: [...]}; else drawn scenes'")
    parser.add_argument("--no-write", action="store_true", help="leave PERFORMANCE.md and the JSON as they are")
    args = parser.parse_args(arguments)
    if args.captions and not args.captions.is_file():
        parser.error(f"--captions {args.captions} is not there")
    options = Options(args.size or SIZES[-1], args.captions)
    described, found = machine(), []
    begin = time.monotonic()
    for name in args.only or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found += load(name).rows(options)
    if options.size != SIZES[-1]:
        found = [row.without_goal() for row in found]
    print(caption(described, options) + "\n\n" + table(found))
    print(f"{(time.monotonic() - begin) / 60:.1f} min", file=sys.stderr)
    if options.size == "full" and not args.only and not args.no_write:
        print(f"written: {', '.join(str(path.relative_to(ROOT)) for path in write(described, options, found))}")
    return int(any(row.met is False for row in found))


def caption(described: dict, options: Options) -> str:
    """One sentence on the machine and the size."""
    device = f", {described['gpu']}" if described["gpu"] else ", no GPU"
    busy = f"; load {described['busy_before']} before the start" if described["busy_before"] else ""
    return (
        f"*{described['cpu']}, {described['cores']} cores ({described['threads']} threads for PyTorch), "
        f"{described['ram_gb']} GB{device}; Python {described['python']}, PyTorch {described['torch']}; "
        f"size {options.size}{busy}.*"
    )


def write(described: dict, options: Options, found: Sequence[Row], page: Path = PAGE, results: Path = RESULTS):
    """The table into the page and everything into ``<machine>.json``; both paths."""
    target = results / f"{slug(described)}.json"
    record = {"machine": described, "size": options.size, "rows": as_json(found)}
    write_text(target, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    insert_between(page, "benchmarks", caption(described, options) + "\n\n" + table(found))
    return page, target


if __name__ == "__main__":
    sys.exit(main())
