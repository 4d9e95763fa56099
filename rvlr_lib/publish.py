"""The report of a run, Markdown and HTML, and its tables as CSV and LaTeX; all of it from saved results."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rvlr_lib.profiles import CHECKOUT
from rvlr_lib.redraw import figure_names
from rvlr_lib.report import records_markdown
from rvlr_lib.saved import read_results, read_run
from rvlr_lib.tables import replacing, write_table

CAUTION = "Small models on small pictures: these are not the scores of the paper."
PRESETS = Path(__file__).parent / "presets"
METHOD = "corrected"  # preset of the method that the notebooks use
RIVALS = ("matching_longer", "intra")  # "RVLR helps" needs a score above both
NOT_SETTINGS = ("output_dir", "interactive", "device")
PAGE_STYLE = """
body{max-width:62em;margin:2em auto;padding:0 1em;font:16px/1.5 system-ui,sans-serif;color:#1a1a1a}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px;margin:1em 0}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left;font-variant-numeric:tabular-nums}
thead{border-bottom:2px solid #444;border-top:2px solid #444}
img{max-width:100%;height:auto}code{background:#f2f2f2;padding:.1em .3em}h2{margin-top:2em;border-bottom:1px solid #ccc}
"""


def write_report(folder: Path | str, *, root: Path = CHECKOUT) -> Path:
    """Write ``report.md``, ``report.html`` (one file, pictures inside) and ``tables/`` of a run.

    Nothing is computed: tables and figures are those that the notebooks left.

    Args:
        folder: the run folder.
        root: the checkout, for the data card, the README and the claims.

    Returns:
        The path of ``report.md``; the page lies beside it.

    Raises:
        ValueError: no run, or a damaged file, which it names.
    """
    folder = Path(folder)
    text = report_markdown(folder, root=root)
    path = folder / "report.md"
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    with replacing(path.with_suffix(".html")) as partial:
        partial.write_text(report_html(text, folder), encoding="utf-8")
    write_tables(folder)
    return path


def report_markdown(folder: Path, *, root: Path = CHECKOUT) -> str:
    """The report as Markdown: results, figures, claims, what did not hold, data, settings, environment, commands."""
    record, found = read_run(folder), read_results(folder)
    origin = record["provenance"]
    environment = {"commit": origin.get("commit"), "platform": origin.get("platform"), **origin.get("versions", {})}
    shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    seconds = sum(run.get("seconds") or 0 for run in record["runs"])
    parts = [
        f"# {record['profile']}",
        record["description"],
        f"{CAUTION} Made by `{record['command']}`.",
        *_unfinished(record, found),
        "## Results",
        *(_tables(found) or ["No notebook wrote a table."]),
        *_figures(folder),
        "## Claims",
        claims_part(root),
        "## What did not hold",
        *did_not_hold(found),
        *_data_cards(record, root),
        "## Settings",
        records_markdown(list(settings_rows(record))),
        "## Notebooks",
        records_markdown([_notebook_row(run) for run in record["runs"]]),
        f"In all {seconds:.0f} s.",
        "## Environment",
        records_markdown([{"what": key, "version": value} for key, value in environment.items()]),
        "## Commands",
        f"```bash\n{record['command']}  # everything\n"
        f"rvlr figures {shown} --all  # every figure again, without a model\n"
        f"rvlr report {shown}  # this page, its HTML and the tables\n"
        f"rvlr explore {shown}  # the common space to walk in\n```",
    ]
    return "\n\n".join(parts) + "\n"


def report_html(markdown: str, folder: Path) -> str:
    """The report as one HTML file, every picture inside it."""
    from nbconvert.filters import markdown2html

    def embedded(match: re.Match[str]) -> str:
        path = folder / match[1]
        if not path.is_file():
            raise ValueError(f"{path} is missing: `rvlr figures {folder} --all` draws it again")
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    body = re.sub(r'src="(figures/[^"]+\.png)"', embedded, markdown2html(markdown))
    body = re.sub(r'<a class="anchor-link".*?</a>', "", body)
    return page_html(markdown.partition("\n")[0].lstrip("# "), body)


def page_html(title: str, body: str) -> str:
    """A page of our own look around an HTML body."""
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{PAGE_STYLE}</style></head><body>\n{body}</body></html>\n")  # fmt: skip


def write_tables(folder: Path) -> list[Path]:
    """Write every table of a run as CSV, Markdown and LaTeX (booktabs) into ``tables/``; the LaTeX files."""
    import pandas as pd

    return [
        write_table(pd.DataFrame(records), folder / "tables", f"{name}_{title}")["tex"]
        for name, result in read_results(folder).items()
        for title, records in result["tables"].items()
    ]


def settings_rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What decided the numbers: presets of the data sets and of the method, and what the run set beside them."""
    import yaml

    for dataset in dict.fromkeys(run["dataset"] for run in record["runs"]):
        presets = [name for name in (dataset, METHOD) if (PRESETS / f"{name}.yaml").is_file()]
        for preset in presets:
            for part, values in yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()).items():
                items = values.items() if isinstance(values, dict) else [("", values)]
                for key, value in items:
                    name = f"{part}.{key}" if key else part
                    yield {"data set": dataset, "setting": name, "value": str(value), "from": f"preset {preset}"}
        given: dict[tuple[str, str], list[str]] = {}
        for run in record["runs"]:
            for key, value in run["parameters"].items():
                if run["dataset"] == dataset and key not in (*NOT_SETTINGS, "dataset"):
                    given.setdefault((key, str(value)), []).append(run["notebook"].split("_")[0])
        for (key, value), notebooks in given.items():
            yield {"data set": dataset, "setting": key, "value": value, "from": f"notebooks {', '.join(notebooks)}"}


def claims_part(root: Path = CHECKOUT) -> str:
    """The claims of the imbalance study as its own page has them, or the command that makes it."""
    page = root / "data" / "reference" / "study" / "claims.md"
    if not page.is_file():
        return "No study of several seeds is stored: `rvlr study` trains it, `rvlr report --claims` judges it."
    text = page.read_text(encoding="utf-8")
    wanted = text.partition("## Primary claims")[2].partition("## Other differences")[0].strip()
    if not wanted:
        return f"The claims stand in {page.relative_to(root)}."
    return "From the stored study, not from this run.\n\n" + re.sub(r"^##", "###", wanted, flags=re.MULTILINE)


def did_not_hold(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where RVLR is not above both its rivals, from the numbers of a run; a line for each data set and rival."""
    lines = []
    for name, result in found.items():
        metrics = result["metrics"]
        for rival in RIVALS:
            pairs = {key: (metrics.get(f"rvlr | {key}"), metrics.get(f"{rival} | {key}"))
                     for key in (full.split(" | ")[1] for full in metrics if full.startswith("rvlr | "))}  # fmt: skip
            below = [f"{key} ({a:.1f} against {b:.1f})" for key, (a, b) in pairs.items()
                     if a is not None and b is not None and a <= b]  # fmt: skip
            if below:
                lines.append(f"- {name}: RVLR is not above `{rival}` in {', '.join(below)}.")
    if not lines:
        return ["In this run RVLR is above its rivals wherever both were measured."]
    return ["\n".join(lines), "One seed: a lead in either direction, no verdict."]


def _unfinished(record: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    missing = [f"{run['notebook']} ({run['dataset']})" for run in record["runs"]
               if f"{run['dataset']}_{run['notebook']}" not in found]  # fmt: skip
    if not missing:
        return []
    return [
        f"**Not finished**: {', '.join(missing)}. `rvlr reproduce --profile {record['profile']}` goes on from here."
    ]


def _tables(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [
        f"**{name}/{title}** ([CSV](tables/{name}_{title}.csv), [LaTeX](tables/{name}_{title}.tex))\n\n"
        + records_markdown(records)
        for name, result in found.items()
        for title, records in result["tables"].items()
    ]


def _figures(folder: Path) -> list[str]:
    names = figure_names(folder)
    shown = [
        f"{name} ([PDF](figures/{name}.pdf), [data](figures/{name}.csv))\n\n![{name}](figures/{name}.png)"
        for name in names
    ]
    return ["## Figures", *shown] if names else []


def _notebook_row(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "notebook": f"[{run['notebook']}]({run['dataset']}/{run['notebook']}.html)",
        "data set": run["dataset"],
        "seconds": run.get("seconds"),
        "parameters": ", ".join(f"{key}={value}" for key, value in run["parameters"].items()),
    }


def _data_cards(record: Mapping[str, Any], root: Path) -> list[str]:
    """The section of ``data/README.md`` of each data set, and its line in the table of counts."""
    path = root / "data" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    parts = []
    for dataset in dict.fromkeys(run["dataset"] for run in record["runs"]):
        section = re.search(rf"^## {re.escape(dataset)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
        if section:
            parts += [f"### {dataset}", section[1].strip()]
        else:
            parts += [f"### {dataset}", "A data set of one's own: `rvlr data card` tells what is in it."]
    return ["## Data card", *parts]
