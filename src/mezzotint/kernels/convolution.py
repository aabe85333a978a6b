"""Convolutions of feature maps, whole or a band of rows at a time: by oneDNN, or compiled with fewer multiplications.

Letters: c o channels in and out, k products.
"""

from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import KernelSet
from mezzotint.kernels.map import Factors, Map
from mezzotint.kernels.packed import Convolution, PackedConvolution, Weights, is_packable, phases
from mezzotint.kernels.pages import give_back

# From three taps to what multiplies the factors of two outputs: of a row of four inputs, and of one input doubled.
TWO_OUTPUTS = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))
TWO_COPIES = ((1, 1, 1), (1, 0, 0), (0, 0, 1))

LARGE = 1024  # positions of a map from which on tiles pay; below, weights of nearly twice the size cost more memory

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
        self._bias = torch.zeros(module.out_channels) if module.bias is None else module.bias.float()  # pyright: ignore[reportUnnecessaryComparison]  # torch's type forgets that it may be None

    def write(self, x: Map, factors: Factors | None, first: int, last: int, out: Map, *, is_added: bool) -> None:
        """What rows [first, last) of x become, through `factors` and SiLU before, into or onto `out`."""
        self._run(x.data, factors, self._bias, out.data, first, last, is_added=is_added)

    def convolve(self, x: Tensor, out: Tensor, bias: Tensor | None, *, is_added: bool) -> None:
        """What the picture x [1 c h w] becomes, with its own bias or with `bias` [o], into or onto `out`."""
        bias = self._bias if bias is None else bias.float()
        self._run(x, None, bias, out, 0, x.shape[-2], is_added=is_added)

    def _run(
        self, x: Tensor, factors: Factors | None, bias: Tensor, out: Tensor, first: int, last: int, *, is_added: bool
    ) -> None:
        if self._weights is None:
            self._weights = transformed(self._module.weight, is_doubled=self._is_doubled)
            give_back([self._module])
        doubled = self._is_doubled
        native.convolve(x, factors, self._weights, bias, out, first, last, is_doubled=doubled, is_added=is_added)


class TiledConvolution:
    """The same for whole maps of several pictures, where they are large; small ones go to `small`."""

    def __init__(self, module: nn.Conv2d, small: Convolution | None, *, is_doubled: bool) -> None:
        self._winograd = Winograd(module, is_doubled=is_doubled)
        self._small, self._factor, self._channels = small, 1 + is_doubled, module.out_channels

    def takes(self, x: Float[Tensor, "b c h w"]) -> bool:
        """Whether x is large."""
        return x.shape[-2] * x.shape[-1] >= LARGE

    def __call__(self, x: Tensor, *, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
        if self._small is not None and not self.takes(x):
            return self._small(x, bias=bias, add=add)
        x = x.contiguous(memory_format=torch.channels_last)
        if add is None:
            b, _, h, w = x.shape
            shape = (b, self._channels, self._factor * h, self._factor * w)
            out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
        else:
            out = add.clone(memory_format=torch.channels_last)
        for row in range(len(x)):
            self._winograd.convolve(x[row : row + 1], out[row : row + 1], bias, is_added=add is not None)
        return out


def transformed(weight: Float[Tensor, "o c 3 3"], *, is_doubled: bool) -> Float[Tensor, "o//32 k c//2 32 2"]:
    """A matrix of weights for each of the products, bfloat16, in the order in which the kernel reads them.

    Source: Lavin and Gray 2015, arXiv:1509.09308.
    """
    one = torch.tensor(TWO_COPIES if is_doubled else TWO_OUTPUTS, dtype=torch.float32)
    o, c = weight.shape[:2]
    made = torch.empty(o // 32, len(one) ** 2, c // 2, 32, 2, dtype=torch.bfloat16)
    for part, to in zip(weight.view(-1, 32, c, 3, 3), made, strict=True):  # a few at a time: they are in float32
        each = torch.einsum("pi, ocij, qj -> pqco", one, part.float(), one)
        to.copy_(each.reshape(len(to), c // 2, 2, 32).transpose(2, 3))
    return made


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
            self._spread(self(band), out.band(2 * first, 2 * last))
        elif is_added:
            self._add(out.band(first, last), band)
        else:
            out.band(first, last).copy_(self(band))

    def _spread(self, four: Tensor, to: Tensor) -> None:
        """The phases of an upsampling [1 4o rows+1 columns+1] where they belong."""
        _, channels, rows, columns = to.shape
        for phase in range(4):
            p, r = divmod(phase, 2)  # which of two rows and columns these outputs are
            part = four[:, phase * channels : (phase + 1) * channels]
            to[:, :, p::2, r::2] = part[:, :, p : p + rows // 2, r : r + columns // 2]

    def _add(self, total: Tensor, x: Tensor) -> None:
        if self._plain is not None:
            total.add_(self(x))
            return
        packed = self._ready(x) if self._packed is None else self._packed
        geometry = (self._padding, self._stride, [1, 1], 1)
        _ops._convolution_pointwise_.binary(total, x, packed, self._bias, *geometry, "add", 1.0, None, [], None)
