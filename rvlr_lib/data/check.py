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

from rvlr_lib.data.dataset import SPLITS
from rvlr_lib.data.files import walk
from rvlr_lib.data.own import FEWEST, Collection, read_collection
from rvlr_lib.data.pictures import SUFFIXES, check_header, decode, equal_files, faults

EXAMPLES = 3


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
        accounts: ``rows``, ``lines``, ``captions``, ``pictures``, ``files`` -> (how many were read or seen, what became of
            them); the parts add up to the whole.
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
        kinds = sum(finding.spoils for finding in self.findings)
        verdict = f"NOT READY: {kinds} of these would spoil a result" if kinds else "ready"
        accounts = [f"{name}: {whole:,} = " + " + ".join(f"{count:,} {what}" for what, count in parts.items() if count or
                    what == "used") for name, (whole, parts) in self.accounts.items()]  # fmt: skip
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
    findings = [Finding(kind, len(messages), True, tuple(messages[:EXAMPLES]))
                for kind, messages in found.refused.items()]  # fmt: skip
    looked, bad = _pictures(found, full, allowed)
    accounts = {"rows": _rows(found), **_lines(found), "captions": _captions_account(found)}
    accounts |= _picture_accounts(found, bad)
    findings += [*_splits(found), *looked, *_captions(found), *_left_out(found)]
    if token_lengths and len(found.used):
        findings += _lengths(found, token_lengths, context)
    per_picture = Counter(found.used.groupby("picture").size())
    shares = ", ".join(f"{captions}: {pictures:,}" for captions, pictures in sorted(per_picture.items()))
    columns = {name: ", ".join(dict.fromkeys(c for part in found.parts for c in getattr(part, name))) or "none"
               for name in ("used", "unused")}  # fmt: skip
    lines = [found.describe(), f"pictures below {found.root}", f"captions per picture: pictures  {shares or 'none'}"]
    if any(part.used for part in found.parts):
        lines.append(f"columns or keys read: {columns['used']}; not read: {columns['unused']}")
    return Report(tuple(lines), tuple(finding for finding in findings if finding.count), accounts)


def _rows(found: Collection) -> tuple[int, dict[str, int]]:
    """Rows read: a row is used where one of its captions is; else it counts for the first reason against it."""
    frame = found.frame
    flagged = (frame["flags"] != "") & (frame.refused == "") & (not found.keep_flagged)
    fate = frame.refused.where(frame.refused != "", "used").mask(flagged, "flagged")
    by_row = fate.mask(fate == "used", "").groupby(frame.row).min()  # "" sorts first
    counts = Counter(value or "used" for value in by_row)
    parts = {"used": counts.pop("used", 0), **counts}
    for reason, count in found.rows.items():
        parts[reason] = parts.get(reason, 0) + count
    return found.rows_read, parts


def _lines(found: Collection) -> dict[str, tuple[int, dict[str, int]]]:
    """Lines of text files, by what they are."""
    parts: Counter[str] = Counter()
    for part in found.parts:
        if part.lines:
            parts.update(part.lines)
            parts["rows"] += len(part.picture) + len(part.refused)
    return (
        {"lines": (sum(part.line_count for part in found.parts), {"rows": parts.pop("rows", 0), **parts})}
        if parts
        else {}
    )


def _captions_account(found: Collection) -> tuple[int, dict[str, int]]:
    frame = found.frame
    right = frame.refused == ""
    flagged = frame["flags"][right & (frame["flags"] != "")] if not found.keep_flagged else frame["flags"][:0]
    parts = {"used": int(right.sum()) - len(flagged)}
    parts |= {f"left out as {flags}": count for flags, count in Counter(flagged).items()}
    return len(frame), {**parts, **Counter(frame.refused[~right])}


def _picture_accounts(found: Collection, bad: dict[str, str]) -> dict[str, tuple[int, dict[str, int]]]:
    """Pictures named, and files seen in the folder or beside the pictures that are named."""
    used = set(found.used.picture)
    named = used | set(found.named)
    parts = {"used": len(used - bad.keys()), "missing": sum(" is missing" in why for why in bad.values())}
    parts["unreadable"] = len(bad) - parts["missing"]
    parts["with flagged captions only"] = len(found.flagged_out)
    parts["refused"] = len(named) - len(used) - len(found.flagged_out)
    accounts = {"pictures": (len(named), parts)}
    files: Counter[str] = Counter({"used": 0})
    walks = [(part.file, part.walk) for part in found.parts if part.walk]
    if not walks:  # the folders in which the named pictures lie
        folders = {name.rpartition("/")[0] for name in named}
        walks = [(place, walk(place, found.root, deep=False)) for folder in sorted(folders)
                 if (place := found.root / folder).is_dir()]  # fmt: skip
    root = os.path.realpath(found.root)
    for place, folder in walks:
        inside = os.path.relpath(os.path.realpath(place), root)
        files["hidden"] += folder.hidden
        files["refused"] += folder.lost
        for name, linked in folder.files.items():
            whole = os.path.normpath(os.path.join(inside, name)).replace(os.sep, "/")
            if whole in used and whole not in bad:
                files["used through a link" if linked else "used"] += 1
            elif whole in named:
                files["refused"] += 1
            elif name.lower().endswith(SUFFIXES):
                files["pictures that no row names"] += 1
            else:
                files["texts" if name.lower().endswith(".txt") else "others"] += 1
    return {**accounts, "files": (files.total(), dict(files))} if files.total() else accounts


