"""Autoencoder between images and latents, of every Stable Diffusion model.

"Latent" always means the scaled one that the U-Net sees: `encode` multiplies, `decode` divides.

Letters: b batch, k latent channels, m = 2k, c image channels, h w rows and columns of the latent, H W those of the
image = factor * h w.

Source: Rombach et al. 2022, arXiv:2112.10752, section 3.1 and appendix G; Esser et al. 2021, arXiv:2012.09841.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.models.attention import Attention
from mezzotint.models.blocks import Downsample, ModuleList, ResBlock, Upsample

NORM_EPS = 1e-6
LOG_VARIANCE_RANGE = (-30.0, 20.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class VAEConfig:
    """What distinguishes one autoencoder of the family from another.

    Raises: ConfigError if its parts contradict each other.
    """

    channels: tuple[int, ...] = (128, 256, 512, 512)  # per level, highest resolution first; each but the first halves
    blocks: int = 2  # ResBlocks per level of the encoder; the decoder has one more
    image_channels: int = 3
    latent_channels: int = 4
    norm_groups: int = 32
    scaling: float = 0.18215  # 1 / standard deviation of the unscaled latents
    has_quant: bool = True  # 1x1 convolutions next to the latent
    latent_mean: tuple[float, ...] | None = None  # per channel of the unscaled latents; None = 0
    latent_std: tuple[float, ...] | None = None  # divides besides `scaling`; None = 1

    def __post_init__(self) -> None:
        for channels in self.channels:
            if channels % self.norm_groups:
                raise ConfigError(f"VAEConfig: {channels} channels cannot form {self.norm_groups} norm_groups")
        for name, values in (("latent_mean", self.latent_mean), ("latent_std", self.latent_std)):
            if values is not None and len(values) != self.latent_channels:
                raise ConfigError(f"VAEConfig: {name} has {len(values)} values for {self.latent_channels} channels")

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.channels) - 1)


class Posterior(NamedTuple):
    """What an image says of its latent: a Gaussian per value, already scaled. Its mode is the mean."""

    mean: Float[Tensor, "b k h w"]
    std: Float[Tensor, "b k h w"]

    def sample(self, noise: Float[Tensor, "b k h w"]) -> Float[Tensor, "b k h w"]:
        """The latent drawn with this unit Gaussian noise."""
        return self.mean + self.std * noise


class SpatialAttention(nn.Module):
    """Single-head self-attention over all positions of a feature map, added to it."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.self_attention = Attention(channels, heads=1, has_bias=True)

    def forward(self, x: Tensor) -> Tensor:
        h = self.self_attention(self.norm(x).flatten(2).transpose(1, 2))  # [b l c]
        return x + h.transpose(1, 2).reshape(x.shape)


class Middle(nn.Module):
    """ResBlock, attention, ResBlock at the lowest resolution."""

    def __init__(self, channels: int, norm_groups: int) -> None:
        super().__init__()
        self.res_in = ResBlock(channels, channels, norm_groups=norm_groups, norm_eps=NORM_EPS)
        self.attn = SpatialAttention(channels, norm_groups)
        self.res_out = ResBlock(channels, channels, norm_groups=norm_groups, norm_eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.res_out(self.attn(self.res_in(x)))


class EncoderLevel(nn.Module):
    """The ResBlocks of one resolution, then half the resolution (not after the last level)."""

    def __init__(self, channels: int, out_channels: int, config: VAEConfig, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = _res_blocks(channels, out_channels, config.blocks, config.norm_groups)
        self.resample = None if is_last else Downsample(out_channels, is_asymmetric=True)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x)


class DecoderLevel(nn.Module):
    """The ResBlocks of one resolution, then double the resolution (not after the last level)."""

    def __init__(self, channels: int, out_channels: int, config: VAEConfig, *, is_last: bool) -> None:
        super().__init__()
        self.blocks = _res_blocks(channels, out_channels, config.blocks + 1, config.norm_groups)
        self.resample = None if is_last else Upsample(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.resample is None else self.resample(x, (2 * x.shape[-2], 2 * x.shape[-1]))


class Encoder(nn.Module):
    """Image to the moments of the latent, before `quant`."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = (config.channels[0], *config.channels)
        self.conv_in = nn.Conv2d(config.image_channels, widths[0], 3, padding=1)
        self.down = ModuleList(
            EncoderLevel(widths[i], widths[i + 1], config, is_last=i == len(config.channels) - 1)
            for i in range(len(config.channels))
        )
        self.middle = Middle(widths[-1], config.norm_groups)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        h = self.conv_in(image)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.middle(h))))


class Decoder(nn.Module):
    """Unscaled latent, after `post_quant`, to image."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = (config.channels[-1], *reversed(config.channels))
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.middle = Middle(widths[0], config.norm_groups)
        self.up = ModuleList(
            DecoderLevel(widths[i], widths[i + 1], config, is_last=i == len(config.channels) - 1)
            for i in range(len(config.channels))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        h = self.middle(self.conv_in(z))
        for level in self.up:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class AutoencoderKL(nn.Module):
    """Encoder and decoder with the latents' scale between them."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1) if config.has_quant else None
        self.post_quant = nn.Conv2d(config.latent_channels, config.latent_channels, 1) if config.has_quant else None
        self.decoder = Decoder(config)

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.config.factor

    def moments(self, image: Float[Tensor, "b c H W"]) -> Float[Tensor, "b m h w"]:
        """Mean and log-variance of the unscaled latent, not clamped: what the KL loss is about."""
        h = self.encoder(image)
        return h if self.quant is None else self.quant(h)

    def encode(self, image: Float[Tensor, "b c H W"]) -> Posterior:
        """The Gaussian of the latent; `image` in [-1, 1], its rows and columns multiples of `factor`."""
        mean, log_variance = self.moments(image).chunk(2, dim=1)
        shift, scale = self.shift_scale(mean)
        std = (0.5 * log_variance.clamp(*LOG_VARIANCE_RANGE)).exp()
        return Posterior((mean - shift) * scale, std * scale)

    def decode(self, latent: Float[Tensor, "b k h w"]) -> Float[Tensor, "b c H W"]:
        """The image, about [-1, 1]: not clamped."""
        shift, scale = self.shift_scale(latent)
        z = latent / scale + shift
        return self.decoder(z if self.post_quant is None else self.post_quant(z))

    def shift_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale per channel [k 1 1] of the unscaled latents."""
        channels = self.config.latent_channels
        shift = like.new_tensor(self.config.latent_mean or [0.0] * channels)
        std = like.new_tensor(self.config.latent_std or [1.0] * channels)
        return shift[:, None, None], (self.config.scaling / std)[:, None, None]


def _res_blocks(channels: int, out_channels: int, count: int, norm_groups: int) -> ModuleList[ResBlock]:
    widths = [channels] + [out_channels] * (count - 1)
    return ModuleList(ResBlock(c, out_channels, norm_groups=norm_groups, norm_eps=NORM_EPS) for c in widths)
