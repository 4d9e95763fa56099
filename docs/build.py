"""Build the documentation site: executed notebooks of a run, the pages of the checkout, the library's docstrings.

    python docs/build.py runs/quick site

Nothing is fetched. Pages and notebooks go through nbconvert, docstrings through pdoc.
"""

import argparse
import re
import shutil
import sys
import warnings
from pathlib import Path

from rvlr_lib.publish import page_html, report_html
from rvlr_lib.saved import read_run

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "GLOSSARY.md", "FIDELITY.md", "CHANGELOG.md", "CONTRIBUTING.md", "data/README.md")
PICTURES = ("data/reference/structure_stages.png", "data/contact_sheet.png")


def build(run: Path, out: Path) -> list[Path]:
    """Write the site into a folder and return its pages.

    Raises:
        ValueError: the run is missing or has no executed notebook, or the folder holds something else.
    """
    record = read_run(run)
    if out.exists() and not (out / "index.html").is_file() and any(out.iterdir()):
        raise ValueError(f"{out} holds something else than a site: choose another folder")
    shutil.rmtree(out, ignore_errors=True)
    for name in PICTURES:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, out / name)
    notebooks = [
        Path(entry["dataset"]) / f"{entry['notebook']}.html"
        for entry in record["runs"]
        if (run / entry["dataset"] / f"{entry['notebook']}.html").is_file()
    ]
    if not notebooks:
        raise ValueError(f"{run} holds no executed notebook: `rvlr reproduce --profile {record['profile']}` makes them")
    links = " · ".join(f'<a href="notebooks/{page}">{page.stem} ({page.parent})</a>' for page in notebooks)
    for page in notebooks:
        target = out / "notebooks" / page
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(local_links((run / page).read_text(encoding="utf-8"), 2), encoding="utf-8")
    for name in PAGES:
        if (ROOT / name).is_file():
            target = (out / name).with_suffix(".html")
            target.parent.mkdir(parents=True, exist_ok=True)
            body = markdown_body((ROOT / name).read_text(encoding="utf-8"))
            target.write_text(page_html(name, navigation(links, name.count("/")) + body), encoding="utf-8")
    for name in ("report.html", "explore.html"):
        if (run / name).is_file():
            shutil.copy(run / name, out / name)
    if not (out / "report.html").is_file() and (run / "report.md").is_file():
        (out / "report.html").write_text(report_html((run / "report.md").read_text(), run), encoding="utf-8")
    write_api(out / "api")
    shutil.copy(out / "README.html", out / "index.html")
    return sorted(out.rglob("*.html"))


def navigation(links: str, depth: int) -> str:
    """The links on top of every page; ``depth``: folders below the site's."""
    pages = [(Path(name).with_suffix(".html").as_posix(), Path(name).stem if "/" not in name else "data")
             for name in PAGES]  # fmt: skip
    more = [("report.html", "report"), ("explore.html", "explorer"), ("api/rvlr_lib.html", "API")]
    text = " · ".join(f'<a href="{path}">{name}</a>' for path, name in pages + more)
    return f"<nav><p>{text}</p><p>{links}</p></nav>\n".replace('href="', 'href="' + "../" * depth)


def markdown_body(text: str) -> str:
    """Markdown as HTML whose links between the pages of the checkout lead to those of the site."""
    from nbconvert.filters import markdown2html

    return local_links(re.sub(r'<a class="anchor-link".*?</a>', "", markdown2html(text)), 0)


def local_links(html: str, depth: int) -> str:
    """Links to Markdown files and notebooks as links to their pages."""
    html = re.sub(r'href="(?!https?:)([^"#]+)\.md', r'href="\1.html', html)
    if depth:
        return re.sub(r'href="(?:\.\./)*(GLOSSARY|FIDELITY|README)\.html', 'href="' + "../" * depth + r"\1.html", html)
    return re.sub(r'href="notebooks/(\w+)\.ipynb"', r'href="report.html#Notebooks"', html)


def write_api(out: Path) -> None:
    """The docstrings, by pdoc."""
    import pdoc

    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("rvlr_lib", output_directory=out)


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
