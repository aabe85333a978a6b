"""The noise schedule: how much signal is left at each training step, in float64.

`alphas_cumprod[t]` (written ᾱ) is the share of variance that is still signal: x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) noise.
Samplers use x = x0 + sigma * noise instead, with sigma = sqrt((1 - ᾱ) / ᾱ); the two differ by the factor sqrt(ᾱ).
A zero-terminal-SNR schedule keeps ᾱ_T = 0 exactly, for training; only its sigma is finite, by TERMINAL_ALPHA_BAR.

Sources: Ho et al. 2020, arXiv:2006.11239; Nichol and Dhariwal 2021, arXiv:2102.09672 (cosine);
Lin et al. 2023, arXiv:2305.08891 (zero terminal SNR).
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.errors import ConfigError

TERMINAL_ALPHA_BAR = 2.0**-24
"""Stands for ᾱ = 0 where sigma must be finite: sigma_max = 4096. The value that diffusers uses."""

Lookup = Literal["interpolated", "nearest", "floor"]
"""How a sigma between two trained ones finds its t: linearly in log sigma, then as it is, rounded, or rounded down."""


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """ᾱ of every training step, float64, strictly descending, below 1; the last may be exactly 0."""

    alphas_cumprod: Float[Tensor, "t"]

    def __post_init__(self) -> None:
        """Refuse what is not a schedule."""
        abar = self.alphas_cumprod
        if abar.dtype != torch.float64 or abar.ndim != 1 or len(abar) < 2:
            raise ConfigError(
                f"alphas_cumprod: {abar.dtype} {tuple(abar.shape)}, expected float64 with 2 or more steps"
            )
        if not (abar[0] < 1 and abar[-1] >= 0 and bool((abar.diff() < 0).all())):
            raise ConfigError("alphas_cumprod: must descend strictly, from below 1 to 0 or more")

    @classmethod
    def from_betas(cls, betas: Float[Tensor, "t"]) -> "NoiseSchedule":
        """The schedule whose step t mixes in a variance of betas[t]."""
        return cls((1 - betas.double()).cumprod(0))  # float64: a product of 1,000 factors near 1

    @classmethod
    def scaled_linear(cls, start: float = 0.00085, end: float = 0.012, steps: int = 1000) -> "NoiseSchedule":
        """sqrt(beta) rises linearly: every Stable Diffusion. The original code calls this "linear"."""
        return cls.from_betas(torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2)

    @classmethod
    def linear(cls, start: float = 0.0001, end: float = 0.02, steps: int = 1000) -> "NoiseSchedule":
        """beta rises linearly: DDPM."""
        return cls.from_betas(torch.linspace(start, end, steps, dtype=torch.float64))

    @classmethod
    def cosine(cls, steps: int = 1000) -> "NoiseSchedule":
        """ᾱ falls like a squared cosine, no beta above 0.999; `squaredcos_cap_v2` in configs: the unCLIP prior."""
        at = torch.arange(steps + 1, dtype=torch.float64) / steps
        abar = ((at + 0.008) / 1.008 * math.pi / 2).cos() ** 2
        return cls.from_betas((1 - abar[1:] / abar[:-1]).clamp(max=0.999))

    def with_zero_terminal_snr(self) -> "NoiseSchedule":
        """The same first step and shape with ᾱ_T = 0 exactly: sqrt(ᾱ) shifted, then scaled. Idempotent."""
        root = self.alphas_cumprod.sqrt()
        return NoiseSchedule(((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2)

    def __len__(self) -> int:
        """Training steps."""
        return len(self.alphas_cumprod)

    @cached_property
    def sigmas(self) -> Float[Tensor, "t"]:
        """Noise level of every training step, ascending, float64, finite."""
        abar = self.alphas_cumprod.clamp(min=TERMINAL_ALPHA_BAR)
        return ((1 - abar) / abar).sqrt()

    @cached_property
    def _log_sigmas(self) -> list[float]:
        return np.log(self.sigmas.numpy()).tolist()

    @property
    def sigma_min(self) -> float:
        """Noise level of training step 0."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """Noise level of the last training step."""
        return float(self.sigmas[-1])

    def sigma(self, t: float | int) -> float:
        """Noise level of a training step; a fractional t lies between its neighbours, linearly in log sigma.

        Raises: ConfigError if t is not in 0 … len - 1.
        """
        if not 0 <= t <= len(self) - 1:
            raise ConfigError(f"t = {t}: must lie in 0 … {len(self) - 1}")
        low = int(t)
        if low == t:
            return float(self.sigmas[low])
        logs = self._log_sigmas
        return math.exp(logs[low] + (t - low) * (logs[low + 1] - logs[low]))

    def timestep(self, sigma: float, how: Lookup = "interpolated") -> float:
        """Training step of a noise level, the inverse of `sigma`; levels outside the trained range get its ends."""
        logs = self._log_sigmas
        log = math.log(min(max(sigma, self.sigma_min), self.sigma_max))
        low = min(max(bisect_right(logs, log) - 1, 0), len(logs) - 2)
        t = low + (log - logs[low]) / (logs[low + 1] - logs[low])
        if how == "interpolated":
            return t
        return float(round(t) if how == "nearest" else math.floor(t + 1e-6))  # a trained sigma keeps its own t

    def coefficients(self, t: Int[Tensor, "b"], like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(ᾱ_t) and sqrt(1 - ᾱ_t), each shaped to multiply a batch shaped as `like` is, on its device.

        float32, or float64 if `like` is: ᾱ_0 = 0.99915 is 1 in bfloat16, which would leave no noise at t = 0.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        shape = (-1,) + (1,) * (like.ndim - 1)
        signal, spread = self.alphas_cumprod.sqrt(), (1 - self.alphas_cumprod).sqrt()  # float64 up to here
        return signal.to(dtype).to(like.device)[t].view(shape), spread.to(dtype).to(like.device)[t].view(shape)

    def add_noise(self, x0: Float[Tensor, "b *chw"], noise: Float[Tensor, "b *chw"], t: Int[Tensor, "b"]) -> Tensor:
        """x_t = sqrt(ᾱ_t) x0 + sqrt(1 - ᾱ_t) noise, in the dtype of x0; what the network is trained on."""
        signal, spread = self.coefficients(t, x0)
        return (signal * x0 + spread * noise).to(x0.dtype)
