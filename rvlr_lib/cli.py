"""The ``rvlr`` command. Each command is a function: its typed arguments are the options, its docstring what it does.

Exit codes: 0 done; 1 a notebook failed, a number moved or data would spoil a result; 2 bad input; 130 interrupted. The
library raises ``ValueError`` for bad input and its message is all that is shown; ``RVLR_DEBUG=1`` shows where it came
from. A command imports what it needs when it runs, so that ``rvlr --help`` is quick.
"""

import contextlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

Assignments = list[list[str]]  # of options such as -s KEY VALUE, which may be repeated; also -s KEY=VALUE
say = partial(print, flush=True)


def config(presets: list[str], set: Assignments = []) -> None:  # noqa: B006
    """Print the settings that presets resolve to."""
    import json

    import yaml

    from rvlr_lib.config import as_dict, load_settings

    settings = json.loads(json.dumps(as_dict(load_settings(*presets, overrides=_settings(set)))))
    print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), end="")


def data_check(
    file: str, image_root: Path | None = None, decode: bool = False, max_bad_pictures: int | None = None,
    model: str = "", image_column: str | None = None, caption_column: str | None = None,
) -> int:  # fmt: skip
    """Look over a collection of your own; exit 1 if it would spoil a result."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.data import PREPARED, prepared_index
    from rvlr_lib.data.check import check

    length, context = None, 0
    if model != "none":
        from rvlr_lib.models.towers import token_counter

        length, context = token_counter(model or ModelSettings().name)
    columns = {"image_column": image_column, "caption_column": caption_column}
    report = check(prepared_index(file) if file in PREPARED else file, image_root, full=decode, token_lengths=length,
                   max_bad_pictures=max_bad_pictures, context=context, **columns)  # fmt: skip
    print(report)
    if not decode and not report.spoiled:
        print("headers only: --decode also finds pictures that are cut short")
    return int(report.spoiled)


def train(
    dataset: str = "scenes", arm: str = "rvlr", preset: str = "", method: str = "corrected",
    image_root: str | None = None, seed: int = 0, set: Assignments = [], device: str = "auto",  # noqa: B006
    out: Path | None = None, root: Path | None = None, resume: Literal["last", "no"] = "last", save_every: int = 500,
    compile: bool = False, gradient_checkpointing: bool = False, timeout: float = 1800,
) -> int:  # fmt: skip
    """Train and evaluate one arm, on one device or under torchrun; an interrupted training goes on."""
    options = {name: value for name, value in locals().items() if name != "set"}

    def run() -> int:
        from rvlr_lib.study import study

        if timeout <= 0 or save_every <= 0:
            raise ValueError(f"--timeout {timeout:g}, --save-every {save_every}: both must be above 0")
        return study.train(**options, overrides=_settings(set)) or 0  # type: ignore[attr-defined]

    return _one_of_several(run, timeout) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else _finite(run)


def reproduce(
    profile: str = "quick", parameter: Assignments = [], device: str | None = None, out: Path | None = None,  # noqa: B006
    overwrite: bool = False, check: bool = False, update_reference: bool = False,
) -> int:  # fmt: skip
    """Run the notebooks of a profile."""
    from rvlr_lib.report import reproduce as notebooks

    parameters = _pairs(parameter) | ({"device": device} if device else {})
    try:
        moved = notebooks.reproduce(profile, out=out, parameters=parameters, overwrite=overwrite, check=check,
                                    update_reference_file=update_reference, say=say)  # fmt: skip
    except notebooks.NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    if check:
        print("\n".join([f"{len(moved)} numbers moved:", *moved]) if moved else "check passed: no number moved")
    return int(bool(moved))


def study(
    profile: str = "study", tune: bool = False, seeds: str = "", jobs: int = 1, scheduler: str = "",
    results: str = "", device: str = "auto", set: Assignments = [],  # noqa: B006
) -> None:  # fmt: skip
    """Train and evaluate the cells of the imbalance study, over seeds."""
    from rvlr_lib.study import sweep

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least one process is needed")
    changes = [f"{key}={value}" for key, value in _pairs(set).items()]
    sweep.run_study(profile, tune=tune, seeds=seeds, jobs=jobs, scheduler=scheduler, results=results,  # type: ignore
                    device=device, set=changes)  # fmt: skip


def audit(
    image_features: Path | None = None, text_features: Path | None = None, captions: Path | None = None,
    dataset: str | None = None, image_root: str | None = None, split: Literal["train", "val", "test"] = "test",
    model: str = "", pretrained: str | None = None, device: str = "auto", out: Path | None = None,
) -> None:  # fmt: skip
    """Measure imbalance, retrieval, gap and structure of any model's features."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.evaluation import audit as audits
    from rvlr_lib.provenance import default_root
    from rvlr_lib.tables import to_markdown

    files = (image_features, text_features, captions)
    if all(files) == bool(dataset) or (any(files) and not all(files)):
        raise ValueError("give --image-features, --text-features and --captions, or --dataset (and --model)")
    if dataset:
        pairs, images, texts = audits.encode_with_model(dataset, model or ModelSettings().name, pretrained, split=split,
                                                        image_root=image_root, device=device)  # fmt: skip
    else:
        pairs, images, texts = audits.read_features(*files)  # type: ignore[arg-type]
    found = audits.audit(pairs, images, texts)
    path = audits.write_audit(found, (images, texts), out or default_root() / "audit" / pairs.name)
    print(to_markdown(audits.audit_table(found)))
    for part in ("imbalance", "structure"):
        print(f"\n{part}")
        for key, value in found[part].items():
            print(f"  {key}: {value:.3f}" if isinstance(value, float) else f"  {key}: {value}")
    print(f"\n{path}")


