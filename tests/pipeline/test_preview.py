"""Previews: a linear map from latents to colours, fitted once per autoencoder."""

from importlib import resources
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mezzotint.images import to_array
from mezzotint.models.vae import AutoencoderKL, Posterior
from mezzotint.pipeline import preview
from mezzotint.pipeline.preview import drawn, fit_preview, known_preview, previewed, remembered_preview, stated
from mezzotint.training.inherited import read_autoencoder

MODEL = Path(str(resources.files("mezzotint"))) / "assets" / "icons"


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """The packaged autoencoder: trained, and small enough."""
    return read_autoencoder(MODEL).eval().requires_grad_(False)


def test_the_preview_of_a_picture_looks_like_it(vae: AutoencoderKL):
    weights = fit_preview(vae)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    image = torch.stack([x, y, torch.sin(4 * x * y)])[None]  # not one of those that the map was fitted to
    mean, _ = vae.encode(image)
    shown = torch.as_tensor(to_array(previewed(mean, weights)))
    small = F.avg_pool2d(image, vae.factor)[0]
    explained = 1 - (shown - small).square().mean() / small.var()
    assert explained > 0.55  # 0.60; the best linear map for this very picture has 0.62
    wrong = torch.flip(weights, dims=[0])  # a map for other channels
    other = torch.as_tensor(to_array(previewed(mean, wrong)))
    assert 1 - (other - small).square().mean() / small.var() < 0.3


def test_what_stands_on_white_is_shown_on_white(vae: AutoencoderKL):
    """A map that was fitted to smooth pictures alone shows white as pink: 0.62 in the green channel."""
    image = torch.ones(1, 3, 64, 64)
    image[0, 1:, 20:44, 12:50] = -0.8
    mean, _ = vae.encode(image)
    shown = torch.as_tensor(to_array(previewed(mean, fit_preview(vae))))
    assert shown[:, 0].mean(1).min() > 0.8  # 0.85


def test_the_fit_recovers_a_map_that_is_linear(vae: AutoencoderKL):
    class Linear(AutoencoderKL):
        """Its latents are three channels of the pictures themselves, and noise in none of them."""

        def encode(self, image: torch.Tensor) -> Posterior:
            pooled = F.avg_pool2d(image, self.factor)
            latent = torch.cat([2 * pooled[:, 1:2] + 0.5, pooled[:, :1] - pooled[:, 1:2], -pooled[:, 2:]], dim=1)
            return Posterior(torch.cat([latent, latent[:, :1].square()], dim=1), latent)

    exact = torch.tensor([[0.5, 0.5, 0], [1, 0, 0], [0, 0, -1], [0, 0, 0], [-0.25, -0.25, 0]])
    weights = fit_preview(Linear(vae.config))
    torch.testing.assert_close(weights, exact, rtol=1e-4, atol=1e-4)


def test_drawn_pictures_hold_every_colour():
    pictures = torch.cat(drawn(16))
    assert pictures.amin((0, 2, 3)).max() == -1
    assert pictures.amax((0, 2, 3)).min() == 1


def test_weights_are_read_from_a_model_and_nothing_else_is_taken_for_them():
    weights = torch.rand(5, 3)
    found = known_preview(stated(weights), 4)
    assert found is not None
    torch.testing.assert_close(found, weights, rtol=0, atol=1e-5)  # five decimals
    for wrong in (None, "x", [[1, 2]], [[1.0, 2.0, 3.0]] * 4, [[float("nan")] * 3] * 5, [["a"] * 3] * 5, {"a": 1}):
        assert known_preview(wrong, 4) is None


def test_weights_are_fitted_once_for_each_autoencoder(
    vae: AutoencoderKL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("MEZZOTINT_CACHE", str(tmp_path))
    files = (MODEL / "vae" / "diffusion_pytorch_model.safetensors",)
    first = remembered_preview(vae, files)

    def never(vae: AutoencoderKL) -> torch.Tensor:
        raise AssertionError("fitted again")

    monkeypatch.setattr(preview, "fit_preview", never)
    assert torch.equal(remembered_preview(vae, files), first)
    for damaged in ("{", "[]", '"x"', "null", "\xff"):
        (tmp_path / "previews.json").write_text(damaged, encoding="latin-1")
        with pytest.raises(AssertionError, match="fitted again"):
            remembered_preview(vae, files)
