"""Names of single files: against diffusers' own converters, and against names derived from the reference classes."""

import math
from typing import Any

import pytest
import torch
from diffusers.loaders import single_file_utils

from checkpoints import headers
from checkpoints.models import FAMILIES, component, shrunk
from mezzotint.checkpoints import diffusers, ldm
from mezzotint.checkpoints.config import write_unet, write_vae
from mezzotint.checkpoints.translate import Config, KeyMap, file_shape, invert, prefixed, shapes_of
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Level, UNetConfig

reference: Any = single_file_utils  # the converters have no types


def shapes_in_file(keymap: KeyMap, config: Config) -> headers.Shapes:
    return {entry.key: file_shape(entry, shapes_of(config)[name]) for name, entry in keymap.items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("preset", headers.UNETS)
def test_full_size_names_and_shapes(preset: str):
    config = PRESETS[preset].unet
    assert shapes_in_file(ldm.unet_map(config), config) == headers.ldm_unet(preset)


@pytest.mark.parametrize("preset", headers.UNETS)
def test_published_parameter_counts(preset: str):
    assert sum(math.prod(shape) for shape in shapes_of(PRESETS[preset].unet).values()) == headers.UNETS[preset][1]


@pytest.mark.parametrize("preset", ["sd15", "x4-upscaler"])
def test_autoencoder_names_and_shapes(preset: str):
    config = PRESETS[preset].vae
    assert shapes_in_file(ldm.vae_map(config), config) == headers.ldm_vae(len(config.channels))


@pytest.mark.parametrize(
    ("preset", "name", "theirs"),
    [
        ("sd15", "down.0.resample.conv.weight", "input_blocks.3.0.op.weight"),
        ("sd15", "down.2.blocks.1.attn.proj_out.weight", "input_blocks.8.1.proj_out.weight"),
        ("sd15", "middle.res_out.conv_1.bias", "middle_block.2.in_layers.2.bias"),
        ("sd15", "up.0.resample.conv.weight", "output_blocks.2.1.conv.weight"),  # no transformer in front
        ("sd15", "up.1.resample.conv.weight", "output_blocks.5.2.conv.weight"),
        ("sd15", "up.3.blocks.2.attn.layers.0.feed_forward.in_.bias",
         "output_blocks.11.1.transformer_blocks.0.ff.net.0.proj.bias"),
        ("sdxl", "middle.attn.layers.9.cross_attention.k.weight",
         "middle_block.1.transformer_blocks.9.attn2.to_k.weight"),
        ("sdxl", "vector_out.weight", "label_emb.0.2.weight"),
        ("sdxl", "up.0.resample.conv.bias", "output_blocks.2.2.conv.bias"),
        ("x4-upscaler", "label_embedding.weight", "label_emb.weight"),
    ],
)  # fmt: skip
def test_names_written_out(preset: str, name: str, theirs: str):
    assert ldm.unet_map(PRESETS[preset].unet)[name].key == theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_converts_our_single_file_to_our_folder(family: str):
    config = shrunk(family).unet
    ours = component("unet", config).state
    is_sized = "unclip" not in family
    single = invert(prefixed(ldm.unet_map(config), ldm.UNET), ours)
    converted = reference.convert_ldm_unet_checkpoint(single, write_unet(config, is_sized=is_sized))
    assert equal(converted, invert(diffusers.unet_map(config, is_sized=is_sized), ours))


@pytest.mark.parametrize("family", ["sd15", "x4-upscaler"])
def test_diffusers_converts_our_autoencoder(family: str):
    config = shrunk(family).vae
    ours = component("vae", config).state
    single = invert(prefixed(ldm.vae_map(config), ldm.VAE), ours)
    assert equal(
        reference.convert_ldm_vae_checkpoint(single, write_vae(config)), invert(diffusers.vae_map(config), ours)
    )


def test_a_swapped_level_is_noticed():
    """Planted: the decoder's levels counted from the wrong side."""
    config = shrunk("sd15").vae
    ours = component("vae", config).state
    single = invert(prefixed(ldm.vae_map(config), ldm.VAE), ours)
    turned = {key.replace("up.0.block", "up.X").replace("up.1.block", "up.0.block"): t for key, t in single.items()}
    turned = {key.replace("up.X", "up.1.block"): tensor for key, tensor in turned.items()}
    assert not equal(
        reference.convert_ldm_vae_checkpoint(turned, write_vae(config)), invert(diffusers.vae_map(config), ours)
    )


def test_averaged_names_have_no_dots():
    """diffusers finds the average under the trained names, minus their first word and every dot."""
    config = shrunk("sd15").unet
    trained, average = component("unet", config).state, component("unet", config, seed=1).state
    single = invert(prefixed(ldm.unet_map(config), ldm.UNET), trained) | invert(ldm.ema_map(config), average)
    assert "model_ema.diffusion_modelinput_blocks00weight" in single
    converted = reference.convert_ldm_unet_checkpoint(single, write_unet(config, is_sized=True), extract_ema=True)
    assert equal(converted, invert(diffusers.unet_map(config), average))


@pytest.mark.parametrize(
    ("preset", "prefixes"),
    [
        ("sd15", ["cond_stage_model.transformer.text_model."]),
        ("sd2", ["cond_stage_model.model."]),
        ("sdxl", ["conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."]),
        ("sdxl-refiner", ["conditioner.embedders.0.model."]),
    ],
)
def test_where_text_towers_are(preset: str, prefixes: list[str]):
    configs = PRESETS[preset].text
    for index, prefix in enumerate(prefixes):
        assert all(entry.key.startswith(prefix) for entry in ldm.text_map(configs, index).values())


def test_first_files_lack_a_prefix():
    entry = ldm.text_map(PRESETS["sd15"].text, 0)["final_norm.bias"]
    assert entry.key == "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    assert entry.aliases == ("cond_stage_model.transformer.final_layer_norm.bias",)


def test_image_tower():
    assert PRESETS["sd2-unclip-h"].image
    keymap = ldm.image_map(PRESETS["sd2-unclip-h"].image)
    assert keymap["projection.weight"].key == "embedder.model.visual.proj"
    assert (
        keymap["layers.31.self_attention.v.bias"].key
        == "embedder.model.visual.transformer.resblocks.31.attn.in_proj_bias"
    )


def test_uneven_u_nets_have_names_too():
    """Distilled U-Nets: no middle, or none with attention, and other depths on the way up."""
    levels = (Level(channels=32), Level(channels=64, depth=(1, 2), heads=4))
    up = (Level(channels=32), Level(channels=64, depth=(2, 1, 1), heads=4))
    config = UNetConfig(levels=levels, up_levels=up, middle=None, context=8, norm_groups=8)
    keymap = ldm.unet_map(config)
    assert keymap["down.1.blocks.1.attn.layers.1.norm_1.bias"].key == "input_blocks.5.1.transformer_blocks.1.norm1.bias"
    assert keymap["up.0.blocks.0.attn.layers.1.norm_1.bias"].key == "output_blocks.0.1.transformer_blocks.1.norm1.bias"
    assert not any(entry.key.startswith("middle_block") for entry in keymap.values())
    plain = UNetConfig(levels=(Level(channels=32),), middle=Level(channels=32), context=8, norm_groups=8)
    assert ldm.unet_map(plain)["middle.res_out.conv_1.bias"].key == "middle_block.1.in_layers.2.bias"
