"""What the sealed seeds say: verdicts, each with its control in the same sentence, from small result files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Template

from rvlr_lib.config import ARMS
from rvlr_lib.disk import read_json, write_text
from rvlr_lib.metrics.statistics import Effect, Verdict, paired_effect, power, verdicts
from rvlr_lib.study.plan import Claim, Plan, arm_of, check_seal, load_plan, reference_folder, tuned_by
from rvlr_lib.study.sweep import mean_score, read_seeds
from rvlr_lib.tables import arm_label, insert_between, metric_label, shown, to_markdown

Cells = Mapping[str, Mapping[str, Any]]
Results = Mapping[str, Mapping[int, Cells]]  # part of the plan -> seed -> cell -> record
Judged = Mapping[str, Verdict]
TEMPLATE = Path(__file__).parent / "templates" / "claims.md.j2"


def metric_of(cell: Mapping[str, Any], metric: str) -> float:
    """A metric of a cell under the headline relevance, or a structure figure; of several joined by ``&``, the mean."""
    found = _figures(cell)
    values: list[Any] = [found.get(part) for part in metric.split(" & ")]
    if None in values:
        raise ValueError(f"a cell has no metric {metric!r}; it has: {', '.join(list(found)[:40])}")
    return float(sum(values) / len(values))


def _figures(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {**cell["structure"], **next(iter(cell["metrics"].values()))}


def effects(claim: Claim, results: Results) -> list[list[float]]:
    """Each of the claim's weighted sums, one a seed, of all seeds that have its cells."""
    found = []
    for part in claim.parts:
        seeds = set.intersection(*(set(results.get(name, {})) for _, name, _ in part))
        whole = [seed for seed in sorted(seeds) if all(cell in results[name][seed] for _, name, cell in part)]
        terms = [[f * metric_of(results[name][seed][cell], claim.metric) for f, name, cell in part] for seed in whole]
        found.append([sum(own) for own in terms])
    return found


def weakest(claim: Claim, results: Results) -> Effect:
    """The effect of a claim; of two that must both hold, the one that holds less."""
    known = map(paired_effect, effects(claim, results))
    return min(known, key=lambda effect: effect.mean / max(effect.sd, 1e-9))


def control_of(plan: Plan, name: str, results: Results) -> list[tuple[str, Effect]]:
    """The arm that a claim's control is, as readers see it, and what it gains; empty where the claim has none."""
    control = plan.claims.get(plan.claims[name].control)
    return [(arm_label(arm_of(control.parts[0][0][2])), weakest(control, results))] if control else []


def judge(plan: Plan, results: Results) -> dict[str, Verdict]:
    """Verdicts on the primary claims, together; empty while a planned seed of one of them is missing."""
    primary = {name: claim for name, claim in plan.claims.items() if claim.primary}
    counts = [len(values) for claim in primary.values() for values in effects(claim, results)]
    if not counts or min(counts) < plan.seeds:
        return {}
    known = {name: weakest(claim, results) for name, claim in primary.items()}
    return verdicts(known, {name: plan.delta[claim.metric] for name, claim in primary.items()})


def companions(plan: Plan, results: Results) -> dict[str, Effect]:
    """Effects that are not primary and whose planned seeds are whole, with plain 95 % intervals: leads, no claims."""
    found = {}
    for name, claim in plan.claims.items():
        planned = max(2, *(plan.sets[own].seeds for part in claim.parts for _, own, _ in part))
        if not claim.primary and min(map(len, effects(claim, results))) >= planned:
            found[name] = weakest(claim, results)
    return found


