"""The ``rvlr`` command. A new verb is two functions, its arguments and its work, and a line in ``COMMANDS``.

Exit codes: 0 done; 1 a notebook failed or a number moved; 2 bad input; 130 interrupted. The library raises
``ValueError`` for bad input and its message is all that is shown; ``RVLR_DEBUG=1`` shows where it came from. Each verb
imports what it needs when it runs, so ``rvlr --help`` is quick.
"""

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from rvlr_lib.report.cli_data import config_arguments, config_run, data_arguments, data_run
from rvlr_lib.report.cli_train import train_arguments, train_run


@dataclass(frozen=True)
class Command:
    """A verb: what it says of itself, its arguments, and its work, which returns the exit code."""

    help: str
    arguments: Callable[[ArgumentParser], None]
    run: Callable[[Namespace], int]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    what = "Rebalanced vision-language retrieval: the reproduction companion."
    parser = ArgumentParser(prog="rvlr", allow_abbrev=False, description=what)
    verbs = parser.add_subcommands(dest="command")
    for name, command in COMMANDS.items():
        verb = ArgumentParser(allow_abbrev=False, description=command.help)
        verbs.add_subcommand(name, verb, help=command.help)  # before its arguments: a verb may have verbs of its own
        command.arguments(verb)
    arguments = parser.parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments[arguments.command])
    except (ValueError, OSError) as error:
        if os.environ.get("RVLR_DEBUG"):
            raise
        print(f"rvlr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrvlr: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _reproduce_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--profile", default="quick", help="one of notebooks/profiles, or a file that ends in .yaml")
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"),
                        help="set a parameter of every notebook that has it; may be repeated")  # fmt: skip
    parser.add_argument("--device", type=str | None, help="auto, cpu, cuda or cuda:N; short for -p device")
    parser.add_argument("--out", type=Path | None, help="run folder, runs/<profile> if not given")
    parser.add_argument("--overwrite", action="store_true", help="replace what the folder holds of other settings")
    parser.add_argument("--check", action="store_true", help="compare the results with data/reference/<profile>.json")
    parser.add_argument("--update-reference", action="store_true", help="write that file from the results")


def _reproduce(arguments: Namespace) -> int:
    from rvlr_lib.report.reproduce import NotebookError, reproduce

    parameters = dict(arguments.parameter)
    if arguments.device:
        parameters["device"] = arguments.device
    try:
        moved = reproduce(
            arguments.profile,
            out=arguments.out,
            parameters=parameters,
            overwrite=arguments.overwrite,
            check=arguments.check,
            update=arguments.update_reference,
            say=partial(print, flush=True),
        )
    except NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    if arguments.check:
        print(f"{len(moved)} numbers moved:\n" + "\n".join(moved) if moved else "check passed: no number moved")
    return 1 if moved else 0


def _study_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="study", help="a profile with a 'study' part, or a file that ends in .yaml"
    )
    parser.add_argument("--seeds", type=str, default="", help="such as 0-4 or 0,3; all that are planned if not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes over the cells")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path | None, help="folder of seed-<n>.json, runs/<profile>/seeds if not given")
    parser.add_argument("-s", "--set", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                        help="set a dotted setting everywhere, such as stage1.epochs 2; may be repeated")  # fmt: skip


def _study(arguments: Namespace) -> int:
    import yaml

    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.profiles import profile_path
    from rvlr_lib.study.sweep import load_sweep, parse_seeds, run_sweep

    path = profile_path(arguments.profile)
    sweep = load_sweep(path, {key: yaml.safe_load(value) for key, value in arguments.set})
    seeds = parse_seeds(arguments.seeds) if arguments.seeds else list(range(sweep.seeds))
    if arguments.jobs < 1:
        raise ValueError(f"--jobs {arguments.jobs}: at least one process is needed")
    results = arguments.out or default_root() / path.stem / "seeds"
    run_sweep(sweep, seeds, results, jobs=arguments.jobs, device=arguments.device, say=partial(print, flush=True))
    return 0


