"""The autoencoder: parity with diffusers, the latents' scale, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.models.blocks import Downsample
from mezzotint.models.presets import PRESETS
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from models.oracles import relative, vae_pair

TOLERANCE = 1e-5  # measured: below 4e-7

F8 = VAEConfig(channels=(8, 16, 16, 16), norm_groups=4)
CONFIGS = {
    "f8": F8,
    "f4": replace(F8, channels=(8, 16, 16), scaling=0.08333),
    "no-quant": replace(F8, has_quant=False, latent_channels=16),
    "one-block": replace(F8, blocks=1, image_channels=1),
}


def pictured(config: VAEConfig, generator: torch.Generator, *, latent: tuple[int, int] = (3, 5)) -> Tensor:
    """Two random images whose latents have `latent` rows and columns."""
    rows, columns = (config.factor * side for side in latent)
    return torch.rand(2, config.image_channels, rows, columns, generator=generator) * 2 - 1


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_diffusers(name: str, generator: torch.Generator):
    config = CONFIGS[name]
    ours, theirs = vae_pair(config, generator)
    image = pictured(config, generator)
    expected = theirs.encode(image).latent_dist
    assert relative(ours.moments(image), expected.parameters) < TOLERANCE
    actual = ours.encode(image)
    assert relative(actual.mean, expected.mean * config.scaling) < TOLERANCE
    assert relative(actual.std, expected.std * config.scaling) < TOLERANCE
    latent = torch.randn(2, config.latent_channels, 3, 5, generator=generator)
    decoded = theirs.decode(latent / config.scaling).sample
    assert relative(ours.decode(latent), decoded) < TOLERANCE
    assert 0.1 < decoded.std() < 10


def test_parity_catches_symmetric_padding(generator: torch.Generator):
    ours, theirs = vae_pair(F8, generator)
    for part in ours.encoder.modules():
        if isinstance(part, Downsample):
            part.is_asymmetric, part.conv.padding = False, (1, 1)
    image = pictured(F8, generator)
    assert relative(ours.moments(image), theirs.encode(image).latent_dist.parameters) > 0.01


def test_every_norm_has_the_eps_of_diffusers(generator: torch.Generator):
    ours, theirs = vae_pair(F8, generator)
    assert {part.eps for part in ours.modules() if isinstance(part, nn.GroupNorm)} == {1e-6}
    assert {part.eps for part in theirs.modules() if isinstance(part, nn.GroupNorm)} == {1e-6}


@pytest.mark.parametrize(
    ("log_variance", "std"), [(-100.0, torch.tensor(-15.0).exp()), (100.0, torch.tensor(10.0).exp())]
)
def test_log_variance_is_clamped(log_variance: float, std: Tensor, generator: torch.Generator):
    ours, _ = vae_pair(F8, generator)
    assert ours.quant is not None
    assert ours.quant.bias is not None
    ours.quant.weight.zero_()
    ours.quant.bias.fill_(log_variance)
    image = pictured(F8, generator)
    assert float(ours.moments(image)[0, -1, 0, 0]) == log_variance  # the loss sees it unclamped
    torch.testing.assert_close(ours.encode(image).std, (std * F8.scaling).expand(2, 4, 3, 5))


def test_a_sample_is_the_mean_plus_noise_times_std(generator: torch.Generator):
    ours, _ = vae_pair(F8, generator)
    posterior = ours.encode(pictured(F8, generator))
    noise = torch.randn(posterior.mean.shape, generator=generator)
    assert torch.equal(posterior.sample(torch.zeros_like(noise)), posterior.mean)
    torch.testing.assert_close((posterior.sample(noise) - posterior.mean) / posterior.std, noise, rtol=1e-4, atol=1e-4)


def test_latent_statistics_are_undone_by_decode(generator: torch.Generator):
    """Playground 2.5: z = latent * std / scaling + mean, as its diffusers pipeline computes it."""
    mean, std = (-1.5, 0.25, 3.0, 0.5), (8.0, 5.0, 6.0, 7.0)
    config = replace(F8, scaling=0.5, latent_mean=mean, latent_std=std)
    plain, theirs = vae_pair(F8, generator)
    ours = AutoencoderKL(config)
    ours.load_state_dict(plain.state_dict())
    latent = torch.randn(2, 4, 3, 5, generator=generator)
    z = latent * torch.tensor(std).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    assert relative(ours.decode(latent), theirs.decode(z).sample) < TOLERANCE
    image = pictured(F8, generator)
    unscaled = theirs.encode(image).latent_dist.mean
    again = ours.encode(image).mean * torch.tensor(std).view(1, 4, 1, 1) / 0.5 + torch.tensor(mean).view(1, 4, 1, 1)
    assert relative(again, unscaled) < TOLERANCE


def test_a_batch_equals_its_samples_one_by_one(generator: torch.Generator):
    ours, _ = vae_pair(F8, generator)
    image = pictured(F8, generator)
    torch.testing.assert_close(ours.encode(image).mean[1:], ours.encode(image[1:]).mean)
    latent = ours.encode(image).mean
    torch.testing.assert_close(ours.decode(latent)[:1], ours.decode(latent[:1]))


def test_bfloat16_stays_bfloat16_and_near(generator: torch.Generator):
    ours, _ = vae_pair(F8, generator)
    latent = torch.randn(1, 4, 3, 5, generator=generator)
    expected = ours.decode(latent)
    actual = ours.bfloat16().decode(latent.bfloat16())
    assert actual.dtype == torch.bfloat16
    assert relative(actual, expected) < 0.03  # measured 0.01


def test_every_weight_gets_a_gradient(generator: torch.Generator):
    ours, _ = vae_pair(F8, generator)
    ours.requires_grad_(requires_grad=True)
    posterior = ours.encode(pictured(F8, generator))
    loss = ours.decode(posterior.sample(torch.randn(posterior.mean.shape, generator=generator))).square().mean()
    torch.autograd.backward(loss)
    for name, parameter in ours.named_parameters():
        # A bias on all keys shifts every score of a query alike, and softmax removes it.
        is_dead = name.endswith("self_attention.k.bias")
        assert parameter.grad is not None, name
        assert is_dead or parameter.grad.any(), name


def test_factor_counts_pixels_per_latent_position():
    assert PRESETS["sd15"].vae.factor == 8
    assert PRESETS["x4-upscaler"].vae.factor == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_groups": 3}, "8 channels cannot form 3 norm_groups"),
        ({"latent_mean": (0.0,)}, "latent_mean has 1 values for 4 channels"),
        ({"latent_std": (1.0,) * 5}, "latent_std has 5 values for 4 channels"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change: dict[str, int], message: str):
    with pytest.raises(ConfigError, match=message):
        replace(F8, **change)
