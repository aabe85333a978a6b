"""Convolutional blocks of the U-Net and the VAE: residual block, resampling, and a typed list of modules.

Letters: b batch, c o channels in and out, h w rows and columns, e width of the time embedding.

Source: He et al. 2016, arXiv:1603.05027; Ho et al. 2020, arXiv:2006.11239, appendix B.
"""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class ModuleList(nn.ModuleList, Generic[M]):
    """`nn.ModuleList` whose iteration knows the type of its modules."""

    def __init__(self, modules: Iterable[M] = ()) -> None:
        super().__init__(modules)

    def __iter__(self) -> Iterator[M]:
        return super().__iter__()  # pyright: ignore[reportReturnType]  # nothing else is ever put in


class ResBlock(nn.Module):
    """Two 3x3 convolutions, each after GroupNorm and SiLU, added to the input; the time embedding enters between them.

    `emb` 0: no time embedding (the VAE). A 1x1 `shortcut` exists only where the number of channels changes.
    """

    def __init__(self, channels: int, out_channels: int, *, emb: int = 0, norm_groups: int, norm_eps: float) -> None:
        super().__init__()
        self.norm_1 = nn.GroupNorm(norm_groups, channels, eps=norm_eps)
        self.conv_1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.emb = nn.Linear(emb, out_channels) if emb else None
        self.norm_2 = nn.GroupNorm(norm_groups, out_channels, eps=norm_eps)
        self.conv_2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.shortcut = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "b c h w"], emb: Float[Tensor, "b e"] | None = None) -> Float[Tensor, "b o h w"]:
        """`emb` has been through SiLU already: it is the same for all blocks."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        if self.emb is not None:
            h = h + self.emb(emb)[:, :, None, None]
        return self.shortcut(x) + self.conv_2(F.silu(self.norm_2(h)))


class Downsample(nn.Module):
    """Half the rows and columns, rounded up, by a convolution of stride 2.

    The U-Net pads one row and column on every side, the VAE (`is_asymmetric`) only at the bottom and the right, and
    therefore rounds down.
    """

    def __init__(self, channels: int, *, is_asymmetric: bool = False) -> None:
        super().__init__()
        self.is_asymmetric = is_asymmetric
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if is_asymmetric else 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.is_asymmetric else x)


class Upsample(nn.Module):
    """Nearest neighbour to `size`, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c h2 w2"]:
        """`size` is that of the skip it will meet: double, or one less where an odd size was halved."""
        return self.conv(F.interpolate(x, size=size, mode="nearest"))
