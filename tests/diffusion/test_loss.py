"""Objectives and weightings: closed forms, equivalences between objectives, and diffusers' training step."""

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.diffusion.loss import OBJECTIVES, objective, snr_weight, squared_error, target
from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, output_from
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.errors import ConfigError
from models.oracles import relative

SCHEDULE = NoiseSchedule.scaled_linear()
T = torch.tensor([0, 1, 250, 500, 998, 999])


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A latent and noise for it, one per timestep of T."""
    shape = (len(T), 4, 3, 5)
    return (
        torch.randn(shape, generator=generator, dtype=torch.float64),
        torch.randn(shape, generator=generator, dtype=torch.float64),
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_target_is_what_the_parameterisation_inverts(name: str, pair: tuple[Tensor, Tensor]) -> None:
    """A network that says the target lets the sampler find x0 exactly."""
    x0, noise = pair
    wanted = target(name, SCHEDULE, x0, noise, T)
    for i, t in enumerate(T):
        sigma = SCHEDULE.sigma(float(t))
        said = output_from(x0[i], x0[i] + sigma * noise[i], sigma, PARAMETERISATIONS[name])
        torch.testing.assert_close(wanted[i], said, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_min_snr_is_one_weighting_of_the_error_in_x0(name: str, pair: tuple[Tensor, Tensor]) -> None:
    """The same wrong x0 costs the same whatever the network predicts: min(SNR, gamma) times its squared error."""
    x0, noise = pair
    wrong = x0 + 0.1 * noise.roll(1, 0)
    signal, spread = SCHEDULE.coefficients(T, x0)
    x_t = signal * x0 + spread * noise
    implied = (x_t - signal * wrong) / spread  # the noise that goes with the wrong x0
    error = squared_error(
        target(name, SCHEDULE, wrong, implied, T),
        target(name, SCHEDULE, x0, noise, T),
        snr_weight(name, SCHEDULE, T, 5.0),
    )
    snr = SCHEDULE.alphas_cumprod[T] / (1 - SCHEDULE.alphas_cumprod[T])
    expected = snr.clamp(max=5.0) * (wrong - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(error, expected, rtol=1e-9, atol=0)


def test_the_form_that_divides_v_by_snr_is_another() -> None:
    """What several programs shipped for years: the last steps would count fully instead of hardly."""
    right = snr_weight("v_prediction", SCHEDULE, T, 5.0)
    snr = SCHEDULE.alphas_cumprod[T] / (1 - SCHEDULE.alphas_cumprod[T])
    wrong = snr.clamp(max=5.0) / snr
    assert right[-1] < 0.005
    assert wrong[-1] == 1


def test_weights_are_finite_at_zero_terminal_snr() -> None:
    schedule = SCHEDULE.with_zero_terminal_snr()
    for name in ("v_prediction", "sample"):
        weight = snr_weight(name, schedule, T, 5.0)
        assert weight.isfinite().all()
        assert weight[-1] == 0


def test_epsilon_is_refused_at_zero_terminal_snr() -> None:
    with pytest.raises(ConfigError, match="use v_prediction or sample"):
        objective("epsilon", SCHEDULE.with_zero_terminal_snr())


def test_unknown_objective_is_named() -> None:
    with pytest.raises(ConfigError, match="did you mean 'v_prediction'"):
        objective("v_predictions", SCHEDULE)


@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_one_step_equals_diffusers(name: str, gamma: float | None, generator: torch.Generator) -> None:
    """Noising, target, weight and mean of diffusers' train_text_to_image, on a small network: loss and gradients."""
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    x0, noise = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(2))

    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": name}
    theirs: Any = import_module("diffusers").DDPMScheduler.from_config(settings)  # Any: annotated too narrowly
    wanted = {"epsilon": noise, "v_prediction": theirs.get_velocity(x0, noise, T), "sample": x0}[name]
    output = network(theirs.add_noise(x0, noise, T))
    if gamma is None:
        expected: Tensor = F.mse_loss(output, wanted)
    else:
        snr: Tensor = import_module("diffusers.training_utils").compute_snr(theirs, T)
        least = torch.minimum(snr, torch.tensor(gamma))
        factor = {"epsilon": least / snr, "v_prediction": least / (snr + 1), "sample": least}[name]
        expected = (F.mse_loss(output, wanted, reduction="none").mean((1, 2, 3)) * factor).mean()
    gradients = torch.autograd.grad(expected, list(network.parameters()))

    said = network(SCHEDULE.add_noise(x0, noise, T))
    weight = snr_weight(name, SCHEDULE, T, gamma)
    loss = squared_error(said, target(name, SCHEDULE, x0, noise, T), weight).mean()
    # 3e-6: diffusers' alphas_cumprod is a float32 product of 1,000 factors; measured 8e-7
    torch.testing.assert_close(loss, expected, rtol=3e-6, atol=0)
    for ours, reference in zip(torch.autograd.grad(loss, list(network.parameters())), gradients, strict=True):
        assert relative(ours, reference) < 1e-4


def test_bfloat16_output_is_compared_in_float32(generator: torch.Generator) -> None:
    wanted = torch.randn(2, 4, 8, 8, generator=generator)
    error = squared_error(wanted.bfloat16(), wanted, torch.ones(2, dtype=torch.float64))
    assert error.dtype == torch.float32
    assert 0 < float(error.max()) < 1e-5  # the rounding of bfloat16, not the 0 that subtracting in bfloat16 would give
