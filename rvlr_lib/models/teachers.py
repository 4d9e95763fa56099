"""Teachers: frozen unimodal features of a data set, named by one word of the settings.

``model.image_teacher`` and ``model.text_teacher`` take

- ``towers``: the default towers' own features before any projection, 1280 of pictures and 384 of captions wide;
- ``timm:NAME:WEIGHTS``: a timm image model; weights are a file, or ``timm`` for its own tag;
- ``open_clip:NAME:WEIGHTS``: a tower of an open_clip model; weights are a tag or a file; ``local-dir:PATH`` likewise;
- ``sentence:FOLDER``: a Hugging Face encoder, local or a package with a folder ``model``; mean of its tokens;
- ``arrays:FILE.npz``: arrays ``ids`` and ``features``; ids are ``dataset.image_ids`` or ``dataset.caption_ids``;
- ``lite2``: EfficientNet-Lite2 of an optional package, for pictures: a teacher that is not where the student starts;
- ``weak``: colour histograms of the picture's quarters, or counts of words;
- ``random``: the default image tower with random weights, or a random projection of the counts of words;
- ``oracle``: the true factor counts of scenes.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.models.pretrained import PIXELS, load_lite, load_text, load_timm_trunk, package_folder
from rvlr_lib.models.towers import DEFAULT, Towers, build_towers, encode_text_tokens, needed_tokens
from rvlr_lib.similarity import unit_rows

BOTH = ("towers", "arrays", "open_clip", "local-dir", "weak", "random", "oracle")
TEACHERS = {"image": (*BOTH, "timm", "lite2"), "text": (*BOTH, "sentence")}
BATCH, SIZE, WORD_BINS, RANDOM_WIDTH = 64, 96, 1024, 384

default_towers = lru_cache(maxsize=1)(build_towers)


@torch.no_grad()
def teacher_features(spec: str, modality: str, dataset: ImageTextDataset, device: torch.device | str = "cpu") -> Tensor:
    """Features of the pictures (``image``) or captions (``text``) by a teacher: unit rows ``[N, W]``, float32, CPU.

    ValueError: an unknown name, one of the other modality, weights that are not there, arrays that do not fit the data
    set, or the oracle for data whose factors are not known.
    """
    kind, _, rest = spec.partition(":")
    if kind not in TEACHERS[modality] or bool(rest) != (kind not in ("towers", "lite2", "weak", "random", "oracle")):
        valid = ", ".join(TEACHERS[modality])
        raise ValueError(f"{modality}_teacher {spec!r} is unknown; valid: {valid} (arrays:FILE and the like)")
    if kind == "arrays":
        return _stored_features(Path(rest), modality, dataset)
    if kind == "oracle":
        if dataset.scene is None:
            raise ValueError(f"{dataset.name} has no known factors: the oracle teacher is for scenes")
        whole = dataset.scene.scene if modality == "image" else dataset.scene.told_of  # or what whole captions told
        return unit_rows(torch.from_numpy(whole.counts()))
    if modality == "text" and kind in ("weak", "random"):
        words = _words(dataset)
        projection = torch.randn(WORD_BINS, RANDOM_WIDTH, generator=torch.Generator().manual_seed(0))
        return unit_rows(words @ projection) if kind == "random" else words
    if modality == "image":
        encode, size = (_colours, SIZE) if kind == "weak" else _pictures(spec, device)
        batches = torch.arange(len(dataset)).split(BATCH)
        return unit_rows(torch.cat([encode(dataset.pixels(rows, size)).float().cpu() for rows in batches]))
    encode = _sentences(rest, device) if kind == "sentence" else _text_tower(spec, device)
    distinct = sorted(dict.fromkeys(dataset.captions), key=len)  # each is encoded once
    row = {caption: number for number, caption in enumerate(distinct)}
    parts = [encode(distinct[start : start + BATCH]).float().cpu() for start in range(0, len(distinct), BATCH)]
    return unit_rows(torch.cat(parts)[[row[caption] for caption in dataset.captions]])


def _towers(spec: str) -> Towers:
    kind, _, rest = spec.partition(":")
    if kind == "towers":
        return default_towers(DEFAULT)
    name, _, weights = rest.partition(":")
    if kind == "open_clip" and not weights:
        raise ValueError(f"teacher {spec!r} names no weights: open_clip:NAME:WEIGHTS, a tag or a file")
    return build_towers(name, weights) if kind == "open_clip" else build_towers(spec)


def _pictures(spec: str, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function from uint8 pixels ``[B, 3, S, S]`` to features, and ``S``."""
    import timm

    kind, _, rest = spec.partition(":")
    if kind in ("lite2", "random"):
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            tower = timm.create_model(f"tf_efficientnet_lite{2 if kind == 'lite2' else 0}", num_classes=0)
        if kind == "lite2":
            load_lite(tower, kind)
        size, (mean, std) = SIZE, PIXELS
    elif kind == "timm":
        name, _, weights = rest.partition(":")
        if not weights or not timm.is_model(name):
            fault = "give timm:NAME:WEIGHTS, a name of timm.list_models() and a file or 'timm'"
            raise ValueError(f"teacher {spec!r}: {fault}")
        tower = timm.create_model(name, num_classes=0)
        try:
            load_timm_trunk(tower, name, weights)
        except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
            raise ValueError(f"weights of teacher {spec!r} cannot be loaded: {error}") from error
        config = timm.data.resolve_model_data_config(tower)
        size, mean, std = config["input_size"][-1], config["mean"], config["std"]
    else:
        towers = _towers(spec)
        tower = towers.visual.trunk if kind == "towers" else towers.visual
        size, mean, std = towers.image_size, towers.mean, towers.std
    tower = tower.to(device).eval()
    low, high = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))

    def encode(pixels: Tensor) -> Tensor:
        normal = (pixels.to(device).float() / 255 - low) / high
        return tower(normal.contiguous(memory_format=torch.channels_last))

    return encode, size


