"""How each file of the family is recognised: tables of shapes and names, read by `detect` from top to bottom.

Shapes tell the models of the family apart exactly, with one exception: Stable Diffusion 2 at 512 pixels (epsilon) and
at 768 pixels (v) have the same shapes, and so has every fine-tune that changed the objective. See `detect` for those.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from mezzotint.checkpoints.files import TensorInfo
from mezzotint.names import PRESETS

Variant = Literal["text", "inpaint", "edit", "depth", "unclip", "refiner", "upscale"]
Layout = Literal["ldm", "diffusers", "openclip", "transformers", "other"]


class Facts(NamedTuple):
    """What decides about a U-Net. 0 means that it has no such part, None that the source does not say."""

    in_channels: int
    width: int  # channels of the first level
    context: int  # columns that cross-attention reads
    vector: int  # columns of the projected vector: pooled text and sizes, or an image embedding
    labels: int  # rows of the class table
    layers: int | None  # transformer layers in all
    blocks: int | None  # residual blocks in all


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One model of the family: it matches if every fact equals; `decides` tells it from its relatives."""

    preset: str
    decides: Literal["in_channels", "context", "vector", "labels"]
    variant: Variant = "text"
    context: int
    in_channels: int = 4
    width: int = 320
    vector: int = 0
    labels: int = 0
    layers: int = 16
    blocks: int = 22
    is_linear: bool = True  # projections around the transformer are Linear layers, not 1x1 convolutions
    is_sized: bool = False  # the vector is pooled text followed by sizes
    needs: tuple[str, ...] = ("unet", "vae", "text")

    @property
    def title(self) -> str:
        """The model's name for people."""
        return PRESETS[self.preset].title

    @property
    def objective(self) -> Literal["epsilon", "v_prediction"]:
        """What the published model was trained to predict."""
        return PRESETS[self.preset].objective

    @property
    def facts(self) -> Facts:
        """What the U-Net of this model looks like."""
        return Facts(self.in_channels, self.width, self.context, self.vector, self.labels, self.layers, self.blocks)


_XL = ("unet", "vae", "text", "text_2")
_UNCLIP = ("unet", "vae", "text", "image")

# fmt: off
RULES: tuple[Rule, ...] = (
    Rule(preset="sd15", decides="context", context=768, is_linear=False),
    Rule(preset="sd15-inpaint", decides="in_channels", variant="inpaint",
         context=768, in_channels=9, is_linear=False),
    Rule(preset="sd15-ip2p", decides="in_channels", variant="edit",
         context=768, in_channels=8, is_linear=False),
    Rule(preset="sd2", decides="context", context=1024),
    Rule(preset="sd2-inpaint", decides="in_channels", variant="inpaint",
         context=1024, in_channels=9),
    Rule(preset="sd2-depth", decides="in_channels", variant="depth",
         context=1024, in_channels=5),
    Rule(preset="sd2-unclip-l", decides="vector", variant="unclip",
         context=1024, vector=1536, needs=_UNCLIP),
    Rule(preset="sd2-unclip-h", decides="vector", variant="unclip",
         context=1024, vector=2048, needs=_UNCLIP),
    Rule(preset="sdxl", decides="context",
         context=2048, vector=2816, layers=70, blocks=17, is_sized=True, needs=_XL),
    Rule(preset="sdxl-inpaint", decides="in_channels", variant="inpaint",
         context=2048, vector=2816, in_channels=9, layers=70, blocks=17, is_sized=True, needs=_XL),
    Rule(preset="sdxl-ip2p", decides="in_channels", variant="edit",
         context=2048, vector=2816, in_channels=8, layers=70, blocks=17, is_sized=True, needs=_XL),
    Rule(preset="sdxl-refiner", decides="vector", variant="refiner",
         context=1280, vector=2560, width=384, layers=44, is_sized=True),
    Rule(preset="x4-upscaler", decides="labels", variant="upscale",
         context=1024, in_channels=7, width=256, labels=1000),
)
# fmt: on

# (preset, transformer layers left) of published models with layers taken out
DISTILLED = {
    ("sdxl", 34): "SSD-1B",
    ("sdxl", 15): "Segmind Vega",
    ("sdxl", 30): "KOALA-1B",
    ("sdxl", 21): "KOALA-700M",
    ("sd15", 10): "BK-SDM-Base",
    ("sd15", 9): "BK-SDM-Small",
}

