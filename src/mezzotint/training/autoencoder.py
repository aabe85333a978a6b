"""Training the autoencoder: pixels, gradients and a pyramid of resolutions, KL, and a PatchGAN for the last part.

The discriminator's weight adapts so that its gradient at the decoder's last layer has the size of the reconstruction's,
times `gan_weight`. Exported networks have latents of mean 0 and deviation 1: the statistics over training pictures are
folded into the 1x1 convolutions next to the latent, where every program finds them.

Sources: Rombach et al. 2022, arXiv:2112.10752, appendix G; Esser et al. 2021, arXiv:2012.09841 (adaptive weight);
Isola et al. 2017, arXiv:1611.07004 (PatchGAN).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from mezzotint.data.order import keyed
from mezzotint.errors import ConfigError
from mezzotint.models.unet import initialise
from mezzotint.models.vae import LOG_VARIANCE_RANGE, AutoencoderKL, VAEConfig
from mezzotint.training.config import TrainConfig, parse
from mezzotint.training.network import write_network
from mezzotint.training.part import Batch, Inputs, Loss
from mezzotint.training.samples import as_image, displaced, read_split, sheet_of

VALIDATED = 256  # held-out pictures that are measured
SHOWN = 12  # of them on the sheet
MEASURED = 2048  # training pictures that the latents' mean and deviation are taken from
CHUNK = 64  # pictures at once without gradients


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoencoderSettings:
    """The network and the weights of its losses; every loss is a mean per element."""

    model: VAEConfig
    kl: float = 1e-4
    gradient: float = 1.0  # of the error in differences between neighbouring pixels
    pyramid: int = 3  # resolutions compared, each half the one before
    half_size: float = 0.25  # share of steps on pictures of half the size
    gan_start: int | None = None  # step from which the discriminator plays; None = never
    gan_weight: float = 0.5
    gan_channels: int = 32
    gan_layers: int = 3

    def __post_init__(self) -> None:
        if self.model.scaling != 1 or not self.model.has_quant or self.model.latent_mean or self.model.latent_std:
            raise ConfigError(
                "settings.model: train with scaling 1 and has_quant; the latents' scale is folded in at the end"
            )


class PatchDiscriminator(nn.Module):
    """One logit per patch: strided convolutions with leaky ReLU, normalised by group instead of by batch."""

    def __init__(self, channels: int, layers: int) -> None:
        super().__init__()
        widths = [channels * min(2**i, 8) for i in range(layers)]
        parts: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for narrow, wide in pairwise(widths):
            parts += [nn.Conv2d(narrow, wide, 4, stride=2, padding=1), nn.GroupNorm(8, wide), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*parts, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 i j"]:
        return self.body(image)


class AutoencoderPart:
    """An `AutoencoderKL`, and its opponent if the settings want one."""

    groups: list[str] | None = None

    def __init__(self, config: TrainConfig, inputs: Inputs) -> None:
        self.seed, self.size = config.seed, config.data.resolution
        self.settings = parse(AutoencoderSettings, config.settings, "recipe.settings")
        self.pictures, held = read_split(inputs, config.data)
        self.count = len(self.pictures)
        self.held = as_image(held.pixels(range(min(VALIDATED, len(held))), self.size))
        autoencoder = AutoencoderKL(self.settings.model)
        initialise(autoencoder, keyed(self.seed, "weights"))
        self.players: dict[str, nn.Module] = {"autoencoder": autoencoder}
        if self.settings.gan_start is not None:
            opponent = PatchDiscriminator(self.settings.gan_channels, self.settings.gan_layers)
            initialise(opponent, keyed(self.seed, "opponent"))
            self.players["discriminator"] = opponent

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss | None:
        """Reconstruction, KL and deception for the autoencoder; the hinge loss for the discriminator."""
        is_gan = self.settings.gan_start is not None and batch.step >= self.settings.gan_start
        if player == "discriminator" and not is_gan:
            return None
        network = autoencoder_of(networks)
        image = self._images(batch).to(next(network.parameters()).dtype)
        mean, log_variance = network.moments(image).chunk(2, dim=1)
        log_variance = log_variance.clamp(*LOG_VARIANCE_RANGE)
        noise = torch.stack(
            [torch.randn(mean.shape[1:], generator=keyed(self.seed, "posterior", p)) for p in batch.positions]
        )
        output = network.decode(mean + (0.5 * log_variance).exp() * noise.to(mean.dtype))
        if player == "discriminator":
            real, false = networks["discriminator"](image).float(), networks["discriminator"](output.detach()).float()
            return Loss(0.5 * (F.relu(1 - real).mean() + F.relu(1 + false).mean()), {})
        parts = self._reconstruction(output.float(), image.float())
        parts["kl"] = 0.5 * (mean.float().square() + log_variance.float().exp() - 1 - log_variance.float()).mean()
        reconstruction = parts["pixels"] + self.settings.gradient * parts["gradients"]
        total = reconstruction + self.settings.kl * parts["kl"]
        if is_gan:
            deception = -networks["discriminator"](output).float().mean()
            last = network.decoder.conv_out.weight
            total = total + self.settings.gan_weight * balance(reconstruction, deception, last) * deception
            parts["deception"] = deception
        return Loss(total, parts)

    def _images(self, batch: Batch) -> Float[Tensor, "b 3 s s"]:
        """The batch, displaced and mirrored at random, every few steps at half the size."""
        generators = [keyed(self.seed, "view", position) for position in batch.positions]
        image = as_image(displaced(self.pictures.pixels(batch.samples, self.size), generators, flips=True))
        is_half = float(torch.rand((), generator=keyed(self.seed, "size", batch.step))) < self.settings.half_size
        return F.avg_pool2d(image, 2) if is_half else image

    def _reconstruction(self, output: Tensor, image: Tensor) -> dict[str, Tensor]:
        """Absolute errors of pixels over the pyramid, and of differences between neighbours."""
        gradients = sum((output.diff(dim=d) - image.diff(dim=d)).abs().mean() for d in (-1, -2))
        pixels = torch.zeros(())
        for level in range(self.settings.pyramid):
            if level:
                output, image = F.avg_pool2d(output, 2), F.avg_pool2d(image, 2)
            pixels = pixels + (output - image).abs().mean() / self.settings.pyramid
        return {"pixels": pixels, "gradients": torch.as_tensor(gradients)}

    def validate(self, networks: Mapping[str, nn.Module]) -> dict[str, float]:
        """PSNR of held-out pictures from the mode of their latents, in dB (mean over pictures of a peak of 2)."""
        output = torch.cat([self._decoded(networks, chunk) for chunk in torch.split(self.held, CHUNK)])
        error = (output.clamp(-1, 1) - self.held).square().flatten(1).mean(1)
        return {"psnr": float((10 * torch.log10(4 / error)).mean()), "l1": float((output - self.held).abs().mean())}

    def _decoded(self, networks: Mapping[str, nn.Module], image: Tensor) -> Tensor:
        network = autoencoder_of(networks)
        return network.decode(network.encode(image.to(next(network.parameters()).dtype)).mean).float()

    def sheet(self, networks: Mapping[str, nn.Module]) -> Image.Image | None:
        """Held-out pictures above what comes back."""
        shown = self.held[:SHOWN]
        return sheet_of([shown, self._decoded(networks, shown)])

    def export(self, networks: Mapping[str, nn.Module], folder: Path) -> None:
        """The autoencoder with normalised latents."""
        network = copy.deepcopy(autoencoder_of(networks))
        with torch.no_grad():
            pixels = self.pictures.pixels(range(min(MEASURED, self.count)), self.size)
            latents = torch.cat([network.encode(as_image(chunk)).mean for chunk in torch.split(pixels, CHUNK)])
            normalise(network, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
        write_network(folder, "autoencoder", network, network.config)


def autoencoder_of(networks: Mapping[str, nn.Module]) -> AutoencoderKL:
    """The autoencoder among the players."""
    network = networks["autoencoder"]
    assert isinstance(network, AutoencoderKL)
    return network


def balance(reconstruction: Tensor, deception: Tensor, last: Tensor) -> Tensor:
    """How much larger the reconstruction's gradient is than the deception's at the last layer, at most 10,000."""
    pulls = [torch.autograd.grad(loss, last, retain_graph=True)[0].float() for loss in (reconstruction, deception)]
    norms = [pull.square().sum().sqrt() for pull in pulls]
    return torch.clamp(norms[0] / (norms[1] + 1e-4), max=1e4)


@torch.no_grad()
def normalise(network: AutoencoderKL, mean: Float[Tensor, "k"], std: Float[Tensor, "k"]) -> None:
    """Fold (z - mean) / std into the convolution before the latent and its inverse into the one after, in place.

    Pictures come back as before; latents have mean 0 and deviation 1; log-variances shift by -2 log std.
    """
    quant, post = network.quant, network.post_quant
    assert quant is not None
    assert quant.bias is not None
    assert post is not None
    assert post.bias is not None
    size = len(mean)
    quant.weight[:size] /= std[:, None, None, None]
    quant.bias[:size] = (quant.bias[:size] - mean) / std
    quant.bias[size:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]
