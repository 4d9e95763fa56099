"""Features of frozen towers, computed once for a data set, and common-space features of students."""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from rvlr_lib import models
from rvlr_lib.config import TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.disk import flush, save_tensors
from rvlr_lib.models import CachedRows, HeadStudent, Student, Towers, TowerStudent
from rvlr_lib.training.processes import is_main, say_once, shared_work

Outputs = Sequence[Any]  # of a tower: features, tokens or None and, of captions, the mask of real tokens
Rows = dict[str, Tensor]  # the same by name, a row for each picture or caption
Result = TypeVar("Result")
Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
PICTURES, CAPTIONS, ROWS = 128, 64, 8192  # of a batch; the last: cached rows that heads take at once
PIXELS_AT_ONCE = 16 * 384**2  # a Swin-B at 384 px takes 110 MB of activations for each picture
LONG = 2000  # rows from which on encoding shows its progress


@dataclass(frozen=True)
class FeatureSet:
    """Cached outputs of frozen towers for the ``I`` pictures and ``C`` captions of a data set, not normalised."""

    images: Tensor  # [V, I, W], view 0 plain, the others augmented
    texts: Tensor  # [C, W']
    image_tokens: Tensor | None = None  # [I, N, W] float16 of the plain view
    text_tokens: Tensor | None = None  # [C, L, W'] float16
    text_mask: Tensor | None = None  # bool [C, L], True at real tokens


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """The context of a ``precision``; ``auto`` is bfloat16 on CUDA, float32 elsewhere.

    bfloat16 is 2 to 3 times as fast on newer GPUs and AMD's CPUs, slower by a third to a half on Intel's without AMX,
    and 4 to 11 times as slow on CPUs without AVX-512: where it does not pay float32 is taken, and a line says so once.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    if wanted and not fast_bfloat16(device):
        say_once(f"bfloat16 is slow on this {device.type}: float32 is used, and figures move within their tolerance")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast_bfloat16(device))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on GPUs from Ampere on, on CPUs with AVX-512, of Intel's on those with AMX as well."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch do not tell
    slow = "Intel" in str(known.get("cpu_name")) and not known["amx_bf16"]
    return device.type != "cpu" or (torch.backends.cpu.get_cpu_capability().startswith("AVX512") and not slow)


@torch.no_grad()
def encode_frozen(
    folder: Path,
    *,
    modality: str,
    towers: Towers,
    splits: Mapping[str, ImageTextDataset],
    tokens: bool,
    precision: str,
    device: torch.device,
    views: int = 1,
    optim: TrainSettings | None = None,
    seed: int = 0,
) -> None:
    """Store features of the pictures (``image``) or captions (``text``) of all splits by the frozen tower.

    ``SPLIT/features.npy`` is float32: of captions ``[C, W]``, of pictures ``[I, V, W]``: the plain view, and for the
    training split ``views - 1`` augmented ones, drawn by ``seed``, cropped and flipped as ``optim`` says. With
    ``tokens``, ``SPLIT/tokens.npy`` is float16: ``[I, N, W]`` of the plain view; ``[C, L, W]`` with bool ``mask.npy [C,
    L]``, ``L`` that of the longest caption. Captions beyond the tower's context are cut; their number and that of
    captions it hardly knows are printed. Several processes share the work. ValueError with the sizes where the disk has
    no room. ``precision``: see :func:`mixed_precision`.
    """
    pictures = modality == "image"
    tower = (towers.visual if pictures else towers.text).to(device).eval()
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (towers.mean, towers.std))
    cast = mixed_precision(device, precision)
    text = cast(partial(models.encode_text_tokens, tower, tokens=tokens, projected=False))

    @cast
    def image(pixels: Tensor, tokens: bool = tokens) -> Outputs:
        normal = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        return models.encode_image_tokens(tower, normal, tokens=tokens, projected=False)

    def encode_pictures(rows: Tensor, pixels: Tensor, views: int) -> Rows:
        pixels = pixels.to(device)
        plain = _in_parts(image, pixels.float() / 255)
        seen = [plain["features"]]
        for view in range(1, views):
            name = f"{seed} {view} {int(rows[0])}".encode()  # of a view of the batch that begins with this picture
            digest = hashlib.sha256(len(name).to_bytes(8, "little") + name).digest()
            draws = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
            augmented = augment(pixels, draws, scale=optim.crop_scale, flip=optim.flip)
            seen.append(_in_parts(partial(image, tokens=False), augmented)["features"])
        return plain | {"features": torch.stack(seen, dim=1)}

    for split, dataset in splits.items():
        if pictures:
            work = partial(encode_pictures, views=views if split == "train" else 1)
            parts, count = _encode_pictures(dataset, towers.image_size, work), len(dataset)
        else:
            say_what_is_lost(towers, dataset)
            parts, count = _encode_texts(towers, dataset.captions, text, device), len(dataset.captions)
        _store(folder / split, parts, count, f"{dataset.name}/{split} {'pictures' if pictures else 'captions'}")


def make_teacher(folder: Path, *, splits: Mapping[str, ImageTextDataset], **options: Any) -> None:
    """Frozen features of one modality by the teacher of a name: ``<split>.safetensors`` each."""
    for name, dataset in splits.items():
        save_tensors(folder / f"{name}.safetensors", {"features": models.teacher_features(dataset=dataset, **options)})


def say_what_is_lost(towers: Towers, dataset: ImageTextDataset) -> None:
    """Say once how many captions are cut at the text tower's context, and how many it hardly knows."""
    captions, context = dataset.captions, int(towers.tokenizer.context_length)
    lengths, strange = zip(*models.count_tokens(towers.tokenizer, captions), strict=True)
    cut, way = sum(length > context for length in lengths), "a greater context_length keeps them whole"
    unknown = "of words that the text tower mostly does not know: another one may (model, text_weights)"
    for number, what in (cut, f"longer than {context} tokens and are cut; {way}"), (sum(strange), unknown):
        if number:
            say_once(f"{dataset.name}/{dataset.split}: {number:,} of {len(captions):,} captions are {what}")


