"""CLIP: text tower, image tower, and the pair that contrastive training trains.

The towers return every layer's state, because each model of the family reads another one: SD 1 the last (after
`final_norm`), SD 2 that of layer 23 (after `final_norm`), XL the one before the last (as it is), IP-Adapter Plus that
before the last of the image tower. `states[i]` is the output of layer i counted from 1, `states[0]` the embedded input.

Letters: b batch, n tokens, d width, p projected width, s side of the image in pixels.

Source: Radford et al. 2021, arXiv:2103.00020; Dosovitskiy et al. 2021, arXiv:2010.11929 (the image tower).
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from mezzotint.errors import ConfigError
from mezzotint.models.attention import Attention
from mezzotint.models.blocks import ModuleList

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Per channel of an image in [0, 1]: what the image towers' inputs are normalised by."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)

Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TextConfig:
    """What distinguishes one text tower from another. Raises: ConfigError if the heads do not divide the width."""

    width: int
    layers: int
    heads: int
    mlp: int
    activation: Activation
    projection: int | None = None  # width of the pooled output if it is projected
    vocabulary: int = 49408
    positions: int = 77
    bos: int = 49406
    eos: int = 49407
    pad: int = 49407

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageConfig:
    """What distinguishes one image tower from another. Raises: ConfigError if its parts contradict each other."""

    width: int
    layers: int
    heads: int
    mlp: int
    activation: Activation
    projection: int
    patch: int  # side of a patch in pixels
    size: int = 224  # side of the image in pixels

    def __post_init__(self) -> None:
        _check_heads(self.width, self.heads)
        if self.size % self.patch:
            raise ConfigError(f"ImageConfig: size {self.size} is not a multiple of patch {self.patch}")


class TextOutput(NamedTuple):
    """States of all layers, before `final_norm`, and the pooled text."""

    states: tuple[Float[Tensor, "b n d"], ...]
    pooled: Float[Tensor, "b p"]


class ImageOutput(NamedTuple):
    """States of all layers, class token first, and the image's embedding."""

    states: tuple[Float[Tensor, "b n d"], ...]
    embedding: Float[Tensor, "b p"]


class Layer(nn.Module):
    """Self-attention and a two-layer perceptron; each normalised before and added after."""

    def __init__(self, config: TextConfig | ImageConfig) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.width)
        self.self_attention = Attention(config.width, config.heads, has_bias=True)
        self.norm_2 = nn.LayerNorm(config.width)
        self.mlp_in = nn.Linear(config.width, config.mlp)
        self.mlp_out = nn.Linear(config.mlp, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Float[Tensor, "b n d"], *, is_causal: bool) -> Float[Tensor, "b n d"]:
        x = x + self.self_attention(self.norm_1(x), is_causal=is_causal)
        return x + self.mlp_out(self.activation(self.mlp_in(self.norm_2(x))))


class TextTower(nn.Module):
    """Causal transformer over token ids."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.positions, config.width)
        self.layers = ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.projection, bias=False) if config.projection else None

    def forward(self, ids: Int[Tensor, "b n"]) -> TextOutput:
        """Pooled is the last state, normalised, at the first end-of-text token (at the last token if there is none).

        Not at the largest id, as some programs do: tokens of textual inversions have larger ids than end-of-text.
        """
        states = [self.token_embedding(ids) + self.position_embedding.weight[: ids.shape[1]]]
        for layer in self.layers:
            states.append(layer(states[-1], is_causal=True))
        is_end = ids == self.config.eos
        is_end[:, -1] = True
        first = is_end.int().argmax(dim=1)  # the first of equal maxima
        pooled = self.final_norm(states[-1][torch.arange(len(ids), device=ids.device), first])
        return TextOutput(tuple(states), pooled if self.projection is None else self.projection(pooled))


class ImageTower(nn.Module):
    """Transformer over the patches of an image and one class token in front."""

    def __init__(self, config: ImageConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.position_embedding = nn.Embedding(1 + (config.size // config.patch) ** 2, config.width)
        self.norm_in = nn.LayerNorm(config.width)
        self.layers = ModuleList(Layer(config) for _ in range(config.layers))
        self.final_norm = nn.LayerNorm(config.width)
        self.projection = nn.Linear(config.width, config.projection, bias=False)

    def forward(self, image: Float[Tensor, "b 3 s s"]) -> ImageOutput:
        """`image` is in [0, 1], then normalised by CLIP_MEAN and CLIP_STD."""
        patches = self.patch_embedding(image).flatten(2).transpose(1, 2)  # [b n-1 d]
        x = torch.cat([self.class_embedding.expand(len(image), 1, -1), patches], dim=1)  # [b n d]
        states = [self.norm_in(x + self.position_embedding.weight)]
        for layer in self.layers:
            states.append(layer(states[-1], is_causal=False))
        return ImageOutput(tuple(states), self.projection(self.final_norm(states[-1][:, 0])))


class CLIP(nn.Module):
    """Both towers and the learned inverse temperature, as contrastive training needs them."""

    def __init__(self, text: TextConfig, image: ImageConfig) -> None:
        super().__init__()
        if text.projection != image.projection:
            raise ConfigError(f"CLIP: text is projected to {text.projection}, images to {image.projection}")
        self.text = TextTower(text)
        self.image = ImageTower(image)
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))  # similarities are multiplied by its exp

    def forward(
        self, image: Float[Tensor, "b 3 s s"], ids: Int[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b p"], Float[Tensor, "b p"]]:
        """Embeddings of images and of texts, of length 1."""
        return F.normalize(self.image(image).embedding, dim=-1), F.normalize(self.text(ids).pooled, dim=-1)


def normalised(pixels: UInt8[Tensor, "b 3 s s"]) -> Float[Tensor, "b 3 s s"]:
    """0 … 255 as the image tower reads it. float32."""
    mean, std = (pixels.new_tensor(values, dtype=torch.float32)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return (pixels.float() / 255 - mean) / std


def quick_gelu(x: Tensor) -> Tensor:
    """The sigmoid approximation of GELU that OpenAI's models were trained with."""
    return x * torch.sigmoid(1.702 * x)


def initialise(clip: CLIP, generator: torch.Generator) -> None:
    """Draw weights for training from scratch: normal, narrower the wider and, where a residual branch ends, the deeper.

    Weights must be allocated (`clip.to_empty(device=...)` after meta).

    Source: Radford et al. 2021, arXiv:2103.00020, section 2.5, and its released code (`initialize_parameters`).
    """
    for tower in (clip.text, clip.image):
        width, depth = tower.config.width, tower.config.layers
        wide, narrow = width**-0.5, (2 * width * depth) ** -0.5
        stds = {"out": narrow, "mlp_out": narrow, "mlp_in": (2 * width) ** -0.5}
        for name, parameter in tower.named_parameters():
            part, _, kind = name.rpartition(".")
            if kind == "bias":
                nn.init.zeros_(parameter)
            elif "norm" in part:
                nn.init.ones_(parameter)
            else:
                nn.init.normal_(parameter, std=stds.get(part.rpartition(".")[2], wide), generator=generator)
    nn.init.normal_(clip.text.token_embedding.weight, std=0.02, generator=generator)
    nn.init.normal_(clip.text.position_embedding.weight, std=0.01, generator=generator)
    nn.init.constant_(clip.logit_scale, INITIAL_LOGIT_SCALE)


ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": F.gelu}


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ConfigError(f"CLIP: width {width} cannot be split into {heads} heads")
