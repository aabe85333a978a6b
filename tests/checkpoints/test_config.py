"""config.json: the quirks of the keys, what is refused, and that reading undoes writing."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from checkpoints import headers
from mezzotint.checkpoints import config
from mezzotint.checkpoints.fields import Fields
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import TextConfig
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Level, UNetConfig
from mezzotint.models.vae import VAEConfig


def fields(values: object) -> Fields:
    return Fields(Path("config.json"), json.loads(json.dumps(values)))


def unet(**values: object) -> UNetConfig:
    return config.read_unet(fields(values))


def test_published_u_nets_are_the_presets():
    """The configs that diffusers writes for every published model."""
    for preset in headers.UNETS:
        assert config.read_unet(fields(headers.diffusers_unet_config(preset))) == PRESETS[preset].unet, preset


@pytest.mark.parametrize("name", PRESETS)
def test_reading_undoes_writing(name: str):
    preset = PRESETS[name]
    assert config.read_unet(fields(config.write_unet(preset.unet, is_sized="xl" in name))) == preset.unet
    assert config.read_vae(fields(config.write_vae(preset.vae))) == preset.vae
    for text in preset.text:
        assert config.read_text(fields(config.write_text(text)), has_projection=bool(text.projection)) == text
    if preset.image:
        assert config.read_image(fields(config.write_image(preset.image))) == preset.image


def test_absent_keys_have_the_defaults_of_diffusers():
    assert unet() == replace(PRESETS["sd15"].unet, context=1280)
    assert config.read_vae(fields({})) == VAEConfig(channels=(64,), blocks=1)


@pytest.mark.parametrize(
    ("values", "heads"),
    [
        ({"attention_head_dim": 8}, [8, 8, 8, 1]),  # the number of heads, whatever its name says
        ({"attention_head_dim": [5, 10, 20, 20]}, [5, 10, 20, 1]),
        ({"attention_head_dim": 64, "num_attention_heads": 4}, [4, 4, 4, 1]),
    ],
)
def test_heads(values: dict[str, object], heads: list[int]):
    assert [level.heads for level in unet(**values).levels] == heads


def test_depth_of_each_block():
    down, up = ["DownBlock2D", "CrossAttnDownBlock2D"], ["CrossAttnUpBlock2D", "UpBlock2D"]
    found = unet(
        block_out_channels=[32, 64],
        down_block_types=down,
        up_block_types=up,
        mid_block_type=None,
        transformer_layers_per_block=[1, [2, 4]],
        reverse_transformer_layers_per_block=[[4, 2, 1], 1],
    )
    assert found.levels[1].depth == (2, 4)
    assert found.up[1].depth == (4, 2, 1)
    assert found.middle is None
    assert config.read_unet(fields(config.write_unet(found, is_sized=False))) == found


def test_up_path_may_have_attention_of_its_own():
    found = unet(
        block_out_channels=[32, 64],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
    )
    assert [level.depth for level in found.levels] == [0, 1]
    assert [level.depth for level in found.up] == [1, 0]


def test_vectors_and_labels():
    assert unet(class_embed_type="projection", projection_class_embeddings_input_dim=2048).vector == 2048
    assert unet(addition_embed_type="text_time", projection_class_embeddings_input_dim=2816,
                addition_time_embed_dim=256).vector == 2816  # fmt: skip
    assert unet(num_class_embeds=1000).labels == 1000
    assert unet(cross_attention_dim=None).context is None
    assert unet(time_cond_proj_dim=256).guidance == 256
    assert unet(projection_class_embeddings_input_dim=7).vector == 0  # without a type it means nothing


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"down_block_types": ["AttnDownBlock2D"] * 4},
         "down_block_types 'AttnDownBlock2D' is not supported; CrossAttnDownBlock2D or DownBlock2D is"),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type = 'UNetMidBlock2DSimpleCrossAttn'"),
        ({"resnet_time_scale_shift": "scale_shift"},
         "resnet_time_scale_shift = 'scale_shift' is not supported; 'default' is"),
        ({"encoder_hid_dim_type": "image_proj"}, "encoder_hid_dim_type = 'image_proj' is not supported; None is"),
        ({"class_embed_type": "timestep"}, "class_embed_type = 'timestep' is not supported; None or 'projection' is"),
        ({"addition_embed_type": "text"}, "addition_embed_type = 'text' is not supported"),
        ({"addition_embed_type": "text_time", "addition_time_embed_dim": 128}, "addition_time_embed_dim = 128"),
        ({"addition_embed_type": "text_time"}, "projection_class_embeddings_input_dim is missing"),
        ({"class_embed_type": "projection", "addition_embed_type": "text_time"}, "together with addition_embed_type"),
        ({"block_out_channels": [320, 640]}, "down_block_types has 4 blocks, block_out_channels 2"),
        ({"block_out_channels": 320}, "block_out_channels = 320: a list is expected"),
        ({"block_out_channels": [320] * 40}, "block_out_channels has 40 values; 1 to 32 are expected"),
        ({"block_out_channels": [10**12] * 4}, "a whole number from 0 to 1,048,576 is expected"),
        ({"layers_per_block": [1, 2, 2, 2]}, "different values per level are not supported"),
        ({"attention_head_dim": [8, 8]}, "attention_head_dim has 2 values, block_out_channels 4"),
        ({"attention_head_dim": 7}, "Level: 320 channels cannot be split into 7 heads"),
        ({"attention_head_dim": 0}, "config.json: "),
        ({"transformer_layers_per_block": 10**9}, "a whole number from 0 to 256 is expected"),
        ({"transformer_layers_per_block": 0}, "a block with attention needs at least 1"),
        ({"use_linear_projection": "yes"}, "use_linear_projection = 'yes': true or false is expected"),
        ({"norm_num_groups": 7}, "cannot form 7 norm_groups"),
    ],
)  # fmt: skip
def test_other_u_nets_are_refused_by_key(values: dict[str, object], message: str):
    with pytest.raises(CheckpointError) as error:
        unet(**values)
    assert message in str(error.value)
    assert str(error.value).startswith("config.json: ")


@pytest.mark.parametrize(
    ("unet_config", "message"),
    [
        (UNetConfig(levels=(Level(channels=32),), middle=Level(channels=32), context=8),
         "middle without a transformer"),
        (UNetConfig(levels=(Level(channels=32, depth=2),), middle=Level(channels=32, depth=1), context=8),
         "middle that differs from the last level"),
        (UNetConfig(levels=(Level(channels=32),), up_levels=(Level(channels=64),), middle=None, context=8),
         "channels or heads that differ on the way up"),
    ],
)  # fmt: skip
def test_what_diffusers_cannot_say_is_not_written(unet_config: UNetConfig, message: str):
    with pytest.raises(CheckpointError, match=message):
        config.write_unet(unet_config, is_sized=False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"block_out_channels": [32], "down_block_types": ["AttnDownEncoderBlock2D"]},
            "'AttnDownEncoderBlock2D' is not",
        ),
        ({"mid_block_add_attention": False}, "mid_block_add_attention = False is not supported; True is"),
        (
            {"use_quant_conv": False},
            "use_quant_conv and use_post_quant_conv, in_channels and out_channels must be equal",
        ),
        ({"scaling_factor": "large"}, "scaling_factor = 'large': a number is expected"),
        ({"latents_mean": [0.0]}, "latent_mean has 1 values for 4 channels"),
    ],
)
def test_other_autoencoders_are_refused_by_key(values: dict[str, object], message: str):
    with pytest.raises(CheckpointError) as error:
        config.read_vae(fields(values))
    assert message in str(error.value)


def test_latent_statistics():
    found = config.read_vae(fields({"latents_mean": [0, 1, 2, 3], "latents_std": [1.0, 1.0, 1.0, 2.0]}))
    assert found.latent_std == (1.0, 1.0, 1.0, 2.0)
    assert config.read_vae(fields(config.write_vae(found))) == found


CLIP_L: dict[str, object] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}


def text(values: Mapping[str, object]) -> TextConfig:
    return config.read_text(fields(CLIP_L | dict(values)), has_projection=False)


def test_special_tokens_of_old_files():
    """They say eos 2, pad 1 and bos 0; the tokenizer never had those."""
    old = {"eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    assert text(old) == PRESETS["sd15"].text[0]
    assert text(old | {"hidden_act": "gelu"}).pad == 0
    assert text(old | {"vocab_size": 49410}).eos == 49407  # learned words come behind
    assert text(old | {"vocab_size": 1000}).bos == 998
    assert text({"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 6}).pad == 6


def test_other_activations_are_refused():
    with pytest.raises(CheckpointError, match="hidden_act = 'relu' is not supported; 'quick_gelu' or 'gelu' is"):
        text({"hidden_act": "relu"})
    with pytest.raises(CheckpointError, match="width 768 cannot be split into 7 heads"):
        text({"num_attention_heads": 7})


def test_a_file_that_is_no_object(tmp_path: Path):
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"config.json: found list, a JSON object is expected"):
        Fields.of(tmp_path / "config.json")
