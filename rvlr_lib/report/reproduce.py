"""Run the notebooks of a profile with papermill into one run folder, after checking all settings.

A profile is a YAML file such as ``notebooks/profiles/quick.yaml``. Its ``parameters`` go to every notebook that has
them; ``at_once`` (default 1) is the number of notebooks that run at a time, each with its share of the cores.
"""

import ast
import builtins
import logging
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from html import escape
from pathlib import Path
from threading import Lock
from time import monotonic
from typing import Any
from unittest.mock import patch
from urllib.parse import quote

import psutil
from jsonargparse.typing import PositiveInt

from rvlr_lib.disk import claimed_folder, digest, read_json, read_yaml, sha256, write_json, write_text
from rvlr_lib.provenance import PACKAGE, data_name, default_root, provenance, real_path, versions
from rvlr_lib.report.output import HEADLESS, OPENING, fit_parameters
from rvlr_lib.report.report import CHECKOUT, compare, write_reference, write_report
from rvlr_lib.tables import refuse_unknown

PROFILE_KEYS = ("cell_timeout_seconds", "description", "expected_seconds", "parameters", "runs")
OUTPUTS = {"results", "figures", "tables", "report.md", "report.html", "explore.html"}  # next to the data sets' folders
DISK_BYTES = 10**9  # that must be free before a run
STORED = ("study_results", "followup_results")  # parameters that name folders with results of a study
PATH_PARAMETERS = (*OPENING, *STORED)  # parameters that may name files
STAGE = "stage "  # prefix of the output lines that are printed while a notebook runs
KERNELS = {HEADLESS: "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # environment of kernels
NO_ALT = 'alt="No description has been provided for this image"'  # by nbconvert
say = partial(print, flush=True)


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, the cell, the exception and the saved notebook."""


@dataclass(frozen=True)
class Run:
    """One notebook and its parameters; ``dataset`` names its folder."""

    notebook: str
    dataset: str
    parameters: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.notebook} ({self.dataset})"


def notebook_parameters(notebook: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types and defaults of a notebook's parameters, by name; ValueError if the cell or an annotation is missing."""
    import papermill

    cell = papermill.inspect_notebook(_no_template(notebook))
    kinds = {name: getattr(builtins, line["inferred_type_name"], None) for name, line in cell.items()}
    if not kinds or None in kinds.values():
        raise ValueError(f"{notebook}: it needs a cell tagged 'parameters', with lines such as 'seed: int = 0'")
    return kinds, {name: ast.literal_eval(line["default"]) for name, line in cell.items()}


def load_profile(
    profile: str, parameters: Mapping[str, Any] | None = None, *, root: Path = CHECKOUT
) -> tuple[Path, dict[str, Any], list[Run]]:
    """Path, settings and runs of a profile, by its name in the checkout ``root`` or from a ``.yaml`` file.

    ``parameters`` override the profile's. ValueError: the profile, a notebook or a parameter is unknown (lists the
    valid ones), a value has the wrong type, or two runs would write the same files.
    """
    profiles = {file.stem: file for file in root.glob("notebooks/profiles/*.yaml")}
    books = {file.stem: file for file in root.glob("notebooks/*.ipynb")}
    path = Path(profile) if profile.endswith(".yaml") else profiles.get(profile, Path())
    if not path.is_file():
        raise ValueError(f"unknown profile '{profile}'; valid: {', '.join(sorted(profiles)) or 'those of a checkout'}")
    try:
        settings = {"at_once": 1} | read_yaml(path)
        if set(PROFILE_KEYS) != settings.keys() - {"at_once", "study"}:  # `rvlr study` reads the latter
            raise ValueError(f"its keys must be {', '.join(PROFILE_KEYS)} and optionally at_once and study")
        entries = [(str(entry["notebook"]), dict(entry.get("parameters") or {})) for entry in settings["runs"]]
        settings["parameters"] = dict(settings["parameters"] or {})
        numbers = {"expected_seconds": float, "cell_timeout_seconds": PositiveInt, "at_once": PositiveInt}
        settings |= fit_parameters(numbers, {key: settings[key] for key in numbers})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a valid profile: {error}") from None
    refuse_unknown([name for name, _ in entries], sorted(books), f"{path}: unknown notebook")
    signatures = {name: notebook_parameters(books[name]) for name, _ in entries}
    for kinds, _ in signatures.values():
        kinds.pop("output_dir", None)  # set by run_notebook
    all_kinds = {name: kind for kinds, _ in signatures.values() for name, kind in kinds.items()}
    shared, overrides = (fit_parameters(all_kinds, values) for values in (settings["parameters"], parameters or {}))
    runs, folders = dict[str, Run](), dict[str, str]()
    for name, specific in entries:
        kinds, defaults = signatures[name]
        merged = shared | fit_parameters(kinds, specific) | overrides
        merged = {key: value for key, value in merged.items() if key in kinds}
        dataset = (defaults | merged).get("dataset", "all")
        run = Run(name, data_name(dataset), merged)
        if run.dataset in {*OUTPUTS, "run.json"} or folders.setdefault(run.dataset, dataset) != dataset:
            raise ValueError(f"{path}: the folder {run.dataset!r} of {dataset} is taken: rename the file")
        if runs.setdefault(str(run), run) != run:
            way_out = " (for a data set of your own: --profile own)" if "dataset" in overrides else ""
            raise ValueError(f"{path}: two runs of one notebook on one data set would write the same files{way_out}")
    return path, settings, list(runs.values())


def reproduce(
    profile: str,
    *,
    out: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check: bool = False,
    update_reference: bool = False,
    root: Path = CHECKOUT,
) -> list[str]:
    """Run all notebooks of a profile and write their HTML and the report, continuing an earlier run.

    A notebook is not run again if all its files exist and nothing it depends on has changed: its source, its
    parameters and the files they name, the library, and package versions.

    Args:
        profile, parameters, root: as in :func:`load_profile`.
        out: the run folder, ``runs/<profile>`` by default.
        overwrite: replace the output of other settings in the folder.
        check: return the differences from ``data/reference/<profile>.json``, one line each.
        update_reference: write that file from the results.

    Raises:
        ValueError: unknown or unfit settings, no reference, or a folder that belongs to other settings.
        NotebookError: a notebook failed; finished notebooks and its own output are kept.
    """
    from joblib import cpu_count

    path, settings, runs = load_profile(profile, parameters, root=root)
    reference_file = root / "data" / "reference" / f"{path.stem}.json"
    if check and not reference_file.is_file():
        raise ValueError(f"{reference_file} is missing: --update-reference writes it")
    reference = read_json(reference_file) if check else None
    out = (out or default_root() / path.stem).resolve()
    check_machine(runs, out)
    identity = {"profile": path.stem, "settings": {str(run): run.parameters | _paths(run) for run in runs}}
    cores = cpu_count()  # respects the limits of a container
    at_once = min(settings["at_once"], cores)
    threads = os.environ.get("OMP_NUM_THREADS") or str(cores // at_once)
    kernels = patch.dict(os.environ, KERNELS | {"OMP_NUM_THREADS": threads})
    options: dict[str, Any] = {"file": "run.json", "overwrite": overwrite}
    options["owned"] = lambda earlier: OUTPUTS | {entry["dataset"] for entry in earlier.get("runs", [])}
    with claimed_folder(out, identity, **options) as earlier, kernels:
        previous = {(entry["notebook"], entry["dataset"]): entry for entry in earlier.get("runs", [])}
        start, expected = monotonic(), timedelta(seconds=settings["expected_seconds"])
        say(f"{path.stem}: {settings['description']}")
        say(f"{len(runs)} notebooks, about {expected} on 2 CPU cores, into {out}")
        entries, todo, record_lock = [], [], Lock()
        for number, run in enumerate(runs, 1):
            label, key = f"[{number}/{len(runs)}] {run}", _key(run, root)
            entry = previous.get((run.notebook, run.dataset), {})
            if entry.get("key") == key and all((out / name).is_file() for name in entry["outputs"]):
                say(f"{label}: unchanged since it ran, kept")
            else:
                entry = dict(vars(run))  # drop earlier results, in case it fails
                (out / "results" / f"{run.dataset}_{run.notebook}.json").unlink(missing_ok=True)
                todo.append((run, entry, label, key))
            entries.append(entry)
        command = shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "rvlr"), *sys.argv[1:]])
        in_order = sorted(entries, key=lambda entry: entry["notebook"])
        record = identity | {"description": settings["description"], "runs": in_order, "command": command}
        record["provenance"] = provenance()
        write_json(out / "run.json", record)

        def work(run: Run, entry: dict[str, Any], label: str, key: str) -> None:
            begin = monotonic()
            run_notebook(run, out, settings["cell_timeout_seconds"], root=root, runs=runs)
            with record_lock:
                entry |= {"seconds": round(monotonic() - begin, 1), "key": key, "outputs": _outputs(run, out)}
                write_json(out / "run.json", record)
            say(f"{label} done in {entry['seconds']} s")

        _run_in_threads(work, todo, at_once)
        page, took = write_report(out, root=root), timedelta(seconds=round(monotonic() - start))
        say(f"all done in {took}: {page}, with figures, tables and results next to it")
        if update_reference:
            write_reference(out, reference_file)
            say(f"reference written: {reference_file}")
        return compare(out, reference) if reference else []


