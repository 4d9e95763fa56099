"""Readers from each format, recognised by its shape, to rows: JSON, tables, folders of pictures and texts."""

import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from rvlr_lib.data.files import Walk, read_text, stamp, walk
from rvlr_lib.data.pictures import SUFFIXES
from rvlr_lib.data.table import LIKE_SPLIT, SPLIT_NAMES, SPLIT_WORD, Collection, Row, caption_stem, read_table, to_rows
from rvlr_lib.disk import UniqueKeys, unique_keys

UNSUPPORTED = tuple(".heic .heif .avif .jp2 .jxl .raw .dng .cr2 .nef".split())  # pictures that Pillow cannot open
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt")
FORMATS = """supported formats:
  list JSON (ALBEF, X-VLM): [{"image": "a.jpg", "caption": "one" or ["one", "two"], "image_id": 0}, ...]
  JSON lines:         {"image": "a.jpg", "caption": "one"} on each line
  Karpathy JSON:      {"images": [{"filename": "a.jpg", "split": "train", "sentences": [{"raw": "one"}]}]}
  COCO captions JSON: {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"image_id": 1, "caption": "one"}]}
  CSV, TSV, with a header: filepath,title or image,caption or image,caption_1,caption_2; also split, category
  captions.txt:       image,caption with a header, or a.jpg#0<TAB>one
  a folder:           a.jpg next to a.txt with one caption per line; folders train, val, test are splits
  an index, JSON or YAML: {train: a.json, val: b.json, test: c.json, image_root: pictures}"""


def parse(path: Path) -> Any:
    """Content of a JSON or YAML file, or its text if it is JSON line by line; ValueError if it is none of these."""
    text, kind = read_text(path), path.suffix.lower()
    try:
        if kind in (".yaml", ".yml"):
            return yaml.load(text, UniqueKeys)
        return text if kind in (".jsonl", ".ndjson") else json.loads(text, object_pairs_hook=unique_keys)
    except Exception as error:  # YAML values raise errors of their own: bad dates, lists as keys
        if "Extra data" in str(error) and text.lstrip().startswith("{"):
            return text
        fault = " ".join(str(error).split())
        raise ValueError(f"{path} is not valid {'YAML' if kind[1] == 'y' else 'JSON'}: {fault}") from None


def read_part(collection: Collection, file: Path, *, assigned: bool) -> list[Row]:
    """Rows of one file or folder; ``assigned``: an index gives its split, so its subfolders do not."""
    if file.is_dir():
        return _folder(collection, file, assigned)
    collection.stamps.append(stamp(file))
    kind, shape = file.suffix.lower(), f"a {file.suffix} file"
    if kind in (".csv", ".tsv", ".txt", ".tab", ".psv", ".token", ""):
        return read_table(collection, file)
    if kind in (".json", ".jsonl", ".ndjson", ".yaml", ".yml"):
        content = parse(file)
        if isinstance(content, str) and kind.startswith((".json", ".ndjson")):
            return _lines(collection, file, content)
        if isinstance(content, list) and content:
            return _items(collection, file, "list JSON", {f"row {k}": item for k, item in enumerate(content)})
        images = content.get("images") if isinstance(content, dict) else None
        if isinstance(images, list) and images:
            if isinstance(content.get("annotations"), list):
                return _coco(collection, file, images, content["annotations"])
            if isinstance(images[0], dict) and "sentences" in images[0]:
                return _karpathy(collection, file, images)
        keys = f" with keys {', '.join(map(repr, list(content)[:6]))}" if isinstance(content, dict) else ""
        shape = f"{'a' if content else 'an empty'} {type(content).__name__}{keys}"
    raise ValueError(f"{file} is {shape}, which is not a known format; {FORMATS}")


def _lines(collection: Collection, file: Path, text: str) -> list[Row]:
    items = dict[str, Any]()
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        collection.lines["rows" if line.strip() else "blank"] += 1
        try:
            if line.strip():
                items[f"line {number}"] = json.loads(line, object_pairs_hook=unique_keys)
        except (ValueError, RecursionError) as error:
            collection.refuse_row("lines that are not JSON", f"{file}, line {number} is not valid JSON: {error}")
    return _items(collection, file, "JSON lines", items)


