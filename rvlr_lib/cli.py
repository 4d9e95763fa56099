"""The ``rvlr`` command: a table of options, and a function a command that takes some of them.

Exit codes: 0 done; 1 a notebook failed, a number moved or data would spoil a result; 2 bad input; 130 interrupted. The
library raises ``ValueError`` for bad input and its message is all that is shown; ``RVLR_DEBUG=1`` shows where it came
from. A command imports what it needs when it runs, so that ``rvlr --help`` is quick.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentParser

Pairs = list[list[str]]  # of options such as -s KEY VALUE or -s KEY=VALUE, which may be repeated
NEEDED = object()  # in place of a default
File = Path | None
OPTIONS: dict[str, tuple[Any, Any, str]] = {  # name -> type, default, help
    "arm": (str, "rvlr", "matching, rvlr, ... of rvlr_lib.config.ARMS"),
    "caption_column": (str | None, None, "CSV: column of the caption"),
    "captions": (File, None, "JSON list, per picture a caption or a list of captions"),
    "check": (bool, False, "compare the results with data/reference/<profile>.json"),
    "claims": (bool, False, "the page of claims instead, from the results of rvlr study"),
    "compile": (bool, False, "torch.compile the towers' and the fusion blocks"),
    "dataset": (str | None, None, "scenes, emoji, a preset's name, or an annotation file"),
    "decode": (bool, False, "decode every picture, not only its header"),
    "device": (str | None, "auto", "auto, cpu, cuda or cuda:N; under torchrun cuda: a GPU for each process"),
    "file": (str, NEEDED, "annotation file, folder or index"),
    "folder": (Path, NEEDED, "run folder, such as runs/quick"),
    "format": (Literal["md", "csv", "tex"], "md", "Markdown, CSV with all digits, or LaTeX for booktabs"),
    "gradient_checkpointing": (bool, False, "less memory, a third more computing"),
    "image_column": (str | None, None, "CSV: column of the picture's path"),
    "image_features": (File, None, ".npy, .npz, .pt or .safetensors [pictures, D]"),
    "image_root": (str | None, None, "folder of the pictures, where the index says none"),
    "insert": (File, None, "put the table between the results or claims markers of this file"),
    "jobs": (int, 1, "processes over the cells"),
    "keep_flagged": (bool, False, "use captions too that are flagged is_rejected or is_precanned"),
    "max_bad_pictures": (int | None, None, "missing or unreadable pictures allowed in a split"),
    "method": (str, "corrected", "switches of the method: corrected or official"),
    "model": (str, "", "any open_clip model, the default model if not given; data check: none measures no captions"),
    "out": (File, None, "file or folder to write, in the run or below runs if not given"),
    "overwrite": (bool, False, "replace what the folder holds of other settings"),
    "parameter": (Pairs, [], "a parameter of every notebook that has it, and its value; may be repeated"),
    "points": (int, 0, "most pictures and captions; 0: as many as notebook 04 drew"),
    "preset": (str, "", "a preset or YAML file on top of the data set's own"),
    "presets": (list[str], NEEDED, "shipped presets or YAML files, later ones win: flickr30k official"),
    "pretrained": (str | None, None, "open_clip tag or weight file"),
    "profile": (str, "study", "one of notebooks/profiles, or a file that ends in .yaml"),
    "results": (str, "", "folder of seed-<n>.json; runs/<profile>/seeds, or for claims data/reference/study"),
    "resume": (Literal["last", "no"], "last", "go on from an interrupted stage's last checkpoint, or begin anew"),
    "root": (File, None, "folder of runs and cache"),
    "run": (File, None, "run folder, runs/quick if not given"),
    "save_every": (int, 500, "steps between two checkpoints"),
    "scheduler": (str, "", "address of a Dask scheduler that takes the cells, such as tcp://host:8786"),
    "seed": (int, 0, "of the training"),
    "seeds": (str, "", "such as 0-4 or 0,3; all that are planned if not given"),
    "select": (str, "*", "pattern for <dataset>_<notebook>/<table>"),
    "set": (Pairs, [], "a setting such as stage1.epochs and its value; may be repeated"),
    "split": (Literal["train", "val", "test"], "test", "of the data set"),
    "text_features": (File, None, "likewise [captions, D], picture by picture"),
    "timeout": (float, 1800, "seconds until a process gives up waiting for another one"),
    "tune": (bool, False, "search the learning rate and the strengths of each arm instead"),
    "seal": (bool, False, "fix claims and chosen values instead, before the first seed"),
    "regime_map": (bool, False, "compute the map of strengths and teachers instead"),
    "sets": (str, "", "parts of the plan, such as scenes,emoji; all if not given"),
    "update_reference": (bool, False, "write data/reference/<profile>.json from the results"),
}
SHORT = {"set": ["-s"], "parameter": ["-p"]}
say = partial(print, flush=True)


def config(presets: list[str], set: Pairs) -> None:
    """Print the settings that presets resolve to."""
    import json

    import yaml

    from rvlr_lib.config import as_dict, load_settings

    settings = json.loads(json.dumps(as_dict(load_settings(*presets, overrides=_settings(set)))))
    print(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), end="")


def data_check(decode: bool, model: str, keep_flagged: bool, **options: Any) -> int:
    """Look over a collection of your own; exit 1 if it would spoil a result."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.data.check import check

    if model != "none":
        from rvlr_lib.models.towers import token_counter

        options["token_lengths"], options["context"] = token_counter(model or ModelSettings().name)
    report = check(options.pop("file"), full=decode, keep_flagged=keep_flagged or None, **options)
    print(report)
    if not decode and not report.spoiled:
        print("headers only: --decode also finds pictures that are cut short")
    return report.status


