"""Full-size model files without weights: names and shapes from the reference classes, data that is a hole on disk.

The networks are diffusers' and transformers' own, built on `meta` (milliseconds); their names are turned into those of
the single-file layout here, independently of `mezzotint.checkpoints`. A written file has the length of the real one and
takes no space.
"""

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers.models.clip.configuration_clip import CLIPTextConfig
from transformers.models.clip.modeling_clip import CLIPTextModel

Shapes = dict[str, tuple[int, ...]]

_CROSS, _PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
_UP = {_CROSS: "CrossAttnUpBlock2D", _PLAIN: "UpBlock2D"}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}


def _blocks(*down: str) -> dict[str, Any]:
    return {"down_block_types": down, "up_block_types": tuple(_UP[block] for block in reversed(down))}


_SD1: dict[str, Any] = {"cross_attention_dim": 768, "attention_head_dim": 8}
_SD2: dict[str, Any] = {
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
_XL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    **_blocks(_PLAIN, _CROSS, _CROSS),
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_REFINER: dict[str, Any] = _XL | {
    "block_out_channels": (384, 768, 1536, 1536),
    **_blocks(_PLAIN, _CROSS, _CROSS, _PLAIN),
    "transformer_layers_per_block": 4,
    "attention_head_dim": [6, 12, 24, 24],
    "cross_attention_dim": 1280,
    "projection_class_embeddings_input_dim": 2560,
}
_X4: dict[str, Any] = {
    "in_channels": 7,
    "block_out_channels": (256, 512, 512, 1024),
    **_blocks(_PLAIN, _CROSS, _CROSS, _CROSS),
    "attention_head_dim": 8,
    "cross_attention_dim": 1024,
    "num_class_embeds": 1000,
    "only_cross_attention": [True, True, True, False],
    "use_linear_projection": True,
}

# preset -> (settings of diffusers' U-Net, parameters of the published one)
UNETS: dict[str, tuple[dict[str, Any], int]] = {
    "sd15": (_SD1, 859_520_964),
    "sd15-inpaint": (_SD1 | {"in_channels": 9}, 859_535_364),
    "sd15-ip2p": (_SD1 | {"in_channels": 8}, 859_532_484),
    "sd2": (_SD2, 865_910_724),
    "sd2-inpaint": (_SD2 | {"in_channels": 9}, 865_925_124),
    "sd2-depth": (_SD2 | {"in_channels": 5}, 865_913_604),
    "sd2-unclip-l": (
        _SD2 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 1536},
        869_517_764,
    ),
    "sd2-unclip-h": (
        _SD2 | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 2048},
        870_173_124,
    ),
    "sdxl": (_XL, 2_567_463_684),
    "sdxl-inpaint": (_XL | {"in_channels": 9}, 2_567_463_684 + 5 * 9 * 320),
    "sdxl-ip2p": (_XL | {"in_channels": 8}, 2_567_463_684 + 4 * 9 * 320),
    "sdxl-refiner": (_REFINER, 2_259_526_660),
    "x4-upscaler": (_X4, 473_398_020),
}
# the text encoders of each family under their names in a single file: prefix, then clip or the size of an open_clip one
_TEXTS = {
    "sd15": {"cond_stage_model.transformer.": "l"},
    "sd2": {"cond_stage_model.model.": "h"},
    "sdxl": {"conditioner.embedders.0.transformer.": "l", "conditioner.embedders.1.model.": "g"},
    "sdxl-refiner": {"conditioner.embedders.0.model.": "g"},
    "x4-upscaler": {"cond_stage_model.model.": "h"},
}
_OPENCLIP = {"h": (1024, 24, 4096, 1024), "g": (1280, 32, 5120, 1280)}  # width, layers, mlp, projection

_TO_LDM = (
    (r"^conv_in\.", "input_blocks.0.0."),
    (r"^time_embedding\.linear_1\.", "time_embed.0."),
    (r"^time_embedding\.linear_2\.", "time_embed.2."),
    (r"^(add|class)_embedding\.linear_1\.", "label_emb.0.0."),
    (r"^(add|class)_embedding\.linear_2\.", "label_emb.0.2."),
    (r"^class_embedding\.weight", "label_emb.weight"),
    (r"^mid_block\.resnets\.0\.", "middle_block.0."),
    (r"^mid_block\.attentions\.0\.", "middle_block.1."),
    (r"^mid_block\.resnets\.1\.", "middle_block.2."),
    (r"^conv_norm_out\.", "out.0."),
    (r"^conv_out\.", "out.2."),
    (r"(\.\d)\.norm1\.(?=\w+$)", r"\1.in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(\.\d)\.norm2\.(?=\w+$)", r"\1.out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)


def ldm_unet_name(name: str, has_attention: frozenset[int]) -> str:
    """Name of a diffusers U-Net tensor in a single file; `has_attention` are the up blocks with transformers."""
    if "transformer_blocks" not in name:  # the norms of a transformer keep their names
        for pattern, replacement in _TO_LDM:
            name = re.sub(pattern, replacement, name)
    else:
        name = name.replace("mid_block.attentions.0", "middle_block.1")
    if found := re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions)\.(\d)\.", name):
        side, i, kind, j = found[1], int(found[2]), found[3], int(found[4])
        number = 3 * i + 1 + j if side == "down" else 3 * i + j
        place = f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}."
        return place + name[found.end() :]
    if found := re.match(r"down_blocks\.(\d)\.downsamplers\.0\.conv\.", name):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op." + name[found.end() :]
    if found := re.match(r"up_blocks\.(\d)\.upsamplers\.0\.conv\.", name):
        i = int(found[1])
        return f"output_blocks.{3 * i + 2}.{1 + (i in has_attention)}.conv." + name[found.end() :]
    return name