def _text_tower(spec: str, device: torch.device | str) -> Callable[[Sequence[str]], Tensor]:
    towers = _towers(spec)
    text, wanted = towers.text.to(device).eval(), {"tokens": False, "projected": spec != "towers"}

    def encode(captions: Sequence[str]) -> Tensor:
        ids = towers.tokenizer(captions)
        return encode_text_tokens(text, ids[:, : needed_tokens(text, ids).amax()].to(device), **wanted)[0]

    return encode


def _sentences(where: str, device: torch.device | str) -> Callable[[Sequence[str]], Tensor]:
    """A Hugging Face encoder from a local folder: mean of its real tokens, as sentence encoders do."""
    from transformers import AutoTokenizer

    package = package_folder(where) if where.isidentifier() and not Path(where).exists() else None
    folder = package / "model" if package else Path(where)
    model = load_text(folder).to(device).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    def encode(captions: Sequence[str]) -> Tensor:
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=256, return_tensors="pt").to(device)
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)

    return encode


def _colours(pixels: Tensor) -> Tensor:
    """Square roots of a 4 x 4 x 4 colour histogram of each quarter of a picture, ``[B, 256]``."""
    red, green, blue = (pixels.long() // 64).unbind(1)
    half = torch.arange(SIZE) // (SIZE // 2)
    bins = (half[:, None] * 2 + half) * 64 + red * 16 + green * 4 + blue
    counts = torch.zeros(len(pixels), 256)
    return counts.scatter_add_(1, bins.flatten(1), torch.ones(len(pixels), SIZE * SIZE)).sqrt()


def _words(dataset: ImageTextDataset) -> Tensor:
    """Counts of words in 1,024 bins by their CRC-32, unit rows [C, 1024]."""
    counts = torch.zeros(len(dataset.captions), WORD_BINS)
    for row, caption in enumerate(dataset.captions):
        for word in caption.split():
            counts[row, zlib.crc32(word.encode()) % WORD_BINS] += 1
    return unit_rows(counts)


def _stored_features(path: Path, modality: str, dataset: ImageTextDataset) -> Tensor:
    """Unit rows of a ``.npz`` for the items of a data set, found by id; ValueError names file, key and id."""
    if not path.is_file():
        raise ValueError(f"teacher arrays {path} are not there")
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids, features = stored["ids"].astype(str).tolist(), stored["features"]
    except (ValueError, OSError, KeyError, EOFError, AttributeError, TypeError) as error:
        fix = "save it with np.savez(file, ids=..., features=...), ids as text and features as numbers [N, D]"
        raise ValueError(f"{path} cannot be used ({error}): {fix}") from None
    if features.ndim != 2 or len(ids) != len(features) or features.dtype.kind not in "fiu":
        shape = f"{features.dtype} {list(features.shape)}"
        raise ValueError(f"{path}: features are {shape} for {len(ids)} ids; expected numbers [N, D], a row for each id")
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) < len(ids):
        raise ValueError(f"{path}: duplicate id {next(name for row, name in enumerate(ids) if rows[name] != row)!r}")
    wanted = dataset.image_ids if modality == "image" else dataset.caption_ids
    if missing := [name for name in wanted if name not in rows]:
        of = f"{len(missing)} of {len(wanted)} {modality} ids of {dataset.name}/{dataset.split}"
        raise ValueError(f"{path} has no row for {of}, {missing[0]!r} first; its ids look like {ids[:2]}")
    chosen = torch.from_numpy(features[[rows[name] for name in wanted]].astype(np.float32))
    faulty = torch.nonzero(~(chosen.isfinite().all(dim=1) & (chosen.norm(dim=1) > 0))).flatten()
    if len(faulty):
        raise ValueError(f"{path}: the row of id {wanted[int(faulty[0])]!r} is zero or not finite")
    return unit_rows(chosen)
