"""Aspect-ratio buckets: sizes of about one area, which one a picture belongs to, and how it is cut to fit. No torch.

Source: Podell et al. 2023, arXiv:2307.01952, section 2 and appendix I (sizes in steps of 64 around one area).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from mezzotint.data.sample import Size
from mezzotint.errors import ConfigError


class Placement(NamedTuple):
    """How a picture of `original` size becomes `target`: resized, then cut at (top, left)."""

    original: Size
    resized: Size
    top: int
    left: int
    target: Size

    @property
    def ids(self) -> tuple[int, int, int, int, int, int]:
        """XL's size conditioning: original height, width, crop top, left, target height, width; in pixels."""
        return (self.original.height, self.original.width, self.top, self.left, self.target.height, self.target.width)

    def refiner_ids(self, score: float) -> tuple[float, float, float, float, float]:
        """The XL refiner's conditioning: original height, width, crop top, left, aesthetic score."""
        return (*self.ids[:4], score)


@dataclass(frozen=True, kw_only=True, slots=True)
class BucketRule:
    """Sizes whose sides are multiples of `step` and whose area is at most resolution². None: half and twice it."""

    resolution: int
    step: int = 64
    shortest: int | None = None
    longest: int | None = None
    is_enlarged: bool = True  # False: a picture smaller than its bucket gets one that it fills without being enlarged

    def __post_init__(self) -> None:
        if self.step < 8 or self.step % 8:
            raise ConfigError(f"buckets.step {self.step}: must be a multiple of 8, as latents are eight times smaller")
        for name, side in (("resolution", self.resolution), *zip(("shortest", "longest"), self.sides, strict=True)):
            if side < self.step or side % self.step:
                near = max(self.step, round(side / self.step) * self.step)
                raise ConfigError(
                    f"buckets.{name} {side}: no bucket fits; a multiple of step {self.step} such as {near}"
                )
        if not self.sides[0] <= self.resolution <= self.sides[1]:
            raise ConfigError(f"buckets.resolution {self.resolution}: must lie in {self.sides[0]} … {self.sides[1]}")

    @property
    def sides(self) -> tuple[int, int]:
        """The shortest and the longest side."""
        half = max(self.step, self.resolution // 2 // self.step * self.step)
        return (
            half if self.shortest is None else self.shortest,
            2 * self.resolution if self.longest is None else self.longest,
        )

    def sizes(self) -> tuple[Size, ...]:
        """Every bucket, narrowest first: for each width the tallest that the area allows, and the same turned."""
        return _sizes(self)

    def bucket(self, size: Size) -> Size:
        """The bucket whose ratio is nearest to the picture's in its logarithm; of equally near ones the larger."""
        ratio = math.log(size.width / size.height)
        best = min(self.sizes(), key=lambda s: (abs(math.log(s.width / s.height) - ratio), -s.width * s.height, s))
        if self.is_enlarged or (size.width >= best.width and size.height >= best.height):
            return best
        sides = [
            min(most, max(self.step, side // self.step * self.step)) for side, most in zip(size, best, strict=True)
        ]
        return Size(*sides)

    def place(self, size: Size, draw: tuple[float, float] = (0.5, 0.5)) -> Placement:
        """The picture scaled to cover its bucket and cut where `draw`, two numbers in [0, 1), says."""
        target = self.bucket(size)
        scale = max(target.width / size.width, target.height / size.height)
        resized = Size(*(max(t, round(s * scale)) for s, t in zip(size, target, strict=True)))
        left, top = (int(d * (r - t + 1)) for d, r, t in zip(draw, resized, target, strict=True))
        return Placement(size, resized, top, left, target)


@lru_cache(maxsize=64)
def _sizes(rule: BucketRule) -> tuple[Size, ...]:
    shortest, longest = rule.sides
    found = {Size(rule.resolution, rule.resolution)}
    for width in range(shortest, longest + 1, rule.step):
        height = min(longest, rule.resolution**2 // width // rule.step * rule.step)
        if height >= shortest:
            found |= {Size(width, height), Size(height, width)}
    return tuple(sorted(found, key=lambda s: (s.width / s.height, s)))


def histogram(placements: Iterable[Placement]) -> dict[Size, int]:
    """How many pictures each bucket has, narrowest first."""
    counts: dict[Size, int] = {}
    for placement in placements:
        counts[placement.target] = counts.get(placement.target, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (item[0].width / item[0].height, item[0])))
