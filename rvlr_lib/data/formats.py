"""The formats of a collection, each recognised by its shape, to rows: JSON, tables, folders of pictures and texts."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rvlr_lib.data.files import Walk, read_text, stamp, walk
from rvlr_lib.data.pictures import SUFFIXES
from rvlr_lib.data.table import SPLIT_NAMES, Collection, Row, fill, read_table

UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".raw", ".dng", ".cr2", ".nef")  # pictures that Pillow cannot open
ABOUT_SPLIT = r"[\s_.\-]*(\d+|set|split|data|images?|imgs?|pictures?|photos?)"
LIKE_SPLIT = re.compile(rf"(train|training|val|valid|validation|dev|test|testing)({ABOUT_SPLIT})*", re.I)
FORMATS = """formats understood:
  list JSON (ALBEF, X-VLM): [{"image": "a.jpg", "caption": "one" or ["one", "two"], "image_id": 0}, ...]
  JSON lines:         {"image": "a.jpg", "caption": "one"} on every line
  Karpathy JSON:      {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}
  COCO captions JSON: {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "one"}]}
  CSV, TSV, with a header: filepath,title or image,caption or image,caption_1,caption_2; also split, category
  captions.txt:       image,caption with a header, or a.jpg#0<TAB>one
  a folder:           a.jpg beside a.txt, one caption a line; folders train, val, test are splits
  an index, JSON or YAML: {train: a.json, val: b.json, test: c.json, image_root: pictures}"""


def parse(path: Path) -> Any:
    """Content of a JSON or YAML file; its text where JSON stands line by line; ValueError where it is none of these."""
    text, kind = read_text(path), path.suffix.lower()
    if kind in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except Exception as error:  # the parser also raises what its types raise: bad dates, keys that are lists
            raise ValueError(f"{path} is no valid YAML: {error}") from None
    try:
        return text if kind in (".jsonl", ".ndjson") else json.loads(text)
    except (ValueError, RecursionError) as error:
        if "Extra data" in str(error) and text.lstrip().startswith("{"):
            return text
        raise ValueError(f"{path} is no valid JSON: {error}") from None


def read_part(found: Collection, file: Path, *, assigned: bool) -> list[Row]:
    """Rows of one file or folder; ``assigned``: an index says its split, so folders in it do not."""
    if file.is_dir():
        return _folder(found, file, assigned)
    found.stamps.append(stamp(file))
    kind = file.suffix.lower()
    shape = f"a {kind or 'nameless'} file"
    if kind in (".csv", ".tsv", ".txt", ".tab", ".psv", "") and (rows := read_table(found, file)) is not None:
        return rows
    if kind in (".json", ".jsonl", ".ndjson", ".yaml", ".yml"):
        content = parse(file)
        if isinstance(content, str) and kind.startswith((".json", ".ndjson")):
            return _lines(found, file, content)
        if isinstance(content, list) and content:
            return _items(found, file, "list JSON", {f"row {k}": item for k, item in enumerate(content)})
        images = content.get("images") if isinstance(content, dict) else None
        if isinstance(images, list) and images:
            if isinstance(content.get("annotations"), list):
                return _coco(found, file, images, content["annotations"])
            if isinstance(images[0], dict) and "sentences" in images[0]:
                return _karpathy(found, file, images)
        keys = f" with keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else ""
        shape = f"{'' if content else 'an empty '}{type(content).__name__}{keys}"
    raise ValueError(f"{file} is {shape}, which is no known format; {FORMATS}")


def _lines(found: Collection, file: Path, text: str) -> list[Row]:
    lines, items = text.removesuffix("\n").split("\n"), dict[str, Any]()
    for number, line in enumerate(lines, 1):
        found.lines["rows" if line.strip() else "blank"] += 1
        try:
            items |= {f"line {number}": json.loads(line)} if line.strip() else {}
        except (ValueError, RecursionError) as error:
            found.lose("lines that are no JSON", f"{file}, line {number} is no valid JSON: {error}")
    return _items(found, file, "JSON lines", items)


def _items(found: Collection, file: Path, kind: str, items: dict[str, Any], **options: Any) -> list[Row]:
    """Rows of objects, given by their places."""
    found.kinds[kind] = None
    for where, item in items.items():
        if not isinstance(item, dict):
            raise ValueError(f"{file}, {where} is {str(item)[:60]!r}, expected keys and values; {FORMATS}")
    keys = list(dict.fromkeys(key for item in items.values() for key in item))
    cells = {where: [item.get(key) for key in keys] for where, item in items.items()}
    return fill(found, file, list(map(str, keys)), cells, options or found.options) if items else []


def _karpathy(found: Collection, file: Path, images: Sequence[Any]) -> list[Row]:
    items = dict[str, Any]()
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, "filename", "sentences")
        name, sentences = image["filename"], image["sentences"]
        if not isinstance(sentences, list):
            raise ValueError(f"{file}, {where}: sentences is {str(sentences)[:60]!r}, expected a list; {FORMATS}")
        for sentence in sentences:
            _need(file, f"{where}, sentences", sentence, "raw")
        name = f"{image['filepath']}/{name}" if image.get("filepath") and isinstance(name, str) else name
        items[where] = {**image, "filename": name, "sentences": [sentence["raw"] for sentence in sentences]}
        items[where].pop("filepath", None)
    return _items(found, file, "Karpathy JSON", items, image_column="filename", caption_column="sentences")


def _coco(found: Collection, file: Path, images: Sequence[Any], annotations: Sequence[Any]) -> list[Row]:
    known, told, other = dict[str, tuple[str, dict[str, Any]]](), defaultdict[str, dict[str, Any]](dict), 0
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, "id", "file_name")
        _, first = known.setdefault(str(image["id"]), (where, image))
        if first is not image:
            names = f"{first['file_name']!r} and {image['file_name']!r}"
            raise ValueError(f"{file}, {where}: duplicate id {image['id']!r}, for {names}; ids must differ")
    for number, caption in enumerate(annotations):
        _need(file, where := f"annotations[{number}]", caption, "image_id", "caption")
        if (key := str(caption["image_id"])) in known:
            place, image = known[key]
            other += type(image["id"]) is not type(caption["image_id"])
            told[key][f"{place}, {where}"] = {**image, **caption, "file_name": image["file_name"]}
        else:
            way = "write both as numbers or both as the same text, add the image, or drop the caption"
            fault = f"image_id {caption['image_id']!r} is no id of the images, compared as texts: {way}"
            found.lose("captions of no picture", f"{file}, {where}: {fault}")
    if other:
        kinds = "ids of images and image_id of annotations are of two types, text and number; matched as text"
        found.notes.append(f"{file}: {kinds} in {other:,} annotations")
    items = dict[str, Any]()
    for key, (place, image) in known.items():
        items |= told.get(key) or {place: {**image, "caption": []}}  # which is refused
    return _items(found, file, "COCO captions JSON", items, image_column="file_name", caption_column="caption")


def _need(file: Path, where: str, item: Any, *keys: str) -> None:
    for key in keys:
        if not isinstance(item, dict) or key not in item:
            has = f"has {', '.join(map(repr, item))}" if isinstance(item, dict) else f"is {str(item)[:60]!r}"
            raise ValueError(f"{file}, {where} lacks the key {key!r}: it {has}; {FORMATS}")


def _folder(found: Collection, folder: Path, assigned: bool) -> list[Row]:
    root = found.root.resolve()
    if not folder.resolve().is_relative_to(root):
        raise ValueError(f"{folder} lies outside image_root {found.root}; leave image_root out for a folder")
    seen, inside, kinds = walk(folder, found.root), folder.resolve().relative_to(root), ", ".join(SUFFIXES)
    for name in [name for name in seen.files if name.lower().endswith(UNREAD)]:
        message = f"{folder / name} is not read: save it as one of {kinds}"
        seen.refused.append(("pictures of a format that is not read", message, 1))
        del seen.files[name]
    for reason, message, _ in seen.refused:
        found.refused[reason].append(message)
    pictures = [name for name in seen.files if name.lower().endswith(SUFFIXES)]
    if not pictures and not seen.refused:
        raise ValueError(f"{folder} holds no picture ({kinds}); {FORMATS}")
    splits = {} if assigned else _split_folders(folder, pictures, seen)
    texts = {os.path.splitext(name)[0]: name for name in seen.files if name.lower().endswith(".txt")}
    found.kinds["folder of pictures and texts"] = None
    found.walks.append((inside.as_posix(), seen))
    found.stamps += [stamp(place) for place in (*seen.folders, *(f"{folder}/{name}" for name in texts.values()))]
    rows: list[Row] = []
    for name in splits or pictures:
        place, text, split = (inside / name).as_posix(), texts.get(os.path.splitext(name)[0]), splits.get(name)
        lines = re.split(r"\r\n|\r|\n", read_text(folder / text)) if text else [""]
        lines = lines if lines[-1] else lines[:-1]
        told = [
            Row(f"{folder}, {text}, line {k}", place, line, split) for k, line in enumerate(lines, 1) if line.strip()
        ]
        found.lines.update({"rows": len(told), "blank": len(lines) - len(told)})
        rows += told or [Row(f"{folder}, {name}", place, [], split)]
    return rows


def _split_folders(folder: Path, pictures: Sequence[str], seen: Walk) -> dict[str, str]:
    """Split of each picture, where a top folder looks like one or folders further down like two; else empty."""
    folders = {name: name.split("/")[:-1] for name in pictures}
    like = {name: next(filter(LIKE_SPLIT.fullmatch, parts), "") for name, parts in folders.items()}
    top = len(Path(os.path.commonpath(["/".join(parts) for parts in folders.values()])).parts) if folders else 0
    on_top = any(like[name] in parts[: top + 1] for name, parts in folders.items())
    if not on_top and len({SPLIT_NAMES.get(name.casefold(), name) for name in like.values() if name}) < 2:
        return {}
    splits = {name: SPLIT_NAMES[part.casefold()] for name, part in like.items() if part.casefold() in SPLIT_NAMES}
    taken = {seen.files[name] for name in splits}  # a picture beside split folders may be in one of them by a link
    rest = [name for name in pictures if name not in splits and seen.files[name] not in taken]
    if rest:
        told = ", ".join(list(dict.fromkeys("/".join(folders[name]) or name for name in rest))[:6])
        names = ", ".join(sorted({*like.values()} - {""}))
        way = "name every folder train, val or test, take the others away, or list the pictures in a CSV"
        raise ValueError(f"{folder}: {names} look like splits, but these do not say which: {told}; {way}")
    return splits
