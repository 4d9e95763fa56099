"""Image and text towers from open_clip, with token outputs and padding that costs nothing."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from rvlr_lib.models.pretrained import PIXELS, load_lite, load_timm_trunk, weight_file

ARCHITECTURES = Path(__file__).parent / "architectures"
DEFAULT = "effnet_minilm"


@dataclass(frozen=True)
class Towers:
    """The two towers of an open_clip model and how their inputs are made.

    Attributes:
        visual, text: open_clip's towers, each ending in the projection to the common space.
        tokenizer: list of captions -> token ids ``[n, context]``.
        image_size: side of the square pictures, in pixels.
        mean, std: per-channel normalisation of pixels in 0..1.
        embed_dim: width of the common space.
        name: what was asked for, ``model`` or ``model:pretrained``.
        interpolation: what the weights were trained with; our pictures are resized bicubic to a square in any case.
    """

    visual: nn.Module
    text: nn.Module
    tokenizer: Any
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embed_dim: int
    name: str
    interpolation: str = "bicubic"

    def preprocessing(self) -> dict[str, Any]:
        """How a picture becomes an input, for printing and provenance."""
        return {
            "model": self.name,
            "size": self.image_size,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": "bicubic, anti-aliased, to a square",
            "interpolation_of_the_weights": self.interpolation,
        }


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
    """Build the towers of any open_clip model.

    What is asked for and is not there is an error; nothing that was to be loaded starts at random. What was not asked
    for does, and the name of the towers says so. The projections of ``effnet_minilm`` are random.

    Args:
        model: ``effnet_minilm`` (the default: EfficientNet-Lite0 and MiniLM-L6, weights from installed packages,
            checked by their SHA-256), ``swin_b384_bert`` (the paper's pair), any open_clip model name, or
            ``local-dir:PATH`` with ``open_clip_config.json`` and weights.
        pretrained: an open_clip pretrained tag or a weight file; None or "" starts at random.
        seed: of the random initialisation.
        image_weights: for a model whose image tower is timm's: a weight file of that tower, or ``timm`` for its tag.
        text_weights: for a model whose text tower is of Hugging Face: a local folder with ``config.json``, a tokenizer
            and ``model.safetensors``. Half precision is read into full.
        text_layers: keep only the first layers of such a text tower; 0 keeps all.
        context_length: tokens of a caption; 0 is the model's own.
        image_size: side of the pictures in pixels; 0 is the model's own.

    Raises:
        ValueError: the name is unknown to open_clip, an option does not fit the model, or asked-for weights are not
            there, have another sum or are of another architecture.
    """
    import open_clip
    import transformers

    name = known_name(model)
    options: dict[str, Any] = {"force_context_length": context_length or None, "force_image_size": image_size or None}
    try:
        config = open_clip.get_model_config(name) or {}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model {model!r} cannot be loaded: {error}") from error
    if image_weights and "timm_model_name" not in config.get("vision_cfg", {}):
        raise ValueError(f"image_weights={image_weights!r}: the image tower of {model!r} is not timm's; use pretrained")
    hugging_face = "hf_model_name" in config.get("text_cfg", {})
    if (text_weights or text_layers) and not hugging_face:
        raise ValueError(f"text_weights and text_layers: the text tower of {model!r} is not of Hugging Face")
    default = model == DEFAULT and not pretrained
    folder = text_weights
    if model == DEFAULT and not folder:
        folder = str(weight_file("minilm", check=default).parent)
    if hugging_face:
        options |= _text_options(model, config["text_cfg"], folder, pretrained, context_length)
    level = logging.root.level
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logging.disable(logging.WARNING)  # open_clip warns that random weights are random; the name says it
        progress = transformers.utils.logging.is_progress_bar_enabled()
        transformers.utils.logging.disable_progress_bar()
        try:
            clip = open_clip.create_model(
                name,
                pretrained=pretrained or None,
                force_custom_text=True,
                require_pretrained=bool(pretrained) or ":" in name,
                **options,
            )
            if image_weights:
                load_timm_trunk(clip.visual.trunk, config["vision_cfg"]["timm_model_name"], image_weights)
            elif default:
                load_lite(clip.visual.trunk, "lite0")
            tokenizer = _tokenizer(name, folder, context_length)
        except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
            asked = pretrained or image_weights or text_weights
            raise ValueError(f"weights {asked!r} of model {model!r} cannot be loaded: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)
            if progress:
                transformers.utils.logging.enable_progress_bar()
    if text_layers:
        layers = clip.text.transformer.encoder.layer
        if text_layers > len(layers):
            raise ValueError(f"text_layers={text_layers}: the text tower of {model!r} has {len(layers)} layers")
        clip.text.transformer.encoder.layer = layers[:text_layers]
    named = [pretrained, image_weights or ("lite0" if default else None), text_weights or ("minilm" if default else "")]
    return _towers(clip.float(), tokenizer, model, named)


def _towers(clip: Any, tokenizer: Any, model: str, asked: Sequence[str | None]) -> Towers:
    """Describe a built model; without weights of a whole CLIP a timm tower brings its own pixel statistics."""
    config = dict(clip.visual.preprocess_cfg)
    own = getattr(getattr(clip.visual, "trunk", None), "pretrained_cfg", None)
    if own and not asked[0] and ":" not in model:
        config |= {key: own[key] for key in ("mean", "std", "interpolation")}
    if model == DEFAULT:
        config |= dict(zip(("mean", "std"), PIXELS, strict=True))
    with torch.inference_mode():
        width = clip.text.eval()(tokenizer(["a"])).shape[-1]
    clip.train()
    size = config["size"]
    return Towers(
        visual=clip.visual,
        text=clip.text,
        tokenizer=tokenizer,
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        embed_dim=width,
        name=model if ":" in model else f"{model}:{'+'.join(filter(None, asked)) or 'random'}",
        interpolation=config["interpolation"],
    )


def _text_options(
    model: str, config: Mapping[str, Any], folder: str | None, pretrained: str | None, context: int
) -> dict[str, Any]:
    """What open_clip must be told so that a Hugging Face text tower comes from a local folder, weights and all."""
    whole = bool(pretrained) or ":" in model  # the weights of both towers come from one file
    if not folder and (saved := _saved_text(model)):
        folder = str(saved)
    if not folder:
        if whole:
            return {}
        raise ValueError(
            f"model {model!r} needs its text tower: text_weights, a local folder with config.json, a "
            f"tokenizer and model.safetensors (of {config['hf_model_name']})"
        )
    wanted = ("config.json",) if whole else ("config.json", "model.safetensors")
    missing = [name for name in wanted if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(
            f"text_weights {folder!r} lacks {' and '.join(missing)}: save the model there with "
            "save_pretrained, as safetensors (pickled weights are not loaded)"
        )
    text = {**config, "hf_model_name": folder, "hf_tokenizer_name": folder, "hf_model_pretrained": not whole}
    return {"text_cfg": text | ({"context_length": context} if context else {})}


def _saved_text(model: str) -> Path | None:
    """The folder of an exported model with a Hugging Face text tower, whose configuration lies in it as well."""
    folder = Path(model.removeprefix("local-dir:"))
    return folder if model.startswith("local-dir:") and (folder / "config.json").is_file() else None


def _tokenizer(name: str, folder: str | None, context_length: int) -> Any:
    import open_clip

    folder = folder or str(_saved_text(name) or "")
    if folder:
        context = context_length or open_clip.get_model_config(name)["text_cfg"].get("context_length", 77)
        return open_clip.tokenizer.HFTokenizer(folder, context_length=context, local_files_only=True)
    return open_clip.get_tokenizer(name, context_length=context_length or None)


def known_name(model: str) -> str:
    """The name by which open_clip knows a model, ours among them.

    Raises:
        ValueError: open_clip knows no such model.
    """
    import open_clip

    open_clip.add_model_config(ARCHITECTURES)
    if not model.startswith(("local-dir:", "hf-hub:")) and model not in open_clip.list_models():
        raise ValueError(
            f"unknown model {model!r}: use {DEFAULT!r}, 'local-dir:PATH' or a name of open_clip.list_models()"
        )
    return model


def token_counter(model: str = DEFAULT) -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """A function captions -> number of tokens of each, end marks included and nothing cut, and the model's context.

    Raises:
        ValueError: as :func:`build_towers`, but no weights are needed.
    """
    folder = str(weight_file("minilm", check=False).parent) if model == DEFAULT else None
    tokenizer = _tokenizer(known_name(model), folder, 0)
    return lambda captions: count_tokens(tokenizer, captions), int(tokenizer.context_length)


def count_tokens(tokenizer: Any, captions: Sequence[str]) -> list[int]:
    """Number of tokens of each caption, end marks included and nothing cut."""
    if hasattr(tokenizer, "encode"):
        return [len(tokenizer.encode(caption)) + 2 for caption in captions]
    return [len(ids) for ids in tokenizer.tokenizer(list(captions))["input_ids"]]


def tokenize(towers_tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids ``[n, context]`` (int64) of captions; what exceeds the context is cut by open_clip's tokenizer."""
    return towers_tokenizer(list(captions))


def real_tokens(text: nn.Module, token_ids: Tensor) -> Tensor:
    """Which token ids ``[B, L]`` are no padding, bool ``[B, L]``."""
    return token_ids != (getattr(getattr(text, "config", None), "pad_token_id", None) or 0)


def encode_image_tokens(
    visual: nn.Module, pixels: Tensor, *, tokens: bool, projected: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Run an image tower.

    Args:
        visual: an open_clip ``VisionTransformer`` or ``TimmModel``.
        pixels: normalised pictures ``[B, 3, S, S]``.
        tokens: whether patch tokens are wanted (for the fusion encoder).
        projected: False gives what timm's trunk pools, before any projection; other towers have nothing before it.

    Returns:
        Features ``[B, D]`` (not normalised) and tokens ``[B, N, W]`` or None.

    Raises:
        ValueError: tokens are wanted of a tower that has none.
    """
    if hasattr(visual, "trunk"):
        grid = visual.trunk.forward_features(pixels)
        features = visual.trunk.forward_head(grid)
        return visual.head(features) if projected else features, as_tokens(visual.trunk, grid) if tokens else None
    if not tokens:
        return visual(pixels), None
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = True
        try:
            return visual(pixels)
        finally:
            visual.output_tokens = False
    raise ValueError(f"{type(visual).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")


def as_tokens(trunk: Any, grid: Tensor) -> Tensor:
    """Feature map of a timm model, ``[B, W, h, w]``, ``[B, h, w, W]`` or ``[B, N, W]``, as tokens ``[B, N, W]``.

    Raises:
        ValueError: no dimension is the model's width, or two could be.
    """
    width = trunk.num_features
    last, first = grid.shape[-1] == width, grid.ndim == 4 and grid.shape[1] == width
    if last == first:
        raise ValueError(
            f"{type(trunk).__name__} of width {width} gives a map {list(grid.shape)}: which dimension are "
            "the features cannot be told; leave the fusion encoder out (fusion_layers=0)"
        )
    return grid.flatten(2).transpose(1, 2) if first else grid.flatten(1, -2)


def encode_text_tokens(
    text: nn.Module, token_ids: Tensor, *, tokens: bool, dropout: float = 0.0, projected: bool = True
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run a text tower on ids trimmed to the longest caption of the batch.

    Trimming is exact for causal towers, where no token sees what stands behind it, and for Hugging Face's, which mask
    their padding. Other towers keep it, as some of them were trained to see it.

    Args:
        text: an open_clip ``TextTransformer`` or ``HFTextEncoder``.
        token_ids: int64 ``[B, L]``.
        tokens: whether token features are wanted.
        dropout: chance to zero an entry of a token embedding; two draws make two views of one caption.
        projected: False gives what a Hugging Face tower pools, before its projection.

    Returns:
        Features ``[B, D]`` (not normalised), tokens ``[B, L', W]`` or None, and a bool mask ``[B, L']`` that is True at
        real tokens.
    """
    hugging_face, causal = hasattr(text, "pooler"), getattr(text, "attn_mask", None)
    real = real_tokens(text, token_ids)
    if hugging_face or causal is not None:
        length = int(real.sum(dim=1).max())
        token_ids, real = token_ids[:, :length], real[:, :length]
    embedding = text.transformer.get_input_embeddings() if hugging_face else getattr(text, "token_embedding", None)
    hook = None
    if dropout and embedding is not None:
        hook = embedding.register_forward_hook(lambda _m, _i, out: batch_dropout(out, dropout))
    try:
        if hugging_face:
            output = text.transformer(input_ids=token_ids, attention_mask=real.long())
            pooled = text.pooler(output, real.long())
            return text.proj(pooled) if projected else pooled, output.last_hidden_state if tokens else None, real
        text.output_tokens = tokens
        buffers = {} if causal is None else {"attn_mask": causal[:length, :length]}
        result = functional_call(text, buffers, (token_ids,))
    finally:
        if hook is not None:
            hook.remove()
        if not hugging_face:
            text.output_tokens = False
    features, token_features = result if isinstance(result, tuple) else (result, None)
    if tokens and token_features is None:
        raise ValueError(f"{type(text).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")
    return features, token_features, real if token_features is None else real[:, -token_features.shape[1] :]


def batch_dropout(features: Tensor, chance: float) -> Tensor:
    """Dropout of this process's rows, drawn for the whole batch: the same for any number of processes.

    Args:
        features: ``[B / W, ...]`` of process r of W, rows ``r B/W`` onwards of the batch; sequences
            ``[B / W, L, D]`` may differ in ``L`` between the processes.
        chance: to zero an entry; the others grow by ``1 / (1 - chance)``.
    """
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    if alone or torch.distributed.get_world_size() == 1:
        return F.dropout(features, chance)
    rank, count, rows = torch.distributed.get_rank(), torch.distributed.get_world_size(), len(features)
    shape = list(features.shape)
    if features.ndim == 3:
        longest = torch.tensor(shape[1], device=features.device)
        torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
        shape[1] = int(longest)
    kept = F.dropout(features.new_ones(count * rows, *shape[1:]), chance)[rank * rows : (rank + 1) * rows]
    return features * (kept[:, : features.shape[1]] if features.ndim == 3 else kept)
