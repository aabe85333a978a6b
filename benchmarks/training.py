"""How many samples a second a U-Net trains on, next to an equal diffusers U-Net in the way of its stock script.

Measures: whole optimisation steps of icons-unet (batch 64, its latents of 4x16x16, 77 text tokens), from cached
latents and text states to changed weights. Ours is the package's own loop with everything that the recipe asks for:
bfloat16 copies of float32 weights, keyed noise, stratified timesteps, min-SNR weights, clipping, two averages. Theirs
does what train_text_to_image.py does unless it is told otherwise: float32, torch.optim.AdamW, uniform timesteps,
clipping, no average; once so, and once with its --mixed_precision=bf16, which is autocast. Each runs in a process of
its own; they take turns, the others waiting meanwhile, so that all see the same machine. The number is the median over
turns, the ratio the median of the turns' ratios.
Not measured: reading pictures, autoencoder, text encoder (the stock script runs both at every step; here theirs is
given cached ones, too), validation, saving.
What would make the numbers lie: a machine without bfloat16 instructions, other work on it that comes and goes between
turns (see load and spread), a batch too small to fill matrix units.

    OMP_NUM_THREADS=1 python benchmarks/training.py [--turns 9] [--steps 3]

Last line of stdout: the same as one JSON object; also written to benchmarks/results/training.json.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mezzotint.checkpoints.config import write_unet
from mezzotint.data.order import keyed
from mezzotint.diffusion.loss import snr_weight, squared_error
from mezzotint.kernels.pages import keep_freed
from mezzotint.kernels.training import possible
from mezzotint.models.unet import Conditioning, UNet, UNetConfig, initialise
from mezzotint.training.config import TrainConfig, parse, stages
from mezzotint.training.part import Batch, Loss, Part
from mezzotint.training.run import Run
from mezzotint.training.step import examples
from mezzotint.training.unet import UNetSettings

RESULTS = Path(__file__).parent / "results" / "training.json"
SAMPLES, TOKENS, SIDE = 512, 77, 16
BATCH = 64
WARM_UP = 2  # steps


def data(context: int) -> tuple[Tensor, Tensor]:
    """Latents and text states that stand for a cached data set."""
    latents = torch.randn(SAMPLES, 4, SIDE, SIDE, generator=keyed("latents"))
    return latents, torch.randn(SAMPLES, TOKENS, context, generator=keyed("texts"))


def settings() -> tuple[TrainConfig, UNetSettings, UNetConfig]:
    """The recipe that both train."""
    config = replace(stages("icons-unet")[-1], train_batch_size=BATCH, gradient_accumulation_steps=1)
    own = parse(UNetSettings, config.settings)
    return config, own, own.unet


class CachedPart:
    """The U-Net of the recipe on made-up latents and texts; what a step computes is what `UNetPart` computes."""

    count, groups = SAMPLES, None

    def __init__(self, config: TrainConfig, own: UNetSettings) -> None:
        self.config, self.settings, self.schedule = config, own.diffusion, own.diffusion.schedule()
        unet = UNet(own.unet)
        initialise(unet, keyed("weights"))
        self.players: dict[str, nn.Module] = {"unet": unet}
        self.latents, self.texts = data(own.unet.context or 0)

    def loss(self, player: str, networks: Mapping[str, nn.Module], batch: Batch) -> Loss:
        """Weighted squared error of the objective."""
        network = networks[player]
        assert isinstance(network, UNet)
        dtype = network.conv_in.weight.dtype
        shown = examples(self.settings, self.schedule, self.latents[batch.samples], batch, self.config.seed)
        context = torch.where(shown.dropped[:, None, None], 0.0, self.texts[batch.samples]).to(dtype)
        output = network(shown.x.to(dtype), shown.t.float(), network.prepare(Conditioning(context)))
        weight = snr_weight(self.settings.prediction_type, self.schedule, shown.t, self.settings.snr_gamma)
        return Loss(squared_error(output, shown.wanted, weight).mean(), {})


def ours() -> tuple[Callable[[], object], int]:
    """A step of the package's loop, and how many numbers it trains."""
    config, own, _ = settings()
    keep_freed()
    part = cast(Part, CachedPart(config, own))  # neither validated nor exported
    run = Run(part, config, kernels=possible())
    return run.take_step, sum(weight.numel() for weight in run.weights())