def train(timeout: float, save_every: int, set: Pairs, **options: Any) -> int:
    """Train and evaluate one arm, on one device or under torchrun; an interrupted training goes on."""
    if timeout <= 0 or save_every <= 0:
        raise ValueError(f"--timeout {timeout:g}, --save-every {save_every}: both must be above 0")
    options |= {"timeout": timeout, "save_every": save_every, "overrides": _settings(set)}
    return _one_of_several(options) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else _train(options)


def reproduce(parameter: Pairs, device: str | None, check: bool, **options: Any) -> int:
    """Run the notebooks of a profile."""
    from rvlr_lib.report.reproduce import NotebookError, reproduce

    parameters = _pairs(parameter) | ({"device": device} if device else {})
    try:
        moved = reproduce(parameters=parameters, check=check, say=say, **options)
    except NotebookError as error:
        print(f"FAILED {error}", file=sys.stderr)
        return 1
    if check:
        print("\n".join([f"{len(moved)} numbers moved:", *moved]) if moved else "check passed: no number moved")
    return int(bool(moved))


def study(jobs: int, **options: Any) -> None:
    """Tune, seal or compute the study of a profile, over processes or a cluster."""
    from rvlr_lib.study.sweep import run_study

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least one process is needed")
    run_study(jobs=jobs, say=say, **options)


