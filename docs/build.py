"""Build the documentation site: the pages of the checkout, the notebooks of a run, and the API reference.

    python docs/build.py runs/quick site

Nothing is downloaded or trained. ``python docs/build.py "" site`` builds the site without a run.
"""

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path

from rvlr_lib.disk import write_text
from rvlr_lib.report.explorer import write_explorer
from rvlr_lib.report.output import read_run, rerun_command
from rvlr_lib.report.report import markdown_html, page_html, write_report
from rvlr_lib.report.reproduce import Run, notebook_links

ROOT = Path(__file__).parents[1]
FIRST = ("README.md", "GLOSSARY.md", "FIDELITY.md", "PERFORMANCE.md", "LOG.md", "CHANGELOG.md", "CONTRIBUTING.md")
MORE = ("docs/*.md", "data/README.md", "data/reference/*/claims.md")
MARK = ".rvlr-site"  # marks a folder that may be removed
PAGES = [*FIRST, *(path.relative_to(ROOT).as_posix() for pattern in MORE for path in sorted(ROOT.glob(pattern)))]
Sidebar = list[tuple[str, list[tuple[str, str]]]]  # headings with links: address, label


def build(run: Path | None, out: Path) -> list[Path]:
    """Write the site into a folder and return its pages.

    Raises:
        ValueError: the run is missing, damaged or has no executed notebook, or the folder holds other files.
    """
    books = executed(run) if run else []
    if out.is_symlink() or (out.exists() and not (out / MARK).is_file() and any(out.iterdir())):
        raise ValueError(f"{out} is a link, or holds other files than a site built here: choose another folder")
    if run and run.resolve().is_relative_to(out.resolve()):
        raise ValueError(f"the run {run} lies in {out}, which is rebuilt: choose another folder")
    if out.exists():
        shutil.rmtree(out)
    write_text(out / MARK, "Built by docs/build.py, which replaces this folder.\n")
    sidebar: Sidebar = [("Pages", [(address(name), title(name)) for name in PAGES])]
    if run:
        sidebar += add_run(run, books, out)
    sidebar.append(("Library", [("api/rvlr_lib.html", "API")]))
    for name in PAGES:
        body = markdown_html((ROOT / name).read_text(encoding="utf-8"))
        copy_linked(body, name, out)
        write_page(out, address(name), title(name), page_links(body, books, "../" * name.count("/")), sidebar)
    if run:
        body = markdown_html((run / "report.md").read_text(encoding="utf-8"))
        body = re.sub(r'href="([^":]+/\w+\.html)"', r'href="notebooks/\1"', body)
        write_page(out, "report.html", f"Report of {run.name}", body, sidebar)
    write_api(out / "api")
    return sorted(out.rglob("*.html"))


def address(name: str) -> str:
    """The address of the page for a file of the checkout.

    >>> address("README.md"), address("docs/map.md")
    ('index.html', 'docs/map.html')
    """
    return "index.html" if name == "README.md" else name.replace(".md", ".html")


def write_page(out: Path, target: str, heading: str, body: str, sidebar: Sidebar) -> None:
    """Write a page to the address ``target``, which is marked as current in the sidebar."""
    up = "../" * target.count("/")
    navigation = [(section, [(up + link, label) for link, label in links]) for section, links in sidebar]
    current = f'href="{up}{target}"'
    write_text(out / target, page_html(heading, body, navigation).replace(current, f'{current} aria-current="page"', 1))


def with_home_link(page: str, up: str, after: str = "<body[^>]*>") -> str:
    """A page in another style, with a link to the first page added."""
    link = f'<p style="margin: .5em 1em; font: 15px sans-serif"><a href="{up}index.html">← {title("README.md")}</a></p>'
    return re.sub(f"({after})", lambda match: match[1] + link, page, count=1)


def executed(run: Path) -> list[Path]:
    """The HTML pages of a run's notebooks, relative to its folder."""
    record = read_run(run)
    books = [Path(entry["dataset"]) / f"{entry['notebook']}.html" for entry in record["runs"]]
    books = [page for page in books if (run / page).is_file()]
    if not books:
        raise ValueError(f"{run} holds no executed notebook: {rerun_command(record)} makes them")
    return books


