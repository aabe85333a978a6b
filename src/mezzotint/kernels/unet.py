"""The U-Net executed with packed weights: the same function from the same modules, in fewer and larger operations.

Everything is channels last, so that a feature map and the positions of a transformer are one memory. Queries, keys and
values of self-attention are one product; the gate of the feed-forward multiplies inside its second product; biases,
time embeddings and residuals are added where the convolution or product writes its result; what a timestep adds to all
blocks is one product, remembered by timestep. Rows that cannot differ yet, as with guidance before the first
cross-attention, are computed once. A nearest upsampling and the 3x3 convolution behind it are one 2x2 convolution
with four times the outputs: 16 multiplications instead of 36. Convolutions in bfloat16 go by Winograd's way where the
compiled kernels are: again 16 instead of 36, or 9 behind an upsampling.

The modules stay what they are: their hooks are called, and a layer that something was attached to runs as it is.

Letters: b batch, c channels, h w rows and columns, l = h*w positions, e width of the time embedding.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.kernels.memory import Memory
from mezzotint.kernels.workshop import Workshop
from mezzotint.models.attention import Attention, FeedForward, KeysValues, LayerKeys, Transformer, TransformerLayer
from mezzotint.models.blocks import ResBlock, Upsample
from mezzotint.models.unet import Block, Conditioning, Middle, Prepared, UNet, timestep_embedding

REMEMBERED_TIMESTEPS = 256
LAST_BLOCKS = 2  # that run at every query even if the rest is remembered
AT_ONCE, LEAST = 1 << 21, 1024  # numbers inside a feed-forward; positions that are worth reading its weights for


class Told(NamedTuple):
    """What a timestep says to all ResBlocks: emb after SiLU, and its part for each, as a shift or inside the bias."""

    emb: Float[Tensor, "b e"]
    shifts: Sequence[Tensor]  # [b o] per ResBlock
    biases: Sequence[Tensor | None]  # [o] per ResBlock: shift and bias together; None where rows are told differently


class FastUNet:
    """`prepare` and call are those of the U-Net that it was made from."""

    def __init__(self, unet: UNet, shop: Workshop) -> None:
        self.original = unet
        self.config = unet.config
        self.vector_in, self.vector_out = unet.vector_in, unet.vector_out
        self.label_embedding, self.guidance_in = unet.label_embedding, unet.guidance_in
        self._normalise = shop.kernels.normalise
        self._conv_in = shop.exact.convolution(unet.conv_in)
        self._down = [([_Block(block, shop) for block in level.blocks], level.resample) for level in unet.down]
        self._halve = [None if part is None else shop.convolution(part.conv) for _, part in self._down]
        self._middle = None if unet.middle is None else _Middle(unet.middle, shop)
        self._up = [([_Block(block, shop) for block in level.blocks], level.resample) for level in unet.up]
        self._up[-1][0][-1] = _Block(self._up[-1][0][-1].module, shop.exact)  # its errors reach the output whole
        self._double = [None if part is None else _Double(part, shop) for _, part in self._up]
        self._conv_out = shop.exact.convolution(unet.conv_out)
        self._res = [res for step in self.steps() for res in step.res_blocks]
        for place, res in enumerate(self._res):
            res.place = place
        self._shift = shop.exact.linear(*[res.module.emb for res in self._res if res.module.emb is not None])
        self._remembered: OrderedDict[float, Told] = OrderedDict()

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """Everything that depends on the conditioning alone."""
        return UNet.prepare(cast(UNet, self), conditioning)  # its code, with the `steps` of this class

    def steps(self) -> "Iterator[_Block | _Middle]":
        """Whatever holds transformers, in execution order: the order of `Prepared.keys`."""
        for blocks, _ in self._down:
            yield from blocks
        if self._middle is not None:
            yield self._middle
        for blocks, _ in self._up:
            yield from blocks

    def __call__(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], prepared: Prepared, memory: Memory | None = None
    ) -> Float[Tensor, "b o h w"]:
        """The network's output F for x already scaled by c_in; with a memory, an approximation of it."""
        unet, rows = self.original, len(x)
        _before(unet, x, t, prepared)
        if prepared.concat is not None:
            x = torch.cat([x, prepared.concat], dim=1)
        if x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x and concat: {x.shape[1]} channels together → {self.config.in_channels} expected")
        told = self._told(t, x.dtype, prepared)
        if rows > 1 and all(bias is not None for bias in told.biases) and _are_equal(x):
            x = x[:1]  # until something looks at the prompt, all rows are the same

        x = x.contiguous(memory_format=torch.channels_last)
        h = _seen(unet.conv_in, self._conv_in(x), x)
        deep = None if memory is None or prepared.control is not None else memory.recall(rows, (h.shape[2], h.shape[3]))
        h = self._whole(h, told, prepared, memory) if deep is None else self._shallow(h, deep, told, prepared)
        h = self._normalise(h, unet.norm_out, is_silu=True)
        out = _seen(unet.conv_out, self._conv_out(h), h)
        return _seen(unet, out.expand(rows, -1, -1, -1), x, t, prepared)

    def _shallow(self, h: Tensor, deep: Tensor, told: Told, prepared: Prepared) -> Tensor:
        """The first block and the last two, with the map that lay between them at an earlier query."""
        skips = [h, self._down[0][0][0](h, told, prepared.keys[0])]
        h = deep
        for block, keys in zip(self._up[-1][0][-LAST_BLOCKS:], prepared.keys[-LAST_BLOCKS:], strict=True):
            h = block(_joined(h, skips.pop()), told, keys)
        return h

    def _whole(self, h: Tensor, told: Told, prepared: Prepared, memory: Memory | None) -> Tensor:
        """All blocks."""
        keys = iter(prepared.keys)
        skips = [h]
        for (blocks, resample), halve in zip(self._down, self._halve, strict=True):
            for block in blocks:
                h = block(h, told, next(keys))
                skips.append(h)
            if resample is not None and halve is not None:
                h = _seen(resample, halve(h), h)
                skips.append(h)
        if self._middle is not None:
            h = self._middle(h, told, next(keys))
        if prepared.control is not None:
            skips = [skip + added for skip, added in zip(skips, prepared.control.down, strict=True)]
            h = h + prepared.control.middle
        for (blocks, resample), double in zip(self._up, self._double, strict=True):
            for block in blocks:
                if memory is not None and len(skips) == LAST_BLOCKS:
                    memory.keep(h)
                h = block(_joined(h, skips.pop()), told, next(keys))
            if resample is not None and double is not None:
                size = skips[-1].shape[-2:]
                h = _seen(resample, double(h, (size[0], size[1])), h, size)
        return h

    def _told(self, t: Tensor, dtype: torch.dtype, prepared: Prepared) -> Told:
        """From memory where only one timestep is told."""
        is_one = prepared.emb is None and prepared.guidance is None and bool((t == t[0]).all())
        key = float(t[0])
        if is_one and key in self._remembered:
            self._remembered.move_to_end(key)
            return self._remembered[key]
        told = self._computed(t[:1] if is_one else t, dtype, prepared, is_one=is_one)
        if is_one:
            self._remembered[key] = told
            if len(self._remembered) > REMEMBERED_TIMESTEPS:
                self._remembered.popitem(last=False)
        return told

    def _computed(self, t: Tensor, dtype: torch.dtype, prepared: Prepared, *, is_one: bool) -> Told:
        unet = self.original
        sinusoid = timestep_embedding(t, self.config.levels[0].channels).to(dtype)
        if prepared.guidance is not None:
            sinusoid = sinusoid + prepared.guidance
        emb = unet.time_out(F.silu(unet.time_in(sinusoid)))
        if prepared.emb is not None:
            emb = emb + prepared.emb
        emb = F.silu(emb)
        ends = list(accumulate(res.channels for res in self._res))
        whole = self._shift(emb)
        shifts = [whole[:, end - res.channels : end] for res, end in zip(self._res, ends, strict=True)]
        biases = [res.bias(shift[0]) if is_one else None for res, shift in zip(self._res, shifts, strict=True)]
        return Told(emb, shifts, biases)