def _run_in_threads(work: Callable[..., None], items: Iterable[tuple[Any, ...]], at_once: int) -> None:
    """Call ``work(*item)`` for all items; after a failure, wait for the calls under way, then raise it."""
    failures: list[BaseException] = []

    def attempt(*item: Any) -> None:
        try:
            if not failures:
                work(*item)
        except BaseException as error:
            failures.append(error)

    with ThreadPoolExecutor(at_once) as pool:
        futures = [pool.submit(attempt, *item) for item in items]
        try:
            pool.shutdown()
        except KeyboardInterrupt as error:
            failures.insert(0, error)
            pause = 1
            while wait(futures, timeout=pause).not_done:  # kernels have their own session, which gets no key presses
                pause = 10  # seconds: a signal during a kernel's shutdown makes it print a traceback
                for kernel in psutil.Process().children():
                    with suppress(psutil.NoSuchProcess):  # it has just ended
                        kernel.send_signal(signal.SIGINT)
    if failures:
        raise failures[0]


def check_machine(runs: list[Run], out: Path) -> None:
    """Raise a ValueError, with a way out, if a kernel, disk space, a device or a file is missing or unfit."""
    from jupyter_client.kernelspec import KernelSpecManager

    command = Path(KernelSpecManager().get_kernel_spec("python3").argv[0])
    if command.is_absolute() and command.parent.resolve() != Path(sys.executable).parent.resolve():
        way_out = f"`{sys.executable} -m ipykernel install --sys-prefix` fixes it"
        raise ValueError(f"the kernel 'python3' starts {command}, not this Python: {way_out}")
    existing = next(folder for folder in (out, *out.parents) if folder.exists())
    if (free := shutil.disk_usage(existing).free) < DISK_BYTES:
        raise ValueError(f"only {free / 1e9:.1f} GB are free at {existing}: a run needs {DISK_BYTES / 1e9:.0f} GB")
    models = {}
    for run in runs:
        _data_stamp(run)
        for name in STORED:
            if (folder := run.parameters.get(name)) and not os.path.isdir(folder):
                raise ValueError(f"parameter '{name}' is {folder!r}, which is not a folder of study results")
        if patterns := run.parameters.get("switches"):
            from rvlr_lib.config import switches

            if unknown := [pattern for pattern in patterns if not any(str(pattern) in name for name in switches())]:
                raise ValueError(f"parameter 'switches': {unknown[0]!r} is part of none of: {', '.join(switches())}")
        if any(model := [run.parameters.get(name) for name in ("model", "pretrained")]):
            models[str([*model, run.parameters.get("preset")])] = run
    for run in models.values():
        _ = _open_study(run).towers  # ValueError if they cannot be built


