"""The ``rvlr`` command: a table of options, and one function per command that uses some of them.

Exit codes: 0 done; 1 a notebook failed, a number moved or data would spoil a result; 2 bad input; 130 interrupted.
``RVLR_DEBUG=1`` shows the traceback of bad input. A command imports what it needs when it runs, so ``--help`` is fast.
"""

import os
import re
import shlex
import sys
import traceback
from argparse import HelpFormatter
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

Pairs = list[list[str]]  # the values of a repeatable option such as -s KEY VALUE
POSITIONAL = object()  # in place of a default
File = Path | None
Text = str | None
OPTIONS: dict[str, tuple[Any, Any, str]] = {  # name -> type, default, help
    "arm": (str, "rvlr", "an arm of rvlr_lib.config.ARMS, such as matching"),
    "caption_column": (Text, None, "CSV: name of the caption column"),
    "captions": (File, None, "JSON list with a caption or a list of captions for each picture"),
    "check": (bool, False, "compare the results with data/reference/<profile>.json"),
    "claims": (bool, False, "write the page of claims from the results of rvlr study instead"),
    "compile": (bool, False, "compile losses and towers together with torch.compile: takes about a minute"),
    "dataset": (Text, None, "scenes, emoji, another data set with a preset, or an annotation file"),
    "decode": (bool, False, "decode every picture instead of reading only its header"),
    "device": (Text, "auto", "auto, cpu, cuda or cuda:N; under torchrun, cuda gives each process its own GPU"),
    "file": (str, POSITIONAL, "annotation file, folder or index"),
    "folder": (File, POSITIONAL, "run folder, such as runs/quick"),
    "format": (Literal["md", "csv", "tex"], "md", "Markdown, CSV with all digits, or LaTeX for booktabs"),
    "gradient_checkpointing": (bool, False, "use less memory, at the cost of a third more computation"),
    "image_column": (Text, None, "CSV: name of the column with picture paths"),
    "image_features": (File, None, ".npy, .npz, .pt or .safetensors file of shape [pictures, D]"),
    "image_root": (Text, None, "folder of the pictures; by default as the index says, else that of the file"),
    "jobs": (PositiveInt, 1, "number of single-threaded processes that compute cells"),
    "keep_flagged": (bool, False, "also use captions flagged is_rejected or is_precanned"),
    "max_bad_pictures": (NonNegativeInt, None, "missing or unreadable pictures allowed per split"),
    "method": (Literal["corrected", "official"], "corrected", "switches of the method"),
    "model": (str, "", "open_clip model or local-dir:FOLDER"),
    "out": (File, None, "file or folder to write (default: in the run, or runs/<profile>, runs/train/…, runs/audit/…)"),
    "overwrite": (bool, False, "replace results of other settings in the output folder"),
    "parameter": (Pairs, [], "a parameter of every notebook that has it, and its value; may be repeated"),
    "preset": (str, "", "a preset or YAML file applied on top of the data set's preset"),
    "presets": (str, POSITIONAL, "shipped presets or YAML files, such as flickr30k official; later ones win"),
    "pretrained": (Text, None, "open_clip tag or weight file"),
    "profile": (str, "study", "a profile of notebooks/profiles, or a .yaml file"),
    "regime_map": (bool, False, "only compute the map of pulls and teachers"),
    "results": (str, "", "folder of the study's results (default: the committed data/reference/<profile>)"),
    "resume": (Literal["last", "no"], "last", "last: resume an interrupted stage from its checkpoint; no: start over"),
    "root": (File, None, "folder of runs and cache (default: runs)"),
    "run": (File, None, "run folder (default: runs/quick)"),
    "save_every": (PositiveInt, 500, "steps between checkpoints"),
    "scheduler": (str, "", "address of a Dask scheduler to compute the cells, such as tcp://host:8786"),
    "seal": (bool, False, "only seal claims and chosen values, before the first seed"),
    "seed": (int, 0, "of everything: training, the scenes' world, the dial's draws"),
    "select": (str, "*", "glob pattern for tables, which are named <dataset>_<notebook>_<table>"),
    "set": (Pairs, [], "a setting such as stage1.epochs, and its value; may be repeated"),
    "split": (Literal["train", "val", "test"], "test", "split of the data set"),
    "text_features": (File, None, "the same of shape [captions, D], grouped in picture order"),
    "timeout": (PositiveFloat, 1800, "seconds before a process gives up waiting for another"),
    "tune": (bool, False, "only search the learning rate and strengths of each arm"),
    "update_reference": (bool, False, "write the results to data/reference/<profile>.json"),
}
FLAGS = {"set": ["-s"], "parameter": ["-p"]}
NARGS = {"folder": "?", "presets": "+"}  # of positional arguments that are optional or repeatable


