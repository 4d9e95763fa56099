"""The ``rvlr`` command: a table of options, and a function a command that takes some of them.

Exit codes: 0 done; 1 a notebook failed, a number moved or data would spoil a result; 2 bad input; 130 interrupted.
``RVLR_DEBUG=1`` shows where bad input was found. A command imports what it needs when it runs, so ``--help`` is quick.
"""

import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

Pairs = list[list[str]]  # of options such as -s KEY VALUE, which may be repeated
NEEDED = object()  # in place of a default
File = Path | None
Text = str | None
OPTIONS: dict[str, tuple[Any, Any, str]] = {  # name -> type, default, help
    "arm": (str, "rvlr", "matching, rvlr, ... of rvlr_lib.config.ARMS"),
    "caption_column": (Text, None, "CSV: column of the caption"),
    "captions": (File, None, "JSON list, per picture a caption or a list of captions"),
    "check": (bool, False, "compare the results with data/reference/<profile>.json"),
    "claims": (bool, False, "the page of claims instead, from the results of rvlr study"),
    "compile": (bool, False, "torch.compile losses and towers as one, a minute or two"),
    "dataset": (Text, None, "scenes, emoji, a preset's name, or an annotation file"),
    "decode": (bool, False, "decode every picture, not only its header"),
    "device": (Text, "auto", "auto, cpu, cuda or cuda:N; under torchrun cuda: a GPU for each process"),
    "file": (str, NEEDED, "annotation file, folder or index"),
    "folder": (File, NEEDED, "run folder, such as runs/quick"),
    "format": (Literal["md", "csv", "tex"], "md", "Markdown, CSV with all digits, or LaTeX for booktabs"),
    "gradient_checkpointing": (bool, False, "less memory, a third more computing"),
    "image_column": (Text, None, "CSV: column of the picture's path"),
    "image_features": (File, None, ".npy, .npz, .pt or .safetensors [pictures, D]"),
    "image_root": (Text, None, "folder of the pictures, where the index says none"),
    "insert": (File, None, "put the verdicts between the markers of the profile in this Markdown file"),
    "jobs": (PositiveInt, 1, "processes over the cells, of one thread each"),
    "keep_flagged": (bool, False, "use captions too that are flagged is_rejected or is_precanned"),
    "max_bad_pictures": (NonNegativeInt, None, "missing or unreadable pictures allowed in a split"),
    "method": (str, "corrected", "switches of the method: corrected or official"),
    "model": (str, "", "any open_clip model, or local-dir: of one; data check: none measures no captions"),
    "out": (File, None, "file or folder to write, in the run or below runs if not given"),
    "overwrite": (bool, False, "replace what the folder holds of other settings"),
    "parameter": (Pairs, [], "a parameter of every notebook that has it, and its value; may be repeated"),
    "preset": (str, "", "a preset or YAML file on top of the data set's own"),
    "presets": (str, NEEDED, "shipped presets or YAML files, later ones win: flickr30k official"),
    "pretrained": (Text, None, "open_clip tag or weight file"),
    "profile": (str, "study", "one of notebooks/profiles, or a file that ends in .yaml"),
    "regime_map": (bool, False, "compute the map of strengths and teachers instead"),
    "results": (str, "", "folder of the study's results, data/reference/<profile> if not given"),
    "resume": (Literal["last", "no"], "last", "go on from an interrupted stage's last checkpoint, or begin anew"),
    "root": (File, None, "folder of runs and cache"),
    "run": (File, None, "run folder, runs/quick if not given"),
    "save_every": (PositiveInt, 500, "steps between two checkpoints"),
    "scheduler": (str, "", "address of a Dask scheduler that takes the cells, such as tcp://host:8786"),
    "seal": (bool, False, "fix claims and chosen values instead, before the first seed"),
    "seed": (int, 0, "of the training"),
    "seeds": (str, "", "such as 0-4 or 0,3; all that are planned if not given"),
    "select": (str, "*", "pattern for <dataset>_<notebook>_<table>"),
    "set": (Pairs, [], "a setting such as stage1.epochs and its value; may be repeated"),
    "sets": (str, "", "data sets of the plan, such as scenes,emoji; all if not given"),
    "split": (Literal["train", "val", "test"], "test", "of the data set"),
    "text_features": (File, None, "likewise [captions, D], picture by picture"),
    "timeout": (PositiveFloat, 1800, "seconds until a process gives up waiting for another one"),
    "tune": (bool, False, "search the learning rate and the strengths of each arm instead"),
    "update_reference": (bool, False, "write data/reference/<profile>.json from the results"),
}
FLAGS = {"set": ["-s"], "parameter": ["-p"]}
MANY = {"folder": "?", "presets": "+"}  # positional arguments that may be left out, or repeated


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
    """Tune, seal or compute the study of a profile, over processes or a cluster."""
    from rvlr_lib.study.sweep import run_study

    run_study(**options)


