"""U-Net of the whole family (Stable Diffusion 1.x, 2.x, XL, XL refiner, x4 upscaler…): one class, a config each.

Two calls: `prepared = unet.prepare(conditioning)` once per prompt computes the keys and values of all cross-attention
layers and what the conditioning adds to the time embedding; `unet(x, t, prepared)` once per step does the rest. Any
number of rows and columns works. Under `torch.device("meta")` a new one takes no memory; load with `assign=True`.

Letters: b batch, c channels, h w rows and columns, n context tokens, d their width, v vector width, p pooled width,
k number of sizes, e = 4 * channels of the first level.

Source: Rombach et al. 2022, arXiv:2112.10752; Podell et al. 2023, arXiv:2307.01952 (depth per level, sizes);
Meng et al. 2023, arXiv:2210.03142 (guidance embedding).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]

from mezzotint.errors import ConfigError
from mezzotint.models.attention import LayerKeys, Transformer
from mezzotint.models.blocks import Downsample, ModuleList, ResBlock, Upsample

RES_NORM_EPS = 1e-5
MAX_PERIOD = 10_000
SIZE_WIDTH = 256  # width of the sinusoid of each size


@dataclass(frozen=True, kw_only=True, slots=True)
class Level:
    """One resolution of the U-Net; each level below the first halves h and w."""

    channels: int
    depth: int | tuple[int, ...] = 0  # transformer layers after every ResBlock, or after each; 0 = convolution only
    heads: int = 1  # attention heads of those layers
    only_cross: bool = False  # their self-attention looks at the context, too

    def __post_init__(self) -> None:
        if self.channels % self.heads:
            raise ConfigError(f"Level: {self.channels} channels cannot be split into {self.heads} heads")

    def depths(self, blocks: int) -> tuple[int, ...]:
        """Transformer layers after each of `blocks` ResBlocks."""
        depths = (self.depth,) * blocks if isinstance(self.depth, int) else self.depth
        if len(depths) != blocks:
            raise ConfigError(f"Level: depth {self.depth} names {len(depths)} blocks, the U-Net has {blocks} here")
        return depths


@dataclass(frozen=True, kw_only=True, slots=True)
class UNetConfig:
    """What distinguishes one U-Net of the family from another.

    Raises: ConfigError if its parts contradict each other.
    """

    levels: tuple[Level, ...]  # highest resolution first
    up_levels: tuple[Level, ...] | None = None  # the way up, also highest resolution first; None = like `levels`
    blocks: int = 2  # ResBlocks per level on the way down; one more on the way up
    middle: Level | None  # None = nothing between down and up
    in_channels: int = 4  # of x and concat together
    out_channels: int = 4
    context: int | None  # width of the text tokens; None = no cross-attention
    vector: int = 0  # width of Conditioning.vector; 0 = none
    labels: int = 0  # classes of Conditioning.label; 0 = none
    guidance: int = 0  # width of the sinusoid of Conditioning.guidance; 0 = none
    is_linear: bool = False  # only how files store proj_in and proj_out: Linear or 1x1 convolution
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if not self.levels or len(self.up) != len(self.levels):
            raise ConfigError(f"UNetConfig: {len(self.levels)} levels down but {len(self.up)} up; both need at least 1")
        parts = [*self.levels, *self.up, *([self.middle] if self.middle else [])]
        for level in parts:
            if level.channels % self.norm_groups:
                raise ConfigError(f"UNetConfig: {level.channels} channels cannot form {self.norm_groups} norm_groups")
            if level.only_cross and self.context is None:
                raise ConfigError("UNetConfig: a level with only_cross needs a context width")
        if self.middle and self.middle.channels != self.levels[-1].channels:
            below = self.levels[-1].channels
            raise ConfigError(f"UNetConfig: middle has {self.middle.channels} channels, the lowest level {below}")
        for level in self.levels:
            level.depths(self.blocks)
        for level in self.up:
            level.depths(self.blocks + 1)
        if self.middle:
            self.middle.depths(1)

    @property
    def up(self) -> tuple[Level, ...]:
        """The levels of the way up, highest resolution first."""
        return self.levels if self.up_levels is None else self.up_levels

    @property
    def emb(self) -> int:
        """Width of the time embedding."""
        return 4 * self.levels[0].channels


class Control(NamedTuple):
    """What a ControlNet adds: to every skip, first to last as the way down makes them, and to the middle's output."""

    down: tuple[Tensor, ...]
    middle: Tensor


