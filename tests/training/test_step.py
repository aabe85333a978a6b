"""How denoising examples are made: strata, keyed draws, and every kind of noise."""

import pytest
import torch
from torch import Tensor

from mezzotint.diffusion.loss import OBJECTIVES, Objective
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.training.part import Batch
from mezzotint.training.step import DiffusionSettings, Examples, examples, timesteps

SCHEDULE = NoiseSchedule.scaled_linear()
LATENT = torch.zeros(8, 4, 6, 6)
PLAIN = DiffusionSettings()


def batch(first: int, size: int = 8, per_step: int = 8) -> Batch:
    return Batch(first // per_step, range(first, first + size), list(range(size)), per_step)


def made(settings: DiffusionSettings = PLAIN, latent: Tensor = LATENT, at: Batch | None = None) -> Examples:
    return examples(settings, SCHEDULE, latent, at or batch(16), seed=0)


def noise_of(shown: Examples) -> Tensor:
    """The noise in x where the latent is 0."""
    return shown.x / SCHEDULE.coefficients(shown.t, shown.x)[1]


def test_a_step_has_one_timestep_per_stratum_whatever_its_micro_batches() -> None:
    whole = timesteps(batch(16), 1000, 0, stratified=True)
    assert sorted(int(t) // 125 for t in whole) == list(range(8))
    halves = [timesteps(batch(start, 4, 8), 1000, 0, stratified=True) for start in (16, 20)]
    assert torch.equal(whole, torch.cat(halves))


def test_timesteps_are_uniform() -> None:
    drawn = timesteps(batch(0, 4000, 4000), 1000, 0, stratified=False)
    assert float(drawn.double().mean()) == pytest.approx(499.5, abs=15)
    assert 0 <= int(drawn.min()) < 10 < 990 < int(drawn.max()) < 1000


def test_draws_belong_to_positions() -> None:
    """Two halves of a batch are the batch: gradient accumulation and more processes cannot change a run."""
    settings = DiffusionSettings(noise_offset=0.1, input_perturbation=0.1, proportion_empty_prompts=0.5)
    whole = made(settings)
    halves = [made(settings, LATENT[:4], batch(start, 4, 8)) for start in (16, 20)]
    for name in Examples._fields:
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))
    assert not torch.equal(whole.x, made(settings, at=batch(24)).x)


def test_plain_noise_is_the_target_of_epsilon() -> None:
    shown = made()
    torch.testing.assert_close(noise_of(shown), shown.wanted)


def test_offset_is_a_constant_per_channel_that_the_target_knows() -> None:
    plain, offset = made(), made(DiffusionSettings(noise_offset=0.5))
    difference = offset.wanted - plain.wanted
    assert difference.std(dim=(2, 3)).max() < 1e-6
    assert 0.3 < float(difference[:, :, 0, 0].std()) < 0.7
    torch.testing.assert_close(noise_of(offset), offset.wanted)


def test_perturbation_is_noise_that_the_target_does_not_know() -> None:
    plain, perturbed = made(), made(DiffusionSettings(input_perturbation=0.1))
    assert torch.equal(plain.wanted, perturbed.wanted)
    assert float((noise_of(perturbed) - perturbed.wanted).std()) == pytest.approx(0.1, rel=0.1)


def test_text_is_dropped_at_the_asked_rate() -> None:
    latent = torch.zeros(2000, 1, 1, 1)
    dropped = made(DiffusionSettings(proportion_empty_prompts=0.1), latent, batch(0, 2000, 2000)).dropped
    assert float(dropped.float().mean()) == pytest.approx(0.1, abs=0.02)
    assert not made(DiffusionSettings(proportion_empty_prompts=0.0)).dropped.any()


def test_a_new_objective_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Example of an addition: the flow from noise to x0. It is trained like the others by its name alone."""
    flow = Objective(lambda signal, spread, x0, noise: x0 - noise, lambda snr: (1 + snr.sqrt()).square())
    monkeypatch.setitem(OBJECTIVES, "flow", flow)
    latent = torch.ones_like(LATENT)
    settings = DiffusionSettings(prediction_type="flow")  # pyright: ignore[reportArgumentType]  # the new name
    shown = made(settings, latent)
    signal, spread = SCHEDULE.coefficients(shown.t, latent)
    torch.testing.assert_close(shown.wanted, latent - (shown.x - signal * latent) / spread, rtol=1e-4, atol=1e-4)
