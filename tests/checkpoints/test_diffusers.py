"""Names of folders: those of the installed diffusers and transformers."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_clip import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from checkpoints import headers
from checkpoints.models import shrunk
from mezzotint.checkpoints import diffusers
from mezzotint.checkpoints.config import write_image, write_text
from mezzotint.checkpoints.translate import Config, KeyMap, apply, file_shape, invert, shapes_of
from mezzotint.models.presets import PRESETS


def shapes_in_folder(keymap: KeyMap, config: Config) -> headers.Shapes:
    return {entry.key: file_shape(entry, shapes_of(config)[name]) for name, entry in keymap.items()}


def shapes_of_reference(model: Any, config: Any) -> headers.Shapes:  # transformers' constructors have no types
    with torch.device("meta"):
        state = model(config).state_dict()
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize("preset", headers.UNETS)
def test_u_net(preset: str):
    config = PRESETS[preset].unet
    keymap = diffusers.unet_map(config, is_sized="unclip" not in preset)
    assert shapes_in_folder(keymap, config) == headers.diffusers_unet(preset)


def test_guidance_embedding_of_distilled_models():
    keymap = diffusers.unet_map(replace(PRESETS["sd15"].unet, guidance=256))
    assert keymap["guidance_in.weight"].key == "time_embedding.cond_proj.weight"


def test_either_vector_is_read():
    """Whether a vector is text and sizes or an image is no matter of reading."""
    config = shrunk("sd2-unclip-h").unet
    state = {name: torch.randn(shape) for name, shape in shapes_of(config).items()}
    theirs = invert(diffusers.unet_map(config, is_sized=False), state)
    assert "class_embedding.linear_1.weight" in theirs
    assert torch.equal(
        apply(diffusers.unet_map(config), theirs, shapes_of(config), where="unet")["vector_in.weight"],
        state["vector_in.weight"],
    )


@pytest.mark.parametrize("preset", ["sd15", "x4-upscaler"])
def test_autoencoder(preset: str):
    config = PRESETS[preset].vae
    assert shapes_in_folder(diffusers.vae_map(config), config) == headers.diffusers_vae(len(config.channels))


def test_autoencoder_without_quantisation():
    config = replace(PRESETS["tiny"].vae, has_quant=False)
    settings: dict[str, Any] = {
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "block_out_channels": (8, 8, 16, 16),
    }
    settings |= {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        state: Any = AutoencoderKL(**settings, norm_num_groups=4, layers_per_block=1).state_dict()
    assert diffusers.vae_map(config).keys() == shapes_of(config).keys()
    assert {entry.key for entry in diffusers.vae_map(config).values()} == set(state)


def test_attention_names_before_diffusers_0_15():
    entry = diffusers.vae_map(PRESETS["sd15"].vae)["decoder.middle.attn.self_attention.out.weight"]
    assert entry.key == "decoder.mid_block.attentions.0.to_out.0.weight"
    assert entry.aliases == ("decoder.mid_block.attentions.0.proj_attn.weight",)


def test_text_towers():
    clip, big = (replace(config, layers=2) for config in PRESETS["sdxl"].text)
    plain = shapes_of_reference(CLIPTextModel, CLIPTextConfig(**write_text(clip)))  # pyright: ignore[reportArgumentType]  JSON
    assert shapes_in_folder(diffusers.text_map(clip, is_bare=True), clip) == plain
    full = {f"text_model.{name}": shape for name, shape in plain.items()}
    assert shapes_in_folder(diffusers.text_map(clip), clip) == full
    pooled = CLIPTextConfig(**write_text(big))  # pyright: ignore[reportArgumentType]  JSON
    assert shapes_in_folder(diffusers.text_map(big), big) == shapes_of_reference(CLIPTextModelWithProjection, pooled)


def test_image_tower():
    assert PRESETS["sd2-unclip-l"].image
    config = replace(PRESETS["sd2-unclip-l"].image, layers=2)
    theirs = CLIPVisionConfig(**write_image(config))  # pyright: ignore[reportArgumentType]  JSON
    assert shapes_in_folder(diffusers.image_map(config), config) == shapes_of_reference(
        CLIPVisionModelWithProjection, theirs
    )
