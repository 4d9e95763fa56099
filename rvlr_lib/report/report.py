"""The report of a run: one page, its tables, and its numbers beside a reference; all from saved results."""

from __future__ import annotations

import base64
import math
import os
import re
import shlex
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rvlr_lib.disk import read_json, write_json, write_text
from rvlr_lib.provenance import provenance
from rvlr_lib.report.output import read_results, read_run
from rvlr_lib.tables import to_latex, to_markdown, write_table

CHECKOUT = Path(__file__).parents[2]
DEFAULT_TOLERANCE = 3.0  # absolute, in the unit of the number
SENTENCES = 5  # of the summary
LONG = 14  # rows from which a table is folded


def write_report(folder: Path | str, *, root: Path = CHECKOUT) -> Path:
    """Write ``report.md``, ``report.html`` (one file, pictures inside) and ``tables/`` of a run.

    Nothing is computed: tables, sentences and figures are those that the notebooks left.

    Args:
        folder: the run folder.
        root: the checkout, for the claims and data cards.

    Returns:
        The path of ``report.md``; the page lies beside it.

    Raises:
        ValueError: no run, or a damaged or missing file, which it names.
    """
    folder = Path(folder)
    record, found = read_run(folder), read_results(folder)
    text = _render(
        "report.md.j2",
        record=record,
        results=found,
        summary=summary(found),
        unfinished=[run for run in record["runs"] if f"{run['dataset']}_{run['notebook']}" not in found],
        claims=claims_part(root),
        tables={name: _page_tables(name, result) for name, result in found.items()},
        cards={run["dataset"]: data_card(run, root) for run in record["runs"]},
        folder=shlex.quote(str(folder)),
        seconds=sum(run.get("seconds") or 0 for run in record["runs"]),
    )
    write_text(folder / "report.md", text)
    write_text(folder / "report.html", page_html(record["profile"], with_pictures(markdown_html(text), folder)))
    for name, records in result_tables(folder).items():
        write_table(_frame(records), folder / "tables", name.replace("/", "_"))
    return folder / "report.md"


