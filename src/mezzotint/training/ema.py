"""Averages of the weights: the power-function family with a choice of length afterwards, and the classic decay.

A power average of exponent g weighs the weights at time tau by tau^g: beta(t) = (1 - 1/t)^(g + 1). Its length is a
fixed share of the run, so it needs no warm-up. From stored snapshots of two exponents, the average of any other length
is a linear combination whose coefficients solve a small least-squares problem (`choose`).

Source: Karras et al. 2024, arXiv:2312.02696, section 3 and appendix C.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mezzotint.training.config import EmaConfig


def exponent(sigma: float) -> float:
    """The exponent g whose average has relative standard deviation `sigma`: (g+1) / ((g+2)^2 (g+3)) = sigma^2."""
    roots = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2])
    return float(roots.real.max())


def decay(config: EmaConfig, step: int) -> float:
    """What is kept of the average when step `step` (1 is the first) has been taken: 0 at the first step of a power
    average; classic: min(decay, (1 + step) / (10 + step)).
    """
    if config.kind == "power":
        return (1 - 1 / step) ** (exponent(config.value) + 1)
    return min(config.value, (1 + step) / (10 + step))


@torch.no_grad()
def update(averages: list[Tensor], weights: list[Tensor], config: EmaConfig, step: int) -> None:
    """Move the averages towards the weights, in place."""
    share = 1 - decay(config, step)
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)


def overlap(
    t: Float[np.ndarray, "i"], g: Float[np.ndarray, "i"], u: Float[np.ndarray, "j"], h: Float[np.ndarray, "j"]
) -> Float[np.ndarray, "i j"]:
    """Inner products of power profiles (t, g) and (u, h), each tau^g on [0, t] normalised to area 1. float64."""
    t, g, u, h = t[:, None], g[:, None], u[None, :], h[None, :]
    first = np.minimum(t, u)
    logs = np.log(g + 1) + np.log(h + 1) + (g + h + 1) * np.log(first) - (g + 1) * np.log(t) - (h + 1) * np.log(u)
    return np.exp(logs) / (g + h + 1)


def choose(times: list[float], sigmas: list[float], time: float, sigma: float) -> Float[np.ndarray, "i"]:
    """Coefficients of stored power averages (at `times`, of `sigmas`) whose sum is nearest to that of (time, sigma)."""
    t, g = np.array(times, float), np.array([exponent(s) for s in sigmas])
    u, h = np.array([time], float), np.array([exponent(sigma)])
    return np.linalg.lstsq(overlap(t, g, t, g), overlap(t, g, u, h)[:, 0], rcond=None)[0]
