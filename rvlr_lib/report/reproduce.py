"""Run the notebooks of a profile through papermill, in this interpreter's environment, into one run folder."""

import contextlib
import hashlib
import json
import logging
import os
import shlex
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rvlr_lib.disk import read_json, write_json
from rvlr_lib.provenance import PACKAGE, default_root, provenance, versions
from rvlr_lib.report.profiles import CHECKOUT, Profile, Run, load_profile, notebook_parameters
from rvlr_lib.report.publish import write_report
from rvlr_lib.report.report import compare, update_reference
from rvlr_lib.tables import replacing

HEARTBEAT_SECONDS = 60.0
FOLDED = ("parameters", "setup")  # cells whose code a page does not show
OWN_NAMES = {"results", "figures", "tables", "report.md", "report.html", "explore.html", "run.json"}  # beside notebooks

Say = Callable[[str], None]


class NotebookError(RuntimeError):
    """A notebook failed; the message names it, the cell, the exception and the notebook kept."""


def reproduce(
    profile: str,
    *,
    out: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    check: bool = False,
    update: bool = False,
    root: Path = CHECKOUT,
    say: Say = print,
) -> list[str]:
    """Run all notebooks of a profile, write their HTML and the report; go on where an earlier run stopped.

    A notebook of which nothing changed since it ran (its text, parameters, the library, versions) and whose files are
    all there is kept as it is.

    Args:
        profile: name of a profile, or a path that ends in ``.yaml``.
        out: the run folder, ``runs/<profile>`` if not given.
        parameters: they win over the profile's.
        overwrite: replace what the folder holds of other settings.
        check: compare the results with ``data/reference/<profile>.json``.
        update: write that file from the results.
        root: the checkout.
        say: takes each line of progress.

    Returns:
        What moved against the reference, one line each; empty where nothing did or ``check`` is off.

    Raises:
        ValueError: unknown or unfit settings, no reference, or a folder that belongs to other settings.
        NotebookError: a notebook failed; those before it are done, its output is kept.
    """
    settled = load_profile(profile, parameters, root=root)
    require_devices({str(run.parameters.get("device", "auto")) for run in settled.runs})
    reference_file = root / "data" / "reference" / f"{settled.name}.json"
    if check and not reference_file.is_file():
        raise ValueError(f"there is no {_short(reference_file)} to check against: --update-reference writes it")
    reference = read_json(reference_file) if check else None
    out = (out or default_root() / settled.name).resolve()
    record = _claim(out, settled, overwrite)
    say(f"{settled.name}: {settled.description}")
    say(f"{len(settled.runs)} notebooks, about {clock(settled.expected_seconds)} on 2 CPU cores, into {_short(out)}")
    start = time.monotonic()
    for number, (run, entry) in enumerate(zip(settled.runs, record["runs"], strict=True), 1):
        key = _key(run, root)
        if entry.get("key") == key and all((out / path).is_file() for path in entry["outputs"]):
            say(f"[{number}/{len(settled.runs)}] {run}: nothing changed since it ran, kept")
            continue
        say(f"[{number}/{len(settled.runs)}] {run} ...")
        begin, clock_time = time.monotonic(), time.time()
        run_notebook(run, out, settled.cell_timeout_seconds, root=root, say=say)
        entry["seconds"] = round(time.monotonic() - begin, 1)
        entry["key"], entry["outputs"] = key, _outputs(run, out, clock_time)
        write_json(out / "run.json", record)
        say(f"[{number}/{len(settled.runs)}] {run} done in {clock(entry['seconds'])}, "
            f"{clock(time.monotonic() - start)} so far")  # fmt: skip
    write_json(out / "run.json", {**record, "finished": True})
    say(f"all done in {clock(time.monotonic() - start)}: report {_short(write_report(out))}, figures "
        f"{_short(out / 'figures')}, results {_short(out / 'results')}, notebooks beside them")  # fmt: skip
    if update:
        say(f"reference written: {_short(update_reference(out, reference_file))}")
    return compare(out, reference) if reference else []