class _Res:
    """A ResBlock."""

    place = 0  # among all of the network

    def __init__(self, module: ResBlock, shop: Workshop) -> None:
        self.module = module
        self.channels = module.norm_2.num_channels
        self._normalise = shop.kernels.normalise
        self._conv_1, self._conv_2 = shop.convolution(module.conv_1), shop.convolution(module.conv_2)
        self._shortcut = None if isinstance(module.shortcut, nn.Identity) else shop.convolution(module.shortcut)

    def bias(self, shift: Float[Tensor, "o"]) -> Tensor | None:
        """The first convolution's bias with the time embedding in it; None if something was attached to it."""
        if type(self.module.conv_1) is not nn.Conv2d or self.module.conv_1.bias is None:
            return None
        return (self.module.conv_1.bias.float() + shift.float()).to(shift.dtype)

    def __call__(self, x: Tensor, told: Told) -> Tensor:
        module, bias = self.module, told.biases[self.place]
        h = self._normalise(x, module.norm_1, is_silu=True)
        h = self._conv_1(h, bias=bias)
        h = self._normalise(h, module.norm_2, is_silu=True, shift=told.shifts[self.place] if bias is None else None)
        return self._conv_2(h, add=x if self._shortcut is None else self._shortcut(x))


class _Block:
    """A ResBlock and, where there is one, a transformer."""

    def __init__(self, module: Block, shop: Workshop) -> None:
        self.module = module
        self.res_blocks = [_Res(module.res, shop)]
        self._attn = None if module.attn is None else _Transformer(module.attn, shop)

    def prepare(self, context: Tensor | None) -> tuple[LayerKeys, ...]:
        """Keys and values of the transformer's layers."""
        return () if self._attn is None else self._attn.prepare(context)

    def __call__(self, x: Tensor, told: Told, keys: tuple[LayerKeys, ...]) -> Tensor:
        h = self.res_blocks[0](x, told)
        return _seen(self.module, h if self._attn is None else self._attn(h, keys), x, told.emb, keys)


