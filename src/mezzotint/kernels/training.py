"""Networks of the family as they are trained on a processor: the same weights and function, quicker both ways.

`quicken` gives modules of a network forward methods of the classes here: GroupNorm with SiLU, GEGLU and attention
compiled with their gradients, one product for queries, keys and values, 1x1 convolutions as products, and 3x3 ones in
bfloat16 with their gradients by Winograd's way (16 multiplications instead of 36). In float32, a nearest upsampling and
the 3x3 convolution behind it are 2x2 convolutions (16 instead of 36, too). It is done to the working copies of a run,
never to a network that is anybody's. Forward hooks of the layers inside are not called.
"""

import os
from typing import Literal, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.gradients import (
    attention,
    convolution,
    doubled_convolution,
    geglu,
    group_norm,
    pointwise,
    self_attention,
)
from mezzotint.kernels.packed import side_by_side
from mezzotint.kernels.policy import VARIABLE
from mezzotint.models.attention import Attention, FeedForward, KeysValues, LayerKeys, Transformer
from mezzotint.models.blocks import ResBlock, Upsample
from mezzotint.models.unet import Prepared, UNet
from mezzotint.models.vae import Decoder, Encoder

TrainingKernels = Literal["torch", "native"]
"""How a run computes: every module as torch runs it, or quickened. Stands in checkpoints, and a run keeps it; only
where the compiled operations are gone does it go on as torch does, with a warning.
"""

N = TypeVar("N", bound=nn.Module)


def possible(asked: TrainingKernels = "native") -> TrainingKernels:
    """What is asked for, if the compiled operations are built here and MEZZOTINT_KERNELS does not say otherwise."""
    is_native = asked == "native" and os.environ.get(VARIABLE, "auto") in {"auto", "native"} and native.available()
    return "native" if is_native else "torch"


def quicken(network: N) -> N:
    """The network itself, its blocks made quick. In place: give it a copy."""
    for module in network.modules():
        quick = _QUICK.get(type(module))
        if quick is not None:
            module.__class__ = quick
    return network


class QuickResBlock(ResBlock):
    """A ResBlock of channels-last maps."""

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        shift = None if self.emb is None else self.emb(emb)
        h = convolution(group_norm(x, self.norm_1, is_silu=True), self.conv_1)
        h = convolution(group_norm(h, self.norm_2, is_silu=True, shift=shift), self.conv_2)
        return (pointwise(x, self.shortcut) if isinstance(self.shortcut, nn.Conv2d) else x) + h


class QuickGroupNorm(nn.GroupNorm):
    """A GroupNorm that stands alone, of channels-last maps."""

    def forward(self, input: Tensor) -> Tensor:
        return group_norm(input, self, is_silu=False) if input.ndim == 4 and self.affine else super().forward(input)


class QuickUpsample(Upsample):
    """Nearest neighbour to twice the size, and the convolution behind it."""

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if size != (2 * x.shape[-2], 2 * x.shape[-1]):
            return super().forward(x, size)
        return doubled_convolution(x, self.conv)


class QuickTransformer(Transformer):
    """Layers over the positions of a channels-last map, whose tokens are a view of it."""

    def forward(self, x: Tensor, keys: tuple[LayerKeys, ...]) -> Tensor:
        normed = group_norm(x, self.norm, is_silu=False).permute(0, 2, 3, 1)  # [b h w c]
        h = self.proj_in(normed.flatten(1, 2))
        for layer, layer_keys in zip(self.layers, keys, strict=True):
            h = layer(h, layer_keys)
        return x + self.proj_out(h).view(normed.shape).permute(0, 3, 1, 2)


class QuickAttention(Attention):
    """Attention in bfloat16 compiled; where positions look at themselves, one product for queries, keys and values."""

    def forward(self, x: Tensor, keys_values: KeysValues | None = None, *, is_causal: bool = False) -> Tensor:
        if keys_values is None:
            fused = F.linear(x, *side_by_side([self.q, self.k, self.v]))
            h = self_attention(fused.view(*x.shape[:2], 3, self.heads, -1), is_causal=is_causal)
        else:
            q = self.q(x).view(*x.shape[:2], self.heads, -1)
            h = attention(q, *(part.transpose(1, 2) for part in keys_values), is_causal=is_causal)
        return self.out(h.flatten(2))


class QuickFeedForward(FeedForward):
    """GEGLU, and nothing kept for its gradient but what goes into it."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(geglu(self.in_(x)))


class QuickUNet(UNet):
    """A U-Net whose maps are channels-last from the first one on, so that no skip is another way round."""

    def forward(self, x: Tensor, t: Tensor, prepared: Prepared) -> Tensor:
        return super().forward(_channels_last(x), t, prepared)


class QuickEncoder(Encoder):
    """Its maps likewise."""

    def forward(self, image: Tensor) -> Tensor:
        return super().forward(_channels_last(image))


class QuickDecoder(Decoder):
    """Its maps likewise."""

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(_channels_last(z))


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


_QUICK: dict[type[nn.Module], type[nn.Module]] = {
    UNet: QuickUNet,
    Encoder: QuickEncoder,
    Decoder: QuickDecoder,
    nn.GroupNorm: QuickGroupNorm,
    ResBlock: QuickResBlock,
    Upsample: QuickUpsample,
    Transformer: QuickTransformer,
    Attention: QuickAttention,
    FeedForward: QuickFeedForward,
}