# base model of an adapter, by the columns its cross-attention reads
CONTEXTS = {768: "sd15", 1024: "sd2", 2048: "sdxl", 1280: "sdxl-refiner"}


class Mark(NamedTuple):
    """A name that gives a kind of file away."""

    title: str
    pattern: re.Pattern[str]
    component: str = ""
    advice: str = ""

    def find(self, keys: Iterable[str]) -> str | None:
        """The first key that carries the mark."""
        return next((key for key in keys if self.pattern.search(key)), None)


OTHER_FAMILIES = (
    Mark("Flux", re.compile(r"double_blocks\.0\.img_attn\.|^single_transformer_blocks\.0\.attn\.")),
    Mark("Stable Diffusion 3", re.compile(r"joint_blocks\.0\.x_block\.|^transformer_blocks\.0\.attn\.add_q_proj\.")),
    Mark("Stable Cascade", re.compile(r"clip_txt_pooled_mapper\.|effnet_mapper\.0\.")),
    Mark("PixArt", re.compile(r"adaln_single\.linear\.|t_block\.1\.weight")),
    Mark("a video model", re.compile(r"\.time_stack\.|\.temporal_transformer_blocks\.|motion_modules\.0\.")),
    Mark("latent diffusion before Stable Diffusion", re.compile(r"^cond_stage_model\.transformer\.token_emb\.")),
    Mark("a T5 text encoder", re.compile(r"encoder\.block\.0\.layer\.0\.SelfAttention\.")),
)

_ATTACH = "attach it to its base model: there is no whole model in it"

# Tested before the networks, since some of these files hold names of networks too.
ADAPTERS = (
    Mark("IP-Adapter", re.compile(r"^ip_adapter\.|^image_proj(_model)?\."), "ip_adapter", _ATTACH),
    Mark("T2I-Adapter", re.compile(r"^(adapter\.)?body\.0\.(in_conv|resnets|block1)\b"), "t2i_adapter", _ATTACH),
    Mark(
        "LoRA",
        re.compile(
            r"\.lora_(down|up|A|B|mid)\b|\.lora\.(down|up)\.|_lora\.(down|up)\.|\.hada_w1_a$|\.lokr_w[12](_a)?$|"
            r"\.oft_blocks$|\.dora_scale$|^lora_(unet|te\d?)_"
        ),
        "lora",
        _ATTACH,
    ),
    Mark(
        "ControlNet",
        re.compile(r"^(control_model\.)?(input_hint_block|zero_convs)\.0\.|^controlnet_cond_embedding\.conv_in\."),
        "controlnet",
        _ATTACH,
    ),
    Mark(
        "textual inversion",
        re.compile(r"^(emb_params|clip_[lg]|string_to_param\..*|<[^>]*>)$"),
        "embedding",
        "write its token in a prompt: it holds learned words, no network",
    ),
)
CROSS_ATTENTION_INPUT = re.compile(r"attn2[._]to_k(\.weight|\.lora_down\.weight|.*\.(lora_A|down)(\.\w+)?\.weight)$")

_PART = "load it together with the U-Net it belongs to"

# What can stand alone in a file, known by one key. The U-Net is looked for before these.
COMPONENTS: tuple[tuple[Layout, Mark], ...] = (
    ("transformers", Mark("safety checker", re.compile(r"^concept_embeds$"), "safety_checker", "it is not used")),
    (
        "transformers",
        Mark("image encoder", re.compile(r"^(vision_model\.)?embeddings\.patch_embedding\.weight$"), "image", _PART),
    ),
    (
        "openclip",
        Mark("image encoder", re.compile(r"^((\w+\.)*model\.)?visual\.conv1\.weight$"), "image", _PART),
    ),
    (
        "transformers",
        Mark(
            "text encoder",
            re.compile(r"^(transformer\.)?(text_model\.)?embeddings\.token_embedding\.weight$"),
            "text",
            _PART,
        ),
    ),
    ("openclip", Mark("text encoder", re.compile(r"^(model\.)?token_embedding\.weight$"), "text", _PART)),
    (
        "ldm",
        Mark(
            "autoencoder",
            re.compile(r"^(first_stage_model\.)?decoder\.up\.0\.block\.0\.conv1\.weight$"),
            "vae",
            "pass it as the vae of a checkpoint",
        ),
    ),
    (
        "diffusers",
        Mark(
            "autoencoder",
            re.compile(r"^decoder\.up_blocks\.0\.resnets\.0\.conv1\.weight$"),
            "vae",
            "pass it as the vae of a checkpoint",
        ),
    ),
    (
        "other",
        Mark(
            "tiny autoencoder (TAESD)",
            re.compile(r"^((taesd_)?(en|de)coder\.(layers\.)?)?[13]\.conv\.0\.weight$"),
            "taesd",
            "it shows previews; a checkpoint needs its own autoencoder",
        ),
    ),
)
VAE_LEVEL = re.compile(r"decoder\.up(_blocks)?\.\d+\.(block|resnets)\.0\.conv1\.weight$")