def report(
    folder: Path | None = None, claims: bool = False, profile: str = "study", results: Path | None = None,
    out: Path | None = None, insert: Path | None = None,
) -> None:  # fmt: skip
    """Write the report of a run, or the page of claims: what holds, what does not, how sure it is."""
    from rvlr_lib.report.report import CHECKOUT, write_report
    from rvlr_lib.report.reproduce import profile_path

    if bool(folder) == claims:
        raise ValueError("say what to report: a run folder such as runs/quick, or --claims")
    if folder:
        page = write_report(folder)
        return print(f"{page} and {page.with_suffix('.html').name}, tables in {page.parent / 'tables'}")
    from rvlr_lib.study.claims import claims_table, control_faults, write_claims
    from rvlr_lib.study.sweep import load_sweep, read_provenance, read_results
    from rvlr_lib.tables import insert_between, to_markdown

    results = results or CHECKOUT / "data" / "reference" / "study"
    sweep = load_sweep(profile_path(profile))
    found = read_results(results, sweep)
    command = f"rvlr study --profile {profile}"
    print(write_claims(sweep, found, out or results, command, read_provenance(results)))
    if insert:
        short = claims_table(sweep, found)[["in words", "verdict", "effect, points", "interval", "delta", "seeds"]]
        insert_between(insert, "claims", to_markdown(short))
    if faults := control_faults(sweep, found):
        print(f"controls that gain as well: {', '.join(faults)}")


def explore(folder: Path, out: Path | None = None, points: int = 0) -> None:
    """Write the explorer of a run: one HTML page to walk in."""
    from rvlr_lib.report.explorer import write_explorer

    page = write_explorer(folder, out, points=points)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")


def table(
    run: Path | None = None, select: str = "*", format: Literal["md", "csv", "tex"] = "md",
    out: Path | None = None, insert: Path | None = None,
) -> None:  # fmt: skip
    """Print the result tables of a run, write them to a file, or insert them into one."""
    from rvlr_lib.disk import write_text
    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.report import result_tables, table_text
    from rvlr_lib.tables import insert_between

    found = result_tables(run or default_root() / "quick", select)
    texts = {name: table_text(records, "md" if insert else format) for name, records in found.items()}
    if insert or format == "md":
        text = "\n".join(f"**{name}**\n\n{each}" for name, each in texts.items())
    else:
        text = "\n".join(texts.values())
    if insert:
        insert_between(insert, "results", text)
    elif out:
        write_text(out, text)
    else:
        print(text, end="")


