"""Fréchet distance of features: exact, with its interval, with its bias, and never under a name that is not its own.

    |m1 - m2|² + Tr S1 + Tr S2 - 2 Tr (S1^½ S2 S1^½)^½

The last trace is the sum of the square roots of the eigenvalues of a symmetric matrix, which `eigh` finds to rounding.
No epsilon is added to anything. Fewer pictures than the features have numbers are no special case: a covariance of n
pictures has rank n - 1, so only that many eigenvalues are more than rounding, and only those are taken.

The distance is biased: of equal distributions it is about c / n, not 0, where c differs between models. Values of
different n are therefore not compared; `fid_infinity` is the value at 1 / n = 0.

Letters: n, m pictures; d feature width; r rank.
Source: Heusel et al. 2017, arXiv:1706.08500, eq. 6; Chong and Forsyth 2020, arXiv:1911.07023 (extrapolation).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.errors import ConfigError
from mezzotint.evaluation.estimate import Estimate, jackknife
from mezzotint.evaluation.mmd import check_features
from mezzotint.evaluation.statistics import (
    Chunk,
    Moments,
    Provenance,
    Statistics,
    check_comparable,
    moments_of,
    pooled,
    reduced,
)

INCEPTION = "inception-2015-12-05"  # the extractor's name only if its weights are those, which their hash decides
BLOCKS = 20
INFINITY_BLOCKS = 8
linalg: Any = torch.linalg  # Any: declares no types

ENOUGH = 4  # pictures per number of a feature, from which the bias is c / n to a few per cent
BENT = 0.25  # a line that misses the quarters by more than this share of the bias is said to be none


class Parts(NamedTuple):
    """The distance and what it is made of."""

    value: float
    means: float  # |m1 - m2|²
    covariances: float  # the rest
    smallest: float  # smallest eigenvalue over the largest: -1e-13 is rounding, -1e-3 no covariance


@dataclass(frozen=True, kw_only=True, slots=True)
class Frechet:
    """A distance with everything that must stand beside it; counts are None if unknown."""

    name: str  # "FID", or "FD-<extractor>:<hash>"
    protocol: str | None
    distance: Estimate
    means: float
    covariances: float
    smallest: float
    made_count: int | None
    reference_count: int | None
    reference: str  # digest of the reference statistics
    notes: tuple[str, ...]  # what a reader has to know: unknown provenance, too few pictures, negative eigenvalues


@dataclass(frozen=True, kw_only=True, slots=True)
class Extrapolation:
    """The distance at 1 / n = 0, and the distances (n, value) of all, of halves (the line) and of quarters."""

    name: str
    protocol: str | None
    distance: Estimate
    points: tuple[tuple[int, float], ...]
    notes: tuple[str, ...]


def name_of(provenance: Provenance, metric: str = "FID") -> str:
    """What a number of these features may be called: "FID" or "KID" only for Inception's under a named protocol.

    Anything else is "FD-clip:1a2b3c4d": distance, extractor, first eight digits of its weights' SHA-256.
    """
    if provenance.extractor == INCEPTION and provenance.protocol:
        return metric
    sha256 = (provenance.extractor_sha256 or "unknown")[:8]
    return f"{metric.replace('ID', 'D')}-{provenance.extractor or 'unknown'}:{sha256}"


def fid(made: Statistics, reference: Statistics, *, blocks: int = BLOCKS) -> Frechet:
    """Fréchet distance of made pictures to a reference, which is held fixed in the jackknife over at most `blocks`.

    Raises: ConfigError if extractor, weights or protocol of the two are known to differ, or there are under 2 pictures.
    """
    doubts = check_comparable(made, reference)
    fixed = _Root(reference.moments())
    parts = fixed.distance(made.moments())
    without = [fixed.distance(moments).value for moments in _without_one(made.blocks(blocks))]
    counts = (made.count, reference.count)
    return Frechet(
        name=name_of(made.provenance),
        protocol=made.provenance.protocol,
        distance=jackknife(parts.value, without, made.count or 0, floor=min(0.0, parts.value)),
        means=parts.means,
        covariances=parts.covariances,
        smallest=parts.smallest,
        made_count=counts[0],
        reference_count=counts[1],
        reference=reference.digest(),
        notes=(*doubts, *_notes(parts, counts, made.width)),
    )


def fid_infinity(made: Statistics, reference: Statistics, *, blocks: int = INFINITY_BLOCKS) -> Extrapolation:
    """The distance that infinitely many made pictures would have: a line through distances against 1 / n, at 0.

    The line goes through the distance of all blocks and the mean distance of the two halves: since these are the same
    pictures, chance moves both points alike, and the result scatters hardly more than the distance itself. Quarters
    only tell whether it is a line; with fewer than four times as many pictures as the features have numbers it bends,
    and the result is too low. The interval comes from doing the same without each block. What a small reference adds
    stays: it is the same for all who compare with it.
    Raises: ConfigError as `fid`; or if there are fewer than 4 chunks, so nothing to take parts of.
    """
    check_comparable(made, reference)
    chunks = made.blocks(blocks)
    if len(chunks) < 4:
        raise ConfigError(f"FID-infinity: {len(chunks)} chunks; 4 or more are needed, so keep smaller chunks")
    fixed = _Root(reference.moments())
    points = [_point(chunks, fixed, parts) for parts in (1, 2, 4)]
    value = intercept(points[:2])
    without = [_at_infinity([*chunks[:i], *chunks[i + 1 :]], fixed) for i in range(len(chunks))]
    return Extrapolation(
        name=f"{name_of(made.provenance)}-infinity",
        protocol=made.provenance.protocol,
        distance=jackknife(value, without, sum(chunk.n for chunk in chunks)),
        points=tuple(points),
        notes=tuple(_bend(points, made.width)),
    )


def frechet(one: Moments, other: Moments) -> Parts:
    """The distance between two normal distributions of these moments."""
    return _Root(other).distance(one)


def frechet_of_features(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> Parts:
    """The same distance, from features: no covariance is formed, so what is small beside large features survives.

    Tr (S1 S2)^½ is the sum of the singular values of X1 X2^T / √((n-1)(m-1)), X1 and X2 being the centred features;
    the cheaper way as well as the more exact one where n and m are below d.
    Raises: ConfigError for fewer than two features, different widths, or numbers that are not finite.
    """
    check_features(one, other)
    x, y = one.double(), other.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / math.sqrt(len(x) - 1), (y - mean_y) / math.sqrt(len(y) - 1)
    means = float((mean_x - mean_y).square().sum())
    if len(x) > x.shape[1]:  # |X Y^T|_* does not change when X is replaced by the triangle of its QR, which is smaller
        x = _triangle(x)
    if len(y) > y.shape[1]:
        y = _triangle(y)
    singular: Tensor = linalg.svdvals(x @ y.T)
    covariances = float(x.square().sum() + y.square().sum() - 2 * singular.sum())
    return Parts(means + covariances, means, covariances, 0.0)


def intercept(points: Sequence[tuple[int, float]]) -> float:
    """Where the least-squares line through (1 / n, value) meets 1 / n = 0."""
    x = [1 / n for n, _ in points]
    middle_x, middle_y = math.fsum(x) / len(x), math.fsum(value for _, value in points) / len(x)
    slope = math.fsum((at - middle_x) * (value - middle_y) for at, (_, value) in zip(x, points, strict=True))
    return middle_y - middle_x * slope / math.fsum((at - middle_x) ** 2 for at in x)


class _Root:
    """A square root B of one covariance, S = B B^T, made once and used for many distances."""

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        # where a number never varies, its row and column are 0 and so is its part of the root
        self.alive = moments.covariance.diagonal() > 0
        values: Tensor
        vectors: Tensor
        values, vectors = linalg.eigh(moments.covariance[self.alive][:, self.alive])
        self.smallest = _health(values)
        rank = min(_rank(moments), len(values))
        kept = values[len(values) - rank :].clamp_min(0)
        self.root = vectors[:, len(values) - rank :] * kept.sqrt()  # [d r]

    def distance(self, other: Moments) -> Parts:
        """The distance of `other` to these moments."""
        inner = self.root.T @ other.covariance[self.alive][:, self.alive] @ self.root  # [r r]
        values: Tensor = linalg.eigvalsh((inner + inner.T) / 2)
        both = int((self.alive & (other.covariance.diagonal() > 0)).sum())
        rank = min(_rank(other), both, len(values))
        roots = values[len(values) - rank :].clamp_min(0).sqrt().sum()
        means = float((self.moments.mean - other.mean).square().sum())
        covariances = float(self.moments.covariance.trace() + other.covariance.trace() - 2 * roots)
        return Parts(means + covariances, means, covariances, min(self.smallest, _health(values)))


def _triangle(x: Tensor) -> Tensor:
    found: Tensor = linalg.qr(x, mode="r")[1]
    return found


def _rank(moments: Moments) -> int:
    """The most that the covariance's rank can be."""
    width = len(moments.mean)
    return width if moments.n is None else min(width, moments.n - 1)