def run_notebook(run: Run, out: Path, timeout: int, *, root: Path = CHECKOUT, say: Say = print) -> Path:
    """Execute one notebook with the kernel of this interpreter and write it and its HTML.

    Args:
        run: what to run.
        out: the run folder; the notebook goes to ``out/<dataset>/``.
        timeout: the most seconds a cell may take.
        root: the checkout.
        say: takes the lines of progress.

    Returns:
        The executed notebook.

    Raises:
        NotebookError: a cell raised, took too long, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    for logger in ("papermill", "asyncio"):  # what they would say of a failure, we say in one line
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    source = root / "notebooks" / f"{run.notebook}.ipynb"
    target = out / run.dataset / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, page = target.with_name(f".partial-{source.name}"), target.with_suffix(".html")
    page.unlink(missing_ok=True)
    parameters = dict(run.parameters)
    if "output_dir" in notebook_parameters(source):
        parameters["output_dir"] = str(out)
    progress = _Progress(say)
    try:
        with progress.beating():
            executed = papermill.execute_notebook(
                source, partial, parameters, kernel_name="python3", kernel_manager_class=_kernel_manager_class(),
                progress_bar=False, execution_timeout=timeout, on_cell_execute=progress.cell,
                stdout_file=progress, stderr_file=progress,
            )  # fmt: skip
        _write_html(executed, page, run.notebook)
        os.replace(partial, target)
    except (papermill.PapermillExecutionError, CellTimeoutError, DeadKernelError) as error:
        os.replace(partial, target)
        if isinstance(error, papermill.PapermillExecutionError):
            reason = f"{error.ename}: {error.evalue}"
        elif isinstance(error, CellTimeoutError):
            reason = f"TimeoutError: longer than the {timeout} s that the profile allows (cell_timeout_seconds)"
        else:
            reason = "DeadKernelError: the kernel died, often for want of memory"
        place = f"{run}, cell [{progress.number}]"
        raise NotebookError(f"{place}: {reason}\nkept with its output: {_short(target)}") from None
    finally:
        partial.unlink(missing_ok=True)
    return target


def require_devices(names: set[str]) -> None:
    """See that each device demanded exists; torch is imported only where one is.

    Raises:
        ValueError: one does not.
    """
    for name in names - {"auto", "cpu"}:
        import torch

        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0][:80]
            raise ValueError(f"device '{name}' is not there: {reason}; valid: auto, cpu, cuda, cuda:N") from None


def clock(seconds: float) -> str:
    """A duration in words.

    >>> clock(3.21), clock(151)
    ('3.2 s', '2 min 31 s')
    """
    return f"{seconds:.1f} s" if seconds < 60 else "{} min {:02d} s".format(*divmod(round(seconds), 60))


class _Progress:
    """Says every minute which cell is running and the last line that it wrote."""

    def __init__(self, say: Say) -> None:
        self.say, self.number, self.last = say, 0, ""

    def cell(self, **_: Any) -> None:  # nbclient's hook
        self.number, self.last = self.number + 1, ""

    def write(self, text: str) -> None:  # the kernel's stdout and stderr
        lines = [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]
        self.last = lines[-1][:90] if lines else self.last

    def flush(self) -> None: ...

    @contextlib.contextmanager
    def beating(self) -> Iterator[None]:
        begin, done = time.monotonic(), threading.Event()

        def beat() -> None:
            while not done.wait(HEARTBEAT_SECONDS):
                self.say(f"      {clock(time.monotonic() - begin)}: cell [{self.number}]  {self.last}".rstrip())

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _kernel_manager_class() -> type:
    """A kernel manager that starts this very interpreter, whatever kernels are installed on the machine."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager

    class OwnKernelSpec(KernelSpecManager):
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            spec = KernelSpec(**get_kernel_dict())
            spec.argv = [sys.executable, *spec.argv[1:], "--log-level=50"]  # without its warnings about local TCP
            spec.env = {"RVLR_HEADLESS": "1", "TQDM_MININTERVAL": "10", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
            return spec

    class OwnKernelManager(AsyncKernelManager):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(kernel_spec_manager=OwnKernelSpec(), **kwargs)

    return OwnKernelManager


def _write_html(notebook: Any, path: Path, title: str) -> None:
    """HTML with everything embedded, without the folded cells; only a notebook with formulas asks for MathJax."""
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    folded = Config({"TagRemovePreprocessor": {"enabled": True, "remove_input_tags": set(FOLDED)}})
    exporter = HTMLExporter(config=folded, embed_images=True, require_js_url="", jquery_url="")
    if not any("$" in cell.source for cell in notebook.cells if cell.cell_type == "markdown"):
        exporter.mathjax_url = ""
    body, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    with replacing(path) as partial:
        partial.write_text(body)


def _claim(out: Path, profile: Profile, overwrite: bool) -> dict[str, Any]:
    """Make the run folder ours and return its record; see that it is empty, of the same settings, or to be replaced."""
    runs = [{"notebook": run.notebook, "dataset": run.dataset, "parameters": run.parameters} for run in profile.runs]
    record: dict[str, Any] = {
        "profile": profile.name,
        "description": profile.description,
        "profile_sha256": profile.sha256,
        "runs": runs,
        "command": shlex.join([Path(sys.argv[0]).name.replace("__main__.py", "rvlr"), *sys.argv[1:]]),
        "finished": False,
        "provenance": provenance(),
    }
    earlier = read_json(out / "run.json") if (out / "run.json").is_file() else record
    ours = OWN_NAMES | {run["dataset"] for run in runs + earlier["runs"]}
    present = [path for path in out.glob("*") if not path.name.startswith(".")]
    strangers = sorted(path.name for path in present if path.name not in ours)
    if strangers and earlier is record:
        raise ValueError(f"{_short(out)} holds other things ({', '.join(strangers[:3])}): choose a folder with --out")
    differences = _differences(earlier, record)
    if overwrite:
        for path in (path for path in present if path.name in ours):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        earlier = record
    elif differences:
        ways = "choose another folder with --out, or replace that run with --overwrite"
        raise ValueError("\n  ".join([f"{_short(out)} belongs to a run of other settings:", *differences, ways]))
    done = {(run["notebook"], run["dataset"]): run for run in earlier["runs"]}
    for run in runs:
        run.update(done.get((run["notebook"], run["dataset"]), {}))
    write_json(out / "run.json", record)
    return record


def _key(run: Run, root: Path) -> str:
    """Changes with the notebook, its parameters, any file of the library and the versions that decide a number."""
    digest = hashlib.sha256(json.dumps([str(run), run.parameters, versions()], sort_keys=True).encode())
    for path in (root / "notebooks" / f"{run.notebook}.ipynb", *sorted(PACKAGE.rglob("*.*"))):
        if path.suffix in {".ipynb", ".py", ".yaml", ".json"}:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _outputs(run: Run, out: Path, since: float) -> list[str]:
    """What a notebook wrote, relative to the run folder."""
    book = out / run.dataset / f"{run.notebook}.ipynb"
    others = [*out.glob(f"results/{run.dataset}_{run.notebook}.json"), *out.glob(f"figures/{run.dataset}_*")]
    written = [path for path in others if path.stat().st_mtime >= since - 1]
    return [str(path.relative_to(out)) for path in (book, book.with_suffix(".html"), *sorted(written))]


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs in the settings of two run records, one line each."""
    lines = [] if old["profile"] == new["profile"] else [f"profile was {old['profile']}, is {new['profile']}"]
    before, after = (
        {f"{run['notebook']} ({run['dataset']})": run["parameters"] for run in record["runs"]} for record in (old, new)
    )
    for name in dict.fromkeys([*before, *after]):
        was, now = before.get(name), after.get(name)
        if was is None or now is None:
            lines.append(f"{name} {'is new' if was is None else 'is gone'}")
            continue
        for parameter in sorted(set(was) | set(now)):
            one, two = (side.get(parameter, "the notebook's default") for side in (was, now))
            if one != two:
                lines.append(f"{name}: {parameter} was {one}, is {two}")
    return lines


def _short(path: Path) -> str:
    """The path as seen from here, where it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
