"""Features of frozen towers, computed once for a data set, and common-space features of students.

Pictures and captions are stored apart, ``FOLDER/SPLIT.safetensors`` each, as one may change without the other. A file
is written whole or not at all, says what it was made from, and is made anew where that differs.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.disk import whole_file
from rvlr_lib.models import (
    CachedRows,
    HeadStudent,
    Student,
    Towers,
    TowerStudent,
    count_tokens,
    encode_image_tokens,
    encode_text_tokens,
    real_tokens,
    tokenize,
)
from rvlr_lib.training.gather import add_up, processes
from rvlr_lib.training.processes import carrier

Found = dict[str, Tensor]
Read = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows of a batch -> the same rows and what they hold
Work = Callable[[tuple[Tensor, Tensor]], Found]
Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
PICTURES, CAPTIONS, ROWS = 128, 64, 8192  # of a batch; the last: cached rows that heads take at once
PIXELS_AT_ONCE = 16 * 384**2  # a Swin-B at 384 px takes 110 MB of activations for each picture
TYPES: dict[str, tuple[str, type]] = {  # of the stored arrays, in safetensors and in NumPy
    "images": ("F32", np.float32),
    "texts": ("F32", np.float32),
    "tokens": ("F16", np.float16),
    "mask": ("BOOL", np.bool_),
}


@dataclass(frozen=True)
class FeatureSet:
    """Cached outputs of frozen towers for the ``I`` pictures and ``C`` captions of a data set, not normalised.

    Attributes:
        images: ``[V, I, W]``, view 0 plain, the others augmented.
        texts: ``[C, W']``.
        image_tokens: ``[I, N, W]`` float16 of the plain view, or None.
        text_tokens: ``[C, L, W']`` float16, or None.
        text_mask: bool ``[C, L]``, True at real tokens, or None.
    """

    images: Tensor
    texts: Tensor
    image_tokens: Tensor | None = None
    text_tokens: Tensor | None = None
    text_mask: Tensor | None = None

    def image_rows(self, rows: Tensor | slice = slice(None), view: int = 0) -> CachedRows:
        """What :meth:`HeadStudent.encode_image` takes, of some pictures."""
        return CachedRows(self.images[view][rows], None if self.image_tokens is None else self.image_tokens[rows])

    def caption_rows(self, rows: Tensor | slice = slice(None)) -> CachedRows:
        """What :meth:`HeadStudent.encode_text` takes, of some captions."""
        if self.text_tokens is None or self.text_mask is None:
            return CachedRows(self.texts[rows])
        return CachedRows(self.texts[rows], self.text_tokens[rows], self.text_mask[rows])


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
    device: torch.device | str = "cpu",
) -> Path:
    """Store features of the pictures of a data set by the frozen image tower; several processes share the work.

    Args:
        towers: whose image tower, before any projection.
        dataset: decoded batch by batch, so it may be larger than memory.
        folder: for ``SPLIT.safetensors`` with ``images [views, I, W]`` float32 and, with ``tokens``, ``tokens
            [I, N, W]`` float16 of the plain view. A file made from the same is kept.
        views: how many, the first plain, the others augmented.
        seed, crop_scale, flip: of the augmentation; the draws do not depend on the number of processes.

    Raises:
        ValueError: the disk has no room for them; says the sizes.
    """
    device, size, visual = torch.device(device), towers.image_size, towers.visual.to(device).eval()
    low, high = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (towers.mean, towers.std))
    made = {
        "weights": _weights(visual),
        "pixels": (size, towers.mean, towers.std),
        "views": views,
        "tokens": tokens,
        "pictures": _digest(map(dataset.source.content, range(len(dataset)))),
    }
    if views > 1:
        made |= {"seed": seed, "crop_scale": crop_scale, "flip": flip}
    path, label = folder / f"{dataset.split}.safetensors", f"{dataset.name}/{dataset.split} pictures"
    if _is_current(path, made):
        return path

    def run(pixels: Tensor, wanted: bool) -> tuple[Tensor, Tensor | None]:
        normal = ((pixels - low) / high).contiguous(memory_format=torch.channels_last)
        return encode_image_tokens(visual, normal, tokens=wanted, projected=False)

    def work(batch: tuple[Tensor, Tensor]) -> Found:
        rows, pixels = batch
        pixels = pixels.to(device)
        plain, grid = run(pixels.float() / 255, tokens)
        found = [plain]
        for view in range(1, views):
            draws = torch.Generator().manual_seed(_seed(seed, view, int(rows[0])))
            found.append(run(augment(pixels, draws, scale=crop_scale, flip=flip), False)[0])
        return {"images": torch.stack(found, dim=1)} | ({} if grid is None else {"tokens": grid})

    features, grid = run(torch.zeros(1, 3, size, size, device=device), tokens)
    shapes = {"images": (views, len(dataset), features.shape[1])}
    if grid is not None:
        shapes["tokens"] = (len(dataset), *grid.shape[1:])
    batches = _picture_batches(dataset, size)
    _store(path, made, shapes, batches, lambda rows: (rows, dataset.pixels(rows, size)), work, label)
    return path


@torch.inference_mode()
def encode_captions(
    towers: Towers, dataset: ImageTextDataset, folder: Path, *, tokens: bool = False, device: torch.device | str = "cpu"
) -> Path:
    """Store features of the captions of a data set by the frozen text tower; several processes share the work.

    Each distinct caption is encoded once, in order of length. Captions beyond the tower's context are cut, and their
    number is printed.

    Args:
        towers: whose text tower, before its projection.
        folder: for ``SPLIT.safetensors`` with ``texts [C, W]`` float32 and, with ``tokens``, ``tokens [C, L, W]``
            float16 and ``mask [C, L]`` bool, ``L`` that of the longest caption. A file made from the same is kept.

    Raises:
        ValueError: the disk has no room for them; says the sizes.
    """
    device, text, path = torch.device(device), towers.text.to(device).eval(), folder / f"{dataset.split}.safetensors"
    made = {
        "weights": _weights(text),
        "context": int(towers.tokenizer.context_length),
        "tokens": tokens,
        "captions": _digest(caption.encode() for caption in dataset.captions),
    }
    if _is_current(path, made):
        return path
    warn_of_cut_captions(towers.tokenizer, dataset)
    distinct, row_of = _distinct(dataset.captions)
    token_ids = tokenize(towers.tokenizer, distinct)
    lengths = real_tokens(text, token_ids).sum(dim=1)
    repeats = torch.bincount(row_of)
    by_distinct = torch.argsort(row_of, stable=True).split(repeats.tolist())  # rows of the captions of each

    def run(ids: Tensor) -> Found:
        features, grid, mask = encode_text_tokens(text, ids.to(device), tokens=tokens, projected=False)
        return {"texts": features} | ({} if grid is None else {"tokens": grid, "mask": mask})

    probe = run(token_ids[lengths.argmax()][None])
    shapes = {name: (len(row_of), *value.shape[1:]) for name, value in probe.items()}

    def work(batch: tuple[Tensor, Tensor]) -> Found:
        found = run(batch[1])
        if tokens:
            missing = probe["mask"].shape[1] - found["mask"].shape[1]
            found["tokens"] = torch.nn.functional.pad(found["tokens"], (0, 0, 0, missing))
            found["mask"] = torch.nn.functional.pad(found["mask"], (0, missing))
        return {name: value.repeat_interleave(repeats[batch[0]].to(device), dim=0) for name, value in found.items()}

    def places(rows: Tensor) -> Tensor:
        return torch.cat([by_distinct[row] for row in rows.tolist()])

    batches, label = torch.argsort(lengths, stable=True).split(CAPTIONS), f"{dataset.name}/{dataset.split} captions"
    _store(path, made, shapes, batches, lambda rows: (rows, token_ids[rows]), work, label, places)
    return path


def read_features(image_folder: Path, text_folder: Path, split: str, *, tokens: bool = True) -> FeatureSet:
    """Open what :func:`encode_images` and :func:`encode_captions` wrote, memory-mapped.

    Args:
        tokens: False leaves stored tokens out.

    Raises:
        ValueError: a file is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    found = []
    for folder in (image_folder, text_folder):
        try:
            found.append(load_file(folder / f"{split}.safetensors"))
        except (OSError, SafetensorError) as error:
            raise ValueError(
                f"{folder / split}.safetensors cannot be read ({error}): remove it and run again"
            ) from error
    images, texts = found
    stored = (images.get("tokens"), texts.get("tokens"), texts.get("mask")) if tokens else (None, None, None)
    return FeatureSet(images["images"], texts["texts"], *stored)


@torch.inference_mode()
def encode(student: Student, data: ImageTextDataset | FeatureSet, device: torch.device | str = "cpu") -> Features:
    """Common-space features, on the CPU in float32: whole towers take a data set, heads a feature set.

    Several processes share the work of whole towers, and all of them get all features.

    Raises:
        ValueError: the student and the data do not belong together.
    """
    device = torch.device(device)
    student.to(device).eval()
    if isinstance(student, HeadStudent) and isinstance(data, FeatureSet):
        images, texts = (
            torch.cat([encode_rows(CachedRows(part.to(device))).features.cpu() for part in stored.split(ROWS)])
            for encode_rows, stored in ((student.encode_image, data.images[0]), (student.encode_text, data.texts))
        )
        return images, texts
    if not isinstance(student, TowerStudent) or not isinstance(data, ImageTextDataset):
        raise ValueError(
            f"{type(student).__name__} cannot encode {type(data).__name__}: whole towers take a data set, "
            "heads its cached features"
        )
    size, (distinct, row_of) = student.image_size, _distinct(data.captions)
    token_ids = tokenize(student.tokenizer, distinct)
    order = torch.argsort(real_tokens(student.text, token_ids).sum(dim=1), stable=True)

    def image(batch: tuple[Tensor, Tensor]) -> Found:
        pixels = (batch[1].to(device).float() / 255).contiguous(memory_format=torch.channels_last)
        return {"rows": student.encode_image(pixels).features}

    def text(batch: tuple[Tensor, Tensor]) -> Found:
        return {"rows": student.encode_text(batch[1].to(device)).features}

    images, texts = (torch.empty(count, student.embed_dim) for count in (len(data), len(distinct)))
    for rows, found in _in_shares(_picture_batches(data, size), lambda rows: (rows, data.pixels(rows, size)), image):
        images[rows] = found["rows"]
    for rows, found in _in_shares(order.split(CAPTIONS), lambda rows: (rows, token_ids[rows]), text):
        texts[rows] = found["rows"]
    return images, texts[row_of]


def warn_of_cut_captions(tokenizer: Any, dataset: ImageTextDataset) -> int:
    """Print, in the main process, how many captions exceed the context and are cut; their number."""
    context = int(tokenizer.context_length)
    cut = sum(length > context for length in count_tokens(tokenizer, dataset.captions))
    if cut and processes()[0] == 0:
        print(
            f"{dataset.name}/{dataset.split}: {cut:,} of {len(dataset.captions):,} captions are longer than "
            f"{context} tokens and are cut; a greater context_length keeps them whole"
        )
    return cut


def _store(
    path: Path,
    made: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    batches: Sequence[Tensor],
    read: Read,
    work: Work,
    label: str,
    places: Callable[[Tensor], Tensor] = lambda rows: rows,
) -> None:
    """Write a safetensors file batch by batch: all processes compute, the main one writes.

    Args:
        shapes: of the arrays; pictures stand in the second dimension of ``images``, items in the first of the others.
        batches: rows that are read and worked on together.
        work: gives a row of each array for each item.
        places: where in the arrays these items stand.
    """
    main, total = processes()[0] == 0, sum(map(len, batches))
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) if main else nullcontext(path) as temporary:
        arrays = _create(temporary, made, shapes, label) if main else {}
        with tqdm(total=total, desc=label, unit="", disable=not main or total < 2000, leave=False) as bar:
            for rows, found in _in_shares(batches, read, work):
                for name, array in arrays.items():
                    by_item = array.swapaxes(0, 1) if name == "images" else array
                    by_item[places(rows).numpy()] = found[name].numpy()
                bar.update(len(rows))
        for array in arrays.values():
            array.flush()
    if processes()[1] > 1:
        torch.distributed.barrier()  # nobody reads before it is there


def _create(
    temporary: Path, made: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], label: str
) -> dict[str, np.memmap]:
    """A safetensors file of zeros, and its arrays to write to."""
    header: dict[str, Any] = {"__metadata__": {"made": _as_text(made)}}
    end, starts = 0, {}
    for name, shape in shapes.items():
        starts[name] = end
        end += int(np.prod(shape, dtype=np.int64)) * np.dtype(TYPES[name][1]).itemsize
        header[name] = {"dtype": TYPES[name][0], "shape": shape, "data_offsets": [starts[name], end]}
    free = shutil.disk_usage(temporary.parent).free
    if end > free:
        raise ValueError(
            f"{label}: their features need {end / 1e9:.1f} GB in {temporary.parent}, where {free / 1e9:.1f} GB are "
            "free: make room, or choose another folder, fewer views or fusion_layers=0 (no tokens)"
        )
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with temporary.open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    begin = 8 + len(content)
    return {
        name: np.memmap(temporary, TYPES[name][1], "r+", begin + starts[name], shape) for name, shape in shapes.items()
    }