def sentence(plan: Plan, name: str, results: Results, found: Judged, tuned: Mapping[str, Any]) -> str:
    """One primary claim in a sentence: verdict, effect, interval, seeds, and what its control gains."""
    claim = plan.claims[name]
    if name not in found:
        return f"{claim.text}: no verdict, the planned seeds are not whole."
    own = found[name]
    told, sure = signed(own.effect.mean), f"{interval(own.low, own.high)}, {own.effect.seeds} seeds, δ {own.delta:g}"
    text = f"{claim.text}: **{own.verdict}**, {told} points ({sure})"
    for _, control in control_of(plan, name, results):
        gain = f"{signed(control.mean)} ({interval(control.low, control.high)})"
        more = f", more than the claim's own {told}" if control.mean > own.effect.mean else ""
        text += f"; {plan.claims[claim.control].text}: {gain}{more}"
    cells = {cell for part in claim.parts for _, _, cell in part if arm_of(cell) in tuned["chosen"].get("arms", {})}
    off = sorted({arm_label(arm_of(cell)) for cell in cells if zero_did_as_well(tuned, arm_of(cell), tuned_by(cell))})
    return text + (f"; in tuning no strength of {', '.join(off)} beat none, and the best one ran" if off else "") + "."


def zero_did_as_well(tuned: Mapping[str, Any], name: str, criterion: str) -> bool:
    """Whether matching longer, which has no strength, was as good in tuning as an arm by the score that chose both."""
    metric = "structure" if criterion == "structure" else "r_mean"
    zero, own = (_validation(tuned, each, criterion, metric) for each in ("matching_longer", name))
    return bool(ARMS[name].groups) and zero >= own


def _validation(tuned: Mapping[str, Any], name: str, criterion: str, metric: str) -> float:
    """The score of an arm's chosen trial, mean over the seeds and dials that it was tried on."""
    chosen = tuned["chosen"]["arms"][name][criterion]
    return mean_score(next(own["scores"] for own in tuned["trials"][name] if chosen.items() <= own.items()), metric)


def tally(plan: Plan, results: Results, found: Judged) -> str:
    """How many primary claims hold, by how much, and in how many of them the control takes the credit."""
    held = [(own, control_of(plan, name, results)) for name, own in found.items() if own.verdict.startswith("better")]
    below = sum("δ" in own.verdict for own, _ in held)
    equalled = sum(any(gain.mean >= own.effect.mean for _, gain in controls) for own, controls in held)
    small = f", {below} of them by less than δ" if below else ""
    small += f", and in {equalled} of them the control gains as much or more" if equalled else ""
    seeds = min(own.effect.seeds for own in found.values())
    return f"**{len(held)} of {len(found)} sealed claims hold{small}** ({seeds} seeds, points)"


def headline(plan: Plan, results: Results, found: Judged) -> str:
    """All primary claims in one sentence: how many hold, and each verdict with its effect, interval and control."""
    told = []
    for name, own in found.items():
        gains = "".join(f"; {label} {signed(gain.mean)}" for label, gain in control_of(plan, name, results))
        told.append(f"{name}: {own.verdict} ({signed(own.effect.mean)}, {interval(own.low, own.high)}{gains})")
    return f"{tally(plan, results, found)}: {'; '.join(told)}."


def lead(plan: Plan, results: Results, name: str) -> str:
    """Companions that differ in their dial point (``bending, …``), in one sentence: effects, plain intervals, seeds."""
    known = {own: claim for own, claim in plan.claims.items() if own.startswith(name) and not claim.primary}
    if not known:
        raise ValueError(f"no companion begins with {name!r}; there are: {', '.join(plan.claims)}")
    found = {own: effect for own, effect in companions(plan, results).items() if own in known}
    if not found:
        return f"{name}: no effect yet, the seeds are not there."
    parts = [
        f"{own.removeprefix(name).strip(', ') or 'overall'} {signed(effect.mean)} ({interval(effect.low, effect.high)})"
        for own, effect in found.items()
    ]
    text, seeds = next(iter(known.values())).text, min(effect.seeds for effect in found.values())
    return f"{text[:1].upper()}{text[1:]}: {'; '.join(parts)} points; {seeds} seeds, 95 % intervals, no verdict."


