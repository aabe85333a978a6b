"""Linear layers and convolutions with weights in 8 bits: approximations, asked for by name.

`int8` rounds weights only, to 255 steps of one scale per output, and computes with what they stand for, made anew at
every call: half the memory of bfloat16, a little slower. `w8a8` rounds the input, too, by one scale for all of it that
is found at every call, and multiplies integers: about twice the rate of bfloat16 where the processor multiplies four
pairs of bytes at once. Both leave the inputs of 3x3 convolutions by Winograd's way as they are: products of bytes would
take as long.

Sources: Jacob et al. 2017, arXiv:1712.05877 (products of integers); Dettmers et al. 2022, arXiv:2208.07339 (a scale of
the input that is found when it is there).
"""

import threading
from functools import cache
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from mezzotint.kernels import native
from mezzotint.kernels.convolution import WholeWinograd
from mezzotint.kernels.packed import PackedConvolution, PackedLinear, Weights
from mezzotint.kernels.pages import give_back

STEPS = 127  # on either side of 0
ZERO = 128  # the byte that stands for 0 in an input (`native.as_bytes`)

_NO_OPTIONS: list[float] = []  # of an activation

_ops: Any = torch.ops.onednn  # Any: torch leaves its operators untyped


@cache
def multiplies_bytes() -> bool:
    """Whether oneDNN multiplies bytes exactly here: without VNNI or AMX, sums of two products overflow 16 bits."""
    if not torch.backends.mkldnn.is_available():
        return False
    ones = W8A8Linear(lambda: Weights(torch.ones(64, 64), None), [])
    return torch.allclose(ones(torch.ones(16, 64)), torch.full((), 64.0))


class Rounded(NamedTuple):
    """A weight [o ...] as steps times the scale of its output."""

    steps: Tensor  # int8 [o ...]
    scale: Tensor  # [o 1 …], in the dtype that is computed in

    @property
    def weight(self) -> Tensor:
        """What it stands for, until the next one is asked for: all share one memory."""
        memory = getattr(_memory, "weight", None)
        if memory is None or memory.dtype is not self.scale.dtype or len(memory) < self.steps.numel():
            with torch.inference_mode(mode=False):  # what is made inside could not be written to outside
                memory = _memory.weight = torch.empty(self.steps.numel(), dtype=self.scale.dtype)
        return memory.as_strided(self.steps.shape, self.steps.stride()).copy_(self.steps).mul_(self.scale)


_memory = threading.local()


def rounded(weight: Tensor, dtype: torch.dtype) -> Rounded:
    """The weight in 255 steps per output; scales are numbers of `dtype`, so that they mean the same in it."""
    largest = weight.abs().amax(tuple(range(1, weight.ndim)), keepdim=True).float()
    scale = (largest / STEPS).clamp_min(torch.finfo(torch.float32).tiny).to(dtype)
    return Rounded((weight / scale.float()).round_().clamp_(-STEPS, STEPS).to(torch.int8), scale)


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
        steps, scale = native.as_bytes(x)
        given = (steps, scale, known.input_zero, known.packed, known.scale, known.zero)
        if add is not None:
            out = (1.0, 0, x.dtype, 1.0, 0, "add", 1.0, "none", _NO_OPTIONS, "")
            return cast(Tensor, _ops.qlinear_pointwise(*given, add, self._bias, *out))
        kind = ("gelu", _NO_OPTIONS, "none") if is_gelu else ("none", _NO_OPTIONS, "")
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
        steps, scale = native.as_bytes(x)
        given = (steps, scale, known.input_zero, known.packed, known.scale, known.zero)
        geometry = (self._stride, self._padding, [1, 1], 1)
        bias = self._bias if bias is None else bias.float()
        h = cast(Tensor, _ops.qconv_pointwise(*given, bias, *geometry, 1.0, 0, x.dtype, "none", _NO_OPTIONS, ""))
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


class Int8Winograd(WholeWinograd):
    """A 3x3 convolution of few products whose weights are kept in 8 bits; its input is not rounded."""

    def _made(self) -> tuple[Tensor, Tensor | None]:
        steps, scale = rounded(self._module.weight, torch.float32)
        self._weights = (native.convolution_weights(steps), scale.flatten())
        give_back([self._module])
        return self._weights
