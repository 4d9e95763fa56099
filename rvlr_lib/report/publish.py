"""The report of a run, Markdown and HTML, and its tables as CSV and LaTeX; all of it from saved results."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rvlr_lib.figures.redraw import figure_names
from rvlr_lib.report.profiles import CHECKOUT
from rvlr_lib.report.report import kept_decimals, records_markdown
from rvlr_lib.study.saved import read_results, read_run
from rvlr_lib.tables import replacing, shown, write_table

CAUTION = "Small models on small pictures: these are not the scores of the paper."
PRESETS = Path(__file__).parents[1] / "presets"
METHOD = "corrected"  # preset of the method that the notebooks use
OWN_DATA = "own"  # preset of data sets that have none of their own
RIVALS = ("matching_longer", "intra")  # "RVLR helps" needs a score above both
NOT_SETTINGS = ("output_dir", "interactive", "device")
LONG = 14  # rows from which a table is folded
OF_THE_STUDY = ("claims", "other_differences", "study")
PAGE_STYLE = """
body{max-width:68em;margin:2em auto;padding:0 1em;font:16px/1.5 system-ui,sans-serif;color:#1a1a1a}
table{border-collapse:collapse;display:block;overflow-x:auto;font-size:14px;margin:1em 0}
th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:left;font-variant-numeric:tabular-nums}
thead{border-bottom:2px solid #444;border-top:2px solid #444}
pre{overflow-x:auto}img{max-width:56em;width:100%;height:auto}nav{line-height:1.9}
summary{cursor:pointer;font-weight:bold;margin:1em 0}
code{background:#f2f2f2;padding:.1em .3em}h2{margin-top:2em;border-bottom:1px solid #ccc}
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
        f"# Report of the run {record['profile']}",
        f"{record['description'][:1].upper()}{record['description'][1:]}.",
        f"{CAUTION} Made by `{record['command']}`.",
        *_unfinished(record, found),
        "## Results",
        *(_tables(found) or ["No notebook wrote a table."]),
        *_figures(folder, record),
        "## Claims",
        claims_part(root),
        "## What did not hold in this run",
        *did_not_hold(found),
        *_data_cards(record, root),
        "## Settings",
        "What a preset does not name has the default of `rvlr_lib.config`; `rvlr config` prints all of them.",
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
    body = re.sub(r"<th[^>]*>.*?</th>", lambda match: re.sub("([/_])(?!th>)", r"\1<wbr>", match[0]), body)
    return page_html(markdown.partition("\n")[0].lstrip("# "), with_contents(plain_headings(body)))


def plain_headings(body: str) -> str:
    """An HTML body without the paragraph signs that notebooks have beside headings."""
    return re.sub(r'<a class="anchor-link".*?</a>', "", body)


def with_contents(body: str) -> str:
    """An HTML body with links to its sections below the title."""
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)
    links = " · ".join(f'<a href="#{name}">{text}</a>' for name, text in sections)
    return body.replace("</h1>", f"</h1>\n<nav>{links}</nav>", 1)


def page_html(title: str, body: str) -> str:
    """A page of our own look around an HTML body."""
    return (f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            f"<style>{PAGE_STYLE}</style></head><body>\n{body}</body></html>\n")  # fmt: skip


def write_tables(folder: Path) -> list[Path]:
    """Write every table of a run as CSV, Markdown and LaTeX (booktabs) into ``tables/``; the LaTeX files."""
    import pandas as pd

    return [
        write_table(pd.DataFrame(records), folder / "tables", f"{name}_{title}", kept_decimals(records))["tex"]
        for name, result in read_results(folder).items()
        for title, records in result["tables"].items()
    ]


def settings_rows(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What decided the numbers: presets of the data sets and of the method, and what the run set beside them."""
    import yaml

    datasets = list(dict.fromkeys(run["dataset"] for run in record["runs"]))
    for dataset, preset in [*((name, name) for name in datasets), ("all", METHOD)]:
        path = PRESETS / f"{preset}.yaml"
        path = path if path.is_file() else PRESETS / f"{OWN_DATA}.yaml"
        for part, values in yaml.safe_load(path.read_text()).items():
            for key, value in values.items() if isinstance(values, dict) else [("", values)]:
                name = f"{part}.{key}" if key else part
                yield {"data set": dataset, "setting": name, "value": str(value), "from": f"preset {path.stem}"}
    for dataset in datasets:
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
    wanted = re.sub(r"(?<!\*)\*(?!\*)", r"\\*", wanted)  # a product of a weight and a cell, no emphasis
    return "From the stored study, not from this run.\n\n" + re.sub(r"^##", "###", wanted, flags=re.MULTILINE)


def did_not_hold(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where RVLR is not above both its rivals, from the numbers of a run; a line for each data set and rival."""
    lines = []
    for name, result in found.items():
        metrics = result["metrics"]
        for rival in RIVALS:
            pairs = {key: (metrics.get(f"rvlr | {key}"), metrics.get(f"{rival} | {key}"))
                     for key in (full.split(" | ")[1] for full in metrics if full.startswith("rvlr | "))}  # fmt: skip
            below = [f"{key} ({shown(a)} against {shown(b)})" for key, (a, b) in pairs.items()
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
    """The tables of each notebook; long ones and those of the study are folded."""
    parts = []
    for name, result in found.items():
        parts += [f"### {name}"] if result["tables"] else []
        for title, records in result["tables"].items():
            files = f"[CSV](tables/{name}_{title}.csv), [LaTeX](tables/{name}_{title}.tex)"
            shown = f"**{title.replace('_', ' ')}** ({files})\n\n{records_markdown(records, kept_decimals(records))}"
            if len(records) > LONG or title in OF_THE_STUDY:
                shown = f"<details><summary>{title.replace('_', ' ')}</summary>\n\n{shown}\n\n</details>"
            parts.append(shown)
    return parts


def _figures(folder: Path, record: Mapping[str, Any]) -> list[str]:
    """All figures, by data set in the order in which these ran."""
    names, parts = figure_names(folder, record), ["## Figures"]
    for dataset in dict.fromkeys(run["dataset"] for run in record["runs"]):
        own = [name for name in names if name.startswith(f"{dataset}_")]
        parts += [f"### Figures of {dataset}"] if own else []
        for name in own:
            title = name.removeprefix(f"{dataset}_").replace("_", " ")
            parts.append(f"**{title}** ([PDF](figures/{name}.pdf), [data](figures/{name}.csv))\n\n"
                         f"![{name}](figures/{name}.png)")  # fmt: skip
    return parts if len(parts) > 1 else []


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
            own = next(run["parameters"] for run in record["runs"] if run["dataset"] == dataset)
            root_of = f" --image-root {own['image_root']}" if own.get("image_root") else ""
            command = f"rvlr data check {own.get('dataset', dataset)}{root_of} --decode"
            parts += [f"### {dataset}", f"A collection of your own: `{command}` tells what is in it."]
    return ["## Data card", *parts]
