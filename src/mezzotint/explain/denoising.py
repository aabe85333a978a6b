"""What the U-Net is shown in one training step, what it should say, what it says: latents, noise, target, loss."""

from time import perf_counter
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mezzotint.diffusion.loss import OBJECTIVES, snr_weight, squared_error
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.explain.blocks import (
    Block,
    Section,
    code_of,
    coloured,
    curves,
    grey,
    heat,
    line,
    picture,
    pictures,
    sizes,
    three,
    unchanged,
)
from mezzotint.models.unet import Prepared
from mezzotint.training.part import Batch
from mezzotint.training.precision import ExplicitAttention
from mezzotint.training.run import Run
from mezzotint.training.step import Examples, examples
from mezzotint.training.unet import UNetPart, unet_of

SHOWN = 4  # samples of the batch
LADDER = (0, 60, 140, 260, 420, 620, 820, 999)  # training steps of the ladder, of 1,000
CURVE = 17  # timesteps at which the loss is measured


class Answer(NamedTuple):
    """What the U-Net was called with, besides x and t, and what it said."""

    prepared: Prepared
    output: Tensor


def sections_of(part: UNetPart, run: Run) -> list[Section]:
    """Examples, noise, target and loss of the coming step."""
    batch = run.batches()[0]
    diffusion, schedule = part.settings.diffusion, part.schedule
    latent, told = part.drawn(batch)
    shown = examples(diffusion, schedule, latent, batch, part.seed)
    begun = perf_counter()
    answer = _answer(part, run, batch)
    ms = round(1000 * (perf_counter() - begun), 1)
    signal, spread = schedule.coefficients(shown.t, latent)
    noise = (shown.x - signal * latent) / spread.clamp(min=1e-6)
    weight = snr_weight(diffusion.prediction_type, schedule, shown.t, diffusion.snr_gamma)
    loss = squared_error(answer.output, shown.wanted, weight)
    few = range(min(SHOWN, len(batch.samples)))
    original = part.train.pictures.pixels([batch.samples[i] for i in few], part.size)
    said = [f"“{told.said[i]}”" if not bool(shown.dropped[i]) else "text dropped" for i in few]
    images = part.autoencoder.decode(latent[: len(few)]).detach()
    first = [
        pictures([picture(unchanged(one), said[i]) for i, one in zip(few, original, strict=True)], "The pictures"),
        pictures(
            [picture(grey(channel), f"channel {i + 1}") for i, channel in enumerate(latent[0])],
            "The first one's latent",
        ),
        pictures([picture(coloured(one), "") for one in images], "What the autoencoder can say of them"),
    ]
    dropped = int(shown.dropped.sum())
    sections = [
        Section(
            id="examples",
            title="Pictures become latents, captions become numbers",
            lead=f"A step takes {run.config.batch} pictures with captions{part_of(run)}. The frozen autoencoder "
            "turns each into a latent, the frozen text tower its caption into rows of numbers. One caption in "
            f"{_one_in(diffusion.proportion_empty_prompts)} is dropped on purpose, so that the network also learns "
            f"what it looks like without words: guidance needs both. Of these {len(batch.samples)}, {dropped} are.",
            formula="latent = mean + deviation * noise   (drawn anew every time a picture is seen)",
            shapes=(f"pictures [{len(batch.samples)} 3 {part.size} {part.size}]", f"latents {sizes(latent)}"),
            code=(code_of(UNetPart.drawn, "moments =", 2),),
            blocks=first,
        ),
        _noising_section(part, schedule, latent, shown),
        _target_section(part, schedule, latent, noise, shown, answer, loss, ms),
        _curve_section(part, run, schedule, latent, batch, answer),
    ]
    return sections


def part_of(run: Run) -> str:
    """In words, that a step of several micro-batches is shown by its first."""
    count = run.config.gradient_accumulation_steps
    return f", {run.config.train_batch_size} at a time; these are the first" if count > 1 else ""


def _one_in(share: float) -> str:
    return "none" if share == 0 else f"{1 / share:.0f}"


def _answer(part: UNetPart, run: Run, batch: Batch) -> Answer:
    """The network's own call in the recipe's loss."""
    seen: list[Answer] = []

    def after(module: nn.Module, arguments: tuple[Tensor, Tensor, Prepared], output: Tensor) -> None:
        seen.append(Answer(arguments[2], output.detach().float()))

    hook = unet_of(run.working.networks).register_forward_hook(after)
    try:
        with torch.no_grad(), ExplicitAttention():
            part.loss("unet", run.working.networks, batch)
    finally:
        hook.remove()
    return seen[0]


def _noising_section(part: UNetPart, schedule: NoiseSchedule, latent: Tensor, shown: Examples) -> Section:
    one, noise = latent[:1], torch.randn(latent[:1].shape, generator=torch.Generator().manual_seed(0))
    last = len(schedule) - 1
    rungs: list[Block] = []
    for t in (min(t, last) for t in LADDER):
        noisy = schedule.add_noise(one, noise, torch.tensor([t]))
        share = float(schedule.alphas_cumprod[t]) ** 0.5
        rungs.append(picture(coloured(part.autoencoder.decode(noisy)[0].detach()), f"t = {t}", f"{share:.2f} picture"))
    few = range(min(SHOWN, len(shown.t)))
    drawn = [
        picture(coloured(part.autoencoder.decode(shown.x[i : i + 1])[0].detach()), f"t = {int(shown.t[i])}")
        for i in few
    ]
    ts = [round(i * last / 100) for i in range(101)]
    shares = [
        line("picture sqrt(ᾱ)", [(t, float(schedule.alphas_cumprod[t]) ** 0.5) for t in ts]),
        line("noise sqrt(1 - ᾱ)", [(t, (1 - float(schedule.alphas_cumprod[t])) ** 0.5) for t in ts]),
    ]
    return Section(
        id="noising",
        title="Noise is mixed in",
        lead="For every latent a training step t is drawn, and noise. The example is a weighted mean of both: the "
        "smaller t, the less noise. Nothing is done step by step here; any t is reached at once.",
        formula="x_t = sqrt(ᾱ_t) * x0 + sqrt(1 - ᾱ_t) * noise",
        shapes=(f"t {[int(t) for t in shown.t[:8]]}{'…' if len(shown.t) > 8 else ''}", f"x {sizes(shown.x)}"),
        code=(code_of(examples, "t = timesteps", 3), code_of(NoiseSchedule.add_noise, "signal, spread", 2)),
        blocks=[
            pictures(rungs, "One picture across the levels (latents, decoded)", side=96),
            curves(shares, "How much of each", "training step t", "share"),
            pictures(drawn, "What the network is shown in this step"),
        ],
    )  # fmt: skip


