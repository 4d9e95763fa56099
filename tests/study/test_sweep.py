import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from rvlr_lib import cli
from rvlr_lib.disk import read_json, write_json
from rvlr_lib.report.reproduce import profile_path
from rvlr_lib.study import claims, sweep

PLAN = {
    "dataset": "scenes",
    "seeds": 6,
    "overrides": {"data.train_size": 64, "data.val_size": 32, "data.galleries": 1, "data.gallery_size": 30,
                  "teacher.epochs": 1, "stage1.epochs": 1, "stage2.epochs": 1},
    "dials": {"none": {"data.text_detail": 1.0}, "text": {"data.text_detail": 0.5}},
    "variants": ["ceiling", "start", "matching"],
    "axes": [{"variants": ["matching"], "alignment": [1, 3], "dials": ["text"]}],
    "delta": {"r_mean": 1.0, "i2i/NDCG@10": 0.5},
    "claims": {
        "one": {"text": "bends", "metric": "i2i/NDCG@10", "effect": "start|text - matching|text"},
        "two": {"text": "peaks", "metric": "r_mean", "effect": "matching+best|text - matching+3|text"},
        "more": {"text": "other", "metric": "r_mean", "primary": False, "effect": "matching|none - 0.5*matching|text"},
        "control, x": {"text": "no", "metric": "r_mean", "primary": False, "effect": "matching|none - matching|text"},
    },
}  # fmt: skip


def plan(tmp_path, **changes):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({"study": {**PLAN, **changes}}))
    return path


def tmp_plan(folder, **changes):
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"study": {**PLAN, **changes}}))
    return path


def test_the_study_of_the_profile():
    found = sweep.load_sweep(profile_path("study"))
    assert found.seeds >= 10
    assert 1 <= sum(claim.primary for claim in found.claims.values()) <= 6
    assert set(found.dials) == {"none", "text", "image"}
    wanted = {"matching", "matching_longer", "intra", "rvlr", "representation", "structure", "shuffled", "frozen"}
    assert wanted <= {cell.variant for cell in found.cells() if cell.dial == "image"}
    assert {cell.alignment for cell in found.cells() if cell.variant == "matching"} == {0, 1, 3, 10}
    settings = found.settings(sweep.Cell("image", "rvlr"), 3)
    assert (settings.data.text_detail, settings.data.image_visibility, settings.seed) == (1.0, 0.5, 3)
    assert settings.method.structure_target == "common"
    assert settings.model.fusion_layers == 0
    assert found.settings(sweep.Cell("text", "matching", 3.0), 0).method.weights.alignment == 3.0


def test_cells_have_names_and_stand_dial_by_dial(tmp_path):
    cells = sweep.load_sweep(plan(tmp_path)).cells()
    assert [str(cell) for cell in cells] == [
        "ceiling|none", "start|none", "matching|none", "ceiling|text", "start|text", "matching|text",
        "matching+1|text", "matching+3|text",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ["rvrl"]}, "unknown variant 'rvrl'; valid: contrastive, matching"),
        ({"seedz": 3}, "unknown key of 'study' 'seedz'"),
        ({"axes": [{"variants": ["matching"], "dials": ["dark"]}]}, "unknown dial point 'dark'; valid: none, text"),
        ({"axes": [{"variant": ["matching"]}]}, "unknown key of an axis 'variant'"),
        ({"dials": {"none": {"data.detail": 1}, "text": {}}}, "unknown setting 'data.detail'"),
        ({"claims": {"x": {"text": "", "metric": "r_mean", "effect": "rvlr|text"}}}, "not computed: 'rvlr|text'"),
        ({"claims": {"x": {"text": "", "metric": "R", "effect": "start|text"}}}, "no delta for 'R'"),
        ({"claims": {"x": {"text": "", "metric": "r_mean", "effect": "start text"}}}, "is no sum such as"),
        ({"seeds": 1}, "plans two seeds or more"),
        ({"claims": {"x": {"text": "", "metric": "r_mean"}}}, "claim x lacks 'effect'"),
        ({"claims": {"x": {"txt": "", "metric": "r_mean", "effect": "start|text"}}}, "claim x: unknown key 'txt'"),
    ],
)
def test_a_plan_is_checked_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        sweep.load_sweep(plan(tmp_path, **changes))


