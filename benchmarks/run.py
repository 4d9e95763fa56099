"""Run the benchmarks; print the table, write it to PERFORMANCE.md and, with a description of the machine, to JSON."""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks._harness import ROOT, SIZES, Options, Row, as_json, insert_between, load, machine, slug, table
from rvlr_lib.disk import write_text

NAMES = ("rouge_l", "metric_suite", "hard_negatives", "reranking", "search", "notebook_overhead", "training_step",
         "losses", "structure_loss")  # fmt: skip
PAGE, RESULTS = ROOT / "PERFORMANCE.md", ROOT / "benchmarks" / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and return the exit status: 1 if a goal was missed (at a smaller size: if results differ), 2 on bad input."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=NAMES, metavar="NAME", help=f"run some of: {', '.join(NAMES)}")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help="smaller sizes: a few minutes")
    size.add_argument("--tiny", action="store_const", const="tiny", dest="size", help="only check that everything runs")
    parser.add_argument("--captions", type=Path, help="JSON list of {image, caption: [...]} (default: generated)")
    parser.add_argument("--no-write", action="store_true", help="leave PERFORMANCE.md and the JSON file unchanged")
    args = parser.parse_args(arguments)
    if args.captions and not args.captions.is_file():
        parser.error(f"--captions {args.captions} is missing")
    options = Options(args.size or SIZES[-1], args.captions)
    description, results = machine(), []
    begin = time.monotonic()
    for name in args.only or NAMES:
        print(f"{name} ...", file=sys.stderr, flush=True)
        results += load(name).rows(options)
    if options.size != SIZES[-1]:
        results = [row.without_goal() for row in results]
    print(caption(description, options) + "\n\n" + table(results))
    print(f"{(time.monotonic() - begin) / 60:.1f} min", file=sys.stderr)
    if options.size == "full" and not args.only and not args.no_write:
        print(f"written: {', '.join(str(path.relative_to(ROOT)) for path in write(description, options, results))}")
    return int(any(row.met is False for row in results))


def caption(description: dict, options: Options) -> str:
    """One line on the machine and the size."""
    device = f", {description['gpu']}" if description["gpu"] else ", no GPU"
    busy = f"; load {description['busy_before']} before the start" if description["busy_before"] else ""
    return (
        f"*{description['cpu']}, {description['cores']} cores ({description['threads']} threads for PyTorch), "
        f"{description['ram_gb']} GB{device}; Python {description['python']}, PyTorch {description['torch']}; "
        f"size {options.size}{busy}.*"
    )


def write(description: dict, options: Options, rows: Sequence[Row], page: Path = PAGE, folder: Path = RESULTS):
    """Write the table into the page and everything into ``<machine>.json``; return both paths."""
    target = folder / f"{slug(description)}.json"
    record = {"machine": description, "size": options.size, "rows": as_json(rows)}
    write_text(target, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    insert_between(page, "benchmarks", caption(description, options) + "\n\n" + table(rows))
    return page, target


if __name__ == "__main__":
    sys.exit(main())
