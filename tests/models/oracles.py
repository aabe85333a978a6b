"""The same networks in diffusers and transformers, holding the very tensors of ours.

A second derivation of the names: nothing here knows of `mezzotint.checkpoints`, so each can be tested by the other.
Reference modules are built on `meta` and then given our tensors, so a pair takes the memory of one.
"""

import math
import re
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL as ReferenceVAE
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.models.clip.modeling_clip import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from mezzotint.models.clip import ImageConfig, ImageTower, TextConfig, TextTower
from mezzotint.models.unet import Level, UNet, UNetConfig
from mezzotint.models.vae import AutoencoderKL, VAEConfig

Rules = tuple[tuple[str, str], ...]

_RES: Rules = ((r"\.(norm|conv)_([12])\.", r".\1\2."), (r"\.emb\.", ".time_emb_proj."), ("shortcut", "conv_shortcut"))
_ATTENTION: Rules = (
    (r"attention\.([qkv])\.", r"attention.to_\1."),
    (r"attention\.out\.", "attention.to_out.0."),
    (r"cross_attention", "attn2"),
)
UNET_RULES: Rules = (
    (r"^time_in", "time_embedding.linear_1"),
    (r"^time_out", "time_embedding.linear_2"),
    (r"^guidance_in", "time_embedding.cond_proj"),
    (r"^label_embedding", "class_embedding"),
    (r"^norm_out", "conv_norm_out"),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.res\.", r"\1_blocks.\2.resnets.\3."),
    (r"^(down|up)\.(\d+)\.blocks\.(\d+)\.attn\.", r"\1_blocks.\2.attentions.\3."),
    (r"^(down|up)\.(\d+)\.resample", r"\1_blocks.\2.\1samplers.0"),
    (r"^middle\.res_in", "mid_block.resnets.0"),
    (r"^middle\.res_out", "mid_block.resnets.1"),
    (r"^middle\.attn", "mid_block.attentions.0"),
    *_RES,
    *_ATTENTION,
    (r"self_attention", "attn1"),
    (r"\.layers\.", ".transformer_blocks."),
    (r"\.norm_(\d)\.", r".norm\1."),
    (r"feed_forward\.in_", "ff.net.0.proj"),
    (r"feed_forward\.out", "ff.net.2"),
)
VAE_RULES: Rules = (
    (r"^(post_)?quant\.", r"\1quant_conv."),
    (r"norm_out", "conv_norm_out"),
    (r"\.(down|up)\.(\d+)\.blocks\.(\d+)\.", r".\1_blocks.\2.resnets.\3."),
    (r"\.(down|up)\.(\d+)\.resample", r".\1_blocks.\2.\1samplers.0"),
    (r"middle\.res_in", "mid_block.resnets.0"),
    (r"middle\.res_out", "mid_block.resnets.1"),
    (r"middle\.attn\.norm", "mid_block.attentions.0.group_norm"),
    *_RES,
    *_ATTENTION,
    (r"middle\.attn\.self_attention", "mid_block.attentions.0"),
)
CLIP_RULES: Rules = (
    (r"^(token|position|patch|class)_embedding", r"embeddings.\1_embedding"),
    (r"^layers", "encoder.layers"),
    (r"norm_([12])\.", r"layer_norm\1."),
    (r"self_attention\.(q|k|v|out)\.", r"self_attn.\1_proj."),
    (r"mlp_in", "mlp.fc1"),
    (r"mlp_out", "mlp.fc2"),
)


def renamed(name: str, rules: Rules) -> str:
    """Our name in the words of the reference."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def randomise(module: nn.Module, generator: torch.Generator) -> None:
    """Give a module built on `meta` random float32 tensors that keep activations near unit scale.

    Weights have variance 1 / fan-in, norms are near 1, biases near 0: all of them matter to the output.
    """
    state: dict[str, Tensor] = {}
    for path in {name.rpartition(".")[0]: None for name in module.state_dict()}:
        part = module.get_submodule(path)
        for name, parameter in part.named_parameters(recurse=False):
            draw = torch.randn(parameter.shape, generator=generator)
            if isinstance(part, nn.LayerNorm | nn.GroupNorm):
                draw = draw.mul_(0.1).add_(1.0 if name == "weight" else 0.0)
            elif isinstance(part, nn.Linear | nn.Conv2d):
                draw.mul_(1 / math.sqrt(parameter[0].numel()) if name == "weight" else 0.1)
            state[f"{path}.{name}".lstrip(".")] = draw
    module.load_state_dict(state, strict=True, assign=True)
    module.requires_grad_(requires_grad=False).eval()


def share(module: nn.Module, reference: nn.Module, names: dict[str, str]) -> None:
    """Make the reference hold our tensors, under `names` (ours -> theirs); 1x1 convolutions hold views of them."""
    shapes = {name: parameter.shape for name, parameter in reference.named_parameters()}
    state = {names[name]: tensor.view(shapes[names[name]]) for name, tensor in module.state_dict().items()}
    reference.load_state_dict(state, strict=True, assign=True)
    reference.requires_grad_(requires_grad=False).eval()


def unet_pair(config: UNetConfig, generator: torch.Generator, *, vector: str = "text_time") -> tuple[UNet, Any]:
    """Our U-Net and diffusers', same tensors. `vector` says where diffusers takes it: text_time or projection."""
    with torch.device("meta"):
        ours, theirs = UNet(config), UNet2DConditionModel(**unet_kwargs(config, vector=vector))
    randomise(ours, generator)
    place = "add_embedding" if vector == "text_time" else "class_embedding"
    rules = (*UNET_RULES, (r"^vector_in", f"{place}.linear_1"), (r"^vector_out", f"{place}.linear_2"))
    share(ours, theirs, {name: renamed(name, rules) for name in ours.state_dict()})
    return ours, theirs


