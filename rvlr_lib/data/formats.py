"""The formats of a collection, each recognised by its shape, to rows: JSON, tables, folders of pictures and texts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rvlr_lib.data.files import Walk, read_text, stamp, walk
from rvlr_lib.data.pictures import SUFFIXES
from rvlr_lib.data.table import CAPTION_COLUMNS, SPLIT_NAMES, Part, base_of, flags_of, looks_like_captions, read_table

UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".raw", ".dng", ".cr2", ".nef")  # pictures that Pillow cannot open
LIKE_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing)([\s_.\-]*(\d+|set|split|data|images?|imgs?|pictures?|photos?))*",
    re.IGNORECASE,
)
FORMATS = """formats understood:
  list JSON (ALBEF, X-VLM):  [{"image": "a.jpg", "caption": "one" or ["one", "two"], "image_id": 0}, ...]
  JSON lines:                {"image": "a.jpg", "caption": "one"} on every line
  Karpathy JSON:             {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}
  COCO captions JSON:        {"images": [{"id": 1, "file_name": "a.jpg"}],
                              "annotations": [{"image_id": 1, "caption": "one"}]}
  CSV or TSV with a header:  filepath,title (as open_clip) or image,caption; a picture may have several
                              rows, or columns caption_1, caption_2; also split, category
  captions.txt:              image,caption with a header, or a.jpg#0<TAB>one
  a folder:                  a.jpg beside a.txt, one caption a line; folders train, val, test are splits
  an index, JSON or YAML:    {train: a.json, val: b.json, test: c.json, image_root: pictures}"""


def parse(path: Path) -> Any:
    """Content of a JSON or YAML file; a file of JSON lines as ``{"lines": [...]}``.

    Raises:
        ValueError: the file is not what its ending says.
    """
    import yaml

    text, kind = read_text(path), path.suffix.lower()
    if kind in (".yaml", ".yml"):
        try:
            return yaml.safe_load(text)
        except Exception as error:  # the parser also raises what its types raise: bad dates, keys that are lists
            raise ValueError(f"{path} is no valid YAML: {error}") from None
    try:
        if kind == ".json":
            return json.loads(text)
    except (ValueError, RecursionError) as error:
        first = text.lstrip().split("\n", 1)[0]
        if not isinstance(error, json.JSONDecodeError) or "Extra data" not in str(error) or not first.startswith("{"):
            raise ValueError(f"{path} is no valid JSON: {error}") from None
    return {"lines": text.split("\n")}


def read_part(path: Path, root: Path, columns: Mapping[str, str | None], *, assigned: bool = False) -> Part:
    """Rows of one file or folder; ``assigned``: an index says its split, so folders in it do not.

    Raises:
        ValueError: an unknown shape (lists :data:`FORMATS`), a missing column or key, not UTF-8.
    """
    kind, before = path.suffix.lower(), stamp(path)
    if path.is_dir():
        return _folder(path, root, assigned)
    if kind in (".csv", ".tsv", ".txt", ".tab", ".psv", "") and (part := read_table(path, **columns)):
        part.stamped = [before]
        return part
    content = parse(path) if kind in (".json", ".jsonl", ".ndjson", ".yaml", ".yml") else None
    part = Part("", path, stamped=[before])
    if isinstance(content, dict) and list(content) == ["lines"]:
        return _lines(part, content["lines"])
    if isinstance(content, list) and content:
        return _list(part, content)
    if isinstance(content, dict) and isinstance(content.get("images"), list) and content["images"]:
        if isinstance(content.get("annotations"), list):
            return _coco(part, content)
        if isinstance(content["images"][0], dict) and "sentences" in content["images"][0]:
            return _karpathy(part, content["images"])
    if content is None:
        shape = f"a {path.suffix or 'nameless'} file"
    else:
        keys = f" with keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else ""
        shape = f"{'an empty ' if not content else ''}{type(content).__name__}{keys}"
    raise ValueError(f"{path} is {shape}, which is no known format; {FORMATS}")


def _lines(part: Part, lines: Sequence[str]) -> Part:
    items, places, blank = [], [], 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            blank += number < len(lines)  # what follows the last line end is no line
            continue
        try:
            items.append(json.loads(line))
            places.append(f"line {number}")
        except (ValueError, RecursionError) as error:
            part.refused.append(("lines that are no JSON", f"{part.file}, line {number} is no valid JSON: {error}"))
    part = _list(part, items, places)
    part.kind, part.lines, part.line_count = "JSON lines", {"blank": blank}, len(lines) - (not lines[-1])
    return part


def _list(part: Part, items: Sequence[Any], places: Sequence[str] = ()) -> Part:
    part.kind = "list JSON"
    keys: dict[str, None] = {}
    for number, item in enumerate(items):
        where = places[number] if places else f"row {number}"
        name, captions = _need(item, "image", part, where), _need(item, "caption", part, where)
        if others := [key for key in item if key not in ("image", "caption") and _holds_captions(key, item[key])]:
            numbered = [key for key in others if base_of(key) == "caption"]
            if len(numbered) < len(others):
                raise ValueError(f"{part.file}, {where}: the keys caption, {', '.join(others)} may all hold captions: keep "
                                 "one, or make caption a list")  # fmt: skip
            captions = [text for value in (captions, *(item[key] for key in numbered))
                        for text in (value if isinstance(value, list) else [value])]  # fmt: skip
        keys.update(dict.fromkeys(item))
        part.add(where, name, captions, item.get("split"), item.get("image_id"), item.get("category"), flags_of(item))
    return _tell(part, keys, {"image", "caption", "split", "image_id", "category"})


def _holds_captions(key: Any, value: Any) -> bool:
    texts = value if isinstance(value, list) else [value]
    words = bool(texts) and all(isinstance(text, str) and text.strip() for text in texts)
    return words and (base_of(str(key)) in CAPTION_COLUMNS or looks_like_captions(str(key)))


def _karpathy(part: Part, images: Sequence[Any]) -> Part:
    part.kind = "Karpathy JSON"
    keys: dict[str, None] = {}
    for number, image in enumerate(images):
        where = f"images[{number}]"
        name, folder = _need(image, "filename", part, where), image.get("filepath")
        sentences = _need(image, "sentences", part, where)
        if not isinstance(sentences, list):
            raise ValueError(f"{part.file}, {where}: sentences is {str(sentences)[:60]!r}, expected a list; {FORMATS}")
        captions = [_need(sentence, "raw", part, f"{where}, sentences") for sentence in sentences]
        name = f"{folder}/{name}" if folder and isinstance(name, str) else name
        part.add(where, name, captions, image.get("split"), None, image.get("category"), flags_of(image))
        keys.update(dict.fromkeys(image))
    return _tell(part, keys, {"filename", "filepath", "sentences", "split", "category"})


def _coco(part: Part, content: Mapping[str, Any]) -> Part:
    part.kind = "COCO captions JSON"
    names: dict[str, tuple[Any, str, Any]] = {}
    kinds: set[type] = set()
    keys: dict[str, None] = {}
    for number, image in enumerate(content["images"]):
        where = f"images[{number}]"
        key, name = _need(image, "id", part, where), _need(image, "file_name", part, where)
        if str(key) in names:
            before = names[str(key)][0]
            raise ValueError(f"{part.file}, {where}: duplicate id {key!r}, for {before!r} and {name!r}; ids must "
                             "differ")  # fmt: skip
        names[str(key)] = name, where, image.get("split")
        kinds.add(type(key))
        keys.update(dict.fromkeys(f"images.{name}" for name in image))
        part.bare.append((name, where, image.get("split")))
    other, like = 0, {str(key).lstrip("0"): key for key in names}
    for number, caption in enumerate(content["annotations"]):
        where = f"annotations[{number}]"
        key, text = _need(caption, "image_id", part, where), _need(caption, "caption", part, where)
        if str(key) not in names:
            near = like.get(str(key).lstrip("0"))
            hint = f"; the images have {near!r}: write both as numbers or both as the same text" if near else ""
            message = f"{part.file}, {where}: image_id {key!r} is no id of the images{hint or ''}"
            part.refused.append(
                ("captions of no picture", message + "; add the image or drop the caption" * (not hint))
            )
            continue
        other += type(key) not in kinds
        part.add(where, names[str(key)][0], text, names[str(key)][2], key, caption.get("category"), flags_of(caption))
        keys.update(dict.fromkeys(caption))
    if other:
        part.notes.append(f"{part.file}: image_id of {other:,} annotations and id of the images are of two types, text "
                          "and number; they were matched as text")  # fmt: skip
    return _tell(part, keys, {"images.id", "images.file_name", "images.split", "image_id", "caption", "category"})


def _tell(part: Part, keys: Mapping[str, None], known: set[str]) -> Part:
    used = {key for key in keys if key in known or flags_of({key: 1}) or base_of(str(key)) == "caption"}
    part.used, part.unused = [str(key) for key in keys if key in used], [str(key) for key in keys if key not in used]
    return part


def _need(item: Any, key: str, part: Part, where: str) -> Any:
    if not isinstance(item, dict) or key not in item:
        keys = f"has {', '.join(map(repr, item))}" if isinstance(item, dict) else f"is {str(item)[:60]!r}"
        raise ValueError(f"{part.file}, {where} lacks the key {key!r}: it {keys}; {FORMATS}")
    return item[key]


def _folder(folder: Path, root: Path, assigned: bool) -> Part:
    part = Part("folder of pictures and texts", folder)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder} lies outside image_root {root}; leave image_root out for a folder")
    part.walk = found = walk(folder, root)
    kinds = ", ".join(suffix[1:] for suffix in SUFFIXES)
    for name in [name for name in found.files if name.lower().endswith(UNREAD)]:
        del found.files[name]
        found.refuse("pictures of a format that is not read", f"{folder / name} is not read: save it as one of {kinds}")
    pictures = [name for name in found.files if name.lower().endswith(SUFFIXES)]
    if not pictures and not found.refused:
        raise ValueError(f"{folder} holds no picture ({kinds}); {FORMATS}")
    inside = folder.resolve().relative_to(root.resolve())
    splits = {} if assigned else _split_folders(folder, found)
    texts = {os.path.splitext(name)[0]: name for name in found.files if name.lower().endswith(".txt")}
    part.stamped = [stamp(place) for place in (*found.folders, *(folder / name for name in texts.values()))]
    blank = 0
    for name in pictures:
        place, split = (inside / name).as_posix(), splits.get(name)
        if splits and split is None:
            continue  # the same picture stands in a split folder, by a link
        part.bare.append((place, name, split))
        told = texts.get(os.path.splitext(name)[0])
        lines = re.split(r"\r\n|\r|\n", read_text(folder / told)) if told else []
        part.line_count += len(lines) - bool(lines and not lines[-1])
        for number, line in enumerate(lines, 1):
            if line.strip():
                part.add(f"{told}, line {number}", place, line, split)
            else:
                blank += number < len(lines)
    part.lines = {"blank": blank}
    return part


def _split_folders(folder: Path, found: Walk) -> dict[str, str]:
    """Split of each picture, where the folders say splits; empty where they do not.

    Raises:
        ValueError: some folders look like splits and others do not.
    """
    pictures = [name for name in found.files if name.lower().endswith(SUFFIXES)]
    parts, depth = [name.split("/") for name in pictures], 0
    while pictures and len({part[depth] for part in parts}) == 1 and not LIKE_SPLIT.fullmatch(parts[0][depth]):
        if any(len(part) <= depth + 2 for part in parts):
            break
        depth += 1
    tops = [part[depth] if len(part) > depth + 1 else "" for part in parts]
    splits = {name: SPLIT_NAMES[top.casefold()] for name, top in zip(pictures, tops, strict=True)
              if top.casefold() in SPLIT_NAMES}  # fmt: skip
    like = sorted({top for top in tops if LIKE_SPLIT.fullmatch(top)})
    if not like:
        places: dict[str, set[str]] = {}
        for part in parts:
            for place, name in enumerate(part[:-1]):
                if name.casefold() in SPLIT_NAMES:
                    places.setdefault("/".join(part[:place]), set()).add(name)
        deep, like = next(((place, sorted(names)) for place, names in places.items() if len(names) > 1), ("", []))
        if like:
            raise ValueError(f"{folder}: the folders {', '.join(like)} in {deep} look like splits, but other folders lie "
                             f"beside {deep}: give {folder / deep}, or put {', '.join(like)} at the top")  # fmt: skip
        return {}
    linked = {os.path.realpath(folder / name) for name in splits if found.files[name]}
    others = [top or f"pictures beside them, as {name}" for name, top in zip(pictures, tops, strict=True)
              if name not in splits and os.path.realpath(folder / name) not in linked]  # fmt: skip
    if others:
        raise ValueError(f"{folder}: the folders {', '.join(like)} look like splits, but not all do: "
                         f"{', '.join(dict.fromkeys(others))}; name every folder train, val or test, take the others away, "
                         "or list the pictures in a CSV")  # fmt: skip
    return splits
