"""The report of a run: a page and its tables from saved results, and the comparison with a reference."""

import base64
import html
import math
import os
import re
import shlex
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache, partial
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from rvlr_lib.disk import read_json, write_json, write_text
from rvlr_lib.provenance import provenance
from rvlr_lib.report.output import read_results, read_run, rerun_command
from rvlr_lib.tables import to_markdown, unbroken_intervals, write_table

CHECKOUT = Path(__file__).parents[2]
STUDIES = {"study": "Heads on frozen towers", "followup": "Heads, tuned for stronger pulls", "towers": "Whole towers"}


def write_report(folder: Path | str, *, root: Path = CHECKOUT) -> Path:
    """Write ``report.md``, ``report.html`` (with embedded pictures) and ``tables/`` of a run; returns ``report.md``.

    Nothing is computed: tables, sentences and figures are those saved by the notebooks. Claims and data cards come from
    the checkout ``root``. ValueError names a file that is missing or damaged.
    """
    import pandas as pd

    folder = Path(folder)
    record, results = read_run(folder), read_results(folder)
    by_notebook = {result["notebook"]: result["sentences"] for result in results.values()}  # of two runs the last
    rounds = zip_longest(*by_notebook.values())  # first all first sentences
    summary = [sentence for sentences in rounds for sentence in sentences if sentence][:5]
    cards = {run["dataset"]: data_card(run, root) for run in record["runs"]}
    content = {"record": record, "results": results, "summary": summary, "cards": cards, "claims": claims_part(root)}
    content |= {"rerun": rerun_command(record), "folder": shlex.quote(str(folder))}
    text = templates().get_template("report.md.j2").render(content)
    write_text(folder / "report.md", text)
    body = with_pictures(markdown_html(text), folder)
    write_text(folder / "report.html", page_html(f"Report of the run {record['profile']}", body))
    for name, result in results.items():
        for title, records in result["tables"].items():
            write_table(pd.DataFrame(records), folder / "tables", f"{name}_{title}")
    return folder / "report.md"


def claims_part(root: Path = CHECKOUT) -> str:
    """The primary claims and what did not hold, from the claims pages of stored studies; empty if there are none."""
    sections = []
    for name, title in STUDIES.items():
        page = root / "data" / "reference" / name / "claims.md"
        if page.is_file():
            primary = page.read_text(encoding="utf-8").partition("\n## Companions")[0].removeprefix("# Claims")
            sections += [f"### {title}", re.sub("^##", "####", primary.strip(), flags=re.MULTILINE)]
    return "\n\n".join(sections)


def data_card(run: Mapping[str, Any], root: Path = CHECKOUT) -> str:
    """The section of ``data/README.md`` on a run's data set, or the command that describes the user's own data."""
    path, name = root / "data" / "README.md", run["parameters"].get("dataset", run["dataset"])
    text = path.read_text(encoding="utf-8") if name == run["dataset"] and path.is_file() else ""  # not for emoji.csv
    if section := re.search(rf"^## {re.escape(run['dataset'])}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL):
        return section[1].strip()
    image_root = run["parameters"].get("image_root")
    command = ["rvlr", "data", "check", name, *(["--image-root", image_root] if image_root else [])]
    return f"```bash\n{shlex.join(command)}\n```"


def markdown_html(text: str) -> str:
    """Markdown as HTML; headings get the anchors that GitHub gives them, and tables wider than the page scroll."""
    from nbconvert.filters import markdown2html

    body = re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text))
    body = re.sub(r'(?<=<h\d id=")[^"]+', lambda m: re.sub(r"[^\w-]", "", unquote(html.unescape(m[0])).lower()), body)
    body = unbroken_intervals(body).replace("<th>in words<", '<th class="words">in words<')
    body = re.sub(r"(<table.*?</table>)", r'<div class="wide">\1</div>', body, flags=re.DOTALL)
    return re.sub(r"<th[^>]*>.*?</th>", lambda match: re.sub("([/_])(?!th>)", r"\1<wbr>", match[0]), body)


