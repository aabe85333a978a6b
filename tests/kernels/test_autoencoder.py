"""The autoencoder in bands is the autoencoder, however small the bands and wherever its maps are."""

import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mezzotint.kernels.autoencoder import BandedAutoencoder
from mezzotint.kernels.choices import NATIVE, PACKED, PLAIN, KernelSet
from mezzotint.kernels.execution import Execution
from mezzotint.kernels.map import Factors, Map, in_file
from mezzotint.models.vae import AutoencoderKL, VAEConfig
from models.oracles import relative
from models.test_vae import CONFIGS, F8, pictured

TOLERANCE = 1e-5  # measured: below 2e-6
ROW = 1  # bytes: less than a row, so that a band is one
WIDE = replace(F8, channels=(32, 32, 64), blocks=1)  # wide enough for every compiled kernel
BANDS = {"whole": {}, "rows": {"band_bytes": ROW}, "files": {"band_bytes": ROW, "max_bytes": 0}}


def drawn(config: VAEConfig, generator: torch.Generator) -> AutoencoderKL:
    """Weights that keep activations at unit size, and norms that are not the identity."""
    network = AutoencoderKL(config).requires_grad_(False).eval()
    for name, parameter in network.named_parameters():
        scale = 0.1 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
        values = torch.randn(parameter.shape, generator=generator) * scale
        parameter.copy_(values + 1 if "norm" in name and name.endswith("weight") else values)
    return network


def latents(config: VAEConfig, generator: torch.Generator) -> Tensor:
    return torch.randn(2, config.latent_channels, 7, 5, generator=generator)


@pytest.mark.parametrize("kernels", [PACKED, NATIVE], ids=["packed", "native"])
@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.usefixtures("compiled")
def test_bands_are_the_whole(name: str, bands: str, kernels: KernelSet, generator: torch.Generator, tmp_path: Path):
    vae = drawn(CONFIGS[name], generator)
    banded = BandedAutoencoder(vae, kernels, scratch=tmp_path, **BANDS[bands])
    latent, image = latents(vae.config, generator), pictured(vae.config, generator)
    assert relative(banded.decode(latent), vae.decode(latent)) < TOLERANCE
    for actual, expected in zip(banded.encode(image), vae.encode(image), strict=True):
        assert relative(actual, expected) < TOLERANCE
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("config", [F8, WIDE], ids=["narrow", "wide"])
@pytest.mark.parametrize("kernels", [PACKED, NATIVE], ids=["packed", "native"])
def test_bfloat16_loses_no_more_in_bands(kernels: KernelSet, config: VAEConfig, generator: torch.Generator):
    """Norms are in float32 and the result is not rounded: about as much is lost as by the modules themselves."""
    exact = drawn(config, generator)
    rounded = drawn(config, generator)
    rounded.load_state_dict(exact.state_dict())
    rounded.bfloat16()
    latent = latents(config, generator)
    expected = exact.decode(latent)
    by_modules = relative(rounded.decode(latent.bfloat16()).float(), expected)
    actual = BandedAutoencoder(rounded, kernels, band_bytes=ROW).decode(latent)
    assert actual.dtype == torch.float32
    assert relative(actual, expected) < 1.1 * by_modules < 0.03


class WithoutHalo(Map):
    """Zeros instead of the neighbouring bands' rows."""

    def around(self, first: int, last: int, halo: int, factors: Factors | None) -> Tensor:
        band = super().around(first, last, halo, factors).clone()
        band[:, :, :halo] = 0
        band[:, :, band.shape[2] - halo :] = 0
        return band


class OwnMoments(Map):
    """Each band replaces what is known of those before."""

    def note(self, first: int, last: int) -> None:
        self.forget()
        super().note(first, last)


@pytest.mark.parametrize("broken", [WithoutHalo, OwnMoments])
def test_bands_that_do_not_know_each_other_are_caught(
    broken: type[Map], generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    vae = drawn(F8, generator)
    latent = latents(F8, generator)
    monkeypatch.setattr("mezzotint.kernels.autoencoder.Map", broken)
    actual = BandedAutoencoder(vae, band_bytes=16 * 1024).decode(latent)
    assert relative(actual, vae.decode(latent)) > 100 * TOLERANCE


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_does_not_depend_on_its_neighbours(dtype: torch.dtype, generator: torch.Generator):
    """Nor on another one that is decoded in turns with it: memory that one is done with is the other's."""
    banded = BandedAutoencoder(drawn(WIDE, generator).to(dtype), NATIVE, band_bytes=ROW)
    latent = latents(WIDE, generator)
    both = banded.decode(latent)
    assert torch.equal(both[1:], banded.decode(latent[1:]))
    running = [banded.decoding(latent[:1]), banded.decoding(latent[1:])]
    done: dict[int, Tensor] = {}
    while len(done) < len(running):
        for place, one in enumerate(running):
            try:
                next(one)
            except StopIteration as finished:
                done.setdefault(place, finished.value)
    assert torch.equal(torch.cat([done[0], done[1]]), both)


def test_closing_stops_between_bands(generator: torch.Generator, tmp_path: Path):
    vae = drawn(F8, generator)
    convolutions: list[object] = []
    banded = BandedAutoencoder(vae, band_bytes=ROW, max_bytes=0, scratch=tmp_path)
    whole = sum(1 for _ in banded.decoding(latents(F8, generator)))
    running = banded.decoding(latents(F8, generator))
    for _ in range(3):
        next(running)
        convolutions.append(running)
    running.close()
    assert whole > 50 * len(convolutions)
    assert next(running, "ended") == "ended"


def test_gradients_stay_as_the_caller_has_them(generator: torch.Generator):
    """A generator that is left in the middle must not leave gradients off behind it."""
    running = BandedAutoencoder(drawn(F8, generator), band_bytes=ROW).decoding(latents(F8, generator))
    assert torch.is_grad_enabled()
    next(running)
    assert torch.is_grad_enabled()
    running.close()
    assert torch.is_grad_enabled()


def test_a_full_disk_costs_memory_not_the_picture(
    generator: torch.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def full(handle: int, offset: int, size: int) -> None:
        raise OSError(28, "No space left on device")

    banded = BandedAutoencoder(drawn(F8, generator), max_bytes=0, scratch=tmp_path)
    latent = latents(F8, generator)
    expected = banded.decode(latent)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with caplog.at_level(logging.WARNING):
        assert torch.equal(banded.decode(latent), expected)
    assert "No space left on device" in caplog.text
    assert not list(tmp_path.iterdir())


def test_a_map_in_a_file_has_no_name(tmp_path: Path):
    """Nothing is left behind however the process ends."""
    data = in_file((1, 3, 4, 5), torch.bfloat16, tmp_path / "new")
    data.copy_(torch.arange(60.0).view(1, 3, 4, 5))
    assert not list((tmp_path / "new").iterdir())
    assert data.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(data.float().flatten(), torch.arange(60.0))


def test_plain_kernels_leave_the_autoencoder_alone(generator: torch.Generator):
    vae = drawn(F8, generator)
    assert Execution(PLAIN).autoencoder(vae) is vae
    assert isinstance(Execution(PACKED).autoencoder(vae), BandedAutoencoder)
