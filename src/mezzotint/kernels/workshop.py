"""Layers made ready to run with a kernel set, each once, however many networks share it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import cast
from weakref import WeakValueDictionary

from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import KernelSet
from mezzotint.kernels.convolution import WholeWinograd
from mezzotint.kernels.int8 import Int8Convolution, Int8Linear, Int8Winograd, W8A8Convolution, W8A8Linear
from mezzotint.kernels.packed import (
    Convolution,
    Linear,
    PackedConvolution,
    PackedLinear,
    PlainConvolution,
    PlainLinear,
    PlainPart,
    Weights,
    doubled,
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
        self._whole = WeakValueDictionary[tuple[object, ...], WholeWinograd]()

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
        if self._is_winograd(module):
            return self._winograd(module, is_doubled=False)
        padding = cast("tuple[int, int]", module.padding)
        return self._packed_convolution(
            (False, id(module)), lambda: Weights(module.weight, module.bias), module, padding
        )

    def doubled(self, module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        """A 3x3 convolution of the nearest upsampling of a map; a 2x2 one before it, if there is no better."""
        if self._is_winograd(module) and self.kernels.weights == "packed":
            return self._winograd(module, is_doubled=True)
        packed = self._packed_convolution((True, id(module)), lambda: phases(module), module, (1, 1))
        return lambda x: doubled(packed(x))

    def _is_winograd(self, module: nn.Conv2d) -> bool:
        return self.kernels.convolution == "winograd" and self.kernels.weights != "plain" and native.convolves(module)

    def _winograd(self, module: nn.Conv2d, *, is_doubled: bool) -> WholeWinograd:
        key = (is_doubled, id(module))
        made = self._whole.get(key)
        if made is None:
            make = WholeWinograd if self.kernels.weights == "packed" else Int8Winograd
            made = self._whole[key] = make(module, is_doubled=is_doubled)
        return made

    def _packed_convolution(
        self, key: tuple[object, ...], read: _Read, module: nn.Conv2d, padding: tuple[int, int]
    ) -> PackedConvolution:
        made = self._convolution.get(key)
        if made is None:
            rows, columns = module.stride
            made = self._convolution[key] = self._make_convolution(read, [module], (rows, columns), padding)
        return made