def run_notebook(run: Run, out: Path, timeout: int, *, root: Path = CHECKOUT, runs: Sequence[Run] = ()) -> Path:
    """Execute one notebook, print its stages, and write it and its HTML to ``out/<dataset>/``; return its path.

    NotebookError: a cell raised an exception or took more than ``timeout`` seconds, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for logger in ("papermill", "asyncio"):  # the error below replaces their messages
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    source, target = root / "notebooks" / f"{run.notebook}.ipynb", out / run.dataset / f"{run.notebook}.ipynb"
    unfinished, page = target.with_name(f".partial-{source.name}"), target.with_suffix(".html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page.unlink(missing_ok=True)
    stream, reason = _StagePrinter(str(run)), ""
    names, parameters = map(_no_template, (source, unfinished)), run.parameters | {"output_dir": str(out)}
    options = {"kernel_name": "python3", "execution_timeout": timeout, "extra_arguments": ["--log-level=50"]}
    options |= {"on_cell_execute": stream.count, "stdout_file": stream, "stderr_file": stream, "progress_bar": False}
    try:
        executed = papermill.execute_notebook(*names, parameters, **options)
        result = out / "results" / f"{run.dataset}_{run.notebook}.json"
        captions = list(read_json(result)["figures"].values()) if result.is_file() else []
        text = notebook_links(notebook_html(executed, run.notebook, captions), run.dataset, runs)
        up = os.path.relpath(root, target.parent) if out.is_relative_to(root) else ".."
        write_text(page, text.replace('href="../FIDELITY.md', f'href="{up}/FIDELITY.md'))
    except papermill.PapermillExecutionError as error:
        if error.ename == "KeyboardInterrupt":
            unfinished.unlink(missing_ok=True)
            raise KeyboardInterrupt from None
        reason = f"{error.ename}: {str(error.evalue).strip()}"
    except CellTimeoutError:
        reason = f"TimeoutError: longer than the {timeout} s that the profile allows"
    except DeadKernelError:
        reason = "DeadKernelError: the kernel died, often because memory ran out"
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, target)
    if reason:
        raise NotebookError(f"{run}, cell [{stream.number}]: {reason} (saved with its output: {target})")
    return target


def notebook_html(notebook: Any, title: str, captions: Sequence[str] = ()) -> str:
    """Self-contained HTML without the parameter and setup cells; ``captions`` become the alt texts of its pictures."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    folded = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": {"parameters", "setup"}}})
    notebook.metadata.pop("widgets", None)  # they need a script from the network
    scripts = dict.fromkeys(("require_js_url", "jquery_url", "mathjax_url"), "")  # load nothing from the network
    exporter = HTMLExporter(config=folded, embed_images=True, **scripts)
    page = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})[0]
    for caption in captions if page.count(NO_ALT) == len(captions) else ():
        page = page.replace(NO_ALT, f'alt="{escape(caption)}"', 1)
    return page