def read_features(image_folder: Path, text_folder: Path, split: str) -> FeatureSet:
    """Open what :func:`encode_frozen` stored, memory-mapped; ValueError if damaged."""
    images, texts = (_open(folder / split) for folder in (image_folder, text_folder))
    tokens = images.get("tokens"), texts.get("tokens"), texts.get("mask")
    return FeatureSet(images["features"].transpose(0, 1), texts["features"], *tokens)


@torch.no_grad()
def encode(student: Student, data: ImageTextDataset | FeatureSet, device: torch.device | str = "cpu") -> Features:
    """Common-space features, on the CPU in float32: whole towers take a data set, heads a feature set.

    Several processes share the work of whole towers. ValueError where student and data do not go together.
    """
    if isinstance(student, TowerStudent) and isinstance(data, ImageTextDataset):
        images, texts = _run_towers(student, data, device, tokens=False)
        return images["features"], texts["features"]
    if not isinstance(student, HeadStudent) or not isinstance(data, FeatureSet):
        kinds = f"{type(student).__name__} cannot encode {type(data).__name__}"
        raise ValueError(f"{kinds}: whole towers take a data set, heads its cached features")
    student.to(device).eval()
    heads = (student.encode_image, data.images[0]), (student.encode_text, data.texts)
    images, texts = ([head(CachedRows(x.to(device))).features.cpu() for x in rows.split(ROWS)] for head, rows in heads)
    return torch.cat(images), torch.cat(texts)