def train(set: Pairs, **options: Any) -> None:
    """Train and evaluate one arm, on one device or under torchrun; an interrupted training goes on."""
    from rvlr_lib.study.study import train

    train(**(options | settings(set)))


def audit(dataset: str, model: str, device: str, out: File, overwrite: bool, **options: Any) -> None:
    """Measure imbalance, retrieval, gap and structure of any model's features."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.disk import own_folder
    from rvlr_lib.evaluation import audit as audits
    from rvlr_lib.provenance import data_name, home, resolved
    from rvlr_lib.tables import to_markdown
    from rvlr_lib.training.loop import choose_device

    files = [options.pop(name) for name in ("image_features", "text_features", "captions")]
    if all(files) == bool(dataset) or (any(files) and not all(files)):
        raise ValueError("give --image-features, --text-features and --captions, or --dataset and --model with weights")
    if all(files) and (model or options["pretrained"] or options["image_root"]):
        raise ValueError("features are given: leave --model, --pretrained and --image-root out, or give --dataset")
    folder, place = out or home() / "audit" / data_name(dataset or str(files[2])), choose_device(device)
    found = audits.read_features(*files) if files[0] else None  # before the folder is claimed for them
    given = [resolved(name) for name in (dataset, model, *files, options["image_root"], options["pretrained"])]
    identity, written = {"made of": [*given, options["split"]]}, audits.FILES
    with own_folder(folder, identity, overwrite=overwrite, owned=lambda _: written):
        found = found or audits.encode_with_model(dataset, model or ModelSettings().name, device=place, **options)
        told = audits.audit(*found, device=place)
        for table in audits.audit_tables(told).values():
            print(to_markdown(table), end="\n\n")
        source = told["imbalance"]["index_from"]
        print(f"The index is from {source}; peers are measured on 40 % of the pictures: compare them among themselves.")
        print(audits.write_audit(told, folder))


def explore(folder: File, out: File) -> None:
    """Write the explorer of a run: one HTML page to walk in."""
    from rvlr_lib.provenance import home
    from rvlr_lib.report.explorer import write_explorer

    page = write_explorer(folder or home() / "quick", out)
    print(f"{page}: {page.stat().st_size / 1e6:.1f} MB, opens in any browser")


def report(folder: File, claims: bool, profile: str, results: str, insert: File) -> None:
    """Write the report of a run, or the page of claims: what holds, what does not, how sure it is."""
    if bool(folder) == claims:
        raise ValueError("say what to report: a run folder such as runs/quick, or --claims")
    if folder:
        from rvlr_lib.report.report import write_report

        page = write_report(folder)
        return print(f"{page} and {page.with_suffix('.html').name}, tables in {page.parent / 'tables'}")
    from rvlr_lib.study.claims import write_claims

    print(write_claims(profile, results, insert))


def table(run: File, select: str, format: str) -> None:
    """Print the result tables of a run."""
    from fnmatch import fnmatch

    from rvlr_lib.provenance import home
    from rvlr_lib.report.output import read_run

    run = run or home() / "quick"
    read_run(run)
    there = sorted((run / "tables").glob(f"*.{format}"))
    chosen = [path for path in there if fnmatch(path.stem, select)]
    if not chosen:
        names = ", ".join(path.stem for path in there) or f"none, `rvlr report {shlex.quote(str(run))}` writes them"
        raise ValueError(f"no table in {run / 'tables'} matches '{select}'; there are: {names}")
    parts = [(f"**{path.stem}**\n\n" if format == "md" else "") + path.read_text(encoding="utf-8") for path in chosen]
    print("\n".join(parts), end="")


def data(check: str, decode: bool, model: str, keep_flagged: bool, **options: Any) -> int:
    """Look over a collection of your own; exit 1 if it would spoil a result."""
    from rvlr_lib.config import ModelSettings
    from rvlr_lib.data.check import check as look_over
    from rvlr_lib.models.towers import token_counter

    if model != "none":
        options["tokens"], options["context"] = token_counter(model or ModelSettings().name)
    found = look_over(options.pop("file"), full=decode, keep_flagged=keep_flagged or None, **options)
    print(found)
    if not decode and not found.spoiled:
        print("headers only: --decode also finds pictures that are cut short")
    return int(found.spoiled)


def config(presets: list[str], set: Pairs) -> None:
    """Print the settings that presets resolve to."""
    from rvlr_lib.config import load_settings
    from rvlr_lib.disk import plain

    resolved = plain(asdict(load_settings(*presets, overrides=settings(set))))
    print(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), end="")


COMMANDS: dict[Callable[..., int | None], str] = {  # a command's options, with another default after "="
    reproduce: "profile=quick parameter device= out overwrite check update_reference",
    study: "profile tune seal regime_map sets seeds jobs scheduler results device root",
    train: "dataset=scenes arm preset method image_root seed set device out overwrite root resume save_every compile "
    "gradient_checkpointing timeout",
    audit: "image_features text_features captions dataset image_root split model pretrained device out overwrite",
    explore: "folder out",
    report: "folder claims profile results insert",
    table: "run select format",
    data: "file image_root decode max_bad_pictures model image_column caption_column keep_flagged",
    config: "presets set",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; processes under torchrun end with it, and only the first one prints."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    given = sys.argv[1:] if argv is None else argv
    if argv is None and sys.getfilesystemencoding() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        # else names of files are misread
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"PYTHONUTF8": "1"})
    if strange := [each for each in given if each.encode("utf-8", "replace").decode() != each]:
        parser().error(f"{strange[0]!a} is not UTF-8: rename the file")
    chosen = parser().parse_args([re.sub(r"^--\w+", lambda word: word[0].replace("_", "-"), each) for each in given])
    command = next(function for function in COMMANDS if function.__name__ == chosen.command)
    several, rank = os.environ.get("WORLD_SIZE", "1") != "1", os.environ.get("RANK", "0")
    who = f"rvlr, process {rank}" if several else "rvlr"
    with redirect_stdout(open(os.devnull, "w") if several and rank != "0" else sys.stdout):
        try:
            code, told = command(**vars(chosen[chosen.command])) or 0, ""
        except BrokenPipeError:  # `rvlr ... | head` has read enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code, told = 141, ""
        except (ValueError, OSError) as error:
            if os.environ.get("RVLR_DEBUG"):
                raise
            code, told = 2, f"{who}: {error}"
        except FloatingPointError as error:
            code, told = 1, f"{who}: {error}. Checkpoints stay; a smaller learning_rate is the usual remedy"
        except KeyboardInterrupt:
            code, told = 130, f"\n{who}: interrupted; the same command goes on from here"
        except Exception:
            if not several:
                raise
            way_out = "If another process died, or was silent too long, that one's message says why. Checkpoints stay."
            code, told = 1, f"{traceback.format_exc()}{who}: stopped. {way_out}"
    print(told, end="\n" * bool(told), file=sys.stderr, flush=True)
    if several:
        sys.stdout.flush()
        os._exit(code)  # threads of a process group may not end in time
    return code


class OneLineParser(ArgumentParser):
    """Says what is wrong with an option in one line."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print it and where options are listed; exit 2."""
        told = re.sub(r'Parser key "(\w+)":', lambda key: f"--{key[1].replace('_', '-')}:", " ".join(message.split()))
        told = re.sub(r"a <class '(\w+)'>", r"\1", told.replace("a typing.Literal", "one of "))
        usage = getattr(ex, "subcommand_parser", self).prog.replace(" [options]", "")
        usage += "".join(f" {command}" for command in re.findall(r"required: (\w+)\.", told))
        print(f"rvlr: {told}; `{usage} --help` lists what there is", file=sys.stderr)
        sys.exit(2)


