"""The cross-attention fusion encoder and its binary matching head."""

from torch import Tensor, nn


class FusionEncoder(nn.Module):
    """Text tokens attend to themselves and to image tokens; the first token predicts whether the pair matches.

    Source: ``models/xvlm.py``, the upper BERT layers with cross-attention and the matching MLP (W -> 2W -> 2). Each
    layer is self-attention, cross-attention and an MLP. Tokens of both modalities are projected to ``width``, ``W``;
    ``width=0`` leaves text tokens as they are, ``W = W_text``.
    """

    def __init__(self, text_width: int, image_width: int, layers: int, width: int = 0) -> None:
        super().__init__()
        self.width = width = width or text_width
        self.image_in = nn.Linear(image_width, width)
        self.text_in = nn.Identity() if width == text_width else nn.Linear(text_width, width)
        heads = max(1, width // (64 if width % 64 == 0 else 32))
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        head = nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, 2)
        self.matching_head = nn.Sequential(*head)

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Matching logits ``[B, 2]`` (class 1: the pair matches) and fused first tokens ``[B, W]``.

        Of pairs of tokens ``[B, N, W_image]`` and ``[B, L, W_text]``, with a bool mask ``[B, L]``, True at real tokens.
        """
        return self.fuse(self.image_in(image_tokens), self.text_in(text_tokens), text_mask)

    def fuse(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Apply :meth:`forward` to tokens already projected to ``W``, so that shared tokens are projected only once."""
        fused = self.layers(text_tokens, image_tokens, tgt_key_padding_mask=~text_mask)
        return self.matching_head(fused[:, 0]), fused[:, 0]

    def match_texts(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """Matching logits ``[P, 2]`` of one picture ``[N, W_image]`` with captions ``[P, L, W_text]``, for re-ranking.

        Equal to :meth:`forward` up to rounding; projects the picture once and skips unused tokens in the last layer.
        """
        picture, x, last = self.image_in(image_tokens)[None], self.text_in(text_tokens), self.layers.layers[-1]
        for layer in self.layers.layers:
            normed = layer.norm1(x)
            queries = normed[:, :1] if layer is last else normed
            attended = layer.self_attn(queries, normed, normed, key_padding_mask=~text_mask, need_weights=False)[0]
            x = x[:, : queries.shape[1]] + attended
            sequence = layer.norm2(x).flatten(0, 1)[None]  # the tokens of all captions as one sequence
            x = x + layer.multihead_attn(sequence, picture, picture, need_weights=False)[0].view_as(x)
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        return self.matching_head(self.layers.norm(x[:, 0]))  # type: ignore[misc]
