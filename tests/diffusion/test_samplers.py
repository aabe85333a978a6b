"""Laws that the samplers obey by themselves: known solutions, orders, exactness and moments. No reference program.

Randomness is followed exactly, not sampled: on linear models x is an affine function of unit Gaussians, so x is run as
the vector of its coefficients, [mean, start, first draw, second draw, …]. Laws are functions: they must also fail on a
sampler with one wrong coefficient.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mezzotint import names
from mezzotint.diffusion import multistep, samplers
from mezzotint.diffusion.samplers import SAMPLERS, restart_path
from mezzotint.diffusion.sampling import NoiseLevel, Query, Sampling, solve
from mezzotint.diffusion.schedule import NoiseSchedule

SCHEDULE = NoiseSchedule.scaled_linear()
SPREAD = 0.5  # standard deviation of the data
HIGH, LOW = 10.0, 0.02
STOCHASTIC = [name for name, info in names.SAMPLERS.items() if info.is_stochastic]
Model = Callable[[Query], Tensor]


def karras(steps: int, high: float = HIGH, low: float = LOW) -> list[NoiseLevel]:
    """Levels even in sigma^(1/7), without a final 0."""
    ramp = [(high ** (1 / 7) * (1 - i / steps) + low ** (1 / 7) * i / steps) ** 7 for i in range(steps + 1)]
    return [NoiseLevel(sigma, SCHEDULE.timestep(sigma)) for sigma in ramp]


def gain(sigma: float) -> float:
    """The ideal denoiser of centred Gaussian data is this factor."""
    return SPREAD**2 / (SPREAD**2 + sigma**2)


def ideal(query: Query) -> Tensor:
    mean = torch.zeros_like(query.x)
    mean[0] = 1
    return mean + gain(query.sigma) * (query.x - mean)


def known(query: Query) -> Tensor:
    """The denoiser of data that is one point."""
    mean = torch.zeros_like(query.x)
    mean[0] = 1
    return mean


def coefficients(
    sampler: Callable[..., Sampling], levels: Sequence[NoiseLevel], start: float, model: Model, **options: object
) -> Tensor:
    """The coefficients of the result, [mean, start, draws…], if x starts at mean + start * Gaussian."""
    asked: list[tuple[float, float]] = []

    def run(noise: Callable[[float, float], Tensor], size: int) -> Tensor:
        x = torch.zeros(size, dtype=torch.float64)
        x[0], x[1] = 1, start
        return solve(sampler(x, levels, noise=noise, schedule=SCHEDULE, **options), model)

    def count(sigma_from: float, sigma_to: float) -> Tensor:
        asked.append((sigma_from, sigma_to))
        return torch.zeros(2, dtype=torch.float64)

    run(count, 2)
    is_brownian = sampler.__name__ in names.SAMPLERS and names.SAMPLERS[sampler.__name__].is_brownian
    points = sorted({sigma for pair in asked for sigma in pair}) if is_brownian else []
    size, draw = 2 + max(len(asked), len(points)), iter(range(len(asked)))

    def noise(sigma_from: float, sigma_to: float) -> Tensor:
        unit = torch.zeros(size, dtype=torch.float64)
        if is_brownian:  # a sum of increments between neighbouring points
            for i, (low, high) in enumerate(pairwise(points)):
                if sigma_to <= low and high <= sigma_from:
                    unit[2 + i] = math.sqrt((high - low) / (sigma_from - sigma_to))
        else:
            unit[2 + next(draw)] = 1
        return unit

    return run(noise, size)


def ones(sigma_from: float, sigma_to: float) -> Tensor:
    """Noise whose value does not matter."""
    return torch.ones(2)


def variance(result: Tensor) -> float:
    return float(result[1:].square().sum())


def check_known_x0(name: str) -> None:
    """Of data that is one point, every sampler makes that point plus noise of exactly the level where it stops.

    On every tail of a list of levels, so also with 1 step, ending at 0 and above it.
    """
    options = {"timestep_scaling": 1e12} if name == "lcm" else {}  # else it leaks a little of x, by definition
    for steps in (4, 22, 40):
        for final in ([], [NoiseLevel(0.0, 0.0)]):
            levels = [*karras(steps, low=0.05), *final]
            for cut in range(0, steps, 1 + steps // 7):
                tail = levels[cut:]
                result = coefficients(SAMPLERS[name], tail, tail[0].sigma, known, **options)
                assert float(result[0]) == pytest.approx(1, abs=1e-12)
                assert math.sqrt(variance(result)) == pytest.approx(tail[-1].sigma, rel=1e-10, abs=1e-12)


def check_order(name: str) -> None:
    """On Gaussian data the error of the result's variance falls by 2^order as steps double; the mean is exact."""
    exact = SPREAD**2 + LOW**2
    results = [coefficients(SAMPLERS[name], karras(n), math.hypot(SPREAD, HIGH), ideal) for n in (64, 128)]
    coarse, fine = (abs(variance(result) - exact) for result in results)
    assert float(results[0][0]) == pytest.approx(1, abs=1e-12)
    assert math.log2(coarse / fine) == pytest.approx(names.SAMPLERS[name].order, abs=0.15)


