"""Kernel Inception distance: unbiased, so small numbers of pictures can be compared.

Two numbers, both unbiased estimates of the same thing: what papers print, the mean and deviation over random subsets
(their deviation is that of one subset, not of the mean); and the estimate from all pairs with its jackknife interval,
which has the smallest error that these pictures allow. Neither is multiplied by 1000.

Letters: n, m pictures, d feature width.
Source: Binkowski et al. 2018, arXiv:1801.01401, eq. 4 and section 4.1.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, deviation
from mezzotint.evaluation.mmd import BLOCKS, check_features, dealt, estimate, kernel_sums, mmd2

SUBSETS, SIZE = 100, 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class KID:
    """The distance from all pairs, and its mean and deviation over `subsets` subsets of `size` from each side."""

    distance: Estimate
    subset_mean: float
    subset_deviation: float
    subsets: int
    size: int


def polynomial(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """(x·y / d + 1)³ for every pair."""
    return (x @ y.T).div_(x.shape[1]).add_(1).pow_(3)


def kid(
    made: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    subsets: int = SUBSETS,
    size: int | None = None,
    blocks: int = BLOCKS,
    seed: int = 0,
) -> KID:
    """Kernel distance of the features. `size` None: 1000, or half of the smaller side if that is less.

    Subsets are drawn without replacement, keyed by `seed`; as large as a side they would all be the same pictures.
    Raises: ConfigError for fewer than 4 pictures, a size that there are not, widths that differ, numbers not finite.
    """
    check_features(made, reference, least=4)
    fewest = min(len(made), len(reference))
    chosen = min(SIZE, fewest // 2) if size is None else size
    if not 2 <= chosen <= fewest or subsets < 2:
        raise ConfigError(f"kid: {subsets} subsets of {chosen} from {fewest} pictures; 2 … {fewest} are possible")
    values: list[float] = []
    for i in range(subsets):
        draw = keyed(seed, "kid", i)
        x = made[torch.randperm(len(made), generator=draw)[:chosen]]
        y = reference[torch.randperm(len(reference), generator=draw)[:chosen]]
        values.append(mmd2(kernel_sums(x, y, polynomial, 1), is_unbiased=True))
    return KID(
        distance=estimate(kernel_sums(dealt(made), reference, polynomial, blocks), is_unbiased=True),
        subset_mean=sum(values) / subsets,
        subset_deviation=deviation(values),
        subsets=subsets,
        size=chosen,
    )
