"""Features of frozen towers, computed once for a data set, and common-space features of students.

Pictures and captions are stored apart, ``FOLDER/SPLIT.safetensors`` each. A file is written whole or not at all, says
what it was made from, and is made anew where that differs.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import pad
from tqdm.auto import tqdm

from rvlr_lib import models
from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.disk import whole_file
from rvlr_lib.models import CachedRows, HeadStudent, Student, Towers, TowerStudent
from rvlr_lib.training.processes import add_up, carrier, processes

Found = dict[str, Tensor]
Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
Precision = Literal["float32", "bfloat16"]  # of the encoding; bfloat16 is 2 to 3 times as fast on newer CPUs and GPUs
PICTURES, CAPTIONS, ROWS = 128, 64, 8192  # of a batch; the last: cached rows that heads take at once
PIXELS_AT_ONCE = 16 * 384**2  # a Swin-B at 384 px takes 110 MB of activations for each picture
TYPES = {"images": "F32", "texts": "F32", "tokens": "F16", "mask": "BOOL"}  # of the stored arrays
NUMPY: dict[str, Any] = {"F32": np.float32, "F16": np.float16, "BOOL": np.bool_}


@dataclass(frozen=True)
class FeatureSet:
    """Cached outputs of frozen towers for the ``I`` pictures and ``C`` captions of a data set, not normalised."""

    images: Tensor  # [V, I, W], view 0 plain, the others augmented
    texts: Tensor  # [C, W']
    image_tokens: Tensor | None = None  # [I, N, W] float16 of the plain view
    text_tokens: Tensor | None = None  # [C, L, W'] float16
    text_mask: Tensor | None = None  # bool [C, L], True at real tokens


@torch.inference_mode()
def encode_images(
    towers: Towers,
    dataset: ImageTextDataset,
    folder: Path,
    *,
    views: int = 1,
    tokens: bool = False,
    seed: int = 0,
    crop_scale: tuple[float, float] = (0.7, 1.0),
    flip: bool = True,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Path:
    """Store features of the pictures of a data set by the frozen image tower; several processes share the work.

    ``SPLIT.safetensors`` holds ``images [I, views, W]`` float32, the first view plain, the others augmented by seed,
    crop_scale and flip, and, with ``tokens``, ``tokens [I, N, W]`` float16 of the plain view. Pictures are decoded
    batch by batch. ValueError with the sizes where the disk has no room.
    """
    device, size, visual = torch.device(device), towers.image_size, towers.visual.to(device).eval()
    low, high = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (towers.mean, towers.std))
    made = {
        "weights": _weights(visual),
        "pixels": (size, towers.mean, towers.std),
        "views": (views, seed, crop_scale, flip) if views > 1 else views,
        "tokens": tokens,
        "precision": precision,
        "pictures": _digest(map(dataset.source.content, range(len(dataset)))),
    }

    def run(pixels: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        normal = ((pixels - low) / high).contiguous(memory_format=torch.channels_last)
        with _autocast(precision, device):
            return models.encode_image_tokens(visual, normal, tokens=wanted, projected=False)

    def work(rows: Tensor, pixels: Tensor) -> Found:
        pixels = pixels.to(device)
        plain, grid = run(pixels.float() / 255, tokens)
        found = [plain]
        for view in range(1, views):
            draws = torch.Generator().manual_seed(int(_digest([f"{seed} {view} {rows[0]}".encode()])[:12], 16))
            found.append(run(augment(pixels, draws, scale=crop_scale, flip=flip), False)[0])
        return {"images": torch.stack(found, dim=1)} | ({} if grid is None else {"tokens": grid})

    path, label = folder / f"{dataset.split}.safetensors", f"{dataset.name}/{dataset.split} pictures"
    if not _is_current(path, made):
        probe = work(torch.zeros(1), torch.zeros(1, 3, size, size, dtype=torch.uint8))
        shapes = {name: (len(dataset), *value.shape[1:]) for name, value in probe.items()}
        _store(path, made, shapes, _in_shares(*_picture_batches(dataset, size), work), label)
    return path


@torch.inference_mode()
def encode_captions(
    towers: Towers,
    dataset: ImageTextDataset,
    folder: Path,
    *,
    tokens: bool = False,
    precision: Precision = "float32",
    device: torch.device | str = "cpu",
) -> Path:
    """Store features of the captions of a data set by the frozen text tower; several processes share the work.

    ``SPLIT.safetensors`` holds ``texts [C, W]`` float32 and, with ``tokens``, ``tokens [C, L, W]`` float16 and ``mask
    [C, L]`` bool, ``L`` that of the longest caption. Each distinct caption is encoded once, in order of length. Those
    beyond the tower's context are cut, and their number is printed. ValueError as of :func:`encode_images`.
    """
    device, text, context = torch.device(device), towers.text.to(device).eval(), int(towers.tokenizer.context_length)
    made = {"weights": _weights(text), "context": context, "tokens": tokens, "precision": precision}
    made["captions"] = _digest(caption.encode() for caption in dataset.captions)
    path, name = folder / f"{dataset.split}.safetensors", f"{dataset.name}/{dataset.split}"
    if _is_current(path, made):
        return path
    cut = sum(length > context for length in models.count_tokens(towers.tokenizer, dataset.captions))
    if cut and processes()[0] == 0:
        print(
            f"{name}: {cut:,} of {len(dataset.captions):,} captions are longer than {context} tokens and are cut; "
            "a greater context_length keeps them whole"
        )
    distinct, row_of = _distinct(dataset.captions)
    token_ids = models.tokenize(towers.tokenizer, distinct)
    lengths = models.real_tokens(text, token_ids).sum(dim=1)
    captions_of = torch.argsort(row_of, stable=True).split(torch.bincount(row_of).tolist())  # of each distinct one

    def run(ids: Tensor) -> Found:
        with _autocast(precision, device):
            found, grid, mask = models.encode_text_tokens(text, ids.to(device), tokens=tokens, projected=False)
        return {"texts": found} | ({} if grid is None else {"tokens": grid, "mask": mask})

    probe = run(token_ids[lengths.argmax()][None])
    shapes = {name: (len(row_of), *value.shape[1:]) for name, value in probe.items()}

    def work(rows: Tensor, ids: Tensor) -> Found:
        found = run(ids)
        if tokens:
            missing = probe["mask"].shape[1] - found["mask"].shape[1]
            found |= {"tokens": pad(found["tokens"], (0, 0, 0, missing)), "mask": pad(found["mask"], (0, missing))}
        return found

    def spread() -> Iterator[tuple[Tensor, Found]]:
        for rows, found in _in_shares(torch.argsort(lengths, stable=True).split(CAPTIONS), token_ids.__getitem__, work):
            captions = [captions_of[row] for row in rows.tolist()]
            repeats = torch.tensor([len(part) for part in captions])
            yield torch.cat(captions), {key: value.repeat_interleave(repeats, dim=0) for key, value in found.items()}

    _store(path, made, shapes, spread(), f"{name} captions")
    return path


def read_features(image_folder: Path, text_folder: Path, split: str, *, tokens: bool = True) -> FeatureSet:
    """Open what :func:`encode_images` and :func:`encode_captions` wrote, memory-mapped; ``tokens`` only if wanted."""
    images, texts = (_open(folder / f"{split}.safetensors") for folder in (image_folder, text_folder))
    stored = (images.get("tokens"), texts.get("tokens"), texts.get("mask")) if tokens else ()
    return FeatureSet(images["images"].transpose(0, 1), texts["texts"], *stored)


def _open(path: Path) -> Found:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error}): remove it and run again") from error


@torch.inference_mode()
def encode(student: Student, data: ImageTextDataset | FeatureSet, device: torch.device | str = "cpu") -> Features:
    """Common-space features, on the CPU in float32: whole towers take a data set, heads a feature set.

    Several processes share the work of whole towers. ValueError where student and data do not go together.
    """
    student.to(device).eval()
    if isinstance(student, HeadStudent) and isinstance(data, FeatureSet):
        picture_parts, caption_parts = (
            [CachedRows(rows.to(device)) for rows in part.split(ROWS)] for part in (data.images[0], data.texts)
        )
        images = torch.cat([student.encode_image(rows).features.cpu() for rows in picture_parts])
        return images, torch.cat([student.encode_text(rows).features.cpu() for rows in caption_parts])
    if not isinstance(student, TowerStudent) or not isinstance(data, ImageTextDataset):
        kinds = f"{type(student).__name__} cannot encode {type(data).__name__}"
        raise ValueError(f"{kinds}: whole towers take a data set, heads its cached features")
    distinct, row_of = _distinct(data.captions)
    token_ids = models.tokenize(student.tokenizer, distinct)
    order = torch.argsort(models.real_tokens(student.text, token_ids).sum(dim=1), stable=True)

    def image(_rows: Tensor, pixels: Tensor) -> Found:
        pixels = (pixels.to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        return {"rows": student.encode_image(pixels).features}

    def text(_rows: Tensor, ids: Tensor) -> Found:
        return {"rows": student.encode_text(ids.to(device)).features}

    images, texts = (torch.empty(count, student.embed_dim) for count in (len(data), len(distinct)))
    for rows, found in _in_shares(*_picture_batches(data, student.image_size), image):
        images[rows] = found["rows"]
    for rows, found in _in_shares(order.split(CAPTIONS), token_ids.__getitem__, text):
        texts[rows] = found["rows"]
    return images, texts[row_of]


def _autocast(precision: Precision, device: torch.device) -> torch.autocast:
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision {precision!r} is unknown: choose float32 or bfloat16")
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


def _store(
    path: Path,
    made: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    parts: Iterable[tuple[Tensor, Found]],
    label: str,
) -> None:
    """Write a safetensors file of arrays of these shapes part by part, rows and what they hold, in the main process."""
    main, total = processes()[0] == 0, next(iter(shapes.values()))[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) if main else nullcontext(path) as temporary:
        arrays = _create(temporary, made, shapes, label) if main else {}
        with tqdm(total=total, desc=label, unit="", disable=not main or total < 2000, leave=False) as bar:
            for rows, found in parts:
                for name, array in arrays.items():
                    array[rows.numpy()] = (found[name].float() if name != "mask" else found[name]).numpy()
                bar.update(len(rows))
        for array in arrays.values():
            array.flush()
    if processes()[1] > 1:
        torch.distributed.barrier()  # nobody reads before it is there


def _create(path: Path, made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], label: str) -> dict[str, Any]:
    """A safetensors file of zeros, and its arrays, memory-mapped to write to."""
    header: dict[str, Any] = {"__metadata__": {"made": json.dumps(made, sort_keys=True)}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(NUMPY[TYPES[name]]).itemsize
        header[name] = {"dtype": TYPES[name], "shape": shape, "data_offsets": [start, end]}
    free = shutil.disk_usage(path.parent).free
    if end > free:
        sizes = f"need {end / 1e9:.1f} GB in {path.parent}, where {free / 1e9:.1f} GB are free"
        raise ValueError(f"{label}: their features {sizes}: make room, or choose fewer views or fusion_layers=0")
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with path.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    starts = {name: 8 + len(content) + header[name]["data_offsets"][0] for name in shapes}
    return {name: np.memmap(path, NUMPY[TYPES[name]], "r+", starts[name], shape) for name, shape in shapes.items()}


def _is_current(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether the file is there, whole, and made from the same; the main process says it to all."""
    current = False
    if processes()[0] == 0 and path.is_file():
        try:
            with safe_open(path, "pt") as file:
                current = (file.metadata() or {}).get("made") == json.dumps(made, sort_keys=True)
        except SafetensorError:
            pass
    return bool(add_up(torch.tensor(int(current), device=carrier())))


