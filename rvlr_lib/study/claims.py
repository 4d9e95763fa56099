"""Verdicts of a study from its sealed seeds, each with its control in the same sentence."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Template

from rvlr_lib.config import ARMS
from rvlr_lib.disk import read_json, write_text
from rvlr_lib.metrics.statistics import Effect, Verdict, paired_effect, power, verdicts
from rvlr_lib.study.plan import Claim, Plan, arm_of, check_seal, load_plan, reference_folder, tuned_by
from rvlr_lib.study.sweep import mean_score, read_seeds
from rvlr_lib.tables import arm_label, format_number, metric_label, to_markdown

Cells = Mapping[str, Mapping[str, Any]]
Results = Mapping[str, Mapping[int, Cells]]  # part of the plan -> seed -> cell -> record
Judged = Mapping[str, Verdict]
TEMPLATE = Path(__file__).parent / "templates" / "claims.md.j2"


def metric_of(cell: Mapping[str, Any], metric: str) -> float:
    """A structure or headline metric of a cell, or the mean of several joined by ``&``; ValueError if unknown."""
    metrics = _metrics(cell)
    values: list[Any] = [metrics.get(name) for name in metric.split(" & ")]
    if None in values:
        raise ValueError(f"a cell has no metric {metric!r}; it has: {', '.join(list(metrics)[:40])}")
    return float(sum(values) / len(values))


def _metrics(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**cell["structure"], **next(iter(cell["metrics"].values()))}


def effects(claim: Claim, results: Results) -> list[list[float]]:
    """For each effect of a claim, its weighted sum in every seed that has all of its cells."""
    sums = []
    for terms in claim.parts:
        seeds = set.intersection(*(set(results.get(dataset, {})) for _, dataset, _ in terms))
        complete = [seed for seed in sorted(seeds) if all(cell in results[name][seed] for _, name, cell in terms)]
        values = [[f * metric_of(results[name][n][cell], claim.metric) for f, name, cell in terms] for n in complete]
        sums.append([sum(weighted) for weighted in values])
    return sums


def weakest(claim: Claim, results: Results) -> Effect:
    """The effect of a claim; of two that must both hold, the less favourable one."""
    candidates = map(paired_effect, effects(claim, results))
    return min(candidates, key=lambda effect: effect.mean / max(effect.sd, 1e-9))


def control_of(plan: Plan, name: str, results: Results) -> list[tuple[str, Effect]]:
    """Label and effect of the arm that is a claim's control; empty if the claim has none."""
    control = plan.claims.get(plan.claims[name].control)
    return [(arm_label(arm_of(control.parts[0][0][2])), weakest(control, results))] if control else []


def judge(plan: Plan, results: Results) -> dict[str, Verdict]:
    """Joint verdicts on the primary claims; empty while one of them lacks a planned seed."""
    primary = {name: claim for name, claim in plan.claims.items() if claim.primary}
    counts = [len(values) for claim in primary.values() for values in effects(claim, results)]
    if not counts or min(counts) < plan.seeds:
        return {}
    observed = {name: weakest(claim, results) for name, claim in primary.items()}
    return verdicts(observed, {name: plan.delta[claim.metric] for name, claim in primary.items()})


def companions(plan: Plan, results: Results) -> dict[str, Effect]:
    """Effects that are not primary and have all their planned seeds, with plain 95 % intervals: leads, not claims."""
    complete = {}
    for name, claim in plan.claims.items():
        planned = max(2, *(plan.sets[dataset].seeds for terms in claim.parts for _, dataset, _ in terms))
        if not claim.primary and min(map(len, effects(claim, results))) >= planned:
            complete[name] = weakest(claim, results)
    return complete