def unet_kwargs(config: UNetConfig, *, vector: str) -> dict[str, Any]:
    """Diffusers' words for our config. Its `attention_head_dim` is the number of heads."""

    def depth(level: Level) -> int | list[int]:  # a level without a transformer needs a number all the same
        return list(level.depth) if isinstance(level.depth, tuple) else level.depth or middle_depth

    def kind(level: Level, direction: str) -> str:
        return f"CrossAttn{direction}Block2D" if level.depth else f"{direction}Block2D"

    middle = config.middle.depth if config.middle else 1
    middle_depth = middle if isinstance(middle, int) else 1
    kwargs: dict[str, Any] = {
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": [level.channels for level in config.levels],
        "down_block_types": [kind(level, "Down") for level in config.levels],
        "up_block_types": [kind(level, "Up") for level in reversed(config.up)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if config.middle else None,
        "layers_per_block": config.blocks,
        "transformer_layers_per_block": [depth(level) for level in config.levels],
        "attention_head_dim": [
            level.heads if level.depth or not config.middle else config.middle.heads for level in config.levels
        ],
        "only_cross_attention": [level.only_cross for level in config.levels],
        "cross_attention_dim": config.context,
        "use_linear_projection": config.is_linear,
        "norm_num_groups": config.norm_groups,
        "num_class_embeds": config.labels or None,
        "time_cond_proj_dim": config.guidance or None,
    }
    if config.up_levels is not None:
        kwargs["reverse_transformer_layers_per_block"] = [depth(level) for level in reversed(config.up)]
    if config.vector:
        kwargs["projection_class_embeddings_input_dim"] = config.vector
        if vector == "text_time":
            kwargs |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        else:
            kwargs["class_embed_type"] = "projection"
    return kwargs


def vae_pair(config: VAEConfig, generator: torch.Generator) -> tuple[AutoencoderKL, Any]:
    """Our autoencoder and diffusers', same tensors."""
    settings: dict[str, Any] = {
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "down_block_types": ("DownEncoderBlock2D",) * len(config.channels),
        "up_block_types": ("UpDecoderBlock2D",) * len(config.channels),
        "block_out_channels": config.channels,
        "layers_per_block": config.blocks,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": config.scaling,
        "use_quant_conv": config.has_quant,
        "use_post_quant_conv": config.has_quant,
    }
    with torch.device("meta"):
        ours = AutoencoderKL(config)
        theirs = ReferenceVAE(**settings)
    randomise(ours, generator)
    share(ours, theirs, {name: renamed(name, VAE_RULES) for name in ours.state_dict()})
    return ours, theirs


def text_pair(config: TextConfig, generator: torch.Generator) -> tuple[TextTower, Any]:
    """Our text tower and transformers', same tensors."""
    settings = CLIPTextConfig(
        vocab_size=config.vocabulary,
        hidden_size=config.width,
        intermediate_size=config.mlp,
        projection_dim=config.projection or config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        max_position_embeddings=config.positions,
        hidden_act=config.activation,
        bos_token_id=config.bos,
        eos_token_id=config.eos,
        pad_token_id=config.pad,
    )
    with torch.device("meta"):
        ours = TextTower(config)
        theirs = CLIPTextModelWithProjection(settings) if config.projection else CLIPTextModel(settings)
    randomise(ours, generator)
    prefix = "text_model." if config.projection else ""
    names = {name: prefix + renamed(name, CLIP_RULES) for name in ours.state_dict()}
    names = {name: theirs.replace("final_norm", "final_layer_norm") for name, theirs in names.items()}
    share(ours, theirs, names | {"projection.weight": "text_projection.weight"})
    _fill_positions(theirs)
    return ours, theirs


def image_pair(config: ImageConfig, generator: torch.Generator) -> tuple[ImageTower, Any]:
    """Our image tower and transformers', same tensors."""
    settings = CLIPVisionConfig(
        hidden_size=config.width,
        intermediate_size=config.mlp,
        projection_dim=config.projection,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        image_size=config.size,
        patch_size=config.patch,
        hidden_act=config.activation,
    )
    with torch.device("meta"):
        ours, theirs = ImageTower(config), CLIPVisionModelWithProjection(settings)
    randomise(ours, generator)
    names = {name: "vision_model." + renamed(name, CLIP_RULES) for name in ours.state_dict()}
    for mine, reference in (("norm_in", "pre_layrnorm"), ("final_norm", "post_layernorm")):
        names = {name: theirs.replace(mine, reference) for name, theirs in names.items()}
    share(ours, theirs, names | {"projection.weight": "visual_projection.weight"})
    _fill_positions(theirs)
    return ours, theirs


def relative(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ / ‖b‖ in float64; not a number unless the shapes agree."""
    if a.shape != b.shape:
        return math.nan
    a, b = a.detach().double(), b.detach().double()
    return math.sqrt(float((a - b).square().sum() / b.square().sum()))


def _fill_positions(reference: nn.Module) -> None:
    """The one buffer that transformers does not store, and that is still on `meta`."""
    for part in reference.modules():
        if isinstance(part._buffers.get("position_ids"), Tensor):  # pyright: ignore[reportPrivateUsage]
            count = part._buffers["position_ids"].shape[-1]  # pyright: ignore
            part.register_buffer("position_ids", torch.arange(count)[None], persistent=False)