def _in_shares(
    batches: Sequence[Tensor], read: Callable[[Tensor], Tensor], work: Callable[[Tensor, Tensor], Found]
) -> Iterator[tuple[Tensor, Found]]:
    """Each batch of rows and what the work gives for it, on the CPU, in every process.

    Process r of W works on every W-th batch, from the r-th. The batches do not depend on W, so neither does a bit of
    the results. The next batch is read in a thread meanwhile.
    """
    rank, count = processes()
    with ThreadPoolExecutor(1) as pool:
        waiting = [pool.submit(read, rows) for rows in batches[rank : rank + 1]]
        for turn in range(0, len(batches), count):
            found: Found = {}
            if waiting:
                content = waiting.pop().result()
                waiting = [pool.submit(read, rows) for rows in batches[turn + count + rank : turn + count + rank + 1]]
                found = {name: value.cpu() for name, value in work(batches[turn + rank], content).items()}
            for sender, rows in enumerate(batches[turn : turn + count]):
                shared: list[Any] = [found if sender == rank else None]
                if count > 1:
                    torch.distributed.broadcast_object_list(shared, sender, device=carrier())
                yield rows, shared[0]


def _distinct(captions: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct captions, and the row of each caption among them."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return list(rows), torch.tensor([rows[caption] for caption in captions])


def _picture_batches(dataset: ImageTextDataset, size: int) -> tuple[Sequence[Tensor], Callable[[Tensor], Tensor]]:
    """Rows of pictures that are encoded together, and the function that reads them."""
    at_once = max(1, min(PICTURES, PIXELS_AT_ONCE // size**2))
    return torch.arange(len(dataset)).split(at_once), lambda rows: dataset.pixels(rows, size)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _weights(tower: torch.nn.Module) -> str:
    """SHA-256 of a tower's weights but for the projection after what is stored."""
    kept = [value for name, value in tower.state_dict().items() if not name.startswith(("head.", "proj."))]
    return _digest(value.cpu().contiguous().numpy().tobytes() for value in kept)
