"""The whole theory of diffusion models on points in the plane, in under a minute: every formula can be checked by eye.

The data are eight small clouds on a ring. For them everything is known exactly: the noised density at every level, its
score, and so the best possible denoiser. The samplers, the schedule, the spacing and guidance are those that make
pictures; only the network is replaced, first by the exact answer, then by a small perceptron that learns it.

    python examples/toy_2d.py [FOLDER]

writes toy_2d.html (one page, works offline) and its plots as PNG files, and prints the numbers that the page shows.
"""

import base64
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor, nn

from mezzotint.diffusion.guidance import guided
from mezzotint.diffusion.loss import squared_error, target
from mezzotint.diffusion.parameterisation import epsilon, x0_from
from mezzotint.diffusion.samplers import SAMPLERS
from mezzotint.diffusion.sampling import Query, Row, solve, staged
from mezzotint.diffusion.schedule import NoiseSchedule
from mezzotint.diffusion.spacing import spaced
from mezzotint.explain.blocks import Block, Section, code_of, curves, heat, line, picture, pictures, slider, table
from mezzotint.explain.story import Story

SCHEDULE = NoiseSchedule.scaled_linear()  # that of every Stable Diffusion
CLOUDS, RADIUS, SPREAD = 8, 1.5, 0.12
ANGLES = torch.arange(CLOUDS) * 2 * math.pi / CLOUDS
CENTRES = RADIUS * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)  # [8 2]
CLASS = [0, 1, 2]  # the clouds that "the prompt" asks for; without it, any
VIEW = 2.6  # the plots show -VIEW … VIEW
PIXELS = 240
POINTS = 6000


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Data points [n 2]."""
    chosen = torch.randint(CLOUDS, (count,), generator=generator)
    return CENTRES[chosen] + SPREAD * torch.randn(count, 2, generator=generator)


def denoised(x: Tensor, sigma: float, centres: Tensor = CENTRES) -> Tensor:
    """The exact E[x0 | x] at x = x0 + sigma * noise: the clouds' own answers, weighted by how likely each cloud is."""
    centres = centres.to(x)
    variance = SPREAD**2 + sigma**2
    likely = (-(x[:, None] - centres).square().sum(-1) / (2 * variance)).softmax(1)  # [n clouds]
    own = (SPREAD**2 * x[:, None] + sigma**2 * centres) / variance  # [n clouds 2]
    return (likely[..., None] * own).sum(1)


def score(x: Tensor, sigma: float) -> Tensor:
    """The gradient of the noised data's log density: it points from x to where x probably came from."""
    return (denoised(x, sigma) - x) / sigma**2


def exact(query: Query) -> Tensor:
    """A perfect network's answer to a sampler."""
    return denoised(query.x, query.sigma)


def start(count: int, sigma: float, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Pure noise at level sigma."""
    return sigma * torch.randn(count, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sampled(
    name: str, steps: int, x: Tensor, predict: Callable[[Query], Tensor] = exact, *, is_whole: bool = True
) -> Tensor:
    """Where a sampler of the package takes x in so many steps: to level 0, or to the lowest trained one."""
    levels = spaced("karras", SCHEDULE, steps) if is_whole else spaced("karras", SCHEDULE, steps + 1)[:-1]
    generator = torch.Generator().manual_seed(1)
    sampling = SAMPLERS[name](
        x, levels, noise=lambda a, b: torch.randn(x.shape, generator=generator, dtype=x.dtype), schedule=SCHEDULE
    )
    return solve(sampling, predict)


def with_guidance(scale: float, count: int, steps: int = 40) -> Tensor:
    """Points made with the prompt "one of three clouds", guided: the stage is the one that guides pictures."""
    x = start(count, SCHEDULE.sigma_max)
    levels = spaced("karras", SCHEDULE, steps)
    sampling = SAMPLERS["heun"](x, levels, noise=lambda a, b: torch.zeros(x.shape), schedule=SCHEDULE)
    rows = staged(sampling, guided(CENTRES[CLASS], CENTRES, scale))

    def answer(row: Row) -> Tensor:
        assert isinstance(row.conditioning, Tensor)  # the centres that are allowed
        return denoised(row.x, row.sigma, row.conditioning)

    asked = next(rows)
    while True:
        try:
            asked = rows.send([answer(row) for row in asked])
        except StopIteration as finished:
            return finished.value


class Perceptron(nn.Module):
    """A network that has seen only noised points: x and the level in, the noise out."""

    def __init__(self, width: int = 160) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(12, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, 2),
        )  # fmt: skip
        self.log_sigmas = SCHEDULE.sigmas.log().float()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The noise in x = sqrt(ᾱ) x0 + sqrt(1 - ᾱ) noise."""
        low = t.long().clamp(max=len(SCHEDULE) - 2)
        level = torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], t - low)[:, None]  # between trained ones
        waves = [wave(told) for told in (level, 2 * level, 3 * x) for wave in (torch.sin, torch.cos)]
        return self.layers(torch.cat([2 * x, level, level.square() / 4, *waves], dim=1))