def notebook_links(page: str, dataset: str, runs: Iterable[Run]) -> str:
    """The page with links to notebooks leading to their HTML, preferably on the same data set, else to the report."""
    same_last = sorted(runs, key=lambda run: run.dataset == dataset)
    pages = {run.notebook: quote(f"../{run.dataset}/{run.notebook}.html") for run in same_last}
    return re.sub(r'href="(\w+)\.ipynb', lambda match: f'href="{pages.get(match[1], "../report.html")}', page)


class _StagePrinter:
    """Output stream of a kernel that counts cells and prints the lines of finished stages."""

    def __init__(self, label: str) -> None:
        self.label, self.number, self.buffer = label, 0, ""

    def count(self, **_: Any) -> None:
        self.number += 1

    def write(self, text: str) -> None:
        *lines, self.buffer = (self.buffer + text).split("\n")
        for line in lines:
            if line.startswith(STAGE):
                say(f"      {self.label}: {line.removeprefix(STAGE)}")

    def flush(self) -> None: ...


def _no_template(path: Path) -> str:
    """The path with braces escaped, which papermill would treat as a template."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _data_stamp(run: Run) -> tuple[Any, ...]:
    """The stamp of the user's own data, empty for shipped data; ValueError if data, preset or device are unfit."""
    parameters = run.parameters
    preset = PACKAGE / "presets" / f"{parameters.get('preset', 'quick')}.yaml"
    shipped = parameters.get("dataset", "scenes") in ("emoji", "scenes") and preset.is_file()
    if shipped and not parameters.get("image_root") and parameters.get("device", "auto") in ("auto", "cpu"):
        return ()  # without importing torch
    from rvlr_lib.data import dataset_stamp

    study = _open_study(run)
    for split in ("train", "val", "test"):
        study.dataset(split)
    return dataset_stamp(study.settings.data.name, study.settings.data.image_root)


def _open_study(run: Run) -> Any:
    """The study that a notebook opens; ValueError names an invalid parameter."""
    from rvlr_lib.study.study import open_study

    options = {name: run.parameters[name] for name in (*OPENING, "seed", "device") if name in run.parameters}
    return open_study(options.pop("dataset", "scenes"), **options)


def _paths(run: Run) -> dict[str, str]:
    """The absolute paths of the files and folders that parameters name, by parameter."""
    return {name: path for name in PATH_PARAMETERS if os.path.isabs(path := str(real_path(run.parameters.get(name))))}


def _key(run: Run, root: Path) -> str:
    """A hash of the notebook, its parameters and the files they name, the library and the decisive versions."""
    library = (path for path in sorted(PACKAGE.rglob("*.*")) if path.suffix in {".py", ".yaml", ".json"})
    files, paths = [root / "notebooks" / f"{run.notebook}.ipynb", *library], _paths(run)
    for named in (Path(paths[name]) for name in sorted(paths.keys() - {"dataset", "image_root"})):
        files += sorted(path for path in (named, *named.rglob("*")) if path.is_file())
    decisive = [str(run), run.parameters | paths, versions(), _data_stamp(run), [*map(sha256, files)]]
    return digest(decisive)


def _outputs(run: Run, out: Path) -> list[str]:
    """The files that a notebook wrote, relative to the run folder."""
    files = [f"{run.dataset}/{run.notebook}.{suffix}" for suffix in ("ipynb", "html")]
    result = out / "results" / f"{run.dataset}_{run.notebook}.json"
    if result.is_file():
        files += [f"results/{result.name}", *(f"figures/{name}.png" for name in read_json(result)["figures"])]
    return files
