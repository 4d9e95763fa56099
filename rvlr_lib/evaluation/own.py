"""Features of one's own model: arrays in files, or a data set encoded by an open_clip model as it is."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rvlr_lib.data import ImageTextDataset, clean_caption, load_dataset
from rvlr_lib.data.dataset import ArraySource

FORMATS = (".npy", ".npz", ".pt", ".pth", ".safetensors")


def read_features(image_path: Path, text_path: Path, captions_path: Path) -> tuple[ImageTextDataset, Tensor, Tensor]:
    """Feature arrays and captions of one's own model.

    Args:
        image_path: ``[I, D]``: ``.npy``, or ``.npz``, ``.pt``, ``.safetensors`` with one array.
        text_path: ``[C, D]`` likewise, the captions of the first picture first, then those of the second, and so on.
        captions_path: JSON, a list with one entry per picture: a caption, a list of captions, or an object with such
            an entry ``caption``.

    Raises:
        ValueError: a file that cannot be read or does not fit the others; names it and the shapes.
    """
    arrays = [read_array(Path(path)) for path in (image_path, text_path)]
    captions = _captions(Path(captions_path))
    counts = [len(each) for each in captions]
    if len(captions) != len(arrays[0]) or sum(counts) != len(arrays[1]):
        raise ValueError(
            f"{captions_path} holds {len(captions)} pictures and {sum(counts)} captions, but there are "
            f"{len(arrays[0])} rows in {image_path} and {len(arrays[1])} in {text_path}"
        )
    cleaned = [clean_caption(caption) for each in captions for caption in each]
    if not all(cleaned):
        raise ValueError(f"{captions_path}: caption {cleaned.index('')} has no letter or digit; give it words")
    dataset = ImageTextDataset(
        name=Path(captions_path).stem,
        split="test",
        image_ids=[str(row) for row in range(len(captions))],
        captions=cleaned,
        caption_image=np.repeat(np.arange(len(captions)), counts),
        source=ArraySource(np.zeros((len(captions), 1, 1, 3), dtype=np.uint8)),
    )
    return dataset, arrays[0], arrays[1]


def read_array(path: Path) -> Tensor:
    """Floating-point rows ``[N, D]`` from a file, as float32.

    Raises:
        ValueError: whatever is wrong with the file, in one line that names it and the way out.
    """
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path} is no feature file: give one of {', '.join(FORMATS)}")
    try:
        found = _load(path)
    except Exception as error:  # loaders raise what they like: cut files, pickles, bad headers, no memory
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no array of numbers ({reason}): save rows [N, D] with numpy.save") from None
    if isinstance(found, Mapping):
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} arrays ({', '.join(map(str, found))}): save the one to audit")
        found = next(iter(found.values()))
    if not isinstance(found, Tensor) or found.ndim != 2 or not found.is_floating_point() or not found.numel():
        what = f"{found.dtype} {list(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{path} holds {what}, expected floating-point rows [N, D]")
    faulty = ~found.isfinite().all(dim=1)
    if faulty.any():
        raise ValueError(f"{path}: {int(faulty.sum())} rows are not finite, row {int(faulty.nonzero()[0])} first")
    return found.detach().float().contiguous()


def _load(path: Path) -> Any:
    if path.suffix.lower() == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix.lower() in (".pt", ".pth"):
        return torch.load(path, map_location="cpu", weights_only=True)
    found = np.load(path, allow_pickle=False)
    if isinstance(found, np.ndarray):
        return _as_tensor(found)
    with found:
        return {name: _as_tensor(found[name]) for name in found.files}


def _as_tensor(array: np.ndarray) -> Tensor:
    """A tensor of native byte order; an array of what torch does not know is left to the check of its kind."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("=")))


def encode_with_model(
    name_or_path: str,
    model: str,
    pretrained: str | None,
    *,
    split: str = "test",
    image_root: str | None = None,
    device: torch.device | str = "cpu",
) -> tuple[ImageTextDataset, Tensor, Tensor]:
    """A data set and its features from an open_clip model as it is."""
    from rvlr_lib.models import build_towers, tokenize

    dataset = load_dataset(name_or_path, split=split, image_root=image_root)
    towers = build_towers(model, pretrained)
    if not pretrained and not model.startswith("local-dir:"):
        print(f"{model} has random weights in its common space: give --pretrained to audit a trained model")
    visual, text = towers.visual.to(device).eval(), towers.text.to(device).eval()
    mean, std = (torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (towers.mean, towers.std))
    token_ids = tokenize(towers.tokenizer, dataset.captions)

    def images(rows: Tensor) -> Tensor:
        pixels = dataset.pixels(rows, towers.image_size).to(device).float() / 255
        return visual((pixels - mean) / std).float().cpu()

    with torch.inference_mode():
        at_once = max(1, 16 * 384**2 // towers.image_size**2)
        pictures = torch.cat([images(rows) for rows in torch.arange(len(dataset)).split(at_once)])
        captions = torch.cat([text(ids.to(device)).float().cpu() for ids in token_ids.split(512)])
    return dataset, pictures, captions


def _captions(path: Path) -> list[list[str]]:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): give a list with an entry per picture") from error
    if not isinstance(entries, list):
        raise ValueError(f"{path} holds no list with one entry per picture")
    found: list[Any] = []
    for number, entry in enumerate(entries):
        own = entry.get("caption") if isinstance(entry, dict) else entry
        found.append([own] if isinstance(own, str) else own)
        if not isinstance(found[-1], list) or not found[-1] or not all(isinstance(text, str) for text in found[-1]):
            raise ValueError(
                f"{path}: entry {number} is no caption, no list of captions, and has no 'caption': {entry!r}"
            )
    return found
