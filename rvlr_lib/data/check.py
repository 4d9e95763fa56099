"""``rvlr data check``: what a collection holds, what in it would spoil a result, and an account of everything read."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rvlr_lib.data.collection import data_home, missing_sources, read_collection
from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import walk
from rvlr_lib.data.own import FEWEST
from rvlr_lib.data.pictures import SUFFIXES, check_header, decode, equal_files, faults
from rvlr_lib.data.table import Collection


@dataclass(frozen=True)
class Finding:
    """Something found: how often, whether it spoils a result, and some examples."""

    what: str
    count: int
    spoils: bool
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n          ".join(
            [f"{'SPOILS' if self.spoils else 'note  '}  {self.what}: {self.count:,}", *self.examples]
        )


@dataclass(frozen=True)
class Report:
    """Lines on a collection, findings, and accounts.

    ``accounts``: ``rows``, ``lines``, ``captions``, ``pictures``, ``files`` -> how many were read or seen, and what
    became of them; the parts add up to the whole.
    """

    lines: tuple[str, ...]
    findings: tuple[Finding, ...]
    accounts: dict[str, tuple[int, dict[str, int]]] = field(default_factory=dict)

    @property
    def spoiled(self) -> bool:
        """Whether anything found would spoil a result."""
        return any(finding.spoils for finding in self.findings)

    @property
    def status(self) -> int:
        """Exit status of the command: 1 where a result would be spoiled, else 0."""
        return int(self.spoiled)

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
    max_bad_pictures: int | None = None,
    token_lengths: Callable[[Sequence[str]], Sequence[int]] | None = None,
    context: int = 0,
    **options: Any,
) -> Report:
    """Look over a collection: every caption, every picture's header, or with ``full`` every pixel.

    Args:
        path, image_root, max_bad_pictures, options: as of :func:`rvlr_lib.data.load_files`.
        full: decode every picture; a header cannot show that a file is cut short.
        token_lengths: tokens of each caption, end marks included; ``context``: the most that the model reads.

    Raises:
        ValueError: the file cannot be read at all; says why and which formats are understood.
    """
    if missing := [f"{name}: {source}" for name, source in missing_sources(path).items()]:
        where = f"{path}: looked for in {data_home() / path}; set RVLR_DATA to look elsewhere than {data_home()}"
        return Report((where,), (Finding("missing files", len(missing), True, tuple(missing)),))
    found = read_collection(path, image_root, **options)
    used, frame = found.used, found.frame
    findings = [_finding(kind, messages, True) for kind, messages in found.refused.items()]
    for split in SPLITS:
        few = (count := used.picture[used.split == split].nunique()) < FEWEST
        findings.append(_finding(f"split {split} has fewer than {FEWEST} pictures", [f"{count} pictures"] * few, True))
    looked, bad = _pictures(found, full, max_bad_pictures)
    findings += looked + _captions(found)
    if token_lengths and len(used):
        lengths = list(token_lengths(used.clean.tolist()))
        long = [f"{text[:70]} ..." for text, length in zip(used.clean, lengths, strict=True) if length > context]
        what = f"captions longer than the model's context of {context} tokens (longest {max(lengths)}), cut there"
        findings.append(_finding(what, long))
    fate = frame.refused.mask((frame.refused == "") & ~frame.index.isin(used.index), "left out as " + frame["flags"])
    rows = Counter(fate.groupby(frame.row).min().replace("", "used"))  # used where one caption is: "" sorts first
    accounts = {"rows": (found.rows_read, {"used": 0, **(rows + found.lost)})}
    accounts["captions"] = len(frame), {"used": 0, **Counter(fate.replace("", "used"))}
    accounts |= {"pictures": _picture_account(found, bad), "files": _file_account(found, bad)}
    accounts |= {"lines": (found.lines_read, dict(found.lines))} if found.lines else {}
    per_picture = sorted(Counter(used.groupby("picture").size()).items())
    shares = ", ".join(f"{count}: {pictures:,}" for count, pictures in per_picture) or "none"
    told = [found.describe(), f"pictures below {found.root}", f"captions per picture: pictures  {shares}"]
    told += [f"columns or keys read: {', '.join(found.columns)}"] if found.columns else []
    return Report(tuple(told), tuple(finding for finding in findings if finding.count), accounts)


def _finding(what: str, examples: Sequence[str], spoils: bool = False, *more: str) -> Finding:
    return Finding(what, len(examples), spoils, (*examples[:3], *more))


def _picture_account(found: Collection, bad: dict[str, str]) -> tuple[int, dict[str, int]]:
    used, missing = set(found.used.picture), sum(" is missing" in why for why in bad.values())
    flagged = len(set(found.frame.picture[found.frame.refused == ""]) - used)
    parts = {"used": len(used) - len(bad), "missing": missing, "unreadable": len(bad) - missing}
    parts |= {"with flagged captions only": flagged, "refused": len(found.named) - len(used) - flagged}
    return len(found.named), parts


def _file_account(found: Collection, bad: dict[str, str]) -> tuple[int, dict[str, int]]:
    """Files seen in the folder, or beside the pictures that are named."""
    good, files = set(found.used.picture) - set(bad), Counter({"used": 0})
    walks, places = found.walks, {found.root / name.rpartition("/")[0] for name in found.named}
    for place, seen in walks or [(place, walk(place, found.root, deep=False)) for place in places if place.is_dir()]:
        inside = os.path.relpath(os.path.realpath(place), os.path.realpath(found.root))
        files.update({"hidden": seen.hidden, "refused": sum(count for *_, count in seen.refused)})
        for name, linked in seen.files.items():
            whole = os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/")
            if whole in found.named:
                files["refused" if whole not in good else "used through a link" if linked else "used"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    return files.total(), dict(files)


def _pictures(found: Collection, full: bool, max_bad: int | None) -> tuple[list[Finding], dict[str, str]]:
    """Missing and unreadable pictures, and files that are equal byte for byte."""
    allowed = int(found.options.get("max_bad_pictures", 0) if max_bad is None else max_bad)
    used, flat = found.used.drop_duplicates(["picture", "split"]), list[str]()
    splits = dict(zip(used.picture, used.split, strict=True))
    rare = 0.5 if sys.stderr.isatty() else 15.0
    bar = partial(tqdm, total=len(splits), desc="pictures", unit="file", disable=len(splits) < 1000, mininterval=rare)

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(str(path.relative_to(found.root)))

    bad = faults(look if full else check_header, found.root, list(splits), bar)
    most = int(used[used.picture.isin(bad)].groupby("split").size().max()) if bad else 0
    spoils, way = most > allowed, f"to leave them out, counted: max_bad_pictures: {most} in an index (data/README.md)"
    out, equal = [way] * spoils, equal_files(found.root, [name for name in splits if name not in bad])
    told = {" = ".join(group): len({splits[name] for name in group}) > 1 for group in equal}
    across, within = ([group for group, apart in told.items() if apart is side] for side in (True, False))
    return [
        _finding("missing pictures", [why for why in bad.values() if " is missing" in why], spoils, *out),
        _finding("unreadable pictures", [why for why in bad.values() if " is missing" not in why], spoils, *out),
        _finding("pictures of a single colour (transparency lies on white)", sorted(flat)),
        _finding("equal picture files within a split, groups", within),
        _finding("equal picture files in two splits, groups", across, True),
    ], bad


def _captions(found: Collection) -> list[Finding]:
    """Repeated captions, of one picture or of several in a split; flagged ones; and what the files make one wonder."""
    used, flags = found.used, found.frame["flags"]
    repeated = list(used.picture[used.duplicated(["split", "picture", "clean"])].unique())
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    alone = int((used.groupby(["split", "picture"]).size() == 1).sum())
    kept = "used all the same" if found.keep_flagged else "left out; keep_flagged uses them"
    flagged = sorted(set(found.frame.picture[found.frame.refused == ""]) - set(used.picture))
    return [
        _finding("pictures that repeat a caption", repeated),
        _finding("captions that several pictures of a split share", shared),
        Finding("pictures with one caption (text teachers then see two dropout views)", alone, False),
        *(Finding(f"captions flagged {names}, {kept}", n, False) for names, n in Counter(flags[flags != ""]).items()),
        _finding("pictures left out with all of their captions flagged", flagged),
        *(Finding(note, 1, False) for note in found.notes),
    ]