def _is_current(path: Path, made: Mapping[str, Any]) -> bool:
    """Whether the file is there, whole, and made from the same; the main process says it to all."""
    from safetensors import SafetensorError, safe_open

    current = False
    if processes()[0] == 0 and path.is_file():
        try:
            with safe_open(os.fspath(path), "pt") as file:
                current = (file.metadata() or {}).get("made") == _as_text(made)
        except SafetensorError:
            current = False
    return bool(add_up(torch.tensor(int(current), device=carrier())))


def _in_shares(batches: Sequence[Tensor], read: Read, work: Work) -> Iterator[tuple[Tensor, Found]]:
    """Each batch of rows and what the work gives for it, on the CPU, in every process.

    Process r of W works on every W-th batch, from the r-th. The batches do not depend on W, so neither does a bit of
    the results. The next batch is read in a thread meanwhile.
    """
    rank, count = processes()
    own = batches[rank::count]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(read, own[0]) if own else None
        for turn in range(-(-len(batches) // count)):
            found: Found = {}
            if waiting is not None:
                batch = waiting.result()
                waiting = pool.submit(read, own[turn + 1]) if turn + 1 < len(own) else None
                found = {name: value.cpu() for name, value in work(batch).items()}
            for sender, rows in enumerate(batches[turn * count : (turn + 1) * count]):
                shared: list[Any] = [found if sender == rank else None]
                if count > 1:
                    torch.distributed.broadcast_object_list(shared, sender, device=carrier())
                yield rows, shared[0]


def _distinct(captions: Sequence[str]) -> tuple[list[str], Tensor]:
    """The distinct captions, and the row of each caption among them."""
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    return list(rows), torch.tensor([rows[caption] for caption in captions])


def _picture_batches(dataset: ImageTextDataset, size: int) -> Sequence[Tensor]:
    return torch.arange(len(dataset)).split(max(1, min(PICTURES, PIXELS_AT_ONCE // size**2)))


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _weights(tower: torch.nn.Module) -> str:
    """SHA-256 of a tower's weights but for the projection after what is stored."""
    kept = [value for name, value in tower.state_dict().items() if not name.startswith(("head.", "proj."))]
    return _digest(value.cpu().contiguous().numpy().tobytes() for value in kept)


def _as_text(made: Mapping[str, Any]) -> str:
    return json.dumps(made, sort_keys=True)


def _seed(*numbers: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(numbers).encode()).digest()[:6])
