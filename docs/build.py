"""Build the documentation site: executed notebooks of a run, the pages of the checkout, the library's docstrings.

    python docs/build.py runs/quick site

Nothing is fetched and nothing is trained. Pages and notebooks go through nbconvert, docstrings through pdoc.
"""

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path

from nbconvert.filters import markdown2html

from rvlr_lib.report.explorer import write_explorer
from rvlr_lib.report.publish import page_html, plain_headings, write_report
from rvlr_lib.study.saved import read_run, way_back

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "GLOSSARY.md", "FIDELITY.md", "PERFORMANCE.md", "CHANGELOG.md", "CONTRIBUTING.md",
         "data/README.md", "data/reference/study/claims.md")  # fmt: skip
NOT_ON_TOP = ("data/reference/study/claims.md",)  # linked from the README


def build(run: Path, out: Path) -> list[Path]:
    """Write the site into a folder and return its pages.

    Raises:
        ValueError: the run is missing, damaged or without an executed notebook, or the folder holds something else.
    """
    record = read_run(run)
    if out.exists() and not (out / "index.html").is_file() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else than a site: choose another folder")
    notebooks = [
        Path(entry["dataset"]) / f"{entry['notebook']}.html"
        for entry in record["runs"]
        if (run / entry["dataset"] / f"{entry['notebook']}.html").is_file()
    ]
    if not notebooks:
        raise ValueError(f"{run} holds no executed notebook: {way_back(record)} makes them")
    shutil.rmtree(out, ignore_errors=True)
    write_report(run)
    for page in notebooks:
        text = (run / page).read_text(encoding="utf-8").replace(str(run.resolve()), f"runs/{run.name}")
        write_page(out / "notebooks" / page, with_navigation(notebook_links(text, page, notebooks), notebooks, 2))
    for name in PAGES:
        body = plain_headings(markdown2html((ROOT / name).read_text(encoding="utf-8")))
        copy_linked(body, name, out)
        page = page_html(name, page_links(body, notebooks))
        write_page((out / name).with_suffix(".html"), with_navigation(page, notebooks, name.count("/")))
    report = re.sub(
        r'href="(\w+/\w+\.html)"', r'href="notebooks/\1"', (run / "report.html").read_text(encoding="utf-8")
    )
    write_page(out / "report.html", with_navigation(report, notebooks, 0))
    for folder in ("figures", "tables"):
        shutil.copytree(run / folder, out / folder, ignore=shutil.ignore_patterns("*.json", "column"))
    write_explorer(run, out / "explore.html")
    write_api(out / "api")
    shutil.copy(out / "README.html", out / "index.html")
    return sorted(out.rglob("*.html"))


def write_page(path: Path, text: str) -> None:
    """Write a page into its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def with_navigation(page: str, notebooks: list[Path], depth: int) -> str:
    """A page with links to all others on top; ``depth``: folders below the site's."""
    pages = [(Path(name).with_suffix(".html").as_posix(), Path(name).stem if "/" not in name else "data")
             for name in PAGES if name not in NOT_ON_TOP]  # fmt: skip
    more = [("report.html", "report"), ("explore.html", "explorer"), ("api/rvlr_lib.html", "API")]
    books = [(f"notebooks/{page}", f"{page.stem.replace('_', ' ')} ({page.parent})") for page in notebooks]
    rows = [" · ".join(f'<a href="{"../" * depth}{path}">{name}</a>' for path, name in row)
            for row in (pages + more, books)]  # fmt: skip
    top = f'<nav style="font:14px/1.6 system-ui,sans-serif;max-width:78em;margin:1em auto">{"<br>".join(rows)}</nav>'
    return re.sub(r"<body[^>]*>", lambda match: f"{match[0]}\n{top}", page, count=1)


def page_links(body: str, notebooks: list[Path]) -> str:
    """Links between the files of the checkout as links between their pages; of a notebook, to its first run."""
    first = {page.stem: f"notebooks/{page}" for page in reversed(notebooks)}
    body = re.sub(r'href="(?!https?:)([^"#]+)\.md', r'href="\1.html', body)
    return re.sub(r'href="notebooks/(\w+)\.ipynb', lambda match: f'href="{first.get(match[1], "report.html")}', body)


def notebook_links(page: str, own: Path, notebooks: list[Path]) -> str:
    """Links from a notebook to others, of the same data set where it ran on it, and to the pages of the checkout."""
    places = {book.stem: f"../{book}" for book in reversed(notebooks)}
    places |= {book.stem: book.name for book in notebooks if book.parent == own.parent}
    page = re.sub(r'href="(\w+)\.ipynb', lambda match: f'href="{places.get(match[1], "../../report.html")}', page)
    return re.sub(r'href="(?:\.\./)+(GLOSSARY|FIDELITY|README)\.md', r'href="../../\1.html', page)


def copy_linked(body: str, name: str, out: Path) -> None:
    """Copy the files of the checkout, pictures and settings, that a page links to and that have no page."""
    for link in re.findall(r'(?:href|src)="(?!https?:|#)([^"#]+)', body):
        source = (ROOT / name).parent / link
        if source.is_file() and source.suffix not in {".md", ".ipynb"}:
            target = out / source.resolve().relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def write_api(out: Path) -> None:
    """The docstrings, by pdoc."""
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("rvlr_lib", output_directory=out)
    for path in (path for path in out.rglob("*.*") if path.suffix in {".html", ".js"}):  # values of constants
        path.write_text(path.read_text(encoding="utf-8").replace(str(ROOT), "."), encoding="utf-8")


def main() -> int:
    """Build the site of the command line's run; a warning is a failure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="run folder, such as runs/quick")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "site", help="folder of the site")
    arguments = parser.parse_args()
    warnings.simplefilter("error", UserWarning)
    try:
        pages = build(arguments.run, arguments.out)
    except ValueError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    print(f"{len(pages)} pages: {arguments.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