def claims_frame(plan: Plan, results: Results, found: Judged) -> pd.DataFrame:
    """What :func:`rvlr_lib.figures.verdicts.plot_claims` draws: each primary claim, and what its control gains."""
    rows: list[tuple[Any, ...]] = []
    for name, own in found.items():
        claim = plan.claims[name]
        rows.append((claim.text, own.delta, None, own.effect.mean, own.low, own.high, own.verdict))
        for label, known in control_of(plan, name, results):
            rows.append((claim.text, own.delta, label, known.mean, known.low, known.high, None))
    return pd.DataFrame(rows, columns=["claim", "delta", "part", "mean", "low", "high", "verdict"])


def claims_table(plan: Plan, found: Judged) -> pd.DataFrame:
    """Primary claims: verdict, effect, both intervals, and the power of the verdicts at the observed spread."""
    columns = ["claim", "verdict", "points", "Holm interval", "90 % interval", "δ", "SD", "seeds"]
    columns += ["a true zero is called equivalent", "a true δ is called better", "metric"]
    rows: list[tuple[Any, ...]] = []
    for name, own in found.items():
        sd, seeds = max(own.effect.sd, 1e-6), own.effect.seeds
        zero, real = (power(sd, seeds, own.delta, effect=true, claims=len(found)) for true in (0.0, own.delta))
        called = zero["equivalent"], real["better"] + real["better, below δ"]
        told = name, own.verdict, signed(own.effect.mean), interval(own.low, own.high), interval(*own.within)
        spread, metric = (f"{own.delta:g}", f"{own.effect.sd:.2f}", seeds), metric_label(plan.claims[name].metric)
        rows.append((*told, *spread, *(f"{100 * share:.0f} %" for share in called), metric))
    return pd.DataFrame(rows, columns=columns)


def companions_table(plan: Plan, results: Results) -> pd.DataFrame:
    """Differences that are not primary claims: effect and plain 95 % interval, no verdict.

    ``tuned by`` says which validation scores chose the learning rates and strengths of its arms.
    """
    rows: list[tuple[Any, ...]] = []
    for name, own in companions(plan, results).items():
        found, claim = (signed(own.mean), interval(own.low, own.high), own.seeds), plan.claims[name]
        cells = [cell for part in claim.parts for _, _, cell in part if arm_of(cell) in ARMS]
        by = " & ".join(sorted({tuned_by(cell) for cell in cells if ARMS[arm_of(cell)].stage == 2}))
        rows.append((name, *found, by, claim.text, metric_label(claim.metric)))
    columns = ["difference", "points", "95 % interval", "seeds", "tuned by", "in words", "metric"]
    return pd.DataFrame(rows, columns=columns)


def tuning_table(tuned: Mapping[str, Any]) -> pd.DataFrame:
    """What tuning chose for every arm, by recall and by structure, and the recall of both on validation."""
    columns = ["arm", "chosen by", "learning rate", "strengths", "trials", "validation r_mean", "zero did as well"]
    rows: list[tuple[Any, ...]] = []
    for name, found in tuned["chosen"]["arms"].items():
        for criterion in ("recall", "structure"):
            chosen, count = found[criterion], len(tuned["trials"][name])
            strengths = ", ".join(f"{group} {value:g}" for group, value in chosen["strengths"].items()) or "–"
            recall = f"{_validation(tuned, name, criterion, 'r_mean'):.1f}"
            zero = ("yes" if zero_did_as_well(tuned, name, criterion) else "no") if chosen["strengths"] else "–"
            rows.append((name, criterion, f"{chosen['learning_rate']:g}", strengths, count, recall, zero))
    return pd.DataFrame(rows, columns=columns)


def results_frame(results: Results, metrics: Sequence[str]) -> pd.DataFrame:
    """Figures of all cells, tidy: ``dataset, dial, arm, seed, metric, value``; undefined ones are left out."""
    rows = [
        (dataset, *reversed(name.split("|")), seed, metric, _figures(cell).get(metric))
        for dataset, seeds in results.items()
        for seed, cells in seeds.items()
        for name, cell in cells.items()
        for metric in metrics
    ]
    frame = pd.DataFrame(rows, columns=["dataset", "dial", "arm", "seed", "metric", "value"])
    return frame.dropna(subset="value", ignore_index=True)