def sentence(plan: Plan, name: str, results: Results, judged: Judged, tuned: Mapping[str, Any]) -> str:
    """One primary claim in a sentence: verdict, effect, interval, seeds, and what its control gains."""
    claim = plan.claims[name]
    if name not in judged:
        return f"{claim.text}: no verdict, some planned seeds are missing."
    verdict, effect, points = judged[name], judged[name].effect, signed(judged[name].effect.mean)
    certainty = f"{interval(verdict.low, verdict.high)}, {effect.seeds} seeds, δ {verdict.delta:g}"
    text = f"{claim.text}: **{verdict.verdict}**, {points} points ({certainty})"
    for _, control in control_of(plan, name, results):
        more = f", more than the claim's own {points}" if control.mean > effect.mean else ""
        text += f"; {plan.claims[claim.control].text}: {_estimate(control)}{more}"
    cells = {cell for terms in claim.parts for _, _, cell in terms if arm_of(cell) in tuned["chosen"].get("arms", {})}
    off = sorted({arm_label(arm_of(cell)) for cell in cells if zero_did_as_well(tuned, arm_of(cell), tuned_by(cell))})
    return text + (f"; in tuning no strength of {', '.join(off)} beat none, and the best one ran" if off else "") + "."


def zero_did_as_well(tuned: Mapping[str, Any], name: str, criterion: str) -> bool:
    """Whether matching longer, which has no strength, scored as well as an arm by the criterion that chose both."""
    metric = "structure" if criterion == "structure" else "r_mean"
    zero, best = (_validation(tuned, arm, criterion, metric) for arm in ("matching_longer", name))
    return bool(ARMS[name].groups) and zero >= best


def _validation(tuned: Mapping[str, Any], name: str, criterion: str, metric: str) -> float:
    """The score of an arm's chosen trial, mean over the seeds and dials that it was tried on."""
    chosen = tuned["chosen"]["arms"][name][criterion]
    matches = (trial for trial in tuned["trials"][name] if chosen.items() <= trial.items())
    return mean_score(next(matches)["scores"], metric)


def tally(plan: Plan, results: Results, judged: Judged) -> str:
    """How many primary claims hold, by how much, and in how many of them the control gains as much or more."""
    held = {name: verdict for name, verdict in judged.items() if verdict.verdict.startswith("better")}
    below = sum("δ" in verdict.verdict for verdict in held.values())
    controls = [(name, control) for name in held for _, control in control_of(plan, name, results)]
    equalled = sum(control.mean >= held[name].effect.mean for name, control in controls)
    qualified = f", {below} of them by less than δ" if below else ""
    qualified += f", and in {equalled} of them the control gains as much or more" if equalled else ""
    seeds = min(verdict.effect.seeds for verdict in judged.values())
    return f"**{len(held)} of {len(judged)} sealed claims hold{qualified}** ({seeds} seeds, points)"


def headline(plan: Plan, results: Results, judged: Judged) -> str:
    """All primary claims in one sentence: how many hold, and each verdict with its effect, interval and control."""
    clauses = []
    for name, verdict in judged.items():
        points = f"{signed(verdict.effect.mean)}, {interval(verdict.low, verdict.high)}"
        gains = "".join(f"; {label} {signed(gain.mean)}" for label, gain in control_of(plan, name, results))
        clauses.append(f"{name}: {verdict.verdict} ({points}{gains})")
    return f"{tally(plan, results, judged)}: {'; '.join(clauses)}."


def lead(plan: Plan, results: Results, name: str) -> str:
    """One sentence on the companions whose names start alike (``bending, …``): effects, plain intervals, seeds."""
    group = {key: claim for key, claim in plan.claims.items() if key.startswith(name) and not claim.primary}
    complete = {key: effect for key, effect in companions(plan, results).items() if key in group}
    if not complete:
        return f"{name}: no effect yet, some seeds are missing."
    dials = {key: key.removeprefix(name).strip(", ") or "overall" for key in complete}
    clauses = "; ".join(f"{dials[key]} {_estimate(effect)}" for key, effect in complete.items())
    text, seeds = next(iter(group.values())).text, min(effect.seeds for effect in complete.values())
    return f"{text[:1].upper()}{text[1:]}: {clauses} points; {seeds} seeds, 95 % intervals, no verdict."