def theirs(*, is_autocast: bool) -> tuple[Callable[[], object], int]:
    """A step as the stock script takes it."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    config, _, shape = settings()
    words = {name: value for name, value in write_unet(shape, is_sized=False).items() if not name.startswith("_")}
    network = UNet2DConditionModel.from_config(words)
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    latents, texts = data(shape.context or 0)
    generator = torch.Generator().manual_seed(0)
    network.train()

    def step() -> None:
        chosen = torch.randint(SAMPLES, (config.batch,), generator=generator)
        latent, noise = latents[chosen], torch.randn(config.batch, 4, SIDE, SIDE, generator=generator)
        t = torch.randint(1000, (config.batch,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=is_autocast):
            output = network(scheduler.add_noise(latent, noise, t), t, texts[chosen], return_dict=False)[0]
        loss = F.mse_loss(output.float(), scheduler.get_velocity(latent, noise, t).float(), reduction="mean")
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step, sum(weight.numel() for weight in network.parameters())


CONTENDERS: dict[str, Callable[[], tuple[Callable[[], object], int]]] = {
    "ours": ours,
    "theirs": lambda: theirs(is_autocast=False),
    "theirs, autocast": lambda: theirs(is_autocast=True),
}


def work(contender: str) -> None:
    """The child process: a turn of as many steps as each line of stdin says, answered by their seconds."""
    step, count = CONTENDERS[contender]()
    for _ in range(WARM_UP):
        step()
    print(count, flush=True)
    for line in sys.stdin:
        begun = time.perf_counter()
        for _ in range(int(line)):
            step()
        print(time.perf_counter() - begun, flush=True)


def main() -> None:
    """Let both take turns and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3, help="steps a turn")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contender:
        return work(asked.contender)
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, "--contender", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in CONTENDERS
    }

    def answer(name: str) -> str:
        pipe = children[name].stdout
        assert pipe is not None
        return pipe.readline()

    counts = {name: int(answer(name)) for name in children}  # both have warmed up
    assert len(set(counts.values())) == 1, counts
    speeds: dict[str, list[float]] = {name: [] for name in children}
    for turn in range(asked.turns):
        for name in sorted(children, reverse=bool(turn % 2)):
            pipe = children[name].stdin
            assert pipe is not None
            print(asked.steps, file=pipe, flush=True)
            speeds[name].append(asked.steps * BATCH / float(answer(name)))
        print({name: round(found[-1], 1) for name, found in speeds.items()}, file=sys.stderr)
    for child in children.values():
        child.communicate()
    ratios = {
        name: [a / b for a, b in zip(speeds["ours"], found, strict=True)]
        for name, found in speeds.items()
        if name != "ours"
    }
    table = {
        "samples_per_second": {name: round(statistics.median(found), 1) for name, found in speeds.items()},
        "ratio": {name: round(statistics.median(found), 2) for name, found in ratios.items()},
        "spread": {
            **{name: [round(min(found), 1), round(max(found), 1)] for name, found in speeds.items()},
            "ratio": {name: [round(min(found), 2), round(max(found), 2)] for name, found in ratios.items()},
        },
        "kernels": possible(),
        "parameters": counts["ours"], "batch": BATCH, "turns": asked.turns, "steps_a_turn": asked.steps,
        "threads": torch.get_num_threads(), "load": os.getloadavg()[0], "torch": torch.__version__,
        "platform": platform.platform(),
    }  # fmt: skip
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(table, indent=2) + "\n")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
