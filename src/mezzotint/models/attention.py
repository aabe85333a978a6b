"""Attention, feed-forward and the transformer that sits behind a ResBlock; shared by the U-Net, the VAE and CLIP.

A cross-attention layer is an `Attention` with a `context` width. What it needs from the prompt, its keys and values,
does not depend on the image: `keys_values(context)` is called once per prompt, `forward(x, keys_values)` at every step.

Letters: b batch, c channels, h w rows and columns, l positions (h*w, or text tokens), n context tokens, d their width.

Source: Vaswani et al. 2017, arXiv:1706.03762; Rombach et al. 2022, arXiv:2112.10752, appendix E.2.1 (table 15);
Shazeer 2020, arXiv:2002.05202 (GEGLU).
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.models.blocks import ModuleList

TRANSFORMER_NORM_EPS = 1e-6  # the ResBlocks of the same U-Net use 1e-5

KeysValues = tuple[Tensor, ...]
"""What one cross-attention layer keeps of a prompt: keys and values, each [b heads n c/heads]; opaque elsewhere."""

LayerKeys = tuple[KeysValues, ...]
"""Those of one transformer layer, in execution order: one, or two where self-attention also looks at the context."""


class Attention(nn.Module):
    """Multi-head attention of `channels`-wide positions to themselves, or to a context of width `context`."""

    def __init__(self, channels: int, heads: int, *, context: int | None = None, has_bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels, bias=has_bias)
        self.k = nn.Linear(context or channels, channels, bias=has_bias)
        self.v = nn.Linear(context or channels, channels, bias=has_bias)
        self.out = nn.Linear(channels, channels)

    def keys_values(self, context: Float[Tensor, "b n d"]) -> KeysValues:
        """The part that does not depend on x."""
        return self._split(self.k(context)), self._split(self.v(context))

    def forward(
        self, x: Float[Tensor, "b l c"], keys_values: KeysValues | None = None, *, is_causal: bool = False
    ) -> Float[Tensor, "b l c"]:
        """`keys_values` None is self-attention; `is_causal` lets a position see itself and those before it."""
        k, v = self.keys_values(x) if keys_values is None else keys_values
        h = F.scaled_dot_product_attention(self._split(self.q(x)), k, v, is_causal=is_causal)  # [b heads l c/heads]
        return self.out(h.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], self.heads, -1).transpose(1, 2)  # [b heads l c/heads]


class FeedForward(nn.Module):
    """GEGLU: four times as wide inside, half of a double-width projection gating the other by the exact (erf) GELU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.in_ = nn.Linear(channels, 8 * channels)
        self.out = nn.Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        value, gate = self.in_(x).chunk(2, dim=-1)
        return self.out(value * F.gelu(gate))


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention (none without a context), feed-forward; each normalised before and added after.

    With `only_cross` the first attention looks at the context too (the x4 upscaler, where positions are too many).
    """

    def __init__(self, channels: int, heads: int, context: int | None, *, only_cross: bool = False) -> None:
        super().__init__()
        self.only_cross = only_cross
        self.norm_1 = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, heads, context=context if only_cross else None)
        self.norm_2 = None if context is None else nn.LayerNorm(channels)
        self.cross_attention = None if context is None else Attention(channels, heads, context=context)
        self.norm_3 = nn.LayerNorm(channels)
        self.feed_forward = FeedForward(channels)

    def prepare(self, context: Float[Tensor, "b n d"] | None) -> LayerKeys:
        """Keys and values of everything here that looks at the context."""
        if context is None or self.cross_attention is None:
            return ()
        cross = self.cross_attention.keys_values(context)
        return (self.self_attention.keys_values(context), cross) if self.only_cross else (cross,)

    def forward(self, x: Float[Tensor, "b l c"], keys: LayerKeys) -> Float[Tensor, "b l c"]:
        x = x + self.self_attention(self.norm_1(x), keys[0] if self.only_cross else None)
        if self.norm_2 is not None and self.cross_attention is not None:
            x = x + self.cross_attention(self.norm_2(x), keys[-1])
        return x + self.feed_forward(self.norm_3(x))


class Transformer(nn.Module):
    """`depth` layers over the positions of a feature map, added to it."""

    def __init__(
        self, channels: int, depth: int, heads: int, context: int | None, *, only_cross: bool, norm_groups: int
    ) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=TRANSFORMER_NORM_EPS)
        # SD 1 files store these two as 1x1 convolutions, later ones as Linear: the same function of each position.
        self.proj_in = nn.Linear(channels, channels)
        self.layers = ModuleList(
            TransformerLayer(channels, heads, context, only_cross=only_cross) for _ in range(depth)
        )
        self.proj_out = nn.Linear(channels, channels)

    def prepare(self, context: Float[Tensor, "b n d"] | None) -> tuple[LayerKeys, ...]:
        """Keys and values of every layer, in order."""
        return tuple(layer.prepare(context) for layer in self.layers)

    def forward(self, x: Float[Tensor, "b c h w"], keys: tuple[LayerKeys, ...]) -> Float[Tensor, "b c h w"]:
        h = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))  # [b l c]
        for layer, layer_keys in zip(self.layers, keys, strict=True):
            h = layer(h, layer_keys)
        return x + self.proj_out(h).transpose(1, 2).reshape(x.shape)
