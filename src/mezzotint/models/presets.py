"""The family as data: every published architecture by name, and two tiny ones for tests and demonstrations.

A preset says which networks a checkpoint holds and how large they are. How it was trained (objective, schedule) and how
prompts are read are said elsewhere.

Source: the configs published with the checkpoints (huggingface.co: stable-diffusion-v1-5, stabilityai).
"""

from dataclasses import dataclass, replace

from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.unet import Level, UNetConfig
from mezzotint.models.vae import VAEConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Preset:
    """The networks of one model. `image` is the tower that unCLIP models turn a picture into their vector with."""

    name: str
    unet: UNetConfig
    vae: VAEConfig
    text: tuple[TextConfig, ...]
    image: ImageConfig | None = None


CLIP_L = TextConfig(width=768, layers=12, heads=12, mlp=3072, activation="quick_gelu")
# SD 2 reads the state of layer 23 of 24; folders do not hold the last layer and the projection, single files do.
CLIP_H = TextConfig(width=1024, layers=23, heads=16, mlp=4096, activation="gelu", pad=0)
CLIP_BIGG = TextConfig(width=1280, layers=32, heads=20, mlp=5120, activation="gelu", projection=1280, pad=0)

IMAGE_L = ImageConfig(width=1024, layers=24, heads=16, mlp=4096, activation="quick_gelu", projection=768, patch=14)
IMAGE_H = ImageConfig(width=1280, layers=32, heads=16, mlp=5120, activation="gelu", projection=1024, patch=14)
IMAGE_BIGG = ImageConfig(width=1664, layers=48, heads=16, mlp=8192, activation="gelu", projection=1280, patch=14)

VAE_F8 = VAEConfig()
VAE_XL = VAEConfig(scaling=0.13025)
VAE_F4 = VAEConfig(channels=(128, 256, 512), scaling=0.08333)

UNET_SD15 = UNetConfig(
    levels=(
        Level(channels=320, depth=1, heads=8),
        Level(channels=640, depth=1, heads=8),
        Level(channels=1280, depth=1, heads=8),
        Level(channels=1280),
    ),
    middle=Level(channels=1280, depth=1, heads=8),
    context=768,
)
UNET_SD2 = UNetConfig(
    levels=(
        Level(channels=320, depth=1, heads=5),
        Level(channels=640, depth=1, heads=10),
        Level(channels=1280, depth=1, heads=20),
        Level(channels=1280),
    ),
    middle=Level(channels=1280, depth=1, heads=20),
    context=1024,
    is_linear=True,
)
UNET_XL = UNetConfig(
    levels=(
        Level(channels=320),
        Level(channels=640, depth=2, heads=10),
        Level(channels=1280, depth=10, heads=20),
    ),
    middle=Level(channels=1280, depth=10, heads=20),
    context=2048,
    vector=1280 + 6 * 256,
    is_linear=True,
)
UNET_REFINER = UNetConfig(
    levels=(
        Level(channels=384),
        Level(channels=768, depth=4, heads=12),
        Level(channels=1536, depth=4, heads=24),
        Level(channels=1536),
    ),
    middle=Level(channels=1536, depth=4, heads=24),
    context=1280,
    vector=1280 + 5 * 256,
    is_linear=True,
)
UNET_X4 = UNetConfig(
    levels=(
        Level(channels=256),
        Level(channels=512, depth=1, heads=8, only_cross=True),
        Level(channels=512, depth=1, heads=8, only_cross=True),
        Level(channels=1024, depth=1, heads=8),
    ),
    middle=Level(channels=1024, depth=1, heads=8),
    in_channels=7,
    context=1024,
    labels=1000,
    is_linear=True,
)

TINY_TEXT = TextConfig(width=32, layers=2, heads=4, mlp=64, activation="quick_gelu")
TINY_VAE = VAEConfig(channels=(8, 8, 16, 16), blocks=1, norm_groups=4)
TINY_UNET = UNetConfig(
    levels=(Level(channels=32, depth=1, heads=2), Level(channels=64, depth=1, heads=4)),
    middle=Level(channels=64, depth=1, heads=4),
    context=32,
    norm_groups=8,
)

_ALL = (
    Preset(name="sd15", unet=UNET_SD15, vae=VAE_F8, text=(CLIP_L,)),
    Preset(name="sd15-inpaint", unet=replace(UNET_SD15, in_channels=9), vae=VAE_F8, text=(CLIP_L,)),
    Preset(name="sd15-ip2p", unet=replace(UNET_SD15, in_channels=8), vae=VAE_F8, text=(CLIP_L,)),
    Preset(name="sd2", unet=UNET_SD2, vae=VAE_F8, text=(CLIP_H,)),
    Preset(name="sd2-v", unet=UNET_SD2, vae=VAE_F8, text=(CLIP_H,)),
    Preset(name="sd2-inpaint", unet=replace(UNET_SD2, in_channels=9), vae=VAE_F8, text=(CLIP_H,)),
    Preset(name="sd2-depth", unet=replace(UNET_SD2, in_channels=5), vae=VAE_F8, text=(CLIP_H,)),
    Preset(name="sd2-unclip-l", unet=replace(UNET_SD2, vector=2 * 768), vae=VAE_F8, text=(CLIP_H,), image=IMAGE_L),
    Preset(name="sd2-unclip-h", unet=replace(UNET_SD2, vector=2 * 1024), vae=VAE_F8, text=(CLIP_H,), image=IMAGE_H),
    Preset(name="sdxl", unet=UNET_XL, vae=VAE_XL, text=(CLIP_L, CLIP_BIGG)),
    Preset(name="sdxl-inpaint", unet=replace(UNET_XL, in_channels=9), vae=VAE_XL, text=(CLIP_L, CLIP_BIGG)),
    Preset(name="sdxl-ip2p", unet=replace(UNET_XL, in_channels=8), vae=VAE_XL, text=(CLIP_L, CLIP_BIGG)),
    Preset(name="sdxl-refiner", unet=UNET_REFINER, vae=VAE_XL, text=(CLIP_BIGG,)),
    Preset(name="x4-upscaler", unet=UNET_X4, vae=VAE_F4, text=(CLIP_H,)),
    Preset(name="tiny", unet=TINY_UNET, vae=TINY_VAE, text=(TINY_TEXT,)),
    Preset(
        name="tiny-xl",
        unet=replace(TINY_UNET, context=64, vector=32 + 6 * 256, is_linear=True),
        vae=replace(TINY_VAE, scaling=0.13025),
        text=(TINY_TEXT, replace(TINY_TEXT, activation="gelu", projection=32, pad=0)),
    ),
)

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}
"""Every preset by name."""