@pytest.mark.parametrize("name", SAMPLERS)
def test_known_x0_keeps_exactly_the_noise_of_the_last_level(name: str) -> None:
    check_known_x0(name)


@pytest.mark.parametrize("name", [name for name, info in names.SAMPLERS.items() if info.order])
def test_converges_at_the_order_of_its_row(name: str) -> None:
    check_order(name)


def split(sigma: float, to: float) -> tuple[float, float]:
    """Down and up of an ancestral step, from the variance of q(x_to | x_from, x0): to² (sigma² - to²) / sigma²."""
    up = to**2 * (sigma**2 - to**2) / sigma**2
    return math.sqrt(to**2 - up), math.sqrt(up)


def euler_ancestral_step(v: float, now: float, to: float) -> float:
    down, up = split(now, to)
    slope = (1 - gain(now)) / now
    return (1 + slope * (down - now)) ** 2 * v + up**2


def ddim_step(v: float, now: float, to: float, eta: float) -> float:
    """In the coordinates of the paper, with ᾱ: eq. 12 and 16."""
    a, b = 1 / (1 + now**2), 1 / (1 + to**2)
    std = eta * math.sqrt((1 - b) / (1 - a) * (1 - a / b))
    x0 = math.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)
    eps = (1 - math.sqrt(a) * x0) / math.sqrt(1 - a)
    factor = math.sqrt(b) * x0 + math.sqrt(1 - b - std**2) * eps
    return (factor**2 * v * a + std**2) / b


def ddpm_step(v: float, now: float, to: float, is_large: bool) -> float:
    """In the coordinates of the paper: eq. 7, variance of section 3.2."""
    a, b = 1 / (1 + now**2), 1 / (1 + to**2)
    beta = 1 - a / b
    x0 = math.sqrt(a) * SPREAD**2 / (a * SPREAD**2 + 1 - a)
    factor = math.sqrt(b) * beta / (1 - a) * x0 + math.sqrt(a / b) * (1 - b) / (1 - a)
    return (factor**2 * v * a + (beta if is_large else beta * (1 - b) / (1 - a))) / b


def dpm2_ancestral_step(v: float, now: float, to: float) -> float:
    down, up = split(now, to)
    middle = math.exp((math.log(now) + math.log(down)) / 2)
    at_middle = 1 + (1 - gain(now)) / now * (middle - now)
    return (1 + (1 - gain(middle)) * at_middle / middle * (down - now)) ** 2 * v + up**2


def dpmpp_2s_ancestral_step(v: float, now: float, to: float) -> float:
    down, up = split(now, to)
    h = math.log(now / down)
    middle = now * math.exp(-h / 2)
    at_middle = math.exp(-h / 2) - math.expm1(-h / 2) * gain(now)
    return (math.exp(-h) - math.expm1(-h) * gain(middle) * at_middle) ** 2 * v + up**2


def dpmpp_sde_step(v: float, now: float, to: float) -> float:
    """Its two draws share the path down to the middle level."""
    middle = math.sqrt(now * to)
    (down_1, up_1), (down, up) = split(now, middle), split(now, to)
    at_middle = down_1 / now + (1 - down_1 / now) * gain(now)
    carry = (1 - down / now) * gain(middle)
    shared = math.sqrt((now - middle) / (now - to))
    return (down / now + carry * at_middle) ** 2 * v + (carry * up_1) ** 2 + up**2 + 2 * carry * up_1 * up * shared


def one_step(step: Callable[..., float], *rest: object) -> Callable[[list[float], float], float]:
    def recursion(sigmas: list[float], v: float) -> float:
        for now, to in pairwise(sigmas):
            v = step(v, now, to, *rest)
        return v

    return recursion