def _items(collection: Collection, file: Path, kind: str, items: dict[str, Any], **defaults: str) -> list[Row]:
    """Rows of objects, by place; ``defaults``: the columns of the format, used if no others are chosen."""
    collection.formats[kind] = None
    for where, item in items.items():
        if not isinstance(item, dict):
            raise ValueError(f"{file}, {where} is {str(item)[:60]!r}, expected keys and values; {FORMATS}")
    keys = list(dict.fromkeys(key for item in items.values() for key in item))
    cells = {where: [item.get(key) for key in keys] for where, item in items.items()}
    return to_rows(collection, file, [*map(str, keys)], cells, **(defaults | collection.options)) if items else []


def _pairs(collection: Collection, file: Path, kind: str, pictures: Iterable[Any], name: str, text: str) -> list[Row]:
    """Rows of pictures with captions; a picture's value that its caption contradicts is kept as ``image_...``."""
    items, stems = dict[str, Any](), {caption_stem(text)} - {""}  # a picture's own captions would be read several times
    for place, image, captions in pictures:
        if not captions:
            items[place] = image | {text: []}  # refused later
        own = {f"image_{k}" if caption_stem(k) in stems else k: value for k, value in image.items()}
        for where, caption in captions.items():
            caption = {k: value for k, value in caption.items() if value is not None or k not in own}
            contradicted = [k for k in own if k not in ("id", name) and caption.get(k, own[k]) != own[k]]
            if "split" in contradicted:
                contradicted.remove("split")
                fault = f"{own[name]!r} is in splits {own['split']!r} and {caption['split']!r}: use one"
                collection.refused["pictures in two splits"].append(f"{file}, {where}: {fault}")
            items[where] = own | caption | {f"image_{k}": own[k] for k in contradicted} | {name: own[name]}
    return _items(collection, file, kind, items, image_column=name, caption_key=text)


def _karpathy(collection: Collection, file: Path, images: Sequence[Any]) -> list[Row]:
    name, raw = collection.options.get("image_column") or "filename", collection.options.get("caption_column") or "raw"
    pictures = []
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, name, "sentences")
        picture = {**image}
        if not isinstance(sentences := picture.pop("sentences"), list):
            raise ValueError(f"{file}, {where}: sentences is {str(sentences)[:60]!r}, expected a list; {FORMATS}")
        captions = {f"{where}, sentences[{k}]": sentence for k, sentence in enumerate(sentences)}
        for place, sentence in captions.items():
            _need(file, place, sentence, raw)
        if name != "filepath" and (folder := picture.pop("filepath", None)) and isinstance(image[name], str):
            picture[name] = f"{folder}/{image[name]}"
        pictures.append((where, picture, captions))
    return _pairs(collection, file, "Karpathy JSON", pictures, name, raw)


def _coco(collection: Collection, file: Path, images: Sequence[Any], annotations: Sequence[Any]) -> list[Row]:
    pictures = dict[str, tuple[str, dict[str, Any], dict[str, Any]]]()  # id -> place, picture, captions
    options, mixed = collection.options, 0
    name, text = options.get("image_column") or "file_name", options.get("caption_column") or "caption"
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, "id", name)
        _, first, _ = pictures.setdefault(str(image["id"]), (where, image, {}))
        if first is not image:
            names = f"{first[name]!r} and {image[name]!r}"
            raise ValueError(f"{file}, {where}: duplicate id {image['id']!r}, for {names}; ids must differ")
    for number, caption in enumerate(annotations):
        _need(file, where := f"annotations[{number}]", caption, "image_id", text)
        if (key := str(caption["image_id"])) in pictures:
            place, image, captions = pictures[key]
            mixed += type(image["id"]) is not type(caption["image_id"])
            captions[f"{place}, {where}"] = caption
        else:
            way_out = "write both as numbers or both as the same text, add the picture, or drop the caption"
            fault = f"image_id {caption['image_id']!r} is not the id of an image, compared as text: {way_out}"
            collection.refuse_row("captions of no picture", f"{file}, {where}: {fault}")
    if mixed:
        collection.notes.append(f"{file}: ids of {mixed:,} annotations and images are text and number, matched as text")
    return _pairs(collection, file, "COCO captions JSON", pictures.values(), name, text)


def _need(file: Path, where: str, item: Any, *keys: str) -> None:
    for key in keys:
        if not isinstance(item, dict) or key not in item or (key in ("id", "image_id") and item[key] is None):
            has = f"has {', '.join(map(repr, item))}" if isinstance(item, dict) else f"is {str(item)[:60]!r}"
            raise ValueError(f"{file}, {where} lacks the key {key!r} or its value: it {has}; {FORMATS}")