class Conditioning(NamedTuple):
    """All that the U-Net is told besides x and t."""

    context: Float[Tensor, "b n d"] | None  # text tokens; None only for a U-Net without cross-attention
    vector: Float[Tensor, "b v"] | None = None  # XL: `sized_vector`; unCLIP: noisy image embedding and its level
    label: Int[Tensor, "b"] | None = None  # x4 upscaler: noise level of the image
    guidance: Float[Tensor, "b"] | None = None  # guidance scale that a distilled model imitates, 1 = off
    concat: Float[Tensor, "b k h w"] | None = None  # put behind x: mask and masked latent, image latent, depth
    control: Control | None = None


class Prepared(NamedTuple):
    """A conditioning after everything that does not depend on x and t has been computed."""

    keys: tuple[tuple[LayerKeys, ...], ...]  # per block in execution order, per transformer layer
    emb: Float[Tensor, "b e"] | None = None  # of vector and label, added to the time embedding
    guidance: Float[Tensor, "b c"] | None = None  # added to the sinusoid of t
    concat: Float[Tensor, "b k h w"] | None = None
    control: Control | None = None


class Block(nn.Module):
    """A ResBlock and, if `depth` is not 0, a transformer."""

    def __init__(self, channels: int, level: Level, depth: int, config: UNetConfig) -> None:
        super().__init__()
        self.res = _res_block(channels, level.channels, config)
        self.attn = _transformer(level, depth, config) if depth else None

    def prepare(self, context: Tensor | None) -> tuple[LayerKeys, ...]:
        """Keys and values of the transformer's layers."""
        return () if self.attn is None else self.attn.prepare(context)

    def forward(self, x: Tensor, emb: Tensor, keys: tuple[LayerKeys, ...]) -> Tensor:
        h = self.res(x, emb)
        return h if self.attn is None else self.attn(h, keys)


class Middle(nn.Module):
    """Two ResBlocks with, if the level's depth is not 0, a transformer between them."""

    def __init__(self, level: Level, config: UNetConfig) -> None:
        super().__init__()
        (depth,) = level.depths(1)
        self.res_in = _res_block(level.channels, level.channels, config)
        self.attn = _transformer(level, depth, config) if depth else None
        self.res_out = _res_block(level.channels, level.channels, config)

    def prepare(self, context: Tensor | None) -> tuple[LayerKeys, ...]:
        """Keys and values of the transformer's layers."""
        return () if self.attn is None else self.attn.prepare(context)

    def forward(self, x: Tensor, emb: Tensor, keys: tuple[LayerKeys, ...]) -> Tensor:
        h = self.res_in(x, emb)
        return self.res_out(h if self.attn is None else self.attn(h, keys), emb)


class DownLevel(nn.Module):
    """The blocks of one resolution, then half the resolution (not after the last level)."""

    def __init__(self, channels: int, level: Level, config: UNetConfig, *, is_last: bool) -> None:
        super().__init__()
        widths = [channels] + [level.channels] * (config.blocks - 1)
        depths = level.depths(config.blocks)
        self.blocks = ModuleList(Block(c, level, depth, config) for c, depth in zip(widths, depths, strict=True))
        self.resample = None if is_last else Downsample(level.channels)


class UpLevel(nn.Module):
    """The blocks of one resolution, each fed a skip, then double the resolution (not after the last level)."""

    def __init__(self, channels: int, skips: Sequence[int], level: Level, config: UNetConfig, *, is_last: bool) -> None:
        super().__init__()
        widths = [channels] + [level.channels] * config.blocks
        depths = level.depths(config.blocks + 1)
        self.blocks = ModuleList(
            Block(c + skip, level, depth, config) for c, skip, depth in zip(widths, skips, depths, strict=True)
        )
        self.resample = None if is_last else Upsample(level.channels)


