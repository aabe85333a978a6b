"""Linear layers and convolutions whose weights are put into oneDNN's own order once, instead of at every call.

torch reorders the weights whenever it calls oneDNN, and multiplies float32 matrices by another library that is slow on
some processors. Packed, a layer also takes a bias, an activation and a residual in the same pass. Everything is packed
at its first use, when the number of rows is known; the pages of a mapped file that it was packed from are given back.

A layer that is no plain `nn.Linear` or `nn.Conv2d`, because something was attached to it, is called as it is.

Letters: b batch, c o channels in and out, l positions, h w rows and columns.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.kernels.pages import give_back

_ops: Any = torch.ops.mkldnn  # Any: torch leaves its operators untyped


class Weights(NamedTuple):
    """Weight and bias as a layer computes with them."""

    weight: Tensor
    bias: Tensor | None


class Linear(Protocol):
    """One or several linear layers side by side; at most one of `add` and `mul`."""

    def __call__(
        self, x: Tensor, *, is_gelu: bool = False, add: Tensor | None = None, mul: Tensor | None = None
    ) -> Tensor:
        """x W^T + b, through the exact GELU if asked, plus `add` or times `mul`."""
        ...


class Convolution(Protocol):
    """A convolution of channels-last maps."""

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        """The convolution with its own bias or with `bias` [o] instead, plus `add`."""
        ...


def is_packable(dtype: torch.dtype) -> bool:
    """Whether this build of torch and this processor have oneDNN's kernels for the dtype."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(_ops._is_mkldnn_bf16_supported()))


class PackedLinear:
    """Linear layers of one input side by side: their outputs, one after another, are one product."""

    def __init__(self, read: Callable[[], Weights], sources: Sequence[nn.Module]) -> None:
        self._read, self._sources = read, sources
        self._packed: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(
        self, x: Tensor, *, is_gelu: bool = False, add: Tensor | None = None, mul: Tensor | None = None
    ) -> Tensor:
        packed = self._packed
        if packed is None:
            packed = self._ready(x)
        other = add if mul is None else mul
        if other is not None:
            kind = "add" if mul is None else "mul"
            return cast(Tensor, _ops._linear_pointwise.binary(x, other, packed, self._bias, kind))
        kind = "gelu" if is_gelu else "none"
        return cast(Tensor, _ops._linear_pointwise(x, packed, self._bias, kind, [], "none" if is_gelu else ""))

    def _ready(self, x: Tensor) -> Tensor:
        weight, self._bias = self._read()
        rows = x.numel() // x.shape[-1]
        self._packed = cast(Tensor, _ops._reorder_linear_weight(weight.to(x.dtype).contiguous(), rows))
        self._bias = None if self._bias is None else self._bias.to(x.dtype)
        give_back(self._sources)
        return self._packed