def reproduce(parameter: Pairs, device: str, **options: Any) -> int:
    """Run the notebooks of a profile."""
    from rvlr_lib.report.reproduce import NotebookError, reproduce

    try:
        moved = reproduce(parameters=dict(parameter) | ({"device": device} if device else {}), **options)
    except NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    if options["check"]:
        print("\n".join([f"{len(moved)} numbers moved:", *moved]) if moved else "check passed: no number moved")
    return int(bool(moved))


def study(**options: Any) -> None:
    """Tune, seal or compute the study of a profile, in local processes or on a cluster."""
    from rvlr_lib.study.sweep import run_study

    run_study(**options)


def train(set: Pairs, **options: Any) -> None:
    """Train and evaluate one arm on one device or under torchrun; resumes an interrupted training."""
    from rvlr_lib.study.study import train

    train(**(options | settings(set)))


def audit(dataset: str, model: str, device: str, out: File, overwrite: bool, **options: Any) -> None:
    """Measure imbalance, retrieval, modality gap and structure of any model's features."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.disk import claimed_folder, write_json
    from rvlr_lib.evaluation import audit as audits
    from rvlr_lib.provenance import data_name, default_root, provenance, real_path
    from rvlr_lib.tables import to_markdown, write_table
    from rvlr_lib.training.loop import choose_device

    files = [options.pop(name) for name in ("image_features", "text_features", "captions")]
    if all(files) == bool(dataset) or (any(files) and not all(files)):
        raise ValueError("give --image-features, --text-features and --captions, or --dataset and --model with weights")
    if all(files) and (model or options["pretrained"] or options["image_root"]):
        raise ValueError("features are given: omit --model, --pretrained and --image-root, or give --dataset instead")
    folder, chosen = out or default_root() / "audit" / data_name(dataset or str(files[2])), choose_device(device)
    encoded = audits.read_features(*files) if files[0] else None  # bad files fail before the folder is created
    sources = [real_path(name) for name in (dataset, model, *files, options["image_root"], options["pretrained"])]
    identity = {"made of": [*sources, options["split"]]}
    with claimed_folder(folder, identity, overwrite=overwrite, owned=lambda _: audits.FILES):
        encoded = encoded or audits.encode_with_model(dataset, model or ModelSettings().name, device=chosen, **options)
        record = audits.audit(*encoded, device=chosen)
        for name, table in audits.audit_tables(record).items():
            print(to_markdown(table), end="\n\n")
            write_table(table, folder, name)
        write_json(folder / "audit.json", record | {"provenance": provenance()})
        source = record["imbalance"]["index_from"]
        print(f"The index is from {source}. Baselines are measured on 40 % of the pictures: compare them alone.")
        print(folder / "audit.json")


def explore(folder: File, out: File) -> None:
    """Write the explorer of a run: one interactive HTML page of its common space."""
    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.explorer import write_explorer

    page = write_explorer(folder or default_root() / "quick", out)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")


def report(folder: File, claims: bool, profile: str, results: str) -> None:
    """Write the report of a run, or the page of claims: what holds, what does not, and how certain that is."""
    if bool(folder) == claims:
        raise ValueError("give either a run folder such as runs/quick or --claims")
    if folder:
        from rvlr_lib.report.report import write_report

        page = write_report(folder)
        return print(f"{page} and {page.with_suffix('.html').name}, tables in {page.parent / 'tables'}")
    from rvlr_lib.study.claims import write_claims

    print(write_claims(profile, results))


def table(run: File, select: str, format: str) -> None:
    """Print the result tables of a run."""
    from fnmatch import fnmatch

    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.output import read_run

    run = run or default_root() / "quick"
    read_run(run)
    paths = sorted((run / "tables").glob(f"*.{format}"))
    chosen = [path for path in paths if fnmatch(path.stem, select)]
    if not chosen:
        names = ", ".join(path.stem for path in paths) or f"none, `rvlr report {shlex.quote(str(run))}` writes them"
        raise ValueError(f"no table in {run / 'tables'} matches '{select}'; there are: {names}")
    texts = [(f"**{path.stem}**\n\n" if format == "md" else "") + path.read_text(encoding="utf-8") for path in chosen]
    print("\n".join(texts), end="")


def data(check: str, decode: bool, keep_flagged: bool, **options: Any) -> int:
    """Check a collection of your own; exits with 1 if it would spoil a result."""
    from rvlr_lib.data.check import check as check_collection

    report = check_collection(options.pop("file"), full=decode, keep_flagged=keep_flagged or None, **options)
    print(report)
    if not decode and not report.spoiled:
        print("read headers only: --decode also finds truncated pictures")
    return int(report.spoiled)


def config(presets: list[str], set: Pairs) -> None:
    """Print the settings that presets resolve to."""
    from rvlr_lib.config import load_settings
    from rvlr_lib.disk import to_json_types

    values = to_json_types(asdict(load_settings(*presets, overrides=settings(set))))
    print(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), end="")


COMMANDS: dict[Callable[..., int | None], str] = {  # options of each command; "=" overrides the default
    reproduce: "profile=quick parameter device= out overwrite check update_reference",
    study: "profile tune seal regime_map jobs scheduler results device root",
    train: "dataset=scenes arm preset method image_root seed set device out overwrite root resume save_every compile "
    "gradient_checkpointing timeout",
    audit: "image_features text_features captions dataset image_root split model pretrained device out overwrite",
    explore: "folder out",
    report: "folder claims profile results",
    table: "run select format",
    data: "file image_root decode max_bad_pictures image_column caption_column keep_flagged",
    config: "presets set",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; under torchrun, exit with it, and only the first process prints."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    words = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if argv is None and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # otherwise file names are misread
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    if undecodable := [word for word in words if word.encode("utf-8", "replace").decode() != word]:
        parser().error(f"{undecodable[0]!a} is not UTF-8: rename the file")
    parsed = parser().parse_args([re.sub(r"^--\w+", lambda flag: flag[0].replace("_", "-"), word) for word in words])
    command = next(function for function in COMMANDS if function.__name__ == parsed.command)
    several, rank = os.environ.get("WORLD_SIZE", "1") != "1", os.environ.get("RANK", "0")
    who = f"rvlr, process {rank}" if several else "rvlr"
    with redirect_stdout(open(os.devnull, "w") if several and rank != "0" else sys.stdout):
        try:
            code, message = command(**vars(parsed[parsed.command])) or 0, ""
        except BrokenPipeError:  # the reader of `rvlr ... | head` has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code, message = 141, ""
        except (ValueError, OSError) as error:
            if os.environ.get("RVLR_DEBUG"):
                raise
            code, message = 2, f"{who}: {error}"
        except FloatingPointError as error:
            code, message = 1, f"{who}: {error}. Checkpoints are kept; a smaller learning_rate usually helps"
        except KeyboardInterrupt:
            code, message = 130, f"\n{who}: interrupted; run the same command again to continue"
        except Exception:
            if not several:
                raise
            hint = "If another process died or timed out, its message says why. Checkpoints are kept."
            code, message = 1, f"{traceback.format_exc()}{who}: stopped. {hint}"
    print(message, end="\n" * bool(message), file=sys.stderr, flush=True)
    if several:
        sys.stdout.flush()
        os._exit(code)  # threads of a process group may not end in time
    return code


class OneLineParser(ArgumentParser):
    """A parser that reports a wrong option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message and the command that lists the options; exit with 2."""
        from rvlr_lib.tables import plain_message

        text = plain_message(message).replace('Parser key "check"', "data")
        text = re.sub(r'Parser key "(\w+)":', lambda key: f"--{key[1].replace('_', '-')}:", text)
        usage = " ".join([getattr(ex, "subcommand_parser", self).prog, *re.findall(r"required: (\w+)\.", text)])
        print(f"rvlr: {text}; `{usage} --help` lists the options", file=sys.stderr)
        sys.exit(2)


def parser() -> ArgumentParser:
    """The parser of all commands."""
    main_parser = OneLineParser(prog="rvlr", allow_abbrev=False, description="Rebalanced vision-language retrieval.")
    main_parser.formatter_class = HelpFormatter  # jsonargparse's own also prints Python types and empty defaults
    commands = main_parser.add_subcommands(dest="command")
    for function, options in COMMANDS.items():
        command = OneLineParser(description=function.__doc__)
        commands.add_subcommand(function.__name__, command, help=function.__doc__)
        command.prog = f"rvlr {function.__name__}"
        if function is data:
            command.add_argument("check", type=Literal["check"], help="the only action")
        for name, overridden, value in (option.partition("=") for option in options.split()):
            kind, default, text = OPTIONS[name]
            flags = [*FLAGS.get(name, []), f"--{name.replace('_', '-')}"]
            if default is POSITIONAL:
                command.add_argument(name, type=kind, help=text, nargs=NARGS.get(name))
            elif kind is bool:
                command.add_argument(*flags, action="store_true", help=text)
            elif kind is Pairs:
                command.add_argument(*flags, nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help=text)
            else:
                default = (value or None) if overridden else default
                text += "" if default in (None, "") else f" (default: {default})"
                command.add_argument(*flags, type=kind, default=default, help=text)
    return main_parser


def settings(pairs: Pairs) -> dict[str, Any]:
    """Settings such as ``stage1.epochs`` with their values, read as YAML."""
    values = {}
    for key, value in pairs:
        try:
            values[key] = yaml.safe_load(value)
        except Exception as error:  # the parser also raises what its types raise
            raise ValueError(f"-s {key} {value!r} is not YAML, quote strings: {' '.join(str(error).split())}") from None
    return values
