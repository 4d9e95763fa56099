"""The plan of a study and its seal: what is computed and claimed, fixed before the first confirmation seed."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.config import ARMS, ArmSettings, Settings, load_settings, parse_dataclass
from rvlr_lib.disk import digest, read_json, read_yaml, to_json_types, write_json
from rvlr_lib.metrics.statistics import MAX_CLAIMS
from rvlr_lib.provenance import PACKAGE, commit
from rvlr_lib.tables import refuse_unknown

REFERENCES = ("floor", "ceiling", "teachers", "start")  # rows of a table that no arm trains
BY_STRUCTURE = "/structure"  # suffix of an arm's name: with the trial that validation structure chose


@dataclass(frozen=True)
class Claim:
    """A question asked in advance: a weighted sum of cells whose mean over seeds is judged."""

    text: str  # the claim in words
    metric: str  # a key of the results, or several joined by `` & ``, whose mean is taken
    effect: str  # such as ``scenes:rvlr|text - scenes:matching_longer|text``; a term may have a factor, ``0.5*…``
    also: str = ""  # a second effect: the claim is that both are above 0, and the less favourable one is judged
    primary: bool = False  # gets a verdict, under Holm's correction; the others get an interval only
    control: str = ""  # name of the claim that says what a control gains, printed in the same sentence

    @property
    def parts(self) -> list[list[tuple[float, str, str]]]:
        """Factor, data set and cell of each term, for each effect.

        >>> Claim("", "r_mean", "scenes:rvlr|text - 0.5*emoji:intra/structure|none").parts
        [[(1.0, 'scenes', 'rvlr|text'), (-0.5, 'emoji', 'intra/structure|none')]]
        """
        term, parts = r"(?:([\d.]+)\*)?(\w+):([a-z_0-9]+(?:/structure)?\|\w+)", []
        for effect in filter(None, (self.effect, self.also)):
            if not re.fullmatch(rf"{term}(?: [+-] {term})*", effect):
                raise ValueError(f"effect {effect!r} is not a sum such as 'scenes:rvlr|text - 0.5*scenes:intra|none'")
            terms = re.findall(rf"([+-]?) ?{term}", effect)
            parts.append([(float(f"{sign}{factor or 1}"), dataset, cell) for sign, factor, dataset, cell in terms])
        return parts


@dataclass(frozen=True)
class Tuning:
    """The same number of random trials for every trained arm, on worlds that no verdict uses."""

    dataset: str
    dials: Sequence[str]  # a trial's score is its mean over them
    seeds: Sequence[int]  # the first one for all trials, all of them for the best
    trials: int  # of each arm; all arms try the same learning rates
    confirmed: int  # how many of the best trials run on all seeds
    learning_rate: Sequence[float]  # lowest and highest, log-uniform
    strengths: Mapping[str, Sequence[float]]  # group of terms -> lowest and highest, log-uniform
    lengths: Sequence[int]  # epochs of stage 2 to choose from: the shortest whose doubling gains less than ``plateau``
    visibilities: Sequence[float]  # of dial ``image`` to choose from: the first that keeps recall within ``kept``
    plateau: float = 0.5  # points of r_mean
    kept: Sequence[float] = (0.4, 0.7)  # share of recall that ``matching_longer`` keeps
    slack: float = 0.5  # points of r_mean below the best within which validation structure may choose


@dataclass(frozen=True)
class RegimeMap:
    """Where the structure loss helps: strength × teacher × dial, on validation."""

    dataset: str = ""
    dials: Sequence[str] = ()
    seeds: Sequence[int] = ()  # empty: the plan has no map
    ratios: Sequence[float] = ()  # gradient norm of the weighted structure term over the contrastive one, first batch
    teachers: Mapping[str, str] = field(default_factory=dict)  # label -> arm


@dataclass(frozen=True)
class DatasetPlan:
    """What is computed on one data set; arms, dial settings and seeds default to those of the plan."""

    dataset: str
    seeds: int  # from 0
    arms: Sequence[str]
    dials: Sequence[str]
    overrides: Mapping[str, Any] = field(default_factory=dict)

    def cells(self) -> list[str]:
        """Names of the cells of one seed, such as ``rvlr|text``."""
        return [f"{name}|{dial}" for dial in self.dials for name in self.arms]


@dataclass(frozen=True)
class Plan:
    """The ``study`` part of a profile."""

    preset: str  # sizes
    sets: Mapping[str, DatasetPlan]
    seeds: int  # planned for the claims, from 0
    dials: Mapping[str, Mapping[str, Any]]  # name -> overrides of the settings
    arms: Sequence[str]  # including references such as ``start``
    claims: Mapping[str, Claim]
    delta: Mapping[str, float]  # metric -> the smallest difference that matters, in points
    tuning: Tuning
    regime_map: RegimeMap = RegimeMap()

    def settings(
        self, name: str, dial: str, seed: int, chosen: Mapping[str, Any], arm: str = "", **overrides: Any
    ) -> Settings:
        """The settings of an arm in a part of the plan, or on a data set, at a dial setting and seed.

        ``chosen`` is what tuning has chosen so far; an ``arm`` that ends in ``/structure`` takes what structure chose.
        """
        part = self.sets.get(name, DatasetPlan(name, 0, (), ()))
        dials = {**self.dials[dial], **chosen.get("dials", {}).get(dial, {})}
        length = {"stage2.epochs": chosen["epochs"]} if "epochs" in chosen else {}
        values = {"data.name": part.dataset, **part.overrides, **dials, **length, "seed": seed, **overrides}
        settings = load_settings(part.dataset, self.preset, "corrected", overrides=values)
        arms = {name: ArmSettings(**trials[tuned_by(arm)]) for name, trials in chosen.get("arms", {}).items()}
        return dataclasses.replace(settings, arms=arms)


def arm_of(cell: str) -> str:
    """The arm of a cell such as ``rvlr/structure|text``."""
    return cell.partition("|")[0].removesuffix(BY_STRUCTURE)


def tuned_by(cell: str) -> str:
    """Whether validation recall or structure chose the learning rate and strengths of a cell or arm."""
    return "structure" if BY_STRUCTURE in cell else "recall"


def load_plan(profile: str = "study") -> Plan:
    """The checked plan of a profile of the checkout, or of a YAML file; ValueError names what is wrong in it."""
    shipped = PACKAGE.parent / "notebooks" / "profiles" / f"{profile}.yaml"
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else shipped
    if not path.is_file():
        raise ValueError(f"{path} is missing; a study is the 'study' part of a profile")
    if not (values := read_yaml(path).get("study") or {}):
        raise ValueError(f"{path} has no 'study' part: give --profile study, followup, towers, or a file with one")
    mappings = [values, *map(values.get, ("sets", "dials"))] if isinstance(values, dict) else [values]
    if not all(isinstance(mapping or {}, dict) for mapping in mappings):
        raise ValueError(f"{path}: 'study', its 'sets' and its 'dials' must hold settings by name")
    defaults = {"seeds": values.get("seeds"), "arms": values.get("arms"), "dials": list(values.get("dials") or {})}
    sets = values.get("sets") or {}
    for name, part in sets.items():
        if isinstance(part or {}, dict):
            sets[name] = {"dataset": name, **defaults, **(part or {})}
    plan: Plan = parse_dataclass(Plan, values | {"sets": sets}, str(path))
    arms = [name.removesuffix(BY_STRUCTURE) for part in plan.sets.values() for name in part.arms]
    dials = [dial for part in plan.sets.values() for dial in part.dials]
    dials += [*plan.tuning.dials, *plan.regime_map.dials]
    dials += ["none"] if len(plan.tuning.visibilities) > 1 else []  # where visibilities are compared
    cells = {f"{name}:{cell}" for name, part in plan.sets.items() for cell in part.cells()}
    refuse_unknown(arms, (*ARMS, *REFERENCES), f"{path}: unknown arm")
    refuse_unknown(plan.regime_map.teachers.values(), ARMS, f"{path}: regime_map: unknown arm")
    refuse_unknown(dials, plan.dials, f"{path}: unknown dial setting")
    for name, claim in plan.claims.items():
        where = f"{path}: claim {name}"
        claimed = [f"{dataset}:{cell}" for effect in claim.parts for _, dataset, cell in effect]
        refuse_unknown(claimed, cells, f"{where}: unknown cell")
        refuse_unknown([claim.control] if claim.control else [], plan.claims, f"{where}: unknown control")
        refuse_unknown([claim.metric] if claim.primary else [], plan.delta, f"{where}: no delta for")
    if plan.seeds < 2 or sum(claim.primary for claim in plan.claims.values()) > MAX_CLAIMS:
        raise ValueError(f"{path}: a study needs two seeds or more and at most {MAX_CLAIMS} primary claims")
    first, free = max((part.seeds for part in plan.sets.values()), default=0), plan.tuning.seeds
    if plan.tuning.trials < 1 or not free or min(*free, *plan.regime_map.seeds, first) < first:
        raise ValueError(f"{path}: tuning needs a trial, and like the map seeds that no verdict sees, {first} or more")
    for name, part in plan.sets.items():
        for dial in part.dials:
            plan.settings(name, dial, 0, {})  # every setting is checked before anything runs
    return plan


def write_seal(plan: Plan, folder: Path, date: str) -> dict[str, Any]:
    """Seal a study in ``folder/seal.json``; ValueError before tuning, and once there is a confirmation seed."""
    parts = _sealed_parts(plan, folder) | {"settings": _settings_digest(plan, folder)}
    if list(folder.glob("*/seed-*.json")):
        raise ValueError(f"{folder} holds confirmation seeds already: a seal comes before them")
    seal = {"date": date, "commit": commit(), "parts": parts}
    seal["sha256"] = _seal_digest(seal)
    write_json(folder / "seal.json", seal)
    return seal


def check_seal(plan: Plan, folder: Path, *, adding: bool = False) -> str:
    """The SHA-256 of the seal; ValueError if there is none, or naming what has changed since.

    With ``adding``, before cells are added, presets and arms must match too; seals before 2026-11-28 do not cover them.
    """
    path = folder / "seal.json"
    if not path.is_file():
        way_out = "run `rvlr study --tune`, then `--seal`, before the first seed"
        raise ValueError(f"{folder} holds no sealed study, as seal.json is missing: {way_out}")
    seal = read_json(path)
    if seal.get("sha256") != _seal_digest(seal):
        raise ValueError(f"{path} was edited: its checksum does not match its content, so there is no verdict")
    parts = _sealed_parts(plan, folder)
    if parts["chosen"] != seal["parts"]["chosen"]:
        raise ValueError(f"{folder / 'tuning.json'} differs from what {path} sealed: no verdict")
    if changed := [key for key in parts["plan"] if parts["plan"][key] != seal["parts"]["plan"].get(key)]:
        raise ValueError(f"the profile's plan differs from what {path} sealed, in {', '.join(changed)}: no verdict")
    if adding and seal["parts"].get("settings", now := _settings_digest(plan, folder)) != now:
        raise ValueError(f"presets or arms give other settings than {path} sealed: use commit {seal.get('commit')}")
    return str(seal["sha256"])


def read_chosen(folder: Path) -> dict[str, Any]:
    """What tuning chose; ValueError if nothing has been tuned yet."""
    if not (folder / "tuning.json").is_file():
        raise ValueError(f"{folder} has no tuning.json: `rvlr study --tune` makes it")
    return read_json(folder / "tuning.json")["chosen"]


def reference_folder(profile: str = "study", folder: str | Path = "") -> Path:
    """``folder``, by default that of the checkout with the results of a profile's study."""
    return Path(folder or PACKAGE.parent / "data" / "reference" / Path(profile).stem)


def _sealed_parts(plan: Plan, folder: Path) -> dict[str, Any]:
    """What the seal covers: claims, tuning space, chosen values, dial strengths, lengths, seeds, sets."""
    chosen, covered = read_chosen(folder), dataclasses.asdict(plan)
    covered.pop("regime_map")
    return to_json_types({"plan": covered, "chosen": {key: chosen[key] for key in ("arms", "dials", "epochs")}})


def _settings_digest(plan: Plan, folder: Path) -> str:
    """SHA-256 of the plan's arms, and of the settings that presets, dials and chosen values give every cell."""
    points = [(name, dial) for name, part in plan.sets.items() for dial in part.dials]
    settings = [dataclasses.asdict(plan.settings(*point, 0, read_chosen(folder))) for point in points]
    planned = {"matching", *(arm_of(name) for part in plan.sets.values() for name in part.arms)} & ARMS.keys()
    arms = [dataclasses.asdict(dataclasses.replace(ARMS[name], description="", look=())) for name in sorted(planned)]
    return digest([settings, arms])


def _seal_digest(seal: Mapping[str, Any]) -> str:
    return digest({key: seal[key] for key in ("commit", "parts")})
