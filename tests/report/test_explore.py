import dataclasses
import re
import shutil

import numpy as np
import pytest

from rvlr_lib.data import load_dataset
from rvlr_lib.disk import write_json
from rvlr_lib.figures.projection import Projection
from rvlr_lib.report import explorer as explore
from rvlr_lib.report.explorer_view import colour_modes
from rvlr_lib.study.cache import cached, only_cached

COUNT = 30
RNG = np.random.default_rng(0)
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def gallery():
    return load_dataset("scenes", split="val", size=COUNT, text_detail=1.0)


@pytest.fixture(scope="module")
def spaces(gallery):
    shapes = (COUNT, 8), (len(gallery.captions), 8)
    return {name: tuple(RNG.normal(size=shape).astype(np.float32) for shape in shapes) for name in explore.SPACES}


@pytest.fixture(scope="module")
def points(gallery, spaces):
    rows = np.arange(COUNT)
    coords = {name: tuple(RNG.normal(size=(COUNT, 2)) for _ in "it") for name in spaces}
    texts = np.array([gallery.captions_of(row)[0] for row in rows])
    trust = {name: {"image": 0.9, "text": 0.9, "joint": 0.9} for name in spaces}
    return explore.collect_points(gallery, spaces, Projection(coords, rows, texts, trust, "UMAP: a test"))


def slow_neighbours(points, spaces, gallery, space, p):
    """The nearest pictures and captions of a point by loops, as points."""
    texts = [spaces[space][1][gallery.captions_of(i)[0]] for i in range(COUNT)]
    everything = [*spaces[space][0], *texts]
    query = everything[p]
    scored = [(-float(query @ x) / np.linalg.norm(x), q) for q, x in enumerate(everything) if q != p]
    ranked = [q for _, q in sorted(scored)]
    return [q for q in ranked if q < COUNT], [q for q in ranked if q >= COUNT]


@pytest.mark.parametrize("p", [0, 7, COUNT, COUNT + 11])
def test_neighbours_and_hits_against_loops(points, spaces, gallery, p):
    for space in ("baseline", "RVLR"):
        pictures, captions = slow_neighbours(points, spaces, gallery, space, p)
        assert list(points.neighbours[space][0][p]) == pictures[: explore.NEIGHBOURS]
        assert list(points.neighbours[space][1][p]) == captions[: explore.NEIGHBOURS]
        partner, across = (p + COUNT, captions) if p < COUNT else (p - COUNT, pictures)
        assert points.hits[space][p] == (partner in across[: explore.HIT_RANK])
    pictures, captions = slow_neighbours(points, spaces, gallery, "teachers", p)
    own, other = (0, 1) if p < COUNT else (1, 0)
    assert list(points.neighbours["teachers"][own][p]) == (pictures, captions)[own][: explore.NEIGHBOURS]
    assert set(points.neighbours["teachers"][other][p]) == {-1}
    assert points.hits["teachers"] is None


def test_overlap_with_the_teachers(points, spaces, gallery):
    shares = points.overlaps["the teachers"]
    assert set(shares["teachers"]) == {100.0}
    for p in (3, COUNT + 5):
        kind = 0 if p < COUNT else 1
        mine, theirs = (set(slow_neighbours(points, spaces, gallery, s, p)[kind][:10]) for s in ("RVLR", "teachers"))
        assert shares["RVLR"][p] == pytest.approx(10 * len(mine & theirs))
    assert set(points.overlaps) == {"the teachers", "the truth"}


def test_groups_are_the_factors(points, gallery):
    facts = gallery.scene.scene
    assert points.groups["number of objects"][4] == str(int((facts.objects[4, :, 0] >= 0).sum()))
    assert len(points.groups) == 4
    emoji = explore.picture_groups(load_dataset("emoji", split="val", limit=12))
    assert set(emoji) == {"category", "subcategory"}