def _target_section(
    part: UNetPart,
    schedule: NoiseSchedule,
    latent: Tensor,
    noise: Tensor,
    shown: Examples,
    answer: Answer,
    loss: Float[Tensor, "b"],
    ms: float,
) -> Section:
    own = part.settings.diffusion.prediction_type
    signal, spread = schedule.coefficients(shown.t, latent)
    estimate = estimates(own, shown.x, answer.output, signal, spread)
    blocks: list[Block] = []
    for i in range(min(SHOWN, len(shown.t))):
        at = slice(i, i + 1)
        wanted = {name: o.target(signal[at], spread[at], latent[at], noise[at])[0] for name, o in OBJECTIVES.items()}
        items = [picture(three(w), _said(name, own)) for name, w in wanted.items() if name != "sample"]
        error = (answer.output[i] - shown.wanted[i]).square().mean(0)
        items += [
            picture(three(answer.output[i]), "what it says"),
            picture(heat(error), "squared error", f"loss {float(loss[i]):.4f}"),
            picture(coloured(part.autoencoder.decode(estimate[at])[0].detach()), "so it expects this picture"),
        ]  # fmt: skip
        blocks.append(pictures(items, f"Example {i + 1}, t = {int(shown.t[i])}", side=112))
    return Section(
        id="target",
        title="What it should say, what it says",
        lead="The network is asked for one thing: the noise (epsilon), or the velocity v, a mixture of noise and "
        f"picture that says something even where there is nothing but noise. This recipe trains {own}. The loss is "
        "the mean of the squared differences. Latents and targets are shown as three of their channels in red, "
        "green and blue.",
        formula="epsilon: noise;   v: sqrt(ᾱ) * noise - sqrt(1 - ᾱ) * x0;   loss = mean((output - target)²) * weight",
        shapes=(f"output {sizes(answer.output)}", f"loss {float(loss.mean()):.5f}"),
        ms=ms,
        code=(code_of(squared_error, "dtype =", 3), code_of(snr_weight, "abar =", 5)),
        blocks=blocks,
    )


def _said(name: str, own: str) -> str:
    short = {"epsilon": "target of epsilon", "v_prediction": "target of v"}[name]
    return f"{short} (trained here)" if name == own else short


def estimates(objective: str, x: Tensor, output: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """x0 from a network's output at x = signal * x0 + spread * noise."""
    if objective == "epsilon":
        return (x - spread * output) / signal.clamp(min=1e-4)
    return signal * x - spread * output if objective == "v_prediction" else output


@torch.no_grad()
def _curve_section(
    part: UNetPart, run: Run, schedule: NoiseSchedule, latent: Tensor, batch: Batch, answer: Answer
) -> Section:
    """The loss of the same examples at fixed noise, at evenly spread t."""
    own, last = part.settings.diffusion.prediction_type, len(schedule) - 1
    network = unet_of(run.working.networks)
    dtype = network.conv_in.weight.dtype
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(1))
    points: list[tuple[float, float]] = []
    weighted: list[tuple[float, float]] = []
    in_x0: list[tuple[float, float]] = []
    for t in (round(i * last / (CURVE - 1)) for i in range(CURVE)):
        ts = torch.full((len(latent),), t)
        signal, spread = schedule.coefficients(ts, latent)
        wanted = OBJECTIVES[own].target(signal, spread, latent, noise)
        with ExplicitAttention():
            x = schedule.add_noise(latent, noise, ts)
            output = network(x.to(dtype), ts.float(), answer.prepared).float()
        error = float((output - wanted).square().mean())
        points.append((t, error))
        weight = snr_weight(own, schedule, ts, part.settings.diffusion.snr_gamma)
        weighted.append((t, error * float(weight[0])))
        in_x0.append((t, float((estimates(own, x, output, signal, spread) - latent).square().mean())))
    lines = [line(f"squared error in {own}", points, has_dots=True)]
    if part.settings.diffusion.snr_gamma is not None:
        lines.append(line("times its weight", weighted))
    lines.append(line("squared error in x0", in_x0))
    return Section(
        id="curve",
        title="Easy and hard levels",
        lead="The same pictures and the same noise at every level. Where there is little noise, the noise is hard "
        "to see and the picture easy; where there is nothing else, the other way round. Objectives and weights only "
        "choose which of these errors count most.",
        formula="|noise error|² = SNR * |x0 error|²;   |v error|² = (SNR + 1) * |x0 error|²",
        shapes=(f"{CURVE} levels x {len(latent)} examples",),
        code=(code_of(NoiseSchedule.coefficients, "dtype =", 4),),
        blocks=[curves(lines, "Loss at each level", "training step t", "mean squared error", is_log=True)],
    )
