"""Inception v3 as the Frechet Inception distance defines it: TensorFlow's network of 2015-12-05, as one table.

It is not torchvision's: averages leave the border out of their count, and the last block has a maximum where the paper
and the block before it have an average. Batch norms are folded into the convolutions before them, in float64.

Layers are called what the public .pth files call them; the second name is that of TensorFlow's graph.

Letters: n pictures, c channels, h w rows and columns, d features, k classes, e spatial features.
Source: Szegedy et al. 2015, arXiv:1512.00567; the graph `classify_image_graph_def.pb` of `inception-2015-12-05.tgz`.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SIZE, FEATURES, CLASSES = 299, 2048, 1008
EPSILON = 0.001  # of batch norms
SPATIAL = ("Mixed_6d", 7)  # block, and channels of its first branch that sFID looks at: 7 * 17 * 17 features


class Conv(NamedTuple):
    """A convolution, batch norm and ReLU; without stride and unless `is_cut`, the output is as large as the input."""

    name: str
    graph: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    is_cut: bool = False

    @property
    def padding(self) -> tuple[int, int]:
        """Rows and columns of zeros on each side."""
        return (0, 0) if self.is_cut or self.stride > 1 else (self.kernel[0] // 2, self.kernel[1] // 2)


class Pool(NamedTuple):
    """The average of 3 x 3 without what is outside, or the maximum, with stride 1 or 2."""

    is_average: bool
    stride: int = 1


class Fork(NamedTuple):
    """Two convolutions of the same input, side by side."""

    one: Conv
    other: Conv


Step = Conv | Pool | Fork


class Block(NamedTuple):
    """Branches of the same input, side by side."""

    name: str
    graph: str
    branches: tuple[tuple[Step, ...], ...]


class InceptionOutput(NamedTuple):
    """float32: the mean of the last block; logits without their bias, as the Inception score takes them; sFID's."""

    features: Float[Tensor, "n d"]
    logits: Float[Tensor, "n k"]
    spatial: Float[Tensor, "n e"]


AVERAGE, MAXIMUM, HALVED = Pool(is_average=True), Pool(is_average=False), Pool(is_average=False, stride=2)

STEM: tuple[Step, ...] = (
    Conv("Conv2d_1a_3x3", "conv", 32, (3, 3), 2),
    Conv("Conv2d_2a_3x3", "conv_1", 32, (3, 3), is_cut=True),
    Conv("Conv2d_2b_3x3", "conv_2", 64, (3, 3)),
    HALVED,
    Conv("Conv2d_3b_1x1", "conv_3", 80),
    Conv("Conv2d_4a_3x3", "conv_4", 192, (3, 3), is_cut=True),
    HALVED,
)


def _chain(name: str, tower: str, *layers: tuple[str, int, tuple[int, int]], stride: int = 1) -> tuple[Conv, ...]:
    """Convolutions after one another, (suffix of the name, channels, kernel); only the last may have a stride."""
    last = len(layers) - 1
    return tuple(
        Conv(f"{name}{suffix}", f"{tower}/conv{f'_{i}' if i else ''}", channels, kernel, stride if i == last else 1)
        for i, (suffix, channels, kernel) in enumerate(layers)
    )


