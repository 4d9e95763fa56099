"""What one cell or key says: its captions, its split, its quality flags."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from typing import Any

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
FLAG = re.compile(r"(is_)?(rejected|precanned|spam|flagged|bad|invalid|deleted|blocked|unusable|offensive|nsfw)", re.I)
NOT_TOLD = {"nan", "none", "null", "<na>", "n/a", "#n/a", "na", "nat", "undefined"}
QUOTED = r"[bru]?['\"]"
STRUCTURE = re.compile(rf"\s*([uf]?[\[({{]\s*({QUOTED}|[\[({{\])}}]|None|null|nan)|(array|list|tuple|set)\s*\()", re.I)
EMPTY, MISSING = "empty captions", "placeholders of missing captions"
NO_TEXT, NO_LIST = "captions that are no text", "cells that hold a structure"
WAYS_OUT = {  # to be filled with the caption and its picture
    EMPTY: "the caption {!r} of {!r} has no word: write one or leave it out",
    MISSING: "the caption {!r} of {!r} stands for a missing value: write one or leave it out",
    NO_TEXT: "a caption is {} of {!r}, expected text or a list of texts",
    NO_LIST: 'the caption {!r} of {!r} is a structure: write one caption, or a list of texts as JSON, ["one", "two"]',
}


def captions_in(value: Any) -> list[tuple[str, str]]:
    """The captions of a cell or key, each with a reason why it is none, or an empty one.

    >>> captions_in("a dog"), captions_in("['a dog', 'a cat']")
    ([('a dog', '')], [('a dog', ''), ('a cat', '')])
    >>> captions_in("nan"), captions_in("['a' 'b']")
    ([('nan', 'placeholders of missing captions')], [("['a' 'b']", 'cells that hold a structure')])
    """
    if isinstance(value, str):
        if value.rstrip()[-1:] in ("]", ")", "}") and STRUCTURE.match(value):
            return _structured(value)
        return [(value, MISSING if value.strip().casefold() in NOT_TOLD else "")]
    if isinstance(value, list | tuple) and not any(isinstance(item, list | tuple) for item in value):
        return [pair for item in value for pair in captions_in(item)]
    missing = value is None or (isinstance(value, float) and value != value)
    return [(str(value), MISSING if missing else NO_TEXT)]


def _structured(text: str) -> list[tuple[str, str]]:
    """The captions of a list that was written into a cell, as JSON or Python has it."""
    try:
        items = json.loads(text)
    except (ValueError, RecursionError):
        try:  # numpy prints lists without commas, whose texts Python would join
            items = None if re.search(r"(['\"])\s+[bru]?['\"](?!\s*[,\])])", text) else ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            items = None
    if not isinstance(items, list | tuple) or not all(isinstance(item, str) or item is None for item in items):
        return [(text, NO_LIST)]
    return [(str(item), MISSING if str(item).strip().casefold() in NOT_TOLD else "") for item in items]


def split_in(value: Any) -> str | None:
    """The split that a cell or key says: None where it says none.

    Raises:
        ValueError: the name is unknown.

    >>> split_in(" Validation "), split_in("")
    ('val', None)
    """
    name = "" if value is None else str(value).strip().casefold()
    if name in ("", *NOT_TOLD):
        return None
    if name not in SPLIT_NAMES:
        raise ValueError(f"split {value!r} is unknown; valid: {', '.join(SPLIT_NAMES)}")
    return SPLIT_NAMES[name]


def flags_of(values: Mapping[str, Any]) -> str:
    """Names of the quality flags that are set; a value that says neither yes nor no counts as set.

    >>> flags_of({"is_rejected": True, "is_precanned": "0", "other": "1"})
    'is_rejected'
    """
    no = {"", "0", "0.0", "false", "f", "no", "n", *NOT_TOLD}
    flags = (name for name, value in values.items() if str(value).strip().casefold() not in no)
    return ",".join(name for name in flags if FLAG.fullmatch(str(name)))
