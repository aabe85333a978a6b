"""Networks made ready to run with one kernel set. The networks themselves are never changed: undo is not using this."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar, cast

from torch import Tensor, nn

from mezzotint.kernels.autoencoder import BandedAutoencoder
from mezzotint.kernels.choices import KernelSet
from mezzotint.kernels.packed import Linear
from mezzotint.kernels.pages import give_back
from mezzotint.kernels.unet import FastUNet
from mezzotint.kernels.workshop import Workshop
from mezzotint.models.unet import UNet
from mezzotint.models.vae import AutoencoderKL

LARGE_TOWER = 1 << 27  # bytes of weights from which on a tower is not packed: it runs once for each new prompt
REMEMBERED = 8  # networks, attached ones among them, that stay ready

M = TypeVar("M", bound=nn.Module)


class Execution:
    """Runs networks with a kernel set; layers that several of them share are packed once."""

    def __init__(self, kernels: KernelSet) -> None:
        self.kernels = kernels
        self._shop = Workshop(kernels)
        self._ready: OrderedDict[int, tuple[nn.Module, object]] = OrderedDict()

    def unet(self, unet: UNet) -> UNet | FastUNet:
        """The U-Net to call instead of this one: the same, made ready, or itself where nothing is packed."""
        if self.kernels.weights == "plain":
            return unet
        return self._remembered(unet, lambda: FastUNet(unet, self._shop))

    def tower(self, tower: M) -> M:
        """A network of linear layers whose copy shares everything but these, which are packed.

        Those of a large one run as they are, and the pages of a mapped file are given back behind them.
        """
        if self.kernels.weights == "plain":
            return tower
        size = sum(weight.numel() * weight.element_size() for weight in tower.parameters())
        return self._remembered(tower, lambda: cast(M, _with(tower, _Passing if size >= LARGE_TOWER else self._packed)))

    def _packed(self, layer: nn.Linear) -> nn.Module:
        return _Packed(self._shop.exact.linear(layer))

    def autoencoder(self, vae: AutoencoderKL) -> BandedAutoencoder | AutoencoderKL:
        """What encodes and decodes instead of this autoencoder: the same in bands, or itself where nothing is packed.

        Bands also keep the memory bounded, so they are used in every dtype that a processor runs packed.
        """
        if self.kernels.weights == "plain":
            return vae
        return self._remembered(vae, lambda: BandedAutoencoder(vae, self.kernels))

    def _remembered(self, original: nn.Module, make: "Callable[[], _T]") -> "_T":
        known = self._ready.get(id(original))  # the original is kept beside it, so that its id stays its own
        if known is None:
            known = self._ready[id(original)] = (original, make())
            if len(self._ready) > REMEMBERED:
                self._ready.popitem(last=False)
        self._ready.move_to_end(id(original))
        return cast("_T", known[1])


_T = TypeVar("_T")


class _Packed(nn.Module):
    """A packed linear layer where a module is expected."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self._layer(x)


class _Passing(nn.Module):
    """A linear layer whose weights need not stay in memory when it has been used."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self._layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self._layer(x)
        give_back([self._layer])
        return y


def _with(module: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """The module, or a shallow copy in which every plain linear layer below is what `make` makes of it."""
    if type(module) is nn.Linear:
        return make(module)
    children = {name: _with(child, make) for name, child in module.named_children()}
    if all(children[name] is child for name, child in module.named_children()):
        return module
    copied = copy.copy(module)
    copied._modules = {**module._modules, **children}  # pyright: ignore[reportPrivateUsage]  # a tree of its own
    return copied
