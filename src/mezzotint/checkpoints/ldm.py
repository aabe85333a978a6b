"""Key maps of single files: the names of latent-diffusion (SD 1 and 2) and of generative-models (XL).

Blocks are numbered through all resolutions there, and one file holds all networks, each under its own prefix.

Source: https://github.com/CompVis/latent-diffusion (openaimodel.py, model.py, ema.py) and
https://github.com/Stability-AI/generative-models.
"""

from collections.abc import Sequence

from mezzotint.checkpoints import diffusers, openclip
from mezzotint.checkpoints.diffusers import transformer_map
from mezzotint.checkpoints.translate import Entry, KeyMap, fitted, formed, modules, nested, prefixed, renamed
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
EMA = "model_ema."

_RES = modules(
    [
        ("norm_1", "in_layers.0"),
        ("conv_1", "in_layers.2"),
        ("emb", "emb_layers.1"),
        ("norm_2", "out_layers.0"),
        ("conv_2", "out_layers.3"),
        ("shortcut", "skip_connection"),
    ]
)
_RES_VAE = modules(
    [
        ("norm_1", "norm1"),
        ("conv_1", "conv1"),
        ("norm_2", "norm2"),
        ("conv_2", "conv2"),
        ("shortcut", "nin_shortcut"),
    ]
)
_ATTENTION_VAE = modules([("norm", "norm")]) | formed(
    modules([(f"self_attention.{ours}", theirs) for ours, theirs in zip("qkv", "qkv", strict=True)])
    | modules([("self_attention.out", "proj_out")]),
    "conv",
)


def unet_map(config: UNetConfig) -> KeyMap:
    """Entries of a U-Net, without the prefix that it has in a single file."""
    keymap = modules(
        [
            ("time_in", "time_embed.0"),
            ("time_out", "time_embed.2"),
            ("vector_in", "label_emb.0.0"),
            ("vector_out", "label_emb.0.2"),
            ("conv_in", "input_blocks.0.0"),
            ("norm_out", "out.0"),
            ("conv_out", "out.2"),
        ]
    )
    keymap["label_embedding.weight"] = Entry(key="label_emb.weight")
    # no published single file has a guidance embedding: the name that the layout suggests
    keymap["guidance_in.weight"] = Entry(key="time_embed.cond_proj.weight")

    block = 1
    for i, level in enumerate(config.levels):
        for j, depth in enumerate(level.depths(config.blocks)):
            keymap |= nested(f"down.{i}.blocks.{j}.res", f"input_blocks.{block}.0", _RES)
            keymap |= nested(f"down.{i}.blocks.{j}.attn", f"input_blocks.{block}.1", transformer_map(config, depth))
            block += 1
        keymap |= modules([(f"down.{i}.resample.conv", f"input_blocks.{block}.0.op")])
        block += 1

    depth = config.middle.depths(1)[0] if config.middle else 0
    keymap |= nested("middle.res_in", "middle_block.0", _RES)
    keymap |= nested("middle.attn", "middle_block.1", transformer_map(config, depth))
    keymap |= nested("middle.res_out", f"middle_block.{2 if depth else 1}", _RES)

    block = 0
    for i, level in enumerate(reversed(config.up)):
        for j, depth in enumerate(level.depths(config.blocks + 1)):
            keymap |= nested(f"up.{i}.blocks.{j}.res", f"output_blocks.{block}.0", _RES)
            keymap |= nested(f"up.{i}.blocks.{j}.attn", f"output_blocks.{block}.1", transformer_map(config, depth))
            # the last block of a level doubles the resolution, behind its transformer if there is one
            keymap |= modules([(f"up.{i}.resample.conv", f"output_blocks.{block}.{2 if depth else 1}.conv")])
            block += 1
    return fitted(keymap, config)


def vae_map(config: VAEConfig) -> KeyMap:
    """Entries of an autoencoder, without the prefix that it has in a single file."""
    keymap = modules([("quant", "quant_conv"), ("post_quant", "post_quant_conv")])
    for part in ("encoder", "decoder"):
        keymap |= modules([(f"{part}.{name}", f"{part}.{name}") for name in ("conv_in", "norm_out", "conv_out")])
        keymap |= nested(f"{part}.middle.res_in", f"{part}.mid.block_1", _RES_VAE)
        keymap |= nested(f"{part}.middle.attn", f"{part}.mid.attn_1", _ATTENTION_VAE)
        keymap |= nested(f"{part}.middle.res_out", f"{part}.mid.block_2", _RES_VAE)
    for i in range(len(config.channels)):
        up = len(config.channels) - 1 - i  # the decoder's levels are numbered from the image's side
        for j in range(config.blocks + 1):
            keymap |= nested(f"encoder.down.{i}.blocks.{j}", f"encoder.down.{i}.block.{j}", _RES_VAE)
            keymap |= nested(f"decoder.up.{i}.blocks.{j}", f"decoder.up.{up}.block.{j}", _RES_VAE)
        keymap |= modules([(f"encoder.down.{i}.resample.conv", f"encoder.down.{i}.downsample.conv")])
        keymap |= modules([(f"decoder.up.{i}.resample.conv", f"decoder.up.{up}.upsample.conv")])
    return fitted(keymap, config)


def text_map(configs: Sequence[TextConfig], index: int) -> KeyMap:
    """Entries of one of a model's text towers, with the prefix that it has in a single file.

    Towers of OpenAI, which alone have quick_gelu, keep the names of transformers there, others those of open_clip.
    Models whose towers pool (XL and its refiner) are generative-models files, the others latent-diffusion files.
    """
    config = configs[index]
    holder = f"conditioner.embedders.{index}." if any(config.projection for config in configs) else "cond_stage_model."
    if config.activation == "quick_gelu":
        return prefixed(diffusers.text_map(config), holder + "transformer.")
    return prefixed(openclip.text_map(config), holder + "model.")


def image_map(config: ImageConfig) -> KeyMap:
    """Entries of the image tower of unCLIP, with the prefix that it has in a single file."""
    return prefixed(openclip.image_map(config), "embedder.model.visual.")


def ema_map(config: UNetConfig) -> KeyMap:
    """Entries of the averaged U-Net in a single file: its names lost their dots."""
    return renamed(unet_map(config), lambda key: EMA + f"diffusion_model.{key}".replace(".", ""))