def claims_frame(plan: Plan, results: Results, judged: Judged) -> pd.DataFrame:
    """What :func:`rvlr_lib.figures.verdicts.plot_claims` draws: each primary claim, and what its control gains."""
    rows: list[tuple[Any, ...]] = []
    for name, verdict in judged.items():
        claim = plan.claims[name].text, verdict.delta
        rows.append((*claim, None, verdict.effect.mean, verdict.low, verdict.high, verdict.verdict))
        for label, control in control_of(plan, name, results):
            rows.append((*claim, label, control.mean, control.low, control.high, None))
    return pd.DataFrame(rows, columns=["claim", "delta", "part", "mean", "low", "high", "verdict"])


def claims_table(plan: Plan, judged: Judged) -> pd.DataFrame:
    """Primary claims: verdict, effect, both intervals, and the power of the verdicts at the observed spread."""
    columns = ["claim", "verdict", "effect (points)", "Holm interval", "90 % interval", "δ", "SD", "seeds"]
    columns += ["power at 0 (equivalent)", "power at δ (better)", "metric"]
    rows: list[tuple[Any, ...]] = []
    for name, verdict in judged.items():
        effect, delta = verdict.effect, verdict.delta
        points = signed(effect.mean), interval(verdict.low, verdict.high), interval(*verdict.interval_90), f"{delta:g}"
        chances = partial(power, max(effect.sd, 1e-6), effect.seeds, delta, claims=len(judged))
        at_zero, at_delta = chances(effect=0.0), chances(effect=delta)
        shares = at_zero["equivalent"], at_delta["better"] + at_delta["better, below δ"]
        spread = f"{effect.sd:.2f}", effect.seeds, *(f"{100 * share:.0f} %" for share in shares)
        rows.append((name, verdict.verdict, *points, *spread, metric_label(plan.claims[name].metric)))
    return pd.DataFrame(rows, columns=columns)


def companions_table(plan: Plan, results: Results) -> pd.DataFrame:
    """Companions: effect, plain 95 % interval, and the validation scores that chose their arms' trials; no verdict."""
    rows: list[tuple[Any, ...]] = []
    for name, effect in companions(plan, results).items():
        claim = plan.claims[name]
        cells = [cell for terms in claim.parts for _, _, cell in terms if arm_of(cell) in ARMS]
        criteria = {tuned_by(cell) for cell in cells if ARMS[arm_of(cell)].stage == 2}
        points = signed(effect.mean), interval(effect.low, effect.high), effect.seeds
        rows.append((name, *points, " & ".join(sorted(criteria)), claim.text, metric_label(claim.metric)))
    columns = ["difference", "effect (points)", "95 % interval", "seeds", "tuned by", "in words", "metric"]
    return pd.DataFrame(rows, columns=columns)


def tuning_table(tuned: Mapping[str, Any]) -> pd.DataFrame:
    """What tuning chose for every arm, by recall and by structure, and the validation recall of both choices."""
    columns = ["arm", "chosen by", "learning rate", "strengths", "trials", "validation r_mean", "zero did as well"]
    rows: list[tuple[Any, ...]] = []
    for name, choices in tuned["chosen"]["arms"].items():
        for criterion in ("recall", "structure"):
            chosen, count = choices[criterion], len(tuned["trials"][name])
            strengths = ", ".join(f"{group} {value:g}" for group, value in chosen["strengths"].items()) or "–"
            recall = f"{_validation(tuned, name, criterion, 'r_mean'):.1f}"
            zero = ("yes" if zero_did_as_well(tuned, name, criterion) else "no") if chosen["strengths"] else "–"
            rows.append((name, criterion, f"{chosen['learning_rate']:g}", strengths, count, recall, zero))
    return pd.DataFrame(rows, columns=columns)


def results_frame(results: Results, metrics: Sequence[str]) -> pd.DataFrame:
    """Metrics of all cells, tidy: ``dataset, dial, arm, seed, metric, value``; undefined ones are left out."""
    rows = [
        (dataset, *reversed(name.split("|")), seed, metric, _metrics(cell).get(metric))
        for dataset, seeds in results.items()
        for seed, cells in seeds.items()
        for name, cell in cells.items()
        for metric in metrics
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])
    return frame.dropna(subset="value", ignore_index=True)


