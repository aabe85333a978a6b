"""What a diffusion model is trained to say, and how much each noise level counts: objectives and weightings.

Training works in variance-preserving coordinates, x_t = signal * x0 + spread * noise with signal² + spread² = 1, as the
network sees them. SNR = signal² / spread². All three objectives are the same question scaled differently:
|v error|² = (SNR + 1) |x0 error|² and |noise error|² = SNR |x0 error|²; a weighting is therefore written for the error
in x0 once, and divided by that factor.

Sources: Ho et al. 2020, arXiv:2006.11239; Salimans and Ho 2022, arXiv:2202.00512 (v); Hang et al. 2023,
arXiv:2303.09556 (min-SNR).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.errors import ConfigError, unknown


@dataclass(frozen=True, slots=True)
class Objective:
    """`target(signal, spread, x0, noise)`, and by what the squared error in x0 is multiplied: `factor(snr)`."""

    target: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    factor: Callable[[Tensor], Tensor]


OBJECTIVES = {
    "epsilon": Objective(lambda signal, spread, x0, noise: noise, lambda snr: snr),
    "v_prediction": Objective(lambda signal, spread, x0, noise: signal * noise - spread * x0, lambda snr: snr + 1),
    "sample": Objective(lambda signal, spread, x0, noise: x0, torch.ones_like),
}
"""By the names that `prediction_type` has in scheduler configs."""


def objective(name: str, schedule: NoiseSchedule) -> Objective:
    """The objective by name.

    Raises: ConfigError for an unknown one, and for `epsilon` where the last step holds no signal: x0 cannot be told
        from the noise there, and the error in x0 is multiplied by 0.
    """
    if name not in OBJECTIVES:
        raise ConfigError(unknown("prediction_type", name, OBJECTIVES))
    if name == "epsilon" and float(schedule.alphas_cumprod[-1]) == 0:
        raise ConfigError("prediction_type epsilon learns nothing at zero terminal SNR; use v_prediction or sample")
    return OBJECTIVES[name]


def target(
    name: str, schedule: NoiseSchedule, x0: Float[Tensor, "b *chw"], noise: Tensor, t: Int[Tensor, "b"]
) -> Tensor:
    """What the network should say at training steps `t`."""
    signal, spread = schedule.coefficients(t, x0)
    return objective(name, schedule).target(signal, spread, x0, noise)


def snr_weight(name: str, schedule: NoiseSchedule, t: Int[Tensor, "b"], gamma: float | None) -> Float[Tensor, "b"]:
    """Min-SNR weight of each sample's squared error: min(SNR, gamma) / factor; 1 everywhere if gamma is None. float64.

    epsilon: min(SNR, gamma) / SNR; v: min(SNR, gamma) / (SNR + 1); sample: min(SNR, gamma). Programs that divide by SNR
    for v give the last steps the weight 1 instead of 0 and, at zero terminal SNR, infinity.
    """
    abar = schedule.alphas_cumprod[t]
    if gamma is None:
        return torch.ones_like(abar)
    snr = abar / (1 - abar)
    return snr.clamp(max=gamma) / objective(name, schedule).factor(snr)


def squared_error(output: Float[Tensor, "b *chw"], wanted: Tensor, weight: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """Weighted mean squared error of every sample; float32 or better whatever the network's dtype."""
    dtype = torch.promote_types(output.dtype, torch.float32)
    error = (output.to(dtype) - wanted.to(dtype)).square().flatten(1).mean(1)
    return error * weight.to(dtype)