def test_a_plan_that_lacks_a_part(tmp_path):
    path = tmp_path / "bare.yaml"
    path.write_text(yaml.safe_dump({"study": {"dataset": "scenes"}}))
    with pytest.raises(ValueError, match="'study' lacks 'seeds'"):
        sweep.load_sweep(path)


def test_effects():
    claim = sweep.Claim("", "r_mean", "0.5*rvlr|text + 0.5*rvlr|image - matching+best|none")
    assert claim.terms == [(0.5, "rvlr|text"), (0.5, "rvlr|image"), (-1.0, "matching+best|none")]
    with pytest.raises(ValueError, match="is no sum"):
        _ = sweep.Claim("", "r_mean", "rvlr|text * 2").terms


@pytest.mark.parametrize(("text", "seeds"), [("0-4", [0, 1, 2, 3, 4]), ("3", [3]), ("0,2-3", [0, 2, 3])])
def test_seeds(text, seeds):
    assert sweep.parse_seeds(text) == seeds


def test_seeds_that_make_no_sense():
    with pytest.raises(ValueError, match="expected something like 0-4"):
        sweep.parse_seeds("four")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two seeds, run by the command with two processes."""
    folder = tmp_path_factory.mktemp("study")
    path = plan(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RVLR_RUNS", str(folder / "runs"))
        arguments = ["study", "--profile", str(path), "--seeds", "0-1", "--jobs", "2", "--device", "cpu"]
        assert cli.main(arguments) == 0
    return folder, path


def test_a_study_goes_on_where_it_stopped(finished, capsys, monkeypatch):
    folder, path = finished
    monkeypatch.setenv("RVLR_RUNS", str(folder / "runs"))
    seeds = folder / "runs" / "tiny" / "seeds"
    before = {file.name: file.read_bytes() for file in seeds.iterdir()}
    assert sorted(before) == ["seed-0.json", "seed-1.json"]
    record = read_json(seeds / "seed-0.json")
    assert list(record["cells"]) == [str(cell) for cell in sweep.load_sweep(path).cells()]
    assert {"commit", "versions", "code"} <= record["provenance"].keys()
    taken = record["cells"].pop("matching|text")
    write_json(seeds / "seed-0.json", record)
    assert cli.main(["study", "--profile", str(path), "--seeds", "0-1"]) == 0
    out = capsys.readouterr().out
    assert "16 cells of 2 seeds, 1 to compute" in out
    again = read_json(seeds / "seed-0.json")["cells"]["matching|text"]
    assert {**again, "cpu_seconds": 0} == {**taken, "cpu_seconds": 0}
    assert cli.main(["study", "--profile", str(path), "--seeds", "0-1"]) == 0
    assert "0 to compute" in capsys.readouterr().out


def test_cells_of_another_plan_stay(finished, monkeypatch):
    """A smaller plan with the same settings adds to the files and takes nothing from them."""
    folder, _ = finished
    monkeypatch.setenv("RVLR_RUNS", str(folder / "runs"))
    seeds = folder / "copy"
    shutil.copytree(folder / "runs" / "tiny" / "seeds", seeds)
    record = read_json(seeds / "seed-1.json")
    record["cells"].pop("start|none")
    write_json(seeds / "seed-1.json", record)
    small = tmp_plan(folder, variants=["start"], axes=[], claims={})
    sweep.run_sweep(sweep.load_sweep(small), [1], seeds, root=folder / "runs", device="cpu")
    assert read_json(seeds / "seed-1.json")["cells"].keys() == read_json(seeds / "seed-0.json")["cells"].keys()


def test_seeds_and_dial_points_cannot_be_set(tmp_path):
    for key in ("seed", "data.text_detail"):
        with pytest.raises(ValueError, match=f"{key} belongs to the plan"):
            sweep.load_sweep(plan(tmp_path), {key: 1})


def test_devices_are_never_put_together(finished):
    folder, _ = finished
    other = folder / "devices"
    for number, device in ((0, "cpu"), (1, "cuda:0")):
        record = read_json(folder / "runs" / "tiny" / "seeds" / f"seed-{number}.json")
        for cell in record["cells"].values():
            cell["device"] = device
        write_json(other / f"seed-{number}.json", record)
    with pytest.raises(ValueError, match="results of cpu and cuda"):
        sweep.read_results(other)


def test_results_of_other_settings_are_never_put_together(finished, capsys, monkeypatch):
    folder, path = finished
    monkeypatch.setenv("RVLR_RUNS", str(folder / "runs"))
    assert cli.main(["study", "--profile", str(path), "--seeds", "0", "-s", "stage1.epochs", "2"]) == 2
    assert "computed with other settings (none.stage1.epochs: 1 there, 2 here)" in capsys.readouterr().err
    seeds = folder / "runs" / "tiny" / "seeds"
    other = folder / "mixed"
    for number, epochs in ((0, 1), (1, 3)):
        record = read_json(seeds / f"seed-{number}.json")
        record["identity"]["none"]["stage1"]["epochs"] = epochs
        write_json(other / f"seed-{number}.json", record)
    with pytest.raises(ValueError, match="different settings are never put together"):
        sweep.read_results(other)
    (other / "seed-1.json").write_text("{")
    with pytest.raises(ValueError, match=r"seed-1\.json cannot be read"):
        sweep.read_results(other)
    (other / "seed-1.json").write_text("[]")
    with pytest.raises(ValueError, match="is no result of `rvlr study`"):
        sweep.read_results(other)
    with pytest.raises(ValueError, match="holds no results of a study"):
        sweep.read_results(folder / "nothing")


def test_a_setting_that_is_new_since_does_not_part_old_results(finished):
    folder, path = finished
    record = read_json(folder / "runs" / "tiny" / "seeds" / "seed-0.json")
    removed = record["identity"]["text"]["stage1"].pop("clip_norm")
    assert removed == 1.0
    old = folder / "old"
    write_json(old / "seed-0.json", record)
    assert sweep.read_results(old, sweep.load_sweep(path))
    record["identity"]["text"]["stage1"].pop("epochs")  # not the default: these results are of something else
    write_json(old / "seed-0.json", record)
    with pytest.raises(ValueError, match="text.stage1.epochs: 10 there, 1 here"):
        sweep.read_results(old, sweep.load_sweep(path))


def test_claims_from_the_files_alone(finished, capsys):
    folder, path = finished
    seeds = folder / "runs" / "tiny" / "seeds"
    out = folder / "page"
    readme = folder / "README.md"
    readme.write_text("a\n<!-- claims:begin -->\n<!-- claims:end -->\nb\n")
    arguments = ["report", "--claims", "--profile", str(path), "--results", str(seeds), "--out", str(out)]
    assert cli.main([*arguments, "--insert", str(readme)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "claims.md")
    page = (out / "claims.md").read_text()
    assert "With 2 seeds there is no verdict yet." in page
    assert "from 2 seeds of 6 planned, 2 of them whole (8 cells)" in page
    assert "2 of 6" in readme.read_text()
    assert "no verdict" in readme.read_text()
    assert "\\toprule" in (out / "claims.tex").read_text()
    results = sweep.read_results(seeds)
    tiny = sweep.load_sweep(path)
    cells = results[0]
    own = claims.metric_of(cells["start|text"], "i2i/NDCG@10") - claims.metric_of(cells["matching|text"], "i2i/NDCG@10")
    assert claims.effects(tiny, tiny.claims["one"], results)[0] == pytest.approx(own)
    rows = claims.dial_rows(tiny, results, {"i2t/R@10": "R@10", "i2i/NDCG@10": "i2i"})
    assert set(rows.variant) == {"ceiling", "start", "matching"}
    shares = claims.share_of_ceiling(rows)
    one = shares[(shares.dial == "text") & (shares.variant == "start") & (shares.seed == 1)].value.item()
    headline = [next(iter(results[1][f"{name}|text"]["metrics"].values()))["i2t/R@10"] for name in ("start", "ceiling")]
    assert one == pytest.approx(100 * headline[0] / headline[1])
    moved = claims.since_start(rows)
    assert "start" not in set(moved.variant)


def made_up(values, validation=(50.0, 60.0, 70.0)):
    """A seed's cells with given r_mean of start, matching, and matching at strengths 0.5, 1 and 3."""
    names = ("matching|none", "matching|text", "matching+0.5|text", "matching+1|text", "matching+3|text", "start|text")
    scores = dict(zip(names[2:5], validation, strict=True))
    return {
        name: {"metrics": {"latent": {"r_mean": value, "i2i/NDCG@10": value}}, "structure": {},
               "validation_r_mean": scores.get(name, 0.0)}
        for name, value in zip(names, values, strict=True)
    }  # fmt: skip


