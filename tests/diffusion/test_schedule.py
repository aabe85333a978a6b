"""The noise schedule: closed forms, inverses, the variance law, and noise that survives bfloat16."""

import math

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.schedule import TERMINAL_ALPHA_BAR, NoiseSchedule
from mezzotint.errors import ConfigError

SD = NoiseSchedule.scaled_linear()
ALL = {
    "scaled_linear": SD,
    "linear": NoiseSchedule.linear(),
    "cosine": NoiseSchedule.cosine(),
    "zero_snr": SD.with_zero_terminal_snr(),
}


def test_stable_diffusion_has_its_published_ends() -> None:
    assert float(SD.alphas_cumprod[-1]) == pytest.approx(0.0046601, abs=5e-8)
    assert SD.sigma_max == pytest.approx(14.614641, abs=5e-7)
    assert SD.sigma_min == pytest.approx(0.029167, abs=5e-7)
    assert len(SD) == 1000


def test_betas_are_what_they_are_called() -> None:
    def betas(schedule: NoiseSchedule) -> Tensor:
        abar = schedule.alphas_cumprod
        return 1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])

    scaled, linear = betas(NoiseSchedule.scaled_linear(0.01, 0.09, 5)), betas(NoiseSchedule.linear(0.01, 0.09, 5))
    torch.testing.assert_close(scaled, torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64) ** 2)
    torch.testing.assert_close(linear, torch.tensor([0.01, 0.03, 0.05, 0.07, 0.09], dtype=torch.float64))


def test_cosine_is_a_squared_cosine_until_its_last_beta_is_capped() -> None:
    abar = NoiseSchedule.cosine(100).alphas_cumprod
    curve = [math.cos((i / 100 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(101)]
    wanted = torch.tensor(curve[1:-1], dtype=torch.float64) / curve[0]
    torch.testing.assert_close(abar[:-1], wanted, rtol=1e-12, atol=0)
    assert float(1 - abar[-1] / abar[-2]) == pytest.approx(0.999)


def test_zero_terminal_snr_is_exact_keeps_the_first_step_and_is_idempotent() -> None:
    zero = SD.with_zero_terminal_snr()
    assert zero.alphas_cumprod[-1] == 0
    assert float(zero.alphas_cumprod[0]) == pytest.approx(float(SD.alphas_cumprod[0]), rel=1e-15)
    again = zero.with_zero_terminal_snr().alphas_cumprod
    torch.testing.assert_close(again, zero.alphas_cumprod, rtol=1e-14, atol=0)
    root, ratio = zero.alphas_cumprod.sqrt(), SD.alphas_cumprod.sqrt().diff()
    torch.testing.assert_close(root.diff() / ratio, torch.full_like(ratio, float(root.diff()[0] / ratio[0])))


def test_terminal_sigma_is_finite_by_the_named_value_only() -> None:
    zero = SD.with_zero_terminal_snr()
    assert zero.sigma_max == math.sqrt((1 - TERMINAL_ALPHA_BAR) / TERMINAL_ALPHA_BAR)
    assert zero.alphas_cumprod[-1] == 0  # still
    x0, noise = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 2.0)
    assert torch.equal(zero.add_noise(x0, noise, torch.tensor([999])), noise)


@pytest.mark.parametrize("name", ALL)
def test_sigma_and_timestep_are_inverses(name: str) -> None:
    schedule = ALL[name]
    for t in [0.0, 0.25, 1.0, 17.5, 500.0, 998.75, 999.0]:
        assert schedule.timestep(schedule.sigma(t)) == pytest.approx(t, abs=1e-9)
    for sigma in [0.05, 0.3, 1.0, 7.0, 12.0]:
        if schedule.sigma_min < sigma < schedule.sigma_max:
            assert schedule.sigma(schedule.timestep(sigma)) == pytest.approx(sigma, rel=1e-12)
    assert all(schedule.sigma(t) == float(schedule.sigmas[t]) for t in range(0, 1000, 37))


def test_sigma_between_steps_is_the_geometric_mean() -> None:
    assert SD.sigma(0.5) == pytest.approx(math.sqrt(SD.sigma(0) * SD.sigma(1)), rel=1e-14)


def test_lookups_round() -> None:
    sigma = SD.sigma(300.6)
    assert SD.timestep(sigma, "nearest") == 301
    assert SD.timestep(sigma, "floor") == 300
    assert all(SD.timestep(SD.sigma(t), "floor") == t for t in range(1000))  # a trained level is not rounded away


def test_levels_outside_the_trained_range_get_its_ends() -> None:
    assert SD.timestep(1e-9) == 0
    assert SD.timestep(1e9) == 999
    with pytest.raises(ConfigError, match=r"t = 999\.5: must lie in 0 … 999"):
        SD.sigma(999.5)


def test_add_noise_is_the_closed_form() -> None:
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(3, 4, 2, 2, dtype=torch.float64, generator=generator) for _ in range(2))
    t = torch.tensor([0, 500, 999])
    x = SD.add_noise(x0, noise, t)
    for i, step in enumerate((0, 500, 999)):
        abar = float(SD.alphas_cumprod[step])
        torch.testing.assert_close(x[i], math.sqrt(abar) * x0[i] + math.sqrt(1 - abar) * noise[i])


