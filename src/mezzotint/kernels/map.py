"""A feature map that is written a band of rows at a time, in memory or in a file without a name.

Letters: c channels, h w rows and columns. One picture at a time.
"""

import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mezzotint.kernels import native
from mezzotint.kernels.choices import PACKED, KernelSet


class Factors(NamedTuple):
    """What normalises a map, float32 [1 c] each."""

    scale: Tensor
    offset: Tensor


class Map:
    """A feature map [1 c h w] that is written band by band, and the moments of what was written."""

    def __init__(self, data: Tensor, kernels: KernelSet = PACKED) -> None:
        self.data = data
        is_compiled = kernels.norm == "native"
        self._moments = native.moments if is_compiled else native.moments_by_torch
        self._scale_into = native.scale_into if is_compiled else native.scale_into_by_torch
        self._counts: list[int] = []  # of positions of a band
        self._noted: list[Tensor] = []  # [2 c]: their mean and sum of squared distances from it

    @property
    def rows(self) -> int:
        """How many the map has."""
        return self.data.shape[2]

    def band(self, first: int, last: int) -> Tensor:
        """Rows [first, last)."""
        return self.data[:, :, first:last]

    def around(self, first: int, last: int, halo: int, factors: Factors | None) -> Tensor:
        """Rows [first - halo, last + halo), zeros outside the map; through `factors` and SiLU if there are any."""
        top, bottom = max(first - halo, 0), min(last + halo, self.rows)
        above, below = top - (first - halo), (last + halo) - bottom
        if factors is None and not above + below:
            return self.band(top, bottom)
        _, channels, _, columns = self.data.shape
        height = last - first + 2 * halo
        band = uninitialised((1, channels, height, columns), self.data.dtype)
        band[:, :, :above] = 0
        band[:, :, height - below :] = 0
        inside = band[:, :, above : height - below]
        if factors is None:
            inside.copy_(self.band(top, bottom))
        else:
            self._scale_into(inside, self.band(top, bottom), *factors, silu=True)
        return band

    def normalised(self, first: int, last: int, factors: Factors) -> Tensor:
        """Rows [first, last) through `factors`."""
        band = self.band(first, last)
        out = torch.empty_like(band)
        self._scale_into(out, band, *factors, silu=False)
        return out

    def note(self, first: int, last: int) -> None:
        """These rows are written: their moments join those of the rows before."""
        band = self.band(first, last)
        self._counts.append(band.shape[2] * band.shape[3])
        self._noted.append(self._moments(band)[:, 0])

    def factors(self, norm: nn.GroupNorm) -> Factors:
        """Scale and offset [1 c] that normalise the map; all of it has been written."""
        width = self.data.shape[1] // norm.num_groups
        counts = torch.tensor(self._counts, dtype=torch.float64)[:, None, None]
        means, squares = torch.stack(self._noted, 1).view(2, -1, norm.num_groups, width)  # [n groups width] each
        total = counts.sum() * width
        centre = (counts * means).sum((0, 2), keepdim=True) / total
        variance = ((squares + counts * (means - centre).square()).sum((0, 2)) / total)[:, None]
        scale = (variance + norm.eps).rsqrt().expand(-1, width).flatten() * norm.weight.double()
        offset = norm.bias.double() - centre[0].expand(-1, width).flatten() * scale
        return Factors(scale.float()[None], offset.float()[None])

    def forget(self) -> None:
        """The map will be written again."""
        self._counts.clear()
        self._noted.clear()


def in_file(shape: tuple[int, int, int, int], dtype: torch.dtype, folder: Path) -> Tensor:
    """A map [1 c h w], channels_last, in a file without a name that is gone with the tensor.

    Raises: OSError if the folder cannot be written or lacks the space, all of which is reserved at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    size = math.prod(shape) * dtype.itemsize
    handle, name = tempfile.mkstemp(dir=folder)
    try:
        os.posix_fallocate(handle, 0, size)  # a page that finds no space later would end the process
        data = torch.from_file(name, shared=True, size=math.prod(shape), dtype=dtype)
    finally:
        os.close(handle)
        Path(name).unlink()
    return in_storage(data.untyped_storage(), shape, dtype)


def in_storage(storage: torch.UntypedStorage, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """A map [1 c h w], channels_last, in memory that is there already."""
    _, c, h, w = shape
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape, (h * w * c, 1, w * c, c))


def uninitialised(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    """Memory for a map or a band, channels_last."""
    return torch.empty(shape, dtype=dtype, memory_format=torch.channels_last)
