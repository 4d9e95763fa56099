"""The formats of a collection, each recognised by its shape, to rows: JSON, tables, folders of pictures and texts."""

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
from rvlr_lib.data.table import LIKE_SPLIT, SPLIT_NAMES, SPLIT_WORD, Collection, Row, fill, read_table
from rvlr_lib.disk import UniqueKeys, unique

UNREAD = (".heic", ".heif", ".avif", ".jp2", ".jxl", ".raw", ".dng", ".cr2", ".nef")  # pictures that Pillow cannot open
TABLES = (".csv", ".tsv", ".json", ".jsonl", ".txt")
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
    try:
        if kind in (".yaml", ".yml"):
            return yaml.load(text, UniqueKeys)
        return text if kind in (".jsonl", ".ndjson") else json.loads(text, object_pairs_hook=unique)
    except Exception as error:  # the parser of YAML also raises what its types raise: bad dates, keys that are lists
        if "Extra data" in str(error) and text.lstrip().startswith("{"):
            return text
        fault = " ".join(str(error).split())
        raise ValueError(f"{path} is no valid {'YAML' if kind[1] == 'y' else 'JSON'}: {fault}") from None


def read_part(found: Collection, file: Path, *, assigned: bool) -> list[Row]:
    """Rows of one file or folder; ``assigned``: an index says its split, so folders in it do not."""
    if file.is_dir():
        return _folder(found, file, assigned)
    found.stamps.append(stamp(file))
    kind = file.suffix.lower()
    shape = f"a {kind} file"
    if kind in (".csv", ".tsv", ".txt", ".tab", ".psv", ".token", ""):
        return read_table(found, file)
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
    items = dict[str, Any]()
    for number, line in enumerate(io.StringIO(text, newline=None), 1):
        found.lines["rows" if line.strip() else "blank"] += 1
        try:
            items |= {f"line {number}": json.loads(line, object_pairs_hook=unique)} if line.strip() else {}
        except (ValueError, RecursionError) as error:
            found.lose("lines that are no JSON", f"{file}, line {number} is no valid JSON: {error}")
    return _items(found, file, "JSON lines", items)


def _items(found: Collection, file: Path, kind: str, items: dict[str, Any], **own: str) -> list[Row]:
    """Rows of objects, given by their places; ``own``: the columns of the format, where none are chosen."""
    found.kinds[kind] = None
    for where, item in items.items():
        if not isinstance(item, dict):
            raise ValueError(f"{file}, {where} is {str(item)[:60]!r}, expected keys and values; {FORMATS}")
    keys = list(dict.fromkeys(key for item in items.values() for key in item))
    cells = {where: [item.get(key) for key in keys] for where, item in items.items()}
    return fill(found, file, list(map(str, keys)), cells, own | found.options) if items else []


def _told(found: Collection, file: Path, kind: str, told: Iterable[Any], name: str, text: str) -> list[Row]:
    """Rows of pictures with their captions, by place; what a picture says otherwise than a caption is ``image_...``."""
    items = dict[str, Any]()
    for place, image, captions in told:
        items |= {} if captions else {place: image | {text: []}}  # which is refused
        for where, caption in captions.items():
            apart = [key for key in image if key not in ("id", name) and caption.get(key, image[key]) != image[key]]
            items[where] = image | caption | {f"image_{key}": image[key] for key in apart} | {name: image[name]}
    return _items(found, file, kind, items, image_column=name, caption_key=text)


def _karpathy(found: Collection, file: Path, images: Sequence[Any]) -> list[Row]:
    name, raw = found.options.get("image_column") or "filename", found.options.get("caption_column") or "raw"
    pictures = []
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, name, "sentences")
        about = {**image}
        if not isinstance(sentences := about.pop("sentences"), list):
            raise ValueError(f"{file}, {where}: sentences is {str(sentences)[:60]!r}, expected a list; {FORMATS}")
        captions = {f"{where}, sentences[{k}]": sentence for k, sentence in enumerate(sentences)}
        for place, sentence in captions.items():
            _need(file, place, sentence, raw)
        if name != "filepath" and (folder := about.pop("filepath", None)) and isinstance(image[name], str):
            about[name] = f"{folder}/{image[name]}"
        pictures.append((where, about, captions))
    return _told(found, file, "Karpathy JSON", pictures, name, raw)


def _coco(found: Collection, file: Path, images: Sequence[Any], annotations: Sequence[Any]) -> list[Row]:
    known, other = dict[str, tuple[str, dict[str, Any], dict[str, Any]]](), 0  # id -> place, picture, captions
    name, text = found.options.get("image_column") or "file_name", found.options.get("caption_column") or "caption"
    for number, image in enumerate(images):
        _need(file, where := f"images[{number}]", image, "id", name)
        _, first, _ = known.setdefault(str(image["id"]), (where, image, {}))
        if first is not image:
            names = f"{first[name]!r} and {image[name]!r}"
            raise ValueError(f"{file}, {where}: duplicate id {image['id']!r}, for {names}; ids must differ")
    for number, caption in enumerate(annotations):
        _need(file, where := f"annotations[{number}]", caption, "image_id", text)
        if (key := str(caption["image_id"])) in known:
            place, image, captions = known[key]
            other += type(image["id"]) is not type(caption["image_id"])
            captions[f"{place}, {where}"] = caption
        else:
            way = "write both as numbers or both as the same text, add the image, or drop the caption"
            fault = f"image_id {caption['image_id']!r} is no id of the images, compared as texts: {way}"
            found.lose("captions of no picture", f"{file}, {where}: {fault}")
    if other:
        kinds = "ids of images and image_id of annotations are of two types, text and number; matched as text"
        found.notes.append(f"{file}: {kinds} in {other:,} annotations")
    return _told(found, file, "COCO captions JSON", known.values(), name, text)