@pytest.mark.parametrize("t", [0, 250, 999])
def test_unit_variance_stays_unit_variance(t: int) -> None:
    """And the share of signal is ᾱ: the covariance of x_t and x0 is sqrt(ᾱ)."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(1, 1, 400, 500, dtype=torch.float64, generator=generator) for _ in range(2))
    x = SD.add_noise(x0, noise, torch.tensor([t]))
    assert float(x.var()) == pytest.approx(1.0, abs=0.02)
    assert float((x * x0).mean()) == pytest.approx(float(SD.alphas_cumprod[t]) ** 0.5, abs=0.02)


def in_bfloat16(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The planted fault: the table cast to the dtype of the latents before its roots are taken."""
    abar = SD.alphas_cumprod.to(x0.dtype)[t].view(-1, 1, 1, 1)
    return abar.sqrt() * x0 + (1 - abar).sqrt() * noise


@pytest.mark.parametrize("t", [0, 1])
def test_noise_survives_bfloat16(t: int) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1, 4, 64, 64, generator=generator).bfloat16()
    x0, at = torch.zeros_like(noise), torch.tensor([t])
    wanted = math.sqrt(1 - float(SD.alphas_cumprod[t]))

    def added(x: Tensor) -> float:
        return float((x.double() * noise.double()).sum() / noise.double().square().sum())

    assert SD.add_noise(x0, noise, at).dtype == torch.bfloat16
    assert added(SD.add_noise(x0, noise, at)) == pytest.approx(wanted, rel=2e-3)
    assert added(in_bfloat16(x0, noise, at)) != pytest.approx(wanted, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_add_noise_rounds_once(dtype: torch.dtype) -> None:
    """In every dtype the result is the float64 one to within two units in the last place."""
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 8, 8, generator=generator).to(dtype) for _ in range(2))
    exact = SD.add_noise(x0.double(), noise.double(), torch.tensor([1, 700]))
    error = (SD.add_noise(x0, noise, torch.tensor([1, 700])).double() - exact).abs()
    assert float((error / exact.abs().clamp(min=1)).max()) <= 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize(
    ("abar", "message"),
    [
        (torch.tensor([0.9, 0.5]), "float32"),
        (torch.tensor([0.9], dtype=torch.float64), "2 or more steps"),
        (torch.tensor([0.5, 0.9], dtype=torch.float64), "must descend strictly"),
        (torch.tensor([1.0, 0.9], dtype=torch.float64), "from below 1"),
    ],
)
def test_what_is_not_a_schedule_is_refused(abar: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(abar)
