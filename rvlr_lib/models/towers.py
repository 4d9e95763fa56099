"""Image and text towers from open_clip, with token outputs and padding that costs nothing."""

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from rvlr_lib.training.gather import batch_dropout

ARCHITECTURES = Path(__file__).parent / "architectures"


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
    model: str = "tiny",
    pretrained: str | None = None,
    *,
    seed: int = 0,
    image_weights: str | None = None,
    text_weights: str | None = None,
    text_layers: int = 0,
    context_length: int = 0,
) -> Towers:
    """Build the towers of any open_clip model.

    What is asked for and is not there is an error; nothing that was to be loaded starts at random. What was not asked
    for does, and the name of the towers says so.

    Args:
        model: ``tiny`` (ours, 48 px, for the embedded data sets), ``swin_b384_bert`` (the paper's pair), any open_clip
            model name, or ``local-dir:PATH`` with ``open_clip_config.json`` and weights.
        pretrained: an open_clip pretrained tag or a weight file; None or "" starts at random.
        seed: of the random initialisation.
        image_weights: for a model whose image tower is timm's: a weight file of that tower, or ``timm`` for its tag.
        text_weights: for a model whose text tower is of Hugging Face: a local folder with ``config.json``, a tokenizer
            and ``model.safetensors``.
        text_layers: keep only the first layers of such a text tower; 0 keeps all.
        context_length: tokens of a caption; 0 is the model's own.

    Raises:
        ValueError: the name is unknown to open_clip, an option does not fit the model, or asked-for weights are not
            there or are of another architecture.
    """
    import open_clip

    name = known_name(model)
    options: dict[str, Any] = {"force_context_length": context_length or None}
    try:
        config = open_clip.get_model_config(name) or {}
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"model {model!r} cannot be loaded: {error}") from error
    if image_weights and "timm_model_name" not in config.get("vision_cfg", {}):
        raise ValueError(f"image_weights={image_weights!r}: the image tower of {model!r} is not timm's; use pretrained")
    hugging_face = "hf_model_name" in config.get("text_cfg", {})
    if (text_weights or text_layers) and not hugging_face:
        raise ValueError(f"text_weights and text_layers: the text tower of {model!r} is not of Hugging Face")
    if hugging_face:
        options |= _text_options(model, config["text_cfg"], text_weights, pretrained, context_length)
    level = logging.root.level
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logging.disable(logging.WARNING)  # open_clip warns that random weights are random; the name says it
        try:
            clip = open_clip.create_model(name, pretrained=pretrained or None, force_custom_text=True,
                                          require_pretrained=bool(pretrained) or ":" in name, **options)  # fmt: skip
            if image_weights:
                load_timm_trunk(clip.visual.trunk, config["vision_cfg"]["timm_model_name"], image_weights)
            tokenizer = _tokenizer(name, text_weights, context_length)
        except Exception as error:  # a missing file, another architecture, a refused pickle, no network: one answer
            asked = pretrained or image_weights or text_weights
            raise ValueError(f"weights {asked!r} of model {model!r} cannot be loaded: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)
    if text_layers:
        layers = clip.text.transformer.encoder.layer
        if text_layers > len(layers):
            raise ValueError(f"text_layers={text_layers}: the text tower of {model!r} has {len(layers)} layers")
        clip.text.transformer.encoder.layer = layers[:text_layers]
    return _towers(clip, tokenizer, model, [pretrained, image_weights, text_weights])


def _towers(clip: Any, tokenizer: Any, model: str, asked: Sequence[str | None]) -> Towers:
    """Describe a built model; without weights of a whole CLIP a timm tower brings its own pixel statistics."""
    config = dict(clip.visual.preprocess_cfg)
    own = getattr(getattr(clip.visual, "trunk", None), "pretrained_cfg", None)
    if own and not asked[0] and ":" not in model:
        config |= {key: own[key] for key in ("mean", "std", "interpolation")}
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
    if not folder:
        if pretrained:
            return {}
        raise ValueError(f"model {model!r} needs its text tower: text_weights, a local folder with config.json, a "
                         f"tokenizer and model.safetensors (of {config['hf_model_name']})")  # fmt: skip
    missing = [name for name in ("config.json", "model.safetensors") if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(f"text_weights {folder!r} lacks {' and '.join(missing)}: save the model there with "
                         "save_pretrained, as safetensors (pickled weights are not loaded)")  # fmt: skip
    text = {**config, "hf_model_name": folder, "hf_tokenizer_name": folder, "hf_model_pretrained": True}
    return {"text_cfg": text | ({"context_length": context} if context else {})}


def _tokenizer(name: str, folder: str | None, context_length: int) -> Any:
    import open_clip

    if folder:
        context = context_length or open_clip.get_model_config(name)["text_cfg"].get("context_length", 77)
        return open_clip.tokenizer.HFTokenizer(folder, context_length=context)
    return open_clip.get_tokenizer(name, context_length=context_length or None)


def load_timm_trunk(trunk: nn.Module, name: str, weights: str) -> None:
    """Load every tensor of a timm model without its classifier, from a file or, ``weights="timm"``, from timm's tag.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is of another architecture; names a tensor that it lacks or has in another shape.
    """
    import timm

    if weights == "timm":
        trunk.load_state_dict(timm.create_model(name, pretrained=True, num_classes=0).state_dict())
        return
    if not Path(weights).is_file():
        raise FileNotFoundError(f"{weights} is not there")
    found = timm.models.load_state_dict(weights, device="cpu", weights_only=True)
    adapt = getattr(sys.modules[type(trunk).__module__], "checkpoint_filter_fn", None)  # official names to timm's
    found = adapt(found, trunk) if adapt else found
    wanted = trunk.state_dict()
    for key, value in wanted.items():
        if key not in found or found[key].shape != value.shape:
            has = f"{list(found[key].shape)} for {list(value.shape)}" if key in found else "none"
            raise ValueError(f"{weights} holds weights of another architecture than {name}: {key} is {has}")
    trunk.load_state_dict({key: found[key] for key in wanted})


def known_name(model: str) -> str:
    """The name by which open_clip knows a model, ours among them."""
    import open_clip

    open_clip.add_model_config(ARCHITECTURES)
    name = "rvlr_tiny" if model == "tiny" else model
    if not name.startswith(("local-dir:", "hf-hub:")) and name not in open_clip.list_models():
        raise ValueError(f"unknown model {model!r}: use 'tiny', 'local-dir:PATH' or a name of open_clip.list_models()")
    return name


def token_counter(model: str = "tiny") -> tuple[Callable[[Sequence[str]], list[int]], int]:
    """A function captions -> number of tokens of each, end marks included and nothing cut, and the model's context.

    Raises:
        ValueError: as :func:`build_towers`, but no weights are needed.
    """
    import open_clip

    tokenizer = open_clip.get_tokenizer(known_name(model))
    context = int(tokenizer.context_length)

    def lengths(captions: Sequence[str]) -> list[int]:
        if hasattr(tokenizer, "encode"):
            return [len(tokenizer.encode(caption)) + 2 for caption in captions]
        return [len(ids) for ids in tokenizer.tokenizer(list(captions))["input_ids"]]

    return lengths, context


def tokenize(towers_tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """Token ids ``[n, context]`` (int64) of captions; what exceeds the context is cut by open_clip's tokenizer."""
    return towers_tokenizer(list(captions))


def encode_image_tokens(visual: nn.Module, pixels: Tensor, *, tokens: bool) -> tuple[Tensor, Tensor | None]:
    """Run an image tower.

    Args:
        visual: an open_clip ``VisionTransformer`` or ``TimmModel``.
        pixels: normalised pictures ``[B, 3, S, S]``.
        tokens: whether patch tokens are wanted (for the fusion encoder).

    Returns:
        Projected features ``[B, D]`` (not normalised) and tokens ``[B, N, W]`` or None.

    Raises:
        ValueError: tokens are wanted of a tower that has none.
    """
    if not tokens:
        return visual(pixels), None
    if hasattr(visual, "output_tokens"):
        visual.output_tokens = True
        try:
            return visual(pixels)
        finally:
            visual.output_tokens = False
    if hasattr(visual, "trunk"):
        grid = visual.trunk.forward_features(pixels)
        features = visual.head(visual.trunk.forward_head(grid))
        return features, grid.flatten(1, -2) if grid.ndim == 4 else grid
    raise ValueError(f"{type(visual).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")


def encode_text_tokens(
    text: nn.Module, token_ids: Tensor, *, tokens: bool, dropout: float = 0.0
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Run a text tower on ids trimmed to the longest caption of the batch.

    Trimming is exact for causal towers, where no token sees what stands behind it, and for Hugging Face's, which mask
    their padding. Other towers keep it, as some of them were trained to see it.

    Args:
        text: an open_clip ``TextTransformer`` or ``HFTextEncoder``.
        token_ids: int64 ``[B, L]``, 0 is padding.
        tokens: whether token features are wanted.
        dropout: chance to zero an entry of a token embedding; two draws make two views of one caption.

    Returns:
        Projected features ``[B, D]`` (not normalised), tokens ``[B, L', W]`` or None, and a bool mask ``[B, L']`` that
        is True at real tokens.
    """
    mask = getattr(text, "attn_mask", None)
    buffers = {}
    masks_padding = getattr(getattr(text, "config", None), "pad_token_id", None) == 0  # Hugging Face's towers
    if mask is not None or masks_padding:
        length = int((token_ids != 0).sum(dim=1).max())
        token_ids = token_ids[:, :length]
        buffers = {"attn_mask": mask[:length, :length]} if mask is not None else {}
    hook = None
    if dropout and hasattr(text, "token_embedding"):
        hook = text.token_embedding.register_forward_hook(lambda _m, _i, out: batch_dropout(out, dropout))
    wants_tokens = tokens and hasattr(text, "output_tokens")
    try:
        if wants_tokens:
            text.output_tokens = True
        result = functional_call(text, buffers, (token_ids,)) if buffers else text(token_ids)
    finally:
        if wants_tokens:
            text.output_tokens = False
        if hook is not None:
            hook.remove()
    features, token_features = result if isinstance(result, tuple) else (result, None)
    if tokens and token_features is None:
        raise ValueError(f"{type(text).__name__} gives no tokens: leave the fusion encoder out (fusion_layers=0)")
    real = token_ids != 0
    return features, token_features, real if token_features is None else real[:, -token_features.shape[1] :]
