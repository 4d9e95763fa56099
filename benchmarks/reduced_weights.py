"""Write small copies of the default towers' weights, for machines to which little can be transferred.

``python -m benchmarks.reduced_weights FOLDER [--captions FILE]`` writes ``FOLDER/lite0.safetensors`` (float16, 7 MB)
and ``FOLDER/text`` (MiniLM-L6 in float16, 24 MB, its vocabulary cut to the tokens in the captions of scenes, of emoji
and of a text file with one caption per line). Load them with
``build_towers("effnet_minilm", image_weights="FOLDER/lite0.safetensors", text_weights="FOLDER/text")``. Captions with
other words are tokenized differently than with the full vocabulary.
"""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from rvlr_lib.data import load_dataset
from rvlr_lib.disk import save_tensors, sha256
from rvlr_lib.models import Towers, build_towers, encode_text_tokens
from rvlr_lib.similarity import unit_rows


def write_reduced(towers: Towers, captions: Iterable[str], folder: Path) -> tuple[Path, Path]:
    """Write reduced copies and leave the towers unchanged.

    Returns:
        The weight file of the image tower and the folder of the text tower.
    """
    image, text = folder / "lite0.safetensors", folder / "text"
    weights = towers.visual.trunk.state_dict()
    save_tensors(image, {name: x.half() if x.is_floating_point() else x for name, x in weights.items()})
    tokenizer, model = towers.tokenizer.tokenizer, towers.text.transformer
    ids = {number for row in tokenizer(list(captions))["input_ids"] for number in row} | set(tokenizer.all_special_ids)
    kept = sorted(ids)  # sorted: padding stays 0; longest-match-first tokenization finds the same pieces
    vocabulary = {token: row for row, token in enumerate(tokenizer.convert_ids_to_tokens(kept))}
    cut = type(tokenizer)(vocab=vocabulary, do_lower_case=True, model_max_length=tokenizer.model_max_length)
    cut.save_pretrained(text)
    state = {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()}
    name = "embeddings.word_embeddings.weight"
    state[name] = state[name][kept]
    config = type(model.config)(**model.config.to_dict() | {"vocab_size": len(kept), "dtype": "float16"})
    type(model)(config, add_pooling_layer=False).half().save_pretrained(text, state_dict=state)
    return image, text


def difference(original: Towers, reduced: Towers, captions: Sequence[str]) -> float:
    """The largest absolute difference between entries of the unit features of captions."""
    features = []
    for towers in (original, reduced):
        text = towers.text.eval()
        with torch.inference_mode():
            batches = [towers.tokenizer(captions[row : row + 64]) for row in range(0, len(captions), 64)]
            rows = [encode_text_tokens(text, ids, tokens=False, projected=False)[0] for ids in batches]
        features.append(unit_rows(torch.cat(rows)))
    return float((features[0] - features[1]).abs().max())


def known_captions() -> list[str]:
    """The distinct captions of all splits of scenes and emoji, shortest first."""
    sets = [load_dataset(name, split=split) for name in ("scenes", "emoji") for split in ("train", "val", "test")]
    return sorted({caption for dataset in sets for caption in dataset.captions}, key=len)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the copies and return the exit status: 1 if caption features differ by more than float16 explains."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reduced_weights", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--captions", type=Path, help="text file of more captions whose words to keep, one per line")
    args = parser.parse_args(arguments)
    captions = known_captions() + (args.captions.read_text("utf-8").splitlines() if args.captions else [])
    towers = build_towers()
    image, text = write_reduced(towers, captions, args.folder)
    for path in (image, text / "model.safetensors", text / "tokenizer.json"):
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, SHA-256 {sha256(path)}")
    reduced = build_towers(image_weights=str(image), text_weights=str(text))
    largest = difference(towers, reduced, captions[:: max(1, len(captions) // 2000)])
    print(f"largest difference between entries of the captions' unit features: {largest:.1e}")
    return int(largest > 2e-3)


if __name__ == "__main__":
    raise SystemExit(main())