def _folder(collection: Collection, folder: Path, assigned: bool) -> list[Row]:
    root = collection.root.resolve()
    if not folder.resolve().is_relative_to(root):
        raise ValueError(f"{folder} lies outside image_root {collection.root}; leave image_root out for a folder")
    contents, inside, kinds = walk(folder, collection.root), folder.resolve().relative_to(root), ", ".join(SUFFIXES)
    suffixes = (*SUFFIXES, *UNSUPPORTED)
    stems = Counter(os.path.splitext(name)[0] for name in contents.files if name.lower().endswith(suffixes))
    for name in [name for name in contents.files if name.lower().endswith(UNSUPPORTED)]:
        message = f"{folder / name} is not supported: save it as one of {kinds}"
        contents.refused.append(("pictures of an unsupported format", message, 1))
        del contents.files[name]
    for reason, message, _ in contents.refused:
        collection.refused[reason].append(message)
    pictures = [name for name in contents.files if name.lower().endswith(SUFFIXES)]
    if not pictures and not contents.refused:
        raise ValueError(f"{folder} holds no picture ({kinds}); {FORMATS}")
    splits, texts = {} if assigned else _split_folders(folder, pictures, contents), dict[str, str]()
    for name in (name for name in contents.files if name.lower().endswith(".txt")):
        if stems[stem := os.path.splitext(name)[0]] != 1 or texts.setdefault(stem, name) != name:
            collection.refuse_row("texts without a picture", f"{folder / name} has no picture of its own: rename it")
    tables = [name for name in contents.files if "/" not in name and name.lower().endswith(TABLES)]
    if pictures and tables and not texts:
        raise ValueError(f"{folder}: no picture has a .txt file; give {tables[0]} itself, with image_root {folder}")
    collection.formats["folder of pictures and texts"] = None
    collection.walks.append((inside.as_posix(), contents))
    collection.stamps += map(stamp, (*contents.folders, *(f"{folder}/{name}" for name in texts.values())))
    rows: list[Row] = []
    for name in splits or pictures:
        place, text, split = (inside / name).as_posix(), texts.get(os.path.splitext(name)[0]), splits.get(name)
        lines = [line.rstrip("\n") for line in io.StringIO(read_text(folder / text) if text else "", newline=None)]
        where = f"{folder}, {text}, line"
        captions = [Row(f"{where} {k}", place, line, split) for k, line in enumerate(lines, 1) if line.strip()]
        collection.lines.update({"rows": len(captions), "blank": len(lines) - len(captions)})
        rows += captions or [Row(f"{folder}, {name}", place, [], split)]
    return rows


def _split_folders(folder: Path, pictures: Sequence[str], contents: Walk) -> dict[str, str]:
    """Split of each picture if a top-level folder looks like a split, or deeper ones like two of them; else empty."""
    folders = {name: name.split("/")[:-1] for name in pictures}
    words = {part: word[0] for parts in folders.values() for part in parts if (word := SPLIT_WORD.search(part))}
    patterns = {part: (re.sub(r"\d+", "0", part.replace(word, "*")), word.casefold()) for part, word in words.items()}
    counts = Counter(pattern for pattern, _ in set(patterns.values()))  # birds_train, birds_test: twice birds_*
    like = {part for part, (pattern, _) in patterns.items() if LIKE_SPLIT.fullmatch(part) or counts[pattern] > 1}
    candidates = {name: next((part for part in parts if part in like), "") for name, parts in folders.items()}
    top = len(Path(os.path.commonpath(["/".join(parts) for parts in folders.values()])).parts) if folders else 0
    on_top = any(candidates[name] in parts[: top + 1] for name, parts in folders.items())
    if not on_top and len({SPLIT_NAMES.get(part.casefold(), part) for part in candidates.values() if part}) < 2:
        return {}
    splits = {name: SPLIT_NAMES[part.casefold()] for name, part in candidates.items() if part.casefold() in SPLIT_NAMES}
    assigned = {contents.files[name] for name in splits}  # a picture outside split folders may be linked from one
    if unassigned := [name for name in pictures if name not in splits and contents.files[name] not in assigned]:
        unclear = ", ".join(list(dict.fromkeys("/".join(folders[name]) or name for name in unassigned))[:6])
        similar = ", ".join(sorted({*candidates.values()} - {""}))
        way_out = "name every folder train, val or test, remove the others, or list the pictures in a CSV"
        raise ValueError(f"{folder}: {similar} look like splits, but the split of {unclear} is unclear; {way_out}")
    return splits
