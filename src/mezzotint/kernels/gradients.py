"""Operations of a training step with their gradients: compiled ones, and convolutions in the order that is quickest.

What lies between input and output of an operation is computed again in float32 for the gradient, never stored. Maps are
channels-last.

Letters: b batch, c o channels in and out, h w rows and columns, n rows of a product, k side of a filter; of attention,
l queries, n keys, d width of a head.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mezzotint.kernels import native
from mezzotint.kernels.packed import doubled, phases

_ops: Any = torch.ops.mezzotint  # Any: torch leaves its operators untyped


SMALL = 6  # columns of maps below which oneDNN's channels-last convolutions, and its gradients of weights, are slow


def group_norm(
    x: Float[Tensor, "b c h w"], norm: nn.GroupNorm, *, is_silu: bool, shift: Float[Tensor, "b c"] | None = None
) -> Float[Tensor, "b c h w"]:
    """GroupNorm of x + shift, then SiLU if asked. Compiled only (`native.available`); float32 or bfloat16."""
    x = x.contiguous(memory_format=torch.channels_last)
    return _apply(_GroupNorm, x, norm.weight, norm.bias, shift, norm.num_groups, norm.eps, is_silu)


def geglu(x: Float[Tensor, "*n c2"]) -> Float[Tensor, "*n c"]:
    """The first half of the last dimension times the exact GELU of the second. Compiled only."""
    return _apply(_Geglu, x.contiguous())


def attention(
    q: Float[Tensor, "b l heads d"],
    k: Float[Tensor, "b n heads d"],
    v: Float[Tensor, "b n heads d"],
    *,
    is_causal: bool = False,
) -> Float[Tensor, "b l heads d"]:
    """softmax(q k^T / sqrt(d)) v. Compiled for bfloat16, widths that are multiples of 8, and no mask; else by torch.

    Compiled where there are bfloat16 pairs (AVX512-BF16): on processors with AMX too, whose tiles it does not use.
    """
    if not is_causal and native.has_gradient(q, k, v):
        return _apply(_Attention, q, k, v)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, is_causal=is_causal).transpose(1, 2)


def self_attention(fused: Float[Tensor, "b l 3 heads d"], *, is_causal: bool = False) -> Float[Tensor, "b l heads d"]:
    """`attention` of queries, keys and values that are one product, and whose gradient is one tensor."""
    q, k, v = fused.unbind(2)
    if not is_causal and native.has_gradient(q, k, v):
        return _apply(_Attention, fused)
    return attention(q, k, v, is_causal=is_causal)


def convolution(x: Float[Tensor, "b c h w"], module: nn.Conv2d) -> Float[Tensor, "b o h w"]:
    """The module's convolution of a channels-last map."""
    if native.convolves(module) and x.dtype is torch.bfloat16:
        return _apply(_Winograd, x, module.weight, module.bias)
    if x.shape[-1] < SMALL and module.kernel_size == (3, 3) and module.stride == (1, 1) and module.padding == (1, 1):
        return _apply(_SmallConvolution, x, module.weight, module.bias)
    return F.conv2d(x, module.weight, module.bias, module.stride, cast(Any, module.padding))  # Any: a pair here


def doubled_convolution(x: Float[Tensor, "b c h w"], module: nn.Conv2d) -> Float[Tensor, "b o 2h 2w"]:
    """The module's 3x3 convolution, padding 1, of the nearest upsampling of a channels-last map."""
    if native.convolves(module) and x.dtype is torch.bfloat16:
        return _apply(_DoubledWinograd, x, module.weight, module.bias)
    weight, bias = phases(module)
    return interleaved(F.conv2d(x, weight.to(x.dtype), bias, padding=1))


def pointwise(x: Float[Tensor, "b c h w"], module: nn.Conv2d) -> Float[Tensor, "b o h w"]:
    """A 1x1 convolution of a channels-last map, as a product."""
    return F.linear(x.permute(0, 2, 3, 1), module.weight.flatten(1), module.bias).permute(0, 3, 1, 2)


def interleaved(four: Float[Tensor, "b 4o h1 w1"]) -> Float[Tensor, "b o 2h 2w"]:
    """The four phases of a 2x2 convolution with padding 1 (`packed.phases`) as one map of twice the size."""
    return _apply(_Interleave, four)


class _GroupNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, shift: Tensor | None, groups: int, eps: float, is_silu: bool
    ) -> Tensor:  # Any: torch leaves it untyped, here and below
        y, told = _ops.group_norm_forward(x, groups, weight, bias, eps, is_silu, shift, x.dtype)
        ctx.save_for_backward(x, weight, shift, told)
        ctx.groups, ctx.is_silu = groups, is_silu
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        x, weight, shift, told = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        dx, dweight, dbias, dshift = _ops.group_norm_backward(g, x, ctx.groups, weight, shift, ctx.is_silu, told)
        dshift = None if shift is None else dshift.to(shift.dtype)
        return dx, dweight.to(weight.dtype), dbias.to(weight.dtype), dshift, None, None, None


