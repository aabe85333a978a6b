"""The presets: published parameter counts, and parts that fit each other."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mezzotint.models.attention import TransformerLayer
from mezzotint.models.clip import ImageTower, TextTower
from mezzotint.models.presets import CLIP_BIGG, CLIP_H, CLIP_L, IMAGE_BIGG, IMAGE_H, IMAGE_L, PRESETS
from mezzotint.models.unet import UNet
from mezzotint.models.vae import AutoencoderKL


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "layers"),
    [
        ("sd15", 859_520_964, 16),
        ("sd15-inpaint", 859_535_364, 16),
        ("sd15-ip2p", 859_532_484, 16),
        ("sd2", 865_910_724, 16),
        ("sd2-v", 865_910_724, 16),
        ("sd2-depth", 865_913_604, 16),
        ("sd2-inpaint", 865_925_124, 16),
        ("sd2-unclip-h", 870_173_124, 16),
        ("sd2-unclip-l", 869_517_764, 16),
        ("sdxl", 2_567_463_684, 70),
        ("sdxl-inpaint", 2_567_463_684 + 5 * 320 * 9, 70),
        ("sdxl-ip2p", 2_567_463_684 + 4 * 320 * 9, 70),
        ("sdxl-refiner", 2_259_526_660, 44),
        ("x4-upscaler", 473_398_020, 16),
    ],
)
def test_unet_has_the_published_size(name: str, parameters: int, layers: int):
    with torch.device("meta"):
        unet = UNet(PRESETS[name].unet)
    assert count(unet) == parameters
    assert sum(isinstance(part, TransformerLayer) for part in unet.modules()) == layers


def test_autoencoders_have_the_published_size():
    with torch.device("meta"):
        f8, f4 = AutoencoderKL(PRESETS["sd15"].vae), AutoencoderKL(PRESETS["x4-upscaler"].vae)
    assert (count(f8), count(f8.encoder), count(f8.decoder)) == (83_653_863, 34_163_592, 49_490_179)
    assert count(f4) == 55_325_927


def test_text_towers_have_the_published_size():
    with torch.device("meta"):
        towers = [
            TextTower(config)
            for config in (
                CLIP_L,
                CLIP_H,
                replace(CLIP_H, layers=24),
                replace(CLIP_H, layers=24, projection=1024),
                CLIP_BIGG,
                replace(CLIP_BIGG, projection=None),
            )
        ]
    sizes = [123_060_480, 340_387_840, 352_984_064, 354_032_640, 694_659_840, 693_021_440]
    assert [count(tower) for tower in towers] == sizes


def test_image_towers_have_the_published_size():
    with torch.device("meta"):
        sizes = [count(ImageTower(config)) for config in (IMAGE_L, IMAGE_H, IMAGE_BIGG)]
    assert sizes == [303_966_208, 632_076_800, 1_844_907_264]


@pytest.mark.parametrize("name", PRESETS)
def test_parts_fit_each_other(name: str):
    preset = PRESETS[name]
    assert preset.name == name
    assert preset.unet.context == sum(text.width for text in preset.text)
    if preset.image is not None:
        assert preset.unet.vector == 2 * preset.image.projection  # the embedding and its noise level
    elif preset.unet.vector:
        pooled = preset.text[-1].projection
        assert pooled is not None
        assert preset.unet.vector - pooled == 256 * (5 if name == "sdxl-refiner" else 6)
