"""Maximum mean discrepancy between two sets of features: kernel sums over pairs of blocks, and what follows from them.

The whole kernel matrix is visited once, a pair of blocks at a time, so that memory does not grow with the number of
pictures; the sums without one block, and with them a jackknife interval, then cost nothing.

Letters: n, m pictures; d feature width; g blocks of the made pictures, h of the reference.
Source: Gretton et al. 2012, JMLR 13:723-773, eq. 3 (unbiased) and eq. 5 (biased).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, jackknife

ROWS = 2048  # most rows and columns of the kernel matrix that are in memory at once
BLOCKS = 20

Kernel = Callable[[Tensor, Tensor], Tensor]  # features [n d], [m d] -> [n m]


class Sums(NamedTuple):
    """Sums of kernel values over pairs of blocks, and of k(x, x) over blocks."""

    made: Float[Tensor, "g g"]
    reference: Float[Tensor, "h h"]
    across: Float[Tensor, "g h"]
    made_self: Float[Tensor, "g"]
    reference_self: Float[Tensor, "h"]
    made_counts: Float[Tensor, "g"]
    reference_counts: Float[Tensor, "h"]


def kernel_sums(
    made: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], kernel: Kernel, blocks: int = BLOCKS
) -> Sums:
    """All sums, in float64. Raises: ConfigError as `check_features`."""
    check_features(made, reference)
    x = made.double().tensor_split(min(blocks, len(made)))
    y = reference.double().tensor_split(min(blocks, len(reference)))
    xx, x_self = _within(x, kernel)
    yy, y_self = _within(y, kernel)
    xy = torch.stack([torch.stack([_sum(one, other, kernel) for other in y]) for one in x])
    return Sums(xx, yy, xy, x_self, y_self, *(xx.new_tensor([len(block) for block in side]) for side in (x, y)))


def mmd2(sums: Sums, *, is_unbiased: bool, without: int | None = None, without_reference: int | None = None) -> float:
    """The squared discrepancy, of everything or without one block of either side; unbiased values may be negative."""
    g, h = torch.ones_like(sums.made_counts), torch.ones_like(sums.reference_counts)
    if without is not None:
        g[without] = 0
    if without_reference is not None:
        h[without_reference] = 0
    n, m = float(g @ sums.made_counts), float(h @ sums.reference_counts)
    xx, yy, xy = float(g @ sums.made @ g), float(h @ sums.reference @ h), float(g @ sums.across @ h)
    if is_unbiased:
        xx, yy = (xx - float(g @ sums.made_self)) / (n * (n - 1)), (yy - float(h @ sums.reference_self)) / (m * (m - 1))
        return xx + yy - 2 * xy / (n * m)
    return xx / n**2 + yy / m**2 - 2 * xy / (n * m)


def estimate(sums: Sums, *, is_unbiased: bool, scale: float = 1.0) -> Estimate:
    """The discrepancy times `scale` with its jackknife interval over the made pictures; the reference is held fixed."""
    without = [scale * mmd2(sums, is_unbiased=is_unbiased, without=i) for i in range(len(sums.made_counts))]
    enough = float(sums.made_counts.sum() - sums.made_counts.max()) >= 2
    value = scale * mmd2(sums, is_unbiased=is_unbiased)
    return jackknife(value, without if enough else without[:1], int(sums.made_counts.sum()))


def check_features(made: Tensor, reference: Tensor, least: int = 2) -> None:
    """Raises: ConfigError unless both are rows of one width, `least` or more, and finite."""
    for what, features in (("made", made), ("reference", reference)):
        if features.dim() != 2 or len(features) < least:
            shape = tuple(features.shape)
            raise ConfigError(f"{what} features of shape {shape}: at least {least} rows of numbers are needed")
        if not bool(features.isfinite().all()):
            raise ConfigError(f"{what} features are not all finite; is a picture damaged?")
    if made.shape[1] != reference.shape[1]:
        raise ConfigError(f"features of {made.shape[1]} and {reference.shape[1]} numbers cannot be compared")


def _within(blocks: Sequence[Tensor], kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Sums over pairs of blocks of one side, and over the pairs of a picture with itself."""
    total, own = blocks[0].new_zeros(len(blocks), len(blocks)), blocks[0].new_zeros(len(blocks))
    for i, one in enumerate(blocks):
        for j in range(i):
            total[i, j] = total[j, i] = _sum(one, blocks[j], kernel)
        parts = torch.split(one, ROWS)
        for p, a in enumerate(parts):
            for b in parts[:p]:
                total[i, i] += 2 * kernel(a, b).sum()
            values = kernel(a, a)
            total[i, i] += values.sum()
            own[i] += values.diagonal().sum()
    return total, own


def _sum(one: Tensor, other: Tensor, kernel: Kernel) -> Tensor:
    parts = [kernel(a, b).sum() for a in torch.split(one, ROWS) for b in torch.split(other, ROWS)]
    return torch.stack(parts).sum()
