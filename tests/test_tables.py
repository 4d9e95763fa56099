import numpy as np
import pandas as pd

from rvlr_lib import tables

ROWS = [("ceiling", 0, "r_mean", 80.0), ("rvlr", 0, "r_mean", 30.0), ("rvlr", 1, "r_mean", 34.0)]
ROWS += [("matching", 0, "r_mean", 20.0), ("matching", 1, "r_mean", 25.0)]
ROWS += [("teachers", 0, "i2i/NDCG@10", 60.0), ("floor", 0, "r_mean", 1.0)]
RESULTS = pd.DataFrame([("scenes", "none", *row) for row in ROWS], columns="dataset dial arm seed metric value".split())


def test_results_are_means_over_seeds_between_floor_and_ceiling(refuses):
    table = tables.results_table(RESULTS, ["r_mean", "i2i/NDCG@10", "t2i/R@1"])
    assert table.index.tolist() == ["floor", "teachers", "rvlr", "matching", "ceiling"]
    assert table.columns.tolist() == ["r_mean", "i2i/NDCG@10", "t2i/R@1"]
    assert table.loc["rvlr", "r_mean"] == 32.0
    assert np.isnan(table.loc["teachers", "r_mean"])
    table = tables.results_table(pd.concat([RESULTS, RESULTS.assign(dataset="emoji"), RESULTS.assign(dial="text")]))
    assert table.index.names == ["dataset", "dial", "arm"]
    assert table.loc[("emoji", "none", "rvlr"), "r_mean"] == 32.0
    assert table.index.get_level_values("arm").tolist()[:2] == ["floor", "teachers"]
    refuses("R@7", tables.results_table, RESULTS, ["t2i/R@7"])


def test_differences_are_paired_by_seed(refuses):
    rows = tables.differences(RESULTS, "matching")[["arm", "seed", "value"]].to_numpy().tolist()
    assert rows == [["ceiling", 0, 60], ["rvlr", 0, 10], ["rvlr", 1, 9], ["floor", 0, -19]]
    refuses("'nobody' is not among the arms", tables.differences, RESULTS, "nobody")
    refuses("several values for one cell", tables.differences, pd.concat([RESULTS, RESULTS]), "matching")


NUMBERS = {(94.15, ""): "94.2", (94.14999999999999, "r_mean"): "94.2", (94.25, ""): "94.3", (-0.05, ""): "−0.1"}
NUMBERS |= {(-0.04, ""): "0.0", (None, ""): "–", (float("nan"), ""): "–", (float("inf"), ""): "Infinity"}
NUMBERS |= {(0.126, "modality_gap"): "0.13", (1.23456, "loss/structure"): "1.235", (3, "seeds"): "3.0"}
NUMBERS |= {(0.000123, "stage2/weights/structure"): "0.000123", (np.float32(2.5), "r_mean"): "2.5"}
NUMBERS |= {(-12.34, "image/overlap_truth"): "−12.3", (0.8, "cosine of a pair"): "0.80", (0.876, "linear CKA"): "0.88"}


def test_numbers():
    assert {case: tables.format_number(*case) for case in NUMBERS} == NUMBERS
    signed = ["+0.94", "−0.94", "0.00", "0.00"]
    assert [tables.format_number(v, signed=True) for v in (0.94, -0.94, 0.004, -0.004)] == signed


def test_markdown_latex_and_every_digit_as_csv(tmp_path):
    columns = {"r_mean": [94 / 3, np.nan], "what | more": ["a|b\nc", None], "seeds": [5, 3]}
    table = pd.DataFrame(columns, index=pd.Index(["rvlr", "matching_longer"], name="arm"))
    tables.write_table(table, tmp_path / "new", "results")
    text = {path.suffix: path.read_text() for path in (tmp_path / "new").iterdir()}
    assert text[".md"].splitlines() == [
        "| arm | r_mean | what \\| more | seeds |",
        "| --- | ---: | --- | ---: |",
        "| RVLR | 31.3 | a\\|b c | 5 |",
        "| matching longer | – | – | 3 |",
    ]
    assert float(text[".csv"].splitlines()[1].split(",")[1]) == 94 / 3
    pieces = r"\toprule", r"\midrule", r"\bottomrule", r"matching longer & -- & -- & 3 \\", "31.3", "{lrlr}"
    assert [piece for piece in pieces if piece not in text[".tex"]] == []
    plain = pd.DataFrame({"a_b": [-1.5]})
    assert tables.to_markdown(plain).splitlines()[0] == "| a_b |"
    assert "a\\_b \\\\\n\\midrule\n$-$1.5 \\\\" in tables.to_latex(plain)


def test_the_column_metric_decides_how_a_row_is_rounded_and_differences_have_signs():
    frame = pd.DataFrame({"metric": ["r_mean", "modality_gap"], "rvlr": [31.26, 0.126]})
    for table in (frame, frame.set_index("metric")):
        rows = tables.to_markdown(table).splitlines()[2:]
        assert [row.split(" | ")[1].strip(" |") for row in rows] == ["31.3", "0.13"]
    table = pd.DataFrame({"Δ r_mean": [0.034, -0.1, 0.001], "r_mean": [0.034] * 3})
    rows = [row.strip("| ").split(" | ") for row in tables.to_markdown(table).splitlines()[2:]]
    assert rows == [["+0.03", "0.0"], ["−0.10", "0.0"], ["0.00", "0.0"]]
    assert tables.metric_label("r_mean & t2t_no_siblings/NDCG@10") == "r_mean & t2t without siblings NDCG@10"