def trained(steps: int = 1800, batch: int = 512) -> tuple[Perceptron, list[tuple[float, float]], float]:
    """A perceptron after training as U-Nets are trained; its loss on held-out points, and that of the exact answer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Perceptron()
    generator = torch.Generator().manual_seed(2)

    def examples(count: int) -> tuple[Tensor, Tensor, Tensor]:
        x0, noise = draw(count, generator), torch.randn(count, 2, generator=generator)
        return x0, noise, torch.randint(len(SCHEDULE), (count,), generator=generator)

    def error(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        wanted = target("epsilon", SCHEDULE, x0, noise, t)
        output = network(SCHEDULE.add_noise(x0, noise, t), t.float())
        return squared_error(output, wanted, torch.ones(len(x0))).mean()

    held = examples(4 * batch)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses: list[tuple[float, float]] = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        error(*examples(batch)).backward()
        optimizer.step()
        rate.step()
        if step == 1 or step % (steps // 30) == 0:
            with torch.no_grad():
                losses.append((step, float(error(*held))))
    return network.eval().requires_grad_(False), losses, best_possible(*held)


def best_possible(x0: Tensor, noise: Tensor, t: Tensor) -> float:
    """The loss that remains for the exact answer: what the noised points themselves do not tell."""
    signal, spread = SCHEDULE.coefficients(t, x0)
    x = (signal * x0 + spread * noise) / signal
    answers = torch.cat([denoised(x[i : i + 1], float(spread[i] / signal[i])) for i in range(len(x))])
    return float(((x - answers) * signal / spread - noise).square().mean())


def learnt(network: Perceptron) -> Callable[[Query], Tensor]:
    """The perceptron as a predictor for samplers, by the formula that serves every eps-model."""

    def predict(query: Query) -> Tensor:
        t = torch.full((len(query.x),), query.t)
        output = network(query.x * epsilon(query.sigma).c_in, t)
        return x0_from(output, query.x, query.sigma, epsilon)

    return predict


def plot(points: Tensor) -> Image.Image:
    """How many points lie where."""
    at = ((points + VIEW) / (2 * VIEW) * PIXELS / 2).long()
    inside = ((at >= 0) & (at < PIXELS // 2)).all(1)
    counts = torch.bincount(at[inside, 1] * (PIXELS // 2) + at[inside, 0], minlength=(PIXELS // 2) ** 2)
    density = F.avg_pool2d(counts.view(1, 1, PIXELS // 2, PIXELS // 2).float(), 3, 1, 1)[0, 0].sqrt()
    return heat(density).resize((PIXELS, PIXELS), Image.Resampling.BILINEAR)


def arrows(sigma: float) -> Image.Image:
    """The score at a level, on a grid; arrows are as long as the way to the estimate of x0, at most one cell."""
    image = plot(draw(POINTS, torch.Generator().manual_seed(5)) + start(POINTS, sigma, seed=6))
    pen, cells = ImageDraw.Draw(image), 15
    side = torch.linspace(-VIEW * 0.93, VIEW * 0.93, cells)
    grid = torch.cartesian_prod(side, side)
    step = score(grid, sigma) * sigma**2
    step = step / step.norm(dim=1, keepdim=True).clamp(min=1e-9) * step.norm(dim=1, keepdim=True).clamp(max=0.3)
    for begin, end in zip(grid, grid + step, strict=True):
        a, b = (tuple(((point + VIEW) / (2 * VIEW) * PIXELS).tolist()) for point in (begin, end))
        pen.line([a, b], fill=(110, 200, 255), width=2)
        pen.ellipse([b[0] - 2, b[1] - 2, b[0] + 2, b[1] + 2], fill=(230, 250, 255))
    return image


def off_ring(points: Tensor) -> float:
    """Mean distance to the nearest cloud's centre, in units of its spread; the data's own is sqrt(pi / 2) = 1.25."""
    return float((points[:, None] - CENTRES).norm(dim=-1).min(1).values.mean()) / SPREAD


def data_section() -> Section:
    """What is to be learnt."""
    points = draw(POINTS, torch.Generator().manual_seed(0))
    return Section(
        id="data",
        title="The data",
        lead=f"{POINTS:,} points from {CLOUDS} small clouds. They stand for pictures: most places of the plane, like "
        "most combinations of pixels, never occur. A model of the data must learn where they lie.",
        formula="x0 ~ data",
        blocks=[pictures([picture(plot(points), "the data")], side=PIXELS)],
    )


def forward_section() -> Section:
    """The forward process, which destroys it."""
    points = draw(POINTS, torch.Generator().manual_seed(0))
    noise = torch.randn(points.shape, generator=torch.Generator().manual_seed(3))
    items: list[Block] = []
    for t in (0, 100, 250, 450, 700, 999):
        x = SCHEDULE.add_noise(points, noise, torch.full((POINTS,), t))
        items.append(picture(plot(x), f"t = {t}", f"picture {float(SCHEDULE.alphas_cumprod[t]) ** 0.5:.2f}"))
    return Section(
        id="forward",
        title="Noise is mixed in",
        lead="Each point becomes a weighted mean of itself and of noise. The clouds melt into one another; at the end "
        "nothing is left but a bell curve, the same for any data. That is where making new points will start.",
        formula="x_t = sqrt(ᾱ_t) * x0 + sqrt(1 - ᾱ_t) * noise",
        code=(code_of(NoiseSchedule.add_noise, "signal, spread", 2),),
        blocks=[pictures(items, "The same points at six of the thousand levels", side=150)],
    )


def score_section() -> Section:
    """The exact way back."""
    items = [picture(arrows(sigma), f"sigma = {sigma:g}") for sigma in (0.15, 0.5, 1.0, 3.0)]
    return Section(
        id="score",
        title="The way back: the score",
        lead="At every level and place, the arrow points to the mean of all data that could have become this noisy "
        "point. With little noise it points to the nearest cloud, with much noise to the middle of everything. A "
        "network that predicts noise predicts exactly these arrows.",
        formula="score = (E[x0 | x] - x) / sigma²;   noise = (x - E[x0 | x]) / sigma",
        blocks=[pictures(items, "The exact arrows at four levels", side=PIXELS)],
    )


def samplers_section() -> tuple[Section, dict[str, float]]:
    """Trajectories, what few steps cost, and the order of each sampler, measured."""
    x = start(POINTS, SCHEDULE.sigma_max)
    items = [
        picture(
            plot(sampled(name, steps, x)), f"{name}, {steps} steps", f"{off_ring(sampled(name, steps, x)):.2f} spreads"
        )
        for name, steps in (("euler", 5), ("euler", 10), ("heun", 5), ("dpmpp_2m", 10), ("euler_ancestral", 20))
    ]
    few = start(500, SCHEDULE.sigma_max, dtype=torch.float64)
    ideal = sampled("heun", 900, few, is_whole=False)
    slopes: dict[str, float] = {}
    lines: list[Block] = []
    for name in ("euler", "heun", "dpmpp_2m"):
        counts = (16, 32, 64, 128, 256)
        errors = [float((sampled(name, n, few, is_whole=False) - ideal).norm(dim=1).median()) for n in counts]
        slopes[name] = math.log2(errors[-2] / errors[-1])
        lines.append(
            line(
                f"{name} (slope {slopes[name]:.2f})",
                list(zip(map(math.log2, counts), errors, strict=True)),
                has_dots=True,
            )
        )
    film: list[Block] = []
    for steps_left in range(11):
        sigmas = spaced("karras", SCHEDULE, 10)
        film.append(picture(plot(_at_level(x, steps_left)), f"sigma = {sigmas[steps_left].sigma:.2f}"))
    return Section(
        id="samplers",
        title="Samplers walk back along the arrows",
        lead="Start from noise, go along the arrow for a while, ask again. Euler takes straight steps; Heun looks "
        "ahead and corrects; DPM++ remembers its last answer. A method of order 2 gets four times as close with "
        "twice the steps.",
        formula="dx / dsigma = (x - E[x0 | x]) / sigma",
        code=(code_of(SAMPLERS["euler"]), code_of(SAMPLERS["heun"])),
        blocks=[
            slider(film, "Ten Euler steps", "step"),
            pictures(items, f"Where {POINTS:,} points end", side=150),
            curves(lines, "Distance from the exact end point", "log2 of the steps", "median distance", is_log=True),
        ],
    ), slopes  # fmt: skip


def _at_level(x: Tensor, steps: int) -> Tensor:
    """x after the first `steps` of ten Euler steps."""
    levels = spaced("karras", SCHEDULE, 10)[: steps + 1]
    if steps == 0:
        return x
    sampling = SAMPLERS["euler"](x, levels, noise=lambda a, b: torch.zeros(()), schedule=SCHEDULE)
    return solve(sampling, exact)


def guidance_section() -> tuple[Section, dict[float, float]]:
    """The same noise with more and more guidance, and the share of points that obey."""
    items: list[Block] = []
    shares: dict[float, float] = {}
    for scale in (0.0, 0.5, 1.0, 2.0, 4.0):
        points = with_guidance(scale, POINTS)
        nearest = (points[:, None] - CENTRES).norm(dim=-1).argmin(1)
        shares[scale] = float(torch.isin(nearest, torch.tensor(CLASS)).float().mean())
        middle = float((nearest == CLASS[1]).float().mean())
        items.append(
            picture(plot(points), f"scale {scale:g}", f"{shares[scale]:.0%} obey, {middle:.0%} in the middle one")
        )
    return Section(
        id="guidance",
        title="Guidance",
        lead="The prompt allows three of the eight clouds. Scale 0 ignores it, scale 1 follows it exactly, more "
        "exaggerates: points flee from where other clouds would be possible, variety is lost, some land outside the "
        "data.",
        formula="x0 = x0_without + scale * (x0_with - x0_without)",
        code=(code_of(guided, "x0 = unconditional_x0", 1),),
        blocks=[pictures(items, "The same noise, guided", side=150)],
    ), shares  # fmt: skip


def training_section() -> tuple[Section, dict[str, float]]:
    """A perceptron learns the arrows from examples alone."""
    network, losses, best = trained()
    ideal_loss = [(step, best) for step, _ in losses]
    x = start(POINTS, SCHEDULE.sigma_max)
    made, ideal = sampled("heun", 30, x, learnt(network)), sampled("heun", 30, x)
    numbers = {
        "loss": losses[-1][1], "best possible": best,
        "learnt": off_ring(made), "exact": off_ring(ideal),
    }  # fmt: skip
    lines = [line("the network", losses), line("the exact answer", ideal_loss)]
    shown = [picture(plot(made), "made with what was learnt"), picture(plot(ideal), "with the exact arrows")]
    distances = [(name, f"{numbers[name]:.2f}") for name in ("learnt", "exact")]
    return Section(
        id="training",
        title="A network learns it",
        lead="Nobody has the exact arrows of pictures. A network is shown noised examples and asked for the noise; "
        "the best answer to that question is the arrow. Even a perfect network keeps a loss, because a noisy point "
        f"could have come from several: {numbers['best possible']:.3f} here; this one reaches {numbers['loss']:.3f}.",
        formula="loss = mean(|network(x_t, t) - noise|²)",
        code=(code_of(target), code_of(squared_error, "dtype =", 3)),
        blocks=[
            curves(lines, "Loss on held-out points", "training step", "mean squared error"),
            pictures(shown, "What is made with it", side=PIXELS),
            table(("", "mean distance to a centre, in spreads"), distances),
        ],
    ), numbers  # fmt: skip


def main(folder: Path) -> dict[str, float]:
    """Write the page and the plots; the numbers that they show."""
    samplers, slopes = samplers_section()
    guidance, shares = guidance_section()
    training, numbers = training_section()
    story = Story(
        title="Diffusion in the plane",
        subtitle="The whole theory, on points that can be seen",
        facts=[("schedule", "scaled linear, as in Stable Diffusion"), ("points", f"{POINTS:,}")],
        sections=[data_section(), forward_section(), score_section(), samplers, guidance, training],
        kind="toy",
    )
    folder.mkdir(parents=True, exist_ok=True)
    story.save(folder / "toy_2d.html")
    for section in story.sections:
        for i, block in enumerate(block for block in section.blocks if "items" in block):
            for j, item in enumerate(block["items"]):
                if "src" in item:
                    kind, data = item["src"].split(";base64,")
                    name = f"{section.id}-{i}-{j}.{'png' if kind.endswith('png') else 'jpg'}"
                    (folder / name).write_bytes(base64.b64decode(data))
    found = {f"order of {name}": slope for name, slope in slopes.items()}
    found |= {f"share that obeys, scale {scale:g}": share for scale, share in shares.items()} | numbers
    for name, value in found.items():
        print(f"{name}: {value:.3f}")
    print(folder / "toy_2d.html")
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "toy"))