def test_enough_galleries():
    test = load_dataset("scenes", split="test", galleries=3, gallery_size=10, text_detail=1.0)
    rows = np.arange(len(test))[:, None], np.arange(len(test.captions))[:, None]
    for most, count in ((10, 10), (20, 10), (40, 20), (1000, 30)):
        gallery, spaces = explore.enough_galleries(test, {"a": rows}, most)
        assert len(gallery) == len(spaces["a"][0]) == count
        assert [test.captions[row] for row in np.asarray(spaces["a"][1]).flatten()] == gallery.captions


def test_the_scale_of_overlaps_ends_where_most_points_do(points):
    shares = {name: np.full(2 * COUNT, 20.0) for name in points.coords}
    shares["RVLR"] = np.r_[90.0, np.full(2 * COUNT - 1, 30.0)]
    mode = colour_modes(dataclasses.replace(points, overlaps={"x": shares}))["neighbours shared with x"]
    assert len(mode.palette) == 4
    assert "30 % or more" in mode.legend
    assert set(mode.codes["RVLR"]) == {3}
    assert set(mode.codes["baseline"]) == {2}


def test_page_is_whole_and_says_what_is_missing(points, tmp_path):
    html = explore.explorer_page({"scenes": points, "emoji": "run <this>"}, "a title")
    assert "<title>a title</title>" in html
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', html)
    assert "run &amp;lt;this&amp;gt;" in html or "run &lt;this&gt;" in html
    assert html.count("data:image/webp") == COUNT


def test_a_run_without_what_is_needed(tmp_path, monkeypatch):
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    with pytest.raises(ValueError, match="holds no run.*rvlr reproduce"):
        explore.write_explorer(tmp_path / "none")
    run = {"notebook": "04", "dataset": "scenes", "parameters": {"train_size": 16, "val_size": 8, "gallery_size": 8}}
    record = {"profile": "smoke", "description": "", "command": "", "provenance": {}, "runs": [run]}
    write_json(tmp_path / "run" / "run.json", record)
    with pytest.raises(ValueError, match="stages of scenes are missing.*rvlr reproduce --profile smoke"):
        explore.write_explorer(tmp_path / "run")
    with pytest.raises(ValueError, match="at least 10"):
        explore.write_explorer(tmp_path / "run", points=4)
    write_json(tmp_path / "run" / "run.json", {"runs": []})
    with pytest.raises(ValueError, match=r"run.json lacks command, description, profile, provenance"):
        explore.write_explorer(tmp_path / "run")


def test_a_data_set_that_cannot_be_shown_is_said(points, tmp_path, monkeypatch):
    runs = [{"notebook": "04", "dataset": name, "parameters": {}} for name in ("scenes", "emoji")]
    record = {"profile": "smoke", "description": "", "command": "", "provenance": {}, "runs": runs}
    write_json(tmp_path / "run.json", record)
    monkeypatch.setattr(explore, "explorer_points", lambda _, __, name, ___: points if name == "scenes" else fail(name))
    said = []
    page = explore.write_explorer(tmp_path, say=said.append)
    assert said == ["emoji is left out: x.safetensors is damaged"]
    assert "x.safetensors is damaged" in page.read_text()


def fail(name):
    raise ValueError("x.safetensors is damaged")


def test_only_cached_computes_nothing(tmp_path):
    folder = cached(tmp_path, "stage", {"a": 1}, "rvlr_lib.similarity", lambda _: None)
    with only_cached("so make it"):
        assert cached(tmp_path, "stage", {"a": 1}, "rvlr_lib.similarity", pytest.fail) == folder
        with pytest.raises(ValueError, match="so make it"):
            cached(tmp_path, "stage", {"a": 2}, "rvlr_lib.similarity", pytest.fail)
    cached(tmp_path, "stage", {"a": 2}, "rvlr_lib.similarity", lambda _: None)


# ---- in a browser ---------------------------------------------------------------------------------------------------

