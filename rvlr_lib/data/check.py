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
    """What :func:`check` found: lines on the collection, findings, and accounts.

    ``accounts``: ``rows``, ``lines``, ``captions``, ``pictures``, ``files`` -> how many were read or seen, and what
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
    if missing := [f"{name}: {source}" for name, source in missing_sources(path).items()]:
        where = f"{path}: looked for in {data_home() / path}; set RVLR_DATA to look elsewhere than {data_home()}"
        return Report((where,), (Finding("missing files", len(missing), True, tuple(missing)),))
    found = read_collection(path, image_root, **options)
    used, frame = found.used, found.frame
    looked, bad = _pictures(found, full, max_bad_pictures)
    findings = [_finding(kind, messages, True) for kind, messages in found.refused.items()]
    findings += [*_splits(found), *looked, *_captions(found)]
    if token_lengths and len(used):
        lengths = list(token_lengths(used.clean.tolist()))
        long = [f"{text[:70]} ..." for text, length in zip(used.clean, lengths, strict=True) if length > context]
        what = f"captions longer than the model's context of {context} tokens (longest {max(lengths)}), cut there"
        findings.append(_finding(what, long))
    fate = frame.refused.mask((frame.refused == "") & ~frame.index.isin(used.index), "left out as " + frame["flags"])
    captions = Counter({"used": 0}) + Counter(fate.replace("", "used"))
    rows = Counter(fate.groupby(frame.row).min().replace("", "used"))  # used where one caption is: "" sorts first
    accounts: dict[str, Account] = {
        "rows": (found.rows_read, dict(rows + found.lost)),
        "captions": (len(frame), dict(captions)),
    }
    accounts |= _accounts(found, bad)
    if found.lines:
        accounts["lines"] = found.lines_read, dict(found.lines)
    per_picture = sorted(Counter(used.groupby("picture").size()).items())
    shares = ", ".join(f"{count}: {pictures:,}" for count, pictures in per_picture) or "none"
    told = [found.describe(), f"pictures below {found.root}", f"captions per picture: pictures  {shares}"]
    told += [f"columns or keys read: {', '.join(found.columns)}"] if found.columns else []
    return Report(tuple(told), tuple(finding for finding in findings if finding.count), accounts)


def _finding(what: str, examples: Sequence[str], spoils: bool = False, *more: str) -> Finding:
    return Finding(what, len(examples), spoils, (*examples[:3], *more))


def _accounts(found: Collection, bad: dict[str, str]) -> dict[str, Account]:
    """Pictures named, and files seen in the folder or beside the pictures that are named."""
    used, missing = set(found.used.picture), sum(" is missing" in why for why in bad.values())
    pictures = {"used": len(used) - len(bad), "missing": missing, "unreadable": len(bad) - missing}
    pictures["with flagged captions only"] = len(found.flagged_out)
    pictures["refused"] = len(found.named) - len(used) - len(found.flagged_out)
    walks = found.walks
    if not walks:  # the folders in which the named pictures lie
        places = {found.root / name.rpartition("/")[0] for name in found.named}
        walks = [(place, walk(place, found.root, deep=False)) for place in sorted(places) if place.is_dir()]
    files = Counter({"used": 0})
    for place, seen in walks:
        inside = os.path.relpath(os.path.realpath(place), os.path.realpath(found.root))
        files.update({"hidden": seen.hidden, "refused": sum(count for *_, count in seen.refused)})
        for name, linked in seen.files.items():
            whole = os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/")
            if whole in found.named:
                good = whole in used and whole not in bad
                files["refused" if not good else "used through a link" if linked else "used"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    return {"pictures": (len(found.named), pictures), "files": (files.total(), dict(files))}


def _splits(found: Collection) -> list[Finding]:
    """Splits that are too small, share pictures, or are the same file twice."""
    spoils, findings = not found.options.get("allow_overlap"), []
    parts = {split: found.used[found.used.split == split] for split in SPLITS}
    for split, part in parts.items():
        if (count := part.picture.nunique()) < FEWEST:
            findings.append(_finding(f"split {split} has fewer than {FEWEST} pictures", [f"{count} pictures"], True))
    for pair, names in found.overlap().items():
        first, second = (parts[split][["picture", "caption"]].values.tolist() for split in pair.split(" and "))
        if first == second:
            findings.append(Finding(f"{pair} are identical, pictures", len(names), spoils))
        else:
            findings.append(_finding(f"pictures in {pair}", names, spoils))
    return findings


def _pictures(found: Collection, full: bool, max_bad: int | None) -> tuple[list[Finding], dict[str, str]]:
    """Missing and unreadable pictures, and files that are equal byte for byte."""
    allowed = int(found.options.get("max_bad_pictures", 0) if max_bad is None else max_bad)
    used = found.used.drop_duplicates(["picture", "split"])
    splits = dict(zip(used.picture, used.split, strict=True))
    rare = 0.5 if sys.stderr.isatty() else 15.0
    bar = partial(tqdm, total=len(splits), desc="pictures", unit="file", disable=len(splits) < 1000, mininterval=rare)
    flat: list[str] = []

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(str(path.relative_to(found.root)))

    bad = faults(look if full else check_header, found.root, list(splits), bar)
    per_split = int(used[used.picture.isin(bad)].groupby("split").size().max()) if bad else 0
    spoils = per_split > allowed
    out = (f"to leave them out, counted: max_bad_pictures: {per_split} in an index (data/README.md)",) if spoils else ()
    groups = equal_files(found.root, [name for name in splits if name not in bad])
    told = {" = ".join(group): len({splits[name] for name in group}) > 1 for group in groups}
    findings = [
        _finding("missing pictures", [why for why in bad.values() if " is missing" in why], spoils, *out),
        _finding("unreadable pictures", [why for why in bad.values() if " is missing" not in why], spoils, *out),
        _finding("pictures of a single colour (transparency lies on white)", sorted(flat)),
        _finding("equal picture files within a split, groups", [group for group, across in told.items() if not across]),
        _finding(
            "equal picture files in two splits, groups", [group for group, across in told.items() if across], True
        ),
    ]
    return findings, bad


def _captions(found: Collection) -> list[Finding]:
    """Repeated captions, of one picture or of several in a split; flagged ones; and what the files make one wonder."""
    used, flags = found.used, found.frame["flags"]
    repeated = list(used.picture[used.duplicated(["split", "picture", "clean"])].unique())
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    alone = int((used.groupby(["split", "picture"]).size() == 1).sum())
    kept = "used all the same" if found.keep_flagged else "left out; keep_flagged uses them"
    return [
        _finding("pictures that repeat a caption", repeated),
        _finding("captions that several pictures of a split share", shared),
        Finding("pictures with one caption (text teachers then see two dropout views)", alone, False),
        *(Finding(f"captions flagged {names}, {kept}", n, False) for names, n in Counter(flags[flags != ""]).items()),
        _finding("pictures left out with all of their captions flagged", found.flagged_out),
        *(Finding(note, 1, False) for note in found.notes),
    ]
