"""The explorer: its data against loops, and its script run by node where there is one."""

import json
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from rvlr_lib.data import load_dataset
from rvlr_lib.disk import write_json
from rvlr_lib.report import explorer

COUNT = 30
RNG = np.random.default_rng(0)
PAGE_STUB = """
const fs = require("fs"), text = fs.readFileSync(process.argv[2], "utf8");
const body = (tag) => text.match(new RegExp(`<script${tag}>([\\\\s\\\\S]*?)</script>`))[1];
const drawing = new Proxy({}, { get: () => () => {}, set: () => true });
const make = () => ({ listeners: {}, style: {}, dataset: {}, children: [], value: "", innerHTML: "", textContent: "",
  clientWidth: 800, clientHeight: 600, offsetWidth: 200, offsetHeight: 90, scrollTop: 0, getContext: () => drawing,
  getBoundingClientRect: () => ({ left: 0, top: 0, width: 800, height: 600 }), setPointerCapture: () => {},
  addEventListener(kind, does) { this.listeners[kind] = does; } });
const parts = {};
const part = (id) => (parts[id] ??= make());
part("data").textContent = body(' type="application/json" id="data"');
part("mode").value = "modality";
global.document = { getElementById: part, querySelector: () => part("canvas") };
global.window = { devicePixelRatio: 1, innerWidth: 900, innerHeight: 700, matchMedia: () => ({ matches: true }) };
global.ResizeObserver = class { observe() {} };
global.requestAnimationFrame = () => {};
const shown = "place, choose, get modes() { return modes; }, get moved() { return moved; }";
(0, eval)(`${body("")}; globalThis.page = { ${shown} }`);
"""


def projection(coords, texts, trust):
    """A map of the first pictures and of these captions, as :mod:`rvlr_lib.figures.projection` makes them."""
    rows = {"image_rows": np.arange(len(texts)), "text_rows": texts}
    return SimpleNamespace(coords=coords, **rows, trustworthiness=trust, method="UMAP: a test")


@pytest.fixture(scope="module")
def gallery():
    return load_dataset("scenes", split="val", size=COUNT, text_detail=1.0)


@pytest.fixture(scope="module")
def spaces(gallery):
    shapes = (COUNT, 8), (len(gallery.captions), 8)
    return {name: tuple(RNG.normal(size=shape).astype(np.float32) for shape in shapes) for name in explorer.SPACES}


@pytest.fixture(scope="module")
def points(gallery, spaces):
    coords = {name: tuple(RNG.normal(size=(COUNT, 2)) for _ in "it") for name in spaces}
    texts = np.array([gallery.captions_of(row)[0] for row in range(COUNT)])
    trust = {name: {"image": 0.9, "text": 0.9, "joint": 0.9} for name in spaces}
    layout = projection(coords, texts, trust)
    return explorer.collect_points(gallery, spaces, layout)


@pytest.fixture(scope="module")
def slow(spaces, gallery):
    """Function (space, point) -> nearest pictures and captions by loops, as points."""

    def nearest(space, p):
        texts = [spaces[space][1][gallery.captions_of(i)[0]] for i in range(COUNT)]
        everything = [*spaces[space][0], *texts]
        scored = [(-float(everything[p] @ x) / np.linalg.norm(x), q) for q, x in enumerate(everything) if q != p]
        ranked = [q for _, q in sorted(scored)]
        return [q for q in ranked if q < COUNT], [q for q in ranked if q >= COUNT]

    return nearest


def near(points, space, kind, p):
    return points["near"][space][kind][10 * p : 10 * p + 10]


@pytest.mark.parametrize("p", [0, 7, COUNT, COUNT + 11])
def test_neighbours_against_loops(points, slow, p):
    for space in ("baseline", "RVLR"):
        assert (near(points, space, "pictures", p), near(points, space, "captions", p)) == tuple(
            part[:10] for part in slow(space, p)
        )
    own, other = ("pictures", "captions") if p < COUNT else ("captions", "pictures")
    assert near(points, "teachers", own, p) == slow("teachers", p)[p >= COUNT][:10]
    assert set(near(points, "teachers", other, p)) == {-1}


def test_the_true_neighbours_keep_ties(points, gallery):
    truth = gallery.scene.truth("latent").image_to_image
    others = sorted((truth[3, q] for q in range(COUNT) if q != 3), reverse=True)
    assert points["truth"][3] == [q for q in range(COUNT) if q != 3 and truth[3, q] >= others[9]]
    assert all(p not in known and (p < COUNT) == (known[0] < COUNT) for p, known in enumerate(points["truth"]))


def test_groups_are_the_factors(points, gallery):
    facts = gallery.scene.scene
    assert points["groups"]["number of objects"][4] == str(int((facts.objects[4, :, 0] >= 0).sum()))
    assert len(points["groups"]) == 4
    assert set(explorer.picture_groups(load_dataset("emoji", split="val", limit=12))) == {"category", "subcategory"}


def test_first_galleries():
    test = load_dataset("scenes", split="test", galleries=3, gallery_size=10, text_detail=1.0)
    rows = np.arange(len(test))[:, None], np.arange(len(test.captions))[:, None]
    for most, count in ((10, 10), (20, 10), (40, 20), (1000, 30)):
        gallery, found = explorer.first_galleries(test, {"a": rows}, most)
        assert len(gallery) == len(found["a"][0]) == count
        assert [test.captions[row] for row in found["a"][1].flatten()] == gallery.captions


def test_page_is_complete_and_says_what_is_missing(points):
    name = 'my <set> & "more"</script>'
    page = explorer.explorer_page({name: points}, "a <title>", {"emoji": "run <this>"})
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', page)
    assert "emoji is not shown: run &lt;this&gt;" in page
    assert page.count("data:image/webp") == COUNT
    assert page.count("</script>") == 2
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data) == {name: points}


