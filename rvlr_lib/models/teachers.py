"""Teachers: frozen unimodal features of a data set, each specified by one string in the settings.

``model.image_teacher`` and ``model.text_teacher`` accept

- ``towers``: features of the default towers before projection, of width 1280 (pictures) and 384 (captions);
- ``timm:NAME:WEIGHTS``: a timm image model; the weights are a file, or ``timm`` for timm's own tag;
- ``open_clip:NAME:WEIGHTS``: a tower of an open_clip model; the weights are a tag or a file; also ``local-dir:PATH``;
- ``sentence:FOLDER``: a Hugging Face encoder, a local folder or a package with a folder ``model``; mean of its tokens;
- ``arrays:FILE.npz``: arrays ``ids`` (``dataset.image_ids`` or ``dataset.caption_ids``) and ``features``;
- ``lite2``: EfficientNet-Lite2 from an optional package, for pictures: a teacher the student does not start from;
- ``weak``: colour histograms of picture quarters, or word counts;
- ``random``: the default image tower with random weights, or a random projection of word counts;
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
    """A teacher's features of the pictures (``image``) or captions (``text``): unit rows ``[N, W]``, float32, CPU.

    ValueError for an unknown teacher or one of the other modality, missing weights, arrays that do not match the data
    set, or the oracle for data without known factors.
    """
    kind, _, rest = spec.partition(":")
    if kind not in TEACHERS[modality] or bool(rest) != (kind not in ("towers", "lite2", "weak", "random", "oracle")):
        valid = ", ".join(TEACHERS[modality])
        raise ValueError(f"{modality}_teacher {spec!r} is unknown; valid: {valid} (with arguments as in arrays:FILE)")
    if kind == "arrays":
        return _stored_features(Path(rest), modality, dataset)
    if kind == "oracle":
        if dataset.scene is None:
            raise ValueError(f"{dataset.name} has no known factors: the oracle teacher is for scenes")
        facts = dataset.scene.scene if modality == "image" else dataset.scene.described  # of the complete scenes
        return unit_rows(torch.from_numpy(facts.counts()))
    if modality == "text" and kind in ("weak", "random"):
        counts = _word_counts(dataset)
        projection = torch.randn(WORD_BINS, RANDOM_WIDTH, generator=torch.Generator().manual_seed(0))
        return unit_rows(counts @ projection) if kind == "random" else counts
    if modality == "image":
        encode, size = (_colour_histograms, SIZE) if kind == "weak" else _image_encoder(spec, device)
        batches = torch.arange(len(dataset)).split(BATCH)
        return unit_rows(torch.cat([encode(dataset.pixels(rows, size)).float().cpu() for rows in batches]))
    encode = _sentence_encoder(rest, device) if kind == "sentence" else _tower_text_encoder(spec, device)
    distinct = sorted(dict.fromkeys(dataset.captions), key=len)  # encode each caption once
    row_of = {caption: row for row, caption in enumerate(distinct)}
    batches = [encode(distinct[start : start + BATCH]).float().cpu() for start in range(0, len(distinct), BATCH)]
    return unit_rows(torch.cat(batches)[[row_of[caption] for caption in dataset.captions]])


def _towers(spec: str) -> Towers:
    kind, _, rest = spec.partition(":")
    if kind == "towers":
        return default_towers(DEFAULT)
    name, _, weights = rest.partition(":")
    if kind == "open_clip" and not weights:
        raise ValueError(f"teacher {spec!r} names no weights: give open_clip:NAME:WEIGHTS with a tag or a file")
    return build_towers(name, weights) if kind == "open_clip" else build_towers(spec)


def _image_encoder(spec: str, device: torch.device | str) -> tuple[Callable[[Tensor], Tensor], int]:
    """A function that maps uint8 pixels ``[B, 3, S, S]`` to features, and ``S``."""
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
            way_out = "give timm:NAME:WEIGHTS with a name from timm.list_models() and a file or 'timm'"
            raise ValueError(f"teacher {spec!r}: {way_out}")
        tower = timm.create_model(name, num_classes=0)
        try:
            load_timm_trunk(tower, name, weights)
        except Exception as error:  # missing file, other architecture, refused pickle, no network
            raise ValueError(f"weights of teacher {spec!r} cannot be loaded: {error}") from error
        config = timm.data.resolve_model_data_config(tower)
        size, mean, std = config["input_size"][-1], config["mean"], config["std"]
    else:
        towers = _towers(spec)
        tower = towers.visual.trunk if kind == "towers" else towers.visual
        size, mean, std = towers.image_size, towers.mean, towers.std
    tower = tower.to(device).eval()
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))

    def encode(pixels: Tensor) -> Tensor:
        normalised = (pixels.to(device).float() / 255 - mean) / std
        return tower(normalised.contiguous(memory_format=torch.channels_last))

    return encode, size


def _tower_text_encoder(spec: str, device: torch.device | str) -> Callable[[Sequence[str]], Tensor]:
    towers = _towers(spec)
    text, options = towers.text.to(device).eval(), {"tokens": False, "projected": spec != "towers"}

    def encode(captions: Sequence[str]) -> Tensor:
        ids = towers.tokenizer(captions)
        return encode_text_tokens(text, ids[:, : needed_tokens(text, ids).amax()].to(device), **options)[0]

    return encode


def _sentence_encoder(where: str, device: torch.device | str) -> Callable[[Sequence[str]], Tensor]:
    """A Hugging Face encoder from a folder or package: the mean of its real tokens, as in sentence encoders."""
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


def _colour_histograms(pixels: Tensor) -> Tensor:
    """Square roots of a 4 x 4 x 4 colour histogram of each quarter of a picture, ``[B, 256]``."""
    red, green, blue = (pixels.long() // 64).unbind(1)
    half = torch.arange(SIZE) // (SIZE // 2)
    bins = (half[:, None] * 2 + half) * 64 + red * 16 + green * 4 + blue
    counts = torch.zeros(len(pixels), 256)
    return counts.scatter_add_(1, bins.flatten(1), torch.ones(len(pixels), SIZE * SIZE)).sqrt()


def _word_counts(dataset: ImageTextDataset) -> Tensor:
    """Word counts in 1,024 bins by CRC-32, as unit rows ``[C, 1024]``."""
    counts = torch.zeros(len(dataset.captions), WORD_BINS)
    for row, caption in enumerate(dataset.captions):
        for word in caption.split():
            counts[row, zlib.crc32(word.encode()) % WORD_BINS] += 1
    return unit_rows(counts)


def _stored_features(path: Path, modality: str, dataset: ImageTextDataset) -> Tensor:
    """Unit rows of a ``.npz`` for the items of a data set, matched by id; ValueError names file, key and id."""
    if not path.is_file():
        raise ValueError(f"{path}, the arrays of a teacher, is missing")
    try:
        with np.load(path, allow_pickle=False) as stored:
            ids, features = stored["ids"].astype(str).tolist(), stored["features"]
    except (ValueError, OSError, KeyError, EOFError, AttributeError, TypeError) as error:
        way_out = "save it with np.savez(file, ids=..., features=...), ids as text and features as numbers [N, D]"
        raise ValueError(f"{path} cannot be used ({error}): {way_out}") from None
    if features.ndim != 2 or len(ids) != len(features) or features.dtype.kind not in "fiu":
        shape = f"{features.dtype} {list(features.shape)}"
        raise ValueError(f"{path}: features are {shape} for {len(ids)} ids; expected numbers [N, D], one row per id")
    row_of = {name: row for row, name in enumerate(ids)}
    if len(row_of) < len(ids):
        raise ValueError(f"{path}: duplicate id {next(name for row, name in enumerate(ids) if row_of[name] != row)!r}")
    item_ids = dataset.image_ids if modality == "image" else dataset.caption_ids
    if missing := [name for name in item_ids if name not in row_of]:
        count = f"{len(missing)} of {len(item_ids)} {modality} ids of {dataset.name}/{dataset.split}"
        raise ValueError(f"{path} has no row for {count}, such as {missing[0]!r}; its ids look like {ids[:2]}")
    rows = torch.from_numpy(features[[row_of[name] for name in item_ids]].astype(np.float32))
    faulty = torch.nonzero(~(rows.isfinite().all(dim=1) & (rows.norm(dim=1) > 0))).flatten()
    if len(faulty):
        raise ValueError(f"{path}: the row of id {item_ids[int(faulty[0])]!r} is zero or not finite")
    return unit_rows(rows)