class _Geglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return _ops.geglu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        return _ops.geglu_backward(grads[0].contiguous(), ctx.saved_tensors[0])


class _Attention(torch.autograd.Function):
    """Of one fused [b l 3 heads d], or of queries, keys and values."""

    @staticmethod
    def forward(ctx: Any, *parts: Tensor) -> Tensor:
        q, k, v = _three(parts)
        y, log_sum = _ops.attention_forward(q, k, v, q.shape[-1] ** -0.5)
        ctx.save_for_backward(y, log_sum, *parts)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        y, log_sum, *parts = ctx.saved_tensors
        g = grads[0] if grads[0].stride(-1) == 1 else grads[0].contiguous()
        found = tuple(part.new_empty(part.shape) for part in parts)
        _ops.attention_backward(g, *_three(parts), y, log_sum, y.shape[-1] ** -0.5, *_three(found))
        return found


class _Winograd(torch.autograd.Function):
    """3x3, padding 1: forward and both gradients of 16 products instead of 36."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        return native.convolve_together(x, native.convolution_weights(weight), bias.float())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        g, (x, weight) = grads[0].contiguous(memory_format=torch.channels_last), ctx.saved_tensors
        turned = native.convolution_weights(weight, is_turned=True)
        dx = native.convolve_together(g, turned, torch.zeros(weight.shape[1]))
        return dx, native.convolution_gradient(g, x), g.sum((0, 2, 3))


class _DoubledWinograd(torch.autograd.Function):
    """Behind a nearest upsampling: forward of 9 products, gradients of 16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        ctx.save_for_backward(x, weight)
        arranged = native.convolution_weights(weight, is_doubled=True)
        return native.convolve_together(x, arranged, bias.float(), is_doubled=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        g, (x, weight) = grads[0].contiguous(memory_format=torch.channels_last), ctx.saved_tensors
        four = native.convolve_together(
            g, native.convolution_weights(weight, is_turned=True), torch.zeros(weight.shape[1])
        )
        large = F.interpolate(x, scale_factor=2, mode="nearest").contiguous(memory_format=torch.channels_last)
        dx = F.avg_pool2d(four, 2, divisor_override=1)  # of the four copies of each input
        return dx, native.convolution_gradient(g, large), g.sum((0, 2, 3))


class _SmallConvolution(torch.autograd.Function):
    """3x3, padding 1: forward and to x by oneDNN in rows of pictures, to the weights as one product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x.contiguous(), weight, bias, padding=1).contiguous(memory_format=torch.channels_last)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        g, (x, weight) = grads[0], ctx.saved_tensors
        dx, _, _ = _backward(g.contiguous(), x.contiguous(), weight, [True, False, False])
        return dx.contiguous(memory_format=torch.channels_last), *_to_weights(g, x, weight)


class _Interleave(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, four: Tensor) -> Tensor:
        return doubled(four)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides its names
        b, o, h, w = grads[0].shape[0], grads[0].shape[1], grads[0].shape[2] // 2, grads[0].shape[3] // 2
        four = grads[0].new_zeros(b, h + 1, w + 1, 4 * o).permute(0, 3, 1, 2)
        for phase in range(4):
            i, j = divmod(phase, 2)
            four[:, phase * o : (phase + 1) * o, i : i + h, j : j + w] = grads[0][:, :, i::2, j::2]
        return four


def _three(parts: Sequence[Tensor]) -> Sequence[Tensor]:
    """Queries, keys and values."""
    return parts[0].unbind(2) if len(parts) == 1 else parts


def _to_weights(g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a 3x3 convolution's weight and bias from those of its result: of small maps as one product."""
    if x.shape[-1] >= SMALL:
        _, dweight, dbias = _backward(g, x, weight, [False, True, True])
        return dweight, dbias
    o, c, k, _ = weight.shape
    flat = g.permute(0, 2, 3, 1).reshape(-1, o)
    return (flat.t() @ _neighbourhoods(x, k)).view(o, k, k, c).permute(0, 3, 1, 2), flat.sum(0)


def _backward(g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """torch's gradients of x, weight and bias of a 3x3 convolution with padding 1."""
    geometry = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1, wanted)
    return torch.ops.aten.convolution_backward(g, x, weight, [len(weight)], *geometry)


def _neighbourhoods(x: Float[Tensor, "b c h w"], k: int) -> Float[Tensor, "n kkc"]:
    """What a k x k filter with padding k // 2 sees at each position, channels innermost; n = b h w."""
    b, c, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, k // 2, k // 2, k // 2, k // 2))
    picture, row, column, _ = padded.stride()
    return padded.as_strided((b, h, w, k, k * c), (picture, row, column, row, 1)).reshape(b * h * w, k * k * c)


def _apply(function: type[torch.autograd.Function], *inputs: object) -> Tensor:
    return cast(Tensor, function.apply(*inputs))  # pyright: ignore[reportUnknownMemberType]  # torch leaves it untyped
