"""How fast a model runs here, with what was chosen for this processor and as torch runs it; what its levels cost.

In `timings` both ways take turns in this process on the same weights and inputs, in alternating order, and what counts
is the ratio of two times of one round: other work on the machine meets both. Their outputs are compared before anything
is timed. `level_costs` makes whole pictures, one level after the other: its times are for orientation.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mezzotint.errors import RequestError
from mezzotint.kernels.choices import APPROXIMATE, PLAIN
from mezzotint.kernels.execution import Execution
from mezzotint.models.unet import Conditioning
from mezzotint.pipeline.generate import generate
from mezzotint.pipeline.levels import LEVELS, remember_errors
from mezzotint.pipeline.request import Request

if TYPE_CHECKING:
    from mezzotint.pipeline.system import System

PROMPTS = ("a red heart", "a photograph of a street in the rain", "a smiling face", "a green tree on a hill")


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """One part of making a picture at one size. Seconds are medians over rounds; `ratio` is of each round."""

    part: str
    size: int  # pixels of a side
    seconds: float
    plain_seconds: float
    ratio: tuple[float, float, float]  # median, smallest, largest of plain / chosen
    difference: float  # of the outputs, relative

    def recorded(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelCost:
    """What a level or a kind of weights saves and changes, over some pictures; PSNR in dB of 255, medians."""

    level: str
    pictures: int
    seconds: float
    ratio: float  # seconds of the full picture by those of this one
    psnr: float  # against the full picture
    psnr_of_reuse: float  # against a picture with all of the same settings, in which nothing is approximated

    def recorded(self) -> dict[str, object]:
        """As JSON."""
        return asdict(self)


def timings(system: "System", sizes: Sequence[int], rounds: int) -> Iterator[Timing]:
    """A guided U-Net step and a decode at every size, chosen kernels against plain ones."""
    plain = Execution(PLAIN)
    for size in sizes:
        side = size // system.vae.factor
        generator = torch.Generator().manual_seed(0)
        latent = torch.randn(1, system.vae.config.latent_channels, side, side, generator=generator)
        yield _timing("U-Net step", size, _steps(system, latent, generator, plain), rounds)
        scaled = latent.to(system.device, system.dtype)

        def decode(execution: Execution, scaled: Tensor = scaled) -> Tensor:
            return execution.autoencoder(system.vae).decode(scaled).float()

        yield _timing("decode", size, (lambda: decode(system.kernels), lambda: decode(plain)), rounds)


Calls = tuple[Callable[[], Tensor], Callable[[], Tensor]]


def _steps(system: "System", latent: Tensor, generator: torch.Generator, plain: Execution) -> Calls:
    """The network's two rows of guidance, chosen and plain."""
    config, unet = system.unet.config, system.unet

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(system.device, system.dtype)

    extra = config.in_channels - latent.shape[1]
    conditioning = Conditioning(
        context=drawn(2, 77, config.context) if config.context else None,
        vector=drawn(2, config.vector) if config.vector else None,
        label=torch.zeros(2, dtype=torch.long, device=system.device) if config.labels else None,
        guidance=torch.ones(2, device=system.device) if config.guidance else None,
        concat=drawn(2, extra, *latent.shape[2:]) if extra else None,
    )
    x = latent.repeat(2, 1, 1, 1).to(system.device, system.dtype)
    t = torch.full((2,), 500.0, device=system.device)

    def call(execution: Execution) -> Callable[[], Tensor]:
        run = execution.unet(unet)
        prepared = run.prepare(conditioning)
        return lambda: run(x, t, prepared).float()

    return call(system.kernels), call(plain)


@torch.no_grad()
def _timing(part: str, size: int, calls: Calls, rounds: int) -> Timing:
    chosen, plain = calls
    ours, theirs = chosen(), plain()
    difference = float(((ours - theirs).square().sum() / theirs.square().sum()).sqrt())
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for which in ((0, 1), (1, 0))[number % 2]:
            begun = time.perf_counter()
            calls[which]()
            seconds[which].append(time.perf_counter() - begun)
    ratios = [slow / fast for fast, slow in zip(*seconds, strict=True)]
    return Timing(
        part=part,
        size=size,
        seconds=statistics.median(seconds[0]),
        plain_seconds=statistics.median(seconds[1]),
        ratio=(statistics.median(ratios), min(ratios), max(ratios)),
        difference=difference,
    )


