"""``rvlr data check``: what a collection holds, what in it would spoil a result, and an account of everything read."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rvlr_lib.data.collection import Collection, read_collection
from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import walk
from rvlr_lib.data.own import FEWEST
from rvlr_lib.data.pictures import SUFFIXES, check_header, decode, equal_files, faults

EXAMPLES = 3
Account = tuple[int, dict[str, int]]


@dataclass(frozen=True)
class Finding:
    """Something found: how often, whether it spoils a result, and some examples."""

    what: str
    count: int
    spoils: bool
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{'SPOILS' if self.spoils else 'note  '}  {self.what}: {self.count:,}"]
        return "\n".join(lines + [f"          {example}" for example in self.examples])


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Attributes:
        lines: on the collection, in words.
        findings: what is wrong or worth knowing.
        accounts: ``rows``, ``lines``, ``captions``, ``pictures``, ``files`` -> how many were read or seen, and what
            became of them; the parts add up to the whole.
    """

    lines: tuple[str, ...]
    findings: tuple[Finding, ...]
    accounts: dict[str, Account] = field(default_factory=dict)

    @property
    def spoiled(self) -> bool:
        """Whether anything found would spoil a result."""
        return any(finding.spoils for finding in self.findings)

    @property
    def status(self) -> int:
        """Exit status of the command: 1 where a result would be spoiled, else 0."""
        return int(self.spoiled)

    def __str__(self) -> str:
        kinds = sum(finding.spoils for finding in self.findings)
        verdict = f"NOT READY: {kinds} of these would spoil a result" if kinds else "ready"
        accounts = []
        for name, (whole, parts) in self.accounts.items():
            told = [f"{count:,} {what}" for what, count in parts.items() if count or what == "used"]
            accounts.append(f"{name}: {whole:,} = {' + '.join(told)}")
        return "\n".join([*self.lines, *accounts, *map(str, self.findings), verdict])


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
        path: annotation file, folder, index, or the name of a published data set.
        image_root: folder of the pictures.
        full: decode every picture; a header cannot show that a file is cut short.
        max_bad_pictures: missing or unreadable pictures that a split may have; default what an index says, else 0.
        token_lengths: tokens of each caption, end marks included; None leaves the lengths out.
        context: the most tokens that the model reads.
        options: ``image_column``, ``caption_column``, ``split_seed``, ``keep_flagged``, see :func:`read_collection`.

    Raises:
        ValueError: the file cannot be read at all; says why and which formats are understood.
    """
    found = read_collection(path, image_root, **options)
    allowed = int(found.options.get("max_bad_pictures", 0) if max_bad_pictures is None else max_bad_pictures)
    looked, bad = _pictures(found, full, allowed)
    findings = [_finding(kind, messages, True) for kind, messages in found.refused.items()]
    findings += [*_splits(found), *looked, *_captions(found), *_left_out(found)]
    if token_lengths and len(found.used):
        findings.append(_lengths(found.used.clean.tolist(), token_lengths, context))
    accounts = {"rows": _rows(found), "captions": _caption_account(found), **_picture_accounts(found, bad)}
    if lines := [part for part in found.parts if part.lines]:
        parts = Counter({"rows": sum(len(part.rows) + len(part.refused) for part in lines)})
        for part in lines:
            parts.update(part.lines)
        accounts["lines"] = sum(part.line_count for part in lines), dict(parts)
    per_picture = Counter(found.used.groupby("picture").size())
    shares = ", ".join(f"{captions}: {pictures:,}" for captions, pictures in sorted(per_picture.items()))
    told = [found.describe(), f"pictures below {found.root}", f"captions per picture: pictures  {shares or 'none'}"]
    if read := ", ".join(dict.fromkeys(name for part in found.parts for name in part.used)):
        told.append(f"columns or keys read: {read}")
    return Report(tuple(told), tuple(finding for finding in findings if finding.count), accounts)


def _finding(what: str, examples: Sequence[str], spoils: bool = False, *more: str) -> Finding:
    return Finding(what, len(examples), spoils, (*examples[:EXAMPLES], *more))


def _rows(found: Collection) -> Account:
    """Rows read: a row is used where one of its captions is; else it counts for the first reason against it."""
    frame = found.frame
    flagged = (frame["flags"] != "") & (frame.refused == "") & (not found.keep_flagged)
    fates = Counter(frame.refused.mask(flagged, "flagged").groupby(frame.row).min())  # the empty text sorts first
    parts = Counter({"used": fates.pop("", 0), **fates})
    parts.update(found.rows)
    return found.rows_read, dict(parts)


def _caption_account(found: Collection) -> Account:
    frame = found.frame
    left_out = frame["refused" if found.keep_flagged else "flags"][frame.refused == ""]
    flags = {f"left out as {flags}": count for flags, count in Counter(left_out).items() if flags}
    return len(frame), {"used": int((left_out == "").sum()), **flags, **Counter(frame.refused[frame.refused != ""])}


def _picture_accounts(found: Collection, bad: dict[str, str]) -> dict[str, Account]:
    """Pictures named, and files seen in the folder or beside the pictures that are named."""
    used, missing = set(found.used.picture), sum(" is missing" in why for why in bad.values())
    parts = {"used": len(used) - len(bad), "missing": missing, "unreadable": len(bad) - missing}
    parts["with flagged captions only"] = len(found.flagged_out)
    parts["refused"] = len(found.named) - len(used) - len(found.flagged_out)
    walks = [(part.file, part.walk) for part in found.parts if part.walk]
    if not walks:  # the folders in which the named pictures lie
        places = {found.root / name.rpartition("/")[0] for name in found.named}
        walks = [(place, walk(place, found.root, deep=False)) for place in sorted(places) if place.is_dir()]
    files = Counter({"used": 0})
    for place, folder in walks:
        inside = os.path.relpath(os.path.realpath(place), os.path.realpath(found.root))
        files.update({"hidden": folder.hidden, "refused": folder.lost})
        for name, linked in folder.files.items():
            whole = os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/")
            if whole in found.named:
                good = whole in used and whole not in bad
                files["refused" if not good else "used through a link" if linked else "used"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    return {"pictures": (len(found.named), parts), "files": (files.total(), dict(files))}


def _splits(found: Collection) -> list[Finding]:
    """Splits that are too small, share pictures, or are the same file twice."""
    spoils, findings = not found.options.get("allow_overlap"), []
    for split in SPLITS:
        if (count := found.split(split).picture.nunique()) < FEWEST:
            findings.append(_finding(f"split {split} has fewer than {FEWEST} pictures", [f"{count} pictures"], True))
    for pair, names in found.overlap().items():
        first, second = (found.split(split)[["picture", "caption"]].values.tolist() for split in pair.split(" and "))
        if first == second:
            findings.append(Finding(f"{pair} are identical, pictures", len(names), spoils))
        else:
            findings.append(_finding(f"pictures in {pair}", names, spoils))
    return findings


def _pictures(found: Collection, full: bool, allowed: int) -> tuple[list[Finding], dict[str, str]]:
    """Missing and unreadable pictures, and files that are equal byte for byte."""
    used = found.used.drop_duplicates(["picture", "split"])
    splits = dict(zip(used.picture, used.split, strict=True))
    rare = 0.5 if sys.stderr.isatty() else 15.0
    bar = partial(tqdm, total=len(splits), desc="pictures", unit="file", disable=len(splits) < 1000, mininterval=rare)
    flat: list[Path] = []

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(path)

    bad = faults(look if full else check_header, found.root, list(splits), bar)
    per_split = int(used[used.picture.isin(bad)].groupby("split").size().max()) if bad else 0
    spoils = per_split > allowed
    out = (f"to leave them out, counted: max_bad_pictures: {per_split} in an index (data/README.md)",) if spoils else ()
    missing = [why for why in bad.values() if " is missing" in why]
    unreadable = [why for why in bad.values() if " is missing" not in why]
    groups = equal_files(found.root, [name for name in splits if name not in bad])
    across = [group for group in groups if len({splits[name] for name in group}) > 1]
    within = [group for group in groups if group not in across]
    single = [str(path.relative_to(found.root)) for path in sorted(flat)]
    findings = [
        _finding("missing pictures", missing, spoils, *out),
        _finding("unreadable pictures", unreadable, spoils, *out),
        _finding("pictures of a single colour (transparency lies on white)", single),
        _finding("equal picture files within a split, groups", [" = ".join(group) for group in within]),
        _finding("equal picture files in two splits, groups", [" = ".join(group) for group in across], True),
    ]
    return findings, bad


def _captions(found: Collection) -> list[Finding]:
    """Repeated captions; of one picture or of several in a split, where a query has more than one right answer."""
    used = found.used
    repeated = list(used.picture[used.duplicated(["split", "picture", "clean"])].unique())
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    alone = int((used.groupby(["split", "picture"]).size() == 1).sum())
    return [
        _finding("pictures that repeat a caption", repeated),
        _finding("captions that several pictures of a split share", shared),
        Finding("pictures with one caption (text teachers then see two dropout views)", alone, False),
    ]


def _left_out(found: Collection) -> list[Finding]:
    """What is left out by rule, and what the files themselves make one wonder."""
    kept = "used all the same" if found.keep_flagged else "left out; keep_flagged uses them"
    flags = Counter(found.frame["flags"][found.frame["flags"] != ""])
    return [
        *(Finding(f"captions flagged {names}, {kept}", count, False) for names, count in flags.items()),
        _finding("pictures left out with all of their captions flagged", found.flagged_out),
        *(Finding(note, 1, False) for part in found.parts for note in part.notes),
    ]


def _lengths(captions: list[str], token_lengths: Callable, context: int) -> Finding:
    lengths = list(token_lengths(captions))
    long = [f"{caption[:70]} ..." for caption, length in zip(captions, lengths, strict=True) if length > context]
    return _finding(
        f"captions longer than the model's context of {context} tokens (longest {max(lengths)}), cut there", long
    )
