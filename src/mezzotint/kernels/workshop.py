"""Layers made ready to run with a kernel set, each once, however many networks share it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import cast
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

from mezzotint.kernels.choices import KernelSet
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
        return self._packed_convolution(
            ("whole", id(module)),
            lambda: Weights(module.weight, module.bias),
            module,
            cast("tuple[int, int]", module.padding),
        )

    def doubled(self, module: nn.Conv2d) -> PackedConvolution:
        """A 3x3 convolution behind a nearest upsampling, as a 2x2 one before it: the outputs of four phases."""
        return self._packed_convolution(("doubled", id(module)), lambda: phases(module), module, (1, 1))

    def _packed_convolution(
        self, key: tuple[object, ...], read: _Read, module: nn.Conv2d, padding: tuple[int, int]
    ) -> PackedConvolution:
        made = self._convolution.get(key)
        if made is None:
            rows, columns = module.stride
            made = self._convolution[key] = self._make_convolution(read, [module], (rows, columns), padding)
        return made


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


def _pairs(weight: Tensor, dim: int, phase: int) -> Tensor:
    """Three taps as two: the outer ones stay, the middle one joins the neighbour that reads the same input."""
    first, middle, last = weight.unbind(dim)
    return torch.stack([first, middle + last] if phase == 0 else [first + middle, last], dim)