def map_frame(folder: Path) -> pd.DataFrame:
    """The map, tidy: ``dial, teacher, ratio, seed, metric, value``; values are differences to ``matching_longer``."""
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
    """A sealed study: its plan, results of the planned seeds, tuning; errors as of ``check_seal``."""
    place, plan = Path(folder) if folder else reference_folder(profile), load_plan(profile)
    sealed = check_seal(plan, place)
    results = {name: read_seeds(place, name, sealed, part.seeds) for name, part in plan.sets.items()}
    return plan, {name: found for name, found in results.items() if found}, read_json(place / "tuning.json")


def claims_page(plan: Plan, results: Results, tuned: Mapping[str, Any], seal: Mapping[str, Any]) -> str:
    """The Markdown page of claims: sentences, table, what did not hold, companions, tuning, how it was done."""
    found, chosen = judge(plan, results), tuned["chosen"]
    primary = [name for name, claim in plan.claims.items() if claim.primary]
    refuted = {name: own.verdict for name, own in found.items() if not own.verdict.startswith("better")}
    cells = [cell for seeds in results.values() for own in seeds.values() for cell in own.values()]
    template = TEMPLATE.read_text(encoding="utf-8")
    return Template(template, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True).render(
        plan=plan,
        seal=seal,
        chosen=chosen,
        trials=len(next(iter(tuned["trials"].values()), [])),
        hours=sum(cell.get("cpu_seconds", 0.0) for cell in cells) / 3600,
        commits=", ".join(dict.fromkeys(str(cell["commit"]) for cell in cells)),
        counts=", ".join(f"{name} {len(seeds)}" for name, seeds in results.items()),
        sentences=[sentence(plan, name, results, found, tuned) for name in primary],
        verdicts=to_markdown(claims_table(plan, found)) if found else "",
        spread=power(1.5, plan.seeds, 1.0, claims=len(primary)),
        refuted=[f"{plan.claims[name].text}: {verdict}." for name, verdict in refuted.items()],
        companions=to_markdown(companions_table(plan, results)) if found else "",
        tuning=to_markdown(tuning_table(tuned)),
    )


def write_claims(profile: str = "study", folder: str | Path = "", page: Path | None = None) -> Path:
    """Write ``claims.md`` of a sealed study beside its results, and its verdicts into another ``page``.

    Errors as of :func:`read_study` and :func:`insert_verdicts`.
    """
    place, study = Path(folder) if folder else reference_folder(profile), read_study(profile, folder)
    write_text(place / "claims.md", claims_page(*study, read_json(place / "seal.json")))
    if page:
        insert_verdicts(page, *study, profile)
    return place / "claims.md"


def insert_verdicts(page: Path, plan: Plan, results: Results, tuned: Mapping[str, Any], profile: str = "study") -> None:
    """Put how many claims hold, and a sentence on each, between a page's markers of the profile's name.

    ValueError where the page lacks them.
    """
    found, told = judge(plan, results), "No verdict yet: seeds are missing."
    if found:
        lines = [f"- {sentence(plan, name, results, found, tuned)}" for name in found]
        told = "\n".join([f"{tally(plan, results, found)}:", "", *lines])
    insert_between(page, Path(profile).stem, told)


def signed(value: float, places: int = 2) -> str:
    """A difference with its sign."""
    return shown(value, signed=True, decimals=places)


def interval(low: float, high: float) -> str:
    """An interval of differences; a third decimal where two would hide on which side of 0 a bound lies.

    >>> interval(-1.0, 2.5), interval(-0.15, -0.003)
    ('−1.00 to +2.50', '−0.150 to −0.003')
    """
    places = 3 if any(0 < abs(bound) < 0.005 for bound in (low, high)) else 2
    return f"{signed(low, places)} to {signed(high, places)}"
