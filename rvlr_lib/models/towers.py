"""Image and text towers of open_clip, with token outputs and no computation on padding."""

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
    """The two towers of an open_clip model and their preprocessing; pictures are always resized bicubically."""

    visual: nn.Module  # ends in the projection to the common space, as does text
    text: nn.Module
    tokenizer: Any  # list of captions -> int64 token ids [n, context], cut to the context
    image_size: int  # side of the square pictures in pixels
    mean: tuple[float, ...]  # per channel of pixels in 0..1, as is std
    std: tuple[float, ...]
    embed_dim: int  # width of the common space
    name: str  # as requested: ``model`` or ``model:weights``
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
    """Build the towers of any open_clip model, in evaluation mode; missing weights never become a random start.

    ValueError for a model that open_clip does not know, an option that does not apply to the model, or weights that are
    missing, have another SHA-256 or belong to another architecture.

    Args:
        model: ``effnet_minilm`` (EfficientNet-Lite0 and MiniLM-L6 from installed packages, random projections),
            ``swin_b384_bert`` (the paper's pair), any open_clip model name, or ``local-dir:PATH``.
        pretrained: an open_clip pretrained tag or a weight file; None or "" loads none.
        seed: of the random initialisation.
        image_weights: weight file of a timm image tower, of any precision, or ``timm`` for timm's own tag.
        text_weights: folder of a Hugging Face text tower: ``config.json``, a tokenizer and ``model.safetensors``.
        text_layers: number of first layers of such a text tower to keep; 0 keeps all.
        context_length, image_size: tokens per caption and picture side in pixels; 0 keeps the model's own.
    """
    import open_clip

    config = model_config(model, context_length)
    timm_name, text_cfg = config.get("vision_cfg", {}).get("timm_model_name"), config["text_cfg"]
    packaged, complete = model == DEFAULT and not pretrained, bool(pretrained) or ":" in model
    hugging_face_name = text_cfg.get("hf_model_name")
    if image_weights and not timm_name:
        raise ValueError(f"image_weights={image_weights!r}: the image tower of {model!r} is not timm's; use pretrained")
    if (text_weights or text_layers) and not hugging_face_name:
        raise ValueError(f"text_weights and text_layers: the text tower of {model!r} is not from Hugging Face")
    folder, place = text_weights, Path(model.removeprefix("local-dir:"))
    if not folder and model == DEFAULT:
        folder = str(weight_file("minilm").parent)
    elif not folder and model.startswith("local-dir:") and hugging_face_name and (place / "config.json").is_file():
        folder = str(place)  # of an exported model, even if moved
    if hugging_face_name and not folder and not complete:
        raise ValueError(f"model {model!r} needs text_weights: a folder with {hugging_face_name}")
    if folder:
        text_cfg = text_cfg | {"hf_model_name": folder, "hf_model_pretrained": not complete}
    options = {"text_cfg": text_cfg, "force_image_size": image_size or None, "pretrained": pretrained or None}
    with torch.random.fork_rng(devices=[]), _quiet():
        torch.default_generator.manual_seed(seed)  # of the CPU; GPU generators are left alone
        try:
            if text_weights:
                load_text(text_weights)  # a check only: open_clip would fill missing tensors at random
            clip = open_clip.create_model(model, force_custom_text=True, require_pretrained=complete, **options)
            if image_weights:
                load_timm_trunk(clip.visual.trunk, timm_name, image_weights)
            elif packaged:
                load_lite(clip.visual.trunk, "lite0")
            length = {"context_length": text_cfg["context_length"]}
            if folder:
                tokenizer = open_clip.tokenizer.HFTokenizer(folder, local_files_only=True, **length)
            else:
                tokenizer = open_clip.get_tokenizer(model, **length)
        except Exception as error:  # missing file, other architecture, refused pickle, no network
            source = pretrained or image_weights or text_weights
            raise ValueError(f"weights {source!r} of model {model!r} cannot be loaded: {error}") from error
    clip.float().eval()
    if text_layers:
        layers = clip.text.transformer.encoder.layer
        if text_layers > len(layers):
            raise ValueError(f"text_layers={text_layers}: the text tower of {model!r} has {len(layers)} layers")
        clip.text.transformer.encoder.layer = layers[:text_layers]
    pixels = dict(clip.visual.preprocess_cfg)
    if timm_name and not complete:  # without weights of a complete CLIP, a timm tower has its own pixel statistics
        pixels |= {key: clip.visual.trunk.pretrained_cfg[key] for key in ("mean", "std")}
    mean, std = PIXELS if model == DEFAULT else (tuple(pixels["mean"]), tuple(pixels["std"]))
    sources = pretrained, image_weights or (packaged and "lite0"), text_weights or (packaged and "minilm")
    name = model if ":" in model else f"{model}:{'+'.join(source for source in sources if source) or 'random'}"
    size = pixels["size"] if isinstance(pixels["size"], int) else pixels["size"][0]
    return Towers(clip.visual, clip.text, tokenizer, size, mean, std, config["embed_dim"], name, config)


