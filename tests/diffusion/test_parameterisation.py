"""The three parameterisations: each inverts what it is the answer to, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.parameterisation import PARAMETERISATIONS, output_from, x0_from
from mezzotint.diffusion.schedule import NoiseSchedule

SD = NoiseSchedule.scaled_linear()
SIGMAS = [0.0292, 0.5, 1.0, 14.6146, 4096.0]

TARGETS: dict[
    str, Callable[[Tensor, Tensor, float, float], Tensor]
] = {  # by definition, from the shares of signal and noise in the network's coordinates
    "epsilon": lambda x0, noise, signal, spread: noise,
    "v_prediction": lambda x0, noise, signal, spread: signal * noise - spread * x0,
    "sample": lambda x0, noise, signal, spread: x0,
}


@pytest.fixture
def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x0, noise = (torch.randn(1, 4, 4, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    return x0, noise


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_the_right_answer_means_x0(name: str, sigma: float, pair: tuple[Tensor, Tensor]) -> None:
    x0, noise = pair
    x = x0 + sigma * noise
    abar = 1 / (1 + sigma**2)
    answer = TARGETS[name](x0, noise, math.sqrt(abar), math.sqrt(1 - abar))
    torch.testing.assert_close(
        x0_from(answer, x, sigma, PARAMETERISATIONS[name]), x0, rtol=0, atol=1e-12 * sigma + 1e-13
    )


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_output_and_x0_are_inverses(name: str, sigma: float, pair: tuple[Tensor, Tensor]) -> None:
    output, x = pair[0], pair[0] + sigma * pair[1]
    x0 = x0_from(output, x, sigma, PARAMETERISATIONS[name])
    torch.testing.assert_close(output_from(x0, x, sigma, PARAMETERISATIONS[name]), output, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_network_sees_the_coordinates_it_was_trained_in(name: str, pair: tuple[Tensor, Tensor]) -> None:
    """c_in x is what add_noise makes, for every training step."""
    x0, noise = pair
    for t in (0, 1, 500, 999):
        sigma = SD.sigma(t)
        seen = PARAMETERISATIONS[name](sigma).c_in * (x0 + sigma * noise)
        torch.testing.assert_close(seen, SD.add_noise(x0, noise, torch.tensor([t])), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", PARAMETERISATIONS)
def test_output_is_widened_before_it_is_weighted(name: str) -> None:
    """A bfloat16 network has answered in bfloat16; its x0 is float32, exact but for that answer's rounding."""
    output, x = torch.full((1, 1, 1, 1), 0.3).bfloat16(), torch.full((1, 1, 1, 1), 2.0)
    x0 = x0_from(output, x, 7.3, PARAMETERISATIONS[name])
    exact = x0_from(output.double(), x.double(), 7.3, PARAMETERISATIONS[name])
    assert x0.dtype == torch.float32
    torch.testing.assert_close(x0.double(), exact, rtol=1e-6, atol=1e-6)


def test_velocity_of_pure_noise_is_minus_x0() -> None:
    """Where ᾱ is nearly 0, x tells nothing and the answer is everything: what epsilon cannot do."""
    velocity = PARAMETERISATIONS["v_prediction"](4096.0)
    assert velocity.c_skip == pytest.approx(2.0**-24, rel=1e-6)
    assert velocity.c_out == pytest.approx(-1, abs=1e-7)
    assert PARAMETERISATIONS["epsilon"](4096.0).c_out == -4096
