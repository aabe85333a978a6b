"""Whether pictures are copies of training pictures: the nearest ones, and how much nearer the first is than the second.

A picture is called a copy if its nearest training picture is at less than a third of the distance of the second
nearest. The rule fails where the training set holds the same picture twice: then both are equally near. Rows of the
known features that are equal are therefore taken as one; near-duplicates (another size, a mirror image) are not found
out, and a copy of one of those is missed. A rate means something beside that of held-out real pictures.

Letters: n pictures, m training pictures, d feature width.
Source: Yoon et al. 2023, ICML workshop on structured probabilistic inference (the rule); Gu et al. 2023,
arXiv:2310.02664.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Share, share
from mezzotint.evaluation.mmd import check_features
from mezzotint.evaluation.neighbours import nearest

THIRD = 1 / 3


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Copies:
    """For every picture: its nearest training picture, the distance, the ratio to the second, whether it is a copy."""

    rate: Share
    place: Int64[Tensor, "n"]  # of the nearest, in the training features as given
    distance: Float[Tensor, "n"]
    ratio: Float[Tensor, "n"]
    is_copy: Bool[Tensor, "n"]
    duplicates: int  # training features that are equal to an earlier one


def copies(made: Float[Tensor, "n d"], training: Float[Tensor, "m d"], *, threshold: float = THIRD) -> Copies:
    """The copy rate with Wilson's interval, and what it was counted from.

    Raises: ConfigError for fewer than two different training features, widths that differ, or numbers not finite.
    """
    check_features(made, training, least=1)
    untyped: Any = torch  # Any: unique declares no types
    distinct: Tensor
    where: Tensor
    distinct, where = untyped.unique(training, dim=0, return_inverse=True)
    if len(distinct) < 2:
        raise ConfigError("copies: fewer than two different training pictures; there is no second nearest")
    earliest = torch.full((len(distinct),), len(training)).scatter_reduce(0, where, torch.arange(len(training)), "amin")
    found = nearest(made, distinct, 2)
    ratio = found.distance[:, 0] / found.distance[:, 1]  # the second is never 0: rows are distinct
    is_copy = ratio < threshold
    return Copies(
        rate=share(int(is_copy.sum()), len(made)),
        place=earliest[found.place[:, 0]],
        distance=found.distance[:, 0],
        ratio=ratio,
        is_copy=is_copy,
        duplicates=len(training) - len(distinct),
    )