def test_the_strength_is_chosen_on_validation_and_inside_the_axis(tmp_path):
    axes = [{"variants": ["matching"], "alignment": [0.5, 1, 3], "dials": ["text"]}]
    tiny = sweep.load_sweep(plan(tmp_path, axes=axes))
    cells = made_up([1, 2, 3, 4, 5, 6])
    best = "matching+best|text"
    assert claims.resolve(tiny, cells, best) == "matching+1|text"  # the largest stands for ultimate matching
    assert claims.resolve(tiny, made_up([1, 2, 3, 4, 5, 6], (70.0, 60.0, 90.0)), best) == "matching+0.5|text"
    assert claims.resolve(tiny, {k: v for k, v in cells.items() if k != "matching+0.5|text"}, best) is None
    assert claims.resolve(tiny, cells, "rvlr|text") is None
    assert claims.effect(tiny, sweep.Claim("", "r_mean", "rvlr|text - start|text"), cells) is None
    assert claims.effect(tiny, sweep.Claim("", "r_mean", "matching+best|text - 0.5*matching|none"), cells) == 3.5
    relative = claims.effect(tiny, sweep.Claim("", "log r_mean", "matching|text - matching|none"), cells)
    assert relative == pytest.approx(100 * math.log(2))
    with pytest.raises(ValueError, match="has no metric 'R'"):
        claims.metric_of(cells["start|text"], "R")


