"""Features of frozen towers, computed once per data set, and common-space features of students."""

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
from tqdm import tqdm

from rvlr_lib import models
from rvlr_lib.config import TrainSettings
from rvlr_lib.data.dataset import ImageTextDataset, augment
from rvlr_lib.disk import flush, save_tensors
from rvlr_lib.models import CachedRows, Student, Towers, TowerStudent
from rvlr_lib.training.processes import is_main, say_once, shared_work

Outputs = Sequence[Any]  # of a tower: features, tokens or None and, for captions, the mask of real tokens
Rows = dict[str, Tensor]  # the same by name, with a row for each picture or caption
Result = TypeVar("Result")
Features = tuple[Tensor, Tensor]  # unit rows of the pictures [I, D] and of the captions [C, D]
PICTURES, CAPTIONS, ROWS = 128, 64, 8192  # batch sizes: pictures, distinct captions, cached rows for heads
PIXELS_AT_ONCE = 16 * 384**2  # a Swin-B at 384 px takes 110 MB of activations per picture
LONG = 2000  # rows from which encoding shows its progress


@dataclass(frozen=True)
class FeatureSet:
    """Cached outputs of frozen towers for the ``I`` pictures and ``C`` captions of a data set, not normalised."""

    images: Tensor  # [V, I, W]; view 0 is plain, the others augmented
    texts: Tensor  # [C, W']
    image_tokens: Tensor | None = None  # [I, N, W] float16 of the plain view
    text_tokens: Tensor | None = None  # [C, L, W'] float16
    text_mask: Tensor | None = None  # bool [C, L], True at real tokens


def mixed_precision(device: torch.device, precision: str) -> torch.autocast:
    """Autocast context for a ``precision``; ``auto`` is bfloat16 on CUDA, float32 elsewhere.

    bfloat16 is 2 to 3 times as fast on newer GPUs and AMD's CPUs, slower by a third to a half on Intel's without AMX,
    and 4 to 11 times as slow on CPUs without AVX-512. Where it does not pay, float32 is used, and a line says so once.
    """
    wanted = precision == "bfloat16" or (precision == "auto" and device.type == "cuda")
    if wanted and not fast_bfloat16(device):
        say_once(f"bfloat16 is slow on this {device.type}: float32 is used, and figures move within their tolerance")
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted and fast_bfloat16(device))


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 pays: on GPUs from Ampere on, and on CPUs with AVX-512 (Intel's need AMX, too)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    cpu: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older versions of torch lack it
    slow = "Intel" in str(cpu.get("cpu_name")) and not cpu["amx_bf16"]
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
    """Store the frozen tower's features of the pictures (``image``) or captions (``text``) of all splits.

    ``SPLIT/features.npy`` is float32: ``[C, W]`` for captions, ``[I, V, W]`` for pictures: the plain view and, for the
    training split, ``views - 1`` augmented ones, drawn with ``seed``, cropped and flipped as ``optim`` says. With
    ``tokens``, ``SPLIT/tokens.npy`` is float16: ``[I, N, W]`` of the plain view, or ``[C, L, W]`` with bool ``mask.npy
    [C, L]``, ``L`` being the longest caption's. Prints how many captions are cut at the tower's context or hardly known
    to it. Several processes share the work. ValueError with the sizes if the disk is too full. ``precision`` as in
    :func:`mixed_precision`.
    """
    pictures = modality == "image"
    tower = (towers.visual if pictures else towers.text).to(device).eval()
    mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (towers.mean, towers.std))
    cast = mixed_precision(device, precision)
    encode_text = cast(partial(models.encode_text_tokens, tower, tokens=tokens, projected=False))

    @cast
    def encode_image(pixels: Tensor, tokens: bool = tokens) -> Outputs:
        normalised = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        return models.encode_image_tokens(tower, normalised, tokens=tokens, projected=False)

    def encode_views(rows: Tensor, pixels: Tensor, views: int) -> Rows:
        pixels = pixels.to(device)
        plain = _in_chunks(encode_image, pixels.float() / 255)
        features = [plain["features"]]
        for view in range(1, views):
            name = f"{seed} {view} {int(rows[0])}".encode()  # one view of the batch that starts with this picture
            digest = hashlib.sha256(len(name).to_bytes(8, "little") + name).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:6]))
            augmented = augment(pixels, generator, scale=optim.crop_scale, flip=optim.flip)
            features.append(_in_chunks(partial(encode_image, tokens=False), augmented)["features"])
        return plain | {"features": torch.stack(features, dim=1)}

    for split, dataset in splits.items():
        if pictures:
            work = partial(encode_views, views=views if split == "train" else 1)
            batches, count = _encode_pictures(dataset, towers.image_size, work), len(dataset)
        else:
            report_cut_captions(towers, dataset)
            batches, count = _encode_captions(towers, dataset.captions, encode_text, device), len(dataset.captions)
        _store(folder / split, batches, count, f"{dataset.name}/{split} {'pictures' if pictures else 'captions'}")