def _audit_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--image-features", type=Path | None, help=".npy, .npz, .pt or .safetensors [pictures, D]")
    parser.add_argument("--text-features", type=Path | None, help="likewise [captions, D], picture by picture")
    parser.add_argument("--captions", type=Path | None, help="JSON list, per picture a caption or a list of captions")
    parser.add_argument("--dataset", type=str | None, help="instead of arrays: a data set for --model to encode")
    parser.add_argument("--image-root", type=str | None, help="folder of the data set's pictures")
    parser.add_argument("--split", default="test", help="train, val or test")
    parser.add_argument("--model", default="effnet_minilm", help="any open_clip model")
    parser.add_argument("--pretrained", type=str | None, help="open_clip tag or weight file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--out", type=Path | None, help="folder of the audit, runs/audit/<name> if not given")


def _audit(arguments: Namespace) -> int:
    from rvlr_lib.evaluation.audit import audit, audit_table, encode_with_model, peers_table, read_features, write_audit
    from rvlr_lib.provenance import default_root
    from rvlr_lib.tables import to_markdown
    from rvlr_lib.training.loop import choose_device

    device = choose_device(arguments.device)
    files = (arguments.image_features, arguments.text_features, arguments.captions)
    if all(files) == bool(arguments.dataset) or (any(files) and not all(files)):
        raise ValueError("give --image-features, --text-features and --captions, or --dataset (and --model)")
    if arguments.dataset:
        dataset, images, texts = encode_with_model(
            arguments.dataset, arguments.model, arguments.pretrained, split=arguments.split,
            image_root=arguments.image_root, device=device,
        )  # fmt: skip
    else:
        dataset, images, texts = read_features(*files)
    found = audit(dataset, images, texts, device=device)
    path = write_audit(found, arguments.out or default_root() / "audit" / dataset.name)
    print(to_markdown(audit_table(found)), to_markdown(peers_table(found)), sep="\n\n")
    for key, value in {**found["imbalance"], **found["structure"]}.items():
        print(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}")
    print(path)
    return 0


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path | None, nargs="?", help="run folder, such as runs/quick: its report")
    parser.add_argument("--claims", action="store_true", help="the page of claims, from the results of `rvlr study`")
    parser.add_argument("--profile", default="study", help="the profile whose questions are answered")
    parser.add_argument(
        "--results", type=Path | None, help="folder of seed-<n>.json, data/reference/study if not given"
    )
    parser.add_argument(
        "--out", type=Path | None, help="folder of the page and its tables, that of the results' if not given"
    )
    parser.add_argument("--insert", type=Path | None, help="put the table between the claims markers of this file")


def _report(arguments: Namespace) -> int:
    if bool(arguments.folder) == arguments.claims:
        raise ValueError("say what to report: a run folder such as runs/quick, or --claims")
    if arguments.claims:
        return _claims(arguments)
    from rvlr_lib.report.publish import write_report

    page = write_report(arguments.folder)
    print(f"{page} and {page.with_suffix('.html').name}, tables in {page.parent / 'tables'}")
    return 0


def _claims(arguments: Namespace) -> int:
    from rvlr_lib.report.profiles import CHECKOUT, profile_path
    from rvlr_lib.study.claims import claims_table, control_faults, write_claims
    from rvlr_lib.study.sweep import load_sweep, read_provenance, read_results
    from rvlr_lib.tables import insert_between, to_markdown

    folder = arguments.results or CHECKOUT / "data" / "reference" / "study"
    sweep = load_sweep(profile_path(arguments.profile))
    results = read_results(folder, sweep)
    command = f"rvlr study --profile {arguments.profile}"
    page = write_claims(sweep, results, arguments.out or folder, command, read_provenance(folder))
    print(page)
    if arguments.insert:
        short = claims_table(sweep, results)[["in words", "verdict", "effect, points", "interval", "delta", "seeds"]]
        insert_between(arguments.insert, "claims", to_markdown(short))
    faults = control_faults(sweep, results)
    if faults:
        print(f"controls that come out as helping, so something is wrong: {', '.join(faults)}", file=sys.stderr)
    return 1 if faults else 0