class UNet(nn.Module):
    """The network that is asked at every step."""

    is_checkpointed = False
    """True: blocks are computed again in the backward pass instead of being kept; less memory, a third more time."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        first = config.levels[0].channels
        self.time_in = nn.Linear(first, config.emb)
        self.time_out = nn.Linear(config.emb, config.emb)
        self.vector_in = nn.Linear(config.vector, config.emb) if config.vector else None
        self.vector_out = nn.Linear(config.emb, config.emb) if config.vector else None
        self.label_embedding = nn.Embedding(config.labels, config.emb) if config.labels else None
        self.guidance_in = nn.Linear(config.guidance, first, bias=False) if config.guidance else None

        self.conv_in = nn.Conv2d(config.in_channels, first, 3, padding=1)
        channels, skips = first, [first]
        self.down = ModuleList[DownLevel]()
        for level in config.levels:
            is_last = len(self.down) == len(config.levels) - 1
            self.down.append(DownLevel(channels, level, config, is_last=is_last))
            channels = level.channels
            skips += [channels] * (config.blocks + (not is_last))
        self.middle = Middle(config.middle, config) if config.middle else None
        self.up = ModuleList[UpLevel]()
        for level in reversed(config.up):
            is_last = len(self.up) == len(config.up) - 1
            taken = [skips.pop() for _ in range(config.blocks + 1)]
            self.up.append(UpLevel(channels, taken, level, config, is_last=is_last))
            channels = level.channels
        self.norm_out = nn.GroupNorm(config.norm_groups, channels, eps=RES_NORM_EPS)
        self.conv_out = nn.Conv2d(channels, config.out_channels, 3, padding=1)

    def prepare(self, conditioning: Conditioning) -> Prepared:
        """Everything that depends on the conditioning alone.

        Raises: ConfigError if the conditioning lacks what this U-Net needs, has what it cannot use, or a wrong width.
        """
        context, vector, label, guidance, concat, control = conditioning
        _check("context", context, self.config.context or 0)
        _check("vector", vector, self.config.vector)
        _check("label", label, self.config.labels, is_width=False)
        _check("guidance", guidance, self.config.guidance, is_width=False)
        emb = None
        if self.vector_in is not None and self.vector_out is not None:
            emb = self.vector_out(F.silu(self.vector_in(vector)))
        if self.label_embedding is not None:
            emb = self.label_embedding(label) if emb is None else emb + self.label_embedding(label)
        if self.guidance_in is not None and guidance is not None:
            sinusoid = guidance_embedding(guidance, self.config.guidance)
            guidance = self.guidance_in(sinusoid.to(self.guidance_in.weight.dtype))
        return Prepared(tuple(block.prepare(context) for block in self.steps()), emb, guidance, concat, control)

    def steps(self) -> Iterator[Block | Middle]:
        """Whatever holds transformers, in execution order: the order of `Prepared.keys`."""
        for level in self.down:
            yield from level.blocks
        if self.middle is not None:
            yield self.middle
        for level in self.up:
            yield from level.blocks

    def forward(
        self, x: Float[Tensor, "b c h w"], t: Float[Tensor, "b"], prepared: Prepared
    ) -> Float[Tensor, "b o h w"]:
        """The network's output F for x already scaled by c_in. `t` is in training steps, float32, may be fractional."""
        if prepared.concat is not None:
            x = torch.cat([x, prepared.concat], dim=1)
        if x.shape[1] != self.config.in_channels:
            raise ConfigError(f"x and concat: {x.shape[1]} channels together → {self.config.in_channels} expected")

        sinusoid = timestep_embedding(t, self.config.levels[0].channels).to(x.dtype)
        if prepared.guidance is not None:
            sinusoid = sinusoid + prepared.guidance
        emb = self.time_out(F.silu(self.time_in(sinusoid)))
        if prepared.emb is not None:
            emb = emb + prepared.emb
        emb = F.silu(emb)  # every ResBlock starts with it

        keys = iter(prepared.keys)
        h = self.conv_in(x)
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = self._run(block, h, emb, next(keys))
                skips.append(h)
            if level.resample is not None:
                h = level.resample(h)
                skips.append(h)
        if self.middle is not None:
            h = self._run(self.middle, h, emb, next(keys))
        if prepared.control is not None:
            skips = [skip + added for skip, added in zip(skips, prepared.control.down, strict=True)]
            h = h + prepared.control.middle
        for level in self.up:
            for block in level.blocks:
                h = self._run(block, torch.cat([h, skips.pop()], dim=1), emb, next(keys))
            if level.resample is not None:
                h = level.resample(h, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.norm_out(h)))

    def _run(self, block: Block | Middle, x: Tensor, emb: Tensor, keys: tuple[LayerKeys, ...]) -> Tensor:
        if self.is_checkpointed and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(block, x, emb, keys, use_reentrant=False))  # torch leaves it untyped
        return block(x, emb, keys)