class _Middle:
    """Two ResBlocks and, where there is one, a transformer between them."""

    def __init__(self, module: Middle, shop: Workshop) -> None:
        self.module = module
        self.res_blocks = [_Res(module.res_in, shop), _Res(module.res_out, shop)]
        self._attn = None if module.attn is None else _Transformer(module.attn, shop)

    def prepare(self, context: Tensor | None) -> tuple[LayerKeys, ...]:
        """Keys and values of the transformer's layers."""
        return () if self._attn is None else self._attn.prepare(context)

    def __call__(self, x: Tensor, told: Told, keys: tuple[LayerKeys, ...]) -> Tensor:
        h = self.res_blocks[0](x, told)
        h = self.res_blocks[1](h if self._attn is None else self._attn(h, keys), told)
        return _seen(self.module, h, x, told.emb, keys)


class _Double:
    """Nearest neighbour to twice the size or one less, and the convolution behind it."""

    def __init__(self, module: Upsample, shop: Workshop) -> None:
        self._plain = shop.convolution(module.conv)
        self._doubled = shop.doubled(module.conv) if type(module.conv) is nn.Conv2d else None

    def __call__(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if self._doubled is not None and size == (2 * x.shape[2], 2 * x.shape[3]):
            return self._doubled(x)
        doubled = F.interpolate(x, size=size, mode="nearest")
        return self._plain(doubled.contiguous(memory_format=torch.channels_last))


class _Transformer:
    """`depth` layers over the positions of a map, added to it."""

    def __init__(self, module: Transformer, shop: Workshop) -> None:
        self._norm, self._normalise = module.norm, shop.kernels.normalise
        self._proj_in, self._proj_out = shop.linear(module.proj_in), shop.linear(module.proj_out)
        self._layers = [_Layer(layer, shop) for layer in module.layers]

    def prepare(self, context: Tensor | None) -> tuple[LayerKeys, ...]:
        """Keys and values of every layer, in order."""
        return tuple(layer.prepare(context) for layer in self._layers)

    def __call__(self, x: Float[Tensor, "b c h w"], keys: tuple[LayerKeys, ...]) -> Float[Tensor, "b c h w"]:
        _, c, height, width = x.shape
        h = self._proj_in(_tokens(self._normalise(x, self._norm, is_silu=False)))
        for layer, layer_keys in zip(self._layers, keys, strict=True):
            h = layer(h, layer_keys)
        out = self._proj_out(h, add=_as_many(_tokens(x), h))
        return out.view(len(h), height, width, c).permute(0, 3, 1, 2)


class _Layer:
    """Self-attention, cross-attention, feed-forward."""

    def __init__(self, module: TransformerLayer, shop: Workshop) -> None:
        self._module = module
        self._self = _SelfAttention(module.self_attention, shop) if not module.only_cross else None
        self._crosses = [_CrossAttention(module.self_attention, shop)] if module.only_cross else []
        self._norms = [module.norm_1] if module.only_cross else []
        if module.cross_attention is not None and module.norm_2 is not None:
            self._crosses.append(_CrossAttention(module.cross_attention, shop))
            self._norms.append(module.norm_2)
        self._feed_forward = _FeedForward(module.feed_forward, shop)

    def prepare(self, context: Tensor | None) -> LayerKeys:
        """Keys and values of everything here that looks at the context."""
        return () if context is None else tuple(cross.keys_values(context) for cross in self._crosses)

    def __call__(self, x: Float[Tensor, "b l c"], keys: LayerKeys) -> Float[Tensor, "b l c"]:
        if self._self is not None:
            x = self._self(self._module.norm_1(x), x)
        for norm, cross, cross_keys in zip(self._norms, self._crosses, keys, strict=True):
            x = _as_many(x, cross_keys[0])
            x = cross(norm(x), cross_keys, x)
        return self._feed_forward(self._module.norm_3(x), x)


class _SelfAttention:
    """Attention of positions to one another, added to `residual`."""

    def __init__(self, module: Attention, shop: Workshop) -> None:
        self._module, self._attend = module, shop.kernels.attend
        self._is_known = type(module) is Attention
        if self._is_known:
            self._qkv, self._out = shop.linear(module.q, module.k, module.v), shop.linear(module.out)

    def __call__(self, x: Float[Tensor, "b l c"], residual: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        if not self._is_known:
            return residual + self._module(x)
        _before(self._module, x, None)
        qkv = self._qkv(x).view(*x.shape[:2], 3, self._module.heads, -1)  # [b l 3 heads d]
        h = self._attend(qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]).flatten(2)
        return _added(self._module, self._out, h, residual, x, None)


class _CrossAttention:
    """Attention of positions to a prompt, added to `residual`."""

    def __init__(self, module: Attention, shop: Workshop) -> None:
        self._module, self._attend = module, shop.kernels.attend
        self._is_known = type(module) is Attention
        if self._is_known:
            self._q, self._kv = shop.linear(module.q), shop.exact.linear(module.k, module.v)
            self._out = shop.linear(module.out)

    def keys_values(self, context: Float[Tensor, "b n d"]) -> KeysValues:
        """As the module gives them: keys and values, [b heads n d]."""
        if not self._is_known:
            return self._module.keys_values(context)
        kv = self._kv(context).view(*context.shape[:2], 2, self._module.heads, -1)  # [b n 2 heads d]
        return kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)

    def __call__(
        self, x: Float[Tensor, "b l c"], keys: KeysValues, residual: Float[Tensor, "b l c"]
    ) -> Float[Tensor, "b l c"]:
        if not self._is_known:
            return residual + self._module(x, keys)
        _before(self._module, x, keys)
        q = self._q(x).view(*x.shape[:2], self._module.heads, -1)  # [b l heads d]
        h = self._attend(q, keys[0].transpose(1, 2), keys[1].transpose(1, 2)).flatten(2)
        return _added(self._module, self._out, h, residual, x, keys)