def summary(results: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The five sentences of a run: the first of each notebook, then the second ones.

    >>> summary({"a": {"sentences": ["A1.", "A2."]}, "b": {"sentences": ["B1."]}})
    ['A1.', 'B1.', 'A2.']
    """
    ranked = [(place, each) for one in results.values() for place, each in enumerate(one["sentences"])]
    return [each for _, each in sorted(ranked, key=lambda pair: pair[0])][:SENTENCES]


def claims_part(root: Path = CHECKOUT) -> str:
    """The primary claims as the stored study's page has them; empty where none is stored."""
    page = root / "data" / "reference" / "study" / "claims.md"
    if not page.is_file():
        return ""
    text = page.read_text(encoding="utf-8").partition("## Primary claims")[2].partition("\n## Other differences")[0]
    return re.sub(r"^##", "###", re.sub(r"(?<!\*)\*(?!\*)", r"\\*", text.strip()), flags=re.MULTILINE)


def data_card(run: Mapping[str, Any], root: Path = CHECKOUT) -> str:
    """The section of ``data/README.md`` on a run's data set, or the command that describes data of one's own."""
    path = root / "data" / "README.md"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    section = re.search(rf"^## {re.escape(run['dataset'])}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if section:
        return section[1].strip()
    pictures = run["parameters"].get("image_root")
    words = ["rvlr", "data", "check", run["parameters"].get("dataset", run["dataset"])]
    return f"```bash\n{shlex.join(words + (['--image-root', pictures] if pictures else []))}\n```"


def result_tables(folder: Path, select: str = "*") -> dict[str, list[dict[str, Any]]]:
    """The result tables of a run, by ``<dataset>_<notebook>/<table>``.

    Raises:
        ValueError: none matches ``select``; lists those there are.
    """
    results = read_results(folder).items()
    found = {f"{name}/{title}": each for name, one in results for title, each in one["tables"].items()}
    chosen = {name: records for name, records in found.items() if fnmatchcase(name, select)}
    if select != "*" and not chosen:
        raise ValueError(f"no table of {folder} matches '{select}'; there are: {', '.join(found) or 'none'}")
    return chosen


def table_text(records: list[dict[str, Any]], form: str = "md") -> str:
    """A table as Markdown (``md``), CSV with all digits (``csv``), or LaTeX for booktabs (``tex``)."""
    frame = _frame(records)
    if form == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    return (to_markdown if form == "md" else to_latex)(frame).rstrip("\n") + "\n"


def markdown_html(text: str) -> str:
    """Markdown as an HTML body; code is highlighted, tables scroll where they are wider than the page."""
    from nbconvert.filters import markdown2html

    body = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    body = re.sub(r"(<table.*?</table>)", r'<div class="wide">\1</div>', body, flags=re.DOTALL)
    return re.sub(r"<th[^>]*>.*?</th>", lambda match: re.sub("([/_])(?!th>)", r"\1<wbr>", match[0]), body)


def page_html(title: str, body: str, navigation: list[tuple[str, list[tuple[str, str]]]] | None = None) -> str:
    """A page of our own look; without ``navigation`` (heading -> links) its sidebar has the sections of the page."""
    from pygments.formatters import HtmlFormatter

    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)
    links = navigation or [("On this page", [(f"#{name}", re.sub("<[^>]+>", "", text)) for name, text in sections])]
    code = HtmlFormatter(style="default").get_style_defs(".highlight")
    return _render("page.html.j2", title=title, body=body, navigation=links, code_style=code)


def with_pictures(body: str, folder: Path) -> str:
    """The HTML body with the pictures of ``figures/`` inside.

    Raises:
        ValueError: a picture is missing; names it.
    """

    def embedded(match: re.Match[str]) -> str:
        path = folder / unquote(match[1])
        if not path.is_file():
            raise ValueError(f"{path} is missing: `rvlr reproduce` draws it again")
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    return re.sub(r'src="(figures/[^"]+\.png)"', embedded, body)


def compare(folder: Path, reference: Mapping[str, Any]) -> list[str]:
    """The numbers of a run that left the tolerances of a reference, one line each.

    Args:
        folder: the run folder.
        reference: content of ``data/reference/<profile>.json``. The first of its tolerance patterns that matches the
            name of a number holds, else the default; tolerances are absolute.

    Returns:
        Lines for numbers that moved, are missing, or are new.
    """
    now, then = (
        {f"{name}: {key}": value for name, values in metrics.items() for key, value in values.items()}
        for metrics in (_metrics(folder), reference["metrics"])
    )
    patterns = {**reference["tolerance"].get("patterns", {}), "*": reference["tolerance"]["default"]}
    moved = []
    for name in dict.fromkeys([*then, *now]):
        old, new = (math.nan if values.get(name) is None else values[name] for values in (then, now))
        allowed = next(value for pattern, value in patterns.items() if fnmatchcase(name, pattern))
        if name not in now:
            moved.append(f"{name}: missing, the reference has {old:.4g}")
        elif name not in then:
            moved.append(f"{name}: new, {new:.4g}")
        elif not (abs(new - old) <= allowed or (math.isnan(new) and math.isnan(old))):
            moved.append(f"{name}: {old:.4g} -> {new:.4g} (moved {new - old:+.4g}, allowed {allowed:g})")
    return moved


def write_reference(folder: Path, path: Path) -> Path:
    """Write the numbers of a run as a reference, with the tolerances that the file had; its path."""
    record = read_run(folder)
    tolerance = read_json(path)["tolerance"] if path.is_file() else {"default": DEFAULT_TOLERANCE, "patterns": {}}
    origin = provenance() | {"cpu_cores": os.cpu_count(), "command": record["command"], "runs": record["runs"]}
    value = {"profile": record["profile"], "tolerance": tolerance, "provenance": origin, "metrics": _metrics(folder)}
    write_json(path, value)
    return path


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return {name: result["metrics"] for name, result in read_results(folder).items()}


def _frame(records: list[dict[str, Any]]) -> Any:
    import pandas as pd

    return pd.DataFrame(records)


def _page_tables(name: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tables of a notebook for the page; the first is shown whole, long ones and the others are folded."""
    return [
        {"title": title, "file": f"{name}_{title}", "text": table_text(records), "folded": place or len(records) > LONG}
        for place, (title, records) in enumerate(result["tables"].items())
        if records
    ]


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("rvlr_lib.report"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=lambda name: bool(name and name.endswith(".html.j2")),
        keep_trailing_newline=True,
    )
    environment.filters |= {"path": quote, "text": escape_markdown, "words": shlex.join}
    return environment.get_template(template).render(**values)


def escape_markdown(text: Any) -> str:
    r"""Text as Markdown shows it as it is.

    >>> escape_markdown("a_b <c> [d]")
    'a\\_b &lt;c&gt; \\[d\\]'
    """
    plain = str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", plain)
