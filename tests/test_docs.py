import importlib.util
import re
from pathlib import Path

import pytest

from rvlr_lib.disk import write_json

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
docs = importlib.util.module_from_spec(spec)
spec.loader.exec_module(docs)
BOOKS = [Path("scenes/01_a.html"), Path("scenes/03_b.html"), Path("emoji/03_b.html")]


@pytest.fixture(autouse=True)
def without_api(monkeypatch):
    monkeypatch.setattr(docs, "write_api", lambda out: None)


def test_links_of_pages_and_notebooks():
    page = '<a href="01_a.ipynb#Claims"><a href="03_b.ipynb"><a href="09_z.ipynb"><a href="../docs/own.md">'
    linked = re.findall('href="([^"]*)"', docs.book_links(page, BOOKS[2], BOOKS))
    assert linked == ["../scenes/01_a.html#Claims", "../emoji/03_b.html", "../../report.html", "../../docs/own.html"]
    assert docs.page_links('href="README.md" href="data/README.md"', []) == 'href="index.html" href="data/README.html"'
    page = '<a href="GLOSSARY.md#x"><a href="../notebooks/03_b.ipynb"><a href="https://x.org/a.md"><a href="#here">'
    linked = re.findall('href="([^"]*)"', docs.page_links(page, BOOKS))
    assert linked == ["GLOSSARY.html#x", "../notebooks/scenes/03_b.html", "https://x.org/a.md", "#here"]


@pytest.mark.parametrize("name", docs.PAGES)
def test_linked_files_exist_and_linked_pages_are_in_the_site(name):
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8"))
    files = [((ROOT / name).parent / link).resolve().relative_to(ROOT) for link in links]
    assert not [file for file in files if not (ROOT / file).exists()]
    assert {file.as_posix() for file in files if file.suffix == ".md"} <= set(docs.PAGES)
    assert len(files) >= 8 or name != "README.md"


def test_a_site_with_a_run(tmp_path, monkeypatch, capsys, refuses):
    run, site = tmp_path / "run", tmp_path / "site"
    record = {"profile": "smoke", "description": "tiny", "command": "rvlr x --overwrite", "provenance": {}}
    write_json(run / "run.json", record | {"runs": [{"notebook": "01_a", "dataset": "scenes", "parameters": {}}]})
    refuses("no executed notebook.*`rvlr x` makes", docs.build, run, site)
    (run / "scenes").mkdir()
    body = f'<body><h1>A</h1>{docs.ROOT}/x<a href="../GLOSSARY.md">'
    (run / "scenes" / "01_a.html").write_text(f"<title>01</title>{body}")
    monkeypatch.setattr(docs, "write_explorer", lambda *paths: exec("raise ValueError('not cached')"))
    pages = docs.build(run, site)
    assert "no explorer: not cached" in capsys.readouterr().out
    assert len(pages) == len(docs.PAGES) + 2
    assert 'href="notebooks/scenes/01_a.html"' in (site / "report.html").read_text(encoding="utf-8").split("</nav>")[1]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        linked = re.findall(r'href="([^"#:]+\.html)', text.partition("</nav>")[0])
        assert all((page.parent / link).is_file() for link in linked if not link.endswith("rvlr_lib.html"))
        assert len(linked) == len(docs.PAGES) + 3 or (page.name == "01_a.html" and str(docs.ROOT) not in text)
        assert text.count('aria-current="page"') == (page.name != "01_a.html")
        assert re.search('href="[./]*index.html"', text)
        assert set(re.findall('href="#([^"]+)"', text)) <= set(re.findall('id="([^"]+)"', text)), page
        assert text.count("<table") == text.count('<div class="wide"><table')
    assert "<title>A</title>" in (site / "notebooks" / "scenes" / "01_a.html").read_text(encoding="utf-8")
    readme = (site / "index.html").read_text(encoding="utf-8")
    pictures = re.findall(r'<img[^>]*src="(?!https?:|data:)([^"]+)"', readme)
    assert pictures
    assert all((site / picture).is_file() for picture in pictures)


def test_a_site_without_a_run_and_a_folder_with_other_files(tmp_path, refuses):
    assert len(docs.build(None, tmp_path / "site")) == len(docs.PAGES)
    assert len(docs.build(None, tmp_path / "site")) == len(docs.PAGES)
    (tmp_path / "index.html").touch()
    refuses("other files than a site", docs.build, None, tmp_path)
    assert (tmp_path / "index.html").is_file()
