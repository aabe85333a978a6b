"""The architecture of a model as data, from its configs alone: every part of the U-Net, its size and its operations.

The network is built on the meta device, which holds no weights; a call of it there counts operations, a multiply-add as
two. So the largest model of the family takes a second and no memory.

Letters: h w rows and columns of the latent at a level.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.checkpoints.checkpoint import read
from mezzotint.checkpoints.translate import network
from mezzotint.errors import CheckpointError, RequestError
from mezzotint.explain.watch import parts
from mezzotint.models.clip import ImageConfig, TextConfig
from mezzotint.models.presets import PRESETS
from mezzotint.models.unet import Conditioning, Level, UNet, UNetConfig
from mezzotint.models.vae import VAEConfig
from mezzotint.names import PRESETS as DEFAULTS

TOKENS = 77


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """A part of the U-Net that runs as one: where it is, what it makes of how many channels, what it costs."""

    name: str
    kind: str  # conv, block, middle, down (half the resolution), up (double)
    h: int
    w: int
    channels_in: int
    channels: int
    layers: int  # transformer layers; 0 = no attention
    heads: int
    parameters: int
    flops: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One resolution on the way down or up, or the middle: its blocks together."""

    way: str  # down, middle, up
    h: int
    w: int
    channels: int
    blocks: int
    layers: tuple[int, ...]  # of each block
    heads: int
    parameters: int
    flops: int
    resample: str = ""  # "down" or "up" where the resolution changes behind it

    @property
    def attention(self) -> str:
        """What stands behind each ResBlock, in words."""
        if not any(self.layers):
            return "no attention"
        each = set(self.layers)
        count = str(max(each)) if len(each) == 1 else ", ".join(map(str, self.layers))
        return f"{count} {'layer' if each == {1} else 'layers'}, {self.heads} heads"


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A model: its U-Net piece by piece, and what stands around it. `facts` are what models are compared by."""

    name: str
    title: str
    objective: str
    width: int
    height: int
    pieces: tuple[Piece, ...]
    rows: tuple[Row, ...]
    parameters: int  # of the U-Net, all
    flops: int  # of one evaluation with one row
    facts: dict[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> dict[str, Any]:  # Any: JSON
        """As plain data."""
        return asdict(self)


def architecture(source: str) -> Architecture:
    """Of a preset by its name, or of a checkpoint: a folder or a file, of which only the shapes are read.

    Raises: CheckpointError if it cannot be read; RequestError if there is neither a preset nor a file of this name.
    """
    if source in PRESETS and not Path(source).exists():
        preset, defaults = PRESETS[source], DEFAULTS[source]
        return described(
            source, defaults.title, defaults.objective, preset.unet, preset.vae, preset.text, preset.image,
            (defaults.width, defaults.height),
        )  # fmt: skip
    path = Path(source).expanduser()
    if not path.exists():
        raise RequestError(f"{source!r}: no such file or folder, and no preset; presets: {', '.join(PRESETS)}")
    found = read(path)
    if found.unet is None:
        raise CheckpointError(f"{source}: holds no U-Net; there is nothing to draw")
    unet = cast("UNetConfig", found.unet.config)  # the role says which config
    vae = cast("VAEConfig", found.vae.config) if found.vae else PRESETS[found.preset].vae
    text = tuple(cast("TextConfig", part.config) for part in found.text)
    image = cast("ImageConfig", found.image.config) if found.image else None
    defaults = DEFAULTS[found.preset]
    side = (found.sample_size or 0) * vae.factor
    size = (side, side) if side else (defaults.width, defaults.height)
    name = path.stem if path.is_file() else path.resolve().name
    return described(name, defaults.title, found.objective, unet, vae, text, image, size)


def described(
    name: str,
    title: str,
    objective: str,
    unet: UNetConfig,
    vae: VAEConfig,
    text: Sequence[TextConfig],
    image: ImageConfig | None,
    size: tuple[int, int],
) -> Architecture:
    """The architecture that these configs make, at pictures of `size`, width and height."""
    width, height = size
    h, w = height // vae.factor, width // vae.factor
    pieces, flops = _pieces(unet, h, w)
    rows = _rows(unet, pieces)
    parameters = sum(piece.parameters for piece in pieces)
    return Architecture(
        name=name,
        title=title,
        objective=objective,
        width=width,
        height=height,
        pieces=pieces,
        rows=rows,
        parameters=parameters,
        flops=flops,
        facts=_facts(unet, vae, text, image, objective, parameters, flops, (width, height, h, w)),
    )


def count(module: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


@lru_cache
def _pieces(config: UNetConfig, h: int, w: int) -> tuple[tuple[Piece, ...], int]:
    """Every part with size and operations, first what words and level are turned into; and all operations."""
    with torch.device("meta"):
        unet = UNet(config)
        x, t = torch.empty(1, config.in_channels, h, w), torch.empty(1)
        told = Conditioning(
            context=None if config.context is None else torch.empty(1, TOKENS, config.context),
            vector=torch.empty(1, config.vector) if config.vector else None,
            label=torch.zeros(1, dtype=torch.long) if config.labels else None,
            guidance=torch.empty(1) if config.guidance else None,
        )
    found: list[Piece] = []
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prepared = unet.prepare(told)
        keys = counter.get_total_flops()
        with _counted(unet, counter, found):
            unet(x, t, prepared)
        total = counter.get_total_flops()
    inside = sum(piece.parameters for piece in found)
    emb = Piece(
        name="level and vector", kind="embedding", h=1, w=1, channels_in=config.levels[0].channels, channels=config.emb,
        layers=0, heads=0, parameters=count(unet) - inside, flops=total - keys - sum(piece.flops for piece in found),
    )  # fmt: skip
    words = Piece(
        name="keys and values of the words", kind="prepared", h=1, w=TOKENS, channels_in=config.context or 0,
        channels=config.context or 0, layers=0, heads=0, parameters=0, flops=keys,
    )  # fmt: skip
    return (words, emb, *found), total


@contextmanager
def _counted(unet: UNet, counter: FlopCounterMode, into: list[Piece]) -> Generator[None]:
    """Within it, a call of the U-Net leaves a piece for every part."""
    begun: dict[str, int] = {}
    at = {name: level for name, level in _levels(unet.config)}

    def before(name: str, part: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        begun[name] = counter.get_total_flops()

    def after(name: str, part: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        level = at.get(name)
        attn = getattr(part, "attn", None)
        layers = 0 if attn is None else len(attn.layers)
        kind = "middle" if name == "middle" else "block" if "blocks" in name else "conv"
        if "resample" in name:
            kind = name.partition(".")[0]
        into.append(
            Piece(
                name=name,
                kind=kind,
                h=output.shape[-2],
                w=output.shape[-1],
                channels_in=arguments[0].shape[1],
                channels=output.shape[1],
                layers=layers,
                heads=level.heads if level is not None and layers else 0,
                parameters=count(part),
                flops=counter.get_total_flops() - begun[name],
            )
        )

    hooks = [
        hook
        for name, part in parts(unet)
        for hook in (
            part.register_forward_pre_hook(partial(before, name)),
            part.register_forward_hook(partial(after, name)),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _levels(config: UNetConfig) -> list[tuple[str, Level]]:
    """The level that every block belongs to, by the block's name."""
    down = [(f"down.{i}.blocks.{j}", level) for i, level in enumerate(config.levels) for j in range(config.blocks)]
    up = [
        (f"up.{i}.blocks.{j}", level) for i, level in enumerate(reversed(config.up)) for j in range(config.blocks + 1)
    ]
    return [*down, *([("middle", config.middle)] if config.middle else []), *up]