def _splits(found: Collection) -> list[Finding]:
    """Splits that are too small, share pictures, or are the same file twice."""
    allowed = bool(found.options.get("allow_overlap"))
    findings = [
        Finding(f"split {split} has fewer than {FEWEST} pictures", 1, True, (f"{count} pictures",))
        for split in SPLITS
        if (count := found.split(split).picture.nunique()) < FEWEST
    ]
    for pair, names in found.overlap().items():
        first, second = (found.split(split) for split in pair.split(" and "))
        told = [part[["picture", "caption"]].values.tolist() for part in (first, second)]
        if told[0] == told[1]:
            findings.append(Finding(f"{pair} are identical, pictures", len(names), not allowed))
        else:
            findings.append(Finding(f"pictures in {pair}", len(names), not allowed, tuple(names[:EXAMPLES])))
    return findings


def _pictures(found: Collection, full: bool, allowed: int) -> tuple[list[Finding], dict[str, str]]:
    """Missing and unreadable pictures, and files that are equal byte for byte."""
    used = found.used.drop_duplicates(["picture", "split"])
    names = used.picture.drop_duplicates().tolist()
    bar = partial(tqdm, total=len(names), desc="pictures", unit="file", disable=len(names) < 1000,
                  mininterval=0.5 if sys.stderr.isatty() else 15.0)  # fmt: skip
    flat: list[Path] = []

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(path)

    bad = faults(look if full else check_header, found.root, names, bar)
    missing = [why for why in bad.values() if " is missing" in why]
    unreadable = [why for why in bad.values() if " is missing" not in why]
    per_split = int(used[used.picture.isin(bad)].groupby("split").size().max()) if bad else 0
    spoils = per_split > allowed
    out = (f"to leave them out, counted: max_bad_pictures: {per_split} in an index (data/README.md)",) if spoils else ()
    findings = [Finding(what, len(group), spoils, (*group[:EXAMPLES], *out))
                for what, group in (("missing pictures", missing), ("unreadable pictures", unreadable))]  # fmt: skip
    names_of = [str(path.relative_to(found.root)) for path in sorted(flat)]
    within, across = ([" = ".join(group) for group in groups]
                      for groups in _equal_files(found, [name for name in names if name not in bad]))  # fmt: skip
    others = (("pictures of a single colour (transparency lies on white)", names_of, False),
              ("equal picture files within a split, groups", within, False),
              ("equal picture files in two splits, groups", across, True))  # fmt: skip
    more = [Finding(what, len(told), spoils, tuple(told[:EXAMPLES])) for what, told, spoils in others]
    return findings + more, bad


def _equal_files(found: Collection, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of equal files within one split, and across splits."""
    splits = dict(zip(found.used.picture, found.used.split, strict=True))
    within: list[list[str]] = []
    across: list[list[str]] = []
    for group in equal_files(found.root, names):
        (within if len({splits[name] for name in group}) == 1 else across).append(group)
    return within, across


def _captions(found: Collection) -> list[Finding]:
    """Repeated captions; of one picture or of several in a split, where a query has more than one right answer."""
    used = found.used
    repeated = used.picture[used.duplicated(["split", "picture", "clean"])].unique()
    owners = used.groupby(["split", "clean"], sort=False).picture.nunique()
    shared = [f"{split}: {caption!r} of {count} pictures" for (split, caption), count in owners[owners > 1].items()]
    alone = int((used.groupby(["split", "picture"]).size() == 1).sum())
    return [Finding("pictures that repeat a caption", len(repeated), False, tuple(repeated[:EXAMPLES])),
            Finding("captions that several pictures of a split share", len(shared), False, tuple(shared[:EXAMPLES])),
            Finding("pictures with one caption (text teachers then see two dropout views)", alone, False)]  # fmt: skip


def _left_out(found: Collection) -> list[Finding]:
    """What is left out by rule, and what the files themselves make one wonder."""
    flagged = found.frame[found.frame["flags"] != ""]
    kept = "used all the same" if found.keep_flagged else "left out; keep_flagged uses them"
    findings = [Finding(f"captions flagged {flags}, {kept}", count, False)
                for flags, count in Counter(flagged["flags"]).items()]  # fmt: skip
    findings.append(Finding("pictures left out with all of their captions flagged", len(found.flagged_out), False,
                            tuple(found.flagged_out[:EXAMPLES])))  # fmt: skip
    return findings + [Finding(note, 1, False) for part in found.parts for note in part.notes]


def _lengths(found: Collection, token_lengths: Callable, context: int) -> list[Finding]:
    captions = found.used.clean.tolist()
    lengths = list(token_lengths(captions))
    long = [caption for caption, length in zip(captions, lengths, strict=True) if length > context]
    what = f"captions longer than the model's context of {context} tokens (longest {max(lengths)}), cut there"
    return [Finding(what, len(long), False, tuple(f"{caption[:70]} ..." for caption in long[:EXAMPLES]))]
