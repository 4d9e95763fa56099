"""What the study's seeds say about each claim, from the small result files alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rvlr_lib.metrics.statistics import Effect, Verdict, paired_effect, verdicts
from rvlr_lib.study.sweep import BEST, Cell, Claim, Sweep

if TYPE_CHECKING:
    import pandas as pd

Cells = Mapping[str, Mapping[str, Any]]
PLACE = ["dial", "metric", "seed"]


def metric_of(cell: Mapping[str, Any], metric: str) -> float:
    """A metric of a cell under the headline relevance, or one of its structure figures.

    ``log r_mean`` is 100 times the natural logarithm of ``r_mean``: differences are relative (percent, where small).

    Raises:
        ValueError: the cell has no such figure, or it is not defined; names some it has.
    """
    if metric.startswith("log "):
        return 100 * math.log(metric_of(cell, metric.removeprefix("log ")))
    headline = next(iter(cell["metrics"].values()))
    found = {**cell["structure"], **headline}
    if found.get(metric) is None:
        raise ValueError(f"a cell has no metric {metric!r}; it has: {', '.join(list(found)[:40])}")
    return float(found[metric])


def resolve(sweep: Sweep, cells: Cells, name: str) -> str | None:
    """The cell that a claim's term names; ``matching+best`` is the strength inside the axis that validation prefers.

    Inside: above 0, which is plain matching, and below the largest, which stands for ultimate matching.

    Returns:
        Its name, or None while a cell it needs is not computed.
    """
    variant, dial = name.split("|")
    if not variant.endswith(f"+{BEST}"):
        return name if name in cells else None
    plain = variant.removesuffix(f"+{BEST}")
    axis = [cell for cell in sweep.cells() if cell.dial == dial and cell.variant == plain and cell.alignment]
    inside = [str(cell) for cell in sorted(axis, key=lambda cell: cell.alignment)[:-1]]
    if not inside or not all(key in cells for key in inside):
        return None
    return max(inside, key=lambda key: cells[key]["validation_r_mean"])


def effect(sweep: Sweep, claim: Claim, cells: Cells) -> float | None:
    """The claim's weighted sum for one seed; None while one of its cells is missing."""
    total = 0.0
    for factor, name in claim.terms:
        cell = resolve(sweep, cells, name)
        if cell is None:
            return None
        total += factor * metric_of(cells[cell], claim.metric)
    return total


