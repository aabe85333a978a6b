"""Which word each place looked at: cross-attention maps, recomputed beside the network that is running.

Fast kernels never form the probabilities, so they are computed a second time, from the input and the keys that each
cross-attention layer is called with: one projection and one softmax, a few percent of the network. Nothing that the
network computes is touched. Probabilities of a layer live only until they have been reduced: summed over the tokens of
each group, pooled to a small side, added to running means over steps. What is kept does not grow with the steps.

Every reduction is a mean or a sum over tokens, so that at every place the maps of all groups sum to 1.

Letters: l positions of a layer, n tokens, g groups of tokens, h w rows and columns of a map.

Source: Tang et al. 2023, arXiv:2210.04885 (heat maps from cross-attention, merged over heads, layers and steps).
"""

import io
import zipfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.models.attention import Attention, KeysValues

STEP_BYTES, LAYER_BYTES, HEAD_BYTES = 600_000, 300_000, 450_000  # of the maps that the page holds, a byte a value
SIDES = (64, 48, 32, 24, 16, 12, 8, 6, 4)


class Groups(NamedTuple):
    """Tokens that are looked at together: their names, and for each of n tokens the group that it belongs to."""

    names: tuple[str, ...]
    of_token: tuple[int, ...]

    def matrix(self, tokens: int) -> Float[Tensor, "n g"]:
        """1 where a token belongs to a group; tokens behind those that are known belong to the last group."""
        known = self.of_token[:tokens] + (len(self.names) - 1,) * max(0, tokens - len(self.of_token))
        return F.one_hot(torch.tensor(known), len(self.names)).float()


class Shape(NamedTuple):
    """Rows and columns of a map."""

    h: int
    w: int


@dataclass
class Mean:
    """A mean that is added to."""

    total: Tensor | None = None
    count: int = 0

    def add(self, value: Tensor) -> None:
        """Count one more value."""
        self.total = value.clone() if self.total is None else self.total.add_(value)
        self.count += 1

    @property
    def value(self) -> Tensor:
        """The mean so far."""
        assert self.total is not None
        return self.total / self.count


@dataclass
class Maps:
    """Running means of the attention that one picture's places pay to groups of tokens. `steps` are those kept.

    `by_step[step]` and `by_layer[layer]` are [g h w], `by_head[layer]` is [heads g h w]; each has a shape of its own.
    """

    groups: Groups
    latent: Shape
    steps: frozenset[int]
    full: "FullMaps | None" = None
    by_step: dict[int, Mean] = field(default_factory=dict[int, Mean])
    by_layer: dict[str, Mean] = field(default_factory=dict[str, Mean])
    by_head: dict[str, Mean] = field(default_factory=dict[str, Mean])
    shapes: tuple[Shape, Shape, Shape] | None = None  # of maps by step, by layer, by head
    sizes: dict[str, Shape] = field(default_factory=dict[str, Shape])  # of each layer's own maps
    seconds: float = 0.0  # spent here, which is no time of the network

    @contextmanager
    def captured(self, unet: nn.Module, places: Sequence[int], step: int, prefix: str = "") -> Generator[None]:
        """Within it, calls of the network add their attention; `places` are the rows of the batch that count."""
        layers = cross_attention(unet)
        if self.shapes is None:
            self.shapes = self._planned(list(layers.values()))

        def add(name: str, layer: Attention, arguments: tuple[Tensor, KeysValues]) -> None:
            begun = perf_counter()
            x, keys = arguments[0], arguments[1][0]
            for place in places:
                self.add(prefix + name, step, probabilities(layer, x[place], keys[place]))
            self.seconds += perf_counter() - begun

        hooks = [layer.register_forward_pre_hook(partial(add, name)) for name, layer in layers.items()]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def add(self, name: str, step: int, weights: Float[Tensor, "heads l n"]) -> None:
        """Count the probabilities of one layer at one step."""
        if self.shapes is None:
            self.shapes = (self.latent, self.latent, self.latent)
        heads, positions, tokens = weights.shape
        shape = self.sizes[name] = _shape(self.latent, positions)
        if self.full is not None:
            self.full.add(step, name, weights.view(heads, *shape, tokens).permute(0, 3, 1, 2))
        grouped = (weights @ self.groups.matrix(tokens)).transpose(1, 2).reshape(heads, -1, *shape)  # [heads g h w]
        for_step, for_layer, for_head = self.shapes
        merged = grouped.mean(0)
        if step in self.steps:
            self.by_step.setdefault(step, Mean()).add(resized(merged, for_step))
        self.by_layer.setdefault(name, Mean()).add(resized(merged, for_layer))
        self.by_head.setdefault(name, Mean()).add(resized(grouped, for_head))

    def _planned(self, layers: Sequence[Attention]) -> tuple[Shape, Shape, Shape]:
        """The largest shapes whose maps fit into their bytes."""
        groups, heads = len(self.groups.names), sum(layer.heads for layer in layers)
        counts = (
            (STEP_BYTES, groups * len(self.steps)), (LAYER_BYTES, groups * len(layers)), (HEAD_BYTES, groups * heads)
        )  # fmt: skip
        found: list[Shape] = []
        for most, count in counts:
            fitting = (shape for side in SIDES if count * (shape := _within(self.latent, side)).h * shape.w <= most)
            found.append(next(fitting, _within(self.latent, SIDES[-1])))
        return found[0], found[1], found[2]


