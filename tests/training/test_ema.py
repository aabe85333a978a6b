"""Averages of weights: their profiles in closed form, and any length from two stored ones."""

import numpy as np
import pytest
import torch

from mezzotint.errors import ConfigError
from mezzotint.training.config import EmaConfig
from mezzotint.training.ema import choose, decay, exponent, overlap, update

STEPS = 400


def profile(average: EmaConfig) -> torch.Tensor:
    """How much the weights of each step count in the average after STEPS steps: average one unit vector per step."""
    averages = [torch.zeros(STEPS, dtype=torch.float64)]
    for step in range(1, STEPS + 1):
        weights = torch.zeros(STEPS, dtype=torch.float64)
        weights[step - 1] = 1
        update(averages, [weights], average, step)
    return averages[0]


@pytest.mark.parametrize("sigma", [0.05, 0.10, 0.2])
def test_power_average_weighs_time_by_a_power(sigma: float) -> None:
    """Weights of step k count like k^g: exactly k^(g+1) - (k-1)^(g+1), over STEPS^(g+1); none of the start is left."""
    found, g = profile(EmaConfig(kind="power", value=sigma)), exponent(sigma)
    edges = torch.arange(STEPS + 1, dtype=torch.float64) / STEPS
    middle = ((torch.arange(1, STEPS + 1, dtype=torch.float64)) / STEPS) ** (g + 1)
    assert float(found.sum()) == pytest.approx(1)
    assert torch.allclose(found.cumsum(0), middle, atol=2.5 * (g + 1) / STEPS)
    mean = float((found * edges[1:]).sum())
    deviation = float((found * (edges[1:] - mean) ** 2).sum()) ** 0.5
    assert deviation == pytest.approx(sigma, rel=0.02)


def test_exponent_solves_its_equation() -> None:
    for sigma in (0.05, 0.1, 0.25):
        g = exponent(sigma)
        assert (g + 1) / ((g + 2) ** 2 * (g + 3)) == pytest.approx(sigma**2)


def test_first_step_of_a_power_average_forgets_the_initial_weights() -> None:
    assert decay(EmaConfig(kind="power", value=0.05), 1) == 0


def test_classic_average_is_a_geometric_one_after_its_warm_up() -> None:
    average = EmaConfig(kind="classic", value=0.9)
    assert [decay(average, step) for step in (1, 2, 1000)] == [2 / 11, 3 / 12, 0.9]
    found = profile(average)
    assert torch.allclose(found[200:-1] / found[201:], torch.tensor(0.9, dtype=torch.float64))


def test_overlap_is_the_integral_of_two_profiles() -> None:
    t, g, u, h = 0.7, 3.0, 1.0, 6.0
    tau = (np.arange(200_000) + 0.5) / 200_000
    first = np.where(tau < t, (g + 1) * tau**g / t ** (g + 1), 0)
    second = (h + 1) * tau**h / u ** (h + 1)
    found = overlap(np.array([t]), np.array([g]), np.array([u]), np.array([h]))[0, 0]
    assert found == pytest.approx(float((first * second).mean()), rel=1e-4)


def test_any_length_can_be_chosen_afterwards() -> None:
    """Snapshots of 0.05 and 0.10 at ten times give the profile of 0.07 at the end, nearly."""
    times = [float(time) for time in range(40, STEPS + 1, 40)] * 2
    sigmas = [0.05] * 10 + [0.10] * 10
    weights = choose(times, sigmas, float(STEPS), 0.07)
    tau = np.arange(STEPS) + 0.5

    def density(time: float, sigma: float) -> np.ndarray:
        g = exponent(sigma)
        return np.where(tau <= time, (g + 1) * tau**g / time ** (g + 1), 0)

    found = sum(w * density(time, sigma) for w, time, sigma in zip(weights, times, sigmas, strict=True))
    wanted = density(STEPS, 0.07)
    assert np.linalg.norm(found - wanted) < 0.01 * np.linalg.norm(wanted)


def test_impossible_lengths_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"ema power 0\.3: must lie between 0 and 0\.28"):
        EmaConfig(kind="power", value=0.3)
    with pytest.raises(ConfigError, match=r"ema classic 1"):
        EmaConfig(kind="classic", value=1.0)