def _a(name: str, graph: str, pooled: int) -> Block:
    return Block(
        name,
        graph,
        (
            (Conv("branch1x1", "conv", 64),),
            _chain("branch5x5", "tower", ("_1", 48, (1, 1)), ("_2", 64, (5, 5))),
            _chain("branch3x3dbl", "tower_1", ("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3))),
            (AVERAGE, Conv("branch_pool", "tower_2/conv", pooled)),
        ),
    )


def _b(name: str, graph: str) -> Block:
    return Block(
        name,
        graph,
        (
            (Conv("branch3x3", "conv", 384, (3, 3), 2),),
            _chain("branch3x3dbl", "tower", ("_1", 64, (1, 1)), ("_2", 96, (3, 3)), ("_3", 96, (3, 3)), stride=2),
            (HALVED,),
        ),
    )


def _c(name: str, graph: str, c: int) -> Block:
    wide, tall = (1, 7), (7, 1)
    return Block(
        name,
        graph,
        (
            (Conv("branch1x1", "conv", 192),),
            _chain("branch7x7", "tower", ("_1", c, (1, 1)), ("_2", c, wide), ("_3", 192, tall)),
            _chain(
                "branch7x7dbl",
                "tower_1",
                ("_1", c, (1, 1)), ("_2", c, tall), ("_3", c, wide), ("_4", c, tall), ("_5", 192, wide),
            ),
            (AVERAGE, Conv("branch_pool", "tower_2/conv", 192)),
        ),
    )  # fmt: skip


def _d(name: str, graph: str) -> Block:
    return Block(
        name,
        graph,
        (
            _chain("branch3x3", "tower", ("_1", 192, (1, 1)), ("_2", 320, (3, 3)), stride=2),
            _chain(
                "branch7x7x3",
                "tower_1",
                ("_1", 192, (1, 1)), ("_2", 192, (1, 7)), ("_3", 192, (7, 1)), ("_4", 192, (3, 3)),
                stride=2,
            ),
            (HALVED,),
        ),
    )  # fmt: skip


def _e(name: str, graph: str, pool: Pool) -> Block:
    def fork(branch: str, tower: str) -> Fork:
        return Fork(
            Conv(f"{branch}a", f"{tower}/mixed/conv", 384, (1, 3)),
            Conv(f"{branch}b", f"{tower}/mixed/conv_1", 384, (3, 1)),
        )

    return Block(
        name,
        graph,
        (
            (Conv("branch1x1", "conv", 320),),
            (Conv("branch3x3_1", "tower/conv", 384), fork("branch3x3_2", "tower")),
            (
                *_chain("branch3x3dbl", "tower_1", ("_1", 448, (1, 1)), ("_2", 384, (3, 3))),
                fork("branch3x3dbl_3", "tower_1"),
            ),
            (pool, Conv("branch_pool", "tower_2/conv", 192)),
        ),
    )


BLOCKS: tuple[Block, ...] = (
    _a("Mixed_5b", "mixed", 32),
    _a("Mixed_5c", "mixed_1", 64),
    _a("Mixed_5d", "mixed_2", 64),
    _b("Mixed_6a", "mixed_3"),
    _c("Mixed_6b", "mixed_4", 128),
    _c("Mixed_6c", "mixed_5", 160),
    _c("Mixed_6d", "mixed_6", 160),
    _c("Mixed_6e", "mixed_7", 192),
    _d("Mixed_7a", "mixed_8"),
    _e("Mixed_7b", "mixed_9", AVERAGE),
    _e("Mixed_7c", "mixed_10", MAXIMUM),  # not an average: what the 2015 graph has, whatever the paper says
)


class Layer(NamedTuple):
    """A convolution of the whole network: its names in files and graph, its input channels, and itself."""

    name: str
    graph: str
    inputs: int
    conv: Conv

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of its weight."""
        return (self.conv.channels, self.inputs, *self.conv.kernel)


def layers() -> Iterator[Layer]:
    """All 94 convolutions with full names."""
    channels = 3
    for step in STEM:
        if isinstance(step, Conv):
            yield Layer(step.name, step.graph, channels, step)
            channels = step.channels
    for block in BLOCKS:
        width = 0
        for branch in block.branches:
            inputs = channels
            for step in branch:
                convs = [step] if isinstance(step, Conv) else [*step] if isinstance(step, Fork) else []
                for conv in convs:
                    yield Layer(f"{block.name}.{conv.name}", f"{block.graph}/{conv.graph}", inputs, conv)
                inputs = sum(conv.channels for conv in convs) or inputs
            width += inputs
        channels = width


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors of the network."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in layers():
        found[f"{layer.name}.conv.weight"] = layer.shape
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{layer.name}.bn.{kind}"] = (layer.conv.channels,)
    return found | {"fc.weight": (CLASSES, FEATURES)}


class Inception(nn.Module):
    """The network from the tensors of `shapes`, in channels_last and the dtype of its weights.

    Results are float32 in any dtype: means and logits are computed in float32.
    """

    fc: Tensor

    def __init__(
        self, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, blocks: tuple[Block, ...] = BLOCKS
    ) -> None:
        super().__init__()
        self.blocks, self.dtype = blocks, dtype
        self.convs = nn.ModuleDict()
        for layer in layers():
            conv = layer.conv
            module = nn.Conv2d(layer.inputs, conv.channels, conv.kernel, conv.stride, conv.padding, device="meta")
            weight, bias = folded(state, f"{layer.name}.conv", f"{layer.name}.bn")
            module.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            self.convs[_key(layer.name)] = module
        self.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in the stubs
        self.register_buffer("fc", state["fc.weight"].float().clone())
        self.requires_grad_(False)

    def forward(self, x: Float[Tensor, "n 3 299 299"]) -> InceptionOutput:
        """Of pictures that a protocol has prepared."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        for step in STEM:
            x = self._step("", step, x)
        spatial = x
        for block in self.blocks:
            parts: list[Tensor] = []
            for branch in block.branches:
                y = x
                for step in branch:
                    y = self._step(f"{block.name}.", step, y)
                parts.append(y)
            if block.name == SPATIAL[0]:  # its first branch; rows, columns and then channels, as the graph has them
                spatial = parts[0][:, : SPATIAL[1]].permute(0, 2, 3, 1).flatten(1)
            x = torch.cat(parts, 1)
        features = x.float().mean((2, 3))
        return InceptionOutput(features, features @ self.fc.T, spatial.float())

    def _step(self, prefix: str, step: Step, x: Tensor) -> Tensor:
        match step:
            case Conv():
                return F.relu_(self.convs[_key(prefix + step.name)](x))
            case Fork():
                return torch.cat([self._step(prefix, conv, x) for conv in step], 1)
            case Pool(is_average=True):
                return F.avg_pool2d(x, 3, step.stride, padding=1, count_include_pad=False)
            case Pool():
                return F.max_pool2d(x, 3, step.stride, padding=1 if step.stride == 1 else 0)


def folded(state: Mapping[str, Tensor], conv: str, norm: str) -> tuple[Float[Tensor, "o c y x"], Float[Tensor, "o"]]:
    """Weight and bias of a convolution that does what it and its batch norm do. float64 inside, float32 out."""
    gamma, beta, mean, variance = (
        state[f"{norm}.{kind}"].double() for kind in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma * (variance + EPSILON).rsqrt()
    weight = state[f"{conv}.weight"].double() * scale[:, None, None, None]
    return weight.float(), (beta - mean * scale).float()


def _key(name: str) -> str:
    return name.replace(".", "/")  # ModuleDict allows no dots
