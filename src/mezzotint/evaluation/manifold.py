"""Precision, recall, density and coverage: whether pictures lie where real ones do, and whether they reach everywhere.

Around every picture of a set lies a ball that reaches to its k-th nearest neighbour in the set. Precision and recall
ask whether a picture of one set lies in any ball of the other; one outlier with a huge ball spoils them. Density counts
the balls; coverage asks of each real ball whether it holds a picture. All depend on the numbers of pictures: compare
only equal ones. A picture on the rim of a ball is in it (<=, as in Kynkäänniemi's program; Naeem's says <).

Letters: n made, m real pictures; d feature width.
Source: Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 1-3; Naeem et al. 2020, arXiv:2002.09797, eq. 5-6.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, Share, mean, share
from mezzotint.evaluation.mmd import check_features
from mezzotint.evaluation.neighbours import ROWS, nearest, squares

PRECISION_K, COVERAGE_K = 3, 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifold:
    """Intervals are of the pictures that are counted; the balls are held fixed."""

    precision: Share  # made pictures in a real ball
    recall: Share  # real pictures in a made ball
    density: Estimate  # real balls that hold a made picture, over k; 1 for equal distributions, may be more
    coverage: Share  # real balls that hold a made picture
    precision_k: int
    coverage_k: int


def manifold(
    made: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    precision_k: int = PRECISION_K,
    coverage_k: int = COVERAGE_K,
) -> Manifold:
    """All four, in one pass over the distances between the sets.

    Raises: ConfigError if a set has no more than k pictures, widths differ, or numbers are not finite.
    """
    check_features(made, real)
    most = max(precision_k, coverage_k)
    if min(len(made), len(real)) <= most or min(precision_k, coverage_k) < 1:
        raise ConfigError(f"manifold: {len(made)} made and {len(real)} real pictures; more than {most} are needed")
    middle = real.double().mean(0)
    x, y = made.double() - middle, real.double() - middle
    around_made = nearest(x, x, precision_k, is_same=True).distance[:, -1].square()
    around_real = nearest(y, y, most, is_same=True).distance.square()
    narrow, wide = around_real[:, precision_k - 1], around_real[:, coverage_k - 1]
    inside, reached = 0, y.new_zeros(len(y), dtype=torch.bool)
    balls: list[Tensor] = []
    covered = y.new_zeros(len(y), dtype=torch.bool)
    for start in range(0, len(x), ROWS):
        apart = squares(x[start : start + ROWS], y)  # [rows m]
        inside += int((apart <= narrow).any(1).sum())
        reached |= (apart <= around_made[start : start + ROWS, None]).any(0)
        held = apart <= wide
        balls.append(held.sum(1).double() / coverage_k)
        covered |= held.any(0)
    return Manifold(
        precision=share(inside, len(x)),
        recall=share(int(reached.sum()), len(y)),
        density=mean(torch.cat(balls).numpy().tolist(), len(x), "pictures"),
        coverage=share(int(covered.sum()), len(y)),
        precision_k=precision_k,
        coverage_k=coverage_k,
    )