def timestep_embedding(t: Float[Tensor, "b"], dim: int) -> Float[Tensor, "b dim"]:
    """Cosines, then sines, of t at dim/2 frequencies from 1 down to nearly 1/10,000. float32 for any t.

    Source: Ho et al. 2020, arXiv:2006.11239; cosines first as in the latent-diffusion code, and so in every checkpoint.
    """
    exponent = -math.log(MAX_PERIOD) * torch.arange(dim // 2, dtype=torch.float32, device=t.device) / (dim // 2)
    angle = t.float()[:, None] * exponent.exp()  # [b dim/2]
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def guidance_embedding(guidance: Float[Tensor, "b"], dim: int) -> Float[Tensor, "b dim"]:
    """Sines, then cosines, of 1000 * (guidance - 1) at dim/2 frequencies from 1 down to exactly 1/10,000. float32.

    Source: Luo et al. 2023, arXiv:2310.04378 (latent consistency models), their released code.
    """
    exponent = -math.log(MAX_PERIOD) * torch.arange(dim // 2, dtype=torch.float32, device=guidance.device)
    angle = 1000 * (guidance.float() - 1)[:, None] * (exponent / (dim // 2 - 1)).exp()  # [b dim/2]
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sized_vector(pooled: Float[Tensor, "b p"], ids: Float[Tensor, "b k"]) -> Float[Tensor, "b v"]:
    """`Conditioning.vector` of XL: the pooled text, then a sinusoid of width 256 for each of k numbers; v = p + 256 k.

    Sizes are in pixels. Order, base: original height, original width, crop top, crop left, target height, target width.
    Refiner: original height, original width, crop top, crop left, aesthetic score (6.0; for the negative prompt 2.5).

    Source: Podell et al. 2023, arXiv:2307.01952, section 2.2.
    """
    sizes = timestep_embedding(ids.flatten(), SIZE_WIDTH).view(len(ids), -1)  # [b 256k]
    return torch.cat([pooled, sizes.to(pooled.dtype)], dim=-1)


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Draw weights for training from scratch: PyTorch's defaults, but 0 for whatever ends a residual branch of a U-Net.

    A U-Net then starts as the function 0. Weights must be allocated (`module.to_empty(device=...)` after meta).

    Source: the latent-diffusion code (`zero_module`); He et al. 2015, arXiv:1502.01852 (the defaults).
    """
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Conv2d):
            nn.init.kaiming_uniform_(part.weight, a=math.sqrt(5), generator=generator)
            if part.bias is not None:
                bound = 1 / math.sqrt(part.weight[0].numel())
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)
        elif isinstance(part, nn.Embedding):
            nn.init.normal_(part.weight, generator=generator)
        elif isinstance(part, nn.GroupNorm | nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
    ends: list[nn.Module] = [part.proj_out for part in module.modules() if isinstance(part, Transformer)]
    ends += [part.conv_2 for part in module.modules() if isinstance(part, ResBlock) and part.emb is not None]
    ends += [part.conv_out for part in module.modules() if isinstance(part, UNet)]
    for end in ends:
        for parameter in end.parameters():
            nn.init.zeros_(parameter)


def _res_block(channels: int, out_channels: int, config: UNetConfig) -> ResBlock:
    return ResBlock(channels, out_channels, emb=config.emb, norm_groups=config.norm_groups, norm_eps=RES_NORM_EPS)


def _transformer(level: Level, depth: int, config: UNetConfig) -> Transformer:
    return Transformer(
        level.channels,
        depth,
        level.heads,
        config.context,
        only_cross=level.only_cross,
        norm_groups=config.norm_groups,
    )


def _check(name: str, value: Tensor | None, needed: int, *, is_width: bool = True) -> None:
    """Refuse a part of the conditioning that this U-Net needs and lacks, or has and cannot use."""
    if (value is None) == bool(needed):
        found, expected = ("none", "one") if value is None else ("one", "none")
        raise ConfigError(f"Conditioning: {name} ({found} → {expected} expected by this U-Net)")
    if value is not None and is_width and value.shape[-1] != needed:
        raise ConfigError(f"Conditioning: {name} has width {value.shape[-1]}, this U-Net expects {needed}")
