"""``rvlr data check``: what a collection holds, which faults would spoil a result, and what became of all it read."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import walk
from rvlr_lib.data.own import FEWEST, read_collection
from rvlr_lib.data.pictures import SUFFIXES, check_header, decode, equal_files, find_faults
from rvlr_lib.data.table import Collection

FEW = 50  # pictures to rank: with fewer, random features have R@10 above 20 %
WITHOUT_SPACES = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"  # Thai to Chinese


@dataclass(frozen=True)
class Finding:
    """A fault or a note: how often it occurs, whether it spoils a result, and some examples."""

    what: str
    count: int
    spoils: bool
    examples: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{'SPOILS' if self.spoils else 'note  '}  {self.what}: {self.count:,}"
        return "\n          ".join([line, *self.examples])


@dataclass
class Report:
    """Description of a collection, findings, and accounts of rows, lines, captions, pictures and files."""

    lines: list[str]
    findings: list[Finding] = field(default_factory=list)
    accounts: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)  # total, and its parts by fate

    def add(self, what: str, cases: Sequence[str] | int, *, spoils: bool = False, way_out: str = "") -> None:
        """Add a finding, unless its ``cases`` are empty or 0; the first three and the way out are shown."""
        examples = () if isinstance(cases, int) else (*cases[:3], *([way_out] if way_out else []))
        if count := cases if isinstance(cases, int) else len(cases):
            self.findings.append(Finding(what, count, spoils, examples))

    @property
    def spoiled(self) -> bool:
        """Whether any finding would spoil a result."""
        return any(finding.spoils for finding in self.findings)

    def __str__(self) -> str:
        lines = list(self.lines)
        for name, (total, parts) in self.accounts.items():
            terms = [f"{count:,} {what}" for what, count in parts.items() if count or what == "used"]
            lines.append(f"{name}: {total:,} = {' + '.join(terms)}")
        spoiling = sum(finding.spoils for finding in self.findings)
        verdict = f"NOT READY: {spoiling} of these would spoil a result" if spoiling else "ready"
        return "\n".join([*lines, *map(str, self.findings), verdict])


def check(path: str | Path, image_root: str | Path | None = None, *, full: bool = False, **options: Any) -> Report:
    """Check a collection: every caption and every picture's header or, if ``full``, every pixel.

    Args:
        path, image_root, options: as in :func:`rvlr_lib.data.own.load_files`; ValueError if nothing can be read.
        full: decode every picture; a header cannot show that a file is truncated.
    """
    collection = read_collection(path, image_root, **options)
    used, per_picture = collection.used, Counter(collection.used.picture.value_counts())
    numbers = ", ".join(f"{count}: {pictures:,}" for count, pictures in sorted(per_picture.items())) or "none"
    lines = [collection.describe(), f"pictures below {collection.root}", f"captions per picture: pictures  {numbers}"]
    report = Report(lines + [f"columns or keys read: {', '.join(collection.columns)}"] * bool(collection.columns))
    for reason, messages in collection.refused.items():
        report.add(reason, messages, spoils=True)
    bad = _pictures(report, collection, full)
    for split in SPLITS:
        if (count := len(set(used.picture[used.split == split]) - bad.keys())) < FEWEST:
            way_out = "give more, or an index with a file for train and one for held_out, which is halved"
            what, cases = f"split {split} has fewer than {FEWEST} pictures", [f"{count} pictures"]
            report.add(what, cases, spoils=True, way_out=way_out)
        elif count < FEW and split != "train":
            report.add(f"split {split} has few pictures, among which recall hardly distinguishes models", count)
    _captions(report, collection)
    _accounts(report, collection, bad)
    return report


def _pictures(report: Report, collection: Collection, full: bool) -> dict[str, str]:
    """Report missing, unreadable and equal pictures; returns the faults of the first two."""
    used = collection.used.drop_duplicates(["picture", "split"])
    splits = dict(zip(used.picture, used.split, strict=True))
    bad = find_faults(decode if full else check_header, collection.root, list(splits))
    most = int(used[used.picture.isin(bad)].split.value_counts().max()) if bad else 0
    spoils = most > collection.options.get("max_bad_pictures", 0)
    way_out = f"to leave them out: max_bad_pictures: {most} in an index (docs/own_pictures.md)" if spoils else ""
    for what, missing in (("missing pictures", True), ("unreadable pictures", False)):
        cases = [fault for fault in bad.values() if (" is missing" in fault) is missing]
        report.add(what, cases, spoils=spoils, way_out=way_out)
    equal = equal_files(collection.root, [name for name in splits if name not in bad])
    for where, apart in (("within a split", False), ("in two splits", True)):
        groups = [" = ".join(group) for group in equal if (len({splits[name] for name in group}) > 1) is apart]
        report.add(f"groups of equal picture files {where}", groups, spoils=apart)
    return bad


def _captions(report: Report, collection: Collection) -> None:
    """Report captions that are shared, flagged or without spaces, and the notes of the readers."""
    used, flags = collection.used, collection.frame["flags"]
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    report.add("captions that several pictures of a split share", shared)
    unspaced = used.clean.str.contains(WITHOUT_SPACES).sum() if len(used) else 0
    report.add("captions in a script without spaces, in which relevance by shared words sees no words", int(unspaced))
    kept = "used nevertheless" if collection.options.get("keep_flagged") else "left out; keep_flagged uses them"
    for names, count in Counter(flags[flags != ""]).items():
        report.add(f"captions flagged {names}, {kept}", count)
    flagged = sorted({*collection.left_out.picture} - {*used.picture})
    report.add("pictures left out because all of their captions are flagged", flagged)
    for note in collection.notes:
        report.add(note, 1)


def _accounts(report: Report, collection: Collection, bad: dict[str, str]) -> None:
    """Account for every row, line, caption, picture and file."""
    used, frame, root = set(collection.used.picture), collection.frame, collection.root
    good, unused_last = used - bad.keys(), frame.iloc[(frame.fate != "used").argsort(kind="stable")]
    rows = Counter(unused_last.drop_duplicates("row").fate)  # a row is used if one of its captions is
    missing, flagged = sum(" is missing" in fault for fault in bad.values()), len({*collection.left_out.picture} - used)
    pictures = {"used": len(used) - len(bad), "missing": missing, "unreadable": len(bad) - missing}
    pictures |= {"with flagged captions only": flagged, "refused": len(collection.pictures) - len(used) - flagged}
    report.accounts |= {
        "rows": (collection.rows_read, {"used": 0, **(rows + collection.lost)}),
        "captions": (len(frame), {"used": 0, **Counter(frame.fate)}),
        "pictures": (len(collection.pictures), pictures),
    }
    files, folders = Counter({"used": 0}), {name.rpartition("/")[0] for name in collection.pictures}
    walks = collection.walks or [(f, walk(root / f, root, deep=False)) for f in folders if os.path.isdir(root / f)]
    for prefix, contents in walks:
        files.update({"hidden": contents.hidden, "refused": sum(count for *_, count in contents.refused)})
        for reason, message, _ in contents.refused if not collection.walks else []:  # else refused while reading
            report.add(reason, [message])
        for name, real in (((Path(prefix) / name).as_posix(), real) for name, real in contents.files.items()):
            if name in collection.pictures:
                linked = real != os.path.realpath(root) + f"/{name}"
                files[("used through a link" if linked else "used") if name in good else "refused"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    report.accounts["files"] = (files.total(), dict(files))
    if collection.lines.total():
        report.accounts["lines"] = (collection.lines.total(), dict(collection.lines))