def audit(dataset: str | None, model: str, device: str, out: File, overwrite: bool, **options: Any) -> None:
    """Measure imbalance, retrieval, gap and structure of any model's features."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.disk import own_folder
    from rvlr_lib.evaluation.audit import audit, audit_table, encode_with_model, peers_table, read_features, write_audit
    from rvlr_lib.provenance import data_name, default_root
    from rvlr_lib.tables import to_markdown
    from rvlr_lib.training.loop import choose_device

    files = [options.pop(name) for name in ("image_features", "text_features", "captions")]
    if all(files) == bool(dataset) or (any(files) and not all(files)):
        raise ValueError("give --image-features, --text-features and --captions, or --dataset (and --model)")
    sources = dataset, model, *files, *options.values()
    folder, place = out or default_root() / "audit" / data_name(dataset or str(files[2])), choose_device(device)
    with own_folder(folder, {"made of": sources}, overwrite=overwrite):
        if dataset:
            pairs, images, texts = encode_with_model(dataset, model or ModelSettings().name, device=place, **options)
        else:
            pairs, images, texts = read_features(*files)
        found = audit(pairs, images, texts, device=place)
        path = write_audit(found, folder)
    print("\n\n".join([*(to_markdown(table(found)) for table in (audit_table, peers_table)), str(path)]))


def report(folder: File, claims: bool, profile: str, results: str, insert: File) -> None:
    """Write the report of a run, or the page of claims: what holds, what does not, how sure it is."""
    from rvlr_lib.report.report import write_report

    if bool(folder) == claims:
        raise ValueError("say what to report: a run folder such as runs/quick, or --claims")
    if folder:
        page = write_report(folder)
        return print(f"{page} and {page.with_suffix('.html').name}, tables in {page.parent / 'tables'}")
    from rvlr_lib.study.claims import insert_verdicts, write_claims

    written = write_claims(profile, results)
    if written and insert:
        insert_verdicts(insert, profile, results)
    print(written or "no page of claims")


def explore(folder: Path, out: File, points: int) -> None:
    """Write the explorer of a run: one HTML page to walk in."""
    from rvlr_lib.report.explorer import write_explorer

    page = write_explorer(folder, out, points=points)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")


def table(run: File, select: str, format: str, out: File, insert: File) -> None:
    """Print the result tables of a run, write them to a file, or insert them into one."""
    from rvlr_lib.disk import write_text
    from rvlr_lib.provenance import default_root
    from rvlr_lib.report.report import result_tables, table_text
    from rvlr_lib.tables import insert_between

    form = "md" if insert else format
    found = result_tables(run or default_root() / "quick", select).items()
    heads = {name: f"**{name}**\n\n" if form == "md" else "" for name, _ in found}
    text = "\n".join(heads[name] + table_text(records, form) for name, records in found)
    if insert:
        insert_between(insert, "results", text)
    elif out:
        write_text(out, text)
    else:
        print(text, end="")


# A new command is a function and a line here: its options, with another default after "=".
COMMANDS: dict[str, tuple[Callable[..., int | None], str]] = {
    "reproduce": (reproduce, "profile=quick parameter device= out overwrite check update_reference"),
    "study": (study, "profile tune seal regime_map sets seeds jobs scheduler results device root"),
    "train": (
        train,
        "dataset=scenes arm preset method image_root seed set device out overwrite root resume save_every compile "
        "gradient_checkpointing timeout",
    ),
    "audit": (
        audit,
        "image_features text_features captions dataset image_root split model pretrained device out overwrite",
    ),
    "explore": (explore, "folder out points"),
    "report": (report, "folder= claims profile results insert"),
    "table": (table, "run select format out insert"),
    "data check": (
        data_check,
        "file image_root decode max_bad_pictures model image_column caption_column keep_flagged",
    ),
    "config": (config, "presets set"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8")
    given = sys.argv[1:] if argv is None else argv
    words = [re.sub(r"^--\w+", lambda match: match[0].replace("_", "-"), word) for word in given]
    options = _parser().parse_args(words)
    name = options.command
    options = options[name]
    if name == "data":
        name, options = f"data {options.command}", options[options.command]
    try:
        return COMMANDS[name][0](**vars(options)) or 0
    except (ValueError, OSError) as error:
        if os.environ.get("RVLR_DEBUG"):
            raise
        print(f"rvlr: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrvlr: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> ArgumentParser:
    what = "Rebalanced vision-language retrieval: the reproduction companion."
    parser = ArgumentParser(prog="rvlr", allow_abbrev=False, description=what)
    verbs = {"": parser.add_subcommands(dest="command")}
    for name, (function, options) in COMMANDS.items():
        above, _, verb = name.rpartition(" ")
        if above not in verbs:
            group = ArgumentParser(allow_abbrev=False, description="For data of your own.")
            verbs[""].add_subcommand(above, group, help="for data of your own: check")
            verbs[above] = group.add_subcommands(dest="command")
        command = ArgumentParser(allow_abbrev=False, description=function.__doc__)
        verbs[above].add_subcommand(verb, command, help=function.__doc__)
        for option in options.split():
            _add_option(command, *option.partition("="))
    return parser


def _add_option(parser: ArgumentParser, name: str, changed: str, other: str) -> None:
    kind, default, text = OPTIONS[name]
    default = (other or None) if changed else default
    flags = [*SHORT.get(name, []), f"--{name.replace('_', '-')}"]
    if default is NEEDED:
        parser.add_argument(name, **({"nargs": "+"} if kind == list[str] else {"type": kind}), help=text)
    elif name == "folder":
        parser.add_argument(name, type=File, nargs="?", help=text)
    elif kind is bool:
        parser.add_argument(*flags, action="store_true", help=text)
    elif kind is Pairs:
        parser.add_argument(*flags, nargs="+", action="append", default=[], metavar="KEY VALUE", help=text)
    else:
        parser.add_argument(*flags, type=kind, default=default, help=text)


def _pairs(given: Iterable[Sequence[str]]) -> dict[str, str]:
    """Read ``KEY VALUE`` or ``KEY=VALUE``.

    >>> _pairs([["seed", "1"], ["rate=2", "x=a=b"]])
    {'seed': '1', 'rate': '2', 'x': 'a=b'}
    """
    found: dict[str, str] = {}
    for words in given:
        apart = len(words) == 2 and "=" not in words[0]
        pairs = [list(words)] if apart else [word.split("=", 1) for word in words]
        if not all(len(pair) == 2 and pair[0] for pair in pairs):
            raise ValueError(f"'{' '.join(words)}': a name and its value are needed, such as seed 1 or seed=1")
        found |= {key: value for key, value in pairs}  # noqa: C416
    return found


def _settings(given: Iterable[Sequence[str]]) -> dict[str, Any]:
    import yaml

    return {key: yaml.safe_load(value) for key, value in _pairs(given).items()}


def _train(options: Mapping[str, Any]) -> int:
    from rvlr_lib.study.train import train

    try:
        train(**options)
        return 0
    except FloatingPointError as error:
        print(f"rvlr: {error}. Checkpoints stay; a smaller learning_rate is the usual remedy", file=sys.stderr)
        return 1


def _one_of_several(options: Mapping[str, Any]) -> int:
    """Train as one process among several; ends the process, as threads of a process group may not end in time."""
    rank, code = os.environ.get("RANK", "0"), 1
    with contextlib.ExitStack() as stack:
        if rank != "0":  # one process speaks for all
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        try:
            code = _train(options)
        except (ValueError, OSError) as error:
            print(f"rvlr, process {rank}: {error}", file=sys.stderr)
            code = 2
        except KeyboardInterrupt:
            code = 130
        except Exception:
            traceback.print_exc()
            way_out = "If another process died, or was silent too long, that one's message says why. Checkpoints stay."
            print(f"rvlr, process {rank}: stopped. {way_out}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