def model_config(model: str, context_length: int = 0) -> dict[str, Any]:
    """Configuration of an open_clip model or one of ours; ``context_length`` 0 keeps the model's own."""
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


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars, and warnings about random weights, which the name of the towers already states."""
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


def count_tokens(tokenizer: Any, captions: Sequence[str]) -> list[tuple[int, bool]]:
    """Token count of each uncut caption, end marks included, and whether more than half of the tokens are unknown."""
    if hasattr(tokenizer, "encode"):  # works on bytes, all of which it knows
        return [(len(tokenizer.encode(caption)) + 2, False) for caption in captions]
    hugging_face = tokenizer.tokenizer
    token_ids = hugging_face(list(captions))["input_ids"]
    return [(len(ids), 2 * ids.count(hugging_face.unk_token_id) > len(ids) - 2) for ids in token_ids]


def real_tokens(text: nn.Module, token_ids: Tensor) -> Tensor:
    """Bool mask ``[B, L]`` of token ids ``[B, L]``, True where they are not padding."""
    return token_ids != (getattr(getattr(text, "config", None), "pad_token_id", None) or 0)


def needed_tokens(text: nn.Module, token_ids: Tensor) -> Tensor:
    """How many leading token ids of each row ``[B, L]`` a text tower must see, ``[B]``.

    Causal towers and Hugging Face towers, which mask padding, give the same features without it; others need all.
    """
    real = real_tokens(text, token_ids).sum(dim=1)
    cuts_padding = hasattr(text, "pooler") or text.attn_mask is not None
    return real if cuts_padding else torch.full_like(real, token_ids.shape[1])


def encode_image_tokens(
    visual: nn.Module, pixels: Tensor, *, tokens: bool, projected: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Features ``[B, D]``, not normalised, and tokens ``[B, N, W]`` or None of normalised pictures ``[B, 3, S, S]``.

    With ``projected=False``, features are the pooled output of timm's trunk; towers other than timm's always project.
    ValueError if ``tokens`` are requested from a tower without them.
    """
    if not hasattr(visual, "trunk"):
        return _run(visual, partial(visual, pixels), tokens)
    grid = visual.trunk.forward_features(pixels)
    features = visual.trunk.forward_head(grid)
    return visual.head(features) if projected else features, as_tokens(visual.trunk, grid) if tokens else None


def as_tokens(trunk: Any, grid: Tensor) -> Tensor:
    """Tokens ``[B, N, W]`` from a timm feature map ``[B, W, h, w]``, ``[B, h, w, W]`` or ``[B, N, W]``."""
    width = trunk.num_features
    width_last, width_first = grid.shape[-1] == width, grid.ndim == 4 and grid.shape[1] == width
    if width_last == width_first:
        fault = f"{type(trunk).__name__} of width {width} gives a map {list(grid.shape)} of unclear layout"
        raise ValueError(f"{fault}: leave the fusion encoder out (fusion_layers=0)")
    return grid.flatten(2).transpose(1, 2) if width_first else grid.flatten(1, -2)


def encode_text_tokens(
    text: nn.Module, token_ids: Tensor, *, tokens: bool, dropout: float = 0.0, projected: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Features ``[B, D]``, not normalised, tokens ``[B, L', W]`` or None, and mask ``[B, L']`` of int64 ids ``[B, L]``.

    The mask is True at real tokens; trim padding beforehand with :func:`needed_tokens`. ``dropout`` is the chance of
    zeroing an entry of a token embedding: two draws make two views of a caption. With ``projected=False``, features are
    the pooled output of a Hugging Face tower. ValueError if ``tokens`` are requested from a tower without them.
    """
    hugging_face = hasattr(text, "pooler")
    real, length = real_tokens(text, token_ids), token_ids.shape[1]
    embedding = text.transformer.get_input_embeddings() if hugging_face else text.token_embedding
    drop = embedding.register_forward_hook(lambda _m, _i, out: batch_dropout(out, dropout)) if dropout else None
    with drop or nullcontext():
        if hugging_face:
            attended = real.long()
            if text.transformer.config._attn_implementation == "sdpa":  # which tests if a 2-d mask is all ones
                attended = real[:, None, None].expand(-1, 1, length, -1)
            output = text.transformer(input_ids=token_ids, attention_mask=attended)
            pooled = text.pooler(output, real.long())
            return text.proj(pooled) if projected else pooled, output.last_hidden_state if tokens else None, real
        buffers = {} if text.attn_mask is None else {"attn_mask": text.attn_mask[:length, :length]}
        features, grid = _run(text, partial(functional_call, text, buffers, (token_ids,)), tokens)
    return features, grid, real if grid is None else real[:, -grid.shape[1] :]


def _run(tower: nn.Module, forward: Callable[[], Any], tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Features, and tokens or None, from a tower of open_clip's own kind."""
    tower.output_tokens = tokens
    try:
        output = forward()
    finally:
        tower.output_tokens = False
    features, grid = output if isinstance(output, tuple) else (output, None)
    if tokens and grid is None:
        raise ValueError(f"{type(tower).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")
    return features, grid


def batch_dropout(features: Tensor, chance: float) -> Tensor:
    """Dropout on one process's rows ``[B / W, ...]``, drawn for the full batch: the same for any process count W."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return F.dropout(features, chance)
    processes = torch.distributed.get_world_size()
    mask = F.dropout(features.new_ones(processes * len(features), *features.shape[1:]), chance)
    return features * mask.chunk(processes)[torch.distributed.get_rank()]
