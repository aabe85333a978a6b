"""Key maps of diffusers folders: the names of diffusers (U-Net, VAE) and transformers (CLIP).

Source: https://github.com/huggingface/diffusers (unet_2d_condition.py, autoencoder_kl.py) and
https://github.com/huggingface/transformers (modeling_clip.py).
"""

from dataclasses import replace

from mezzotint.checkpoints.translate import Entry, KeyMap, fitted, formed, modules, nested
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.unet import UNetConfig
from mezzotint.models.vae import VAEConfig

_RES = modules(
    [
        ("norm_1", "norm1"),
        ("conv_1", "conv1"),
        ("emb", "time_emb_proj"),
        ("norm_2", "norm2"),
        ("conv_2", "conv2"),
        ("shortcut", "conv_shortcut"),
    ]
)
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}  # before diffusers 0.15


def unet_map(config: UNetConfig, *, is_sized: bool = True) -> KeyMap:
    """Entries of a U-Net. Its vector is pooled text with sizes (XL), or else (unCLIP) an image embedding."""
    vector, other = ("add_embedding", "class_embedding") if is_sized else ("class_embedding", "add_embedding")
    keymap = modules(
        [
            ("time_in", "time_embedding.linear_1"),
            ("time_out", "time_embedding.linear_2"),
            ("vector_in", f"{vector}.linear_1"),
            ("vector_out", f"{vector}.linear_2"),
            ("conv_in", "conv_in"),
            ("norm_out", "conv_norm_out"),
            ("conv_out", "conv_out"),
        ]
    )
    for name in [name for name in keymap if name.startswith("vector")]:
        keymap[name] = replace(keymap[name], aliases=(keymap[name].key.replace(vector, other),))
    keymap["label_embedding.weight"] = Entry(key="class_embedding.weight")
    keymap["guidance_in.weight"] = Entry(key="time_embedding.cond_proj.weight")

    for i, level in enumerate(config.levels):
        for j, depth in enumerate(level.depths(config.blocks)):
            keymap |= nested(f"down.{i}.blocks.{j}.res", f"down_blocks.{i}.resnets.{j}", _RES)
            transformer = transformer_map(config, depth)
            keymap |= nested(f"down.{i}.blocks.{j}.attn", f"down_blocks.{i}.attentions.{j}", transformer)
        keymap |= modules([(f"down.{i}.resample.conv", f"down_blocks.{i}.downsamplers.0.conv")])

    depth = config.middle.depths(1)[0] if config.middle else 0
    keymap |= nested("middle.res_in", "mid_block.resnets.0", _RES)
    keymap |= nested("middle.attn", "mid_block.attentions.0", transformer_map(config, depth))
    keymap |= nested("middle.res_out", "mid_block.resnets.1", _RES)

    for i, level in enumerate(reversed(config.up)):
        for j, depth in enumerate(level.depths(config.blocks + 1)):
            keymap |= nested(f"up.{i}.blocks.{j}.res", f"up_blocks.{i}.resnets.{j}", _RES)
            transformer = transformer_map(config, depth)
            keymap |= nested(f"up.{i}.blocks.{j}.attn", f"up_blocks.{i}.attentions.{j}", transformer)
        keymap |= modules([(f"up.{i}.resample.conv", f"up_blocks.{i}.upsamplers.0.conv")])
    return fitted(keymap, config)


def transformer_map(config: UNetConfig, depth: int) -> KeyMap:
    """Entries of the transformer behind a ResBlock: the same names in both layouts."""
    keymap = modules([("norm", "norm")])
    projections = modules([("proj_in", "proj_in"), ("proj_out", "proj_out")])
    keymap |= projections if config.is_linear else formed(projections, "conv")
    for index in range(depth):
        theirs = f"transformer_blocks.{index}"
        pairs = [(f"norm_{n}", f"norm{n}") for n in (1, 2, 3)]
        for ours, name in (("self_attention", "attn1"), ("cross_attention", "attn2")):
            pairs += [(f"{ours}.{part}", f"{name}.to_{part}") for part in ("q", "k", "v")]
            pairs += [(f"{ours}.out", f"{name}.to_out.0")]
        pairs += [("feed_forward.in_", "ff.net.0.proj"), ("feed_forward.out", "ff.net.2")]
        keymap |= nested(f"layers.{index}", theirs, modules(pairs))
    return keymap