@pytest.fixture(scope="module")
def script(points, tmp_path_factory):
    """Function (JavaScript expression) -> its value on the page."""
    if not shutil.which("node"):
        pytest.skip("no node here")
    folder = tmp_path_factory.mktemp("page")
    page, code = folder / "explore.html", folder / "stub.js"
    page.write_text(explorer.explorer_page({"scenes": points}, "a title"), encoding="utf-8")

    def run(expression):
        code.write_text(PAGE_STUB + f"console.log(JSON.stringify({expression}));")
        done = subprocess.run(["node", code, page], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_colours_of_the_page_against_loops(script, points, slow):
    modes, moved = script("[page.modes, page.moved]")
    hits = modes["hit or miss"]["codes"]
    assert set(hits["teachers"]) == {2}
    shares = {}
    for p in range(2 * COUNT):
        own, partner = p >= COUNT, (p + COUNT) % (2 * COUNT)
        assert hits["RVLR"][p] == int(partner not in slow("RVLR", p)[1 - own][:10])
        mine, before, theirs = (set(slow(space, p)[own][:10]) for space in ("RVLR", "baseline", "teachers"))
        assert moved[p] == 100 - 10 * len(mine & before)
        shares[p] = len(mine & theirs)
    mode = modes["neighbours shared with the teachers"]
    top = len(mode["names"]) - 1
    assert mode["codes"]["RVLR"] == [min(share, top) for share in shares.values()]
    labels = points["groups"]["background"]
    background = modes["background"]
    assert all(
        background["names"][code] in (labels[p % COUNT], "other") for p, code in enumerate(background["codes"]["RVLR"])
    )


def test_one_hovered_item_inside_the_window_and_counts_of_what_is_shown(script):
    hover = "part('canvas').listeners.pointermove({ clientX: x, clientY: y })"
    tip = script(f"(() => {{ const [x, y] = page.place(3); {hover}; return part('tip'); }})()")
    assert tip["style"]["display"] == "block"
    assert tip["innerHTML"].count("<img") == 1
    left, top = (float(tip["style"][side].removesuffix("px")) for side in ("left", "top"))
    assert 0 <= left <= 900 - 200
    assert 0 <= top <= 700 - 90
    assert "30 of 30 pictures shown" in script("part('panel').innerHTML")
    assert "This caption" in script(f"(page.choose({COUNT + 2}), part('panel').innerHTML)")
    ask = "part('words').value = 'a', part('words').listeners.input(), part('panel').innerHTML"
    assert re.search(r"24 of \d+ pictures shown.*15 of \d+ captions shown", script(f"({ask})"))
    assert "No caption has all of these words" in script(f"({ask.replace(repr('a'), repr('zebra'))})")
    change = "part('mode').value = 'moved', part('mode').listeners.change(), part('panel').innerHTML"
    assert "Items that moved" in script(f"({change})")


def run_of(folder, *datasets):
    runs = [{"notebook": "04", "dataset": name, "parameters": {"seed": 3, "max_points": 20}} for name in datasets]
    write_json(
        folder / "run.json", {"profile": "smoke", "description": "", "command": "", "provenance": {}, "runs": runs}
    )


def test_a_run_without_what_is_needed(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="holds no run.*rvlr reproduce"):
        explorer.write_explorer(tmp_path / "none")
    run_of(tmp_path, "scenes")
    with pytest.raises(ValueError, match="at least 10"):
        explorer.write_explorer(tmp_path, points=4)


def test_a_data_set_that_cannot_be_shown_is_named(points, tmp_path, monkeypatch):
    def found(_, __, name, ___):
        if name == "emoji":
            raise ValueError("x.safetensors is damaged")
        return points

    run_of(tmp_path, "scenes", "emoji")
    monkeypatch.setattr(explorer, "explorer_points", found)
    said = []
    page = explorer.write_explorer(tmp_path, say=said.append)
    assert said == ["emoji is left out: x.safetensors is damaged"]
    assert "x.safetensors is damaged" in page.read_text()


def test_the_study_of_a_run_is_opened_as_its_notebooks_did(tmp_path, monkeypatch, gallery, spaces):
    from rvlr_lib.figures import projection as maps

    class FakeStudy:
        settings = SimpleNamespace(seed=3, method=SimpleNamespace(baseline="matching_longer"))

        def dataset(self, split):
            return gallery

        def test_features(self, arm):
            return spaces[{"teachers": "teachers", "matching_longer": "baseline", "rvlr": "RVLR"}[arm]]

    def cached_projection(root, found, **options):
        assert options["max_points"] == 20
        assert (root, list(found)) == (tmp_path, list(explorer.SPACES))
        texts = np.array([gallery.captions_of(row)[0] for row in range(10)])
        coords = {name: (np.zeros((10, 2)), np.zeros((10, 2))) for name in found}
        return projection(coords, texts, {})

    opened = []
    monkeypatch.setenv("RVLR_RUNS", str(tmp_path))
    fake = SimpleNamespace(open_study=lambda *args, **options: opened.append((args, options)) or FakeStudy())
    monkeypatch.setitem(sys.modules, "rvlr_lib.study.study", fake)
    monkeypatch.setattr(maps, "cached_projection", cached_projection)
    run_of(tmp_path / "run", "scenes")
    page = explorer.write_explorer(tmp_path / "run")
    assert opened == [(("scenes",), {"device": "cpu", "root": tmp_path, "seed": 3})]
    assert page.read_text().count("data:image/webp") == 10
