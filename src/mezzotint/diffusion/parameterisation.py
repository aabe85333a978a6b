"""What a network predicts: three functions of sigma and one formula, x0 = c_skip x + c_out F(c_in x).

x is x0 + sigma * noise; c_in brings it to unit variance, the coordinates that the network F was trained in. F estimates
the noise, the velocity v = sqrt(ᾱ) noise - sqrt(1 - ᾱ) x0, or x0 itself.

Sources: Ho et al. 2020, arXiv:2006.11239 (epsilon); Salimans and Ho 2022, arXiv:2202.00512 (velocity); Karras et al.
2022, arXiv:2206.00364, section 5 (the form).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Scalings(NamedTuple):
    """Weights of x and of the network's output in x0, and of x in the network's input."""

    c_skip: float
    c_out: float
    c_in: float


Parameterisation = Callable[[float], Scalings]
"""Scalings at a sigma."""


def epsilon(sigma: float) -> Scalings:
    """The network predicts the noise: SD 1, SD 2 base, SDXL."""
    return Scalings(1.0, -sigma, 1 / math.hypot(1, sigma))


def velocity(sigma: float) -> Scalings:
    """The network predicts v: SD 2 at 768, zero-terminal-SNR models. The one that says something about pure noise."""
    scale = 1 / math.hypot(1, sigma)
    return Scalings(scale**2, -sigma * scale, scale)


def sample(sigma: float) -> Scalings:
    """The network predicts x0."""
    return Scalings(0.0, 1.0, 1 / math.hypot(1, sigma))


PARAMETERISATIONS: dict[str, Parameterisation] = {"epsilon": epsilon, "v_prediction": velocity, "sample": sample}
"""By the `prediction_type` of a scheduler config."""


def x0_from(output: Tensor, x: Tensor, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """The estimate of x0 that a network's output at x means, in the dtype of x."""
    c_skip, c_out, _ = parameterisation(sigma)
    return c_skip * x + c_out * output.to(x.dtype)


def output_from(x0: Tensor, x: Tensor, sigma: float, parameterisation: Parameterisation) -> Tensor:
    """The network's output that means this x0 at x: the inverse of `x0_from`."""
    c_skip, c_out, _ = parameterisation(sigma)
    return (x0 - c_skip * x) / c_out
