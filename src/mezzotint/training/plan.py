"""What a recipe costs before it is begun: its data rule, samples, floating-point operations, and hours on hardware.

Operations are counted on the meta device (2 for a multiply-add), forward; a training step is three times that, the
recomputation of gradient checkpointing not included. Frozen encoders are run once per picture, because what they give
is cached; they are told apart. Hours are operations by peak by the share of it that training reaches.

Sources: MosaicML's published throughput of SD 2 training (137 and 36 pictures a second and A100 at 256 and 512 px: 24
and 28 % of peak); peaks are those of the data sheets, dense bfloat16.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mezzotint.data.filters import Bounds
from mezzotint.data.pictures import read_pictures
from mezzotint.errors import ConfigError
from mezzotint.models.clip import TextTower
from mezzotint.models.presets import PRESETS, Preset
from mezzotint.models.unet import Conditioning, Level, UNet, UNetConfig
from mezzotint.models.vae import AutoencoderKL
from mezzotint.training.config import DataConfig, TrainConfig, packaged, parse, stages
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.tiny import shrunk
from mezzotint.training.unet import UNetSettings
from mezzotint.training.views import check_resolution

TOKENS = 77
MOST_VALUES = 3  # of a column, that a rule lists
STEP = 3  # forward passes that one training step is worth
TRIED = UNetConfig(levels=(Level(channels=320, depth=1, heads=8),), middle=None, blocks=1, context=768)
TRIED_SIDE, TRIED_BATCH, TRIES = 16, 2, 3
STATE_BYTES = 4 + 8 + 4 + 2  # per weight: float32 master, two moments, gradient, bfloat16 copy; 4 more for each average


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """FLOP/s in training, and where the number comes from."""

    name: str
    rate: float
    source: str


A100 = Hardware(name="A100", rate=0.28 * 312e12, source="28 % of 312 TFLOP/s, measured by MosaicML on SD 2 at 512 px")
H100 = Hardware(name="H100", rate=0.20 * 989e12, source="20 % of 989 TFLOP/s, assumed")


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """One stage in numbers. Without a preset of the family, operations are unknown (0)."""

    resolution: int
    starts_from: str  # a recipe, "stage N", or "nothing"
    rule: tuple[str, ...]
    objective: str
    text_drop: float
    steps: int
    batch: int
    samples: int
    forward: int  # FLOP of the U-Net for one sample
    encoders: int  # FLOP of the frozen networks for one picture and its caption, once
    flops: float  # of training the U-Net, in all
    parameters: int
    state_bytes: int  # weights, gradients, optimiser and averages; activations come on top
    pictures: int | None = None  # of the data set that pass the rule
    epochs: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A recipe in numbers; `before` are those that it starts from, first one first."""

    recipe: str
    stages: tuple[StagePlan, ...]
    hours: Mapping[str, float]  # by hardware
    before: tuple[str, ...]
    hours_from_nothing: Mapping[str, float]
    hardware: tuple[Hardware, ...]
    sources: Mapping[str, str]

    def to_json(self) -> dict[str, object]:
        """As plain data."""
        return asdict(self)


def plan(name: str, configs: Sequence[TrainConfig], hardware: Sequence[Hardware], data: Path | None = None) -> Plan:
    """The plan of a recipe's stages; with `data`, how many of its pictures pass each stage's rule.

    Raises: ConfigError if a setting is wrong or a resolution does not fit.
    """
    planned = tuple(stage_plan(config, index, data) for index, config in enumerate(configs))
    total = sum(stage.flops for stage in planned)
    before = ancestors(configs)
    earlier = sum(stage_plan(c, i).flops for parent in before for i, c in enumerate(stages(parent)))
    return Plan(
        recipe=name,
        stages=planned,
        hours={h.name: total / h.rate / 3600 for h in hardware},
        before=before,
        hours_from_nothing={h.name: (total + earlier) / h.rate / 3600 for h in hardware},
        hardware=tuple(hardware),
        sources=configs[-1].sources,
    )


def ancestors(configs: Sequence[TrainConfig]) -> tuple[str, ...]:
    """The packaged recipes that these stages start from, and those that they start from, each after its own."""
    found: list[str] = []
    for parent in (config.starts_from for config in configs):
        if parent in packaged() and parent not in found:
            found += [name for name in (*ancestors(stages(parent)), parent) if name not in found]
    return tuple(found)