@torch.no_grad()
def encode_tokens(
    student: Student, data: ImageTextDataset | FeatureSet, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Float16 image tokens ``[I, N, W]``, text tokens ``[C, L, W']`` and their mask ``[C, L]``, for re-ranking."""
    if isinstance(data, FeatureSet):
        return data.image_tokens, data.text_tokens, data.text_mask
    images, texts = _run_towers(student, data, device, tokens=True)
    return images["tokens"], texts["tokens"], texts["mask"]


def _run_towers(
    student: TowerStudent, data: ImageTextDataset, device: torch.device | str, *, tokens: bool
) -> tuple[Rows, Rows]:
    """What the student makes of all pictures and captions."""
    student.to(device).eval()

    def work(_rows: Tensor, pixels: Tensor) -> Rows:
        return _in_parts(lambda part: student.encode_image(part.float() / 255, tokens=tokens), pixels.to(device))

    images = _encode_pictures(data, student.image_size, work)
    texts = _encode_texts(student, data.captions, partial(student.encode_text, tokens=tokens), device)
    return _fill(images, len(data)), _fill(texts, len(data.captions))


def _as_rows(features: Tensor, tokens: Tensor | None, mask: Tensor | None = None) -> Rows:
    if tokens is None:
        return {"features": features.float()}
    return {"features": features.float(), "tokens": tokens.half()} | ({} if mask is None else {"mask": mask})


def _in_parts(run: Callable[[Tensor], Outputs], inputs: Tensor) -> Rows:
    """What a tower makes of its inputs, in as many parts as the memory of their device asks for."""

    def compute(chunk_size: int) -> Rows:
        parts = [_as_rows(*run(part)) for part in inputs.split(chunk_size)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    return halve_until_it_fits(compute, len(inputs))


def halve_until_it_fits(compute: Callable[..., Result], rows: int) -> Result:
    """``compute(chunk_size=rows)``, with half the rows each time the device runs out of memory; the same numbers."""
    first = rows = max(1, rows)
    while True:
        try:
            result = compute(chunk_size=rows)
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        else:
            if rows < first:
                say_once(f"{first} rows at once did not fit in memory, {rows} did; the numbers are the same")
            return result
        rows //= 2  # outside the handler, whose traceback keeps tensors alive
        torch.cuda.empty_cache()


def _encode_pictures(
    dataset: ImageTextDataset, size: int, work: Callable[[Tensor, Tensor], Rows]
) -> Iterator[tuple[Tensor, Rows]]:
    """Rows of pictures and what the work makes of their pixels, batch by batch."""
    at_once = max(1, min(PICTURES, PIXELS_AT_ONCE // size**2))
    return shared_work(torch.arange(len(dataset)).split(at_once), lambda rows: dataset.pixels(rows, size), work)


def _encode_texts(
    towers: Towers | TowerStudent, captions: Sequence[str], run: Callable[[Tensor], Outputs], device: torch.device | str
) -> Iterator[tuple[Tensor, Rows]]:
    """Rows of captions and what a tower makes of their token ids; each distinct caption once, the longest first."""
    distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    row_of = torch.tensor([distinct[caption] for caption in captions])
    captions_of = torch.argsort(row_of, stable=True).split(torch.bincount(row_of).tolist())
    token_ids = towers.tokenizer(list(distinct))
    lengths = models.needed_tokens(towers.text, token_ids)
    by_length = torch.argsort(lengths, stable=True).split(CAPTIONS)[::-1]
    read = lambda rows: token_ids[rows, : int(lengths[rows].amax())]  # noqa: E731  # on the host: no GPU is waited for
    for rows, outputs in shared_work(by_length, read, lambda _rows, ids: _in_parts(run, ids.to(device))):
        places = [captions_of[row] for row in rows.tolist()]
        repeats = torch.tensor([len(part) for part in places])
        yield torch.cat(places), {name: value.repeat_interleave(repeats, dim=0) for name, value in outputs.items()}


def _fill(
    parts: Iterable[tuple[Tensor, Rows]],
    total: int,
    create: Callable[[str, tuple[int, ...], Tensor], Tensor] = lambda _name, shape, like: like.new_zeros(shape),
) -> Rows:
    """Put the rows of each part into arrays of zeros; the first part, which holds the longest captions, shapes them."""
    arrays: Rows = {}
    for rows, part in parts:
        arrays = arrays or {name: create(name, (total, *value.shape[1:]), value) for name, value in part.items()}
        for name, value in part.items():
            arrays[name][rows, : value.shape[1]] = value
    return arrays


def _store(folder: Path, parts: Iterable[tuple[Tensor, Rows]], total: int, label: str) -> None:
    """Write ``folder/NAME.npy`` part by part, in the main process alone."""
    folder.mkdir(parents=True)
    needed = 0  # of all arrays: a mapped file takes its room only when it is written

    def create(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        nonlocal needed
        needed, free = needed + total * like[0].nbytes, shutil.disk_usage(folder).free
        if needed > free:  # writing to a mapped file that finds no room would end the process
            sizes = f"need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free"
            raise ValueError(f"{label}: their {name} {sizes}: make room, or choose fewer views or fusion_layers=0")
        return torch.from_numpy(np.lib.format.open_memmap(folder / f"{name}.npy", "w+", like.numpy().dtype, shape))

    if is_main():
        hidden = total < LONG or "RVLR_HEADLESS" in os.environ
        _fill(tqdm(parts, desc=label, unit="batch", disable=hidden, leave=False), total, create)
    else:
        deque(parts, maxlen=0)  # does its share
    for path in folder.iterdir():
        flush(path)


def _open(folder: Path) -> Rows:
    try:
        return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): remove the folder above it and run again") from error
