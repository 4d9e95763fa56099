"""Image and text towers of open_clip, with token outputs and padding that costs nothing."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rvlr_lib.models.pretrained import PIXELS, load_lite, load_text, load_timm_trunk, weight_file

ARCHITECTURES = Path(__file__).parent / "architectures"
DEFAULT = "effnet_minilm"


@dataclass(frozen=True)
class Towers:
    """The two towers of an open_clip model and how their inputs are made; our pictures are always resized bicubic."""

    visual: nn.Module  # ends in the projection to the common space, as text does
    text: nn.Module
    tokenizer: Any  # list of captions -> token ids [n, context], int64, what exceeds the context is cut
    image_size: int  # side of the square pictures, in pixels
    mean: tuple[float, ...]  # of each channel of pixels in 0..1, as std is
    std: tuple[float, ...]
    embed_dim: int  # width of the common space
    name: str  # what was asked for, ``model`` or ``model:weights``
    config: dict[str, Any]  # open_clip's configuration of the model


def build_towers(
    model: str = DEFAULT,
    pretrained: str | None = None,
    *,
    seed: int = 0,
    image_weights: str | None = None,
    text_weights: str | None = None,
    text_layers: int = 0,
    context_length: int = 0,
    image_size: int = 0,
) -> Towers:
    """Build the towers of any open_clip model. What is asked for and missing is an error, never a random start.

    They come in evaluation mode. ValueError for a name that open_clip does not know, an option that does not fit the
    model, or weights that are missing, have another SHA-256 or are of another architecture.

    Args:
        model: ``effnet_minilm`` (EfficientNet-Lite0 and MiniLM-L6 from installed packages, their projections random),
            ``swin_b384_bert`` (the paper's pair), any open_clip model name, or ``local-dir:PATH``.
        pretrained: an open_clip pretrained tag or a weight file; None or "" starts at random.
        seed: of the random initialisation.
        image_weights: weight file of a timm image tower, in any precision, or ``timm`` for its own tag.
        text_weights: folder of a Hugging Face text tower: ``config.json``, a tokenizer and ``model.safetensors``.
        text_layers: keep only the first layers of such a text tower; 0 keeps all.
        context_length, image_size: tokens of a caption and pixels of a picture's side; 0 is the model's own.
    """
    import open_clip

    config = model_config(model, context_length)
    timm_name, text = config.get("vision_cfg", {}).get("timm_model_name"), config["text_cfg"]
    default, whole = model == DEFAULT and not pretrained, bool(pretrained) or ":" in model
    hugging_face = text.get("hf_model_name")
    if image_weights and not timm_name:
        raise ValueError(f"image_weights={image_weights!r}: the image tower of {model!r} is not timm's; use pretrained")
    if (text_weights or text_layers) and not hugging_face:
        raise ValueError(f"text_weights and text_layers: the text tower of {model!r} is not of Hugging Face")
    folder = text_weights or _text_folder(model, text)
    if hugging_face and not folder and not whole:
        raise ValueError(f"model {model!r} needs its text tower: text_weights, a folder of {hugging_face}")
    own = {"hf_model_name": folder, "hf_model_pretrained": not whole} if folder else {}
    options = {"text_cfg": text | own, "force_image_size": image_size or None, "pretrained": pretrained or None}
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(seed)  # the CPU's: a GPU's own generator stays as it was
        try:
            if text_weights:
                load_text(text_weights)  # which open_clip fills up at random
            clip = open_clip.create_model(model, force_custom_text=True, require_pretrained=whole, **options)
            if image_weights:
                load_timm_trunk(clip.visual.trunk, timm_name, image_weights)
            elif default:
                load_lite(clip.visual.trunk, "lite0")
            tokenizer = _tokenizer(model, folder, text)
        except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
            asked = pretrained or image_weights or text_weights
            raise ValueError(f"weights {asked!r} of model {model!r} cannot be loaded: {error}") from error
    clip.float().eval()
    if text_layers:
        layers = clip.text.transformer.encoder.layer
        if text_layers > len(layers):
            raise ValueError(f"text_layers={text_layers}: the text tower of {model!r} has {len(layers)} layers")
        clip.text.transformer.encoder.layer = layers[:text_layers]
    pixels = dict(clip.visual.preprocess_cfg)
    if timm_name and not whole:  # without weights of a whole CLIP a timm tower brings its own pixel statistics
        pixels |= {key: clip.visual.trunk.pretrained_cfg[key] for key in ("mean", "std")}
    mean, std = PIXELS if model == DEFAULT else (tuple(pixels["mean"]), tuple(pixels["std"]))
    asked = pretrained, image_weights or (default and "lite0"), text_weights or (default and "minilm")
    name = model if ":" in model else f"{model}:{'+'.join(part for part in asked if part) or 'random'}"
    size = pixels["size"] if isinstance(pixels["size"], int) else pixels["size"][0]
    return Towers(clip.visual, clip.text, tokenizer, size, mean, std, config["embed_dim"], name, config)


def model_config(model: str, context_length: int = 0) -> dict[str, Any]:
    """open_clip's configuration of a model, ours among them; 0 keeps the model's own context length."""
    import open_clip

    open_clip.add_model_config(ARCHITECTURES)
    if not model.startswith(("local-dir:", "hf-hub:")) and model not in open_clip.list_models():
        raise ValueError(f"unknown model {model!r}: use {DEFAULT}, local-dir:PATH or one of open_clip.list_models()")
    try:
        config = open_clip.get_model_config(model) or {}
        config["text_cfg"]["context_length"] = context_length or config["text_cfg"].get("context_length", 77)
        return config
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model {model!r} cannot be loaded: {error}") from error


def _text_folder(model: str, text: dict[str, Any]) -> str | None:
    """Where a Hugging Face text tower lies: in its package, or in an exported model's own folder, wherever moved."""
    if model == DEFAULT:
        return str(weight_file("minilm").parent)
    own = Path(model.removeprefix("local-dir:")) if model.startswith("local-dir:") and "hf_model_name" in text else None
    return str(own) if own and (own / "config.json").is_file() else None


def _tokenizer(model: str, folder: str | None, text: dict[str, Any]) -> Any:
    import open_clip

    if folder:
        return open_clip.tokenizer.HFTokenizer(folder, context_length=text["context_length"], local_files_only=True)
    return open_clip.get_tokenizer(model, context_length=text["context_length"])


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, and no warning that random weights are random: the name of the towers says so."""
    from transformers.utils import logging as hugging_face

    progress = hugging_face.is_progress_bar_enabled()
    logging.disable(logging.WARNING)
    hugging_face.disable_progress_bar()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        if progress:
            hugging_face.enable_progress_bar()


def token_counter(model: str = DEFAULT) -> tuple[Callable[[Sequence[str]], list[tuple[int, bool]]], int]:
    """:func:`count_tokens` of a model, for captions, and its context."""
    text = model_config(model)["text_cfg"]
    return partial(count_tokens, _tokenizer(model, _text_folder(model, text), text)), text["context_length"]


def count_tokens(tokenizer: Any, captions: Sequence[str]) -> list[tuple[int, bool]]:
    """Tokens of each caption, end marks included and nothing cut, and whether the tokenizer knows less than half."""
    if hasattr(tokenizer, "encode"):  # of bytes, which are all known
        return [(len(tokenizer.encode(caption)) + 2, False) for caption in captions]
    own = tokenizer.tokenizer
    rows = own(list(captions))["input_ids"]
    return [(len(ids), 2 * ids.count(own.unk_token_id) > len(ids) - 2) for ids in rows]


def real_tokens(text: nn.Module, token_ids: Tensor) -> Tensor:
    """Which token ids ``[B, L]`` are no padding, bool ``[B, L]``."""
    return token_ids != (getattr(getattr(text, "config", None), "pad_token_id", None) or 0)


def needed_tokens(text: nn.Module, token_ids: Tensor) -> Tensor:
    """How many of the token ids ``[B, L]`` of each row a text tower has to see, ``[B]``.

    Causal towers, and Hugging Face's, which mask padding, give the same without it; others need all.
    """
    real = real_tokens(text, token_ids).sum(dim=1)
    cuts_padding = hasattr(text, "pooler") or text.attn_mask is not None
    return real if cuts_padding else torch.full_like(real, token_ids.shape[1])


def encode_image_tokens(
    visual: nn.Module, pixels: Tensor, *, tokens: bool, projected: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Features ``[B, D]`` (not normalised) of normalised pictures ``[B, 3, S, S]``; tokens ``[B, N, W]`` where wanted.

    Not ``projected``, features are what timm's trunk pools; other towers have nothing before their projection.
    ValueError for a tower without tokens.
    """
    if not hasattr(visual, "trunk"):
        return _run(visual, partial(visual, pixels), tokens)
    grid = visual.trunk.forward_features(pixels)
    features = visual.trunk.forward_head(grid)
    return visual.head(features) if projected else features, as_tokens(visual.trunk, grid) if tokens else None


def as_tokens(trunk: Any, grid: Tensor) -> Tensor:
    """Feature map of a timm model, ``[B, W, h, w]``, ``[B, h, w, W]`` or ``[B, N, W]``, as tokens ``[B, N, W]``."""
    width = trunk.num_features
    last, first = grid.shape[-1] == width, grid.ndim == 4 and grid.shape[1] == width
    if last == first:
        fault = f"{type(trunk).__name__} of width {width} gives a map {list(grid.shape)}"
        told = "which dimension are the features cannot be told; leave the fusion encoder out (fusion_layers=0)"
        raise ValueError(f"{fault}: {told}")
    return grid.flatten(2).transpose(1, 2) if first else grid.flatten(1, -2)


def encode_text_tokens(
    text: nn.Module, token_ids: Tensor, *, tokens: bool, dropout: float = 0.0, projected: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features ``[B, D]`` (not normalised) of int64 ``[B, L]``; tokens ``[B, L', W]`` where wanted; mask ``[B, L']``.

    The mask is True at real tokens; :func:`needed_tokens` tells how much padding to cut before. ``dropout`` is the
    chance to zero an entry of a token embedding: two draws make two views of one caption. Not ``projected``, features
    are what a Hugging Face tower pools. ValueError for a tower without tokens.
    """
    hugging_face = hasattr(text, "pooler")
    real, length = real_tokens(text, token_ids), token_ids.shape[1]
    embedding = text.transformer.get_input_embeddings() if hugging_face else text.token_embedding
    drop = embedding.register_forward_hook(lambda _m, _i, out: batch_dropout(out, dropout)) if dropout else None
    with drop or nullcontext():
        if hugging_face:
            seen = real.long()
            if text.transformer.config._attn_implementation == "sdpa":  # of 2 dimensions it asks whether all are real
                seen = real[:, None, None].expand(-1, 1, length, -1)
            output = text.transformer(input_ids=token_ids, attention_mask=seen)
            pooled = text.pooler(output, real.long())
            return text.proj(pooled) if projected else pooled, output.last_hidden_state if tokens else None, real
        buffers = {} if text.attn_mask is None else {"attn_mask": text.attn_mask[:length, :length]}
        features, grid = _run(text, partial(functional_call, text, buffers, (token_ids,)), tokens)
    return features, grid, real if grid is None else real[:, -grid.shape[1] :]


def _run(tower: nn.Module, forward: Callable[[], Any], tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Features and, if wanted, tokens of a tower of open_clip's own."""
    tower.output_tokens = tokens
    try:
        found = forward()
    finally:
        tower.output_tokens = False
    features, grid = found if isinstance(found, tuple) else (found, None)
    if tokens and grid is None:
        raise ValueError(f"{type(tower).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")
    return features, grid


def batch_dropout(features: Tensor, chance: float) -> Tensor:
    """Dropout of this process's rows ``[B / W, ...]`` of a batch, drawn for all of it: the same for any number W."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return F.dropout(features, chance)
    count = torch.distributed.get_world_size()
    kept = F.dropout(features.new_ones(count * len(features), *features.shape[1:]), chance)
    return features * kept.chunk(count)[torch.distributed.get_rank()]