def level_costs(system: "System", pictures: int, steps: int | None = None) -> Iterator[LevelCost]:
    """What each level, and each kind of weights that can be had here, saves and changes on this model.

    It is remembered, so that pictures can say it.

    `steps` None are the model's own, and each level's share of them.
    """
    width, height = system.size
    wishes = [
        Request(prompt=PROMPTS[i % len(PROMPTS)], seed=i, steps=steps, width=width, height=height)
        for i in range(pictures)
    ]
    _made(system, wishes[0].model_copy(update={"steps": 1}))  # packs the weights
    full = [_made(system, wish) for wish in wishes]
    found: dict[str, Mapping[str, object]] = {}
    for level in LEVELS:
        if level == "full":
            continue
        made = [_made(system, wish.model_copy(update={"level": level})) for wish in wishes]
        exact = [
            _made(system, wish.model_copy(update={"level": "full", "steps": n, "sampler": s, "spacing": p}))
            for wish, (_, _, (n, s, p)) in zip(wishes, made, strict=True)
        ]
        cost = _cost(level, full, made, exact)
        found[level] = cost.recorded()
        yield cost
    for weights in APPROXIMATE:
        try:
            rounded = system.with_weights(weights)
        except RequestError:  # not on this machine
            continue
        _made(rounded, wishes[0].model_copy(update={"steps": 1}))  # rounds the weights
        cost = _cost(weights, full, [_made(rounded, wish) for wish in wishes], full)
        found[weights] = cost.recorded()
        yield cost
    sha256 = system.identity()["unet"]["sha256"]
    remember_errors(str(sha256), found)


def _cost(level: str, full: "Sequence[Made]", made: "Sequence[Made]", exact: "Sequence[Made]") -> LevelCost:
    return LevelCost(
        level=level,
        pictures=len(made),
        seconds=statistics.median(one[1] for one in made),
        ratio=statistics.median(slow[1] / fast[1] for slow, fast in zip(full, made, strict=True)),
        psnr=statistics.median(psnr(a[0], b[0]) for a, b in zip(full, made, strict=True)),
        psnr_of_reuse=statistics.median(psnr(a[0], b[0]) for a, b in zip(exact, made, strict=True)),
    )


Made = tuple[Image.Image, float, tuple[int | None, str | None, str | None]]


def _made(system: "System", wish: Request) -> Made:
    """A picture, the seconds that it took, and the trajectory that it took: steps, sampler, spacing."""
    begun = time.perf_counter()
    result = generate(system, wish)
    seconds = time.perf_counter() - begun
    request = result.metadata[0]["resolved"]["request"]
    return result.images[0], seconds, (request["steps"], request["sampler"], request["spacing"])


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Peak signal-to-noise ratio in dB; 99 for equal pictures, so that medians stay numbers."""
    a, b = (np.asarray(image, dtype=np.float64) for image in (one, other))
    error = float(np.mean((a - b) ** 2))
    return 10 * math.log10(255**2 / error) if error else 99.0


def drawn_bars(title: str, bars: Mapping[str, float], unit: str) -> str:
    """A bar chart as SVG; shorter is better."""
    height, longest = 26 * len(bars) + 50, max(bars.values())
    rows = [
        f'<text x="200" y="{y + 14}" text-anchor="end">{name}</text>'
        f'<rect x="210" y="{y}" width="{300 * value / longest:.1f}" height="18" fill="#3b6ea5"/>'
        f'<text x="{216 + 300 * value / longest:.1f}" y="{y + 14}">{value:.3g} {unit}</text>'
        for y, (name, value) in zip(range(40, height, 26), bars.items(), strict=False)
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="620" height="{height}" font-family="sans-serif" '
        f'font-size="13"><text x="10" y="22" font-size="15">{title}</text>{"".join(rows)}</svg>\n'
    )
