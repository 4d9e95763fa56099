"""Result records and logs as tables; tables as CSV, Markdown and LaTeX."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HEADLINE = ("i2t/R@1", "i2t/R@10", "t2i/R@1", "t2i/R@10", "r_mean", "i2i/NDCG@10", "t2t_no_siblings/NDCG@10",
            "i2it/NDCG@10", "t2it/NDCG@10")  # fmt: skip
ROW_ORDER = {"floor": 0, "teachers": 1, "ceiling": 3}  # everything that is trained stands between
NOT_A_TERM = ("variant", "step", "epoch")
LATEX_SIGNS = {"−": "$-$", "…": r"\ldots{}", "→": r"$\rightarrow$", "≥": r"$\geq$"}  # pdflatex knows no other
DECIMALS = 1


def result_rows(records: Iterable[Mapping[str, Any]], keys: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Metrics of many results, one line per data set, variant and metric.

    Args:
        records: with ``dataset``, ``variant``, ``seed``, ``metrics`` and perhaps ``structure``.
        keys: the metrics wanted, in their order; one that a record lacks gives no line.

    Returns:
        Columns dataset, variant, metric, value (mean over seeds), low, high (least and greatest seed), seeds; floor and
        teachers first, ceiling last.

    Raises:
        ValueError: no record holds any of the keys.
    """
    import pandas as pd

    lines = [
        (record["dataset"], record["variant"], key, values[key])
        for record in records
        for values in [{**record.get("structure", {}), **record["metrics"]}]
        for key in keys
        if values.get(key) is not None
    ]
    if not lines:
        raise ValueError(f"no record holds any of the metrics {', '.join(keys)}")
    frame = pd.DataFrame(lines, columns=["dataset", "variant", "metric", "value"])
    grouped = frame.groupby(["dataset", "variant", "metric"], sort=False)["value"]
    rows = grouped.agg(value="mean", low="min", high="max", seeds="count").reset_index()
    rows = rows.round(9)  # 94.14999999999999 of a mean is 94.15: noise must not decide how a half is rounded
    place = rows["variant"].map(lambda name: ROW_ORDER.get(name, 2))
    rows = rows.assign(_place=place, _metric=rows["metric"].map(list(keys).index))
    rows = rows.sort_values(["_place", "_metric"], kind="stable")
    return rows.drop(columns=["_place", "_metric"]).reset_index(drop=True)


def results_table(records: Iterable[Mapping[str, Any]], keys: Sequence[str] = HEADLINE) -> pd.DataFrame:
    """Metrics of many results, a row per variant and a column per metric.

    Args:
        records: as for :func:`result_rows`.
        keys: the columns, in their order; NaN where a variant lacks one.

    Returns:
        Means over seeds, indexed by variant (by data set and variant where there are several data sets): floor and
        teachers first, ceiling last.
    """
    rows = result_rows(records, keys)
    index = ["dataset", "variant"] if rows["dataset"].nunique() > 1 else ["variant"]
    order = rows[index].drop_duplicates().apply(tuple, axis=1)
    table = rows.set_index([*index, "metric"])["value"].unstack("metric").reindex(columns=list(keys))
    table.columns.name = None
    return table.loc[[names if len(index) > 1 else names[0] for names in order]]


