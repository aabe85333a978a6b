"""Layers made ready to run with a kernel set, each once, however many networks share it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import cast
from weakref import WeakValueDictionary

from torch import nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import KernelSet
from mezzotint.kernels.convolution import TiledConvolution
from mezzotint.kernels.int8 import Int8Convolution, Int8Linear, W8A8Convolution, W8A8Linear
from mezzotint.kernels.packed import (
    Convolution,
    Linear,
    PackedConvolution,
    PackedLinear,
    PlainConvolution,
    PlainLinear,
    PlainPart,
    Weights,
    part,
    phases,
    side_by_side,
)

_Read = Callable[[], Weights]

LAYERS = {
    "packed": (PackedLinear, PackedConvolution),
    "int8": (Int8Linear, Int8Convolution),
    "w8a8": (W8A8Linear, W8A8Convolution),
}


class Workshop:
    """Makes layers, and remembers them as long as something uses them: attached networks share what is unchanged."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self._make_linear, self._make_convolution = LAYERS.get(kernels.weights, LAYERS["packed"])
        self._linear = WeakValueDictionary[tuple[object, ...], PackedLinear]()
        self._convolution = WeakValueDictionary[tuple[object, ...], PackedConvolution]()
        self._tiled = WeakValueDictionary[tuple[object, ...], TiledConvolution]()

    @cached_property
    def exact(self) -> "Workshop":
        """Makes layers that are not approximated: itself where none is."""
        if self.kernels.weights in {"plain", "packed"}:
            return self
        return Workshop(replace(self.kernels, weights="packed"))

    def linear(self, *modules: nn.Module) -> Linear:
        """Linear layers of one input as one; their outputs stand one after another."""
        layers = [module for module in modules if type(module) is nn.Linear]
        if len(layers) < len(modules):
            return PlainLinear(modules)
        return self._packed_linear(("side by side", *map(id, layers)), lambda: side_by_side(layers), layers)

    def part(self, module: nn.Module, outputs: slice) -> Linear:
        """Some of the outputs of a linear layer."""
        assert type(module) is nn.Linear
        if self.kernels.weights == "plain":
            return PlainPart(module, outputs)
        return self._packed_linear((id(module), outputs.start, outputs.stop), lambda: part(module, outputs), [module])

    def _packed_linear(self, key: tuple[object, ...], read: _Read, modules: list[nn.Linear]) -> PackedLinear:
        made = self._linear.get(key)
        if made is None:
            made = self._linear[key] = self._make_linear(read, modules)
        return made

    def convolution(self, module: nn.Module) -> Convolution:
        """A convolution."""
        if type(module) is not nn.Conv2d:
            return PlainConvolution(module)
        packed = self._packed_convolution(
            ("whole", id(module)),
            lambda: Weights(module.weight, module.bias),
            module,
            cast("tuple[int, int]", module.padding),
        )
        return self._tiled_convolution(module, packed, is_doubled=False) or packed

    def doubled(self, module: nn.Conv2d) -> PackedConvolution:
        """A 3x3 convolution behind a nearest upsampling, as a 2x2 one before it: the outputs of four phases."""
        return self._packed_convolution(("doubled", id(module)), lambda: phases(module), module, (1, 1))

    def tiled_double(self, module: nn.Conv2d) -> TiledConvolution | None:
        """The same of large maps, by tiles; None where the kernel set has no such thing."""
        return self._tiled_convolution(module, None, is_doubled=True)

    def _tiled_convolution(
        self, module: nn.Conv2d, small: PackedConvolution | None, *, is_doubled: bool
    ) -> TiledConvolution | None:
        if self.kernels.convolution != "winograd" or self.kernels.weights != "packed" or not native.convolves(module):
            return None
        key = (is_doubled, id(module))
        made = self._tiled.get(key)
        if made is None:
            made = self._tiled[key] = TiledConvolution(module, small, is_doubled=is_doubled)
        return made

    def _packed_convolution(
        self, key: tuple[object, ...], read: _Read, module: nn.Conv2d, padding: tuple[int, int]
    ) -> PackedConvolution:
        made = self._convolution.get(key)
        if made is None:
            rows, columns = module.stride
            made = self._convolution[key] = self._make_convolution(read, [module], (rows, columns), padding)
        return made