def vae_map(config: VAEConfig) -> KeyMap:
    """Entries of an autoencoder."""
    attention = modules([("norm", "group_norm")])
    for ours, theirs in zip(("q", "k", "v", "out"), _OLD_ATTENTION, strict=True):
        for kind in ("weight", "bias"):
            alias = f"{_OLD_ATTENTION[theirs]}.{kind}"
            attention[f"self_attention.{ours}.{kind}"] = Entry(key=f"{theirs}.{kind}", aliases=(alias,))

    keymap = modules([("quant", "quant_conv"), ("post_quant", "post_quant_conv")])
    for part in ("encoder", "decoder"):
        pairs = [("conv_in", "conv_in"), ("norm_out", "conv_norm_out"), ("conv_out", "conv_out")]
        keymap |= modules([(f"{part}.{ours}", f"{part}.{theirs}") for ours, theirs in pairs])
        keymap |= nested(f"{part}.middle.res_in", f"{part}.mid_block.resnets.0", _RES)
        keymap |= nested(f"{part}.middle.attn", f"{part}.mid_block.attentions.0", attention)
        keymap |= nested(f"{part}.middle.res_out", f"{part}.mid_block.resnets.1", _RES)
    for i in range(len(config.channels)):
        for j in range(config.blocks + 1):
            keymap |= nested(f"encoder.down.{i}.blocks.{j}", f"encoder.down_blocks.{i}.resnets.{j}", _RES)
            keymap |= nested(f"decoder.up.{i}.blocks.{j}", f"decoder.up_blocks.{i}.resnets.{j}", _RES)
        keymap |= modules([(f"encoder.down.{i}.resample.conv", f"encoder.down_blocks.{i}.downsamplers.0.conv")])
        keymap |= modules([(f"decoder.up.{i}.resample.conv", f"decoder.up_blocks.{i}.upsamplers.0.conv")])
    return fitted(keymap, config)


def text_map(config: TextConfig, *, is_bare: bool = False) -> KeyMap:
    """Entries of a text tower. Without `text_model.` (`is_bare`): the first SD 1 files, and transformers from 5.0."""
    keymap = _tower(config, "text_model.")
    keymap["token_embedding.weight"] = Entry(key="text_model.embeddings.token_embedding.weight")
    keymap |= modules([("final_norm", "text_model.final_layer_norm")])
    for name, entry in keymap.items():
        bare = entry.key.removeprefix("text_model.")
        key, alias = (bare, entry.key) if is_bare else (entry.key, bare)
        keymap[name] = replace(entry, key=key, aliases=(alias,))
    keymap["projection.weight"] = Entry(key="text_projection.weight")
    return fitted(keymap, config)


def image_map(config: ImageConfig) -> KeyMap:
    """Entries of an image tower."""
    keymap = _tower(config, "vision_model.")
    keymap["class_embedding"] = Entry(key="vision_model.embeddings.class_embedding")
    keymap["patch_embedding.weight"] = Entry(key="vision_model.embeddings.patch_embedding.weight")
    # the missing letters are in transformers
    keymap |= modules([("norm_in", "vision_model.pre_layrnorm"), ("final_norm", "vision_model.post_layernorm")])
    keymap["projection.weight"] = Entry(key="visual_projection.weight")
    return fitted(keymap, config)


def _tower(config: TextConfig | ImageConfig, prefix: str) -> KeyMap:
    """What both towers have: positions and layers."""
    attention = [("q", "q_proj"), ("k", "k_proj"), ("v", "v_proj"), ("out", "out_proj")]
    pairs = [(f"self_attention.{ours}", f"self_attn.{theirs}") for ours, theirs in attention]
    pairs += [("norm_1", "layer_norm1"), ("norm_2", "layer_norm2"), ("mlp_in", "mlp.fc1"), ("mlp_out", "mlp.fc2")]
    keymap: KeyMap = {"position_embedding.weight": Entry(key=f"{prefix}embeddings.position_embedding.weight")}
    for index in range(config.layers):
        keymap |= nested(f"layers.{index}", f"{prefix}encoder.layers.{index}", modules(pairs))
    return keymap