HELP = dict(
    line.split(": ", 1)
    for line in """
arm: matching, rvlr, ... of rvlr_lib.config.ARMS
caption_column: CSV, column of the caption
captions: JSON list, per picture a caption or a list of captions
check: compare the results with data/reference/<profile>.json
claims: the page of claims instead, from the results of rvlr study
compile: torch.compile the towers' and the fusion blocks
dataset: scenes, emoji, a preset's name, or an annotation file
decode: decode every picture, not only its header
device: auto, cpu, cuda or cuda:N; under torchrun cuda, and each process has a GPU of its own
explore out: the page, explore.html of the run if not given
file: annotation file, folder or index
folder: run folder, such as runs/quick
format: md, csv with all digits, or tex for booktabs
gradient_checkpointing: less memory, a third more computing
image_column: CSV, column of the picture's path
image_features: .npy [pictures, D]
image_root: folder of the pictures, where the index says none
insert: put the table between the markers <!-- results:begin --> and end, or claims:begin and end, of this file
jobs: processes over the cells
max_bad_pictures: missing or unreadable pictures allowed in a split
method: switches of the method, corrected or official
model: any open_clip model, the default model if not given; none: captions are not measured by its context
out: output folder, below runs if not given
overwrite: replace what the folder holds of other settings
parameter: a parameter of every notebook that has it, and its value; may be repeated
points: most pictures and captions; 0 takes as many as notebook 04 drew
preset: a preset or YAML file on top of the data set's own
presets: shipped presets or YAML files, later ones win, such as flickr30k official
pretrained: open_clip tag or weight file
profile: one of notebooks/profiles, or a file that ends in .yaml
report out: of --claims, folder of the page and its tables, that of the results if not given
report results: of --claims, folder of seed-<n>.json, data/reference/study if not given
results: folder of seed-<n>.json, runs/<profile>/seeds if not given
resume: an interrupted stage goes on from its last checkpoint, or, with no, begins anew
root: folder of runs and cache
run: run folder, runs/quick if not given
save_every: steps between two checkpoints
scheduler: address of a Dask scheduler that takes the cells, such as tcp://host:8786
seed: of the training
seeds: such as 0-4 or 0,3; all that are planned if not given
select: pattern for <dataset>_<notebook>/<table>
set: a setting such as stage1.epochs and its value; may be repeated
split: train, val or test
table out: the file to write instead of printing
text_features: .npy [captions, D], picture by picture
timeout: seconds until a process gives up waiting for another one
tune: search the weights and the learning rate of each arm instead
update_reference: write data/reference/<profile>.json from the results
""".strip().splitlines()
)
COMMANDS: dict[str, Callable[..., int | None] | dict[str, Callable[..., int | None]]] = {
    "reproduce": reproduce, "study": study, "train": train, "audit": audit, "explore": explore, "report": report,
    "table": table, "data": {"check": data_check}, "config": config,
}  # fmt: skip
SHORT = {"set": "-s", "parameter": "-p"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    given = sys.argv[1:] if argv is None else argv
    words = [re.sub(r"^--\w+", lambda match: match[0].replace("_", "-"), word) for word in given]
    what = "Rebalanced vision-language retrieval: the reproduction companion."
    parser = _add_commands(ArgumentParser(prog="rvlr", allow_abbrev=False, description=what), COMMANDS)
    arguments = parser.parse_args(words)
    command, options = COMMANDS[arguments.command], arguments[arguments.command]
    if isinstance(command, dict):
        command, options = command[options.command], options[options.command]
    try:
        return command(**vars(options)) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("RVLR_DEBUG"):
            raise
        print(f"rvlr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrvlr: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _add_commands(parser: ArgumentParser, commands: Mapping[str, Any]) -> ArgumentParser:
    verbs = parser.add_subcommands(dest="command")
    for name, command in commands.items():
        several = isinstance(command, dict)
        text = " ".join(f"{verb}: {each.__doc__}" for verb, each in command.items()) if several else command.__doc__
        verb = ArgumentParser(allow_abbrev=False, description=text)
        verbs.add_subcommand(name, verb, help=text)
        if several:
            _add_commands(verb, command)
            continue
        for parameter in inspect.signature(command).parameters.values():
            _add_argument(verb, parameter, HELP.get(f"{name} {parameter.name}") or HELP[parameter.name])
    return parser


def _add_argument(parser: ArgumentParser, parameter: inspect.Parameter, text: str) -> None:
    name, kind, option = parameter.name, parameter.annotation, f"--{parameter.name.replace('_', '-')}"
    if kind is bool:
        parser.add_argument(option, action="store_true", help=text)
    elif kind is Assignments:
        parser.add_argument(SHORT[name], option, nargs="+", action="append", default=[], metavar="KEY VALUE", help=text)
    elif parameter.default is inspect.Parameter.empty:
        parser.add_argument(name, **({"nargs": "+"} if kind == list[str] else {"type": kind}), help=text)
    elif name == "folder":
        parser.add_argument(name, type=kind, nargs="?", help=text)
    else:
        parser.add_argument(option, type=kind, default=parameter.default, help=text)


def _pairs(given: Iterable[Sequence[str]]) -> dict[str, str]:
    """Assignments from ``KEY VALUE`` or ``KEY=VALUE``.

    >>> _pairs([["seed", "1"], ["rate=2", "x=a=b"]])
    {'seed': '1', 'rate': '2', 'x': 'a=b'}
    """
    found: dict[str, str] = {}
    for words in given:
        pairs = [tuple(words)] if len(words) == 2 and "=" not in words[0] else [word.split("=", 1) for word in words]
        if not all(len(pair) == 2 and pair[0] for pair in pairs):
            raise ValueError(f"'{' '.join(words)}': a name and its value are needed, such as seed 1 or seed=1")
        found |= dict(pairs)
    return found


def _settings(given: Iterable[Sequence[str]]) -> dict[str, Any]:
    import yaml

    return {key: yaml.safe_load(value) for key, value in _pairs(given).items()}


def _finite(run: Callable[[], int]) -> int:
    try:
        return run()
    except FloatingPointError as error:
        print(f"rvlr: {error}. Checkpoints stay; a smaller learning_rate is the usual remedy", file=sys.stderr)
        return 1


def _one_of_several(run: Callable[[], int], timeout: float) -> None:
    """Run as one process among several; ends the process, as threads of a process group may not end in time."""
    rank, code = os.environ.get("RANK", "0"), 1
    with contextlib.ExitStack() as stack:
        if rank != "0":  # one process speaks for all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            code = _finite(run)
        except (ValueError, OSError) as error:
            print(f"rvlr, process {rank}: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        except Exception:
            traceback.print_exc()
            print(f"rvlr, process {rank}: stopped. If another process died, or was silent for {timeout:g} s, that "
                  "one's message says why. Checkpoints stay; the same command goes on from the last.",
                  file=sys.stderr)  # fmt: skip
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
