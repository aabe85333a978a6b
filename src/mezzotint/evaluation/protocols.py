"""What a feature network is shown: named, versioned rules from decoded pictures to its input. No torch.

The same network on the same pictures gives another Frechet distance when pictures are resized by another kernel: in the
second or third digit for pictures near 299 pixels, by several points for large or small ones. So every number carries
its protocol, and numbers of two protocols are never compared.

All of them begin with decoded 8-bit RGB. Programs differ, too, in how a float picture becomes 8-bit before that:
torchmetrics cuts off (`(x * 255).byte()`), everything of this package rounds to the nearest.

Source: the TTUR code of Heusel et al. 2017, arXiv:1706.08500 (`tf1`); pytorch-fid; Parmar et al. 2021, arXiv:2104.11222
(`clean`); torchmetrics; Dhariwal and Nichol 2021, arXiv:2105.05233 (`adm`); Radford et al. 2021, arXiv:2103.00020.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from mezzotint.errors import ConfigError, unknown

Kernel = Literal["tf1", "half_pixel", "antialiased_bilinear", "antialiased_bicubic"]
Fit = Literal["stretch", "crop"]
Channels = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """From 8-bit RGB of any size to a network's input: resized to size x size, then (x - centre) / spread.

    `fit`: "stretch" both sides to `size`; "crop": the shorter side, then the middle of the longer.
    `rounds`: the resized picture is 8-bit again, as Pillow does with 8-bit pictures; else it stays float.
    A changed rule is a new `version`, and a new digest.
    """

    name: str
    version: int = 1
    size: int
    kernel: Kernel
    fit: Fit = "stretch"
    rounds: bool = False
    centre: Channels  # of 0 … 255
    spread: Channels
    meaning: str = ""  # for people; not part of the digest

    @property
    def digest(self) -> str:
        """Twelve hexadecimal digits that change with every rule."""
        rules = {name: value for name, value in asdict(self).items() if name != "meaning"}
        return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """Name and version, as they stand beside a number: "tf1/1"."""
        return f"{self.name}/{self.version}"


def grey(value: float) -> Channels:
    """The same value for red, green and blue."""
    return (value, value, value)


INCEPTION: dict[str, Protocol] = {
    rule.name: rule
    for rule in (
        Protocol(
            name="tf1",
            size=299,
            kernel="tf1",
            centre=grey(128.0),
            spread=grey(128.0),
            meaning="TensorFlow 1's bilinear kernel, neither antialiased nor centred: TTUR, torch-fidelity, EDM",
        ),
        Protocol(
            name="pytorch-fid",
            size=299,
            kernel="half_pixel",
            centre=grey(127.5),
            spread=grey(127.5),
            meaning="torch's bilinear kernel without antialiasing, range -1 … 1: pytorch-fid",
        ),
        Protocol(
            name="clean",
            size=299,
            kernel="antialiased_bicubic",
            centre=grey(128.0),
            spread=grey(128.0),
            meaning="Pillow's bicubic kernel on float channels, cut to 0 … 255 and not rounded: clean-fid",
        ),
        Protocol(
            name="torchmetrics",
            size=299,
            kernel="antialiased_bilinear",
            centre=grey(128.0),
            spread=grey(128.0),
            meaning="torch's bilinear kernel with antialiasing: torchmetrics, unless it is told antialias=False",
        ),
        Protocol(
            name="adm",
            size=299,
            kernel="tf1",
            centre=grey(128.0),
            spread=grey(128.0),
            meaning="pictures as in tf1; sFID from the first 7 channels of mixed_6/conv: guided-diffusion's evaluator",
        ),
    )
}
"""Protocols of the Frechet Inception distance, by name."""


def inception_protocol(name: str) -> Protocol:
    """The protocol of this name. Raises: ConfigError with the nearest name."""
    if name not in INCEPTION:
        raise ConfigError(unknown("protocol", name, INCEPTION))
    return INCEPTION[name]


def clip_protocol(size: int, mean: Channels, std: Channels) -> Protocol:
    """How CLIP towers are shown pictures, for a tower that sees size x size; mean and std of pictures in 0 … 1."""
    red, green, blue = (255 * value for value in mean)
    reds, greens, blues = (255 * value for value in std)
    return Protocol(
        name="clip",
        size=size,
        kernel="antialiased_bicubic",
        fit="crop",
        rounds=True,
        centre=(red, green, blue),
        spread=(reds, greens, blues),
        meaning="Pillow's bicubic kernel on 8-bit pictures, shorter side, middle cut: CLIP's own preprocessing",
    )


LITE = Protocol(
    name="lite",
    size=224,
    kernel="antialiased_bicubic",
    fit="crop",
    rounds=True,
    centre=grey(127.5),
    spread=grey(127.5),
    meaning="as for CLIP at 224 pixels, range -1 … 1: EfficientNet-Lite0",
)
