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


def test_links_of_a_notebook_lead_to_its_own_data_set_where_it_ran():
    page = '<a href="01_a.ipynb#Claims"><a href="03_b.ipynb"><a href="09_z.ipynb"><a href="../FIDELITY.md">'
    linked = re.findall('href="([^"]*)"', docs.notebook_links(page, BOOKS[2], BOOKS))
    assert linked == ["../scenes/01_a.html#Claims", "03_b.html", "../../report.html", "../../FIDELITY.html"]


def test_links_of_a_page():
    page = '<a href="GLOSSARY.md#x"><a href="notebooks/03_b.ipynb"><a href="https://x.org/a.md"><a href="#here">'
    linked = re.findall('href="([^"]*)"', docs.page_links(page, BOOKS))
    assert linked == ["GLOSSARY.html#x", "notebooks/scenes/03_b.html", "https://x.org/a.md", "#here"]


@pytest.mark.parametrize("name", docs.PAGES)
def test_every_page_that_a_page_links_to_is_there(name):
    linked = re.findall(r"\]\((?!https?:)([^)#\s]+\.md)", (ROOT / name).read_text(encoding="utf-8"))
    places = {((ROOT / name).parent / link).resolve().relative_to(ROOT).as_posix() for link in linked}
    assert places <= set(docs.PAGES)


def test_every_page_has_the_links_on_top():
    page = docs.with_navigation('<html><body class="x"><h1>a</h1></body></html>', BOOKS, 2)
    assert page.index("<body") < page.index("<nav") < page.index("<h1>")
    assert 'href="../../README.html"' in page
    assert 'href="../../notebooks/emoji/03_b.html"' in page


def test_files_that_a_page_links_to_come_along(tmp_path):
    docs.copy_linked('<img src="data/contact_sheet.png"><a href="GLOSSARY.md">', "README.md", tmp_path)
    docs.copy_linked('<img src="../contact_sheet.png">', "data/reference/x.md", tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["data/contact_sheet.png"]


def test_what_stops_a_build(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        docs.build(tmp_path / "none", tmp_path / "site")
    run = tmp_path / "run"
    record = {"profile": "smoke", "description": "", "command": "", "provenance": {}, "runs": []}
    write_json(run / "run.json", record)
    with pytest.raises(ValueError, match="no executed notebook.*rvlr reproduce --profile smoke"):
        docs.build(run, tmp_path / "site")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="something else than a site"):
        docs.build(run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.tex").is_file()