def page_html(title: str, body: str, navigation: list[tuple[str, list[tuple[str, str]]]] | None = None) -> str:
    """A styled page; without ``navigation`` (heading, links), its sidebar links to the sections of the page."""
    from pygments.formatters import HtmlFormatter

    sections = re.findall(r'<h2 id="([^"]+)">(.*?)</h2>', body)
    links = navigation or [("On this page", [(f"#{name}", re.sub("<[^>]+>", "", text)) for name, text in sections])]
    code = HtmlFormatter(style="default").get_style_defs(".highlight")
    return templates().get_template("page.html.j2").render(title=title, body=body, navigation=links, code_style=code)


def with_pictures(body: str, folder: Path) -> str:
    """The HTML body with the pictures of ``figures/`` embedded; ValueError names a missing one."""

    def embedded(match: re.Match[str]) -> str:
        path = folder / unquote(match[1])
        if not path.is_file():
            raise ValueError(f"{path} is missing: `rvlr reproduce` draws it again")
        return f'src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"'

    return re.sub(r'src="(figures/[^"]+\.png)"', embedded, body)


def compare(folder: Path, reference: Mapping[str, Any]) -> list[str]:
    """One line for each number of a run that differs from a reference beyond tolerance, is missing, or is new.

    ``reference`` is the content of ``data/reference/<profile>.json``. Its tolerances are absolute: that of the first
    pattern that matches the name of the number, else the default.
    """
    current, expected = (
        {f"{name}: {key}": math.nan if x is None else x for name, row in rows.items() for key, x in row.items()}
        for rows in (_metrics(folder), reference["metrics"])
    )
    patterns = {**reference["tolerance"].get("patterns", {}), "*": reference["tolerance"]["default"]}
    moved = []
    for name in {**expected, **current}:
        if name not in current:
            moved.append(f"{name}: missing, the reference has {expected[name]:.4g}")
        elif name not in expected:
            moved.append(f"{name}: new, {current[name]:.4g}")
        else:
            old, new = expected[name], current[name]
            allowed = next(tolerance for pattern, tolerance in patterns.items() if fnmatchcase(name, pattern))
            if not (abs(new - old) <= allowed or (math.isnan(new) and math.isnan(old))):
                moved.append(f"{name}: {old:.4g} -> {new:.4g} (moved {new - old:+.4g}, allowed {allowed:g})")
    return moved


def write_reference(folder: Path, path: Path) -> None:
    """Write the numbers of a run as a reference, keeping the tolerances of an existing file."""
    record = read_run(folder)
    tolerance = read_json(path)["tolerance"] if path.is_file() else {"default": 3.0, "patterns": {}}
    origin = provenance() | {"cpu_cores": os.cpu_count(), "command": record["command"], "runs": record["runs"]}
    reference = {"profile": record["profile"], "tolerance": tolerance, "provenance": origin}
    write_json(path, reference | {"metrics": _metrics(folder)})


def _metrics(folder: Path) -> dict[str, dict[str, float]]:
    return {name: result["metrics"] for name, result in read_results(folder).items()}


@cache
def templates() -> Any:
    """The jinja2 environment of the pages."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
    from pandas import DataFrame

    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": StrictUndefined}
    pages = Environment(loader=PackageLoader("rvlr_lib.report"), autoescape=select_autoescape(["html.j2"]), **options)
    escape = partial(re.compile(r"([\\`*_\[\]|#])").sub, r"\\\1")  # so that Markdown shows the text literally
    pages.filters |= {"path": quote, "text": lambda x: escape(html.escape(str(x), quote=False).replace("\n", " "))}
    pages.filters["table"] = lambda rows: html.escape(to_markdown(DataFrame(rows)), quote=False)
    return pages