def _rows(config: UNetConfig, pieces: Sequence[Piece]) -> tuple[Row, ...]:
    """The blocks of each resolution together, in the order in which they run."""
    rows: list[Row] = []
    places = [("down", i) for i in range(len(config.levels))]
    places += [("middle", 0)] if config.middle else []
    places += [("up", i) for i in range(len(config.up))]
    for way, i in places:
        begins = "middle" if way == "middle" else f"{way}.{i}."
        mine = [piece for piece in pieces if piece.name == begins or piece.name.startswith(begins)]
        blocks = [piece for piece in mine if piece.kind in {"block", "middle"}]
        rows.append(
            Row(
                way=way,
                h=blocks[0].h,
                w=blocks[0].w,
                channels=blocks[0].channels,
                blocks=2 if way == "middle" else len(blocks),
                layers=tuple(piece.layers for piece in blocks),
                heads=max(piece.heads for piece in blocks),
                parameters=sum(piece.parameters for piece in mine),
                flops=sum(piece.flops for piece in mine),
                resample=next((piece.kind for piece in mine if piece.kind in {"down", "up"}), ""),
            )
        )
    return tuple(rows)


def _facts(
    unet: UNetConfig,
    vae: VAEConfig,
    text: Sequence[TextConfig],
    image: ImageConfig | None,
    objective: str,
    parameters: int,
    flops: int,
    sizes: tuple[int, int, int, int],
) -> dict[str, str]:
    """What models of the family differ in, in words."""
    width, height, h, w = sizes
    levels, middle = unet.levels, unet.middle
    heads = [str(level.heads) if level.depth else "–" for level in levels]
    return {
        "picture": f"{width} x {height}",
        "latent": f"{vae.latent_channels} x {h} x {w}",
        "levels": str(len(levels)),
        "downsamplings": str(len(levels) - 1),
        "channels": ", ".join(str(level.channels) for level in levels),
        "attention at": ", ".join("yes" if level.depth else "no" for level in levels),
        "layers per block": ", ".join(str(level.depth) for level in levels),
        "layers in the middle": str(middle.depth) if middle else "no middle",
        "heads": ", ".join(heads),
        "width of a head": ", ".join(str(lv.channels // lv.heads) if lv.depth else "–" for lv in levels),
        "context width": str(unet.context or "none"),
        "vector": str(unet.vector or "none"),
        "input channels": str(unet.in_channels),
        "objective": objective,
        "text towers": "; ".join(f"{t.layers} x {t.width}, {_millions(t)}" for t in text) or "none",
        "image tower": f"{image.layers} x {image.width}, {_millions(image)}" if image else "none",
        "autoencoder": f"f{vae.factor}, {_size(vae):,}",
        "U-Net parameters": f"{parameters:,}",
        "GFLOP an evaluation": f"{flops / 1e9:,.1f}",
    }


@lru_cache
def _size(config: TextConfig | ImageConfig | VAEConfig) -> int:
    with torch.device("meta"):
        return count(network(config))


def _millions(config: TextConfig | ImageConfig) -> str:
    return f"{_size(config) / 1e6:,.2f} M"
