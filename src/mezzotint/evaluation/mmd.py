"""Maximum mean discrepancy between two sets of features: kernel sums over pairs of blocks, and what follows from them.

The whole kernel matrix is visited once, a pair of blocks at a time, so that memory does not grow with the number of
pictures; the sums without one block, and with them a jackknife interval, then cost nothing.

Letters: n, m pictures; d feature width; g blocks of the made pictures.
Source: Gretton et al. 2012, JMLR 13:723-773, eq. 3 (unbiased) and eq. 5 (biased).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, jackknife

ROWS = 2048  # most rows and columns of the kernel matrix that are in memory at once
BLOCKS = 20

Kernel = Callable[[Tensor, Tensor], Tensor]  # features [n d], [m d] -> [n m]


class Sums(NamedTuple):
    """Sums of kernel values: over pairs of blocks of the made pictures, and with the reference as a whole."""

    made: Float[Tensor, "g g"]
    made_self: Float[Tensor, "g"]  # of k(x, x) alone
    made_counts: Float[Tensor, "g"]
    across: Float[Tensor, "g"]
    reference: float
    reference_self: float
    reference_count: int


def kernel_sums(
    made: Float[Tensor, "n d"], reference: Float[Tensor, "m d"], kernel: Kernel, blocks: int = BLOCKS
) -> Sums:
    """All sums, in float64, over blocks of neighbours. Raises: ConfigError as `check_features`."""
    check_features(made, reference)
    x, y = made.double().tensor_split(min(blocks, len(made))), reference.double()
    within, own = _within(x, kernel)
    counts = within.new_tensor([len(block) for block in x])
    across = torch.stack([_sum(block, y, kernel) for block in x])
    theirs, their_own = _within([y], kernel)
    return Sums(within, own, counts, across, float(theirs), float(their_own), len(y))


def mmd2(sums: Sums, *, is_unbiased: bool, without: int | None = None) -> float:
    """The squared discrepancy, of everything or without one block of the made; unbiased values may be negative."""
    kept = torch.ones_like(sums.made_counts)
    if without is not None:
        kept[without] = 0
    n, m = float(kept @ sums.made_counts), sums.reference_count
    xx, yy, xy = float(kept @ sums.made @ kept), sums.reference, float(kept @ sums.across)
    if is_unbiased:
        xx, yy = xx - float(kept @ sums.made_self), yy - sums.reference_self
        return xx / (n * (n - 1)) + yy / (m * (m - 1)) - 2 * xy / (n * m)
    return xx / n**2 + yy / m**2 - 2 * xy / (n * m)


def estimate(sums: Sums, *, is_unbiased: bool, scale: float = 1.0) -> Estimate:
    """The discrepancy times `scale` with its jackknife interval over the made pictures; the reference is held fixed."""
    n, value = int(sums.made_counts.sum()), scale * mmd2(sums, is_unbiased=is_unbiased)
    without: list[float] = []
    if n - int(sums.made_counts.max()) >= 2:
        without = [scale * mmd2(sums, is_unbiased=is_unbiased, without=i) for i in range(len(sums.made_counts))]
    return jackknife(value, without, n)


def dealt(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """The rows in an order by chance, always the same: blocks of sorted pictures would not be alike."""
    return features[torch.randperm(len(features), generator=keyed("blocks", len(features)))]


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
