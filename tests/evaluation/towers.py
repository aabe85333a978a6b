"""Small CLIPs with random weights, ours and transformers' from the same tensors, and their files in every layout."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any  # Any: transformers' models are not typed

import torch
from torch import Tensor
from transformers.models.clip.configuration_clip import CLIPConfig
from transformers.models.clip.modeling_clip import CLIPModel

from mezzotint.checkpoints import openclip
from mezzotint.checkpoints.files import write_state
from mezzotint.checkpoints.translate import invert, prefixed
from mezzotint.models.clip import CLIP, ImageConfig, TextConfig, initialise

TEXT = TextConfig(width=64, layers=3, heads=1, mlp=96, activation="quick_gelu", projection=24)
IMAGE = ImageConfig(width=128, layers=2, heads=2, mlp=160, activation="quick_gelu", projection=24, patch=16, size=64)
LARGE_TEXT = replace(TEXT, width=768, layers=12, heads=12, mlp=3072, projection=768)
LARGE_IMAGE = ImageConfig(
    width=1024, layers=24, heads=16, mlp=4096, activation="quick_gelu", projection=768, patch=14, size=224
)


def small_clip(text: TextConfig = TEXT, image: ImageConfig = IMAGE, seed: int = 0) -> CLIP:
    """Random weights, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    clip = CLIP(text, image)
    initialise(clip, generator)
    with torch.no_grad():
        for name, parameter in clip.named_parameters():
            if name.endswith("bias") or "class_embedding" in name:
                parameter.normal_(std=0.1, generator=generator)
    return clip.eval().requires_grad_(False)


def reference_of(clip: CLIP, folder: Path, dtype: torch.dtype = torch.float32) -> Any:  # Any: not typed
    """transformers' model with the weights of ours, through a folder that it reads itself."""
    write_transformers(clip, folder)
    return CLIPModel.from_pretrained(folder, attn_implementation="eager", dtype=dtype).eval()  # pyright: ignore[reportUnknownMemberType]


def write_transformers(clip: CLIP, folder: Path) -> None:
    """The folder that `CLIPModel.save_pretrained` writes."""
    text, image = clip.text.config, clip.image.config
    told = {
        "text_config": {
            "hidden_size": text.width, "intermediate_size": text.mlp, "num_attention_heads": text.heads,
            "num_hidden_layers": text.layers, "hidden_act": text.activation, "vocab_size": text.vocabulary,
            "eos_token_id": text.eos, "pad_token_id": text.pad, "bos_token_id": text.bos,
        },
        "vision_config": {
            "hidden_size": image.width, "intermediate_size": image.mlp, "num_attention_heads": image.heads,
            "num_hidden_layers": image.layers, "hidden_act": image.activation, "patch_size": image.patch,
            "image_size": image.size,
        },
        "projection_dim": text.projection,
    }  # fmt: skip
    config = CLIPConfig(**told)  # pyright: ignore[reportArgumentType]  # not typed
    with torch.device("meta"):
        model: Any = CLIPModel(config)
    state = {theirs: clip.state_dict()[ours] for ours, theirs in names(clip, model).items()}
    model.load_state_dict(state, strict=False, assign=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / "model.safetensors", {name: tensor.contiguous() for name, tensor in state.items()})
    config.save_pretrained(folder)  # pyright: ignore[reportUnknownMemberType]  # its stub is incomplete


def names(clip: CLIP, model: Any) -> dict[str, str]:  # Any: not typed
    """Our name -> theirs, written out a second time: nothing of this knows of the key maps that it tests."""
    found: dict[str, str] = {}
    rules = {
        "token_embedding.weight": "embeddings.token_embedding.weight",
        "position_embedding.weight": "embeddings.position_embedding.weight",
        "class_embedding": "embeddings.class_embedding",
        "patch_embedding.weight": "embeddings.patch_embedding.weight",
    }
    words = {
        "self_attention.q": "self_attn.q_proj", "self_attention.k": "self_attn.k_proj",
        "self_attention.v": "self_attn.v_proj", "self_attention.out": "self_attn.out_proj", "norm_1": "layer_norm1",
        "norm_2": "layer_norm2", "mlp_in": "mlp.fc1", "mlp_out": "mlp.fc2",
    }  # fmt: skip
    theirs = set(model.state_dict())
    for ours in clip.state_dict():
        side, _, name = ours.partition(".")
        if ours == "logit_scale":
            found[ours] = ours
            continue
        tower = "text_model" if side == "text" else "vision_model"
        if name == "projection.weight":
            found[ours] = "text_projection.weight" if side == "text" else "visual_projection.weight"
        elif name in rules:
            found[ours] = f"{tower}.{rules[name]}"
        elif name.startswith("layers."):
            _, index, rest = name.split(".", 2)
            module, _, kind = rest.rpartition(".")
            found[ours] = f"{tower}.encoder.layers.{index}.{words[module]}.{kind}"
        else:
            module, _, kind = name.rpartition(".")
            theirs_name = {"norm_in": "pre_layrnorm"}.get(module)
            theirs_name = theirs_name or ("final_layer_norm" if side == "text" else "post_layernorm")
            found[ours] = f"{tower}.{theirs_name}.{kind}"
    assert {name for name in found.values() if name not in theirs} == set()
    return found


def open_clip_state(clip: CLIP) -> dict[str, Tensor]:
    """The tensors as open_clip and OpenAI's release name them."""
    state = clip.state_dict()
    sides = {
        side: {name.removeprefix(f"{side}."): tensor for name, tensor in state.items() if name.startswith(f"{side}.")}
        for side in ("text", "image")
    }
    maps = openclip.text_map(clip.text.config), prefixed(openclip.image_map(clip.image.config), "visual.")
    told = invert(maps[0], sides["text"]) | invert(maps[1], sides["image"])
    return {name: tensor.contiguous() for name, tensor in told.items()} | {"logit_scale": state["logit_scale"]}


def write_ours(clip: CLIP, folder: Path) -> None:
    """As a run exports it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_state(folder / "clip.safetensors", clip.state_dict())
    told = {"text": asdict(clip.text.config), "image": asdict(clip.image.config)}
    (folder / "clip.json").write_text(json.dumps(told))
