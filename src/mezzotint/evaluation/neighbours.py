"""Distances between features a block at a time, and who is nearest; memory does not grow with the number of pairs.

Letters: n, m pictures; d feature width; k neighbours.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.mmd import check_features

ROWS = 1024  # rows of the distance matrix that are in memory at once


class Nearest(NamedTuple):
    """Row by row, the nearest first: distance and place among the known features."""

    distance: Float[Tensor, "n k"]
    place: Int64[Tensor, "n k"]


def squares(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Squared distances in float64, as |x|² + |y|² - 2 x·y; below its rounding 0, so that equal rows are equal."""
    size = x.square().sum(1)[:, None] + y.square().sum(1)[None]
    found = size - 2 * (x @ y.T)
    return found.masked_fill_(found < 16 * torch.finfo(found.dtype).eps * size, 0)


def nearest(
    features: Float[Tensor, "n d"], known: Float[Tensor, "m d"], k: int = 2, *, is_same: bool = False
) -> Nearest:
    """The k nearest of `known`, exactly: candidates by `squares`, then distances from differences. Ties: lower place.

    `is_same`: both are the same rows, and none is its own neighbour.
    Raises: ConfigError for fewer than k known features, widths that differ, or numbers that are not finite.
    """
    check_features(features, known, least=1)
    there = len(known) - is_same
    if not 1 <= k <= there:
        raise ConfigError(f"{k} nearest neighbours among {there} features; give at least {k + is_same}")
    middle = known.double().mean(0)  # centred: no digits are lost to a common mean
    y = known.double() - middle
    distances: list[Tensor] = []
    places: list[Tensor] = []
    for start in range(0, len(features), ROWS):
        x = features[start : start + ROWS].double() - middle
        found = squares(x, y)
        if is_same:
            found[torch.arange(len(x)), torch.arange(start, start + len(x))] = torch.inf
        place = found.topk(k, dim=1, largest=False).indices.sort(dim=1).values
        exact = torch.stack([(x - y[place[:, i]]).square().sum(1).sqrt() for i in range(k)], 1)
        exact, order = exact.sort(stable=True, dim=1)
        distances.append(exact)
        places.append(place.gather(1, order))
    return Nearest(torch.cat(distances), torch.cat(places))