# width of a text encoder -> (title, preset)
TEXT_WIDTHS = {
    768: ("CLIP ViT-L: text encoder of SD 1.x, the first of SDXL", "sd15"),
    1024: ("OpenCLIP ViT-H: text encoder of SD 2.x", "sd2"),
    1280: ("OpenCLIP ViT-bigG: second text encoder of SDXL, the only one of its refiner", "sdxl"),
}

# where the parts of a single-file checkpoint begin; the rest are constants of the schedule
PREFIXES = (
    ("model.diffusion_model.", "unet"),
    ("first_stage_model.", "vae"),
    ("cond_stage_model.", "text"),
    ("conditioner.embedders.0.", "text"),
    ("conditioner.embedders.1.", "text_2"),
    ("embedder.", "image"),
    ("depth_model.", "depth"),
    ("model_ema.", "ema"),
)
UNET_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "")


def role_of(key: str) -> str:
    """The part of a single-file checkpoint that a key belongs to; "other" for constants and markers."""
    return next((role for prefix, role in PREFIXES if key.startswith(prefix)), "other")


def shown(tensors: Mapping[str, TensorInfo], key: str) -> str:
    """A key with its shape, as evidence."""
    return f"{key} {list(tensors[key].shape)}" if key in tensors else f"no {key}"


def matrix(info: TensorInfo | None) -> tuple[int, int]:
    """Rows and columns of a matrix; zeros if there is none."""
    return (info.shape[0], info.shape[1]) if info and len(info.shape) == 2 else (0, 0)


class UNetKeys(NamedTuple):
    """Where a U-Net in a file shows its facts: fact -> key, in the file's own names."""

    layout: Layout
    prefix: str
    facts: Facts
    keys: dict[str, str]


# (layout, first convolution, cross-attention, vector, class table, one per residual block, norm of the last attention)
_NAMES: tuple[tuple[Layout, str, str, tuple[str, ...], str, str], ...] = (
    ("ldm", "input_blocks.0.0.weight", ".attn2.to_k.weight", ("label_emb.0.0.weight",), "label_emb.weight",
     ".in_layers.2.weight"),
    ("diffusers", "conv_in.weight", ".attn2.to_k.weight",
     ("add_embedding.linear_1.weight", "class_embedding.linear_1.weight"), "class_embedding.weight", ".conv1.weight"),
)  # fmt: skip


def find_unet(tensors: Mapping[str, TensorInfo]) -> UNetKeys | None:
    """The facts of the U-Net in a file, if there is one with cross-attention."""
    for layout, first, cross, vectors, table, block in _NAMES:
        for prefix in UNET_PREFIXES:
            inside = [key for key in tensors if key.startswith(prefix)] if prefix + first in tensors else []
            attention = [key for key in inside if key.endswith(cross)]
            start = tensors.get(prefix + first)
            if start is None or len(start.shape) != 4 or not attention:
                continue
            vector = next((prefix + name for name in vectors if prefix + name in tensors), prefix + vectors[0])
            keys = {"in_channels": prefix + first, "context": attention[0], "vector": vector, "labels": prefix + table}
            facts = Facts(
                in_channels=start.shape[1],
                width=start.shape[0],
                context=matrix(tensors[attention[0]])[1],
                vector=matrix(tensors.get(vector))[1],
                labels=matrix(tensors.get(prefix + table))[0],
                layers=len(attention),
                blocks=sum(key.endswith(block) for key in inside),
            )
            return UNetKeys(layout, prefix, facts, keys)
    return None
