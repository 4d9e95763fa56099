"""``rvlr data check``: what a collection holds, and what in it would spoil a result."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rvlr_lib.data.annotations import SPLITS, Annotations, read_annotations
from rvlr_lib.data.pictures import check_header, decode, equal_files, faults
from rvlr_lib.data.readers import FEWEST
from rvlr_lib.data.relevance import clean_caption

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
    """What :func:`check` found: some lines on the collection, then the findings."""

    lines: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def spoiled(self) -> bool:
        """Whether anything found would spoil a result."""
        return any(finding.spoils for finding in self.findings)

    def __str__(self) -> str:
        kinds = sum(finding.spoils for finding in self.findings)
        verdict = f"NOT READY: {kinds} of these would spoil a result" if kinds else "ready"
        return "\n".join([*self.lines, *map(str, self.findings), verdict])


def check(
    path: str | Path,
    image_root: str | Path | None = None,
    *,
    full: bool = False,
    max_bad_pictures: int | None = None,
    token_lengths: Callable[[Sequence[str]], Sequence[int]] | None = None,
    context: int = 0,
    **columns: Any,
) -> Report:
    """Look over a collection: every caption, every picture's header, or with ``full`` every pixel.

    Args:
        path: annotation file, folder or index.
        image_root: folder of the pictures.
        full: decode every picture; a header cannot show that a file is cut short.
        max_bad_pictures: missing or unreadable pictures that a split may have; default what an index says, else 0.
        token_lengths: tokens of each caption, end marks included; None leaves the lengths out.
        context: the most tokens that the model reads.
        columns: ``image_column``, ``caption_column``, ``split_seed``, see :func:`read_annotations`.

    Raises:
        ValueError: the file cannot be read at all; says why and which formats are understood.
    """
    found = read_annotations(Path(path), None if image_root is None else Path(image_root), **columns)
    allowed = found.options.get("max_bad_pictures", 0) if max_bad_pictures is None else max_bad_pictures
    findings = [Finding(kind, len(messages), True, tuple(messages[:EXAMPLES]))
                for kind, messages in found.faults.items()]  # fmt: skip
    findings += [*_splits(found), *_pictures(found, full, int(allowed)), *_captions(found)]
    if token_lengths and found.entries:
        findings += _lengths(found, token_lengths, context)
    lines = [found.describe(), f"pictures below {found.root}", *_captions_per_picture(found)]
    return Report(tuple(lines), tuple(finding for finding in findings if finding.count))


def _captions_per_picture(found: Annotations) -> list[str]:
    counts = Counter(len(entry.captions) for entry in found.entries)
    shares = ", ".join(f"{captions}: {pictures:,}" for captions, pictures in sorted(counts.items()))
    return [f"captions per picture: pictures  {shares or 'none'}"]


def _splits(found: Annotations) -> list[Finding]:
    """Splits that are too small, share pictures, or are the same file twice."""
    allowed = bool(found.options.get("allow_overlap"))
    findings = [
        Finding(f"split {split} has fewer than {FEWEST} pictures", 1, True, (f"{len(found.split(split))} pictures",))
        for split in SPLITS
        if len(found.split(split)) < FEWEST
    ]
    for pair, names in found.overlap().items():
        first, second = (found.split(split) for split in pair.split(" and "))
        told = [{(entry.name, entry.captions) for entry in part} for part in (first, second)]
        if told[0] == told[1]:
            findings.append(Finding(f"{pair} are identical, pictures", len(names), not allowed))
        else:
            findings.append(Finding(f"pictures in {pair}", len(names), not allowed, tuple(names[:EXAMPLES])))
    return findings


def _pictures(found: Annotations, full: bool, allowed: int) -> list[Finding]:
    """Missing and unreadable pictures, and files that are equal byte for byte."""
    names = list(dict.fromkeys(entry.name for entry in found.entries))
    bar = partial(tqdm, total=len(names), desc="pictures", unit="file", disable=len(names) < 1000,
                  mininterval=0.5 if sys.stderr.isatty() else 15.0)  # fmt: skip
    flat: list[Path] = []

    def look(path: Path) -> None:
        if decode(path).getcolors(maxcolors=1):  # None of more than one
            flat.append(path)

    bad = faults(look if full else check_header, found.root, names, bar)
    missing = [why for why in bad.values() if " is missing" in why]
    unreadable = [why for why in bad.values() if " is missing" not in why]
    per_split = max(sum(entry.name in bad for entry in found.split(split)) for split in SPLITS)
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
    return findings + [Finding(what, len(told), spoils, tuple(told[:EXAMPLES])) for what, told, spoils in others]


def _equal_files(found: Annotations, names: Sequence[str]) -> tuple[list[list[str]], list[list[str]]]:
    """Groups of equal files within one split, and across splits."""
    splits = {entry.name: entry.split for entry in found.entries}
    within: list[list[str]] = []
    across: list[list[str]] = []
    for group in equal_files(found.root, names):
        (within if len({splits[name] for name in group}) == 1 else across).append(group)
    return within, across


def _captions(found: Annotations) -> list[Finding]:
    """Repeated captions; of one picture or of several in a split, where a query has more than one right answer."""
    repeated, shared, alone = [], [], 0
    for split in SPLITS:
        owners: dict[str, set[str]] = defaultdict(set)
        for entry in found.split(split):
            cleaned = [clean_caption(caption) for caption in entry.captions]
            repeated += [entry.name] * (len(set(cleaned)) < len(cleaned))
            alone += len(cleaned) == 1
            for caption in cleaned:
                owners[caption].add(entry.name)
        several = {caption: len(names) for caption, names in owners.items() if len(names) > 1}
        shared += [f"{split}: {caption!r} of {count} pictures" for caption, count in several.items()]
    return [Finding("pictures that repeat a caption", len(repeated), False, tuple(repeated[:EXAMPLES])),
            Finding("captions that several pictures of a split share", len(shared), False, tuple(shared[:EXAMPLES])),
            Finding("pictures with one caption (text teachers then see two dropout views)", alone, False)]  # fmt: skip


def _lengths(found: Annotations, token_lengths: Callable, context: int) -> list[Finding]:
    captions = [clean_caption(caption) for entry in found.entries for caption in entry.captions]
    lengths = list(token_lengths(captions))
    long = [caption for caption, length in zip(captions, lengths, strict=True) if length > context]
    what = f"captions longer than the model's context of {context} tokens (longest {max(lengths)}), cut there"
    return [Finding(what, len(long), False, tuple(f"{caption[:70]} ..." for caption in long[:EXAMPLES]))]
