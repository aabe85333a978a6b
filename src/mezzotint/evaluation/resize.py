"""The resize kernels of evaluation protocols, written out: the same numbers whatever libraries are installed.

`tf1` and `half_pixel` mix the two nearest pixels of each axis. They differ in where an output pixel looks: at i * scale
(TensorFlow 1, which shifts the picture by up to half a pixel) or at (i + 1/2) * scale - 1/2. The antialiased kernels
are Pillow's and, since they were taken from it, torch's: a kernel as wide as an output pixel, cut and normalised at
borders. Pillow resizes columns first; 13 begins with the rows of tall pictures, which moves what is rounded in
between by up to 15 of 255. A protocol stays what it was.

Letters: b batch, h w rows and columns, s side of the output, n m pixels of one axis before and after.
Source: TensorFlow 1 `resize_bilinear_op.cc`; Pillow `Resample.c`; Keys 1981, doi:10.1109/TASSP.1981.1163711 (bicubic).
"""

import math
from functools import lru_cache

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from mezzotint.evaluation.protocols import Kernel, Protocol

FIXED_BITS = 22  # of Pillow's kernel weights for 8-bit pictures


def prepared(protocol: Protocol, pixels: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 s s"]:
    """Decoded pictures as the protocol's network wants them. float32."""
    height, width = pixels.shape[-2:]
    size = protocol.size
    if protocol.fit == "crop":
        short = min(height, width)
        # the longer side cut off, as Python's int() does: what torchvision and transformers agree on
        tall, wide = (size if side == short else int(size * side / short) for side in (height, width))
        resized = resize(pixels, tall, wide, protocol.kernel, rounds=protocol.rounds)
        top, left = (tall - size) // 2, (wide - size) // 2
        resized = resized[..., top : top + size, left : left + size]
    else:
        resized = resize(pixels, size, size, protocol.kernel, rounds=protocol.rounds)
    centre, spread = (resized.new_tensor(values)[:, None, None] for values in (protocol.centre, protocol.spread))
    return (resized - centre) / spread


def resize(
    pixels: UInt8[Tensor, "b 3 h w"], height: int, width: int, kernel: Kernel, *, rounds: bool = False
) -> Float[Tensor, "b 3 y x"]:
    """Pictures of another size, in 0 … 255; float32. `rounds`: to whole numbers after each axis, as Pillow's 8 bits."""
    if kernel in ("tf1", "half_pixel"):
        mixed = _mixed(_mixed(pixels.float(), width, -1, kernel), height, -2, kernel)
        return mixed.round() if rounds else mixed
    bicubic = kernel == "antialiased_bicubic"
    if rounds:
        return _fixed(_fixed(pixels.double(), width, bicubic).mT, height, bicubic).mT.float()
    return _weighed(_weighed(pixels.float(), width, bicubic).mT, height, bicubic).mT.clamp(0, 255)


def _mixed(x: Tensor, size: int, axis: int, kernel: Kernel) -> Tensor:
    """One axis by mixing two neighbours: low + (high - low) * share, in this order of operations."""
    if x.shape[axis] == size:
        return x
    low, high, share = _neighbours(x.shape[axis], size, kernel)
    below = x.index_select(axis, low)
    return below + (x.index_select(axis, high) - below) * (share if axis == -1 else share[:, None])


@lru_cache(maxsize=256)
def _neighbours(
    before: int, after: int, kernel: Kernel
) -> tuple[Int[Tensor, "m"], Int[Tensor, "m"], Float[Tensor, "m"]]:
    """Where each output pixel looks: two places and the share of the second. float32, as TensorFlow computes them."""
    scale = torch.tensor(before / after, dtype=torch.float32)
    place = torch.arange(after, dtype=torch.float32)
    place = place * scale if kernel == "tf1" else ((place + 0.5) * scale - 0.5).clamp(min=0)
    low = place.long().clamp(max=before - 1)
    return low, (low + 1).clamp(max=before - 1), place - low


def _weighed(x: Tensor, size: int, bicubic: bool) -> Tensor:
    """The last axis by an antialiased kernel."""
    return x if x.shape[-1] == size else x @ weights(x.shape[-1], size, bicubic=bicubic).T.to(x.dtype)


def _fixed(x: Tensor, size: int, bicubic: bool) -> Tensor:
    """The last axis as Pillow does it for 8 bits: weights are whole 2^-22ths, results whole and cut to 0 … 255.

    float64 holds these sums of whole numbers exactly.
    """
    if x.shape[-1] == size:
        return x
    one = 1 << FIXED_BITS
    whole = (weights(x.shape[-1], size, bicubic=bicubic) * one).round()
    return ((x @ whole.T + one // 2) / one).floor().clamp(0, 255)


@lru_cache(maxsize=64)
def weights(before: int, after: int, *, bicubic: bool) -> Float[Tensor, "m n"]:
    """The share of each input pixel in each output pixel, by a kernel as wide as the larger of both. float64.

    Rows sum to 1. The kernel is a triangle, or Keys' cubic with a = -1/2.
    """
    scale = before / after
    wide = max(scale, 1.0)
    support = (2.0 if bicubic else 1.0) * wide
    matrix = torch.zeros(after, before, dtype=torch.float64)
    for row in range(after):
        centre = (row + 0.5) * scale
        first = max(math.floor(centre - support + 0.5), 0)
        last = min(math.floor(centre + support + 0.5), before)
        away = ((torch.arange(first, last, dtype=torch.float64) - centre + 0.5) / wide).abs()
        shares = _cubic(away) if bicubic else (1 - away).clamp(min=0)
        matrix[row, first:last] = shares / shares.sum()
    return matrix


def _cubic(away: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """Keys' cubic with a = -1/2, at distances from 0."""
    near = (1.5 * away - 2.5) * away * away + 1
    far = ((-0.5 * away + 2.5) * away - 4) * away + 2
    return torch.where(away < 1, near, torch.where(away < 2, far, 0.0))