def effects(sweep: Sweep, claim: Claim, results: Mapping[int, Cells]) -> dict[int, float]:
    """The claim's weighted sum by seed, of all seeds that have its cells."""
    found = {seed: effect(sweep, claim, cells) for seed, cells in results.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def judge(sweep: Sweep, results: Mapping[int, Cells]) -> dict[str, Verdict]:
    """Verdicts on the primary claims, all together; see :func:`rvlr_lib.metrics.verdicts`."""
    primary = {name: claim for name, claim in sweep.claims.items() if claim.primary}
    differences = {name: list(effects(sweep, claim, results).values()) for name, claim in primary.items()}
    delta = {name: sweep.delta[claim.metric] for name, claim in primary.items()}
    return verdicts({name: x for name, x in differences.items() if len(x) > 1}, delta)


def claims_table(sweep: Sweep, results: Mapping[int, Cells]) -> "pd.DataFrame":
    """Each primary claim × data set × verdict × effect with its adjusted interval × seeds."""
    import pandas as pd

    rows = [
        {
            "claim": name,
            "data set": sweep.dataset,
            "verdict": verdict.verdict + ("" if verdict.effect.seeds >= sweep.seeds else " (so far)"),
            "effect, points": signed(verdict.effect.mean),
            "interval": interval_text(verdict.low, verdict.high),
            "delta": verdict.delta,
            "seeds": f"{verdict.effect.seeds} of {sweep.seeds}",
            "in words": sweep.claims[name].text,
            "measured as": f"{sweep.claims[name].metric}: {sweep.claims[name].effect}",
        }
        for name, verdict in judge(sweep, results).items()
    ]
    return pd.DataFrame(rows).set_index("claim")


def others_table(sweep: Sweep, results: Mapping[int, Cells]) -> "pd.DataFrame":
    """Differences that are not primary claims: effect and 95 % t-interval, uncorrected, no verdict."""
    import pandas as pd

    rows = []
    for name, claim in sweep.claims.items():
        values = list(effects(sweep, claim, results).values())
        if claim.primary or not values:
            continue
        known = paired_effect(values) if len(values) > 1 else None
        rows.append(
            {
                "difference": name,
                "metric": claim.metric,
                "effect, points": signed(sum(values) / len(values)),
                "interval": interval_text(known.low, known.high) if known else "–",
                "reading": _reading(known) if known else "not decided",
                "seeds": len(values),
                "in words": claim.text,
                "measured as": claim.effect,
            }
        )
    return pd.DataFrame(rows).set_index("difference") if rows else pd.DataFrame()


def dial_rows(sweep: Sweep, results: Mapping[int, Cells], metrics: Mapping[str, str]) -> "pd.DataFrame":
    """Figures along the dial, one line per dial point, variant, metric and seed.

    Args:
        sweep: the plan.
        results: of its seeds.
        metrics: key -> label.

    Returns:
        Columns ``dial``, ``variant``, ``alignment``, ``metric``, ``seed``, ``value``; a metric that a cell has not,
        such as recall of the teachers, gives no line.
    """
    import pandas as pd

    rows = []
    for seed, cells in results.items():
        for cell in sweep.cells():
            if str(cell) not in cells:
                continue
            found = {**cells[str(cell)]["structure"], **next(iter(cells[str(cell)]["metrics"].values()))}
            rows += [
                {**_names(cell), "metric": label, "seed": seed, "value": found[key]}
                for key, label in metrics.items()
                if found.get(key) is not None
            ]
    return pd.DataFrame(rows)


def since_start(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Change of each value since the start, at the same dial point, metric and seed."""
    start = rows[rows.variant == "start"].set_index(PLACE).value
    moved = rows[rows.variant != "start"].copy()
    moved["value"] -= start.reindex(moved.set_index(PLACE).index).to_numpy()
    return moved.dropna(subset=["value"])


def share_of_ceiling(rows: "pd.DataFrame") -> "pd.DataFrame":
    """Each value in percent of the Bayes ceiling at the same dial point and metric."""
    ceiling = rows[rows.variant == "ceiling"].set_index(PLACE).value
    shares = rows[~rows.variant.isin(("ceiling", "floor"))].copy()
    shares["value"] *= 100 / ceiling.reindex(shares.set_index(PLACE).index).to_numpy()
    return shares.dropna(subset=["value"])


def against(rows: "pd.DataFrame", baseline: str) -> "pd.DataFrame":
    """Differences to a variant on the same seeds: ``label``, ``metric``, ``value`` and its ``low`` and ``high``.

    The interval is the 95 % t-interval over seeds; with one seed it has no width.
    """
    import pandas as pd

    base = rows[rows.variant == baseline].set_index(PLACE).value
    others = rows[rows.variant != baseline].copy()
    others["value"] -= base.reindex(others.set_index(PLACE).index).to_numpy()
    found = []
    for (label, metric), part in others.dropna(subset=["value"]).groupby(["variant", "metric"], sort=False):
        values = part["value"].tolist()
        mean = sum(values) / len(values)
        known = paired_effect(values) if len(values) > 1 else None
        low, high = (known.low, known.high) if known else (mean, mean)
        found.append({"label": label, "metric": metric, "value": mean, "low": low, "high": high, "seeds": len(values)})
    return pd.DataFrame(found, columns=["label", "metric", "value", "low", "high", "seeds"])


def claims_page(sweep: Sweep, results: Mapping[int, Cells], command: str, origin: Mapping[str, Any]) -> str:
    """The Markdown page of claims: verdicts, what does not hold, other differences, and how sure the rule is.

    Args:
        sweep: the plan.
        results: of the seeds there are.
        command: that made them.
        origin: provenance of the results.
    """
    from rvlr_lib.tables import to_markdown

    faults = control_faults(sweep, results)
    found, others = judge(sweep, results), others_table(sweep, results)
    whole = sum(all(str(cell) in cells for cell in sweep.cells()) for cells in results.values())
    hours = sum(cell.get("cpu_seconds", 0.0) for cells in results.values() for cell in cells.values()) / 3600
    least = min((verdict.effect.seeds for verdict in found.values()), default=0)
    lines = [
        "# Claims",
        "",
        f"Made by `{command}` on {sweep.dataset} from {len(results)} seeds of {sweep.seeds} planned, {whole} of them "
        f"whole ({len(sweep.cells())} cells); at least {hours:.1f} CPU hours; commit {origin.get('commit', '?')}. "
        "Metrics, effects and deltas of the primary claims stood in the profile before any run; their words were made "
        "plainer afterwards, where they promised more than the effect measures.",
        "",
        "An effect is a mean over seeds; its interval is a t-interval over seeds at the level that Holm's correction "
        f"over the {len(found)} claims asks for. **better**, **worse**: the interval lies off 0. **equivalent**: the "
        "90 % interval lies inside ±delta. **inconclusive**: neither. Below 5 seeds there is no verdict; the planned look is at "
        f"{sweep.seeds} seeds, and one before it is marked (so far). Seeds vary the training, not the pictures: an "
        "interval is about other trainings on this one draw of pictures.",
        "",
        *([f"With {least} seeds there is no verdict yet.", ""] if least < 5 else []),
        "## Primary claims",
        "",
        to_markdown(claims_table(sweep, results)),
        "",
        "## What did not hold",
        "",
        *([f"- {name}: {sweep.claims[name].text}." for name, v in found.items() if v.verdict.startswith("worse")]
          or ["- No claim was refuted."]),
        *[f"- {name}: no evidence either way so far." for name, v in found.items() if v.verdict == "inconclusive"],
        "",
        "## Other differences",
        "",
        "Not corrected for their number: leads, no claims. Read a primary claim beside its parts: a difference of "
        "differences can be above 0 although both differences are losses, and in points and in percent (log) they may "
        "disagree. The controls with teachers of other pictures, or never "
        "trained, must not lie above 0 by more than delta.",
        "",
        to_markdown(others) if len(others) else "None yet.",
        "",
        "## Controls",
        "",
        *([f"- **{fault}** comes out as helping: so much is gained without the teachers, and has to be taken "
           "off every gain of distillation on that metric before it is believed." for fault in faults]
          or ["- No control with five seeds comes out as helping."]),
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def control_faults(sweep: Sweep, results: Mapping[int, Cells]) -> list[str]:
    """Controls that come out as helping, at five seeds or more: then the study is broken.

    Helping: the 95 % t-interval lies above 0 and the mean above delta, the smallest difference that matters.
    """
    faults = []
    for name, claim in sweep.claims.items():
        values = list(effects(sweep, claim, results).values()) if name.startswith("control") else []
        if len(values) < 5:
            continue
        known = paired_effect(values)
        if known.low > 0 and known.mean > sweep.delta.get(claim.metric, 0.0):
            faults.append(f"{name} ({signed(known.mean)} points, {interval_text(known.low, known.high)})")
    return faults


def write_claims(
    sweep: Sweep, results: Mapping[int, Cells], folder: Path, command: str, origin: Mapping[str, Any]
) -> Path:
    """Write ``claims.md``, and both tables as CSV and LaTeX.

    Returns:
        The path of the page.
    """
    from rvlr_lib.tables import replacing, write_table

    folder.mkdir(parents=True, exist_ok=True)
    write_table(claims_table(sweep, results), folder, "claims")
    write_table(others_table(sweep, results), folder, "other_differences")
    page = folder / "claims.md"
    with replacing(page) as temporary:
        temporary.write_text(claims_page(sweep, results, command, origin))
    return page


def signed(value: float) -> str:
    """A difference with its sign and one decimal.

    >>> signed(-1.25), signed(3)
    ('−1.2', '+3.0')
    """
    return f"{value:+.1f}".replace("-", "−") if value == value else "–"


def interval_text(low: float, high: float) -> str:
    """An interval of differences.

    >>> interval_text(-1.0, 2.5), interval_text(float("nan"), 0.0)
    ('−1.0 to +2.5', '–')
    """
    return f"{signed(low)} to {signed(high)}" if low == low and high == high else "–"


def _reading(known: Effect) -> str:
    """Where an uncorrected interval lies; nothing is decided below five seeds."""
    if known.seeds < 5 or known.low <= 0 <= known.high:
        return "not decided"
    return "above 0" if known.low > 0 else "below 0"


def _names(cell: Cell) -> dict[str, Any]:
    return {"dial": cell.dial, "variant": cell.variant, "alignment": cell.alignment}