def ldm_vae_name(name: str) -> str:
    """Name of a diffusers autoencoder tensor in a single file; the decoder counts its levels from the image."""
    for pattern, replacement in (
        (r"mid_block\.resnets\.0", "mid.block_1"),
        (r"mid_block\.resnets\.1", "mid.block_2"),
        (r"mid_block\.attentions\.0\.group_norm", "mid.attn_1.norm"),
        (r"mid_block\.attentions\.0\.to_([qkv])", r"mid.attn_1.\1"),
        (r"mid_block\.attentions\.0\.to_out\.0", "mid.attn_1.proj_out"),
        (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
        (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
        (r"conv_norm_out", "norm_out"),
        (r"conv_shortcut", "nin_shortcut"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def _shapes(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


@functools.cache
def _diffusers_unet(preset: str) -> tuple[Shapes, dict[str, Any]]:
    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(**UNETS[preset][0])
    config = json.loads(unet.to_json_string())
    return _shapes(unet), config


def diffusers_unet(preset: str) -> Shapes:
    """Tensors of a U-Net in diffusers' names."""
    return dict(_diffusers_unet(preset)[0])


def diffusers_unet_config(preset: str) -> dict[str, Any]:
    """The config.json that diffusers writes for it."""
    return dict(_diffusers_unet(preset)[1])


def ldm_unet(preset: str) -> Shapes:
    """Tensors of a U-Net in the names of a single file."""
    shapes, config = _diffusers_unet(preset)
    attention = frozenset(i for i, block in enumerate(config["up_block_types"]) if block == "CrossAttnUpBlock2D")
    return {ldm_unet_name(name, attention): shape for name, shape in shapes.items()}


@functools.cache
def _diffusers_vae(levels: int) -> Shapes:
    settings: dict[str, Any] = {
        "block_out_channels": (128, 256, 512, 512)[:levels],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        vae: Any = AutoencoderKL(**settings)
    return _shapes(vae)


def diffusers_vae(levels: int = 4) -> Shapes:
    """Tensors of an autoencoder in diffusers' names; latents are 2^(levels - 1) times smaller than the image."""
    return dict(_diffusers_vae(levels))


def ldm_vae(levels: int = 4) -> Shapes:
    """Tensors of an autoencoder in the names of a single file; its attention is made of 1x1 convolutions."""
    found: Shapes = {}
    for name, shape in _diffusers_vae(levels).items():
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
        name = ldm_vae_name(name)
        found[name] = (*shape, 1, 1) if ".attn_1." in name and len(shape) == 2 else shape
    return found


@functools.cache
def _clip_l() -> Shapes:
    config = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, projection_dim=768, num_hidden_layers=12, num_attention_heads=12
    )
    with torch.device("meta"):
        text: Any = CLIPTextModel(config)
    return _shapes(text)


def clip_l() -> Shapes:
    """Tensors of CLIP ViT-L's text encoder with the prefix that files of all ages have."""
    return {"text_model." + name.removeprefix("text_model."): shape for name, shape in _clip_l().items()}


def openclip(size: str) -> Shapes:
    """Tensors of an OpenCLIP text encoder: "h" for SD 2, "g" (bigG) for SDXL."""
    width, layers, mlp, projection = _OPENCLIP[size]
    shapes: Shapes = {
        "token_embedding.weight": (49408, width),
        "positional_embedding": (77, width),
        "ln_final.weight": (width,),
        "ln_final.bias": (width,),
        "text_projection": (width, projection),
    }
    for i in range(layers):
        block = f"transformer.resblocks.{i}."
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"{block}{norm}.weight": (width,), f"{block}{norm}.bias": (width,)}
        shapes |= {f"{block}attn.in_proj_weight": (3 * width, width), f"{block}attn.in_proj_bias": (3 * width,)}
        for layer, (rows, columns) in {
            "attn.out_proj": (width, width),
            "mlp.c_fc": (mlp, width),
            "mlp.c_proj": (width, mlp),
        }.items():
            shapes |= {f"{block}{layer}.weight": (rows, columns), f"{block}{layer}.bias": (rows,)}
    return shapes


def checkpoint(preset: str, *, has_ema: bool = False) -> Shapes:
    """Every tensor of a model in one file, as the original programs saved it."""
    unet = ldm_unet(preset)
    shapes: Shapes = {f"model.diffusion_model.{name}": shape for name, shape in unet.items()}
    levels = 3 if preset == "x4-upscaler" else 4
    shapes |= {f"first_stage_model.{name}": shape for name, shape in ldm_vae(levels).items()}
    family = next(name for name in sorted(_TEXTS, key=len, reverse=True) if preset.startswith(name))
    for prefix, size in _TEXTS[family].items():
        text = clip_l() if size == "l" else openclip(size)
        shapes |= {prefix + name: shape for name, shape in text.items()}
    if "unclip" in preset:
        width = {"l": 768, "h": 1024}[preset[-1]]
        shapes |= {"embedder.model.visual.conv1.weight": (1280, 3, 14, 14), "embedder.model.ln_final.weight": (width,)}
    if has_ema:
        shapes |= {f"model_ema.diffusion_model{name.replace('.', '')}": shape for name, shape in unet.items()}
    return shapes | {"alphas_cumprod": (1000,)}


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str] | None = None, dtype: str = "F16"
) -> Path:
    """A safetensors file whose header is real and whose data is a hole that reads as zeros."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        start, count = end, 1
        for size in shape:
            count *= size
        end = start + count * _SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    raw = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)
    return path