def _health(values: Tensor) -> float:
    """The smallest eigenvalue over the largest; 0 if there is none."""
    return float(values[0] / values[-1]) if len(values) and float(values[-1]) > 0 else 0.0


def _without_one(blocks: Sequence[Chunk]) -> Iterator[Moments]:
    """The moments without each block in turn; none if too little would be left."""
    whole = pooled(blocks) if blocks else None
    if whole is None or whole.n - max(block.n for block in blocks) < 2:
        return
    for block in blocks:
        yield moments_of([reduced(whole, block)])


def _at_infinity(chunks: Sequence[Chunk], fixed: _Root) -> float:
    return intercept([_point(chunks, fixed, 1), _point(chunks, fixed, 2)])


def _point(chunks: Sequence[Chunk], fixed: _Root, parts: int) -> tuple[int, float]:
    """n and the mean distance of `parts` equal parts that together hold every chunk; an odd one is in two."""
    size = math.ceil(len(chunks) / parts)
    starts = [len(chunks) * i // parts for i in range(parts)]
    groups = [pooled([chunks[(start + k) % len(chunks)] for k in range(size)]) for start in starts]
    values = [fixed.distance(moments_of([group])).value for group in groups]
    # where sizes differ a little, 1 / n is what averages
    return round(parts / math.fsum(1 / group.n for group in groups)), math.fsum(values) / parts


def _bend(points: Sequence[tuple[int, float]], width: int) -> list[str]:
    """Notes if pictures are few, or the line through the first two points misses the third."""
    (n, value), (half, at_half), (quarter, found) = points
    slope = (at_half - value) / (1 / half - 1 / n)
    missed = found - (value + slope * (1 / quarter - 1 / n))
    notes: list[str] = []
    if n < ENOUGH * width:
        notes.append(f"{n} pictures for features of {width} numbers: a tenth of the bias or more is taken off too much")
    if abs(missed) > BENT * abs(slope / quarter):
        notes.append(f"{quarter} pictures miss the line by {missed:+.3g}: it is none; see KID")
    return notes


def _notes(parts: Parts, counts: tuple[int | None, int | None], width: int) -> list[str]:
    notes: list[str] = []
    for what, count in zip(("made", "reference"), counts, strict=True):
        if count is not None and count <= width:
            notes.append(
                f"{count} {what} pictures for features of {width} numbers: mostly bias, see FID-infinity and KID"
            )
    if parts.smallest < -1e-6:
        notes.append(f"an eigenvalue is {parts.smallest:.1e} of the largest: the statistics are no covariance")
    return notes