class PackedConvolution:
    """One convolution."""

    def __init__(
        self,
        read: Callable[[], Weights],
        sources: Sequence[nn.Module],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> None:
        self._read, self._sources = read, sources
        self._stride, self._padding = list(stride), list(padding)
        self._packed: Tensor | None = None
        self._bias: Tensor | None = None

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        packed = self._packed
        if packed is None:
            packed = self._ready(x)
        geometry = (self._padding, self._stride, [1, 1], 1)
        bias = self._bias if bias is None else bias
        if add is not None:
            return cast(
                Tensor,
                _ops._convolution_pointwise.binary(x, add, packed, bias, *geometry, "add", 1.0, None, [], None),
            )
        return cast(Tensor, _ops._convolution_pointwise(x, packed, bias, *geometry, "none", [], ""))

    def _ready(self, x: Tensor) -> Tensor:
        weight, bias = self._read()
        weight = weight.to(x.dtype).contiguous(memory_format=torch.channels_last)
        self._packed = cast(
            Tensor,
            _ops._reorder_convolution_weight(weight, self._padding, self._stride, [1, 1], 1, list(x.shape)),
        )
        self._bias = None if bias is None else bias.to(x.dtype)
        give_back(self._sources)
        return self._packed


class PlainLinear:
    """Modules of one input side by side as torch runs them: also those that something was attached to."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules

    def __call__(
        self, x: Tensor, *, is_gelu: bool = False, add: Tensor | None = None, mul: Tensor | None = None
    ) -> Tensor:
        parts = [cast(Tensor, module(x)) for module in self._modules]
        h = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        h = F.gelu(h) if is_gelu else h
        h = h if add is None else h + add
        return h if mul is None else h * mul


class PlainPart:
    """Some of the outputs of a linear module as torch runs it."""

    def __init__(self, module: nn.Linear, outputs: slice) -> None:
        self._module, self._outputs = module, outputs

    def __call__(
        self, x: Tensor, *, is_gelu: bool = False, add: Tensor | None = None, mul: Tensor | None = None
    ) -> Tensor:
        weight, bias = part(self._module, self._outputs)
        h = F.linear(x, weight, bias)
        h = F.gelu(h) if is_gelu else h
        h = h if add is None else h + add
        return h if mul is None else h * mul


class PlainConvolution:
    """A convolution as torch runs it, or whatever was put in its place."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        module = self._module
        if bias is not None and type(module) is nn.Conv2d:
            h = F.conv2d(x, module.weight, bias, module.stride, cast(Any, module.padding))  # Any: a pair here
        else:
            assert bias is None
            h = cast(Tensor, module(x))
        return h if add is None else h + add


def part(module: nn.Linear, outputs: slice) -> Weights:
    """Weights of some of the outputs of a linear layer."""
    return Weights(module.weight[outputs], None if module.bias is None else module.bias[outputs])  # pyright: ignore[reportUnnecessaryComparison]  # torch's type forgets that it may be None


def side_by_side(modules: Sequence[nn.Linear]) -> Weights:
    """Weights of linear layers of one input as one."""
    biases = [module.bias for module in modules]
    with_bias = [bias for bias in biases if bias is not None]  # pyright: ignore[reportUnnecessaryComparison]  # it may be
    bias = None
    if with_bias:
        zeros = (module.weight.new_zeros(module.out_features) for module in modules)
        bias = torch.cat(
            [zero if own is None else own for own, zero in zip(biases, zeros, strict=True)]  # pyright: ignore[reportUnnecessaryComparison]
        )
    return Weights(torch.cat([module.weight for module in modules]) if len(modules) > 1 else modules[0].weight, bias)


def phases(module: nn.Conv2d) -> Weights:
    """2x2 weights [4o c 2 2] that do before a nearest upsampling what a 3x3 convolution does behind it.

    Output (2i + p, 2j + r) reads at most two input rows and columns; taps that meet the same input are summed, in
    float32. Phases are ordered (p, r) = (0, 0), (0, 1), (1, 0), (1, 1).
    """
    weight = module.weight.float()
    rows = [_pairs(weight, 2, phase) for phase in (0, 1)]
    taps = [_pairs(part_of, 3, phase) for part_of in rows for phase in (0, 1)]
    bias = None if module.bias is None else module.bias.repeat(4)
    return Weights(torch.cat(taps), bias)


def doubled(four: Float[Tensor, "b 4o h1 w1"]) -> Float[Tensor, "b o 2h 2w"]:
    """What a 2x2 convolution with padding 1 by the weights of `phases` makes, as the map of twice the size."""
    b, o, h, w = four.shape[0], four.shape[1] // 4, four.shape[2] - 1, four.shape[3] - 1
    out = torch.empty((b, o, 2 * h, 2 * w), dtype=four.dtype, memory_format=torch.channels_last)
    spread(four, out)
    return out


def spread(four: Float[Tensor, "b 4o h1 w1"], to: Float[Tensor, "b o 2h 2w"]) -> None:
    """`doubled` into memory that is there."""
    _, channels, rows, columns = to.shape
    for phase in range(4):
        p, r = divmod(phase, 2)  # which of two rows and columns these outputs are
        part_of = four[:, phase * channels : (phase + 1) * channels]
        to[:, :, p::2, r::2] = part_of[:, :, p : p + rows // 2, r : r + columns // 2]


def _pairs(weight: Tensor, dim: int, phase: int) -> Tensor:
    """Three taps as two: the outer ones stay, the middle one joins the neighbour that reads the same input."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if phase == 0 else [first + middle, last], dim)