def dpmpp_sde_multistep(order: int, is_midpoint: bool) -> Callable[[list[float], float], float]:
    """eta = 1, on the covariance of (x, the x0 before, the x0 before that), from integrals done by quadrature.

    x0 is the polynomial through past values at lambda; over a step it has weight 2 exp(2 (lambda - end)).
    """

    def recursion(sigmas: list[float], v: float) -> float:
        lambdas = [-math.log(sigma) for sigma in sigmas]
        points, weights = np.polynomial.legendre.leggauss(30)
        cov = np.zeros((3, 3))
        cov[0, 0] = v
        for i, (now, to) in enumerate(pairwise(sigmas)):
            h = lambdas[i + 1] - lambdas[i]
            at = (points + 1) * h / 2
            density = 2 * np.exp(2 * (at - h)) * weights * h / 2
            used = min(order, i + 1)
            w = np.zeros(3)  # of x0 now, before, before that
            w[0] = density.sum()
            back = [lambdas[i] - lambdas[i - k] for k in range(used)]
            if used == 2:
                slope = w[0] * h / 2 if is_midpoint else density @ at
                w[:2] += np.array([slope, -slope]) / back[1]
            if used == 3:
                # through three points: slope at 0 exact, bend halved, as published
                bend = (
                    np.array([1 / back[1], -1 / back[1] - 1 / (back[2] - back[1]), 1 / (back[2] - back[1])]) / back[2]
                )
                slope_at_0 = np.array([1 / back[1], -1 / back[1], 0]) + back[1] * bend
                w += density @ at * slope_at_0 + density @ at**2 / 2 * bend
            g = gain(now)
            step = np.array([[(to / now) ** 2 + w[0] * g, w[1], w[2]], [g, 0, 0], [0, 1, 0]])
            cov = step @ cov @ step.T
            cov[0, 0] += to**2 * (1 - (to / now) ** 2)
        return float(cov[0, 0])

    return recursion


def restart_recursion(sigmas: list[float], v: float) -> float:
    at = sigmas[0]
    for now, after in restart_path([NoiseLevel(sigma, 0.0) for sigma in sigmas], SCHEDULE):
        v += max(0.0, now.sigma**2 - at**2)
        at = after.sigma
        slope = (1 - gain(now.sigma)) / now.sigma
        end = 1 + slope * (at - now.sigma)
        v *= (1 + (slope + (1 - gain(at)) / at * end) / 2 * (at - now.sigma)) ** 2
    return v


RECURSIONS: list[tuple[str, dict[str, object], Callable[[list[float], float], float]]] = [
    ("euler_ancestral", {}, one_step(euler_ancestral_step)),
    ("ddim", {"eta": 0.6}, one_step(ddim_step, 0.6)),
    ("ddpm", {}, one_step(ddpm_step, False)),
    ("ddpm", {"variance": "fixed_large"}, one_step(ddpm_step, True)),
    ("dpm2_ancestral", {}, one_step(dpm2_ancestral_step)),
    ("dpmpp_2s_ancestral", {}, one_step(dpmpp_2s_ancestral_step)),
    ("dpmpp_sde", {}, one_step(dpmpp_sde_step)),
    ("dpmpp_2m_sde", {}, dpmpp_sde_multistep(2, True)),
    ("dpmpp_2m_sde", {"solver_type": "heun"}, dpmpp_sde_multistep(2, False)),
    ("dpmpp_3m_sde", {}, dpmpp_sde_multistep(3, False)),
    ("restart", {}, restart_recursion),
]


def check_recursion(name: str, options: dict[str, object], recursion: Callable[[list[float], float], float]) -> None:
    """Mean and variance of the result are those of the written-out recursion."""
    for steps in (1, 2, 7, 24):
        levels = karras(steps)
        start = math.hypot(SPREAD, HIGH)
        result = coefficients(SAMPLERS[name], levels, start, ideal, **options)
        assert float(result[0]) == pytest.approx(1, abs=1e-10)
        assert variance(result) == pytest.approx(recursion([level.sigma for level in levels], start**2), rel=1e-10)


@pytest.mark.parametrize(
    ("name", "options", "recursion"), RECURSIONS, ids=lambda value: getattr(value, "__name__", None) or str(value)
)
def test_moments_follow_the_recursion(
    name: str, options: dict[str, object], recursion: Callable[[list[float], float], float]
) -> None:
    check_recursion(name, options, recursion)