def make_teacher(folder: Path, *, splits: Mapping[str, ImageTextDataset], **options: Any) -> None:
    """Store a teacher's frozen features of one modality, ``<split>.safetensors`` for each split."""
    for split, dataset in splits.items():
        save_tensors(folder / f"{split}.safetensors", {"features": models.teacher_features(dataset=dataset, **options)})


def report_cut_captions(towers: Towers, dataset: ImageTextDataset) -> None:
    """Print once how many captions are cut at the text tower's context, and how many have mostly unknown words."""
    captions, context = dataset.captions, int(towers.tokenizer.context_length)
    lengths, unknown = zip(*models.count_tokens(towers.tokenizer, captions), strict=True)
    cut = f"are longer than {context} tokens and are cut: a larger context_length keeps them complete"
    strange = "consist mostly of words that the text tower does not know: another one may (model, text_weights)"
    for count, fault in (sum(length > context for length in lengths), cut), (sum(unknown), strange):
        if count:
            say_once(f"{dataset.name}/{dataset.split}: {count:,} of {len(captions):,} captions {fault}")


def read_features(image_folder: Path, text_folder: Path, split: str) -> FeatureSet:
    """Open what :func:`encode_frozen` stored, memory-mapped; ValueError if damaged."""
    images, texts = (_open(folder / split) for folder in (image_folder, text_folder))
    tokens = images.get("tokens"), texts.get("tokens"), texts.get("mask")
    return FeatureSet(images["features"].transpose(0, 1), texts["features"], *tokens)


@torch.no_grad()
def encode(student: Student, data: ImageTextDataset | FeatureSet, device: torch.device | str = "cpu") -> Features:
    """Common-space features on the CPU in float32: whole towers take a data set, heads a feature set.

    Several processes share the work of whole towers.
    """
    if isinstance(data, ImageTextDataset):
        images, texts = _run_towers(student, data, device, tokens=False)
        return images["features"], texts["features"]
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
    """The student's outputs for all pictures and for all captions."""
    student.to(device).eval()

    def work(_rows: Tensor, pixels: Tensor) -> Rows:
        return _in_chunks(lambda chunk: student.encode_image(chunk.float() / 255, tokens=tokens), pixels.to(device))

    images = _encode_pictures(data, student.image_size, work)
    texts = _encode_captions(student, data.captions, partial(student.encode_text, tokens=tokens), device)
    return _assemble(images, len(data)), _assemble(texts, len(data.captions))


def _as_rows(features: Tensor, tokens: Tensor | None, mask: Tensor | None = None) -> Rows:
    if tokens is None:
        return {"features": features.float()}
    return {"features": features.float(), "tokens": tokens.half()} | ({} if mask is None else {"mask": mask})


def _in_chunks(tower: Callable[[Tensor], Outputs], inputs: Tensor) -> Rows:
    """Outputs of a tower for its inputs, computed in chunks that fit in the device's memory."""

    def compute(chunk_size: int) -> Rows:
        chunks = [_as_rows(*tower(chunk)) for chunk in inputs.split(chunk_size)]
        return {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}

    return halve_until_it_fits(compute, len(inputs))