DEEP = """
const find = (root) => { for (const e of root.querySelectorAll('*')) {
  if (e.matches(arguments[0]) && e.textContent.includes(arguments[1])) return e;
  const inside = e.shadowRoot && find(e.shadowRoot); if (inside) return inside; } return null; };
return find(document);
"""
MODEL = "const model = (name) => Bokeh.documents[0].get_model_by_name('scenes ' + name);"
PLACE = (
    MODEL
    + """
const view = Bokeh.index.get_one_by_id(model('map').id), source = model('map').renderers[1].data_source;
const box = view.canvas_view.el.getBoundingClientRect(), p = arguments[0];
const { x, y } = source.data, { x_scale, y_scale } = view.frame;
return [box.left + x_scale.compute(x[p]), box.top + y_scale.compute(y[p])];
"""
)


@pytest.fixture(scope="module")
def browser(points, tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip("no chromium with chromedriver here")
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    page = tmp_path_factory.mktemp("page") / "explore.html"
    parts = {"scenes": points, "twin": dataclasses.replace(points, dataset="twin"), "emoji": "not there"}
    page.write_text(explore.explorer_page(parts, "a title"), encoding="utf-8")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1300,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.get(page.as_uri())
    WebDriverWait(driver, 60).until(
        lambda d: d.execute_script("return !!(window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle)")
    )
    yield driver
    driver.quit()


def panel(driver):
    return driver.execute_script(MODEL + "return model('panel').text")


def drawn(driver):
    return np.array(driver.execute_script(
        MODEL + "const d = model('map').renderers[1].data_source.data; return [Array.from(d.x), Array.from(d.y)]"
    )).T  # fmt: skip


def test_clicks(browser, points):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    wait = WebDriverWait(browser, 60)
    wait.until(lambda d: "Click a point" in panel(d) and panel(d).count("data-point") == COUNT)
    assert np.allclose(drawn(browser), points.coords["RVLR"], atol=1e-5)
    far = np.linalg.norm(points.coords["RVLR"], axis=1)
    lonely = int(np.argmax(np.where(np.arange(2 * COUNT) % COUNT, far, 0)))  # no other point lies on it; not the first
    x, y = browser.execute_script(PLACE, lonely)
    actions = ActionChains(browser)
    actions.w3c_actions.pointer_action.move_to_location(int(x), int(y))
    actions.perform()
    shown = wait.until(lambda d: d.execute_script(DEEP, ".bk-tooltip-content, .bk-Tooltip, .bk-tooltip", " "))
    assert points.captions[lonely % COUNT][0] in shown.text
    assert shown.find_element("css selector", "img").get_attribute("src") == points.pictures[lonely % COUNT]
    actions.w3c_actions.pointer_action.click()
    actions.perform()
    kind = "This picture" if lonely < COUNT else "This caption"
    wait.until(lambda d: kind in panel(d))
    assert points.captions[lonely % COUNT][0] in panel(browser)
    assert all(f">{name}" in panel(browser) for name in points.coords)

    browser.execute_script(DEEP, "img[data-point]", "").click()  # a neighbour in the panel becomes the chosen point
    wait.until(lambda d: "This picture" in panel(d))

    browser.execute_script(DEEP, "button", "baseline").click()
    wait.until(lambda d: np.allclose(drawn(d), points.coords["baseline"], atol=1e-5))

    words = browser.execute_script(DEEP, "input[type=text]", "")
    words.send_keys(points.captions[0][0].split()[-1])
    wait.until(lambda d: "with these words are ringed" in panel(d))
    found = int(re.search(r"<b>(\d+) pictures", panel(browser))[1])
    word = points.captions[0][0].split()[-1]
    assert found == sum(any(f" {word}" in f" {text} " for text in captions) for captions in points.captions)
    words.send_keys(Keys.CONTROL, "a")
    words.send_keys(Keys.DELETE)

    browser.execute_script(DEEP, "select", "modality").send_keys("hit or miss")
    wait.until(lambda d: "no common space" in d.execute_script(MODEL + "return model('legend').text"))
    browser.execute_script(DEEP, ".bk-tab", "emoji").click()
    wait.until(lambda d: d.execute_script(DEEP, ".bk-clearfix", "not there"))
    assert [line for line in browser.get_log("browser") if line["level"] == "SEVERE"] == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []
