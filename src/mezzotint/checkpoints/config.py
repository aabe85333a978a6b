"""The config.json files of diffusers and transformers, read into our configs and written from them.

A key that is absent has the default of its class. A value that means another architecture is refused by name; keys that
do not change the network (dropout, sample_size …) are not looked at.

Source: https://github.com/huggingface/diffusers (unet_2d_condition.py, autoencoder_kl.py) and
https://github.com/huggingface/transformers (configuration_clip.py).
"""

from collections.abc import Sequence

from mezzotint.checkpoints.fields import DEEPEST, Fields
from mezzotint.errors import CheckpointError
from mezzotint.models.clip import Activation, ImageConfig, TextConfig
from mezzotint.models.unet import SIZE_WIDTH, Level, UNetConfig
from mezzotint.models.vae import VAEConfig

VERSION = "0.42.1"  # of diffusers: whose meaning of the keys is written

_UNET_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "norm_eps": (1e-5,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}
_VAE_FIXED: dict[str, tuple[object, ...]] = {
    "act_fn": ("silu", "swish"),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
}


def read_unet(fields: Fields) -> UNetConfig:
    """Our config from a U-Net's config.json. Raises: CheckpointError that names the key for what is not this family."""
    fields.must(_UNET_FIXED)
    return fields.build(lambda: _unet(fields))


def write_unet(config: UNetConfig, *, is_sized: bool) -> dict[str, object]:
    """The config.json of a U-Net, which `read_unet` reads back and diffusers loads.

    Raises: CheckpointError for a U-Net that diffusers has no config for.
    """
    levels, up, middle = config.levels, config.up, config.middle
    if middle and not middle.depth:
        raise CheckpointError("U-Net: diffusers has no config for a middle without a transformer")
    for one, other in zip(levels, up, strict=True):
        is_mirrored = one.heads == other.heads and one.only_cross == other.only_cross
        if one.channels != other.channels or (one.depth and other.depth and not is_mirrored):
            raise CheckpointError("U-Net: diffusers has no config for channels or heads that differ on the way up")
    # the last value is that of the middle, too
    lowest = Level(channels=middle.channels, depth=middle.depth, heads=middle.heads) if middle else levels[-1]
    if levels[-1].depth and (levels[-1].depth, levels[-1].heads) != (lowest.depth, lowest.heads):
        raise CheckpointError("U-Net: diffusers has no config for a middle that differs from the last level")
    heads = _filled([(level.heads if level.depth else 0) for level in (*levels[:-1], lowest)])
    depths = _filled([_plain(level.depth) for level in (*levels[:-1], lowest)])
    up_depths = _filled([_plain(level.depth) for level in reversed(up)])
    is_mirrored = [_plain(level.depth) for level in levels] == [_plain(level.depth) for level in up]
    only_cross = [level.only_cross for level in levels]
    if config.vector and is_sized:
        vector: dict[str, object] = {"addition_embed_type": "text_time", "addition_time_embed_dim": SIZE_WIDTH}
    else:
        vector = {"class_embed_type": "projection"} if config.vector else {}
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "attention_head_dim": heads,
        "block_out_channels": [level.channels for level in levels],
        "cross_attention_dim": config.context,
        "down_block_types": ["CrossAttnDownBlock2D" if level.depth else "DownBlock2D" for level in levels],
        "in_channels": config.in_channels,
        "layers_per_block": config.blocks,
        "mid_block_type": "UNetMidBlock2DCrossAttn" if middle else None,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.labels or None,
        "only_cross_attention": only_cross if any(only_cross) else False,
        "out_channels": config.out_channels,
        "projection_class_embeddings_input_dim": config.vector or None,
        "reverse_transformer_layers_per_block": None if is_mirrored else up_depths,
        "time_cond_proj_dim": config.guidance or None,
        "transformer_layers_per_block": depths,
        "up_block_types": ["CrossAttnUpBlock2D" if level.depth else "UpBlock2D" for level in reversed(up)],
        "use_linear_projection": config.is_linear,
        **vector,
    }


def read_vae(fields: Fields) -> VAEConfig:
    """Our config from an autoencoder's config.json. Raises: as `read_unet`."""
    fields.must(_VAE_FIXED)
    channels = fields.integers("block_out_channels", (64,))
    fields.names("down_block_types", ("DownEncoderBlock2D",), len(channels), ("DownEncoderBlock2D",))
    fields.names("up_block_types", ("UpDecoderBlock2D",), len(channels), ("UpDecoderBlock2D",))
    quant, post_quant = (fields.get(name, True) for name in ("use_quant_conv", "use_post_quant_conv"))
    if quant != post_quant or fields.get("out_channels", 3) != fields.get("in_channels", 3):
        raise fields.error("use_quant_conv", "and use_post_quant_conv, in_channels and out_channels must be equal")
    return fields.build(
        lambda: VAEConfig(
            channels=channels,
            blocks=fields.integer("layers_per_block", 1),
            image_channels=fields.integer("in_channels", 3),
            latent_channels=fields.integer("latent_channels", 4),
            norm_groups=fields.integer("norm_num_groups", 32),
            scaling=fields.number("scaling_factor", 0.18215),
            has_quant=fields.flag_of("use_quant_conv", quant),
            latent_mean=fields.numbers("latents_mean"),
            latent_std=fields.numbers("latents_std"),
        )
    )


def write_vae(config: VAEConfig) -> dict[str, object]:
    """The config.json of an autoencoder, which `read_vae` reads back and diffusers loads."""
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": VERSION,
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * len(config.channels),
        "in_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "latents_mean": list(config.latent_mean) if config.latent_mean else None,
        "latents_std": list(config.latent_std) if config.latent_std else None,
        "layers_per_block": config.blocks,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.image_channels,
        "scaling_factor": config.scaling,
        "up_block_types": ["UpDecoderBlock2D"] * len(config.channels),
        "use_post_quant_conv": config.has_quant,
        "use_quant_conv": config.has_quant,
    }


def read_text(fields: Fields, *, has_projection: bool) -> TextConfig:
    """Our config from a text tower's config.json; every file names a projection, so the weights decide if there is one.

    Files written before transformers 4.30 name other special tokens than the tokenizer has: eos 2, with CLIP's own 1
    and 0. They mean CLIP's last two, and padding with the closing token (OpenAI) or with 0 (open_clip).
    Raises: as `read_unet`.
    """
    vocabulary = fields.integer("vocab_size", 49408)
    activation = _activation(fields)
    last = min(vocabulary, 49408) - 1  # learned words come behind
    tokens = {"bos": last - 1, "eos": last, "pad": last if activation == "quick_gelu" else 0}
    if fields.get("eos_token_id", 49407) != 2:
        tokens = {name: fields.integer(f"{name}_token_id", default) for name, default in tokens.items()}
    return fields.build(
        lambda: TextConfig(
            width=fields.integer("hidden_size", 512),
            layers=fields.integer("num_hidden_layers", 12, high=DEEPEST),
            heads=fields.integer("num_attention_heads", 8),
            mlp=fields.integer("intermediate_size", 2048),
            activation=activation,
            projection=fields.integer("projection_dim", 512) if has_projection else None,
            vocabulary=vocabulary,
            positions=fields.integer("max_position_embeddings", 77),
            **tokens,
        )
    )


def write_text(config: TextConfig) -> dict[str, object]:
    """The config.json of a text tower, which `read_text` reads back and transformers loads."""
    return {
        "architectures": ["CLIPTextModelWithProjection" if config.projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": config.bos,
        "eos_token_id": config.eos,
        "pad_token_id": config.pad,
        "vocab_size": config.vocabulary,
        "max_position_embeddings": config.positions,
        "projection_dim": config.projection or config.width,
        **_tower(config),
    }


def read_image(fields: Fields) -> ImageConfig:
    """Our config from an image tower's config.json. Raises: as `read_unet`."""
    return fields.build(
        lambda: ImageConfig(
            width=fields.integer("hidden_size", 768),
            layers=fields.integer("num_hidden_layers", 12, high=DEEPEST),
            heads=fields.integer("num_attention_heads", 12),
            mlp=fields.integer("intermediate_size", 3072),
            activation=_activation(fields),
            projection=fields.integer("projection_dim", 512),
            patch=fields.integer("patch_size", 32),
            size=fields.integer("image_size", 224),
        )
    )


def write_image(config: ImageConfig) -> dict[str, object]:
    """The config.json of an image tower, which `read_image` reads back and transformers loads."""
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "projection_dim": config.projection,
        "patch_size": config.patch,
        "image_size": config.size,
        **_tower(config),
    }


