"""Numbers, labels and tables as text, formatted alike in figures, tables and sentences.

Results are tidy frames with the columns dataset, dial, arm, seed, metric, value.
"""

import html
import re
from collections.abc import Collection, Iterable, Sequence
from decimal import ROUND_HALF_UP, Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.disk import write_text

if TYPE_CHECKING:
    import pandas as pd

HEADLINE_METRICS = ["i2t/R@1", "i2t/R@10", "t2i/R@1", "t2i/R@10", "r_mean"]
HEADLINE_METRICS += ["i2i/NDCG@10", "t2t_no_siblings/NDCG@10", "i2it/NDCG@10", "t2it/NDCG@10"]
KEYS = ("dataset", "dial", "seed", "metric")  # together with the arm they identify a value
FIRST, LAST = ("floor", "teachers", "start"), ("ceiling",)  # rows above and below the trained arms
LABELS = {"rvlr": "RVLR", "rvlr_published": "RVLR published", "rvlr_published_warm": "RVLR published, warm"}
LABELS |= {"rkd": "RKD", "cyclip": "CyCLIP", "pca": "PCA", "nnn": "NNN", "mean_relation": "constant target"}
LABELS |= {f"teacher_{name.lower()}": f"{name} teacher" for name in ("Lite2", "weak", "random", "oracle")}
LABELS |= {"ceiling": "Bayes ceiling", "image": "poor pictures", "none": "nothing taken", "text": "poor captions"}
PARTS = {"r_mean": "r_mean", "image": "pictures:", "text": "captions:", "image_query": "picture queries:"}
PARTS |= {"text_query": "caption queries:", "t2t_no_siblings": "t2t without siblings"}
PARTS |= {"overlap_teacher": "neighbours shared with teacher", "overlap_truth": "neighbours shared with truth"}
PARTS |= {"relations_teacher": "relations like teacher's"}
THREE = re.compile("temperature|loss|p_value")  # decimals of matching metrics; FREE: three significant digits
TWO = re.compile("Δ|share of|shown|probe| to |index|gap|relations|alignment|uniformity|norm|cka|CKA|cosine|relevance")
FREE = re.compile(r"weight|learning_rate|\blr\b|ratio|alpha")
unbroken_intervals = partial(re.compile(r"(?<=\d) to (?=[+−]?\d)").sub, "&nbsp;to&nbsp;")  # on one line in HTML
LATEX = {"−": "$-$", "…": r"\ldots{}", "→": r"$\rightarrow$", "≥": r"$\geq$", "–": "--", "Δ": r"$\Delta$"}


def arm_label(name: str) -> str:
    """The label of an arm or a dial setting."""
    return LABELS.get(str(name), str(name).replace("_", " "))


def metric_label(metric: str) -> str:
    """The label of a metric: ``image/overlap_truth`` becomes ``pictures: neighbours shared with truth``."""
    return " ".join(PARTS.get(part, part.replace("_", " ")) for part in re.split("[/ ]", metric.removeprefix("loss/")))


def format_number(value: Any, metric: str = "", *, signed: bool = False, decimals: int | None = None) -> str:
    """A number as text: with one decimal, two if ``signed``, or as many as its metric asks for.

    Halves are rounded away from zero, regardless of noise beyond nine decimals; a missing value is a dash.

    >>> format_number(94.14999999999999), format_number(-0.04), format_number(0.127, "modality_gap")
    ('94.2', '0.0', '0.13')
    """
    if value is None or value != value:  # NaN
        return "–"
    exact = Decimal(repr(round(float(value), 9)))
    if decimals is None:
        decimals = 3 if THREE.search(metric) else 2 if signed or TWO.search(metric) else 1
    text = str(exact.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP)) if exact.is_finite() else str(exact)
    text = f"{float(value):.3g}" if FREE.search(metric) else text
    if text.startswith("-"):
        return "−" + text[1:] if text.strip("-0.") else text[1:]
    return "+" + text if signed and text.strip("0.") else text


def arm_order(names: Sequence[str]) -> list[str]:
    """The distinct names: floor, teachers and start first, the ceiling last, the others in the given order."""
    ranks = {name: rank for rank, name in enumerate((*FIRST, "", *LAST))}
    return sorted(dict.fromkeys(names), key=lambda name: ranks.get(name, ranks[""]))


