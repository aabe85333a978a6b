"""A number and the interval that the true one lies in: what every metric of this room answers with.

Intervals are 95 % and say how they were made. Three kinds: Wilson's for shares, the delete-one-block jackknife for
anything computed from pooled sums, Student's for the mean of a few repetitions. None where one value cannot tell.

Source: Wilson 1927, JASA 22:209-212; Efron and Stein 1981, Annals of Statistics 9:586-596 (jackknife); Zou and Donner
2008, Statistics in Medicine 27:1693-1702 (difference of two estimates from their intervals).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Z = 1.959963984540054  # 97.5 % point of the normal distribution
WILSON = "Wilson, 95 %"


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """`value` from `count` samples; None for `low` and `high`: there is no way to tell, and `how` says why."""

    value: float
    low: float | None
    high: float | None
    count: int
    how: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Share(Estimate):
    """`hits` of `count`, and the interval that the true share lies in."""

    hits: int
    low: float
    high: float

    @property
    def of(self) -> int:
        """How many could have hit."""
        return self.count


def share(hits: int, of: int) -> Share:
    """The share with Wilson's interval.

    Raises: ValueError unless 0 <= hits <= of and of > 0.
    """
    if not 0 <= hits <= of or of == 0:
        raise ValueError(f"share: {hits} of {of}")
    value, spread = hits / of, Z * Z / of
    middle = (value + spread / 2) / (1 + spread)
    half = math.sqrt(value * (1 - value) * spread + spread * spread / 4) / (1 + spread)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Share(hits=hits, count=of, value=value, low=low, high=high, how=WILSON)


def jackknife(value: float, without: Sequence[float], count: int, *, floor: float = -math.inf) -> Estimate:
    """`value` of everything, with the interval that the values without one block each give.

    The values without a block of m equal ones scatter with 1 / (m - 1) of the standard error; Student's t with m - 1
    degrees of freedom, since m is small. An end below `floor`, which the quantity cannot reach, is put there.
    """
    m = len(without)
    if m < 2:
        return Estimate(value=value, low=None, high=None, count=count, how="one block: no interval; give more samples")
    middle = math.fsum(without) / m
    error = math.sqrt((m - 1) / m * math.fsum((one - middle) ** 2 for one in without))
    half = student(m - 1) * error
    how = f"delete-one jackknife of {m} blocks, 95 %"
    return Estimate(value=value, low=max(floor, value - half), high=max(floor, value + half), count=count, how=how)


def mean(values: Sequence[float], count: int, what: str) -> Estimate:
    """The mean of repetitions that are independent of each other, called `what`, with Student's interval."""
    m = len(values)
    middle = math.fsum(values) / m
    if m < 2:
        return Estimate(value=middle, low=None, high=None, count=count, how=f"one of the {what}: no interval")
    half = student(m - 1) * deviation(values) / math.sqrt(m)
    how = f"Student's t, mean of {m} {what}, 95 %"
    return Estimate(value=middle, low=middle - half, high=middle + half, count=count, how=how)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation with n - 1. Raises: ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError("deviation: at least two values are needed")
    middle = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def difference(one: Estimate, other: Estimate) -> Estimate:
    """`one` - `other`, for estimates from independent samples; it is significant if 0 lies outside the interval.

    Each end takes the half of either interval that points its way (Zou and Donner's MOVER), so that lopsided intervals
    such as Wilson's stay right.
    """
    value, count = one.value - other.value, min(one.count, other.count)
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Estimate(value=value, low=None, high=None, count=count, how="one of the two has no interval")
    below = math.hypot(one.value - one.low, other.high - other.value)
    above = math.hypot(one.high - one.value, other.value - other.low)
    return Estimate(value=value, low=value - below, high=value + above, count=count, how="difference (MOVER), 95 %")


def is_significant(difference: Estimate) -> bool:
    """Whether the interval of a difference leaves 0 out; without an interval nothing is significant."""
    return difference.low is not None and difference.high is not None and not difference.low <= 0 <= difference.high


def student(freedom: int) -> float:
    """97.5 % point of Student's t with `freedom` degrees of freedom, to 1e-9.

    Solved by Newton's method on the distribution function, which for whole degrees of freedom is a finite sum.

    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4.
    Raises: ValueError if freedom < 1.
    """
    if freedom < 1:
        raise ValueError(f"student: {freedom} degrees of freedom")
    density = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
    t = Z
    for _ in range(50):
        step = (_between(t, freedom) - 0.95) / (2 * density * (1 + t * t / freedom) ** (-(freedom + 1) / 2))
        t -= step
        if abs(step) < 1e-12 * t:
            break
    return t


def _between(t: float, freedom: int) -> float:
    """Probability that Student's t lies between -t and t."""
    theta = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(theta)
    odd = freedom % 2
    term, total = (cosine, cosine if freedom > 1 else 0.0) if odd else (1.0, 1.0)
    for k in range(2 + odd, freedom - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