class _FeedForward:
    """GEGLU, added to `residual`: the gate multiplies inside the product that makes the values.

    Many positions go a part at a time, so that gates and values are still in the cache when they are read.
    """

    def __init__(self, module: FeedForward, shop: Workshop) -> None:
        self._module = module
        self._is_known = type(module) is FeedForward and type(module.in_) is nn.Linear
        if self._is_known:
            self._out = shop.linear(module.out)
            self._inner = inner = module.in_.out_features // 2
            self._value, self._gate = shop.part(module.in_, slice(0, inner)), shop.part(module.in_, slice(inner, None))

    def __call__(self, x: Float[Tensor, "b l c"], residual: Float[Tensor, "b l c"]) -> Float[Tensor, "b l c"]:
        if not self._is_known:
            return residual + self._module(x)
        positions = x.shape[0] * x.shape[1]
        parts = min(positions * self._inner // AT_ONCE, positions // LEAST)
        if parts < 2:
            return self._computed(x, residual)
        out = torch.empty_like(residual, memory_format=torch.contiguous_format)
        each = (part.flatten(0, 1).chunk(parts) for part in (x, residual, out))
        for part, beside, to in zip(*each, strict=True):
            to.copy_(self._computed(part, beside))
        return out

    def _computed(self, x: Tensor, residual: Tensor) -> Tensor:
        return self._out(self._value(x, mul=self._gate(x, is_gelu=True)), add=residual)


def _tokens(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b l c"]:
    """The positions of a channels-last map: the same memory."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _as_many(x: Tensor, other: Tensor) -> Tensor:
    """x with as many rows as `other`: one row that stood for all is repeated."""
    return x if len(x) == len(other) else x.expand(len(other), *x.shape[1:]).contiguous()


def _joined(x: Float[Tensor, "b c h w"], skip: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Both, channels behind channels, channels last."""
    rows = max(len(x), len(skip))
    parts = [part.expand(rows, -1, -1, -1).permute(0, 2, 3, 1) for part in (x, skip)]
    return torch.cat(parts, dim=-1).permute(0, 3, 1, 2)


def _are_equal(x: Tensor) -> bool:
    return all(torch.equal(x[0], row) for row in x[1:])


def _added(module: nn.Module, out: Any, h: Tensor, residual: Tensor, *arguments: object) -> Tensor:  # Any: a Linear
    """The output projection, added to the residual; apart from it where somebody looks at the module's output."""
    if cast(Any, module)._forward_hooks:  # Any: what calling the module would look at
        return residual + _seen(module, out(h), *arguments)
    return out(h, add=residual)


def _before(module: nn.Module, *arguments: object) -> None:
    """Call the hooks of those who look at what the module is called with."""
    for hook in list(cast(Any, module)._forward_pre_hooks.values()):  # Any: as above
        hook(module, arguments)


def _seen(module: nn.Module, output: Tensor, *arguments: object) -> Tensor:
    """The output, after the hooks of those who look at it were called."""
    for hook in list(cast(Any, module)._forward_hooks.values()):  # Any: as above
        hook(module, arguments, output)
    return output