def halve_until_it_fits(compute: Callable[..., Result], rows: int) -> Result:
    """Return ``compute(chunk_size=rows)``, halving ``rows`` each time the device runs out of memory; same numbers."""
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
        rows //= 2  # outside the handler, since its traceback keeps tensors alive
        torch.cuda.empty_cache()


def _encode_pictures(
    dataset: ImageTextDataset, size: int, work: Callable[[Tensor, Tensor], Rows]
) -> Iterator[tuple[Tensor, Rows]]:
    """Row numbers of pictures, and the result of ``work`` on their pixels, batch by batch."""
    batch_size = max(1, min(PICTURES, PIXELS_AT_ONCE // size**2))
    return shared_work(torch.arange(len(dataset)).split(batch_size), lambda rows: dataset.pixels(rows, size), work)


def _encode_captions(
    towers: Towers | TowerStudent, captions: Sequence[str], encode_text: Callable[[Tensor], Outputs], device: Any
) -> Iterator[tuple[Tensor, Rows]]:
    """Row numbers of captions and the text tower's outputs for them; each distinct caption once, the longest first."""
    distinct = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    number_of = torch.tensor([distinct[caption] for caption in captions])
    captions_of = torch.argsort(number_of, stable=True).split(torch.bincount(number_of).tolist())
    token_ids = towers.tokenizer(list(distinct))
    lengths = models.needed_tokens(towers.text, token_ids)
    by_length = torch.argsort(lengths, stable=True).split(CAPTIONS)[::-1]
    read = lambda numbers: token_ids[numbers, : int(lengths[numbers].amax())]  # noqa: E731  # on the CPU: no waiting
    for numbers, outputs in shared_work(by_length, read, lambda _, ids: _in_chunks(encode_text, ids.to(device))):
        rows = [captions_of[number] for number in numbers.tolist()]
        repeats = torch.tensor([len(equal) for equal in rows])
        yield torch.cat(rows), {name: value.repeat_interleave(repeats, dim=0) for name, value in outputs.items()}


def _assemble(
    batches: Iterable[tuple[Tensor, Rows]],
    total: int,
    create: Callable[[str, tuple[int, ...], Tensor], Tensor] = lambda _name, shape, like: like.new_zeros(shape),
) -> Rows:
    """Write each batch into its rows of arrays of zeros, shaped by the first batch, which has the longest captions."""
    arrays: Rows = {}
    for rows, batch in batches:
        arrays = arrays or {name: create(name, (total, *value.shape[1:]), value) for name, value in batch.items()}
        for name, value in batch.items():
            arrays[name][rows, : value.shape[1]] = value
    return arrays


def _store(folder: Path, batches: Iterable[tuple[Tensor, Rows]], total: int, label: str) -> None:
    """Write ``folder/NAME.npy`` batch by batch, in the main process alone."""
    folder.mkdir(parents=True)
    needed = 0  # bytes of all arrays: a mapped file takes up space only when it is written

    def create(name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        nonlocal needed
        needed, free = needed + total * like[0].nbytes, shutil.disk_usage(folder).free
        if needed > free:  # writing to a mapped file without space left would kill the process
            sizes = f"need {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are free"
            raise ValueError(f"{label}: their {name} {sizes}: free space, or set fewer views or fusion_layers=0")
        return torch.from_numpy(np.lib.format.open_memmap(folder / f"{name}.npy", "w+", like.numpy().dtype, shape))

    if is_main():
        hidden = total < LONG or "RVLR_HEADLESS" in os.environ
        _assemble(tqdm(batches, desc=label, unit="batch", disable=hidden, leave=False), total, create)
    else:
        deque(batches, maxlen=0)  # does its share of the work
    for path in folder.iterdir():
        flush(path)


def _open(folder: Path) -> Rows:
    try:
        return {path.stem: torch.from_numpy(np.load(path, mmap_mode="c")) for path in folder.iterdir()}
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{folder} cannot be read ({error}): remove the folder above it and run again") from error