def cross_attention(unet: nn.Module) -> dict[str, Attention]:
    """The layers that look at the prompt, by name, in the order in which they run."""
    named = cast("Iterable[tuple[str, nn.Module]]", unet.named_modules())  # torch leaves it partly untyped
    return {
        name.rpartition(".")[0]: module
        for name, module in named
        if name.rpartition(".")[2] == "cross_attention" and isinstance(module, Attention)
    }


def probabilities(
    layer: Attention, x: Float[Tensor, "l c"], keys: Float[Tensor, "heads n d"]
) -> Float[Tensor, "heads l n"]:
    """The share of each token at each position: softmax(q k / sqrt(d)), float32."""
    with torch.no_grad():
        q = layer.q(x).view(len(x), layer.heads, -1).transpose(0, 1).float()  # [heads l d]
        return (q @ keys.float().transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1).cpu()


def resized(maps: Float[Tensor, "*m h w"], shape: Shape) -> Float[Tensor, "*m h2 w2"]:
    """The maps at another size: means of areas when smaller, lines between neighbours when larger."""
    if maps.shape[-2:] == shape:
        return maps
    flat = maps.reshape(1, -1, *maps.shape[-2:])
    if shape.h <= maps.shape[-2] and shape.w <= maps.shape[-1]:
        found = F.adaptive_avg_pool2d(flat, shape)
    else:
        found = F.interpolate(flat, shape, mode="bilinear", align_corners=False)
    return found.view(*maps.shape[:-2], *shape)


class FullMaps:
    """Every probability of every head, layer, step and token as a .npz file, written as it comes; float16.

    Names are step/layer; arrays are [heads tokens h w]. Several queries of one step get a further number.
    """

    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self._seen: dict[str, int] = {}

    def add(self, step: int, layer: str, maps: Float[Tensor, "heads n h w"]) -> None:
        """Write the maps of one layer at one step."""
        name = f"step-{step:03}/{layer}"
        number = self._seen[name] = self._seen.get(name, 0) + 1
        held = io.BytesIO()
        np.lib.format.write_array(held, maps.to(torch.float16).contiguous().numpy(), allow_pickle=False)
        self._zip.writestr(f"{name}{f'.{number}' if number > 1 else ''}.npy", held.getbuffer())

    def close(self) -> None:
        """Finish the file."""
        self._zip.close()


def _within(latent: Shape, side: int) -> Shape:
    """The latent's shape, shrunk until its longer side is at most `side`."""
    scale = min(1.0, side / max(latent))
    return Shape(max(1, round(latent.h * scale)), max(1, round(latent.w * scale)))


def _shape(latent: Shape, positions: int) -> Shape:
    """Rows and columns of a level with so many positions: the latent's, halved and rounded up as often as needed."""
    h, w = latent
    while h * w > positions:
        h, w = (h + 1) // 2, (w + 1) // 2
    assert h * w == positions, f"{positions} positions are no level of a latent {latent.h}x{latent.w}"
    return Shape(h, w)