def test_verdicts_and_broken_controls(tmp_path):
    axes = [{"variants": ["matching"], "alignment": [0.5, 1, 3], "dials": ["text"]}]
    tiny = sweep.load_sweep(plan(tmp_path, axes=axes))
    steady = {seed: made_up([9 + 0.01 * seed, 2, 3, 4, 5.5 + 0.1 * seed, 7]) for seed in range(6)}
    found = claims.judge(tiny, steady)
    assert found["one"].verdict == "holds"  # start 7 against matching 2, every time
    assert found["two"].verdict == "does not hold"  # 4 against 5.5 and more
    assert claims.control_faults(tiny, steady) == ["control, x (+7.0 points, +7.0 to +7.0)"]
    assert claims.control_faults(tiny, {seed: steady[seed] for seed in range(3)}) == []
    page = claims.claims_page(tiny, steady, "rvlr study", {})
    assert "- two: peaks." in page
    table = claims.claims_table(tiny, steady)
    assert table.loc["one", "seeds"] == "6 of 6"
    assert table.loc["two", "effect, points"].startswith("−")


def test_a_cell_keeps_recall_over_clusters(finished, monkeypatch):
    """What the record holds is what the picture, and not the caption, as the unit gives."""
    folder, path = finished
    monkeypatch.setattr("rvlr_lib.evaluation.evaluate.cluster_recall", lambda *_: {"t2i/R@1": 1.25, "r_mean": 2.5})
    found = sweep.compute_cell(sweep.load_sweep(path), sweep.Cell("text", "matching"), 0, "cpu", str(folder / "runs"))
    assert (found["metrics"]["latent"]["t2i/R@1"], found["metrics"]["latent"]["r_mean"]) == (1.25, 2.5)


def test_records_are_small(finished):
    folder, _ = finished
    path = folder / "runs" / "tiny" / "seeds" / "seed-0.json"
    assert Path(path).stat().st_size / len(json.loads(path.read_text())["cells"]) < 4000
