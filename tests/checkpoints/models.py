"""Small models with the block structure of the published ones, and random weights in half precision."""

from dataclasses import replace
from pathlib import Path

import torch

from mezzotint.checkpoints.checkpoint import default_scheduler
from mezzotint.checkpoints.component import Checkpoint, Component, text_roles
from mezzotint.checkpoints.translate import Config, shapes_of
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.presets import PRESETS, Preset
from mezzotint.models.unet import Level, UNetConfig
from mezzotint.names import PRESETS as INFOS

FAMILIES = ("sd15", "sd2-v", "sdxl", "sdxl-refiner", "sd2-unclip-h", "x4-upscaler")
WIDTH = 16


def shrunk(name: str) -> Preset:
    """The preset with the same blocks, inputs and depths, but narrow layers and towers of three layers."""
    preset = PRESETS[name]
    text = tuple(shrunk_text(config) for config in preset.text)
    image = None
    if preset.image:
        image = replace(preset.image, width=WIDTH, layers=2, heads=2, mlp=24, projection=WIDTH, patch=4, size=8)
    vector = 0
    if preset.unet.vector:
        vector = 2 * WIDTH if image else WIDTH + preset.unet.vector - 1280
    unet = shrunk_unet(preset.unet, context=sum(config.width for config in text), vector=vector)
    vae = replace(preset.vae, channels=tuple(c // 16 for c in preset.vae.channels), norm_groups=4)
    return replace(preset, unet=unet, vae=vae, text=text, image=image)


def shrunk_text(config: TextConfig) -> TextConfig:
    projection = WIDTH if config.projection else None
    size = replace(config, width=WIDTH, layers=3, heads=2, mlp=24, projection=projection)
    return replace(size, vocabulary=60, positions=10, bos=58, eos=59, pad=min(config.pad, 59))


def shrunk_unet(config: UNetConfig, *, context: int, vector: int) -> UNetConfig:
    first = config.levels[0].channels

    def level(one: Level) -> Level:
        channels = one.channels * 16 // first
        heads = one.heads if one.heads in {1, 8} else channels // 8
        return replace(one, channels=channels, heads=heads)

    middle = level(config.middle) if config.middle else None
    levels = tuple(level(one) for one in config.levels)
    return replace(config, levels=levels, middle=middle, context=context, vector=vector, norm_groups=8)


def component(role: str, config: Config, seed: int = 0) -> Component:
    """Random weights, different in every tensor."""
    generator = torch.Generator().manual_seed(seed + sum(role.encode()))
    state = {name: torch.randn(shape, generator=generator).half() for name, shape in shapes_of(config).items()}
    return Component(role=role, config=config, state=state, source=Path("nowhere"))


def checkpoint(name: str, preset: Preset | None = None) -> Checkpoint:
    """A whole model: of the sizes of `preset`, or shrunk."""
    preset, objective = preset or shrunk(name), INFOS[name].objective
    noise = (torch.full((1, WIDTH), 0.25).half(), torch.full((1, WIDTH), 2.0).half())
    return Checkpoint(
        preset=name,
        objective=objective,
        unet=component("unet", preset.unet),
        vae=component("vae", preset.vae),
        text=tuple(component(role, config) for role, config in zip(text_roles(preset.text), preset.text, strict=True)),
        image=component("image_encoder", preset.image) if isinstance(preset.image, ImageConfig) else None,
        scheduler=default_scheduler(name, objective),
        tokenizers=(None,) * len(preset.text),
        image_noise=noise if preset.image else None,
    )