def map_frame(folder: Path) -> pd.DataFrame:
    """The map, tidy: ``dial, teacher, ratio, seed, metric, value``; values are differences from ``matching_longer``."""
    rows = []
    for record in map(read_json, sorted((folder / "map").glob("seed-*.json"))):
        for dial, cells in record["cells"].items():
            for name in [name for name in cells if "|" in name]:
                teacher, ratio = name.split("|")
                for metric in ("r_mean", "structure"):
                    gain = cells[name][metric] - cells["0"][metric]
                    rows.append((dial, teacher, float(ratio), record["seed"], metric, gain))
    return pd.DataFrame(rows, columns=["dial", "teacher", "ratio", "seed", "metric", "value"])


def read_study(profile: str = "study", folder: str | Path = "") -> tuple[Plan, Results, dict[str, Any]]:
    """A sealed study: its plan, results of the planned seeds, and tuning; errors as in :func:`check_seal`."""
    folder, plan = reference_folder(profile, folder), load_plan(profile)
    sealed = check_seal(plan, folder)
    results = {name: read_seeds(folder, name, sealed, part.seeds) for name, part in plan.sets.items()}
    return plan, {name: seeds for name, seeds in results.items() if seeds}, read_json(folder / "tuning.json")


def claims_page(plan: Plan, results: Results, tuned: Mapping[str, Any], seal: Mapping[str, Any]) -> str:
    """The claims as a Markdown page: sentences, verdicts, what did not hold, companions, measurement, tuning."""
    judged = judge(plan, results)
    primary = [name for name, claim in plan.claims.items() if claim.primary]
    refuted = {name: verdict.verdict for name, verdict in judged.items() if not verdict.verdict.startswith("better")}
    records = [record for seeds in results.values() for cells in seeds.values() for record in cells.values()]
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).render(
        plan=plan,
        seal=seal,
        chosen=tuned["chosen"],
        trials=len(next(iter(tuned["trials"].values()), [])),
        hours=sum(record.get("cpu_seconds", 0.0) for record in records) / 3600,
        commits=", ".join(dict.fromkeys(str(record["commit"]) for record in records)),
        counts=", ".join(f"{name} {len(seeds)}" for name, seeds in results.items()),
        sentences=[sentence(plan, name, results, judged, tuned) for name in primary],
        verdicts=to_markdown(claims_table(plan, judged)) if judged else "",
        power=power(1.5, plan.seeds, 1.0, claims=len(primary)),
        refuted=[f"{plan.claims[name].text}: {verdict}." for name, verdict in refuted.items()],
        companions=to_markdown(companions_table(plan, results)) if judged else "",
        tuning=to_markdown(tuning_table(tuned)),
    )


def write_claims(profile: str = "study", folder: str | Path = "") -> Path:
    """Write ``claims.md`` next to a study's results; errors as in :func:`read_study`."""
    folder = reference_folder(profile, folder)
    write_text(folder / "claims.md", claims_page(*read_study(profile, folder), read_json(folder / "seal.json")))
    return folder / "claims.md"


def _estimate(effect: Effect) -> str:
    return f"{signed(effect.mean)} ({interval(effect.low, effect.high)})"


def signed(value: float, places: int = 2) -> str:
    """A difference with its sign."""
    return format_number(value, signed=True, decimals=places)


def interval(low: float, high: float) -> str:
    """An interval of differences, with a third decimal where two would hide on which side of 0 a bound lies.

    >>> interval(-1.0, 2.5), interval(-0.15, -0.003)
    ('−1.00 to +2.50', '−0.150 to −0.003')
    """
    places = 3 if any(0 < abs(bound) < 0.005 for bound in (low, high)) else 2
    return f"{signed(low, places)} to {signed(high, places)}"