def _unet(fields: Fields) -> UNetConfig:
    widths = fields.integers("block_out_channels", (320, 640, 1280, 1280))
    count = len(widths)
    attention_down, attention_up = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
    down = fields.names(
        "down_block_types", (attention_down,) * 3 + ("DownBlock2D",), count, (attention_down, "DownBlock2D")
    )
    up = fields.names("up_block_types", ("UpBlock2D",) + (attention_up,) * 3, count, (attention_up, "UpBlock2D"))
    # the misnomer of diffusers: without num_attention_heads, attention_head_dim is the number of heads
    name = "attention_head_dim" if fields.get("num_attention_heads") is None else "num_attention_heads"
    heads = fields.per_level(name, 8, count, fields.integer_of)
    only_cross = fields.per_level("only_cross_attention", False, count, fields.flag_of)
    depth_key, up_depth_key = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
    depths = fields.per_level(depth_key, 1, count, fields.depth_of)
    is_mirrored = fields.get(up_depth_key) is None
    up_depths = depths if is_mirrored else fields.per_level(up_depth_key, 1, count, fields.depth_of)[::-1]

    def level(i: int, has_attention: bool, depth: int | tuple[int, ...], key: str) -> Level:
        if not has_attention:
            return Level(channels=widths[i])
        if not depth or (isinstance(depth, tuple) and not all(depth)):
            raise fields.error(key, f"= {depth!r}: a block with attention needs at least 1")
        return Level(channels=widths[i], depth=depth, heads=heads[i], only_cross=only_cross[i])

    levels = tuple(level(i, down[i] == attention_down, depths[i], depth_key) for i in range(count))
    # blocks on the way up are listed from the lowest resolution
    up_levels = tuple(level(i, up[~i] == attention_up, up_depths[i], up_depth_key) for i in range(count))
    vector, labels = _embeddings(fields)
    return UNetConfig(
        levels=levels,
        up_levels=None if levels == up_levels else up_levels,
        blocks=fields.same("layers_per_block", 2, count),
        middle=_middle(fields, widths[-1], depths[-1], heads[-1]),
        in_channels=fields.integer("in_channels", 4),
        out_channels=fields.integer("out_channels", 4),
        context=fields.same("cross_attention_dim", 1280, count, is_optional=True) or None,
        vector=vector,
        labels=labels,
        guidance=fields.integer("time_cond_proj_dim", 0),
        is_linear=fields.flag_of("use_linear_projection", fields.get("use_linear_projection", False)),
        norm_groups=fields.integer("norm_num_groups", 32),
    )


def _middle(fields: Fields, channels: int, depth: int | tuple[int, ...], heads: int) -> Level | None:
    kind = fields.values.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if kind is None:
        return None
    if kind != "UNetMidBlock2DCrossAttn":
        raise fields.error("mid_block_type", f"= {kind!r} is not supported; UNetMidBlock2DCrossAttn or null is")
    return Level(channels=channels, depth=depth, heads=heads)


def _embeddings(fields: Fields) -> tuple[int, int]:
    """Width of the vector and rows of the class table."""
    kind, addition = fields.get("class_embed_type"), fields.get("addition_embed_type")
    labels = fields.integer("num_class_embeds", 0) if kind is None else 0
    fields.must({"class_embed_type": (None, "projection"), "addition_embed_type": (None, "text_time")})
    if kind and addition:
        raise fields.error("class_embed_type", f"= {kind!r} together with addition_embed_type is not supported")
    if addition:
        fields.must({"addition_time_embed_dim": (SIZE_WIDTH,)})
    width = fields.integer("projection_class_embeddings_input_dim", 0) if kind or addition else 0
    if (kind or addition) and not width:
        raise fields.error("projection_class_embeddings_input_dim", "is missing")
    return width, labels


def _plain(depth: int | tuple[int, ...]) -> int | list[int]:
    """Depth as JSON: a list only where blocks differ."""
    if isinstance(depth, int):
        return depth
    return depth[0] if len(set(depth)) == 1 else list(depth)


def _filled(values: Sequence[int | list[int]]) -> object:
    """Values per level, or one for all; levels that have none (0) get what makes them all equal, if anything does."""
    there = [value for value in values if value] or [1]
    if isinstance(there[0], int) and all(value == there[0] for value in there):
        return there[0]
    return [value or 1 for value in values]


def _activation(fields: Fields) -> Activation:
    match fields.get("hidden_act", "quick_gelu"):
        case "quick_gelu":
            return "quick_gelu"
        case "gelu":
            return "gelu"
        case other:
            raise fields.error("hidden_act", f"= {other!r} is not supported; 'quick_gelu' or 'gelu' is")


def _tower(config: TextConfig | ImageConfig) -> dict[str, object]:
    """What the configs of both towers say."""
    return {
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp,
        "layer_norm_eps": 1e-5,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
    }
