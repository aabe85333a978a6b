"""One denoising example from a latent: its timestep, its noise, whether its text is dropped; all keyed by its position.

Everything that distinguishes recipes is here as values: objective × weighting × noise × text dropout.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mezzotint.data.order import keyed
from mezzotint.diffusion.loss import objective, target
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.errors import ConfigError
from mezzotint.training.part import Batch

SCHEDULES = {
    "scaled_linear": NoiseSchedule.scaled_linear,
    "linear": NoiseSchedule.linear,
    "squaredcos_cap_v2": NoiseSchedule.cosine,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffusionSettings:
    """The objective and how examples are made, with the names of diffusers' scripts and scheduler configs."""

    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"
    rescale_betas_zero_snr: bool = False
    snr_gamma: float | None = None
    noise_offset: float = 0.0  # deviation of a constant added to each channel of the noise
    input_perturbation: float = 0.0  # deviation of extra noise that the target does not know
    proportion_empty_prompts: float = 0.1
    timesteps_below: int | None = None  # train only these, the least noisy ones; None = all
    stratified: bool = True  # timesteps of a step spread evenly; False: drawn independently

    def __post_init__(self) -> None:
        if not 0 <= self.proportion_empty_prompts <= 1:
            raise ConfigError(f"proportion_empty_prompts {self.proportion_empty_prompts}: must lie in 0 … 1")
        if self.timesteps_below is not None and not 0 < self.timesteps_below <= len(self.schedule()):
            raise ConfigError(f"timesteps_below {self.timesteps_below}: must lie in 1 … {len(self.schedule())}")
        objective(self.prediction_type, self.schedule())  # refuses epsilon at zero terminal SNR

    def schedule(self) -> NoiseSchedule:
        """The noise schedule that these settings name."""
        schedule = SCHEDULES[self.beta_schedule]()
        return schedule.with_zero_terminal_snr() if self.rescale_betas_zero_snr else schedule


class Examples(NamedTuple):
    """What the network is shown and what it should say."""

    x: Float[Tensor, "b c h w"]
    t: Int[Tensor, "b"]
    wanted: Float[Tensor, "b c h w"]
    dropped: Bool[Tensor, "b"]  # whose text is replaced by the null


def timesteps(batch: Batch, count: int, seed: int, *, stratified: bool) -> Int[Tensor, "b"]:
    """Training steps of the batch's samples, uniform; `stratified`: each sample of a whole step has its own stratum."""
    draws = torch.stack(
        [torch.rand((), generator=keyed(seed, "timestep", p), dtype=torch.float64) for p in batch.positions]
    )
    if stratified:
        draws = (torch.tensor([p % batch.per_step for p in batch.positions]) + draws) / batch.per_step
    return (draws * count).long()


def gaussian(batch: Batch, shape: Sequence[int], seed: int, what: str) -> Float[Tensor, "b *shape"]:
    """Unit Gaussian noise of `shape` for each sample."""
    return torch.stack([torch.randn(tuple(shape), generator=keyed(seed, what, p)) for p in batch.positions])


def examples(
    settings: DiffusionSettings, schedule: NoiseSchedule, latent: Float[Tensor, "b c h w"], batch: Batch, seed: int
) -> Examples:
    """Noised latents and targets of a batch, in the latents' dtype."""
    t = timesteps(batch, settings.timesteps_below or len(schedule), seed, stratified=settings.stratified)
    noise = gaussian(batch, latent.shape[1:], seed, "noise")
    if settings.noise_offset:
        offset = gaussian(batch, latent.shape[1:2], seed, "offset")
        noise = noise + settings.noise_offset * offset[:, :, None, None]
    shown = noise
    if settings.input_perturbation:
        shown = noise + settings.input_perturbation * gaussian(batch, latent.shape[1:], seed, "perturbation")
    drawn = torch.stack([torch.rand((), generator=keyed(seed, "dropout", p)) for p in batch.positions])
    return Examples(
        schedule.add_noise(latent, shown, t),
        t,
        target(settings.prediction_type, schedule, latent, noise, t),
        drawn < settings.proportion_empty_prompts,
    )