def add_run(run: Path, books: list[Path], out: Path) -> Sidebar:
    """Write the report of a run, add its explorer, notebooks, figures and tables, and return its sidebar sections."""
    pages = [("report.html", "report")]
    write_report(run)
    try:
        path = write_explorer(run, out / "explore.html")
        path.write_text(with_home_link(path.read_text(encoding="utf-8"), ""), encoding="utf-8")
        pages.append(("explore.html", "explorer"))
    except ValueError as error:
        print(f"docs: no explorer: {error}")
    for page in books:
        text = (run / page).read_text(encoding="utf-8").replace(str(run.resolve()), f"runs/{run.name}")
        text = book_links(text.replace(str(ROOT), "."), page, books)
        if heading := re.search("<h1[^>]*>(.*?)<", text):
            text = re.sub("<title>.*?</title>", lambda match: f"<title>{heading[1]}</title>", text, count=1)
        write_text(out / "notebooks" / page, with_home_link(text, "../../"))
    for folder in ("figures", "tables"):
        if (run / folder).is_dir():
            shutil.copytree(run / folder, out / folder, ignore=shutil.ignore_patterns("column"))
    links = [(f"notebooks/{page.as_posix()}", f"{page.stem.replace('_', ' ')} ({page.parent})") for page in books]
    return [("Run", pages), ("Notebooks", links)]


def title(name: str) -> str:
    """The title of a page in the sidebar: its first heading, with the name of the study for further claims pages.

    >>> title("GLOSSARY.md"), title("data/reference/study/claims.md")
    ('Glossary', 'Claims')
    """
    heading = re.search(r"^# (.*)$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
    text, folder = re.split(r"[:,(]", heading[1])[0].strip() if heading else Path(name).stem, Path(name).parent
    return f"{text} ({folder.name})" if folder.parent.name == "reference" and folder.name != "study" else text


def page_links(body: str, books: list[Path], up: str = "") -> str:
    """The body with links to files of the checkout leading to their pages; those to notebooks, to their first run."""
    first = {page.stem: f"notebooks/{page.as_posix()}" for page in reversed(books)}
    body = re.sub(r'href="(?!https?:)([^"#]+)\.md', r'href="\1.html', body)
    body = body.replace(f'href="{up}README.html', f'href="{up}index.html')
    return re.sub(
        r'href="((?:\.\./)*)notebooks/(\w+)\.ipynb',
        lambda match: f'href="{match[1]}{first.get(match[2], "index.html")}',
        body,
    )


def book_links(page: str, path: Path, books: list[Path]) -> str:
    """A notebook's page with its links to other notebooks, the report and the checkout leading to their pages."""
    page = notebook_links(page, str(path.parent), [Run(book.stem, str(book.parent), {}) for book in books])
    page = page.replace('href="../report.html', 'href="../../report.html')
    page = re.sub(r'href="(?:\.\./)+((?:docs/)?\w+)\.md', r'href="../../\1.html', page)
    return page.replace('href="../../README.html', 'href="../../index.html')


def copy_linked(body: str, name: str, out: Path) -> None:
    """Copy the files that a page links to and that have no page, such as pictures and settings."""
    for link in re.findall(r'(?:href|src)="(?!https?:|#)([^"#]+)', body):
        source = (ROOT / name).parent / link
        if source.is_file() and source.suffix not in {".md", ".ipynb"}:
            target = out / source.resolve().relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target)


def write_api(out: Path) -> None:
    """Write the API reference with pdoc."""
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("rvlr_lib", output_directory=out)
    for path in (path for path in out.rglob("*.*") if path.suffix in {".html", ".js"}):
        text = path.read_text(encoding="utf-8").replace(str(ROOT), ".")  # in constants
        up = "../" * len(path.relative_to(out).parts)
        path.write_text(with_home_link(text, up, '<nav class="pdoc">'), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="run folder, such as runs/quick, or an empty string")
    parser.add_argument("out", type=Path, nargs="?", default=ROOT / "site", help="folder to write (default: site)")
    arguments = parser.parse_args()
    warnings.simplefilter("error", UserWarning)
    try:
        pages = build(Path(arguments.run) if arguments.run else None, arguments.out)
    except ValueError as error:
        sys.exit(f"docs: {error}")
    print(f"{len(pages)} pages: {arguments.out / 'index.html'}")
