import numpy as np
import pandas as pd
import pytest

from rvlr_lib import tables


def frame(*rows):
    return pd.DataFrame(rows, columns=list(tables.COLUMNS))


RESULTS = frame(
    ("scenes", "none", "ceiling", 0, "r_mean", 80.0),
    ("scenes", "none", "rvlr", 0, "r_mean", 30.0),
    ("scenes", "none", "rvlr", 1, "r_mean", 34.0),
    ("scenes", "none", "matching", 0, "r_mean", 20.0),
    ("scenes", "none", "matching", 1, "r_mean", 25.0),
    ("scenes", "none", "teachers", 0, "i2i/NDCG@10", 60.0),
    ("scenes", "none", "floor", 0, "r_mean", 1.0),
)


def test_results_are_means_over_seeds_with_references_at_both_ends():
    table = tables.results_table(RESULTS, ["r_mean", "i2i/NDCG@10", "t2i/R@1"])
    assert table.index.tolist() == ["floor", "teachers", "rvlr", "matching", "ceiling"]
    assert table.columns.tolist() == ["r_mean", "i2i/NDCG@10", "t2i/R@1"]
    assert table.loc["rvlr", "r_mean"] == 32.0
    assert np.isnan(table.loc["teachers", "r_mean"])
    assert "nan" not in tables.to_markdown(table).lower()
    with pytest.raises(ValueError, match="R@7"):
        tables.results_table(RESULTS, ["t2i/R@7"])


def test_several_data_sets_and_dials_stand_in_the_index():
    more = pd.concat([RESULTS, RESULTS.assign(dataset="emoji"), RESULTS.assign(dial="text")])
    table = tables.results_table(more)
    assert table.index.names == ["dataset", "dial", "arm"]
    assert table.loc[("emoji", "none", "rvlr"), "r_mean"] == 32.0
    assert table.index.get_level_values("arm").tolist()[:2] == ["floor", "teachers"]


def test_differences_are_paired_by_seed():
    found = tables.differences(RESULTS, "matching")
    assert found[["arm", "seed", "value"]].to_numpy().tolist() == [
        ["ceiling", 0, 60],
        ["rvlr", 0, 10],
        ["rvlr", 1, 9],
        ["floor", 0, -19],
    ]
    with pytest.raises(ValueError, match="'nobody' is not among the arms"):
        tables.differences(RESULTS, "nobody")
    with pytest.raises(ValueError, match="several values for one cell"):
        tables.differences(pd.concat([RESULTS, RESULTS]), "matching")


@pytest.mark.parametrize(
    ("value", "metric", "text"),
    [
        (94.15, "", "94.2"),
        (94.14999999999999, "r_mean", "94.2"),
        (94.25, "", "94.3"),
        (-0.05, "", "−0.1"),
        (-0.04, "", "0.0"),
        (None, "", "–"),
        (float("nan"), "", "–"),
        (float("inf"), "", "Infinity"),
        (0.126, "modality_gap", "0.13"),
        (1.23456, "loss/structure", "1.235"),
        (0.000123, "stage2/weights/structure", "0.000123"),
        (3, "seeds", "3.0"),
        (np.float32(2.5), "r_mean", "2.5"),
        (-12.34, "image/overlap_truth", "−12.3"),
    ],
)
def test_numbers(value, metric, text):
    assert tables.shown(value, metric) == text


def test_signs():
    assert [tables.shown(v, signed=True) for v in (0.94, -0.94, 0.04, -0.04)] == ["+0.9", "−0.9", "0.0", "0.0"]


TABLE = pd.DataFrame(
    {"r_mean": [31.26, np.nan], "what | more": ["a|b\nc", None], "seeds": [5, 3]},
    index=pd.Index(["rvlr", "matching_longer"], name="arm"),
)


def test_markdown():
    assert tables.to_markdown(TABLE).splitlines() == [
        "| arm | r_mean | what \\| more | seeds |",
        "| --- | ---: | --- | ---: |",
        "| RVLR | 31.3 | a\\|b c | 5 |",
        "| matching longer | – | – | 3 |",
    ]
    assert tables.to_markdown(pd.DataFrame({"x": [1.0]})).splitlines()[0] == "| x |"


def test_the_column_metric_says_how_a_row_is_rounded():
    table = pd.DataFrame({"metric": ["r_mean", "modality_gap"], "rvlr": [31.26, 0.126]})
    for found in (table, table.set_index("metric")):
        assert [row.split(" | ")[1].strip(" |") for row in tables.to_markdown(found).splitlines()[2:]] == [
            "31.3",
            "0.13",
        ]


def test_html_and_latex():
    page = tables.to_html(TABLE)
    assert "<td>–</td>" in page
    assert "NaN" not in page
    assert "&lt;" in tables.to_html(pd.DataFrame({"x": ["<b>"]}))
    text = tables.to_latex(TABLE.drop(columns="what | more"), caption="Results_1", label="tab:x")
    for part in (
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
        r"matching longer & -- & 3 \\",
        "31.3",
        r"\label{tab:x}",
        "{lrr}",
    ):
        assert part in text


def test_write_table_keeps_every_digit(tmp_path):
    table = TABLE.assign(r_mean=[1 / 3, np.nan])
    paths = tables.write_table(table, tmp_path / "new", "results")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["results.csv", "results.md", "results.tex"]
    assert pd.read_csv(paths["csv"], index_col="arm").loc["rvlr", "r_mean"] == 1 / 3
    assert paths["md"].read_text() == tables.to_markdown(table) + "\n"


PAGE = "# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\ntail\n"


def test_insert_between(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    for _ in range(2):
        tables.insert_between(path, "results", "new – line\n")
        assert path.read_text() == PAGE.replace("old", "new – line")


@pytest.mark.parametrize(
    "page",
    [
        "no markers",
        PAGE.replace("begin", "start"),
        PAGE.replace(":end", ":stop"),
        "<!-- results:begin -->" + PAGE,
        PAGE + "<!-- results:end -->",
        "<!-- results:end -->\n<!-- results:begin -->",
    ],
)
def test_insert_between_refuses_a_page_without_its_markers(tmp_path, page):
    path = tmp_path / "README.md"
    path.write_text(page)
    with pytest.raises(ValueError, match="results:begin"):
        tables.insert_between(path, "results", "new")
    assert path.read_text() == page
