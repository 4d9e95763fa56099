"""The cross-attention fusion encoder and its two-way matching head."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FusionEncoder(nn.Module):
    """Text tokens attend to themselves and to image tokens; the first token says whether the pair belongs together.

    Source: ``models/xvlm.py``, the upper BERT layers with cross-attention and the matching MLP (W -> 2W -> 2). Each
    layer is self-attention, cross-attention and MLP. Tokens of both sides are mapped to ``width``, ``W``; 0 takes the
    text tokens as they are, ``W = W_text``.
    """

    def __init__(self, text_width: int, image_width: int, layers: int, width: int = 0) -> None:
        super().__init__()
        self.width = width = width or text_width
        self.image_in = nn.Linear(image_width, width)
        self.text_in = nn.Identity() if width == text_width else nn.Linear(text_width, width)
        heads = max(1, width // (64 if width % 64 == 0 else 32))
        layer = nn.TransformerDecoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.matching_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, 2)
        )

    def forward(self, image_tokens: Tensor, text_tokens: Tensor, text_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Matching logits ``[B, 2]`` (class 1: "these belong together") and fused first tokens ``[B, W]`` of pairs.

        They are tokens ``[B, N, W_image]`` and ``[B, L, W_text]``, with bool ``[B, L]`` that is True at real ones.
        """
        fused = self.layers(self.text_in(text_tokens), self.image_in(image_tokens), tgt_key_padding_mask=~text_mask)
        return self.matching_head(fused[:, 0]), fused[:, 0]

    def project_images(self, image_tokens: Tensor) -> Tensor:
        """Keys and values of pictures ``[B, N, W_image]`` for every caption: ``[layers, 2, B, heads, N, W / heads]``.

        With them, :meth:`begin_texts` and :meth:`match_projected` give the logits of :meth:`forward` to rounding,
        without its repeated work.
        """
        memory = self.image_in(image_tokens)
        return torch.stack([_project(layer.multihead_attn, memory, 1, 3) for layer in self.layers.layers])

    def begin_texts(self, text_tokens: Tensor, text_mask: Tensor) -> Tensor:
        """Text tokens ``[B, L, W_text]``, bool mask ``[B, L]`` -> ``[B, L, W]`` after the first self-attention."""
        layer, text_tokens = self.layers.layers[0], self.text_in(text_tokens)
        normed = layer.norm1(text_tokens)
        return text_tokens + _attend(layer.self_attn, normed, normed, text_mask[:, None, None])

    def match_projected(self, keys_values: Tensor, image_rows: Tensor, texts: Tensor) -> Tensor:
        """Matching logits ``[P, 2]`` of pairs; the last layer computes only the first token.

        ``image_rows [P]`` (int64) say which picture of ``keys_values`` goes with which of the ``texts [P, L, W]`` of
        :meth:`begin_texts`, captions of one length with all tokens real.
        """
        last = len(self.layers.layers) - 1
        x = texts if last else texts[:, :1]
        for number, layer in enumerate(self.layers.layers):
            if number:  # the first self-attention is done
                normed = layer.norm1(x)
                queries = normed[:, :1] if number == last else normed
                x = x[:, : queries.shape[1]] + _attend(layer.self_attn, queries, normed)
            queries = _project(layer.multihead_attn, layer.norm2(x), 0, 1)[0]
            keys, values = keys_values[number, 0, image_rows], keys_values[number, 1, image_rows]
            attended = F.scaled_dot_product_attention(queries, keys, values)
            x = x + layer.multihead_attn.out_proj(attended.transpose(1, 2).flatten(2))
            x = x + layer.linear2(layer.activation(layer.linear1(layer.norm3(x))))
        assert self.layers.norm is not None
        return self.matching_head(self.layers.norm(x[:, 0]))


def _project(attention: nn.MultiheadAttention, x: Tensor, begin: int, end: int) -> Tensor:
    """Queries (0), keys (1), values (2) from ``begin`` to before ``end``: ``[.., B, heads, L, W / heads]``."""
    rows = slice(begin * attention.embed_dim, end * attention.embed_dim)
    projected = F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
    return projected.unflatten(-1, (end - begin, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)


def _attend(attention: nn.MultiheadAttention, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
    """Self-attention of ``x [B, L, W]`` to ``context [B, L', W]`` of the same captions; mask True where real."""
    queries, (keys, values) = _project(attention, x, 0, 1)[0], _project(attention, context, 1, 3)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return attention.out_proj(attended.transpose(1, 2).flatten(2))