def differences(frame: "pd.DataFrame", baseline: str) -> "pd.DataFrame":
    """Every arm minus the baseline, paired by data set, dial, seed and metric; unpaired values are dropped.

    ValueError: the frame lacks the baseline, or holds several values for one cell.
    """
    keys, arms = [name for name in KEYS if name in frame], frame["arm"].unique()
    if baseline not in arms:
        raise ValueError(f"the baseline {baseline!r} is not among the arms {', '.join(map(str, arms))}")
    if frame.duplicated([*keys, "arm"]).any():
        raise ValueError(f"several values for one cell: {', '.join([*keys, 'arm'])} must identify a value")
    is_base = frame["arm"] == baseline
    base = frame[is_base].set_index(keys)["value"]
    joined = frame[~is_base].join(base.rename("base"), on=keys, how="inner")
    joined["value"] -= joined.pop("base")
    return joined.dropna(subset="value")


def results_table(frame: "pd.DataFrame", metrics: Sequence[str] = HEADLINE_METRICS) -> "pd.DataFrame":
    """Means over seeds: one row per arm (and per data set and dial, if several), one column per metric."""
    frame = frame[frame["metric"].isin(metrics)]
    if frame.empty:
        raise ValueError(f"there is no result for any of the metrics {', '.join(metrics)}")
    index = [*(name for name in KEYS[:2] if name in frame and frame[name].nunique() > 1), "arm"]
    table = frame.pivot_table(index=index, columns="metric", values="value", sort=False).reindex(columns=list(metrics))
    order = {name: list(frame[name].unique()) for name in index} | {"arm": arm_order(frame["arm"])}
    table = table.sort_index(level=index, key=lambda level: level.map(order[level.name].index))
    return table.rename_axis(columns=None)


def to_csv(table: "pd.DataFrame") -> str:
    """The table as CSV at full precision, including a named index."""
    return index_as_columns(table).to_csv(index=False, lineterminator="\n")


def to_markdown(table: "pd.DataFrame") -> str:
    """The table as Markdown."""
    text, kinds = _as_text(table)
    rows = [[str(x).replace("|", "\\|").replace("\n", " ") for x in row] for row in (text.columns, *text.to_numpy())]
    rows.insert(1, ["---:" if kind == "r" else "---" for kind in kinds])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def to_latex(table: "pd.DataFrame") -> str:
    """The table as LaTeX for booktabs."""
    text, kinds = _as_text(table)
    return text.to_latex(index=False, escape=True, column_format=kinds).translate(str.maketrans(LATEX))


class MarkdownTable(str):
    """A Markdown table that a notebook displays as the report does."""

    __repr__ = str.__str__

    def _repr_html_(self) -> str:
        import mistune

        return unbroken_intervals(mistune.html(html.escape(self, quote=False)))


def write_table(table: "pd.DataFrame", folder: Path | str, name: str) -> None:
    """Write the table as ``<name>.csv``, ``.md`` and ``.tex``."""
    for suffix, text in (("csv", to_csv(table)), ("md", to_markdown(table) + "\n"), ("tex", to_latex(table))):
        write_text(Path(folder) / f"{name}.{suffix}", text)


def index_as_columns(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with a named index turned into columns."""
    return table.reset_index() if any(level is not None for level in table.index.names) else table


def _as_text(table: "pd.DataFrame") -> tuple["pd.DataFrame", str]:
    """The flat table as strings, and its alignment: ``r`` for each column of numbers, ``l`` for the others.

    The metric of a number is the value of the column ``metric`` if there is one, else the name of its own column.
    """
    text = index_as_columns(table).astype(object)
    for name in text:
        metrics = text["metric"] if "metric" in text else [name] * len(text)
        text[name] = [_cell(value, str(metric), name) for value, metric in zip(text[name], metrics, strict=True)]
    kinds = "".join("r" if kind.kind in "fiu" else "l" for kind in table.dtypes)
    return text, kinds.rjust(len(text.columns), "l")


def _cell(value: Any, metric: str, column: str) -> str:
    if value is None or isinstance(value, float):
        return format_number(value, metric, signed=metric.startswith("Δ"))
    return arm_label(value) if column in ("arm", "dial", "baseline") else str(value)


def plain_message(error: object) -> str:
    """A message of jsonargparse in one line and without Python's types.

    >>> plain_message("Expected a <class 'int'>. Got value: many")
    'Expected int. Got value: many'
    """
    text = re.sub(r"a <class '(\w+)'>|Not of type \w+: ", lambda kind: kind[1] or "", " ".join(str(error).split()))
    text = re.sub("does not match regular expression .*", "is empty", text.replace("a typing.Literal", "one of "))
    text = re.sub(r"\bv(?=[<>])", "", text.replace("does not conform to restriction", "is not"))
    return text.replace("it does not accept", "unknown")


def refuse_unknown(names: Iterable[str], valid: Collection[str], fault: str) -> None:
    """ValueError with the first of the names that is not valid, after ``fault``, and the valid ones."""
    if unknown := [name for name in names if name not in valid]:
        raise ValueError(f"{fault} {unknown[0]!r}; valid: {', '.join(map(str, valid)) or 'none'}")