def _table_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--run", type=Path | None, help="run folder, runs/quick if not given")
    parser.add_argument("--select", default="*", help="pattern for <dataset>_<notebook>/<table>")
    parser.add_argument("--insert", type=Path | None, help="put the tables between the results markers of this file")


def _table(arguments: Namespace) -> int:
    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.report import tables
    from rvlr_lib.tables import insert_between

    text = tables(arguments.run or default_root() / "quick", arguments.select)
    if arguments.insert:
        insert_between(arguments.insert, "results", text)
    else:
        print(text)
    return 0


def _fidelity_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--run", type=Path | None, help="run folder whose ablation to quote; without it data/reference")
    parser.add_argument("--insert", type=Path | None, help="put the table between the fidelity markers of this file")


def _fidelity(arguments: Namespace) -> int:
    from rvlr_lib.disk import read_json
    from rvlr_lib.report.fidelity import measured, table
    from rvlr_lib.report.profiles import CHECKOUT
    from rvlr_lib.tables import insert_between

    folder = arguments.run / "results" if arguments.run else CHECKOUT / "data" / "reference" / "ablation"
    files = sorted(folder.glob("*_05_ablation.json"))
    if arguments.run and not files:
        raise ValueError(f"{arguments.run} holds no ablation: `rvlr reproduce --profile study` makes one")
    text = table(measured(read_json(files[0])) if files else None)
    if arguments.insert:
        insert_between(arguments.insert, "fidelity", text)
    else:
        print(text)
    return 0


def _explore_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder, such as runs/quick")
    parser.add_argument("--out", type=Path | None, help="the page, explore.html of the run if not given")
    parser.add_argument("--points", type=int, default=0, help="most pictures and captions; 0: as notebook 04 has it")


def _explore(arguments: Namespace) -> int:
    from rvlr_lib.report.explorer import write_explorer

    page = write_explorer(arguments.folder, arguments.out, points=arguments.points)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")
    return 0


def _figures_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="run folder, such as runs/quick")
    parser.add_argument(
        "names", nargs="*", help="names or patterns, such as 'scenes_*'; without any the names are listed"
    )
    parser.add_argument("--all", action="store_true", help="every figure of the run")
    parser.add_argument("--narrow", action="store_true", help="also as wide as a column of text, in figures/column")


def _figures(arguments: Namespace) -> int:
    from rvlr_lib.figures.redraw import figure_names, redraw_run
    from rvlr_lib.study.saved import read_run

    record = read_run(arguments.folder)
    select = ["*"] if arguments.all else arguments.names
    if not select:
        print("\n".join(figure_names(arguments.folder, record)))
        return 0
    redraw_run(arguments.folder, select, narrow=arguments.narrow, say=partial(print, flush=True))
    return 0


COMMANDS = {
    "config": Command("print the settings that presets resolve to", config_arguments, config_run),
    "data": Command("check a collection of your own", data_arguments, data_run),
    "train": Command("train and evaluate one variant, on one or more GPUs, resumable", train_arguments, train_run),
    "reproduce": Command("run the notebooks of a profile", _reproduce_arguments, _reproduce),
    "study": Command("train and evaluate the cells of the imbalance study, over seeds", _study_arguments, _study),
    "audit": Command("imbalance, retrieval, gap and structure of any model's features", _audit_arguments, _audit),
    "report": Command(
        "the report of a run, or the page of claims: what holds, what does not, how sure it is",
        _report_arguments,
        _report,
    ),
    "fidelity": Command(
        "every oddity of the official code, our switch, and what it did", _fidelity_arguments, _fidelity
    ),
    "explore": Command("write the explorer of a run: one HTML page to walk in", _explore_arguments, _explore),
    "figures": Command("draw the figures of a run again, without a model", _figures_arguments, _figures),
    "table": Command("print the result tables of a run, or insert them into a file", _table_arguments, _table),
}
