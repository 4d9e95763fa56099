"""``rvlr data check``: what a collection holds, what in it would spoil a result, and an account of everything read."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import walk
from rvlr_lib.data.own import FEWEST, read_collection
from rvlr_lib.data.pictures import SUFFIXES, check_header, decode, equal_files, faults
from rvlr_lib.data.table import Collection

FEW = 50  # pictures to rank: below, random features have R@10 of 20 % and more
WITHOUT_BLANKS = "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]"  # Thai to Chinese


@dataclass(frozen=True)
class Finding:
    """Something found: how often, whether it spoils a result, and some examples."""

    what: str
    count: int
    spoils: bool
    examples: tuple[str, ...]

    def __str__(self) -> str:
        line = f"{'SPOILS' if self.spoils else 'note  '}  {self.what}: {self.count:,}"
        return "\n          ".join([line, *self.examples])


@dataclass
class Report:
    """Lines on a collection, findings, and accounts.

    ``accounts``: ``rows``, ``lines``, ``captions``, ``pictures``, ``files`` -> how many were read or seen, and what
    became of them; the parts add up to the whole.
    """

    lines: list[str]
    findings: list[Finding] = field(default_factory=list)
    accounts: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)

    def add(self, what: str, found: Sequence[str] | int, *, spoils: bool = False, way: str = "") -> None:
        """Note what was found, with its first examples and the way out, or how often; nothing where it is none."""
        examples = () if isinstance(found, int) else (*found[:3], *([way] if way else []))
        if count := found if isinstance(found, int) else len(found):
            self.findings.append(Finding(what, count, spoils, examples))

    @property
    def spoiled(self) -> bool:
        """Whether anything found would spoil a result."""
        return any(finding.spoils for finding in self.findings)

    def __str__(self) -> str:
        lines = list(self.lines)
        for name, (whole, parts) in self.accounts.items():
            told = [f"{count:,} {what}" for what, count in parts.items() if count or what == "used"]
            lines.append(f"{name}: {whole:,} = {' + '.join(told)}")
        kinds = sum(finding.spoils for finding in self.findings)
        verdict = f"NOT READY: {kinds} of these would spoil a result" if kinds else "ready"
        return "\n".join([*lines, *map(str, self.findings), verdict])


def check(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    full: bool = False,
    tokens: Callable[[Sequence[str]], Sequence[tuple[int, bool]]] | None = None,
    context: int = 0,
    **options: Any,
) -> Report:
    """Look over a collection: every caption, every picture's header, or with ``full`` every pixel.

    Args:
        path, image_root, options: as of :func:`rvlr_lib.data.load_files`; ValueError where nothing can be read.
        full: decode every picture; a header cannot show that a file is cut short.
        tokens: of captions their number, end marks included, and whether the model knows less than half of them;
            ``context``: the most that it reads.
    """
    found = read_collection(path, image_root, **options)
    used, per_picture = found.used, Counter(found.used.picture.value_counts())
    shares = ", ".join(f"{count}: {pictures:,}" for count, pictures in sorted(per_picture.items()))
    lines = [found.describe(), f"pictures below {found.root}", f"captions per picture: pictures  {shares or 'none'}"]
    report = Report(lines + [f"columns or keys read: {', '.join(found.columns)}"] * bool(found.columns))
    for reason, messages in found.refused.items():
        report.add(reason, messages, spoils=True)
    bad = _pictures(report, found, full)
    for split in SPLITS:
        if (count := len(set(used.picture[used.split == split]) - bad.keys())) < FEWEST:
            way = "say more of them, or give an index with a file for train and one for held_out, which is halved"
            report.add(f"split {split} has fewer than {FEWEST} pictures", [f"{count} pictures"], spoils=True, way=way)
        elif count < FEW and split != "train":
            report.add(f"split {split} has few pictures, among which recall hardly tells models apart", count)
    _captions(report, found)
    if tokens and len(used):
        counted = tokens(used.clean.tolist())
        texts = [(f"{text[:70]} ...", *told) for text, told in zip(used.clean, counted, strict=True)]
        longest = max(length for length, _ in counted)
        what = f"captions longer than the model's context of {context} tokens (longest {longest}), cut there"
        report.add(what, [text for text, length, _ in texts if length > context])
        what = "captions of whose words the model knows less than half: choose another one with --model"
        report.add(what, [text for text, _, strange in texts if strange])
    _accounts(report, found, bad)
    return report


def _pictures(report: Report, found: Collection, full: bool) -> dict[str, str]:
    """Missing and unreadable pictures, which are returned with their faults, and files that are equal byte for byte."""
    used, flat = found.used.drop_duplicates(["picture", "split"]), list[str]()
    splits = dict(zip(used.picture, used.split, strict=True))

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(str(path.relative_to(found.root)))

    bad = faults(look if full else check_header, found.root, list(splits))
    most = int(used[used.picture.isin(bad)].split.value_counts().max()) if bad else 0
    spoils = most > found.options.get("max_bad_pictures", 0)
    way = f"to leave them out, counted: max_bad_pictures: {most} in an index (data/README.md)" if spoils else ""
    for what, missing in (("missing pictures", True), ("unreadable pictures", False)):
        report.add(what, [why for why in bad.values() if (" is missing" in why) is missing], spoils=spoils, way=way)
    report.add("pictures of a single colour (transparency lies on white)", sorted(flat))
    equal = equal_files(found.root, [name for name in splits if name not in bad])
    for where, apart in (("within a split", False), ("in two splits", True)):
        groups = [" = ".join(group) for group in equal if (len({splits[name] for name in group}) > 1) is apart]
        report.add(f"equal picture files {where}, groups", groups, spoils=apart)
    return bad


def _captions(report: Report, found: Collection) -> None:
    """Repeated captions, of one picture or of several in a split; flagged ones; and what the files make one wonder."""
    used, flags = found.used, found.frame["flags"]
    repeated = used.picture[used.duplicated(["split", "picture", "clean"])].unique()
    report.add("pictures that repeat a caption", list(repeated))
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    report.add("captions that several pictures of a split share", shared)
    whole = used.clean.str.contains(WITHOUT_BLANKS).sum() if len(used) else 0
    report.add("captions of a script without blanks, whose words relevance by shared words does not see", int(whole))
    alone = int((used.groupby(["split", "picture"]).size() == 1).sum())
    report.add("pictures with one caption (text teachers then see two dropout views)", alone)
    kept = "used all the same" if found.options.get("keep_flagged") else "left out; keep_flagged uses them"
    for names, count in Counter(flags[flags != ""]).items():
        report.add(f"captions flagged {names}, {kept}", count)
    flagged = sorted({*found.left_out.picture} - {*used.picture})
    report.add("pictures left out with all of their captions flagged", flagged)
    for note in found.notes:
        report.add(note, 1)


def _accounts(report: Report, found: Collection, bad: dict[str, str]) -> None:
    """What became of every row, line, caption, picture and file."""
    used, frame = set(found.used.picture), found.frame
    good, unused_last = used - bad.keys(), frame.iloc[(frame.fate != "used").argsort(kind="stable")]
    rows = Counter(unused_last.drop_duplicates("row").fate)  # a row is used where one of its captions is
    missing, alone = sum(" is missing" in why for why in bad.values()), len({*found.left_out.picture} - used)
    pictures = {"used": len(used) - len(bad), "missing": missing, "unreadable": len(bad) - missing}
    pictures |= {"with flagged captions only": alone, "refused": len(found.named) - len(used) - alone}
    report.accounts |= {
        "rows": (found.rows_read, {"used": 0, **(rows + found.lost)}),
        "captions": (len(frame), {"used": 0, **Counter(frame.fate)}),
        "pictures": (len(found.named), pictures),
    }
    files, places = Counter({"used": 0}), {name.rpartition("/")[0] for name in found.named}
    beside = {place: found.root / place for place in places if os.path.isdir(found.root / place)}
    for prefix, seen in found.walks or [(p, walk(folder, found.root, deep=False)) for p, folder in beside.items()]:
        files.update({"hidden": seen.hidden, "refused": sum(count for *_, count in seen.refused)})
        for reason, message, _ in seen.refused if not found.walks else []:  # of a folder they are among its rows
            report.add(reason, [message])
        for name, real in (((Path(prefix) / name).as_posix(), real) for name, real in seen.files.items()):
            if name in found.named:
                linked = real != os.path.realpath(found.root) + f"/{name}"
                files[("used through a link" if linked else "used") if name in good else "refused"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    report.accounts["files"] = (files.total(), dict(files))
    if found.lines.total():
        report.accounts["lines"] = (found.lines.total(), dict(found.lines))