def stage_plan(config: TrainConfig, index: int, data: Path | None = None) -> StagePlan:
    """One stage in numbers; `index` counts from 0.

    Raises: ConfigError if a setting is wrong or a resolution does not fit.
    """
    if config.part != "unet":
        raise ConfigError(f"--plan: this recipe trains a part {config.part!r}; only U-Nets are planned")
    settings = parse(UNetSettings, config.settings, "recipe.settings")
    forward = encoders = 0
    if settings.preset:
        preset = PRESETS[settings.preset]
        preset = shrunk(preset) if settings.scale == "tiny" else preset
        factor = 2 ** (len(preset.vae.channels) - 1)
        check_resolution(config.data.resolution, factor, config.data.bucket_step)
        forward = unet_flops(preset.unet, config.data.resolution // factor)
        encoders = encoder_flops(preset, config.data.resolution)
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in UNet(settings.unet).parameters())
    samples = config.max_train_steps * config.batch
    pictures = None
    if data is not None:
        every = read_pictures(data)
        pictures = len(every.curated(config.data.filters)[0] if config.data.filters else every)
    return StagePlan(
        resolution=config.data.resolution,
        starts_from=config.starts_from or (f"stage {index}" if index else "nothing"),
        rule=rule_of(config.data),
        objective=settings.diffusion.prediction_type,
        text_drop=settings.diffusion.proportion_empty_prompts,
        steps=config.max_train_steps,
        batch=config.batch,
        samples=samples,
        forward=forward,
        encoders=encoders,
        flops=float(STEP * forward * samples),
        parameters=parameters,
        state_bytes=parameters * (STATE_BYTES + 4 * len(config.ema)),
        pictures=pictures,
        epochs=None if pictures is None else samples / pictures,
    )


def rule_of(data: DataConfig) -> tuple[str, ...]:
    """A data rule as text: `aesthetic ≥ 5`."""
    told = [
        f"{column}: {', '.join(map(repr, values)) if len(values) <= MOST_VALUES else f'one of {len(values)}'}"
        for column, values in data.where.items()
    ]
    told += [f"at least {data.at_least} of one {data.by}"] if data.by else []
    for gate in () if data.filters is None else data.filters.gates():
        bounds: Bounds = gate.bounds
        low = [] if bounds.at_least is None else [f"{gate.name} ≥ {bounds.at_least:g}"]
        high = [] if bounds.at_most is None else [f"{gate.name} ≤ {bounds.at_most:g}"]
        told += low + high
    return tuple(told)


@lru_cache
def unet_flops(config: UNetConfig, side: int) -> int:
    """FLOP of one forward pass for one latent of `side`."""
    with torch.device("meta"):
        unet = UNet(config)
        x, t = torch.empty(1, config.in_channels, side, side), torch.empty(1)
        context = None if config.context is None else torch.empty(1, TOKENS, config.context)
        vector = torch.empty(1, config.vector) if config.vector else None
    return _counted(lambda: unet(x, t, unet.prepare(Conditioning(context, vector))))


@lru_cache
def encoder_flops(preset: Preset, resolution: int) -> int:
    """FLOP of encoding one picture and its caption."""
    with torch.device("meta"):
        autoencoder = AutoencoderKL(preset.vae)
        image = torch.empty(1, preset.vae.image_channels, resolution, resolution)
        towers = [TextTower(config) for config in preset.text]
        ids = torch.zeros(1, TOKENS, dtype=torch.long)
    found = _counted(lambda: autoencoder.moments(image))
    return found + sum(_counted(lambda tower=tower: tower(ids).pooled) for tower in towers)


def measured() -> Hardware:
    """This machine: forward and backward of one level of SD 1's U-Net in bfloat16, the best of a few tries."""
    flops = STEP * TRIED_BATCH * unet_flops(TRIED, TRIED_SIDE)
    unet = UNet(TRIED).to(torch.bfloat16)
    x = torch.randn(TRIED_BATCH, TRIED.in_channels, TRIED_SIDE, TRIED_SIDE).to(torch.bfloat16)
    context = torch.randn(TRIED_BATCH, TOKENS, TRIED.context or 0).to(torch.bfloat16)
    times: list[float] = []
    for _ in range(TRIES):
        begun = time.monotonic()
        with ExplicitAttention():
            output = unet(x, torch.zeros(TRIED_BATCH), unet.prepare(Conditioning(context)))
            torch.autograd.grad(output.sum(), list(unet.parameters()))
        times.append(time.monotonic() - begun)
    rate, threads = flops / min(times), torch.get_num_threads()
    said = f"{rate / 1e12:.2f} TFLOP/s with {threads} threads, measured on one level of SD 1's U-Net"
    return Hardware(name="this machine", rate=rate, source=said)


def _counted(run: Callable[[], Tensor]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()