def test_every_sampler_with_noise_has_a_recursion_or_an_exact_formula() -> None:
    assert {name for name, _, _ in RECURSIONS} | {"lcm", "tcd"} == {*STOCHASTIC, "ddim"}


def test_lcm_jumps_and_adds_noise() -> None:
    """In the coordinates of the network, with ᾱ: c_skip x + c_out x0, then a forward draw at the next level."""
    levels = [NoiseLevel(SCHEDULE.sigma(t), t) for t in (999.0, 499.0, 0.1)] + [NoiseLevel(0.0, 0.0)]
    result = coefficients(SAMPLERS["lcm"], levels, levels[0].sigma, ideal)
    x = torch.tensor([0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    x[0], x[1] = 1, levels[0].sigma
    skip = 0.0
    for i, (now, after) in enumerate(pairwise(levels)):
        scaled = now.t * 10
        skip, out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        x = skip * x / math.sqrt(1 + now.sigma**2) + out * ideal(Query(x, now.sigma, now.t, i))
        if after.sigma:
            x[2 + i] += after.sigma
    torch.testing.assert_close(result, x, rtol=1e-12, atol=1e-12)
    assert skip > 0.1  # so the boundary condition was seen


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_jumps_below_the_next_level_and_noises_up_to_it(gamma: float) -> None:
    """In the coordinates of the network, with ᾱ of t, of s = floor((1 - gamma) t_next) and of t_next."""
    levels = [NoiseLevel(SCHEDULE.sigma(t), t) for t in (999.0, 759.0, 259.0)]
    result = coefficients(SAMPLERS["tcd"], levels, levels[0].sigma, ideal, gamma=gamma)
    x = torch.tensor([1.0, levels[0].sigma, 0.0, 0.0], dtype=torch.float64)
    for i, (now, after) in enumerate(pairwise(levels)):
        abar, abar_s, abar_to = (
            float(SCHEDULE.alphas_cumprod[int(t)]) for t in (now.t, (1 - gamma) * after.t, after.t)
        )
        x0 = ideal(Query(x, now.sigma, now.t, i))
        eps = (x * abar**0.5 - abar**0.5 * x0) / (1 - abar) ** 0.5
        at_s = abar_s**0.5 * x0 + (1 - abar_s) ** 0.5 * eps
        x = (abar_to / abar_s) ** 0.5 * at_s / abar_to**0.5
        x[2 + i] += math.sqrt(1 - abar_to / abar_s) / abar_to**0.5
    torch.testing.assert_close(result, x[: len(result)], rtol=1e-12, atol=1e-12)
    assert float(x[len(result) :].abs().sum()) == 0


@pytest.mark.parametrize("name", SAMPLERS)
def test_asks_as_often_as_its_row_says_in_float32_at_levels_with_their_t(name: str) -> None:
    for steps in (1, 2, 7, 20, 41):
        asked: list[Query] = []

        def predict(query: Query, asked: list[Query] = asked) -> Tensor:
            asked.append(query)
            return torch.tanh(query.x)

        levels = [*karras(max(steps - 1, 1))[-steps:], NoiseLevel(0.0, 0.0)]
        x = torch.ones(2) * levels[0].sigma
        end = solve(SAMPLERS[name](x, levels, noise=ones, schedule=SCHEDULE), predict)
        assert end.dtype == torch.float32
        assert bool(end.isfinite().all())
        assert len(asked) == names.SAMPLERS[name].cost(steps)
        assert sorted({query.step for query in asked}) == list(range(steps))
        assert [query.t for query in asked] == pytest.approx([SCHEDULE.timestep(query.sigma) for query in asked])


@pytest.mark.parametrize("name", STOCHASTIC)
def test_noise_is_drawn_for_the_interval_it_is_added_over(name: str) -> None:
    """A sampler with a middle level asks for the part and for the whole; none asks at the end."""
    levels = [NoiseLevel(4.0, 700.0), NoiseLevel(1.0, 300.0), NoiseLevel(0.0, 0.0)]
    asked: list[tuple[float, float]] = []

    def noise(sigma_from: float, sigma_to: float) -> Tensor:
        asked.append((sigma_from, sigma_to))
        return torch.zeros(())

    solve(SAMPLERS[name](torch.tensor(4.0), levels, noise=noise, schedule=SCHEDULE), lambda query: query.x / 2)
    part = [(4.0, 2.0)] if name == "dpmpp_sde" else []
    assert asked == ([] if name == "restart" else [*part, (4.0, 1.0)])


def test_churn_asks_above_the_level_and_adds_what_is_missing() -> None:
    levels = [NoiseLevel(4.0, 700.0), NoiseLevel(1.0, 300.0)]
    asked: list[Query] = []

    def predict(query: Query) -> Tensor:
        asked.append(query)
        return query.x * 0

    for s_tmax, sigma in ((None, 5.0), (3.0, 4.0)):
        options = {"s_churn": 0.25, "s_tmax": s_tmax}
        end = solve(SAMPLERS["euler"](torch.zeros(2), levels, noise=ones, schedule=SCHEDULE, **options), predict)
        assert asked[-1].sigma == sigma
        assert asked[-1].t == (700.0 if sigma == 4 else SCHEDULE.timestep(5.0))
        assert float(end[0]) == pytest.approx(math.sqrt(sigma**2 - 16) / sigma)


@pytest.mark.parametrize("steps", [20, 35, 36, 50])
@pytest.mark.parametrize("final", [[], [NoiseLevel(0.0, 0.0)]])
def test_restart_keeps_the_number_of_steps_and_goes_back_up(steps: int, final: list[NoiseLevel]) -> None:
    levels = [*karras(steps - len(final), 14.6, 0.03), *final]
    path = restart_path(levels, SCHEDULE)
    jumps = [(end.sigma, start.sigma) for (_, end), (start, _) in pairwise(path) if end != start]
    assert len(path) == steps
    assert (path[0][0], path[-1][1]) == (levels[0], levels[-1])
    assert len(jumps) == (2 if steps >= 36 else 1)
    for low, high in jumps:
        assert low == pytest.approx(0.1, rel=0.5)
        assert high == pytest.approx(2.0, rel=0.5)


def euler_with_a_wrong_ratio(x: Tensor, x0: Tensor, ratio: float) -> Tensor:
    return x0 + ratio**1.01 * (x - x0)


def ancestral_with_too_much_noise(
    sigma: float, sigma_to: float, eta: float = 1.0, right: Callable[..., tuple[float, float]] = samplers.ancestral
) -> tuple[float, float]:
    down, up = right(sigma, sigma_to, eta)
    return down, 1.01 * up


def slope_without_the_half(
    nodes: Sequence[float], values: Sequence[Tensor], right: Callable[..., list[Tensor]] = multistep.derivatives
) -> list[Tensor]:
    """In dpmpp_2m: 1 / r where 1 / (2 r) stands."""
    return [2 * slope for slope in right(nodes, values)]


def weights_of_an_even_grid(
    nodes: Sequence[float], end: float, right: Callable[..., list[float]] = multistep.adams_weights
) -> list[float]:
    return [(end - nodes[0]) * w for w in right([-float(i) for i in range(len(nodes))], 1.0)]


@pytest.mark.parametrize(
    ("wrong", "module", "part", "law", "of"),
    [
        (euler_with_a_wrong_ratio, samplers, "toward", check_known_x0, ("euler",)),
        (euler_with_a_wrong_ratio, samplers, "toward", check_order, ("euler",)),
        *[
            (ancestral_with_too_much_noise, samplers, "ancestral", check_known_x0, (name,))
            for name in ("euler_ancestral", "dpm2_ancestral", "dpmpp_2s_ancestral", "dpmpp_sde", "ddpm")
        ],
        (ancestral_with_too_much_noise, samplers, "ancestral", check_recursion, RECURSIONS[0]),
        (ancestral_with_too_much_noise, samplers, "ancestral", check_order, ("euler_ancestral",)),
        (slope_without_the_half, multistep, "derivatives", check_order, ("dpmpp_2m",)),
        (slope_without_the_half, multistep, "derivatives", check_recursion, RECURSIONS[7]),
        (weights_of_an_even_grid, multistep, "adams_weights", check_order, ("lms",)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_laws_catch(
    wrong: object,
    module: object,
    part: str,
    law: Callable[..., None],
    of: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One wrong coefficient, and the law that holds without it fails."""
    law(*of)
    monkeypatch.setattr(module, part, wrong)
    with pytest.raises(AssertionError):
        law(*of)
