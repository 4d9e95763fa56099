"""The cross-attention fusion encoder and its two-way matching head."""

from torch import Tensor, nn


class FusionEncoder(nn.Module):
    """Text tokens attend to themselves and to image tokens; the first token says whether the pair belongs together.

    Source: ``models/xvlm.py``, the upper BERT layers with cross-attention and the matching MLP (W -> 2W -> 2).

    Args:
        text_width: width of the text tokens, and of the encoder.
        image_width: width of the image tokens.
        layers: number of layers, each self-attention, cross-attention and MLP.
        heads: attention heads; must divide ``text_width``.
    """

    def __init__(self, text_width: int, image_width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.image_in = nn.Linear(image_width, text_width)
        layer = nn.TransformerDecoderLayer(
            text_width, heads, 4 * text_width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(text_width))
        self.matching_head = nn.Sequential(
            nn.Linear(text_width, 2 * text_width), nn.LayerNorm(2 * text_width), nn.GELU(), nn.Linear(2 * text_width, 2)
        )

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Score pairs.

        Args:
            image_tokens: ``[B, N, W_image]``.
            text_tokens: ``[B, L, W]``.
            text_mask: bool ``[B, L]``, True at real tokens.

        Returns:
            Matching logits ``[B, 2]`` (class 1: "these belong together") and the fused first token ``[B, W]``.
        """
        fused = self.layers(text_tokens, self.image_in(image_tokens), tgt_key_padding_mask=~text_mask)
        first = fused[:, 0]
        return self.matching_head(first), first
