"""Linear layers and convolutions with weights in 8 bits: approximations, asked for by name.

`int8` rounds weights only, to 255 steps of one scale per output, and computes with what they stand for, made anew at
every call: half the memory of bfloat16, a little slower. `w8a8` rounds the input, too, by one scale for all of it that
is found at every call, and multiplies integers: about twice the rate of bfloat16 where the processor multiplies four
pairs of bytes at once.

Sources: Jacob et al. 2017, arXiv:1712.05877 (products of integers); Dettmers et al. 2022, arXiv:2208.07339 (a scale of
the input that is found when it is there).
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mezzotint.kernels.packed import PackedConvolution, PackedLinear
from mezzotint.kernels.pages import give_back

STEPS = 127  # on either side of 0
ZERO = 128  # the byte that stands for 0 in an input
CHUNK = 1 << 16  # numbers of an input that are rounded at once: what the nearest cache holds

_ops: Any = torch.ops.onednn  # Any: torch leaves its operators untyped


def multiplies_bytes() -> bool:
    """Whether the processor multiplies bytes four pairs at a time; without, sums of two pairs overflow."""
    able = torch.cpu.get_capabilities()
    return torch.backends.mkldnn.is_available() and any(able.get(name) for name in ("avx512_vnni", "amx_int8"))


class Rounded(NamedTuple):
    """A weight [o ...] as steps times the scale of its output."""

    steps: Tensor  # int8 [o ...]
    scale: Tensor  # [o 1 …], in the dtype that is computed in

    @property
    def weight(self) -> Tensor:
        """What it stands for."""
        return self.steps * self.scale


def rounded(weight: Tensor, dtype: torch.dtype) -> Rounded:
    """The weight in 255 steps per output; scales are numbers of `dtype`, so that they mean the same in it."""
    largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).float()
    scale = (largest.clamp_min(torch.finfo(torch.float32).tiny * STEPS) / STEPS).to(dtype)
    return Rounded((weight / scale.float()).round_().clamp_(-STEPS, STEPS).to(torch.int8), scale)


def rounded_input(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as bytes about ZERO, with the layout of x, and the scale [1] of their steps."""
    low, high = torch.aminmax(x)
    scale = (torch.maximum(-low, high).float() / STEPS).clamp_min(torch.finfo(torch.float32).tiny).view(1)
    steps = torch.empty_like(x, dtype=torch.uint8)
    flat, to = (part.permute(0, 2, 3, 1).flatten() if x.ndim == 4 else part.flatten() for part in (x, steps))
    for some, there in zip(flat.split(CHUNK), to.split(CHUNK), strict=True):
        there.copy_(some.float().div_(scale).add_(ZERO + 0.5))  # the half makes cutting off rounding
    return steps, scale


class Int8Linear(PackedLinear):
    """Linear layers whose weights are kept in 8 bits."""

    _rounded: Rounded | None = None

    def _ready(self, x: Tensor) -> Tensor:
        if self._rounded is None:
            weight, bias = self._read()
            self._rounded = rounded(weight, x.dtype)
            self._bias = None if bias is None else bias.to(x.dtype)
            give_back(self._sources)
        return self._rounded.weight


class Int8Convolution(PackedConvolution):
    """A convolution whose weights are kept in 8 bits."""

    _rounded: Rounded | None = None

    def _ready(self, x: Tensor) -> Tensor:
        if self._rounded is None:
            weight, bias = self._read()
            self._rounded = rounded(weight.contiguous(memory_format=torch.channels_last), x.dtype)
            self._bias = None if bias is None else bias.to(x.dtype)
            give_back(self._sources)
        return self._rounded.weight


class _Bytes(NamedTuple):
    """A weight in oneDNN's order for products of integers, and what it is called with."""

    packed: Tensor
    scale: Tensor  # float32 [o]
    zero: Tensor  # int32 [o]
    input_zero: Tensor  # int32 [1]


def _bytes(packed: Tensor, scale: Tensor) -> _Bytes:
    flat = scale.float().flatten()
    return _Bytes(packed, flat, torch.zeros_like(flat, dtype=torch.int32), torch.tensor([ZERO], dtype=torch.int32))


class W8A8Linear(PackedLinear):
    """Linear layers as products of integers."""

    _bytes: _Bytes | None = None

    def __call__(
        self, x: Tensor, *, is_gelu: bool = False, add: Tensor | None = None, mul: Tensor | None = None
    ) -> Tensor:
        known = self._bytes or self._made(x)
        steps, scale = rounded_input(x)
        given = (steps, scale, known.input_zero, known.packed, known.scale, known.zero)
        if add is not None:
            last = (add, self._bias, 1.0, 0, x.dtype, 1.0, 0, "add", 1.0, "none", [], "")
            return cast(Tensor, _ops.qlinear_pointwise(*given, *last))
        kind = ("gelu", [], "none") if is_gelu else ("none", [], "")
        h = cast(Tensor, _ops.qlinear_pointwise(*given, self._bias, 1.0, 0, x.dtype, *kind))
        return h if mul is None else h.mul_(mul)

    def _made(self, x: Tensor) -> _Bytes:
        weight, bias = self._read()
        steps, scale = rounded(weight, torch.float32)
        self._bytes = _bytes(_ops.qlinear_prepack(steps, [x.numel() // x.shape[-1], x.shape[-1]]), scale)
        self._bias = None if bias is None else bias.float()
        give_back(self._sources)
        return self._bytes


class W8A8Convolution(PackedConvolution):
    """A convolution as products of integers."""

    _bytes: _Bytes | None = None

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        known = self._bytes or self._made(x)
        steps, scale = rounded_input(x)
        given = (steps, scale, known.input_zero, known.packed, known.scale, known.zero)
        geometry = (self._stride, self._padding, [1, 1], 1)
        bias = self._bias if bias is None else bias.float()
        h = cast(Tensor, _ops.qconv_pointwise(*given, bias, *geometry, 1.0, 0, x.dtype, "none", [], ""))
        return h if add is None else h.add_(add)

    def _made(self, x: Tensor) -> _Bytes:
        weight, bias = self._read()
        steps, scale = rounded(weight, torch.float32)
        packed = _ops.qconv_prepack(
            steps, scale.flatten(), 1.0, ZERO, self._stride, self._padding, [1, 1], 1, list(x.shape)
        )
        self._bytes = _bytes(packed, scale)
        self._bias = None if bias is None else bias.float()
        give_back(self._sources)
        return self._bytes
