"""The explorer: its data against loops, and its script run by node if it is installed."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from rvlr_lib.data import load_dataset
from rvlr_lib.evaluation.evaluate import random_features
from rvlr_lib.figures.projection import project_spaces
from rvlr_lib.report import explorer

COUNT = 30
SPACES = ("teachers", "baseline", "RVLR")
STUB = Path(__file__).with_name("page_stub.js")


@pytest.fixture(scope="module")
def gallery():
    return load_dataset("scenes", split="val", size=COUNT, text_detail=1.0)


@pytest.fixture(scope="module")
def spaces(gallery):
    return {name: random_features(gallery, 8, seed) for seed, name in enumerate(SPACES)}


@pytest.fixture(scope="module")
def points(gallery, spaces):
    layout = project_spaces(spaces, method="pca", caption_image=gallery.caption_image)
    return explorer.collect_points(gallery, spaces, layout, baseline="matching_longer")


@pytest.fixture(scope="module")
def slow(spaces, gallery):
    """Function (space, point) -> nearest pictures and captions by loops, as points."""

    def nearest(space, p):
        features = [*spaces[space][0], *(spaces[space][1][gallery.captions_of(i)[0]] for i in range(COUNT))]
        scored = [(-float(features[p] @ x) / np.linalg.norm(x), q) for q, x in enumerate(features) if q != p]
        ranked = [q for _, q in sorted(scored)]
        return [q for q in ranked if q < COUNT][:10], [q for q in ranked if q >= COUNT][:10]

    return nearest


@pytest.mark.parametrize("p", [0, 7, COUNT, COUNT + 11])
def test_neighbours_against_loops(points, slow, p):
    near = {name: [kinds[kind][10 * p : 10 * p + 10] for kind in kinds] for name, kinds in points["near"].items()}
    for space in ("baseline", "RVLR"):
        assert near[space] == list(slow(space, p))
    kind = int(p >= COUNT)
    assert near["teachers"][kind] == slow("teachers", p)[kind]
    assert set(near["teachers"][1 - kind]) == {-1}


def test_true_neighbours_include_ties_and_groups_are_the_factors(points, gallery):
    truth = gallery.scene.truth("latent").image_to_image
    scores = sorted((truth[3, q] for q in range(COUNT) if q != 3), reverse=True)
    assert points["truth"][3] == [q for q in range(COUNT) if q != 3 and truth[3, q] >= scores[9]]
    assert all(p not in near and (p < COUNT) == (near[0] < COUNT) for p, near in enumerate(points["truth"]))
    objects = gallery.scene.scene.objects[4, :, 0]
    assert points["groups"]["number of objects"][4] == str(int((objects >= 0).sum()))
    assert len(points["groups"]) == 4
    assert set(explorer.picture_groups(load_dataset("emoji", split="val", limit=12))) == {"category", "subcategory"}


def test_page_is_self_contained_and_says_what_is_missing(points):
    name = 'my <set> & "more"</script>'
    page = explorer.explorer_page({name: points}, "a <title>", {"emoji": "run <this>"})
    assert "<h1>a &lt;title&gt;</h1>" in page
    assert not re.search(r'<(?:script|link|img)[^>]*(?:src|href)="https?:', page)
    assert "emoji is not shown: run &lt;this&gt;" in page
    assert page.count("data:image/webp") == COUNT
    assert page.count("</script>") == 2
    assert json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1]) == {name: points}


def test_data_are_opened_by_absolute_path_and_models_by_name(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(explorer, "open_study", lambda *args, **options: opened.append((args, options)) or 1 / 0)
    run = {"notebook": "02", "dataset": "mine", "parameters": {"dataset": "mine.csv", "model": "local-dir:m"}}
    settings = {"02 (mine)": {"dataset": "/data/mine.csv", "model": "/data/m"}}
    record = {"runs": [run], "settings": settings, "command": "rvlr", "profile": "own"}
    with pytest.raises(ZeroDivisionError):
        explorer.explorer_points(record, "mine", tmp_path)
    assert (opened[0][0], opened[0][1]["model"]) == (("/data/mine.csv",), "local-dir:m")


@pytest.fixture(scope="module")
def script(points, tmp_path_factory):
    """Function (JavaScript expression) -> its value on the page."""
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    page = tmp_path_factory.mktemp("page") / "explore.html"
    page.write_text(explorer.explorer_page({"scenes": points}, "a title", {}), encoding="utf-8")

    def run(expression):
        done = subprocess.run(["node", STUB, page, expression], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_colours_of_the_page_against_loops(script, points, slow):
    modes, moved = script("[page.modes, page.moved]")
    hits = modes["hit or miss"]["codes"]
    assert set(hits["teachers"]) == {2}
    shares = []
    for p in range(2 * COUNT):
        kind, partner = int(p >= COUNT), (p + COUNT) % (2 * COUNT)
        assert hits["RVLR"][p] == int(partner not in slow("RVLR", p)[1 - kind])
        rvlr, baseline, teachers = (set(slow(space, p)[kind]) for space in ("RVLR", "baseline", "teachers"))
        assert moved[p] == 100 - 10 * len(rvlr & baseline)
        shares.append(len(rvlr & teachers))
    mode = modes["neighbours shared with the teachers"]
    assert mode["codes"]["RVLR"] == [min(share, len(mode["names"]) - 1) for share in shares]
    labels, background = points["groups"]["background"], modes["background"]
    for p, code in enumerate(background["codes"]["RVLR"]):
        assert background["names"][code] in (labels[p % COUNT], "other")


def test_every_space_fills_the_map(script):
    for space in SPACES:
        places = np.array(script(f"(page.moveTo('{space}'), [...Array({2 * COUNT}).keys()].map(page.place))"))
        low, high = places.min(axis=0), places.max(axis=0)
        assert ((high - low) / [800, 600]).max() == pytest.approx(1 / 1.06)
        assert (low + high) / 2 == pytest.approx([400, 300])


def test_the_legend_counts_and_names_each_kind_once(script, points):
    plain = script("part('legend').innerHTML")
    assert (plain.count("picture"), plain.count("caption")) == (1, 1)
    both = "[part('legend').innerHTML, page.modes['hit or miss'].codes.RVLR]"
    legend, codes = script(f"(part('mode').value = 'hit or miss', part('mode').listeners.change(), {both})")
    assert f"miss ({codes.count(1)})" in legend
    assert "The baseline is matching longer." in points["notes"][0]
    names = "[[0, 10, 10], [0, 10, 90]].map((last) => page.stepped({ RVLR: [...Array(97).fill(0), ...last] }).names)"
    assert script(names) == [["0 %", "10 %"], ["0 %", "10 % or more"]]


def test_a_hovered_item_stays_in_the_window_and_words_find_captions(script):
    hover = "part('canvas').listeners.pointermove({ clientX: x, clientY: y })"
    tip = script(f"(() => {{ const [x, y] = page.place(3); {hover}; return part('tip'); }})()")
    assert (tip["style"]["display"], tip["innerHTML"].count("<img")) == ("block", 1)
    assert 0 <= float(tip["style"]["left"].removesuffix("px")) <= 900 - 200
    assert 0 <= float(tip["style"]["top"].removesuffix("px")) <= 700 - 90
    assert "This caption" in script(f"(page.choose({COUNT + 2}), part('panel').innerHTML)")
    search = "(part('words').value = '{}', part('words').listeners.input(), part('panel').innerHTML)"
    assert re.search(r"24 of \d+ pictures shown.*15 of \d+ captions shown", script(search.format("a")))
    assert "No caption has all of these words" in script(search.format("zebra"))
