import numpy as np
import pandas as pd
import pytest

from rvlr_lib import tables


def record(variant, value, seed=0, dataset="scenes", **structure):
    metrics = {"i2t/R@1": value, "r_mean": value + 1} if variant != "teachers" else {"i2i/NDCG@10": value}
    return {"dataset": dataset, "variant": variant, "seed": seed, "metrics": metrics, "structure": structure}


RECORDS = [record("ceiling", 80.0), record("rvlr", 30.0), record("rvlr", 34.0, seed=1), record("teachers", 60.0),
           record("matching", 20.0), record("floor", 1.0)]  # fmt: skip


def test_results_table_orders_rows_and_averages_seeds():
    table = tables.results_table(RECORDS, ["r_mean", "i2t/R@1", "i2i/NDCG@10"])
    assert list(table.index) == ["floor", "teachers", "rvlr", "matching", "ceiling"]
    assert list(table.columns) == ["r_mean", "i2t/R@1", "i2i/NDCG@10"]
    assert table.loc["rvlr", "i2t/R@1"] == 32.0
    assert table.loc["teachers", "i2i/NDCG@10"] == 60.0
    assert np.isnan(table.loc["teachers", "r_mean"])
    assert list(tables.results_table(RECORDS, ["r_mean", "t2i/R@1"])["t2i/R@1"].isna()) == [True] * 4


def test_result_rows_know_the_spread():
    rows = tables.result_rows(RECORDS, ["i2t/R@1"]).set_index("variant")
    assert rows.loc["rvlr", ["value", "low", "high", "seeds"]].to_list() == [32.0, 30.0, 34.0, 2]
    assert rows.loc["floor", ["low", "high", "seeds"]].to_list() == [1.0, 1.0, 1]
    assert list(rows.index) == ["floor", "rvlr", "matching", "ceiling"]


def test_several_data_sets_stand_in_the_index():
    table = tables.results_table([*RECORDS, record("rvlr", 50.0, dataset="emoji")], ["r_mean"])
    assert table.loc[("emoji", "rvlr"), "r_mean"] == 51.0
    assert table.index.names == ["dataset", "variant"]


def test_structure_counts_among_the_metrics_and_none_is_missing():
    records = [record("rvlr", 1.0, **{"image/overlap_teacher": 70.0}), {**record("matching", 1.0), "metrics": {}}]
    assert tables.results_table(records, ["image/overlap_teacher"]).to_dict() == {
        "image/overlap_teacher": {"rvlr": 70.0}
    }
    with pytest.raises(ValueError, match="t2i/R@7"):
        tables.result_rows(records, ["t2i/R@7"])


def test_structure_rows():
    rows = tables.structure_rows([
        record("rvlr", 1.0, **{"image/overlap_teacher": 70.0, "modality_gap": 0.5}),
        record("rvlr", 1.0, seed=1, **{"image/overlap_teacher": 60.0, "modality_gap": None}),
        record("floor", 1.0),
    ])  # fmt: skip
    assert rows.to_numpy().tolist() == [
        ["rvlr", "image", "overlap_teacher", 65.0],
        ["rvlr", "both", "modality_gap", 0.5],
    ]


def test_log_rows():
    log = [{"variant": "rvlr", "step": 0, "epoch": 0, "loss/structure": 2, "temperature": 0.07},
           {"variant": "rvlr", "step": 9, "epoch": 1, "validation/r_mean": None}]  # fmt: skip
    assert tables.log_rows(log).to_numpy().tolist() == [
        ["rvlr", 0, "loss/structure", 2.0],
        ["rvlr", 0, "temperature", 0.07],
    ]


TABLE = pd.DataFrame({"r_mean": [31.26, np.nan], "what | more": ["a|b\nc", None], "seeds": [5, 3]},
                     index=pd.Index(["rvlr", "matching_longer"], name="variant"))  # fmt: skip


def test_markdown():
    assert tables.to_markdown(TABLE, decimals=2).splitlines() == [
        "| variant | r_mean | what \\| more | seeds |",
        "| --- | ---: | --- | ---: |",
        "| rvlr | 31.26 | a\\|b c | 5 |",
        "| matching_longer | – | – | 3 |",
    ]
    assert tables.to_markdown(pd.DataFrame({"x": [1.0]})).splitlines()[0] == "| x |"


def test_latex():
    text = tables.to_latex(TABLE.drop(columns="what | more"), caption="Results_1", label="tab:x")
    for part in (r"\toprule", r"\midrule", r"\bottomrule", r"matching\_longer & -- & 3 \\", "31.3", r"\label{tab:x}"):
        assert part in text


def test_write_table(tmp_path):
    paths = tables.write_table(TABLE, tmp_path / "new", "results")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["results.csv", "results.md", "results.tex"]
    again = pd.read_csv(paths["csv"], index_col="variant")
    assert again.loc["rvlr", "r_mean"] == 31.26
    assert paths["md"].read_text() == tables.to_markdown(TABLE) + "\n"


PAGE = "# Title\n<!-- results:begin -->\nold\n<!-- results:end -->\ntail\n"


def test_insert_between(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(PAGE)
    for _ in range(2):
        tables.insert_between(path, "results", "new – line\n")
        assert path.read_text() == PAGE.replace("old", "new – line")


@pytest.mark.parametrize("page", [
    "no markers", PAGE.replace("begin", "start"), PAGE.replace(":end", ":stop"),
    "<!-- results:begin -->" + PAGE, PAGE + "<!-- results:end -->",
    "<!-- results:end -->\n<!-- results:begin -->",
])  # fmt: skip
def test_insert_between_refuses_a_page_without_its_markers(tmp_path, page):
    path = tmp_path / "README.md"
    path.write_text(page)
    with pytest.raises(ValueError, match="results:begin"):
        tables.insert_between(path, "results", "new")
    assert path.read_text() == page


def test_replacing_is_all_or_nothing(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def broken():
        with tables.replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_noise_of_a_mean_does_not_decide_a_half():
    record = {"dataset": "d", "variant": "rvlr", "metrics": {"r_mean": 94.14999999999999}}
    assert tables.result_rows([record], ["r_mean"])["value"].tolist() == [94.15]
    assert (
        tables.results_table([record], ["r_mean"]).round(1).loc["rvlr", "r_mean"] == 94.2 == float(tables.shown(94.15))
    )
