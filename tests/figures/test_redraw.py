import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageChops

from rvlr_lib.disk import write_json
from rvlr_lib.figures import charts as plots
from rvlr_lib.figures import panels, redraw
from rvlr_lib.figures.panels import Hit, Query
from rvlr_lib.figures.projection import Projection
from rvlr_lib.figures.style import COLUMN, Remembering
from rvlr_lib.report.output import RunOutput

RNG = np.random.default_rng(0)


def results():
    levels = {"floor": 3.0, "start": 21.0, "matching": 33.0, "rvlr": 41.5, "ceiling": 90.0}
    metrics = ("i2t/R@1", "t2i/R@10", "r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10/above_floor")
    rows = [(metric, name, value) for metric in metrics for name, value in levels.items()]
    return pd.DataFrame(rows, columns=["metric", "variant", "value"])


def stages():
    rows = [
        (modality, dial, stage, reference, 90.0 - 10 * i)
        for modality in ("image", "text")
        for dial in ("detail 1.0", "detail 0.6")
        for i, stage in enumerate(("start", "matching", "rvlr"))
        for reference in ("teacher", "truth", "shown")
    ]
    return pd.DataFrame(rows, columns=["modality", "dial", "stage", "reference", "value"])


def log():
    terms = ("loss/contrastive", "loss/structure", "validation/score", "loss/image", "loss/text")
    rows = [(v, s, term, 3 - s / 50) for v in ("matching", "rvlr") for s in range(20) for term in terms]
    return pd.DataFrame(rows, columns=["variant", "step", "term", "value"])


def picture(i):
    return Image.new("RGB", (30, 30), (40 * i % 256, 90, 200))