def _need(file: Path, where: str, item: Any, *keys: str) -> None:
    for key in keys:
        if not isinstance(item, dict) or key not in item or (key in ("id", "image_id") and item[key] is None):
            has = f"has {', '.join(map(repr, item))}" if isinstance(item, dict) else f"is {str(item)[:60]!r}"
            raise ValueError(f"{file}, {where} lacks the key {key!r}: it {has}; {FORMATS}")


def _folder(found: Collection, folder: Path, assigned: bool) -> list[Row]:
    root = found.root.resolve()
    if not folder.resolve().is_relative_to(root):
        raise ValueError(f"{folder} lies outside image_root {found.root}; leave image_root out for a folder")
    seen, inside, kinds = walk(folder, found.root), folder.resolve().relative_to(root), ", ".join(SUFFIXES)
    stems = {os.path.splitext(name)[0] for name in seen.files if name.lower().endswith((*SUFFIXES, *UNREAD))}
    for name in [name for name in seen.files if name.lower().endswith(UNREAD)]:
        message = f"{folder / name} is not read: save it as one of {kinds}"
        seen.refused.append(("pictures of a format that is not read", message, 1))
        del seen.files[name]
    for reason, message, _ in seen.refused:
        found.refused[reason].append(message)
    pictures = [name for name in seen.files if name.lower().endswith(SUFFIXES)]
    if not pictures and not seen.refused:
        raise ValueError(f"{folder} holds no picture ({kinds}); {FORMATS}")
    splits, texts = {} if assigned else _split_folders(folder, pictures, seen), dict[str, str]()
    for name in (name for name in seen.files if name.lower().endswith(".txt")):
        if (stem := os.path.splitext(name)[0]) not in stems or texts.setdefault(stem, name) != name:
            found.lose("texts without a picture", f"{folder / name}: beside it is no picture, or one with another text")
    tables = [name for name in seen.files if "/" not in name and name.lower().endswith(TABLES)]
    if pictures and tables and not texts:
        raise ValueError(f"{folder}: no text lies beside a picture; give {tables[0]} itself, with image_root {folder}")
    found.kinds["folder of pictures and texts"] = None
    found.walks.append((inside.as_posix(), seen))
    found.stamps += [stamp(place) for place in (*seen.folders, *(f"{folder}/{name}" for name in texts.values()))]
    rows: list[Row] = []
    for name in splits or pictures:
        place, text, split = (inside / name).as_posix(), texts.get(os.path.splitext(name)[0]), splits.get(name)
        lines = [line.rstrip("\n") for line in io.StringIO(read_text(folder / text) if text else "", newline=None)]
        where = f"{folder}, {text}, line"
        told = [Row(f"{where} {k}", place, line, split) for k, line in enumerate(lines, 1) if line.strip()]
        found.lines.update({"rows": len(told), "blank": len(lines) - len(told)})
        rows += told or [Row(f"{folder}, {name}", place, [], split)]
    return rows


def _split_folders(folder: Path, pictures: Sequence[str], seen: Walk) -> dict[str, str]:
    """Split of each picture, where a top folder looks like one or folders further down like two; else empty."""
    folders = {name: name.split("/")[:-1] for name in pictures}
    words = {part: word[0] for parts in folders.values() for part in parts if (word := SPLIT_WORD.search(part))}
    forms = {part: (re.sub(r"\d+", "0", part.replace(word, "*")), word.casefold()) for part, word in words.items()}
    kinds = Counter(form for form, _ in set(forms.values()))  # birds_train beside birds_test
    every = {part for part, (form, _) in forms.items() if LIKE_SPLIT.fullmatch(part) or kinds[form] > 1}
    like = {name: next((part for part in parts if part in every), "") for name, parts in folders.items()}
    top = len(Path(os.path.commonpath(["/".join(parts) for parts in folders.values()])).parts) if folders else 0
    on_top = any(like[name] in parts[: top + 1] for name, parts in folders.items())
    if not on_top and len({SPLIT_NAMES.get(name.casefold(), name) for name in like.values() if name}) < 2:
        return {}
    splits = {name: SPLIT_NAMES[part.casefold()] for name, part in like.items() if part.casefold() in SPLIT_NAMES}
    taken = {seen.files[name] for name in splits}  # a picture beside split folders may be in one of them by a link
    if rest := [name for name in pictures if name not in splits and seen.files[name] not in taken]:
        told = ", ".join(list(dict.fromkeys("/".join(folders[name]) or name for name in rest))[:6])
        names = ", ".join(sorted({*like.values()} - {""}))
        way = "name every folder train, val or test, take the others away, or list the pictures in a CSV"
        raise ValueError(f"{folder}: {names} look like splits, but these do not say which: {told}; {way}")
    return splits
