"""Image and text towers from open_clip, with token outputs and padding that costs nothing."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

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
    """

    visual: nn.Module
    text: nn.Module
    tokenizer: Any
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    embed_dim: int
    name: str


def build_towers(model: str = "tiny", pretrained: str | None = None, *, seed: int = 0) -> Towers:
    """Build the towers of any open_clip model.

    Args:
        model: ``tiny`` (ours, 48 px, for the embedded data sets), any open_clip model name, or ``local-dir:PATH``.
        pretrained: an open_clip pretrained tag or a weight file; None or "" starts at random (never silently:
            the name of the towers says so).
        seed: of the random initialisation.

    Raises:
        ValueError: the name is unknown to open_clip, or the pretrained weights are not there.
    """
    import open_clip

    name = _known_name(model)
    level = logging.root.level
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        logging.disable(logging.WARNING)  # open_clip warns that random weights are random; the name says it
        try:
            clip = open_clip.create_model(name, pretrained=pretrained or None, force_custom_text=True)
        except (RuntimeError, FileNotFoundError) as error:
            raise ValueError(f"weights {pretrained!r} of model {model!r} cannot be loaded: {error}") from error
        finally:
            logging.disable(logging.NOTSET)
            logging.root.setLevel(level)
    config = clip.visual.preprocess_cfg
    size = config["size"]
    return Towers(
        visual=clip.visual,
        text=clip.text,
        tokenizer=open_clip.get_tokenizer(name),
        image_size=size if isinstance(size, int) else size[0],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        embed_dim=open_clip.get_model_config(name)["embed_dim"],
        name=f"{model}:{pretrained or 'random'}",
    )


def _known_name(model: str) -> str:
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

    tokenizer = open_clip.get_tokenizer(_known_name(model))
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

    Trimming is exact for causal towers: no token sees what stands behind it. Towers without a causal mask keep their
    padding, which some of them were trained to see.

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
    if mask is not None:
        length = int((token_ids != 0).sum(dim=1).max())
        token_ids = token_ids[:, :length]
        buffers = {"attn_mask": mask[:length, :length]}
    hook = None
    if dropout and hasattr(text, "token_embedding"):
        hook = text.token_embedding.register_forward_hook(lambda _m, _i, out: nn.functional.dropout(out, dropout))
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
    return features, token_features, token_ids != 0