def parser() -> ArgumentParser:
    """The parser of all commands."""
    made = OneLineParser(prog="rvlr", allow_abbrev=False, description="Rebalanced vision-language retrieval.")
    commands = made.add_subcommands(dest="command")
    for function, options in COMMANDS.items():
        own = OneLineParser(allow_abbrev=False, description=function.__doc__)
        commands.add_subcommand(function.__name__, own, help=function.__doc__)
        if function is data:
            own.add_argument("check", type=Literal["check"], help="what to do")
        for name, changed, other in (option.partition("=") for option in options.split()):
            kind, default, text = OPTIONS[name]
            flags = [*FLAGS.get(name, []), f"--{name.replace('_', '-')}"]
            if default is NEEDED:
                own.add_argument(name, type=kind, help=text, nargs=MANY.get(name))
            elif kind is bool:
                own.add_argument(*flags, action="store_true", help=text)
            elif kind is Pairs:
                own.add_argument(*flags, nargs=2, action="append", default=[], metavar=("KEY", "VALUE"), help=text)
            else:
                own.add_argument(*flags, type=kind, default=(other or None) if changed else default, help=text)
    return made


def settings(given: Pairs) -> dict[str, Any]:
    """Settings such as ``stage1.epochs`` with their values, read as YAML."""
    found = {}
    for key, value in given:
        try:
            found[key] = yaml.safe_load(value)
        except Exception as error:  # the parser also raises what its types raise
            raise ValueError(f"-s {key} {value!r} is no YAML, quote a text: {' '.join(str(error).split())}") from None
    return found