def queries():
    words = ("a red cross", "a small violet disc over a spotted ground")
    hits = [Hit(picture(i) if i % 2 else words[i % 4 // 2], f"item {i}", i == 1, i / 5) for i in range(5)]
    return [Query("a red cross", {"baseline": hits, "rvlr": hits[::-1]}, "a query"), Query(picture(3), {"rvlr": hits})]


def maps():
    coords = {name: tuple(RNG.normal(size=(12, 2)) for _ in "it") for name in ("teachers", "baseline", "RVLR")}
    trust = {name: {"image": 0.91, "text": 0.82, "joint": 0.85} for name in coords}
    return [Projection(coords, np.arange(12), np.arange(12), trust, f"{name}: made up") for name in ("UMAP", "PCA")]


def traces():
    terms = ("relation_temperature", "representation_temperature", "fusion_weight")
    return pd.DataFrame([("rvlr", s, term, 0.07) for s in range(9) for term in terms],
                        columns=["variant", "step", "term", "value"])  # fmt: skip


CASES = {
    "results": lambda: (plots.plot_results(table := results(), columns=3), table),
    "stages": lambda: (plots.plot_structure_stages(table := stages()), table),
    "curves": lambda: (plots.plot_loss_curves(table := log()), table),
    "traces": lambda: (plots.plot_traces(table := traces()), table),
    "panel": lambda: (panels.plot_retrieval_panel(found := queries()), panels.retrieval_table(found)),
    "examples": lambda: (
        panels.plot_examples({"all": [(picture(i), f"picture {i}") for i in range(5)]}),
        pd.DataFrame({"caption": ["picture"]}),
    ),
    "map": lambda: (
        panels.plot_embedding(*(found := maps()), image_labels=["a", "b"] * 6, thumbnail=picture, thumbnails=3),
        found[0].to_frame(),
    ),
}


@pytest.fixture
def run(tmp_path):
    write_json(tmp_path / "run.json", {"profile": "smoke", "description": "", "command": "", "provenance": {},
                                       "runs": []})  # fmt: skip
    output = RunOutput("03", "scenes", tmp_path)
    for name, make in CASES.items():
        figure, data = make()
        output.figure(figure, name, data)
    return tmp_path


def test_every_figure_comes_back_as_it_was(run):
    before = {path.name: Image.open(path).convert("RGB") for path in (run / "figures").glob("*.png")}
    for path in (run / "figures").glob("*.p*"):
        path.unlink()
    written = redraw.redraw_run(run, say=lambda _: None)
    assert {path.name for path in written} == set(before) == {f"scenes_{name}.png" for name in CASES}
    for path in written:
        after = Image.open(path).convert("RGB")
        assert after.size == before[path.name].size
        difference = np.asarray(ImageChops.difference(after, before[path.name]))
        assert (difference > 40).mean() < 0.001, path.name  # a CSV has six digits, so a line may move by a hair
        assert b"/Type3" not in path.with_suffix(".pdf").read_bytes()


@pytest.mark.parametrize("name", CASES)
def test_as_wide_as_a_column(run, name, figure_faults):
    with redraw.one_column():
        figure = redraw.redraw(run / "figures" / f"scenes_{name}.json")
    assert figure.get_figwidth() == COLUMN
    assert figure_faults(figure) == []
    assert redraw.redraw(run / "figures" / f"scenes_{name}.json").get_figwidth() > COLUMN


def test_what_is_missing_is_named(run):
    figures = run / "figures"
    with pytest.raises(ValueError, match="there are: scenes_curves"):
        redraw.redraw_run(run, ["nothing"])
    (figures / "scenes_results.csv").write_text("")
    with pytest.raises(ValueError, match=r"scenes_results\.csv cannot be read"):
        redraw.redraw_run(run, ["scenes_results"])
    (figures / "scenes_results.csv").write_text("metric,variant,value\na,b,not a number\n")
    with pytest.raises(ValueError, match=r"scenes_results\.csv or scenes_results\.json was changed"):
        redraw.redraw_run(run, ["scenes_results"])
    (figures / "scenes_examples.csv").unlink()
    with pytest.raises(ValueError, match=r"scenes_examples\.csv is missing"):
        redraw.redraw_run(run)
    for suffix in ("csv", "json", "png"):
        (figures / f"scenes_curves.{suffix}").unlink()
    record = redraw.read_run(run) | {"runs": [{"notebook": "02", "dataset": "scenes", "parameters": {},
                                               "outputs": ["figures/scenes_curves.csv"]}]}  # fmt: skip
    write_json(run / "run.json", record)
    with pytest.raises(ValueError, match=r"scenes_curves\.json is missing"):
        redraw.redraw_run(run, ["*_curves"])
    (figures / "scenes_map.json").unlink()
    with pytest.raises(ValueError, match=r"scenes_map\.json is missing.*rvlr reproduce --profile smoke"):
        redraw.redraw_run(run, ["scenes_map"])
    path = figures / "scenes_panel.json"
    recipe = json.loads(path.read_text())
    path.write_text(path.read_text()[:50])
    with pytest.raises(ValueError, match=r"scenes_panel\.json cannot be read"):
        redraw.redraw_run(run, ["scenes_panel"])
    for function in ("os.system", "rvlr_lib.study.cache.write_json", "rvlr_lib.figures.charts.plot_gone"):
        write_json(path, {**recipe, "function": function})
        with pytest.raises(ValueError, match="run again"):
            redraw.redraw_run(run, ["scenes_panel"])


def test_values_there_and_back():
    remembering = Remembering(picture)
    remembering(4)
    value = {"a": [1, None, "x", 2.5], "rows": np.array([3, 4]), "labels": np.array(["u", "v"]), "b": True}
    back = redraw.decode(json.loads(json.dumps(redraw.encode(value))))
    assert back["a"] == value["a"]
    assert list(back["rows"]) == [3, 4]
    assert list(back["labels"]) == ["u", "v"]
    assert back["b"] is True
    assert np.array_equal(redraw.decode(redraw.encode(remembering))(4), picture(4))
    frame = results()
    pd.testing.assert_frame_equal(redraw.decode(redraw.encode(frame)), frame)
    assert redraw.encode(frame, frame) == {"csv": True}
    with pytest.raises(ValueError, match="object cannot be saved"):
        redraw.encode(object())


def test_grey_tells_series_apart():
    figure = plots.plot_loss_curves(log())
    lines = figure.axes[0].lines
    assert len({(line.get_linestyle(), line.get_marker()) for line in lines}) == len(lines)
    rows = [("rvlr", modality, "overlap", 40.0) for modality in plots.MODALITIES]
    table = pd.DataFrame(rows, columns=["method", "modality", "measure", "value"])
    hatches = [bar.get_hatch() for bar in plots.plot_structure_bars(table).axes[0].patches]
    assert len(set(hatches)) == len(hatches) == 3
