"""The waist: what a sampler asks, what a network is asked, and the loop between them.

Coordinates are variance-exploding: `x = x0 + sigma * noise`, float32. A *sampler* is a coroutine that yields a `Query`
and is sent the estimate of x0; a *stage* (guidance, inpainting…) is a coroutine that turns one query into rows for a
network; only the network is a function. No model lives inside either, and no context manager is open across a `yield`.
"""

from collections.abc import Callable, Generator
from typing import NamedTuple

from torch import Tensor


class NoiseLevel(NamedTuple):
    """One point of a trajectory. `t` is carried along because it is not always a function of sigma."""

    sigma: float
    t: float


class Query(NamedTuple):
    """What a sampler asks: the estimate of x0 at `x`. `step` is 0-based; several queries may share one."""

    x: Tensor
    sigma: float
    t: float
    step: int
    wants: frozenset[str] = frozenset()


class Row(NamedTuple):
    """What a network is asked: the only thing that a driver sees.

    `conditioning` is opaque here: whatever `network` was prepared with. `network` is a handle ("base", "refiner", …).
    `slot` is stable through one picture and is the key of caches. `memory` is opaque, too: what the network may keep
    from one query of this picture to the next, if the picture allows it to approximate.
    """

    x: Tensor
    sigma: float
    t: float
    conditioning: object
    network: str = "base"
    slot: str = "conditional"
    wants: frozenset[str] = frozenset()
    memory: object | None = None


Noise = Callable[[float, float], Tensor]
"""`noise(sigma_from, sigma_to)`: unit Gaussian for the step between two levels; the only source of randomness."""

Sampling = Generator[Query, Tensor, Tensor]
"""Yields queries, is sent x0, returns the final x."""

Stage = Callable[[Query], Generator[list[Row], list[Tensor], Tensor]]
"""One query -> x0. May ask for rows more than once; one per picture, so it may keep state."""

Rows = Generator[list[Row], list[Tensor], Tensor]
"""A sampling with its stage inside: yields rows, is sent their x0, returns the final x."""


def solve(sampling: Sampling, predict: Callable[[Query], Tensor]) -> Tensor:
    """The final x of a sampling whose x0 come from `predict`: the driver of one trajectory."""
    query = next(sampling)
    while True:
        try:
            query = sampling.send(predict(query))
        except StopIteration as finished:
            return finished.value


def staged(sampling: Sampling, stage: Stage) -> Rows:
    """The sampling as rows: what every driver runs, one picture at a time or many interleaved."""
    query = next(sampling)
    while True:
        x0 = yield from stage(query)
        try:
            query = sampling.send(x0)
        except StopIteration as finished:
            return finished.value
