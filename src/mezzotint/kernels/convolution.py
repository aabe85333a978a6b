"""Convolutions of feature maps, whole or a band of rows at a time: by oneDNN or, compiled, of fewer multiplications."""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import KernelSet
from mezzotint.kernels.map import Factors, Map
from mezzotint.kernels.packed import PackedConvolution, Weights, is_packable, phases, spread
from mezzotint.kernels.pages import give_back

_ops: Any = torch.ops.mkldnn  # Any: torch leaves its operators untyped


class MapConvolution(Protocol):
    """A convolution of a map, or of its nearest upsampling."""

    step: int  # bands begin at multiples of so many rows

    def write(self, x: Map, factors: Factors | None, first: int, last: int, out: Map, *, is_added: bool) -> None:
        """What rows [first, last) of x become, through `factors` and SiLU before, into or onto `out`."""
        ...


def convolution_of(module: nn.Conv2d, kernels: KernelSet, *, is_doubled: bool) -> MapConvolution:
    """The convolution, of a map or of its nearest upsampling, as the kernel set has it."""
    if kernels.convolution == "winograd" and native.convolves(module):
        return Winograd(module, is_doubled=is_doubled)
    return BandConvolution(module, is_doubled=is_doubled)


class Winograd:
    """A 3x3 convolution of 16 products for 2x2 outputs, 9 behind an upsampling, instead of 36."""

    step = 8  # rows of one block of tiles

    def __init__(self, module: nn.Conv2d, *, is_doubled: bool) -> None:
        self._module, self._is_doubled = module, is_doubled
        self._weights: Tensor | None = None
        self._bias = _bias(module)

    def write(self, x: Map, factors: Factors | None, first: int, last: int, out: Map, *, is_added: bool) -> None:
        """What rows [first, last) of x become, through `factors` and SiLU before, into or onto `out`."""
        if self._weights is None:
            self._weights = _weights(self._module, is_doubled=self._is_doubled, is_transformed=True)
        native.convolve(
            x.data,
            factors,
            self._weights,
            self._bias,
            out.data,
            first,
            last,
            is_doubled=self._is_doubled,
            is_added=is_added,
        )


class WholeWinograd:
    """The same for whole maps of several pictures: a `Convolution`."""

    def __init__(self, module: nn.Conv2d, *, is_doubled: bool) -> None:
        self._module, self._is_doubled = module, is_doubled
        self._weights: Tensor | None = None
        self._bias = _bias(module)

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        if self._weights is None:
            self._weights = _weights(self._module, is_doubled=self._is_doubled, is_transformed=False)
        x = x.contiguous(memory_format=torch.channels_last)
        add = None if add is None else add.contiguous(memory_format=torch.channels_last)
        bias = self._bias if bias is None else bias.float()
        return native.convolve_together(x, self._weights, bias, add, is_doubled=self._is_doubled)


def _weights(module: nn.Conv2d, *, is_doubled: bool, is_transformed: bool) -> Tensor:
    made = native.convolution_weights(module.weight, is_doubled=is_doubled, is_transformed=is_transformed)
    give_back([module])
    return made


def _bias(module: nn.Conv2d) -> Tensor:
    return torch.zeros(module.out_channels) if module.bias is None else module.bias.float()  # pyright: ignore[reportUnnecessaryComparison]  # torch's type forgets that it may be None


class BandConvolution(PackedConvolution):
    """A convolution without padding of rows: the band brings its neighbours."""

    step = 1

    def __init__(self, module: nn.Conv2d, *, is_doubled: bool = False) -> None:
        columns = cast("tuple[int, int]", module.padding)[1]  # a pair here
        self.halo = module.kernel_size[0] // 2  # rows that it reads above and below
        stride = cast("tuple[int, int]", module.stride)
        self._is_doubled = is_doubled
        self._plain = None if is_packable(module.weight.dtype) and module.weight.device.type == "cpu" else stride
        read = (lambda: phases(module)) if is_doubled else (lambda: Weights(module.weight, module.bias))
        super().__init__(read, [module], stride, (0, 1 if is_doubled else columns))

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        if self._plain is None:
            return super().__call__(x, bias=bias, add=add)
        weight, own = self._read()
        bias = own if bias is None else bias
        h = F.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), self._plain, self._padding)
        return h if add is None else h + add

    def write(self, x: Map, factors: Factors | None, first: int, last: int, out: Map, *, is_added: bool) -> None:
        """What rows [first, last) of x become, through `factors` and SiLU before, into or onto `out`."""
        band = x.around(first, last, self.halo, factors)
        if self._is_doubled:
            spread(self(band), out.band(2 * first, 2 * last))
        elif is_added:
            self._add(out.band(first, last), band)
        else:
            out.band(first, last).copy_(self(band))

    def _add(self, total: Tensor, x: Tensor) -> None:
        if self._plain is not None:
            total.add_(self(x))
            return
        packed = self._ready(x) if self._packed is None else self._packed
        geometry = (self._padding, self._stride, [1, 1], 1)
        _ops._convolution_pointwise_.binary(total, x, packed, self._bias, *geometry, "add", 1.0, None, [], None)