def structure_rows(records: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Structure figures of many results: columns method, modality, measure, value (mean over seeds)."""
    import pandas as pd

    lines = [
        (record["variant"], *(key.split("/") if "/" in key else ("both", key)), value)
        for record in records
        for key, value in record.get("structure", {}).items()
        if value is not None
    ]
    frame = pd.DataFrame(lines, columns=["method", "modality", "measure", "value"])
    return frame.groupby(["method", "modality", "measure"], sort=False)["value"].mean().reset_index()


def log_rows(log: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Training logs, as :meth:`Study.training_log` reads them, one line per value: variant, step, term, value."""
    import pandas as pd

    lines = [
        (record["variant"], record["step"], term, float(value))
        for record in log
        for term, value in record.items()
        if term not in NOT_A_TERM and value is not None
    ]
    return pd.DataFrame(lines, columns=["variant", "step", "term", "value"])


def shown(value: float, decimals: int = DECIMALS) -> str:
    """A number as in a rounded table, where halves go to the even digit: figures and sentences show the same.

    >>> shown(43.45), f"{43.45:.1f}"
    ('43.4', '43.5')
    """
    import numpy as np

    return f"{np.round(value, decimals):.{decimals}f}"


def to_markdown(table: pd.DataFrame, decimals: int = DECIMALS) -> str:
    """A Markdown table; an index with a name is its first column, numbers stand right, missing values are a dash.

    >>> import pandas as pd
    >>> print(to_markdown(pd.DataFrame({"r_mean": [31.25, None]}, index=pd.Index(["rvlr", "a|b"], name="variant"))))
    | variant | r_mean |
    | --- | ---: |
    | rvlr | 31.2 |
    | a\\|b | – |
    """
    flat = _flat(table)
    right = [kind in "fiu" for kind in (flat[name].dtype.kind for name in flat)]
    rows = [["---:" if numeric else "---" for numeric in right]]
    rows += [[_cell(value, decimals) for value in row] for row in flat.itertuples(index=False)]
    heads = [str(name).replace("|", "\\|") for name in flat]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, *rows])


def to_latex(
    table: pd.DataFrame, decimals: int = DECIMALS, *, caption: str | None = None, label: str | None = None
) -> str:
    r"""A LaTeX table for the package booktabs; with a caption or label a floating one.

    >>> import pandas as pd
    >>> print(to_latex(pd.DataFrame({"a_b": ["−1.5 to 2", "5 %"]})).splitlines()[2:6])
    ['a\\_b \\\\', '\\midrule', '$-$1.5 to 2 \\\\', '5 \\% \\\\']
    """
    text = _flat(table).to_latex(index=False, escape=True, na_rep="--", caption=caption, label=label,
                                 float_format=lambda value: _number(value, decimals).replace("-", "−"))  # fmt: skip
    for sign, known in LATEX_SIGNS.items():
        text = text.replace(sign, known)
    return text


def write_table(table: pd.DataFrame, folder: Path | str, name: str, decimals: int = DECIMALS) -> dict[str, Path]:
    """Write ``name`` as ``.csv`` (all digits), ``.md`` and ``.tex``, whole or not at all; paths by suffix."""
    texts = {
        "csv": _flat(table).to_csv(index=False, lineterminator="\n"),
        "md": to_markdown(table, decimals) + "\n",
        "tex": to_latex(table, decimals),
    }
    paths = {suffix: Path(folder) / f"{name}.{suffix}" for suffix in texts}
    for suffix, path in paths.items():
        with replacing(path) as temporary:
            temporary.write_text(texts[suffix], encoding="utf-8")
    return paths


def insert_between(path: Path | str, marker: str, text: str) -> None:
    """Replace what stands between ``<!-- marker:begin -->`` and ``<!-- marker:end -->`` of a file.

    Raises:
        ValueError: the file does not hold both markers once, in this order; it is then left as it was.
    """
    begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
    content = Path(path).read_text(encoding="utf-8")
    if content.count(begin) != 1 or content.count(end) != 1 or content.index(begin) > content.index(end):
        raise ValueError(f"{path} must hold the lines {begin} and {end} once each, in this order")
    before, after = content.split(begin)[0], content.split(end)[1]
    with replacing(path) as temporary:
        temporary.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """A temporary file that takes the place of ``path`` when the block ends well, and vanishes when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flat(table: pd.DataFrame) -> pd.DataFrame:
    """The index as columns, unless it is a mere count of rows."""
    return table.reset_index() if any(name is not None for name in table.index.names) else table


def _number(value: float, decimals: int) -> str:
    return f"{round(value, decimals) + 0.0:.{decimals}f}"  # + 0.0: no minus before a zero


def _cell(value: Any, decimals: int) -> str:
    if value is None or value != value:
        return "–"
    text = _number(value, decimals) if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
